"""Packing moves bits and nothing else: the expansion of packed weights is that of plain ones, whatever the layout."""

from __future__ import annotations

import numpy as np
import pytest

from qcc.ir.dialects.q import Weight
from qcc.ir.errors import BadInput
from qcc.ir.execute import run
from qcc.ir.format import Format
from qcc.ir.layout import Layout, Record, pack, parse_layout
from qcc.ir.layouts import named
from qcc.ir.program import Program, weight_parts
from qcc.ir.quantize import quantize
from qcc.ir.quantized import Quantized
from qcc.ir.rewrite import ProgramContext
from qcc.passes import pack_weights
from qcc.passes.pack_weights import PackWeights, pack_record, pack_rows
from tests.ir.formats_of_the_field import random_value
from tests.ir.helpers import program

RECORDS = {
    "llama_cpp_q4_0": "i4, f16 per 32",
    "llama_cpp_q4_1": "u4, f16 per 32, plus f16 per 32",
    "llama_cpp_q5_0": "i5, f16 per 32",
    "llama_cpp_q5_1": "u5, f16 per 32, plus f16 per 32",
    "llama_cpp_q8_0": "i8, f16 per 32",
    "llama_cpp_q2_k": "u2, u4 per 16, f16 per 256, minus u4 per 16 by f16 per 256",
    "llama_cpp_q3_k": "i3, i6 per 16, f16 per 256",
    "llama_cpp_q4_k": "u4, u6 per 32, f16 per 256, minus u6 per 32 by f16 per 256",
    "llama_cpp_q5_k": "u5, u6 per 32, f16 per 256, minus u6 per 32 by f16 per 256",
    "llama_cpp_q6_k": "i6, i8 per 16, f16 per 256",
    "llama_cpp_tq2_0": "ternary, f16 per 256",
    "llama_cpp_iq4_nl": "iq4nl, f16 per 32",
}
LAYOUTS = [
    "n(n0) k(k0) -> n0 k0",
    "n(n1 n0:8) k(k2 k1:8 k0:8) -> n1 k2 n0 k1^n0 k0",
    "n(n0) k(k1 k0:32) bit(b:5) -> n0 k1 b k0",
]


def table(value: Quantized, text: str, layout: str) -> Program:
    rows, columns = value.shape
    result = f"tensor<{rows}x{columns}xf32>"
    placed = f', "{layout}"' if layout else ""
    body = f'%w = q.weight "w" : !q.tensor<{result}, "{text}"{placed}>\n    %y = q.embedding(%i, %w) : {result}'
    parts = {f"w.{name}": array for name, array in value.parts.items()}
    return program({"i": f"tensor<{rows}xi64>"}, body, {"y": result}, parts)


def decoded(made: Program, rows: int) -> np.ndarray:
    return run(made, {"i": np.arange(rows)})["y"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(8, 64), (5, 70), (1, 1)])
def test_chains_swizzles_and_bit_planes(layout: str, shape: tuple[int, int]) -> None:
    value = random_value("i5, f16 per 32", shape)
    made = table(value, "i5, f16 per 32", layout)
    PackWeights().run(made, ProgramContext())
    assert made.weights["w.codes"].dtype == np.uint8
    np.testing.assert_array_equal(decoded(made, shape[0]), value.decode())


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("shape", [(3, 512), (1, 256)])
def test_records_take_every_part(name: str, shape: tuple[int, int]) -> None:
    text, record = RECORDS[name], named(name).layout
    assert isinstance(record, Record)
    value = random_value(text, shape, seed=3)
    made = table(value, text, str(record))
    PackWeights().run(made, ProgramContext())
    weight = next(op for op in made.weight_ops())
    assert isinstance(weight, Weight)
    assert weight_parts(weight) == ["w.codes"]
    assert [key for key in made.weights if key.startswith("w.")] == ["w.codes"]
    np.testing.assert_array_equal(decoded(made, shape[0]), value.decode())


def test_a_record_with_float32_scales_decodes_too() -> None:
    value = random_value("i4, f32 per 32", (4, 64), seed=4)
    layout = "n(n0) k(k1 k0:32) -> n0 k1 {scale; codes^8 k0}"
    made = table(value, "i4, f32 per 32", layout)
    PackWeights().run(made, ProgramContext())
    assert made.weights["w.codes"].shape == (8, 20)
    np.testing.assert_array_equal(decoded(made, 4), value.decode())


def test_packing_twice_changes_nothing() -> None:
    value = random_value("i4, f16 per 32", (4, 64))
    made = table(value, "i4, f16 per 32", "n(n0) k(k1 k0:32) -> n0 k1 k0 xor 8")
    PackWeights().run(made, ProgramContext())
    once = made.weights["w.codes"]
    PackWeights().run(made, ProgramContext())
    assert made.weights["w.codes"] is once


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(
    "layout",
    [
        "n(n0) k(k1 k0:32) -> n0 k1 k0",
        "n(n1 n0:8) k(k1 k0:4) -> n1 k1 n0 k0",
        "n(n0) k(k0) -> k0 n0",
        "n(n1 n0:4) k(k0) bit(b) -> n1 b n0 k0",
        "bit(b) n(n0) k(k0) -> b n0 k0",
    ],
)
def test_some_rows_at_a_time_give_the_same_bytes(bits: int, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_weights, "_CHUNK", 256)
    codes = np.random.default_rng(0).integers(-(1 << (bits - 1)), 1 << (bits - 1), (37, 45)).astype(np.int8)
    parsed = parse_layout(layout)
    assert isinstance(parsed, Layout)
    np.testing.assert_array_equal(pack_rows(codes, bits, parsed), pack(codes, bits, parsed))


@pytest.mark.parametrize("name", RECORDS)
def test_some_rows_of_a_record_at_a_time_give_the_same_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value, record = random_value(RECORDS[name], (19, 512), seed=5), named(name).layout
    assert isinstance(record, Record)
    whole = pack_record(value, record)
    monkeypatch.setattr(pack_weights, "_CHUNK", 1 << 11)
    packed: list[tuple[int, ...]] = []
    pack_some = Record.pack
    monkeypatch.setattr(Record, "pack", lambda self, *rest: packed.append(rest[2]) or pack_some(self, *rest))
    np.testing.assert_array_equal(pack_record(value, record), whole)
    assert len(packed) > 1


def test_a_code_that_does_not_fit_is_found_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_weights, "_CHUNK", 256)
    codes = np.zeros((37, 45), np.uint8)
    codes[30, 2] = 16
    with pytest.raises(BadInput, match=r"code 16 at \(30, 2\) does not fit"):
        pack_rows(codes, 4, parse_layout("n(n0) k(k1 k0:32) -> n0 k1 k0"))


@pytest.mark.parametrize(
    "text", ["i4, f16 per 32, sparse 2:4", "e2m1, f16 per 32, sparse 2:4", "nf4, f16 per 32, sparse 1:4"]
)
@pytest.mark.parametrize("shape", [(8, 64), (5, 70), (1, 1)])
def test_sparse_codes_keep_what_is_left_and_where_it_stood(text: str, shape: tuple[int, int]) -> None:
    value = quantize(np.random.default_rng(0).standard_normal(shape), Format.parse(text))
    made = table(value, text, "n(n0) k(k1 k0:32) -> n0 k1 k0")
    PackWeights().run(made, ProgramContext())
    kept = -(-shape[1] // 4) * value.format.sparsity[0] if value.format.sparsity else 0
    assert made.weights["w.index"].size == -(-shape[0] * kept * 2 // 8)
    np.testing.assert_array_equal(decoded(made, shape[0]), value.decode())
