"""The records of packed weights: every bit has one place, the C code and the sizes agree on it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from qcc.backends.native import isa, linear
from qcc.backends.native.linear_spec import Activation, LinearSpec, Schedule, default_schedule, space, unpacks
from qcc.backends.native.storage import UNPACKS, Storage, cell
from qcc.ir.errors import BadInput
from qcc.ir.format import Format
from qcc.ir.quantized import Quantized
from tests.backends.native_oracle import PATTERNS, weights

FORMATS = [
    "i{b}, f16 per 32",
    "u{b}, f32 per *, zero u{b} per *",
    "i{b}, i8 per 16, f16 per 64",
    "u{b}, u6 per 32, f16 per 128, minus u6 per 32 by f16 per 128",
    "i{b}, e8m0 per 64, f32 per tensor",
]
SHAPES = [(1, 1), (15, 33), (83, 64), (130, 257)]


def stored(storage: Storage, weight: Quantized) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The parts that lie in records, and the bits of a number of each."""
    places = [*storage.inner, *storage.outer]
    levels = {place.name: weight.parts[place.name] for place in places}
    bits = {"codes": weight.format.bits} | {place.name: 8 * place.bytes for place in places if place.bytes == 1}
    return {"codes": weight.codes, **levels}, bits


@pytest.mark.parametrize("unpack", UNPACKS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_records_give_back_what_they_hold(bits: int, unpack: str) -> None:
    rng = np.random.default_rng(bits)
    for text, (n, k), vectors in product(FORMATS, SHAPES, (1, 2, 4)):
        spec = LinearSpec(n, k, Format.parse(text.format(b=bits)), Activation())
        if unpack not in (*unpacks(spec, isa.named("avx512_vbmi")), "dense"):
            continue
        storage = spec.storage(Schedule(vectors, unpack=unpack))
        parts, bits_of = stored(storage, weights(spec.weight, (n, k), "random", False, rng))
        data = storage.layout.pack(parts, bits_of, (n, k))
        assert data.size == storage.bytes == storage.blocks * storage.block_bytes
        dtypes = {name: part.dtype for name, part in parts.items()}
        back = storage.layout.unpack(data, bits_of, dtypes, (n, k))
        for name, part in parts.items():
            np.testing.assert_array_equal(back[name].view(np.uint8), np.ascontiguousarray(part).view(np.uint8))


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_lie_where_their_places_say(bits: int) -> None:
    """Found without the layout: 16 R numbers of a level behind the codes of their group, or behind their groups."""
    for text, (n, k), vectors in product(FORMATS, SHAPES, (1, 2)):
        spec = LinearSpec(n, k, Format.parse(text.format(b=bits)), Activation())
        storage = spec.storage(Schedule(vectors, unpack="planes"))
        weight = weights(spec.weight, (n, k), "random", False, np.random.default_rng(n))
        parts, bits_of = stored(storage, weight)
        data = storage.layout.pack(parts, bits_of, (n, k)).reshape(-1)
        for place in (*storage.inner, *storage.outer):
            each = storage.groups if place in storage.inner else 1
            step = storage.group_bytes if place in storage.inner else 0
            numbers = np.ascontiguousarray(weight.parts[place.name])
            for row, column in np.ndindex(numbers.shape):
                outer, inner = divmod(column, each)
                at = row // storage.rows * storage.block_bytes + outer * storage.super_bytes + inner * step
                at += place.offset + row % storage.rows * place.bytes
                assert data[at : at + place.bytes].tobytes() == numbers[row, column].tobytes(), (text, place)


@pytest.mark.parametrize("bits", range(1, 9))
def test_dense_codes_lie_end_to_end(bits: int) -> None:
    """64 codes, 16 rows of 4 columns, as one number of 64 b bits."""
    spec = LinearSpec(16, 8, Format.parse(f"u{bits}, f32 per *"), Activation())
    storage = spec.storage(Schedule(unpack="dense"))
    codes = np.random.default_rng(0).integers(0, 1 << bits, (16, 8)).astype(np.uint8)
    data = storage.layout.pack({"codes": codes, "scale": np.ones((16, 1), np.float32)}, {"codes": bits}, (16, 8))
    for quad in range(2):
        number = int.from_bytes(data.reshape(-1)[8 * bits * quad : 8 * bits * (quad + 1)].tobytes(), "little")
        found = [number >> (bits * i) & ((1 << bits) - 1) for i in range(64)]
        np.testing.assert_array_equal(np.reshape(found, (16, 4)), codes[:, 4 * quad : 4 * quad + 4])


@pytest.mark.parametrize("unpack", UNPACKS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_fields_of_a_cell_are_all_its_bits(bits: int, unpack: str) -> None:
    piece = cell(bits, unpack)
    covered = [bit for field in piece.fields for bit in range(field.low, field.low + field.width)]
    assert covered == list(range(bits))
    assert piece.bytes * 8 == piece.columns * 16 * bits
    assert piece.columns == 4 * piece.quads
    if unpack != "dense":
        sizes = [8 * piece.quads * field.width for field in piece.fields]
        assert [field.offset for field in piece.fields] == [sum(sizes[:i]) for i in range(len(sizes))]


def test_an_unpacking_that_does_not_exist() -> None:
    with pytest.raises(BadInput, match="no unpacking") as refused:
        cell(4, "sideways")
    assert "split" in refused.value.hint


def test_groups_that_are_no_whole_cells() -> None:
    spec = LinearSpec(16, 64, Format.parse("i2, f16 per 8"), Activation())
    with pytest.raises(BadInput, match="no whole cells"):
        spec.storage(Schedule(unpack="split"))
    assert spec.storage(Schedule(unpack="planes")).cells == 2
    assert "split" not in unpacks(spec, isa.named("portable"))


def test_bits_beyond_those_of_the_format_are_few() -> None:
    """Padding is of rows to whole registers and of columns to whole groups: none for whole shapes."""
    for bits, unpack in product(range(1, 9), UNPACKS):
        spec = LinearSpec(256, 512, Format.parse(f"i{bits}, f16 per 32"), Activation())
        storage = spec.storage(Schedule(4, unpack=unpack))
        assert storage.bytes * 8 == 256 * 512 * (bits + 0.5)


@pytest.mark.parametrize("name", [known.name for known in isa.ISAS])
@pytest.mark.parametrize("bits", range(1, 9))
def test_schedules_can_all_be_generated(bits: int, name: str) -> None:
    """The default one among them, of every instruction set, whether this host has it or not."""
    instructions = isa.named(name)
    for text, (n, k) in product(FORMATS, SHAPES):
        spec = LinearSpec(n, k, Format.parse(text.format(b=bits)), Activation(16, True))
        default, schedules = default_schedule(spec, instructions), list(space(spec, instructions))
        assert replace(default, prefetch=0) in [replace(one, tile=default.tile) for one in schedules]
        assert len(set(schedules)) == len(schedules) >= (12 if instructions.needs else 8)
        assert max(one.vectors * one.streams for one in schedules if one.unpack != "lookup") <= (
            8 if instructions.needs else 2
        )
        for unpack in {schedule.unpack for schedule in schedules}:
            one = next(schedule for schedule in schedules if schedule.unpack == unpack)
            text_of = linear.generate(spec, instructions, one)
            assert text_of.storage == spec.storage(one)
    source = linear.generate(spec, instructions).text()
    assert "qcc_linear" in source and source.count("{") == source.count("}")


@pytest.mark.parametrize("name", ["vectors", "streams", "unroll", "tile", "panel", "batch", "most_tiles"])
def test_schedules_of_nothing(name: str) -> None:
    spec = LinearSpec(16, 64, Format.parse("i4, f16 per 32"), Activation())
    with pytest.raises(BadInput, match=f"{name} = 0"):
        linear.generate(spec, isa.named("amx"), replace(Schedule(), **{name: 0}))


def test_codes_of_every_pattern_are_packed_alike() -> None:
    """What the oracle calls lowest and highest are the extremes of the bits: no plane is forgotten."""
    spec = LinearSpec(16, 64, Format.parse("u5, f32 per *"), Activation())
    storage = spec.storage(Schedule())
    for pattern in PATTERNS:
        weight = weights(spec.weight, (16, 64), pattern, True, np.random.default_rng(0))
        parts, bits = stored(storage, weight)
        data = storage.layout.pack(parts, bits, (16, 64)).reshape(-1)[: storage.code_bytes]
        wanted = int(np.unpackbits(weight.codes).sum())
        assert int(np.unpackbits(data).sum()) == wanted
