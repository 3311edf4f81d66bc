"""What parts stand for, against plain arithmetic in float64, element by element; and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.errors import BadInput
from qcc.ir.execute import run
from qcc.ir.format import Format
from qcc.ir.level import Level
from qcc.ir.quantized import Quantized, part_names
from tests.ir.formats_of_the_field import FORMATS, random_value
from tests.ir.helpers import program

SHAPES = [(8, 128), (5, 70), (1, 1), (7, 131), (3, 64)]
Real = NDArray[np.float64]


def at(value: Quantized, name: str, level: Level, place: tuple[int, int]) -> np.float64:
    """The number of a level that the element at `place` has, straight from the definition."""
    row, column = place
    if value.format.permuted:
        column = int(np.flatnonzero(value.parts["order"] == column)[0])
    block = level.block_of(value.shape)
    return np.float64(value.parts[name][row // block[0], column // block[1]])


def element(value: Quantized, place: tuple[int, int]) -> float:
    """One value by the definition, in float64."""
    fmt, code = value.format, value.codes[place]
    raw = int(code) & ((1 << fmt.bits) - 1)
    if fmt.family.trained:
        assert fmt.lookup is not None
        block = fmt.lookup.block_of(value.shape)
        number = np.float64(value.parts["table"][place[0] // block[0], place[1] // block[1], raw])
    else:
        index = int(at(value, "choice", fmt.lookup, place)) if fmt.lookup else 0
        number = np.float64(fmt.families[index].table[raw])
    if isinstance(fmt.zero, Level):
        number -= at(value, "zero", fmt.zero, place)
    elif fmt.zero is not None:
        number -= fmt.zero
    scale = np.float64(1)
    for i, level in enumerate(fmt.scales):
        scale *= at(value, f"scale{i or ''}", level, place)
    if fmt.mean:
        scale += at(value, "mean", fmt.mean, place)
    number *= scale
    if fmt.offset:
        term = np.float64(1)
        for i, level in enumerate(fmt.offset.levels):
            term *= at(value, f"{fmt.offset.word}{i or ''}", level, place)
        number += -term if fmt.offset.negative else term
    return float(number)


def by_definition(value: Quantized) -> Real:
    values = np.array([[element(value, (r, c)) for c in range(value.shape[1])] for r in range(value.shape[0])])
    if "outlier_start" in value.parts:
        for row in range(value.shape[0]):
            for i in range(value.parts["outlier_start"][row], value.parts["outlier_start"][row + 1]):
                values[row, value.parts["outlier_columns"][i]] = value.parts["outlier_values"][i]
    elif "outlier_columns" in value.parts:
        values[:, value.parts["outlier_columns"]] = value.parts["outlier_values"]
    return values


def size_of_terms(value: Quantized) -> Real:
    """How large the terms of each sum are, which bounds what float32 rounds away."""
    largest = np.abs(
        by_definition(
            replace(
                value,
                format=replace(value.format, offset=None),
                parts={k: v for k, v in value.parts.items() if not k.startswith(("minus", "plus"))},
            )
        )
    )
    return largest + np.abs(by_definition(value)) + 1e-30


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("shape", [(5, 70), (1, 1), (3, 64)])
def test_decoding_is_the_definition_but_for_float32(text: str, shape: tuple[int, int]) -> None:
    value = random_value(text, shape)
    value.check("w")
    found = value.decode()
    assert found.dtype == np.float32
    slack = 4e-7 * size_of_terms(value)
    assert (np.abs(found.astype(np.float64) - by_definition(value)) <= slack).all()


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_expansion_computes_the_same_bits(text: str, shape: tuple[int, int]) -> None:
    value = random_value(text, shape, seed=1)
    rows, columns = shape
    result = f"tensor<{rows}x{columns}xf32>"
    body = f'%w = q.weight "w" : !q.tensor<{result}, "{text}">\n    %y = q.embedding(%i, %w) : {result}'
    parts = {f"w.{name}": array for name, array in value.parts.items()}
    made = program({"i": f"tensor<{rows}xi64>"}, body, {"y": result}, parts)
    np.testing.assert_array_equal(run(made, {"i": np.arange(rows)})["y"], value.decode())


@pytest.mark.parametrize("text", FORMATS)
def test_chunks_of_rows_decode_to_the_whole(text: str) -> None:
    value = random_value(text, (11, 70), seed=2)
    whole, found = value.decode(), np.full((11, 70), np.nan, np.float32)
    for place, part in value.chunks(rows=4):
        part.check("part")
        found[place] = part.decode()
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("text", FORMATS)
def test_part_names_are_those_of_the_definition(text: str) -> None:
    assert set(part_names(Format.parse(text))) == set(random_value(text, (3, 64)).parts)


def damaged(value: Quantized, **parts: np.ndarray | None) -> Quantized:
    return replace(value, parts={k: v for k, v in {**value.parts, **parts}.items() if v is not None})


@pytest.mark.parametrize(
    ("text", "parts", "message"),
    [
        ("i4, f32 per 32", {"scale": None}, "part 'scale' is missing"),
        ("i4, f32 per 32", {"zero": np.zeros((4, 2), np.uint8)}, "part 'zero' is unknown"),
        ("i4, f32 per 32", {"scale": np.ones((4, 3), np.float32)}, r"'scale' has shape \[4, 3\], .* wants \[4, 2\]"),
        ("i4, f32 per 32", {"scale": np.full((4, 2), np.nan, np.float32)}, r"scale at block \(0, 0\) is nan"),
        ("i4, f32 per 32", {"codes": np.full((4, 64), 8, np.int8)}, "a code does not fit i4"),
        ("i4, f32 per 32", {"codes": np.zeros((4, 64), np.uint8)}, "codes of i4 are int8, found uint8"),
        ("u4, f16 per 32, zero u4", {"zero": np.full((4, 2), 16, np.uint8)}, "zero 16 to 16 does not fit u4"),
        ("ternary, f16 per 32", {"codes": np.full((4, 64), 3, np.uint8)}, r"code 3 at \(0, 0\) stands for no number"),
        ("e4m3, f32 per *", {"codes": np.full((4, 64), 0x7F, np.uint8)}, "stands for no number in e4m3"),
        ("k5 in f32 per tensor", {"codes": np.full((4, 64), 5, np.uint8)}, "beyond the 5 values"),
        ("i4, f16 per 32, permuted", {"order": np.zeros(64, np.int32)}, "no permutation of 64"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    text: str, parts: dict[str, np.ndarray | None], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        damaged(random_value(text, (4, 64)), **parts).check("w")


def test_a_zero_scale_decodes_to_zero_and_a_swapped_part_is_seen() -> None:
    value = random_value("u4, u6 per 32, f16 per 64, minus u6 per 32 by f16 per 64", (4, 64))
    flat = damaged(value, scale1=np.zeros((4, 1), np.float16), minus1=np.zeros((4, 1), np.float16))
    np.testing.assert_array_equal(flat.decode(), np.zeros((4, 64), np.float32))
    swapped = damaged(value, scale=value.parts["minus"], minus=value.parts["scale"])
    assert not np.array_equal(swapped.decode(), value.decode())
