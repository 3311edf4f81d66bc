"""Checkpoint layouts of 32-bit words against models of the words, and against the compressed-tensors package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qcc.ir.layout import pack
from qcc.ir.layouts import named

from .helpers import agree, random_codes, store


def words(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """The codes of the last axis as one stream of bits, lowest first, cut into 32-bit words: GPTQ's words."""
    stream = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
    stream = stream.reshape(*codes.shape[:-1], -1)
    return np.packbits(stream, axis=-1, bitorder="little").view("<u4")


@pytest.mark.parametrize("element", ["u4", "u2", "u3", "u8"])
@pytest.mark.parametrize("shape", [(32, 5), (64, 1), (96, 32)])
def test_gptq_weights_follow_each_other_along_k(element: str, shape: tuple[int, int]) -> None:
    codes = random_codes(element, shape)
    oracle = words(codes.T, int(element[1:])).T.copy().reshape(-1).view(np.uint8)
    layout = named("gptq", "u3", groups=shape[0] // 32, columns=shape[1]) if element == "u3" else named("gptq", element)
    np.testing.assert_array_equal(store(layout, {"codes": codes}, shape), oracle)
    if shape[1] > 1:
        agree(layout, {"codes": codes}, shape, oracle)


@pytest.mark.parametrize("element", ["u4", "u2", "u3", "u8"])
def test_gptq_zero_points_follow_each_other_along_n(element: str) -> None:
    codes = random_codes(element, (6, 96))
    oracle = words(codes, int(element[1:])).reshape(-1).view(np.uint8)
    agree(named("gptq_zeros", element), {"codes": codes}, codes.shape, oracle)


@pytest.mark.parametrize("shape", [(3, 8), (16, 64)])
def test_awq_puts_even_columns_first(shape: tuple[int, int]) -> None:
    codes = random_codes("u4", shape)
    columns = codes.reshape(shape[0], -1, 8).astype(np.uint32)
    oracle = np.zeros(columns.shape[:2], np.uint32)
    for nibble, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        oracle |= columns[..., column] << 4 * nibble
    agree(named("awq"), {"codes": codes}, shape, oracle.reshape(-1).view(np.uint8))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(2, 64), (5, 64), (17, 96)])
def test_compressed_tensors_words(bits: int, shape: tuple[int, int]) -> None:
    codes = random_codes(f"i{bits}", shape)
    offset = (codes.astype(np.int16) + (1 << bits - 1)).astype(np.uint8)
    oracle = words(offset, bits).reshape(-1).view(np.uint8)
    agree(named("compressed_tensors", f"i{bits}"), {"codes": codes}, shape, oracle)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(1, 32), (5, 64), (17, 96)])
def test_compressed_tensors_package(bits: int, shape: tuple[int, int]) -> None:
    from compressed_tensors.compressors.pack_quantized import helpers as package

    codes = random_codes(f"i{bits}", shape)
    oracle = package.pack_to_int32(torch.from_numpy(codes), bits).numpy().reshape(-1).view(np.uint8)
    np.testing.assert_array_equal(store(named("compressed_tensors", f"i{bits}"), {"codes": codes}, shape), oracle)


@pytest.mark.parametrize("columns", [8, 24, 40])
def test_compressed_tensors_pads_four_bits_to_whole_words(columns: int) -> None:
    """At 4 and 8 bits a row of any length is padded as the package pads it, with the code that decodes to zero bits."""
    from compressed_tensors.compressors.pack_quantized import helpers as package

    codes = random_codes("i4", (3, columns - 3))
    layout = named("compressed_tensors")
    oracle = package.pack_to_int32(torch.from_numpy(codes), 4).numpy().reshape(-1).view(np.uint8)
    np.testing.assert_array_equal(pack(codes, 4, layout.layout, fill=-8), oracle)
