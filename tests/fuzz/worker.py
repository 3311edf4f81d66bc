"""Reads damaged models, one for each line of standard input, and answers each with one line of JSON.

    python tests/fuzz/worker.py                # answers lines such as `branches 17` and `branches 17 further`
    python tests/fuzz/worker.py branches 17    # reads that one mutant and shows what happened; the file stays

The number `whole` stands for the seed as it is. Apart from `program` and `refused`, an outcome is a bug. What ends or
stops the process, its parent sees (`tests/frontend/test_onnx_fuzz.py`).
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
        print(folder / "model.onnx", flush=True)
        print(json.dumps(_answer(known, sys.argv[1:], folder), indent=1))
        return
    _limit_memory()
    print(json.dumps({name: seed.large for name, seed in known.items()}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            print(json.dumps(_answer(known, line.split(), Path(folder))), flush=True)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + HEADROOM,) * 2)


def _answer(known: dict[str, Seed], recipe: list[str], folder: Path) -> dict[str, str | float]:
    name, number, *further = recipe
    begin = time.perf_counter()
    digest = "" if name == "fault" else _write_mutant(known, name, number, folder)
    try:
        outcome, detail = _fault(number) if name == "fault" else _examine(folder / "model.onnx", further=bool(further))
    except Exception:  # noqa: BLE001 - every kind is a finding, and the next mutant must still be read
        outcome, detail = "traceback", traceback.format_exc()
    return {"outcome": outcome, "detail": detail, "digest": digest, "seconds": time.perf_counter() - begin}


def _write_mutant(known: dict[str, Seed], name: str, number: str, folder: Path) -> str:
    """Write a mutant to `folder` (with external data, now and then the seed beside damaged data); gives its digest."""
    seed, rng = known[name], random.Random(f"{name} {number}")
    others = [s.model for s in known.values() if not s.large]
    beside_only = bool(seed.beside) and rng.random() < 0.15
    data = seed.model if beside_only or number == "whole" else mutate(seed.model, others, rng)
    (folder / "model.onnx").write_bytes(data)
    for file, content in seed.beside:
        (folder / file).unlink(missing_ok=True)
        if not beside_only or number == "whole":
            (folder / file).write_bytes(content)
        elif rng.random() < 0.8:
            (folder / file).write_bytes(content[: rng.randrange(len(content))])
    return hashlib.sha256(data).hexdigest()[:12]


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
    return _go_further(program) if further else ("program", "")


def _go_further(program: Program) -> tuple[str, str]:
    text = show(program.module)
    if show(parse(text)) != text:
        return "text changed", text
    onnx.checker.check_model(emit(program).embed(program.weights))
    return "program", "further"


def _fault(kind: str) -> tuple[str, str]:
    """What the parent must notice, to test that it does."""
    match kind:
        case "abort":
            os.abort()
        case "hang":
            time.sleep(1000)
        case "memory":
            return "memory", str(len(bytearray(2 * HEADROOM)))
        case other:
            raise ValueError(other)
    return "no fault", kind


if __name__ == "__main__":
    main()
