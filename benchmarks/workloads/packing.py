"""A model of 268M parameters, from float files to packed bytes in a process of its own with little memory.

    python -m benchmarks.workloads.packing FOLDER [--keep-mib 128] [--limit-mib 512]

The shapes are those of Gemma 3 270M. Weights are mapped from files, quantized by RTN to `i4, f32 per 32`, and packed
for MatMulNBits by the pass `pack_weights`; of tensors the store keeps `--keep-mib` in memory and spills the rest. The
whole process may take `--limit-mib` of memory without a file behind it (RLIMIT_DATA): beyond, it dies of MemoryError.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from qcc.ir.format import Format
from qcc.ir.layout import Layout, unpack
from qcc.ir.program import Program
from qcc.ir.quantize import quantize
from qcc.ir.rewrite import ProgramContext
from qcc.ir.text import parse
from qcc.ir.weights import WeightStore
from qcc.passes.pack_weights import PackWeights

MIB = 1 << 20
LAYERS = 18
FORMAT = "i4, f32 per 32"
LAYOUT = "n(n0) k(k1 k0:32) -> n0 k1 k0 xor 8"
"""`onnxruntime_matmul_nbits`; it stores a code plus 8."""
_LAYER = {
    "q": (1024, 640),
    "k": (256, 640),
    "v": (256, 640),
    "o": (640, 1024),
    "gate": (2048, 640),
    "up": (2048, 640),
    "down": (640, 2048),
}


def shapes(layers: int = LAYERS, vocabulary: int = 262144) -> dict[str, tuple[int, int]]:
    """The matrices of the model by name, [N, K]."""
    found = {"embedding": (vocabulary, 640)}
    return found | {f"layer{i}.{name}": shape for i in range(layers) for name, shape in _LAYER.items()}


def write_model(folder: Path, matrices: dict[str, tuple[int, int]], seed: int = 0) -> None:
    """A file of random float32 weights for each matrix, a piece at a time."""
    rng = np.random.default_rng(seed)
    for name, (rows, columns) in matrices.items():
        file = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (rows, columns))
        for begin in range(0, rows, 4096):
            piece = file[begin : begin + 4096]
            piece[...] = rng.standard_normal(piece.shape, np.float32) * np.float32(0.02)
        file.flush()


def pack_model(folder: Path, spill: Path, keep: int) -> dict[str, float | int]:
    """Quantize and pack every file of `folder`; seconds, counts and bytes. Some rows of each are checked."""
    files = sorted(folder.glob("*.npy"))
    weights = WeightStore()
    weights.spill_to(spill, keep)
    begin = time.perf_counter()
    for file in files:
        floats = np.load(file, mmap_mode="r")
        for part, array in quantize(floats, Format.parse(FORMAT)).parts.items():
            weights[f"{file.stem}.{part}"] = array
        del floats  # unmaps the file
        weights.release_pages()
    quantized = time.perf_counter()
    program = _program({file.stem: _shape(file) for file in files}, weights)
    PackWeights().run(program, ProgramContext())
    packed = time.perf_counter()
    for file in files:
        _check(file, program.weights)
    return {
        "parameters": sum(int(np.prod(_shape(file))) for file in files),
        "packed_bytes": weights.bytes,
        "quantize_seconds": quantized - begin,
        "pack_seconds": packed - quantized,
    }


def _shape(file: Path) -> tuple[int, int]:
    rows, columns = np.load(file, mmap_mode="r").shape
    return rows, columns


def _program(matrices: dict[str, tuple[int, int]], weights: WeightStore) -> Program:
    lines = [
        f'    %w{i} = q.weight "{name}" : !q.tensor<tensor<{rows}x{columns}xf32>, "{FORMAT}", "{LAYOUT}">'
        for i, (name, (rows, columns)) in enumerate(matrices.items())
    ]
    body = "\n".join(lines)
    text = f"""builtin.module attributes {{onnx.opset = {{"" = 21 : i64}}}} {{
  func.func @main(%x: tensor<1xf32> {{onnx.name = "x"}}) -> (tensor<1xf32> {{onnx.name = "x"}}) {{
{body}
    func.return %x : tensor<1xf32>
  }}
}}"""
    return Program(parse(text), weights)


def _check(file: Path, weights: WeightStore) -> None:
    """The last rows, unpacked, are the codes that those rows get by themselves."""
    floats = np.load(file, mmap_mode="r")
    rows = floats[-64:]
    packed = weights[f"{file.stem}.codes"].reshape(len(floats), -1)[-64:]
    codes = unpack(np.array(packed), 4, rows.shape, Layout.parse(LAYOUT), True)
    np.testing.assert_array_equal(codes, quantize(rows, Format.parse(FORMAT)).codes)


class _Watch(threading.Thread):
    """The most memory that the process held with no file behind it, looked at every 5 ms (Linux)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.005):
            lines = Path("/proc/self/status").read_text().splitlines()
            self.peak = max([self.peak, *(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))])

    def stop(self) -> int:
        self._done.set()
        self.join()
        return self.peak


def main() -> None:
    """Pack, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep-mib", type=int, default=128, help="tensors that the store keeps in memory")
    parser.add_argument("--limit-mib", type=int, default=512, help="memory of the process without a file behind it")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (options.limit_mib * MIB,) * 2)
    watch = _Watch() if sys.platform == "linux" else None
    if watch:
        watch.start()
    with tempfile.TemporaryDirectory(dir=options.folder) as spill:
        result = pack_model(options.folder, Path(spill), options.keep_mib * MIB)
    result |= {"keep_bytes": options.keep_mib * MIB, "limit_bytes": options.limit_mib * MIB}
    result["peak_anonymous_bytes"] = watch.stop() if watch else 0
    result["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(json.dumps(result))


if __name__ == "__main__":
    main()
