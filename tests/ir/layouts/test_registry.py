"""The registry of named layouts: every one parses, prints, is one to one and gives back what it stored."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcc.ir import layouts
from qcc.ir.errors import BadInput
from qcc.ir.layout import Record, Stages, parse_layout
from qcc.ir.layouts import NamedLayout, named

from .helpers import dtype_of, fetch, random_codes, random_values, store

ROOT = Path(__file__).resolve().parents[3]
EVERY = [named(name, element) for name in layouts.names() for element in layouts.load(name).layouts]
SIZES = st.sampled_from([1, 2, 3, 5, 7, 13, 16, 31, 32, 37, 64, 97, 128, 130])

each = pytest.mark.parametrize("layout", EVERY, ids=str)


def random_parts(layout: NamedLayout, shape: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    if not isinstance(layout.layout, Record):
        codes = f"u{layout.bits}" if layout.element[0] not in "iu" else layout.element
        return {"codes": random_codes(codes, shape, seed)}
    return {
        part: random_values(dtype, layout.layout.part_shape(part, shape), seed + i)
        for i, (part, dtype) in enumerate(layout.parts)
    }


def draw_shape(layout: NamedLayout, data: st.DataObject) -> tuple[int, ...]:
    """Any shape, or the one that stages are for."""
    if isinstance(layout.layout, Stages):
        return layout.shape
    return tuple(data.draw(SIZES) for _ in layout.shape)


def test_there_are_layouts_of_every_family() -> None:
    families = (
        "onnxruntime_matmul_nbits", "gptq", "awq", "compressed_tensors", "marlin", "turbomind_sm80", "qserve",
        "llama_cpp_q4_0", "llama_cpp_q6_k", "llama_cpp_q4_0_8x8", "llama_cpp_amx_q4_0", "kleidiai_qsi4c32p",
        "vnni_int8", "amx_int8", "tmac", "sparse_24_cutlass", "sparse_24_cusparselt", "fpga_banks", "mlas_neon",
    )  # fmt: skip
    assert set(families) <= set(layouts.names())


@each
def test_it_tells_where_it_is_from_and_what_it_was_compared_with(layout: NamedLayout) -> None:
    assert min(len(layout.summary), len(layout.source), len(layout.oracle)) > 20
    assert min(layout.shape) > 0
    if layout.owner:
        assert all(re.search(rf"\b{digit}\b", str(layout.layout)) for digit in layout.owner[1])


@each
def test_it_prints_and_parses(layout: NamedLayout) -> None:
    assert parse_layout(str(layout.layout)) == layout.layout
    assert layouts.parse(str(layout)) == layout
    assert hash(layouts.parse(str(layout))) == hash(layout)


@each
@settings(deadline=None, max_examples=12)
@given(st.data())
def test_what_is_stored_reads_back(layout: NamedLayout, data: st.DataObject) -> None:
    shape = draw_shape(layout, data)
    parts = random_parts(layout, shape, seed=data.draw(st.integers(0, 99)))
    stored = store(layout, parts, shape)
    found = fetch(layout, stored, shape)
    assert list(found) == list(parts) or set(found) == set(parts)
    for part, values in parts.items():
        assert found[part].dtype == (values.dtype if part == "codes" else dtype_of(dict(layout.parts)[part]))
        np.testing.assert_array_equal(found[part], values)


@each
@settings(deadline=None, max_examples=6)
@given(st.data())
def test_every_slot_is_of_one_coordinate(layout: NamedLayout, data: st.DataObject) -> None:
    if isinstance(layout.layout, Record):
        return  # a record refuses bits stored twice or never when it is read; see its own tests
    shape = draw_shape(layout, data)
    stored = layout.layout.bits_first() or layout.layout
    if stored is not layout.layout:
        shape = (layout.bits, *shape)
    grid = np.indices(stored.padded_shape(shape))
    slots = np.broadcast_to(stored.index(tuple(grid), shape), grid.shape[1:])
    np.testing.assert_array_equal(np.sort(slots.ravel()), np.arange(stored.size(shape)))


def test_parameters_are_filled_in() -> None:
    assert str(named("onnxruntime_matmul_nbits", block=128).layout) == "n(n0) k(k1 k0:128) -> n0 k1 k0 xor 8"
    assert str(named("onnxruntime_matmul_nbits", "u4", block=16)) == "onnxruntime_matmul_nbits{element=u4,block=16}"
    assert layouts.parse("marlin { element = u8 }").layout == named("marlin", "u8").layout
    assert layouts.parse("awq") == named("awq")
    assert named("llama_cpp_q4_k").part_bits == {"codes": 4, "scale": 6, "minus": 6, "scale1": 16, "minus1": 16}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("marlim", "no layout is called 'marlim'"),
        ("marlin{element=i4}", "does not store 'i4' codes"),
        ("marlin{block=3}", "has no parameter 'block'"),
        ("onnxruntime_matmul_nbits{block=0}", "block is 0"),
        ("onnxruntime_matmul_nbits{block=big}", "is not a whole number"),
        ("onnxruntime_matmul_nbits{block}", "cannot read 'block'"),
        ("marlin{", "cannot read 'marlin{'"),
        ("", "cannot read ''"),
    ],
)
def test_bad_names_are_refused(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        layouts.parse(text)


def test_the_documentation_tells_what_each_was_compared_with() -> None:
    page = (ROOT / "docs" / "named-layouts.md").read_text()
    for name in layouts.names():
        entry = layouts.load(name)
        row = rf"\| `{name}` \| {' '.join(entry.layouts)} \| {re.escape(entry.oracle)} \| (\w+) \|"
        found = re.search(row, page)
        assert found, f"docs/named-layouts.md has no row, or an old one, for {name}"
        assert f'"{name}' in (Path(__file__).parent / f"test_{found[1]}.py").read_text() or "llama" in name
