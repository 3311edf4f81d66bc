"""CPU and FPGA layouts against models of the instructions, loops and memories that read them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.layout import Layout
from qcc.ir.layouts import named

from .helpers import agree, mistakes, random_codes, random_values, store

Bytes = NDArray[np.uint8]


def vpdpbusd(acc: NDArray[np.int32], a: Bytes, b: NDArray[np.int8]) -> NDArray[np.int32]:
    """Intel SDM, VPDPBUSD: each 32-bit lane adds the products of its four unsigned bytes of a and signed bytes of b."""
    return acc + (a.reshape(-1, 4).astype(np.int32) * b.reshape(-1, 4)).sum(1, dtype=np.int32)


def tdpbssd(acc: NDArray[np.int32], a: NDArray[np.int8], b: NDArray[np.int8]) -> NDArray[np.int32]:
    """Intel SDM, TDPBSSD: acc[m, n] += a[m, 4 k + i] b[k, 4 n + i] for 16 rows k of b and i in 0..3."""
    return acc + np.einsum("mki,kni->mn", a.reshape(16, 16, 4).astype(np.int32), b.reshape(16, 16, 4))


@pytest.mark.parametrize("shape", [(4, 16), (64, 32), (20, 48)])
def test_vnni_panels_multiply_by_vpdpbusd(shape: tuple[int, int]) -> None:
    weights = random_codes("i8", shape)
    x = random_codes("u8", (shape[0],), seed=1)

    def product(data: Bytes) -> NDArray[np.int32]:
        panels = data.view(np.int8).reshape(shape[1] // 16, shape[0] // 4, 64)
        accs = np.zeros((len(panels), 16), np.int32)
        for step, quad in enumerate(x.reshape(-1, 4)):
            for panel, acc in zip(panels, accs, strict=True):
                acc[:] = vpdpbusd(acc, np.tile(quad, 16), panel[step])
        return accs.reshape(-1)

    layout, expected = named("vnni_int8"), x.astype(np.int32) @ weights.astype(np.int32)
    np.testing.assert_array_equal(product(store(layout, {"codes": weights}, shape)), expected)
    for wrong in mistakes(layout, shape):
        assert not np.array_equal(product(store(wrong, {"codes": weights}, shape)), expected)


@pytest.mark.parametrize("shape", [(64, 16), (128, 48)])
def test_amx_tiles_multiply_by_tdpbssd(shape: tuple[int, int]) -> None:
    weights, x = random_codes("i8", shape), random_codes("i8", (16, shape[0]), seed=1)

    def product(data: Bytes) -> NDArray[np.int32]:
        tiles = data.view(np.int8).reshape(shape[1] // 16, shape[0] // 64, 16, 64)
        result = np.zeros((len(tiles), 16, 16), np.int32)
        for step in range(shape[0] // 64):
            for n, tile in enumerate(tiles[:, step]):
                result[n] = tdpbssd(result[n], np.ascontiguousarray(x[:, 64 * step : 64 * step + 64]), tile)
        return np.hstack(list(result))

    layout, expected = named("amx_int8"), x.astype(np.int32) @ weights.astype(np.int32)
    np.testing.assert_array_equal(product(store(layout, {"codes": weights}, shape)), expected)
    for wrong in mistakes(layout, shape):
        assert not np.array_equal(product(store(wrong, {"codes": weights}, shape)), expected)


def test_vnni_and_amx_are_one_layout_of_whole_tiles() -> None:
    vnni, amx = named("vnni_int8").layout, named("amx_int8").layout
    assert named("vnni_int8", "u8").layout == vnni
    assert named("amx_int8", "u8").layout == amx
    assert isinstance(vnni, Layout)
    assert isinstance(amx, Layout)
    assert vnni.agrees_with(amx, (128, 48))
    assert not vnni.agrees_with(amx, (68, 48))


@pytest.mark.parametrize("shape", [(3, 32), (8, 160)])
def test_mlas_neon_pairs_a_code_with_the_one_sixteen_later(shape: tuple[int, int]) -> None:
    """After the comment in MLAS: dst = v0 v16, v1 v17 ... v15 v31."""
    codes = random_codes("u4", shape)
    low, high = codes.reshape(-1, 2, 16).transpose(1, 0, 2)
    agree(named("mlas_neon"), {"codes": codes}, shape, (low | high << 4).reshape(-1))


@pytest.mark.parametrize(("n", "k", "quads"), [(4, 32, 1), (12, 96, 1), (8, 128, 2)])
def test_kleidiai_interleaves_four_rows(n: int, k: int, quads: int) -> None:
    """After the loop of kai_rhs_pack_nxk_qsi4c32pnrx8_qsu4c32s1s0_neon.c; codes arrive there as 0..15 with zero 8."""
    layout = named("kleidiai_qsi4c32p", quads=quads)
    block = 32 * quads
    codes, scale = random_codes("i4", (n, k)), random_values("bf16", (n, k // block))
    unsigned = (codes + np.int8(8)).astype(np.uint8)
    stream: list[Bytes] = []
    for row in range(0, n, 4):
        for start in range(0, k, block):
            for run in range(start, start + block, 32):
                for segment in (run, run + 8):
                    for r in range(row, row + 4):
                        low, high = unsigned[r, segment : segment + 8], unsigned[r, segment + 16 : segment + 24]
                        stream.append((low | high << 4) ^ 0x88)
            stream.append(scale[row : row + 4, start // block].copy().view(np.uint8))
    agree(layout, {"codes": codes, "scale": scale}, (n, k), np.concatenate(stream))


def tmac(codes: Bytes, bits: int, rows: int, kfactor: int) -> Bytes:
    """Wei et al.: a nibble is the index into a table of sums of four activations; 16 bytes look up 32 bit rows.

    Bit rows come eight weights at a time, plane after plane; of 32 of them the first 16 are the low nibbles. Blocks of
    `rows` bit rows by `kfactor` tables: tiles of 32 bit rows, then tables.
    """
    M, K = codes.shape
    planes = [sum((codes[:, i::4] >> b & 1) << i for i in range(4)) for b in range(bits)]
    ordered = np.concatenate([plane[m : m + 8] for m in range(0, M, 8) for plane in planes]).astype(np.uint8)
    stream: list[Bytes] = []
    for top in range(0, len(ordered), rows):
        for table in range(0, K // 4, kfactor):
            for tile in range(top, top + rows, 32):
                for column in range(table, table + kfactor):
                    stream.append(ordered[tile : tile + 16, column] | ordered[tile + 16 : tile + 32, column] << 4)
    return np.concatenate(stream)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize(("blocks", "k"), [(1, 64), (3, 128)])
def test_tmac_looks_up_nibbles_of_bit_planes(bits: int, blocks: int, k: int) -> None:
    tiles = 6 if bits == 3 else 8
    shape = (blocks * tiles * 32 // bits, k)
    codes = random_codes(f"u{bits}", shape)
    if bits == 3:
        layout = named("tmac", "u3", tiles=tiles // 3, kfactor=8, rows=blocks, columns=k // 32)
    else:
        layout = named("tmac", f"u{bits}", tiles=tiles, kfactor=8)
    agree(layout, {"codes": codes}, shape, tmac(codes, bits, tiles * 32, 8))


@pytest.mark.parametrize("element", ["i4", "i8"])
@pytest.mark.parametrize(("banks", "unroll"), [(4, 4), (8, 2), (3, 16)])
def test_every_cycle_reads_one_word_from_each_bank(element: str, banks: int, unroll: int) -> None:
    shape = (banks * 5, unroll * 7)
    layout = named("fpga_banks", element, banks=banks, unroll=unroll)
    codes = random_codes(element, shape)

    def read(data: Bytes) -> NDArray[np.int8]:
        """What the banks give cycle after cycle, put where the kernel expects it."""
        if element == "i4":
            nibbles = np.stack([data & 15, data >> 4], axis=-1).reshape(-1)
            data = (nibbles ^ 8) - np.uint8(8)
        memory = data.view(np.int8).reshape(banks, -1, unroll)
        found = np.zeros(shape, np.int8)
        for cycle in range(memory.shape[1]):
            n, k = cycle // 7 * banks, cycle % 7 * unroll
            found[n : n + banks, k : k + unroll] = memory[:, cycle]
        return found

    np.testing.assert_array_equal(read(store(layout, {"codes": codes}, shape)), codes)
    for wrong in mistakes(layout, shape):
        assert not np.array_equal(read(store(wrong, {"codes": codes}, shape)), codes)


def test_banks_and_addresses_are_spaces() -> None:
    shape, chain = (20, 28), named("fpga_banks").layout
    assert isinstance(chain, Layout)
    place = chain.locate((np.arange(shape[0])[:, None], np.arange(shape[1])), shape)
    np.testing.assert_array_equal(place["bank"], np.arange(shape[0])[:, None] % 4)
    assert np.max(place["addr"]) == 5 * 28 - 1
