"""Formats in layouts: codes come back from every layout that stores them, and the expansion reads the same values.

A layout stores codes of some bits and a sign; an element is legal in each that stores such codes. The values of the
expansion, which ONNX Runtime computes, are compared bit by bit with `Quantized.decode`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcc.ir import layouts
from qcc.ir.execute import run
from qcc.ir.formats import load_element
from qcc.ir.layout import AnyLayout, Record, Stages, pack, parse_layout, unpack
from qcc.ir.layouts import NamedLayout, named
from qcc.ir.quantized import Quantized
from qcc.passes.pack_weights import pack_record
from tests.ir.chains import chains
from tests.ir.formats_of_the_field import random_value
from tests.ir.helpers import program

INTEGERS = [f"{sign}{bits}" for sign in "iu" for bits in range(1, 9)]
FLOATS = ["e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "e1m2", "e4m3fnuz", "e2m1z5"]
TABLES = ["nf4", "fp4", "iq4nl", "ternary", "binary", "i8q6"]
TRAINED = ["k16", "k5", "n3..6"]
ELEMENTS = [*INTEGERS, *FLOATS, *TABLES, *TRAINED]
NAMED = [named(name, element) for name in layouts.names() for element in layouts.load(name).layouts]
SIZES = st.sampled_from([1, 2, 3, 5, 7, 13, 31, 32, 37, 64, 97, 128])
ODD = {
    "transposed": "n(n0) k(k0) -> k0 n0",
    "tiles": "n(n1 n0:4) k(k2 k1:4 k0:8) -> n1 k2 k0 n0 k1",
    "digits that are no powers of two": "n(n1 n0:3) k(k1 k0:5) -> k1 n0 n1 k0",
    "every code flipped": "n(n0) k(k1 k0:16) -> n0 k1 k0 xor 1",
    "swizzle": "n(n1 n0:4) k(k1 k0:4) -> n1 k1 n0 k0^n0",
    "bit planes": "n(n0) k(k1 k0:32) bit(b:{bits}) -> n0 k1 b k0",
    "ragged": "n(n0) k(k1 k0:32) -> n0 k1 k0 + n(n0) k(k0) -> k0 n0 along k",
    "stages": "n(n0:6) k(k1:4 k0:16) -> @row n0 @column k1 k0; row(r1:3 r0:2) column(c1:8 c0:8) -> r1 c1 r0 c0",
}
Codes = NDArray[np.int8] | NDArray[np.uint8]


def stored_as(element: str) -> str:
    """How a layout spells the codes of an element: `u4` for nf4."""
    family = load_element(element)
    return f"{'i' if family.signed else 'u'}{family.bits}"


PAIRS = [(e, layout) for e in ELEMENTS for layout in NAMED if stored_as(e) == layout.element]
CHAINS = [(e, layout) for e, layout in PAIRS if not isinstance(layout.layout, Record)]


def text_of(element: str) -> str:
    """A format of the element with blocks of 16."""
    return f"{element} in f16 per *" if load_element(element).trained else f"{element}, f16 per 16"


def legal_codes(element: str, shape: Sequence[int], seed: int) -> Codes:
    """Random codes of an element, the first with all bits clear, the second with as many set as it has a code for."""
    size = math.prod(shape)
    codes = random_value(text_of(element), (1, max(1, size)), seed).codes.reshape(-1)[:size].copy()
    return codes.reshape(tuple(shape))


@pytest.mark.parametrize(("element", "layout"), CHAINS, ids=lambda v: str(v))
@settings(max_examples=4)
@given(st.data())
def test_codes_come_back_from_every_named_layout(element: str, layout: NamedLayout, data: st.DataObject) -> None:
    bound = isinstance(layout.layout, Stages)
    shape = layout.shape if bound else tuple(data.draw(SIZES) for _ in layout.shape)
    codes = legal_codes(element, shape, data.draw(st.integers(0, 99)))
    found = unpack(pack(codes, layout.bits, layout.layout), layout.bits, shape, layout.layout, codes.dtype == np.int8)
    assert found.dtype == codes.dtype
    np.testing.assert_array_equal(found, codes)


@settings(max_examples=250)
@given(st.sampled_from(ELEMENTS), chains(), st.integers(0, 99))
def test_codes_come_back_from_random_chains(element: str, case: tuple[AnyLayout, tuple[int, ...]], seed: int) -> None:
    layout, shape = case
    codes, bits = legal_codes(element, shape, seed), load_element(element).bits
    found = unpack(pack(codes, bits, layout), bits, shape, layout, codes.dtype == np.int8)
    np.testing.assert_array_equal(found, codes)


def table(value: Quantized, layout: AnyLayout | Record, packed: np.ndarray | None = None, text: str = "") -> np.ndarray:
    """Every row of a matrix in a layout, by its expansion; other bytes or another format may be passed."""
    rows, columns = value.shape
    result = f"tensor<{rows}x{columns}xf32>"
    body = f"""%w = q.weight "w" : !q.tensor<{result}, "{text or value.format}", "{layout}">
    %y = q.embedding(%i, %w) : {result}"""
    if packed is None:
        assert not isinstance(layout, Record), "a record packs every part"
        packed = pack(value.codes, value.format.bits, layout)
    parts = {f"w.{name}": array for name, array in value.parts.items()} | {"w.codes": packed}
    return run(program({"i": f"tensor<{rows}xi64>"}, body, {"y": result}, parts), {"i": np.arange(rows)})["y"]


def size_for(layout: NamedLayout) -> tuple[int, int]:
    """A small shape that does not fill the layout's digits, or the one that its stages are for."""
    rows, columns = layout.shape[:2]
    return (rows, columns) if isinstance(layout.layout, Stages) else (max(1, rows - 1), columns + 3)


@pytest.mark.parametrize(("element", "layout"), CHAINS, ids=lambda v: str(v))
def test_expansions_read_every_named_layout(element: str, layout: NamedLayout) -> None:
    value = random_value(text_of(element), size_for(layout), seed=3)
    np.testing.assert_array_equal(table(value, layout.layout), value.decode())


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("element", ["i1", "u2", "i3", "u5", "i8", "e2m1", "e4m3", "nf4", "ternary", "k5"])
def test_expansions_read_other_layouts(element: str, name: str) -> None:
    layout = parse_layout(ODD[name].replace("{bits}", str(load_element(element).bits)))
    shape = (6, 64) if isinstance(layout, Stages) else (7, 67)
    value = random_value(text_of(element), shape, seed=4)
    np.testing.assert_array_equal(table(value, layout), value.decode())


@settings(max_examples=20)
@given(st.sampled_from(ELEMENTS), st.tuples(SIZES, SIZES), st.sampled_from([*ODD]), st.integers(0, 9))
def test_expansions_read_any_shape(element: str, shape: tuple[int, int], name: str, seed: int) -> None:
    if name == "stages":
        return
    layout = parse_layout(ODD[name].replace("{bits}", str(load_element(element).bits)))
    value = random_value(text_of(element), shape, seed)
    np.testing.assert_array_equal(table(value, layout), value.decode())


RECORDS = {
    "kleidiai_qsi4c32p": "i4, bf16 per 32",
    "llama_cpp_amx_q4_0": "i4, f16 per 32",
    "llama_cpp_iq4_nl": "iq4nl, f16 per 32",
    "llama_cpp_q2_k": "u2, u4 per 16, f16 per 256, minus u4 per 16 by f16 per 256",
    "llama_cpp_q3_k": "i3, i6 per 16, f16 per 256",
    "llama_cpp_q4_0": "i4, f16 per 32",
    "llama_cpp_q4_0_8x8": "i4, f16 per 32",
    "llama_cpp_q4_1": "u4, f16 per 32, plus f16 per 32",
    "llama_cpp_q4_k": "u4, u6 per 32, f16 per 256, minus u6 per 32 by f16 per 256",
    "llama_cpp_q5_0": "i5, f16 per 32",
    "llama_cpp_q5_1": "u5, f16 per 32, plus f16 per 32",
    "llama_cpp_q5_k": "u5, u6 per 32, f16 per 256, minus u6 per 32 by f16 per 256",
    "llama_cpp_q6_k": "i6, i8 per 16, f16 per 256",
    "llama_cpp_q8_0": "i8, f16 per 32",
    "llama_cpp_tq2_0": "ternary, f16 per 256",
}


@pytest.mark.parametrize("layout", [pair for pair in NAMED if isinstance(pair.layout, Record)], ids=str)
@pytest.mark.parametrize("shape", [(8, 512), (5, 67)])
def test_expansions_read_every_named_record(layout: NamedLayout, shape: tuple[int, int]) -> None:
    value, record = random_value(RECORDS[layout.name], shape, seed=9), layout.layout
    assert isinstance(record, Record)
    np.testing.assert_array_equal(table(value, record, pack_record(value, record)), value.decode())


# What a silent error would be: each is noticed by the comparison of values.

LAYOUT = "n(n1 n0:4) k(k2 k1:4 k0:8) -> n1 k2 k0 n0 k1"
TEXT = "u4, f16 per 16, zero u4"


def test_two_digits_swapped_would_be_noticed() -> None:
    value, right = random_value(TEXT, (12, 96), seed=5), parse_layout(LAYOUT)
    packed = pack(value.codes, 4, right)
    np.testing.assert_array_equal(table(value, right, packed), value.decode())
    digits = LAYOUT.split("-> ")[1].split()
    for i in range(len(digits) - 1):
        swapped = [*digits[:i], digits[i + 1], digits[i], *digits[i + 2 :]]
        wrong = parse_layout(LAYOUT.replace(" ".join(digits), " ".join(swapped)))
        assert not np.array_equal(table(value, wrong, packed), value.decode()), wrong


def test_a_zero_point_shifted_by_one_would_be_noticed() -> None:
    value, layout = random_value(TEXT, (12, 96), seed=6), parse_layout(LAYOUT)
    zero = value.parts["zero"]
    shifted = Quantized(value.format, {**value.parts, "zero": zero + np.uint8(1)})
    one = Quantized(value.format, {**value.parts, "zero": zero + (np.arange(zero.size) == 7).reshape(zero.shape)})
    for wrong in (shifted, one):
        assert not np.array_equal(table(wrong, layout, pack(value.codes, 4, layout)), value.decode())


def test_groups_along_the_wrong_axis_would_be_noticed() -> None:
    value, layout = random_value("u4, f16 per 16", (96, 96), seed=7), parse_layout(LAYOUT)
    scale = value.parts["scale"]
    across = Quantized(value.format, {**value.parts, "scale": np.ascontiguousarray(scale.T)})
    assert not np.array_equal(table(across, layout, text="u4, f16 per 16x1"), value.decode())
    assert not np.array_equal(table(value, layout, text="u4, f16 per 16x1"), value.decode())


def test_nibbles_exchanged_would_be_noticed() -> None:
    value = random_value("nf4, f16 per 16", (12, 96), seed=8)
    for layout in (parse_layout(LAYOUT), named("marlin").layout, named("gptq").layout):
        assert not isinstance(layout, Record)
        packed = pack(value.codes, 4, layout)
        exchanged = (packed << 4) | (packed >> 4)
        np.testing.assert_array_equal(table(value, layout, packed), value.decode())
        assert not np.array_equal(table(value, layout, exchanged), value.decode())


def test_every_element_meets_some_layout_and_every_layout_some_element() -> None:
    assert {layout.name for _, layout in PAIRS} | {"blackwell_scales"} == set(layouts.names())
    widths = {re.sub(r"\D", "", stored_as(element)) for element, _ in PAIRS}
    assert widths == set("12345678")
