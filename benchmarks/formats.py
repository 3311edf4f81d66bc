"""GB/s of decoded float32 on one thread: rounding to formats, decoding, packing in layouts, unpacking; a whole model.

    python -m benchmarks.formats [--rounds 20] [--rows 2048] [--columns 4096] [--json FILE]

Beside every row runs a copy of the same float32 tensor into new memory, which is what the machine allows, and where
another library does the same work, that library on the same data in the same rounds: gguf.quants, ONNX Runtime
(QuantizeLinear, DequantizeLinear, its packer for MatMulNBits) and ml_dtypes. Numbers are compared before they are
timed. Rounds are interleaved on one pinned core; figures are medians with the 10th and 90th percentile. Reach:
0.5 GB/s for packing and unpacking integers, 0.3 GB/s for rounding. The model has 268M parameters and is packed in a
process of its own, see `benchmarks/workloads/packing.py`. Reach: 20 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, quants
from onnx import TensorProto, helper
from onnxruntime import InferenceSession, SessionOptions

from benchmarks.workloads import packing
from qcc.api.bench import interleave
from qcc.ir import target
from qcc.ir.codecs import gguf
from qcc.ir.format import Format
from qcc.ir.formats import load_element
from qcc.ir.layout import Layout, Record, unpack
from qcc.ir.layouts import NamedLayout, named
from qcc.ir.levels import level_dtype
from qcc.ir.quantize import encode, quantize
from qcc.ir.quantized import Quantized, part_bits
from qcc.passes.pack_weights import pack_record, pack_rows

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]

REACH = {"quantize": 0.3, "pack": 0.5, "unpack": 0.5}
"""GB/s; of packing only where codes are integers."""
PACK_SECONDS = 20.0

FORMATS = (
    "i8, f32 per *",
    "i4, f32 per 32",
    "i4, f32 per 128",
    "u4, f16 per 32, zero u4",
    "u4, f16 per 128, zero u4",
    "i3, f16 per 128",
    "i2, f32 per 32",
    "u2, f16 per 32, zero u2",
    "u4, u6 per 32, f16 per 256, minus u6 per 32 by f16 per 256",
    "e2m1, e4m3 per 16, f32 per tensor",
    "e2m1, e8m0 per 32",
    "nf4, f32 per 64",
    "e4m3, f32 per *",
)
LAYOUTS = (
    "onnxruntime_matmul_nbits{element=u4}",
    "onnxruntime_matmul_nbits{element=u2}",
    "vnni_int8",
    "marlin",
    "gptq",
    "gptq{element=u3}",
    "awq",
    "compressed_tensors",
    "turbomind_sm80",
    "qserve",
    "tmac",
)
RECORDS = (
    ("llama_cpp_q4_0", "i4, f16 per 32"),
    ("llama_cpp_q4_0_8x8", "i4, f16 per 32"),
    ("llama_cpp_q8_0", "i8, f16 per 32"),
    ("llama_cpp_q4_k", "u4, u6 per 32, f16 per 256, minus u6 per 32 by f16 per 256"),
    ("llama_cpp_q6_k", "i6, i8 per 16, f16 per 256"),
)

Sides = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Row:
    """What was timed side by side on one tensor. A peer's side is called `peer: what it does`."""

    kind: str
    """`format`, `layout`, `record` or `peer`."""
    name: str
    sides: Sides = field(repr=False)
    checked: str = ""
    """How the numbers were compared."""


def formats(x: np.ndarray) -> Iterator[Row]:
    """Rounding and decoding; the bound on the error holds, but for the few values that scales of low precision clip."""
    for text in FORMATS:
        fmt = Format.parse(text)
        value = quantize(x, fmt)
        made = value.decode()
        beyond = float((np.abs(made - x) > value.error_bound() * np.float32(1.001)).mean())
        if beyond > 0.1:
            raise SystemExit(f"{fmt}: {beyond:.1%} of the values are further off than half a step")
        checked = f"relative error {_off(made, x):.4f}, {beyond:.2%} beyond half a step"
        yield Row("format", text, {"quantize": partial(quantize, x, fmt), "decode": value.decode}, checked)


def layouts(shape: tuple[int, int]) -> Iterator[Row]:
    """Packing and unpacking; what was packed comes back."""
    for text in LAYOUTS:
        layout = _layout(text, shape)
        assert not isinstance(layout.layout, Record)
        signed = layout.element.startswith("i")
        low = -(1 << layout.bits - 1) if signed else 0
        kind = np.int8 if signed else np.uint8
        codes = np.random.default_rng(1).integers(low, low + (1 << layout.bits), shape).astype(kind)
        put = partial(pack_rows, codes, layout.bits, layout.layout)
        take = partial(unpack, put(), layout.bits, shape, layout.layout, signed)
        np.testing.assert_array_equal(take(), codes)
        yield Row("layout", f"{layout.name} {layout.element}", {"pack": put, "unpack": take}, "round trip")


def _layout(text: str, shape: tuple[int, int]) -> NamedLayout:
    """3-bit GPTQ has one shape."""
    if text == "gptq{element=u3}":
        return named("gptq", "u3", groups=shape[0] // 32, columns=shape[1])
    name, _, element = text.rstrip("}").partition("{element=")
    return named(name, element or None)


def records(x: np.ndarray) -> Iterator[Row]:
    """The same for records of several parts."""
    for name, text in RECORDS:
        value, record = quantize(x, Format.parse(text)), named(name).layout
        assert isinstance(record, Record)
        put = partial(pack_record, value, record)
        take = partial(_read, value.format, record, put(), value.shape)
        for part, array in take().items():
            np.testing.assert_array_equal(array, value.parts[part])
        yield Row("record", name, {"pack": put, "unpack": take}, "round trip")


def _read(fmt: Format, record: Record, data: np.ndarray, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    dtypes = {name: level_dtype(level.dtype).numpy for name, level in fmt.levels().items()}
    dtypes["codes"] = np.dtype(np.int8 if fmt.family.signed else np.uint8)
    return record.unpack(data, part_bits(fmt), dtypes, shape)


def peers(x: np.ndarray) -> Iterator[Row]:
    """Others at the same work."""
    yield from _gguf(x)
    yield from _onnxruntime(x)
    yield _matmul_nbits(x)
    yield from _ml_dtypes(x)


def _gguf(x: np.ndarray) -> Iterator[Row]:
    for kind in ("Q4_0", "Q8_0", "Q4_K"):
        type_, fmt = GGMLQuantizationType[kind], gguf.kind_of(kind).format

        def write(kind: str = kind, fmt: Format = fmt) -> np.ndarray:
            return gguf.encode(kind, quantize(x, fmt)).view(np.uint8)

        data = write()

        def read(kind: str = kind, data: np.ndarray = data) -> np.ndarray:
            return gguf.decode(kind, data, x.shape).decode()

        theirs = partial(quants.dequantize, data, type_)
        np.testing.assert_array_equal(read(), theirs())
        sides: dict[str, Callable[[], object]] = {"read": read, "gguf: read": theirs}
        if kind != "Q4_K":  # which gguf.quants does not write
            sides |= {"write": write, "gguf: write": partial(quants.quantize, x, type_)}
        yield Row("peer", f"GGUF {kind}", sides, "reads the same float32; chooses other scales")


def _onnxruntime(x: np.ndarray) -> Iterator[Row]:
    value = quantize(x, Format.parse("i8, f32 per 32"))
    int8, float32 = TensorProto.INT8, TensorProto.FLOAT
    sides = {
        "DequantizeLinear": (int8, value.codes, float32, value.decode),
        "QuantizeLinear": (float32, x, int8, lambda: encode(x, value).codes),
    }
    for op, (taken, given, made, ours) in sides.items():
        infos = [
            helper.make_tensor_value_info(name, element, list(array.shape))
            for name, element, array in (("x", taken, given), ("scale", float32, value.scale))
        ]
        node = helper.make_node(op, ["x", "scale"], ["y"], axis=1, block_size=32)
        if made == int8:
            node.attribute.append(helper.make_attribute("output_dtype", int8))
        graph = helper.make_graph([node], "g", infos, [helper.make_tensor_value_info("y", made, list(x.shape))])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        options = SessionOptions()
        options.intra_op_num_threads = 1
        session = InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        theirs = partial(session.run, None, {"x": given, "scale": value.scale})
        np.testing.assert_array_equal(ours(), theirs()[0])
        yield Row("peer", f"{op}, {value.format}", {op: ours, f"onnxruntime: {op}": theirs}, "the same values")


def _matmul_nbits(x: np.ndarray) -> Row:
    """ONNX Runtime's packer takes [K, N] and picks other scales: both are unpacked, and neither is much further off."""
    rows, columns = x.shape
    fmt, layout = Format.parse("i4, f32 per 32"), Layout.parse(packing.LAYOUT)
    across = np.ascontiguousarray(x.T)
    data = np.empty((rows, columns // 32, 16), np.uint8)
    scale, zero = np.empty(rows * columns // 32, np.float32), np.empty(rows * columns // 64, np.uint8)

    def ours() -> np.ndarray:
        return pack_rows(quantize(x, fmt).codes, 4, layout)

    native: Any = import_module("onnxruntime.capi._pybind_state")  # Any: it has no types

    def theirs() -> None:
        native.quantize_matmul_4bits(data, across, scale, zero, 32, rows, columns, True)

    theirs()
    made = Quantized.plain(fmt, unpack(data, 4, x.shape, layout, True), scale.reshape(rows, -1)).decode()
    offs = [_off(made, x), _off(quantize(x, fmt).decode(), x)]
    if max(offs) > 1.25 * min(offs):
        raise SystemExit(f"MatMulNBits: relative errors {offs}")
    sides = {"quantize and pack": ours, "onnxruntime: quantize and pack": theirs}
    return Row("peer", f"MatMulNBits, {fmt}", sides, f"relative errors {offs[1]:.4f}, theirs {offs[0]:.4f}")


def _off(made: np.ndarray, x: np.ndarray) -> float:
    return float(np.sqrt(((made - x) ** 2).mean() / (x**2).mean()))


def _ml_dtypes(x: np.ndarray) -> Iterator[Row]:
    x = x / x.std()
    for name, dtype in (("e4m3", ml_dtypes.float8_e4m3fn), ("e2m1", ml_dtypes.float4_e2m1fn)):
        element, held = load_element(name), x.astype(dtype)
        codes = element.encode(x)
        np.testing.assert_array_equal(element.decode(codes), held.astype(np.float32))
        sides = {
            "encode": partial(element.encode, x),
            "ml_dtypes: encode": partial(x.astype, dtype),
            "decode": partial(element.decode, codes),
            "ml_dtypes: decode": partial(held.astype, np.float32),
        }
        yield Row("peer", f"{name} without scales", sides, "the same values")


def measure(row: Row, x: np.ndarray, rounds: int) -> dict[str, Any]:
    """GB/s of each side [p10, median, p90], and what of it misses the reach. Any: JSON."""
    times = interleave({**row.sides, "copy": x.copy}, rounds, warmup=1)
    rates = {side: [x.nbytes / t / 1e9 for t in np.percentile(s, [90, 50, 10])] for side, s in times.items()}
    misses = [side for side, reach in REACH.items() if side in row.sides and rates[side][1] < reach]
    return {"kind": row.kind, "name": row.name, "rates": rates, "misses": misses, "checked": row.checked}


def measure_model(keep_mib: int = 128, limit_mib: int = 512) -> dict[str, Any]:
    """The model, packed in a process of its own. Any: JSON."""
    with tempfile.TemporaryDirectory() as folder:
        packing.write_model(Path(folder), packing.shapes())
        command = [sys.executable, "-m", "benchmarks.workloads.packing", folder]
        command += ["--keep-mib", str(keep_mib), "--limit-mib", str(limit_mib)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def show(result: dict[str, Any]) -> str:
    """A row as a person reads it."""
    rates = "  ".join(f"{n} {r[1]:.2f} ({r[0]:.2f} to {r[2]:.2f})" for n, r in result["rates"].items())
    return f"{result['kind']:6} {result['name']:40} {rates}" + ("  MISS" if result["misses"] else "")


def main() -> None:
    """Measure, print a line each, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--json", type=Path, default=RESULTS / "formats.json", help="write the result here")
    options = parser.parse_args()
    cpu = target.load("cpu")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    x = np.random.default_rng(0).standard_normal((options.rows, options.columns), np.float32) * np.float32(0.02)
    rows: list[dict[str, Any]] = []
    for made in (formats(x), layouts(x.shape), records(x), peers(x)):
        for row in made:
            rows.append(measure(row, x, options.rounds))
            print(show(rows[-1]), flush=True)
    model = measure_model()
    print(
        f"model: {model['parameters'] / 1e6:.0f}M parameters quantized in {model['quantize_seconds']:.1f} s, packed in "
        f"{model['pack_seconds']:.1f} s; memory {model['peak_anonymous_bytes'] / 1e6:.0f} MB without a file behind it "
        f"(limit {model['limit_bytes'] / 1e6:.0f} MB), {model['peak_rss_bytes'] / 1e6:.0f} MB with mapped pages"
        + ("" if model["pack_seconds"] < PACK_SECONDS else "  MISS")
    )
    result = {
        "machine": f"{cpu.machine}, {cpu.cores} cores",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("numpy", "gguf", "onnxruntime", "ml_dtypes")},
        "rounds": options.rounds,
        "shape": list(x.shape),
        "copy": np.median([row["rates"]["copy"] for row in rows], axis=0).tolist(),
        "reach": {**REACH, "pack_seconds": PACK_SECONDS},
        "rows": rows,
        "model": model,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
