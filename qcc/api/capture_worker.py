"""Capture a language model into a folder, in this process or in one of its own.

A process of its own gives everything back that torch and transformers took, which for a large model is more than all
the rest of compilation needs. What passes between the processes are files: `model.onnx` with its data,
`tokenizer.json`, the codes that are kept as safetensors, and `language.json`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

from qcc.frontend.causal_lm import CacheShape
from qcc.frontend.language import LanguageSpec
from qcc.ir import errors
from qcc.ir.errors import QccError
from qcc.ir.format import Format
from qcc.ir.program import StoredCodes
from qcc.ir.quantized import Quantized, part_names
from qcc.ir.weights import WeightStore

MODEL = "model.onnx"
_TOKENIZER, _CODES, _FACTS, _ERROR = "tokenizer.json", "codes.safetensors", "language.json", "error.json"
_LARGE = 1 << 27
"""Bytes of a checkpoint from which it is captured in a process of its own."""


@dataclasses.dataclass(frozen=True)
class CapturedLanguage:
    """What a folder holds after capture, beside the network."""

    spec: LanguageSpec
    tokenizer: str
    stored: dict[str, StoredCodes]
    decoded: dict[str, str]


def capture(path: Path, folder: Path) -> CapturedLanguage:
    """Capture the decoder in a Hugging Face folder or GGUF file into `folder`; raises as the doors do."""
    if _bytes(path) < _LARGE:
        _capture(path, folder)
    else:
        _in_own_process(path, folder)
    return _read(folder)


def _capture(path: Path, folder: Path) -> None:
    from qcc.frontend import causal_lm
    from qcc.frontend.gguf_file import open_gguf
    from qcc.frontend.huggingface import open_folder

    model = open_folder(path) if path.is_dir() else open_gguf(path)
    store, formats = WeightStore(), {}
    for name, codes in model.stored.items():
        formats[name] = [str(codes.format), codes.source]
        if not any(codes.value.codes is store[key] for key in store):
            for which, array in codes.value.parts.items():
                store[f"{name}.{which}"] = array
    shared = {n: next(k for k in store if store[k] is c.value.codes) for n, c in model.stored.items()}
    store.save(folder / _CODES)
    (folder / _TOKENIZER).write_text(model.tokenizer, encoding="utf-8")
    facts = {
        "spec": dataclasses.asdict(model.spec),
        "decoded": model.decoded,
        "formats": formats,
        "codes": {name: key.removesuffix(".codes") for name, key in shared.items()},
    }
    (folder / _FACTS).write_text(json.dumps(facts))
    model.stored.clear()
    causal_lm.capture(model.module, model.config, folder)


def _in_own_process(path: Path, folder: Path) -> None:
    import qcc

    root = str(Path(qcc.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", f"from {__name__} import main; main()", str(path), str(folder)]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
    if done.returncode == 0:
        return
    if (folder / _ERROR).is_file():
        told = json.loads((folder / _ERROR).read_text())
        raise getattr(errors, told["kind"])(told["message"], hint=told["hint"])
    if done.returncode < 0:
        raise MemoryError(f"capturing {path} was ended by signal {-done.returncode}")
    raise RuntimeError(f"capturing {path} ended with code {done.returncode}")


def _read(folder: Path) -> CapturedLanguage:
    facts = json.loads((folder / _FACTS).read_text())
    spec = LanguageSpec(
        **facts["spec"] | {"cache": CacheShape(**facts["spec"]["cache"]), "eos": tuple(facts["spec"]["eos"])}
    )
    store = WeightStore.open(folder / _CODES)
    stored: dict[str, StoredCodes] = {}
    for name, key in facts["codes"].items():
        fmt, source = Format.parse(facts["formats"][name][0]), facts["formats"][name][1]
        value = Quantized(fmt, {which: store[f"{key}.{which}"] for which in part_names(fmt)})
        stored[name] = StoredCodes(value, source)
    tokenizer = (folder / _TOKENIZER).read_text(encoding="utf-8")
    return CapturedLanguage(spec, tokenizer, stored, facts["decoded"])


def _bytes(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(f.stat().st_size for f in files if f.is_file())


def main() -> None:
    """Capture, and leave what went wrong in `error.json`."""
    path, folder = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        _capture(path, folder)
    except QccError as error:
        told = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
        (folder / _ERROR).write_text(json.dumps(told))
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(130)
