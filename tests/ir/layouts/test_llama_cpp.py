"""GGUF blocks against the gguf package: its own bytes, and values of random bytes; repacked blocks against models."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from qcc.ir.layouts import NamedLayout, named

from .helpers import Parts, agree, fetch, random_values, store

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

BLOCKS = {
    "q4_0": (32, {"scale": 32}),
    "q4_1": (32, {"scale": 32, "plus": 32}),
    "q5_0": (32, {"scale": 32}),
    "q5_1": (32, {"scale": 32, "plus": 32}),
    "q8_0": (32, {"scale": 32}),
    "q2_k": (256, {"scale": 16, "minus": 16, "scale1": 256, "minus1": 256}),
    "q3_k": (256, {"scale": 16, "scale1": 256}),
    "q4_k": (256, {"scale": 32, "minus": 32, "scale1": 256, "minus1": 256}),
    "q5_k": (256, {"scale": 32, "minus": 32, "scale1": 256, "minus1": 256}),
    "q6_k": (256, {"scale": 16, "scale1": 256}),
    "tq2_0": (256, {"scale": 256}),
    "iq4_nl": (32, {"scale": 32}),
}
"""Codes in a block, and how many of them share a value of each part."""


def random_parts(layout: NamedLayout, shape: tuple[int, int]) -> Parts:
    name = layout.name.removeprefix("llama_cpp_")
    extents = {"codes": 1, **BLOCKS[name][1]}
    parts = {
        part: random_values(dtype, (shape[0], shape[1] // extents[part]), seed=i)
        for i, (part, dtype) in enumerate(layout.parts)
    }
    if name == "tq2_0":
        parts["codes"] = np.minimum(parts["codes"], np.uint8(2))
    return parts


def decode(name: str, parts: Parts, shape: tuple[int, int]) -> Floats:
    """The values in float32, multiplied in the order of ggml: d times the small scale, then the code."""

    def spread(part: str) -> Floats:
        values = parts[part].astype(np.float32)
        return np.repeat(values, shape[1] // values.shape[1], axis=1)

    codes = parts["codes"].astype(np.float32)
    if name == "tq2_0":
        codes -= 1
    if name == "iq4_nl":
        codes = np.array(gguf.quants.IQ4_NL.kvalues, np.float32)[parts["codes"]]
    scale = spread("scale")
    if "scale1" in parts:
        scale = spread("scale1") * scale
    value = codes * scale
    if "plus" in parts:
        value = value + spread("plus")
    if "minus" in parts:
        value = value - spread("minus1") * spread("minus")
    return value


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("blocks", [1, 3])
def test_random_blocks_have_the_values_that_gguf_finds(name: str, blocks: int) -> None:
    layout = named(f"llama_cpp_{name}")
    shape = (5, blocks * BLOCKS[name][0])
    parts = random_parts(layout, shape)
    stored = store(layout, parts, shape)
    found = gguf.quants.dequantize(stored.reshape(5, -1), Type[name.upper()])
    np.testing.assert_array_equal(found, decode(name, parts, shape))
    if blocks > 1:
        agree(layout, parts, shape, stored)


@pytest.mark.parametrize("name", BLOCKS)
def test_any_bytes_read_as_gguf_reads_them_and_are_written_back(name: str) -> None:
    layout = named(f"llama_cpp_{name}")
    shape = (64, BLOCKS[name][0])
    size = gguf.GGML_QUANT_SIZES[Type[name.upper()]][1]
    data = np.random.default_rng(0).integers(0, 256, (shape[0], size), np.uint8)
    parts = fetch(layout, data, shape)
    np.testing.assert_array_equal(store(layout, parts, shape), data.reshape(-1))
    with np.errstate(all="ignore"):
        expected, found = gguf.quants.dequantize(data, Type[name.upper()]), decode(name, parts, shape)
    finite = np.isfinite(expected)
    assert finite.mean() > 0.8
    np.testing.assert_array_equal(found[finite], expected[finite])


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq2_0"])
def test_what_gguf_quantizes_is_stored_as_it_stores_it(name: str) -> None:
    layout = named(f"llama_cpp_{name}")
    shape = (7, 3 * BLOCKS[name][0])
    weights = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    data = gguf.quants.quantize(weights, Type[name.upper()])
    parts = fetch(layout, data.reshape(-1), shape)
    np.testing.assert_array_equal(decode(name, parts, shape), gguf.quants.dequantize(data, Type[name.upper()]))
    np.testing.assert_array_equal(store(layout, parts, shape), data.reshape(-1))


def q4_0_blocks(codes: NDArray[np.int8], scale: NDArray[np.float16]) -> list[list[tuple[Bytes, Bytes]]]:
    """Q4_0 blocks as (d, qs), row by row: after ggml-common.h, nibbles with offset 8, the second half on top."""
    unsigned = (codes + 8).astype(np.uint8)
    return [
        [
            (scale[n, b : b + 1].view(np.uint8), unsigned[n, 32 * b :][:16] | unsigned[n, 32 * b + 16 :][:16] << 4)
            for b in range(scale.shape[1])
        ]
        for n in range(len(codes))
    ]


def repacked_8x8(codes: NDArray[np.int8], scale: NDArray[np.float16]) -> Bytes:
    """ggml's make_block_q4_0x8 (repack.cpp) with 8 bytes a turn: eight d, then byte runs of the rows, xor 0x88."""
    rows, stream = q4_0_blocks(codes, scale), list[Bytes]()
    for top in range(0, len(rows), 8):
        for b in range(scale.shape[1]):
            group = [row[b] for row in rows[top : top + 8]]
            stream += [d for d, _ in group]
            stream += [group[i % 8][1][i // 8 * 8 :][:8] ^ 0x88 for i in range(16)]
    return np.concatenate(stream)


def amx(codes: NDArray[np.int8], scale: NDArray[np.float16]) -> Bytes:
    """ggml's pack_qs and pack_B of block_q4_0 (amx/mmq.cpp): bytes [k / 4][n][4], two such rows in one, then 16 d."""
    rows, stream = q4_0_blocks(codes, scale), list[Bytes]()
    for top in range(0, len(rows), 16):
        for b in range(scale.shape[1]):
            group = [row[b] for row in rows[top : top + 16]]
            unpacked = np.array([np.concatenate([qs & 15, qs >> 4]) for _, qs in group])
            tile = unpacked.reshape(16, 8, 4).transpose(1, 0, 2).reshape(8, 64)
            stream.append((tile[0::2] | tile[1::2] << 4).reshape(-1))
            stream += [d for d, _ in group]
    return np.concatenate(stream)


@pytest.mark.parametrize("shape", [(8, 32), (16, 96), (40, 64)])
def test_repacked_q4_0(shape: tuple[int, int]) -> None:
    layout = named("llama_cpp_q4_0_8x8")
    codes, scale = random_values("i4", shape), random_values("f16", (shape[0], shape[1] // 32))
    agree(layout, {"codes": codes, "scale": scale}, shape, repacked_8x8(codes, scale))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(16, 32), (48, 96)])
def test_amx_q4_0(shape: tuple[int, int]) -> None:
    layout = named("llama_cpp_amx_q4_0")
    codes, scale = random_values("i4", shape), random_values("f16", (shape[0], shape[1] // 32))
    agree(layout, {"codes": codes, "scale": scale}, shape, amx(codes, scale))  # type: ignore[arg-type]
