"""Damaged ONNX files: the door gives a program or one plain sentence; it never crashes, hangs or eats memory.

The mutants are read in one worker process (`tests/fuzz/worker.py`), which is started again when one of them ends or
stops it. To see one mutant again: `python tests/fuzz/worker.py SEED NUMBER`.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="limits memory and waits the Linux way"),
]

MUTANTS, MUTANTS_OF_LARGE = 60, 100
SECONDS = 10.0
START_SECONDS = 120.0
FINE = {"program", "refused"}


class Worker:
    """A process that reads mutants; after a crash or a time-out the next question starts another."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.repository = repository
        self.errors = folder / "stderr.txt"
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.seeds: dict[str, bool] = {}
        """Name of each seed, and whether it is a large one."""
        self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process and learn which seeds there are."""
        environment = {**os.environ, "PYTHONPATH": str(self.repository), "OMP_NUM_THREADS": "1"}
        script = self.repository / "tests" / "fuzz" / "worker.py"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                bufsize=0,
            )
        self.starts += 1
        first = self._line(START_SECONDS)
        assert first, self.errors.read_text(errors="replace")
        self.seeds = json.loads(first)
        return self.process

    def ask(self, recipe: str, seconds: float = SECONDS) -> dict[str, Any]:
        """The answer to a recipe; its outcome is `crash` or `hang` where the process gave none."""
        process = self.process or self.start()
        assert process.stdin is not None
        process.stdin.write(f"{recipe}\n".encode())
        line = self._line(seconds)
        if line:
            return json.loads(line)
        outcome = "hang" if line is None else "crash"
        self.stop()
        return {"outcome": outcome, "detail": self.errors.read_text(errors="replace")[-2000:]}

    def _line(self, seconds: float) -> bytes | None:
        """One line of the process; empty where it ended, None where it took too long. It writes a line at a time."""
        assert self.process is not None and self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return self.process.stdout.readline() if ready else None

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture(scope="module")
def worker(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(repository, tmp_path_factory.mktemp("fuzz"))
    yield worker
    worker.stop()


def recipes(seeds: dict[str, bool]) -> Iterator[str]:
    """Every mutant of the run; each tenth is also exported, checked and taken through text."""
    for name, large in seeds.items():
        for number in range(MUTANTS_OF_LARGE if large else MUTANTS):
            yield f"{name} {number}{' further' if number % 10 == 0 else ''}"


def test_every_damaged_file_is_read_or_refused(worker: Worker) -> None:
    outcomes: Counter[str] = Counter()
    findings: list[str] = []
    for recipe in recipes(worker.seeds):
        answer = worker.ask(recipe)
        outcomes[answer["outcome"]] += 1
        if answer["outcome"] not in FINE:
            findings.append(f"--- {answer['outcome']}: python tests/fuzz/worker.py {recipe}\n{answer['detail']}")
    assert not findings, f"{len(findings)} of {outcomes.total()} mutants:\n" + "\n".join(findings[:10])
    assert outcomes.total() >= 2000
    assert min(outcomes["program"], outcomes["refused"]) > outcomes.total() // 20, (
        f"the mutants are of one kind: {outcomes}"
    )


def test_seeds_themselves_are_read(worker: Worker) -> None:
    for name in worker.seeds:
        answer = worker.ask(f"{name} whole further")
        assert answer["outcome"] == ("refused" if name in REFUSED_SEEDS else "program"), answer


REFUSED_SEEDS = {"scan_sum"}
"""Scan of opset 8 has another form, and raising the opset would change the inputs."""


def test_a_recipe_gives_the_same_bytes_in_another_process(worker: Worker) -> None:
    some = [f"{name} 7" for name in list(worker.seeds)[::5]]
    before = [worker.ask(recipe)["digest"] for recipe in some]
    worker.stop()
    assert [worker.ask(recipe)["digest"] for recipe in some] == before


@pytest.mark.parametrize(
    ("fault", "outcome"), [("abort", "crash"), ("hang", "hang"), ("memory", "traceback"), ("other", "traceback")]
)
def test_faults_are_noticed_and_the_next_mutant_is_read(worker: Worker, fault: str, outcome: str) -> None:
    starts = worker.starts
    assert worker.ask(f"fault {fault}", seconds=2)["outcome"] == outcome
    assert worker.ask("branches 0")["outcome"] in FINE
    assert worker.starts - starts == (outcome != "traceback")
