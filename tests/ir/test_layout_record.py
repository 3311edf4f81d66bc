"""Records hold every bit of their parts once, and GGUF's blocks are records: the gguf package decodes our bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcc.ir.errors import BadInput
from qcc.ir.layout import Record, parse_layout

Parts = dict[str, NDArray[np.generic]]

SIX_BITS = (
    "j2 j1 {scale[0:6] j3=0; scale[4:6] j3=1}; j2 j1 {minus[0:6] j3=0; minus[4:6] j3=1}; "
    "j2 j1 {scale[0:4] j3=1; minus[0:4] j3=1}"
)
BLOCKS = {
    "Q4_0": "n(n0) k(k2 k1:2 k0:16) -> n0 k2 {scale; codes k0 k1}",
    "Q4_1": "n(n0) k(k2 k1:2 k0:16) -> n0 k2 {scale; plus; codes k0 k1}",
    "Q5_0": "n(n0) k(k2 k1:2 k0:16) -> n0 k2 {scale; codes[4:5] k1 k0; codes[0:4] k0 k1}",
    "Q5_1": "n(n0) k(k2 k1:2 k0:16) -> n0 k2 {scale; plus; codes[4:5] k1 k0; codes[0:4] k0 k1}",
    "Q8_0": "n(n0) k(k1 k0:32) -> n0 k1 {scale; codes k0}",
    "Q2_K": "n(n0) k(k4 k3:2 k2:4 k1:2 k0:16) -> n0 k4 {k3 k2 k1 {scale; minus}; codes k3 k1 k0 k2; scale1; minus1}",
    "Q3_K": (
        "n(n0) k(k5 k4:2 k3:2 k2:2 k1:2 k0:16) -> n0 k5 {codes[2:3] k1 k0 k4 k3 k2; codes[0:2] k4 k1 k0 k3 k2; "
        "scale[0:4]^32 k3 k2 k1 k4; scale[4:6]^32 k2 k1 k4 k3; scale1}"
    ),
    "Q4_K": f"n(n0) k(k1 j3:2 j2:2 j1:2 k0:32) -> n0 k1 {{scale1; minus1; {SIX_BITS}; codes j3 j2 k0 j1}}",
    "Q5_K": (
        f"n(n0) k(k1 j3:2 j2:2 j1:2 k0:32) -> n0 k1 {{scale1; minus1; {SIX_BITS}; codes[4:5] k0 j3 j2 j1; "
        "codes[0:4] j3 j2 k0 j1}"
    ),
    "Q6_K": (
        "n(n0) k(k5 k4:2 k3:2 k2:2 k1:2 k0:16) -> n0 k5 {codes[0:4]^32 k4 k2 k1 k0 k3; codes[4:6]^32 k4 k1 k0 k3 k2; "
        "scale k4 k3 k2 k1; scale1}"
    ),
    "TQ2_0": "n(n0) k(k3 k2:2 k1:4 k0:32) -> n0 k3 {codes k2 k0 k1; scale}",
}
ZERO = {"Q4_0": 8, "Q5_0": 16, "Q3_K": 4, "TQ2_0": 1}
BITS = {
    "Q2_K": {"codes": 2, "scale": 4, "minus": 4},
    "Q3_K": {"codes": 3, "scale": 6},
    "Q4_K": {"codes": 4, "scale": 6, "minus": 6},
    "Q5_K": {"codes": 5, "scale": 6, "minus": 6},
    "Q6_K": {"codes": 6, "scale": 8},
    "TQ2_0": {"codes": 2},
}
SIGNED = {("Q8_0", "codes"), ("Q6_K", "codes"), ("Q6_K", "scale"), ("Q3_K", "scale")}


class Block:
    """Random parts of a GGUF type, and what their values are."""

    def __init__(self, name: str, shape: tuple[int, int] = (3, 512), seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.name, self.shape = name, shape
        self.record = Record.parse(BLOCKS[name])
        self.bits = BITS[name] if name in BITS else {"codes": int(name[1])}
        self.parts: Parts = {}
        for part in self.record.parts():
            extents = self.record.part_shape(part, shape)
            if part not in self.bits:
                self.parts[part] = rng.standard_normal(extents).astype(np.float16)
                continue
            low = -(1 << self.bits[part] - 1) if (name, part) in SIGNED else 0
            codes = rng.integers(low, low + (3 if name == "TQ2_0" else 1 << self.bits[part]), extents)
            codes.flat[:2] = low, low + (2 if name == "TQ2_0" else (1 << self.bits[part]) - 1)
            self.parts[part] = codes.astype(np.int8 if low else np.uint8)

    def pack(self) -> NDArray[np.uint8]:
        return self.record.pack(self.parts, self.bits, self.shape)

    def unpack(self, data: NDArray[np.uint8]) -> Parts:
        dtypes = {part: array.dtype for part, array in self.parts.items()}
        return self.record.unpack(data, self.bits, dtypes, self.shape)

    def spread(self, part: str) -> NDArray[np.float32]:
        array = self.parts[part].astype(np.float32)
        return np.repeat(array, self.shape[1] // array.shape[1], axis=1)

    def values(self) -> NDArray[np.float32]:
        scale = self.spread("scale")
        if "scale1" in self.parts:
            scale = self.spread("scale1") * scale
        values = scale * (self.spread("codes") - ZERO.get(self.name, 0))
        if "plus" in self.parts:
            values = values + self.spread("plus")
        return values - self.spread("minus1") * self.spread("minus") if "minus" in self.parts else values


def decoded(name: str, data: NDArray[np.uint8], rows: int) -> NDArray[np.float32]:
    return gguf.quants.dequantize(data.reshape(rows, -1), GGMLQuantizationType[name])


@pytest.mark.parametrize("name", BLOCKS)
def test_gguf_decodes_our_records(name: str):
    block = Block(name)
    data = block.pack()
    assert data.shape == (data.size // data.shape[1], gguf.GGML_QUANT_SIZES[GGMLQuantizationType[name]][1])
    np.testing.assert_array_equal(decoded(name, data, 3), block.values())
    for part, array in block.unpack(data).items():
        assert array.dtype == block.parts[part].dtype
        np.testing.assert_array_equal(array, block.parts[part])


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ2_0"])
def test_we_unpack_what_gguf_quantizes_and_pack_the_same_bytes(name: str):
    block = Block(name)
    values = np.random.default_rng(1).standard_normal(block.shape).astype(np.float32)
    data = gguf.quants.quantize(values, GGMLQuantizationType[name])
    block.parts = block.unpack(data)
    np.testing.assert_array_equal(block.pack().reshape(3, -1), data)
    np.testing.assert_array_equal(block.values(), decoded(name, data, 3))


@pytest.mark.parametrize("name", BLOCKS)
def test_records_print_as_written(name: str):
    record = parse_layout(BLOCKS[name])
    assert str(record) == BLOCKS[name]
    assert eval(repr(record)) == record
    assert hash(Record.parse(f"  {BLOCKS[name]} ".replace("{", " { ").replace(";", "\n ;"))) == hash(record)


@pytest.mark.parametrize("name", BLOCKS)
def test_index_gives_the_address_of_every_bit_once(name: str):
    block = Block(name, (2, 256))
    stream = np.unpackbits(block.pack().reshape(-1), bitorder="little")
    xor = {"Q6_K": {"codes": 32}, "Q3_K": {"scale": 32}}.get(name, {})
    bits = {part: block.bits.get(part, 8 * array.itemsize) for part, array in block.parts.items()}
    visits = np.zeros(stream.size, np.int64)
    for part, array in block.parts.items():
        raw = array.view(f"u{array.itemsize}") ^ np.array(xor.get(part, 0), f"u{array.itemsize}")
        for bit in range(bits[part]):
            address = block.record.index(part, tuple(np.indices(array.shape)), block.shape, bits, bit)
            address = np.broadcast_to(address, array.shape)
            np.testing.assert_array_equal(stream[address], raw >> bit & 1)
            visits[address.ravel()] += 1
    np.testing.assert_array_equal(visits, 1)
    assert block.record.bytes(bits, block.shape) * 8 == stream.size // (2 * 256 // block_length(name))


def block_length(name: str) -> int:
    return gguf.GGML_QUANT_SIZES[GGMLQuantizationType[name]][0]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("Q4_0", "codes k0 k1", "codes k1 k0"),
        ("Q4_0", "scale; codes k0 k1", "codes k0 k1; scale"),
        ("Q5_0", "k1 k0; codes[0:4]", "k0 k1; codes[0:4]"),
        ("Q6_K", "k4 k1 k0 k3 k2; scale", "k4 k1 k0 k2 k3; scale"),
        ("Q6_K", "scale k4 k3 k2 k1", "scale k4 k3 k1 k2"),
        ("Q3_K", "scale[4:6]^32", "scale[4:6]"),
        ("Q4_K", "codes j3 j2 k0 j1", "codes j3 j2 j1 k0"),
        ("Q2_K", "{scale; minus}", "{minus; scale}"),
    ],
)
def test_gguf_refutes_a_mutated_record(name: str, old: str, new: str):
    block = Block(name)
    assert old in BLOCKS[name]
    block.record = Record.parse(BLOCKS[name].replace(old, new))
    assert not np.array_equal(decoded(name, block.pack(), 3), block.values())


def test_gguf_refutes_exchanged_nibbles():
    block = Block("Q4_0")
    data = block.pack()
    data[:, 2:] = data[:, 2:] >> 4 | data[:, 2:] << 4
    assert not np.array_equal(decoded("Q4_0", data, 3), block.values())


def test_a_row_interleaved_record_matches_a_loop():
    """Eight rows of Q4_0 side by side: 8 scales, then 8 bytes of each row in turn, two's complement in the nibbles."""
    record = Record.parse("n(n1 n0:8) k(k3 k2:2 k1:2 k0:8) -> n1 k3 {scale n0; codes^8 k1 n0 k0 k2}")
    block = Block("Q4_0", (11, 96))
    data = record.pack(block.parts, block.bits, block.shape)
    expected = np.full((2, 3, 144), 0, np.uint8)
    codes, scale = (block.parts[part] for part in ("codes", "scale"))
    for n1, b, n0 in np.ndindex(2, 3, 8):
        row = n1 * 8 + n0
        held = codes[row, 32 * b : 32 * b + 32] if row < 11 else np.zeros(32, np.uint8)
        for i in range(16):
            at = 16 + i // 8 * 64 + n0 * 8 + i % 8
            expected[n1, b, at] = (int(held[i]) ^ 8) | (int(held[i + 16]) ^ 8) << 4
        if row < 11:
            expected[n1, b, 2 * n0 : 2 * n0 + 2] = scale[row : row + 1, b].view(np.uint8)
    np.testing.assert_array_equal(data.reshape(expected.shape), expected)
    back = record.unpack(data, block.bits, {"codes": np.uint8, "scale": np.float16}, block.shape)
    np.testing.assert_array_equal(back["codes"], codes)
    np.testing.assert_array_equal(back["scale"], scale)


def test_a_group_may_count_a_free_digit_and_hold_one_part_a_row():
    record = Record.parse("n(n1 n0:4) k(k1 k0:8) -> n1 {k1 {codes n0 k0; scale n0}; sums n0}")
    rng = np.random.default_rng(2)
    parts: Parts = {
        "codes": rng.integers(-8, 8, (6, 20)).astype(np.int8),
        "scale": rng.standard_normal((6, 3)).astype(np.float32),
        "sums": rng.integers(-99, 99, (6, 1)).astype(np.int32),
    }
    data = record.pack(parts, {"codes": 4}, (6, 20))
    assert data.shape == (2, 3 * (16 + 16) + 16)
    np.testing.assert_array_equal(data[0, -16:].view("<i4"), parts["sums"][:4, 0])
    for part, array in record.unpack(data, {"codes": 4}, {p: a.dtype for p, a in parts.items()}, (6, 20)).items():
        np.testing.assert_array_equal(array, parts[part])


def test_fields_may_begin_inside_a_byte():
    record = Record.parse("n(n0) -> n0 {low; scale; high[0:3]^1; high[3:4]}")
    parts: Parts = {
        "low": np.array([1, 15, 8], np.uint8),
        "scale": np.array([1.5, -2, 0], np.float16),
        "high": np.array([-8, 7, -1], np.int8),
    }
    bits = {"low": 4, "high": 4}
    data = record.pack(parts, bits, (3,))
    words = [int(lo) | int(sc) << 4 | ((int(hi) & 15) ^ 1) << 20 for lo, sc, hi in zip(
        parts["low"], parts["scale"].view(np.uint16), parts["high"], strict=True
    )]  # fmt: skip
    assert data.tobytes() == b"".join(word.to_bytes(3, "little") for word in words)
    for part, array in record.unpack(data, bits, {p: a.dtype for p, a in parts.items()}, (3,)).items():
        np.testing.assert_array_equal(array, parts[part])


def test_pinned_digits_tell_codes_apart():
    """Six bits of three codes in two bytes and a quarter: the last code is split over what the others leave."""
    record = Record.parse("n(n0) j(j0:3) -> n0 {a[0:6] j0=0; a[0:2] j0=2; a[0:6] j0=1; a[2:4] j0=2; pad; a[4:6] j0=2}")
    codes = np.array([[1, 2, 0b110110], [63, 0, 9]], np.uint8)
    parts: Parts = {"a": codes, "pad": np.array([[5], [63]], np.uint8)}
    bits = {"a": 6, "pad": 6}
    data = record.pack(parts, bits, (2, 3))
    np.testing.assert_array_equal(data[0], [1 | 0b10 << 6, 2 | 0b01 << 6, 5 | 0b11 << 6])
    np.testing.assert_array_equal(record.unpack(data, bits, {"a": np.uint8, "pad": np.uint8}, (2, 3))["a"], codes)
    stream = np.unpackbits(data.reshape(-1), bitorder="little")
    for bit in range(6):
        address = record.index("a", tuple(np.indices((2, 3))), (2, 3), bits, bit)
        np.testing.assert_array_equal(stream[address], codes >> bit & 1)


@settings(deadline=None)
@given(st.permutations(["n0", "k2", "k1", "k0"]), st.integers(0, 4), st.integers(1, 8), st.data())
def test_unpack_inverts_pack(order: list[str], outer: int, width: int, data: st.DataObject):
    """Any order of the digits, any cut between record and item, any width, codes in one or two pieces."""
    own = " ".join(order[outer:])
    low = data.draw(st.integers(1, width))
    pieces = (
        [f"codes[0:{low}] {own}", f"codes[{low}:{width}]^{1 << width - 1} {own}"] if low < width else [f"codes {own}"]
    )
    text = f"n(n0:8) k(k2 k1:3 k0:4) -> {' '.join(order[:outer])} {{{'; '.join(data.draw(st.permutations(pieces)))}}}"
    shape = (8, data.draw(st.sampled_from([0, 1, 7, 12, 25])))
    bits = {"codes": width}
    record = Record.parse(text)
    assert Record.parse(str(record)) == record
    codes = np.random.default_rng(width).integers(-(1 << width - 1), 1 << width - 1, shape).astype(np.int8)
    try:
        packed = record.pack({"codes": codes}, bits, shape)
    except BadInput as error:
        assert "whole bytes" in error.message or "share bytes" in error.message or "inside a byte" in error.message
        return
    back = record.unpack(packed, bits, {"codes": np.int8}, shape)["codes"]
    np.testing.assert_array_equal(back, codes)
    if 0 in shape:
        return
    stream = np.unpackbits(packed.reshape(-1), bitorder="little")
    for bit in range(width):
        address = record.index("codes", tuple(np.indices(shape)), shape, bits, bit)
        flip = bit == width - 1 and low < width
        np.testing.assert_array_equal(stream[np.broadcast_to(address, shape)] ^ flip, codes >> bit & 1)


def test_padding_holds_the_fill():
    record = Record.parse("n(n0) k(k1 k0:4) -> n0 k1 {codes^8 k0; scale}")
    parts: Parts = {"codes": np.array([[1, 2, 3, 4, 5]], np.uint8), "scale": np.ones((1, 2), np.uint8)}
    data = record.pack(parts, {"codes": 4}, (1, 5), {"codes": 9})
    np.testing.assert_array_equal(data, [[0xA9, 0xCB, 1], [0x1D, 0x11, 1]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n(n0) -> n0 {codes", "cannot read"),
        ("n(n0) -> n0 codes", "cannot read"),
        ("n(n0) -> n0 {codes[0-4]}", "cannot read"),
        ("n(n0) -> n0 {codes[0:4}", "cannot read"),
        ("n(n0) -> n0 {}", "cannot read"),
        ("n(n0) -> n0 {codes} x", "cannot read"),
        ("n[n0] -> n0 {codes}", r"cannot read 'n\[n0\]'"),
        ("n(n0) k(k0:4) -> n0 {codes k0 k0}", "digit k0 stands 2 times"),
        ("n(n0) k(k0:4) -> n0 {codes n0 k0}", "digit n0 stands 2 times"),
        ("n(n0) k(k0:4) -> n0 {codes k7}", "digit k7 belongs to no dimension"),
        ("n(n0) k(k0:4) -> n0 {codes}", "digit k0 lies in no part"),
        ("n(n0) k(k0:4) -> n0 {codes k0; scale k0=4}", "digit k0=4 is pinned beyond its radix"),
        ("n(n0) k(k0:4) -> n0 {codes k0; scale[0:2]; scale[2:4] k0}", "digit k0 is around some bits of scale"),
        ("n(n0) k(k1 k0:4) -> n0 k1 {codes k0; codes k0}", "bit 0 of codes is stored 2 times"),
        ("n(n0) k(k1 k0:4) -> n0 k1 {codes[0:4] k0; codes[5:6] k0}", "bit 4 of codes is stored never"),
        ("n(n0) k(k1 k0:4) -> n0 k1 {codes[0:4] k0; codes[3:6] k0}", "bit 3 of codes is stored 2 times"),
        ("n(n0) k(k1 k0:2) -> n0 k1 {codes[0:4] k0=0; codes[0:3] k0=1}", "bit 3 of codes k0=1 is stored never"),
        ("n(n0) k(k1 k0:2) -> n0 k1 {codes[4:2] k0}", "takes bits 4 to 2"),
        ("n(n0) k(k1 k0:2) -> n0 {codes k0 k1; scale k0}", "part scale has digit k0 but not k1"),
    ],
)
def test_a_record_that_is_no_bijection_is_refused(text: str, message: str):
    with pytest.raises(BadInput, match=message):
        Record.parse(text)


def test_parts_that_do_not_fit_are_refused():
    block = Block("Q4_0", (1, 32))
    record, parts, bits = block.record, block.parts, block.bits

    def refused(message: str, changed: Parts, widths: dict[str, int] | None = None):
        with pytest.raises(BadInput, match=message):
            record.pack(changed, widths or bits, (1, 32))

    refused("part scale is missing", {"codes": parts["codes"]})
    refused("part zero has no place", parts | {"zero": parts["scale"]})
    refused(
        r"part scale of .* has shape \(1, 2\), but a tensor of \(1, 32\) has \(1, 1\)",
        parts | {"scale": np.ones((1, 2))},
    )
    refused(r"code 16 of part codes at \(0, 0\)", parts | {"codes": np.full((1, 32), 16, np.uint8)})
    refused("part scale of float16 cannot take 8 bits", parts, bits | {"scale": 8})
    refused("part codes of uint8 cannot take 9 bits", parts, {"codes": 9})
    with pytest.raises(BadInput, match=r"takes 1 records of 18 bytes"):
        block.unpack(np.zeros(17, np.uint8))
    with pytest.raises(BadInput, match="no dtype is given for part codes"):
        record.unpack(np.zeros(18, np.uint8), bits, {"scale": np.float16}, (1, 32))
    with pytest.raises(BadInput, match="stores no bit 4 of codes"):
        record.index("codes", (0, 0), (1, 32), {"codes": 4, "scale": 16}, 4)
    with pytest.raises(BadInput, match="has no part zero"):
        record.index("zero", (0, 0), (1, 32), {"codes": 4, "scale": 16})
    with pytest.raises(BadInput, match="part scale has no width"):
        record.bytes({"codes": 4}, (1, 32))
    six = Record.parse("n(n0) k(k0:8) -> n0 {codes[0:4] k0; codes[4:6] k0}")
    with pytest.raises(BadInput, match="stores 6 bits of codes, but its codes have 5"):
        six.pack({"codes": np.zeros((1, 8), np.uint8)}, {"codes": 5}, (1, 8))
    with pytest.raises(BadInput, match=r"xor 8 .* codes of 3 bits"):
        Record.parse("n(n0) k(k0:8) -> n0 {codes^8 k0}").pack(
            {"codes": np.zeros((1, 8), np.uint8)}, {"codes": 3}, (1, 8)
        )
    with pytest.raises(BadInput, match="takes 5 bits: they are not whole bytes"):
        Record.parse("n(n0) -> n0 {codes}").pack({"codes": np.zeros(1, np.uint8)}, {"codes": 5}, (1,))
    with pytest.raises(BadInput, match=r"group `k0 \{codes\}` does not take whole bytes, from a byte on"):
        Record.parse("n(n0) k(k0:8) -> n0 {k0 {codes}}").pack(
            {"codes": np.zeros((1, 8), np.uint8)}, {"codes": 5}, (1, 8)
        )
    with pytest.raises(BadInput, match="share bytes and take 72 bits"):
        Record.parse("n(n0) -> n0 {codes; a; b}").pack(
            {"codes": np.zeros(1, np.uint8), "a": np.zeros(1, np.uint64), "b": np.zeros(1, np.uint8)},
            {"codes": 4, "b": 4},
            (1,),
        )
