"""Reads damaged models, one for each line of standard input, and answers each with one line of JSON.

    python tests/fuzz/worker.py                # answers lines such as `branches 17` and `branches 17 further`
    python tests/fuzz/worker.py branches 17    # reads that one mutant and shows what happened; the file stays

Apart from `program` and `refused`, an outcome is a bug. What ends or stops the process, its parent sees
(`test_onnx_fuzz.py`).
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

import onnx
from mutations import mutate
from seeds import Seed, seeds

from qcc.frontend.onnx_file import read
from qcc.ir.emit_onnx import emit
from qcc.ir.errors import QccError
from qcc.ir.program import Program
from qcc.ir.text import parse, show

HEADROOM = 1 << 30
"""Bytes of address space that reading a small model may take beyond what the imports took."""
_LONGEST_MESSAGE = 800


def main() -> None:
    """Announce the seeds, then answer recipes until the input ends; or, given a recipe, read that one mutant."""
    faulthandler.enable()
    known = seeds()
    if len(sys.argv) > 1:
        folder = Path(tempfile.mkdtemp(prefix="qcc-mutant-"))
        print(folder / "model.onnx")
        print(json.dumps(_answer(known, sys.argv[1:], folder), indent=1))
        return
    _limit_memory()
    print(json.dumps({name: seed.large for name, seed in known.items()}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            print(json.dumps(_answer(known, line.split(), Path(folder))), flush=True)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 1 << 20
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + HEADROOM,) * 2)


def _answer(known: dict[str, Seed], recipe: list[str], folder: Path) -> dict[str, object]:
    name, number, *further = recipe
    if name == "fault":
        _fault(number)
    data = _mutant(known, name, number, folder)
    begin = time.perf_counter()
    outcome, detail = _examine(folder / "model.onnx", further=bool(further))
    return {
        "outcome": outcome,
        "detail": detail,
        "seconds": time.perf_counter() - begin,
        "digest": hashlib.sha256(data).hexdigest()[:12],
    }


def _mutant(known: dict[str, Seed], name: str, number: str, folder: Path) -> bytes:
    """Write mutant `number` of a seed; a seventh of those with external data have that cut short or missing instead."""
    seed, rng = known[name], random.Random(f"{name} {number}")
    others = [s.model for s in known.values() if not s.large]
    beside_only = bool(seed.beside) and rng.random() < 1 / 7
    data = seed.model if beside_only else mutate(seed.model, others, rng)
    (folder / "model.onnx").write_bytes(data)
    for file, content in seed.beside:
        (folder / file).unlink(missing_ok=True)
        if not beside_only:
            (folder / file).write_bytes(content)
        elif rng.random() < 0.8:
            (folder / file).write_bytes(content[: rng.randrange(len(content))])
    return data


def _examine(path: Path, *, further: bool) -> tuple[str, str]:
    """Read a model, and with `further` also export it, check the export, and take its text there and back."""
    try:
        program = read(path)
    except QccError as error:
        lines = (error.message, error.hint)
        plain = (
            error.code in (2, 3)
            and error.message
            and all(len(x.splitlines()) <= 1 and len(x) < _LONGEST_MESSAGE for x in lines)
        )
        return ("refused" if plain else "bad message"), f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 - every kind is a finding, and the next mutant must still be read
        return "traceback", traceback.format_exc()
    if not further:
        return "program", ""
    try:
        return _go_further(program)
    except BaseException:  # noqa: BLE001
        return "traceback further on", traceback.format_exc()


def _go_further(program: Program) -> tuple[str, str]:
    text = show(program.module)
    if show(parse(text)) != text:
        return "text changed", text
    onnx.checker.check_model(emit(program).embed(program.weights))
    return "program", "further"


def _fault(kind: str) -> None:
    """What the parent must notice, to test that it does."""
    match kind:
        case "abort":
            os.abort()
        case "hang":
            time.sleep(1000)
        case "memory":
            print(json.dumps({"outcome": "memory", "detail": str(len(bytearray(2 * HEADROOM)))}), flush=True)
        case other:
            raise ValueError(other)


if __name__ == "__main__":
    main()
