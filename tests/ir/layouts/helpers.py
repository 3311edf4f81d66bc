"""What the tests of named layouts share: codes to store, one way to store them, and layouts with a mistake in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qcc.ir.layout import Record, Stages, pack, parse_layout, unpack
from qcc.ir.layouts import NamedLayout

Codes = NDArray[np.int8] | NDArray[np.uint8]
Parts = Mapping[str, NDArray[np.generic]]

FLOATS = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16), "f32": np.dtype(np.float32)}


def random_codes(element: str, shape: tuple[int, ...], seed: int = 0) -> Codes:
    """Codes of the whole range of `element`; the first ones are the lowest and the highest."""
    bits, signed = int(element[1:]), element[0] == "i"
    low = -(1 << bits - 1) if signed else 0
    codes = np.random.default_rng(seed).integers(low, low + (1 << bits), shape)
    codes.flat[:1], codes.flat[1:2] = low, low + (1 << bits) - 1
    return codes.astype(np.int8 if signed else np.uint8)


def random_values(dtype: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[np.generic]:
    """Values of a part of a record: codes, or floats that are neither zero nor large."""
    if dtype in FLOATS:
        return np.random.default_rng(seed).uniform(0.01, 2, shape).astype(FLOATS[dtype])
    return random_codes(dtype, shape, seed)


def dtype_of(dtype: str) -> np.dtype[np.generic]:
    return FLOATS.get(dtype) or np.dtype(np.int8 if dtype[0] == "i" else np.uint8)


def store(layout: NamedLayout, parts: Parts, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The bytes of a chain or a record."""
    if isinstance(layout.layout, Record):
        return layout.layout.pack(parts, layout.part_bits, shape).reshape(-1)
    codes = parts["codes"]
    assert codes.dtype in (np.int8, np.uint8)
    return pack(codes, layout.bits, layout.layout)  # type: ignore[arg-type]


def fetch(layout: NamedLayout, data: NDArray[np.uint8], shape: tuple[int, ...]) -> dict[str, NDArray[np.generic]]:
    """The parts that `store` made into bytes."""
    if isinstance(layout.layout, Record):
        dtypes = {part: dtype_of(dtype) for part, dtype in layout.parts}
        return layout.layout.unpack(data, layout.part_bits, dtypes, shape)
    return {"codes": unpack(data, layout.bits, shape, layout.layout, layout.element[0] == "i")}


def agree(layout: NamedLayout, parts: Parts, shape: tuple[int, ...], oracle: NDArray[np.uint8]) -> None:
    """The bytes are those of the oracle, they read back, and no layout with a mistake in it gives them."""
    stored = store(layout, parts, shape)
    np.testing.assert_array_equal(stored, oracle)
    for part, values in fetch(layout, oracle, shape).items():
        np.testing.assert_array_equal(values, parts[part], err_msg=part)
    count = 0
    for wrong in mistakes(layout, shape):
        count += 1
        assert not np.array_equal(store(wrong, parts, shape), oracle), f"{wrong.layout} gives the same bytes"
    exchanged = (oracle << 4) | (oracle >> 4)
    read = fetch(layout, exchanged, shape)
    assert any(not np.array_equal(read[part], parts[part]) for part in parts)
    assert count


def mistakes(layout: NamedLayout, shape: tuple[int, ...]) -> Iterator[NamedLayout]:
    """The layout with two neighbouring digits swapped, for each pair of digits that both count to more than one.

    Of two stages the last is taken: to swap digits of one space changes what the next stage splits, too.
    """
    before, _, last = str(layout.layout).rpartition("; ") if isinstance(layout.layout, Stages) else ("", "", "")
    left, right = (last or str(layout.layout)).split("->", 1)
    extents = _extents(left, shape, layout)
    for run in re.finditer(r"\w+(?: \w+)+", right):
        digits = run[0].split()
        for i, pair in enumerate(pairwise(digits)):
            if all(extents.get(digit, 1) > 1 for digit in pair):
                swapped = " ".join([*digits[:i], *reversed(pair), *digits[i + 2 :]])
                text = f"{left}->{right[: run.start()]}{swapped}{right[run.end() :]}"
                yield replace(layout, layout=parse_layout(f"{before}; {text}" if before else text))


def _extents(left: str, shape: tuple[int, ...], layout: NamedLayout) -> dict[str, int]:
    """How often each digit counts; only the first of a dimension may be free, and stages have none."""
    extents: dict[str, int] = {}
    sizes = [*shape, layout.bits, *[1] * 9]
    for size, chain in zip(sizes, re.findall(r"\w+\(([^)]*)\)", left), strict=False):
        digits = [digit.partition(":") for digit in chain.split()]
        block = int(np.prod([int(radix) for _, _, radix in digits if radix]))
        extents |= {name: int(radix) if radix else -(-size // block) for name, _, radix in digits}
    return extents
