"""GPU layouts against a model of tensor-core fragments: each lane's words unpack into the registers that mma expects.

The unpacking is pair-wise (Kim et al., "Who Says Elephants Can't Run", 2022): `word >> 4 s & 0x000f000f` gives two
halves of one register of 16-bit values, so the first code of a pair lies in nibble s and the second in nibble s + 4.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.layouts import named

from .helpers import agree, random_codes
from .ptx import LANES, ldmatrix, mma_m16n8k16_b, mma_m16n8k32_b

Words = NDArray[np.uint32]


def halves(codes: NDArray[np.uint8], k: NDArray[np.int64], n: NDArray[np.int64], step: int) -> Words:
    """Words whose pair `step` unpacks to the two codes at (`k`, `n`), low half first; the last axis is the half."""
    pair = codes[k, n].astype(np.uint32)
    return pair[..., 0] << 4 * step | pair[..., 1] << 4 * step + 16


def marlin(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tiles of 16 x 64: lane after lane four words, each the B fragments of two neighbouring mma of 8 columns."""
    K, N = codes.shape
    words = np.zeros((K // 16, N // 64, 32, 4), np.uint32)
    tile_k, tile_n, lane, j, half = np.ogrid[: K // 16, : N // 64, :32, :4, :2]
    for step in range(4):
        k, n = mma_m16n8k16_b(lane, step % 2 * 2 + half)
        words |= halves(codes, tile_k * 16 + k + 0 * n, tile_n * 64 + j * 16 + step // 2 * 8 + n, step)
    return words.reshape(-1).view(np.uint8)


def marlin_bytes(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same for bytes: a word is one B fragment; bytes 0 and 2 are its first register, bytes 1 and 3 the second."""
    K, N = codes.shape
    data = np.zeros((K // 16, N // 64, 32, 4, 2, 4), np.uint8)
    tile_k, tile_n, lane, j, block = np.ogrid[: K // 16, : N // 64, :32, :4, :2]
    for byte in range(4):
        k, n = mma_m16n8k16_b(lane, np.int64(byte % 2 * 2 + byte // 2))
        data[..., byte] = codes[tile_k * 16 + k, tile_n * 64 + j * 16 + block * 8 + n]
    return data.reshape(-1)


def turbomind(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tiles of 32 columns by 16: two words a lane, each the four registers of one ldmatrix.x4 over rows of n.

    Lanes 0-7, 8-15, 16-23, 24-31 give the rows of matrices at k 0 8 0 8 and n 0 0 8 8.
    """
    K, N = codes.shape
    words = np.zeros((N // 32, K // 16, 32, 2), np.uint32)
    tile_n, tile_k, lane, j, half = np.ogrid[: N // 32, : K // 16, :32, :2, :2]
    for matrix in range(4):
        n, k = ldmatrix(lane, half)
        k, n = tile_k * 16 + matrix % 2 * 8 + k, tile_n * 32 + j * 16 + matrix // 2 * 8 + n
        words |= halves(codes, k, n, matrix)
    return words.reshape(-1).view(np.uint8)


def qserve(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tiles of 32 x 32: a lane's 16 bytes are four words; low nibbles feed 16 rows of n, high nibbles the next 16.

    `word & 0x0f0f0f0f` is one register of an int8 B fragment: words 0 and 1 its first half of k, 2 and 3 the second.
    """
    N, K = codes.shape
    words = np.zeros((N // 32, K // 32, 32, 4), np.uint32)
    tile_n, tile_k, lane = np.ogrid[: N // 32, : K // 32, :32]
    for word in range(4):
        for byte in range(4):
            for nibble in range(2):
                k, n = mma_m16n8k32_b(lane, np.int64(word // 2 * 4 + byte))
                n = tile_n * 32 + nibble * 16 + word % 2 * 8 + n
                words[..., word] |= codes[n, tile_k * 32 + k].astype(np.uint32) << 8 * byte + 4 * nibble
    return words.reshape(-1).view(np.uint8)


@pytest.mark.parametrize("shape", [(16, 64), (32, 192), (128, 256)])
def test_marlin(shape: tuple[int, int]) -> None:
    codes = random_codes("u4", shape)
    agree(named("marlin"), {"codes": codes}, shape, marlin(codes))


@pytest.mark.parametrize("shape", [(16, 64), (48, 128)])
def test_marlin_with_bytes(shape: tuple[int, int]) -> None:
    codes = random_codes("u8", shape)
    agree(named("marlin", "u8"), {"codes": codes}, shape, marlin_bytes(codes))


@pytest.mark.parametrize("shape", [(16, 32), (64, 96)])
def test_turbomind(shape: tuple[int, int]) -> None:
    codes = random_codes("u4", shape)
    agree(named("turbomind_sm80"), {"codes": codes}, shape, turbomind(codes))


@pytest.mark.parametrize("shape", [(32, 32), (96, 64)])
def test_qserve(shape: tuple[int, int]) -> None:
    codes = random_codes("u4", shape)
    agree(named("qserve"), {"codes": codes}, shape, qserve(codes))


def test_a_warp_holds_every_element_of_a_fragment_once() -> None:
    for fragment, count, rows in ((mma_m16n8k16_b, 4, 16), (mma_m16n8k32_b, 8, 32)):
        k, n = fragment(LANES[:, None], np.arange(count))
        assert sorted((k * 8 + n).ravel()) == list(range(rows * 8))
    row, column = ldmatrix(LANES[:, None], np.arange(2))
    assert sorted((row * 8 + column).ravel()) == list(range(64))
