"""Commands run in this process: `qcc("compile", path, ...)` gives the exit code and what was printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qcc.cli import run


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of stdout."""
        return json.loads(self.out.splitlines()[-1])


Command = Callable[..., Outcome]


@pytest.fixture
def qcc(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command line."""

    def command(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return command


@pytest.fixture(scope="session")
def network(digits: Path) -> Path:
    """The model file of the digits network."""
    return digits / "digits.onnx"


@pytest.fixture(scope="session")
def compiled(network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled artifact. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("cli") / "digits.qcc"
    assert run(["compile", str(network), "--scheme", "W8A16", "-o", str(folder), "--quiet"]) == 0
    return folder
