"""2:4 metadata as torch writes it, and block scales for Blackwell after their formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from qcc.ir.layout import pack
from qcc.ir.layouts import named

from .helpers import agree, mistakes, random_codes


def kept_two_of_four(shape: tuple[int, int], seed: int) -> tuple[torch.Tensor, NDArray[np.uint8]]:
    """A dense half matrix of which each four hold two values, and the positions of those, two by two."""
    rng = np.random.default_rng(seed)
    m, k = shape
    positions = np.sort(rng.permuted(np.tile(np.arange(4, dtype=np.uint8), (m, k // 4, 1)), axis=2)[..., :2], axis=2)
    dense = np.zeros((m, k // 4, 4), np.float16)
    np.put_along_axis(dense, positions.astype(np.int64), rng.uniform(1, 2, positions.shape).astype(np.float16), 2)
    return torch.from_numpy(dense.reshape(shape)), positions.reshape(m, k // 2)


@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (96, 320)])
def test_cutlass_metadata(shape: tuple[int, int]) -> None:
    dense, positions = kept_two_of_four(shape, seed=shape[0])
    _, metadata = sparse_semi_structured_from_dense_cutlass(dense)
    oracle = metadata.numpy().reshape(-1).view(np.uint8)
    agree(named("sparse_24_cutlass"), {"codes": positions}, positions.shape, oracle)


@pytest.mark.parametrize("shape", [(128, 64), (256, 128), (384, 192)])
def test_cusparselt_metadata_is_the_same_atoms_in_tiles(shape: tuple[int, int]) -> None:
    """Offsets of 32 x 32 atoms of 64 words: PyTorch's MetadataCuSparseLt::_get_meta_offset."""
    dense, positions = kept_two_of_four(shape, seed=shape[0])
    rows, columns = shape
    words = np.zeros(rows * columns // 16, np.uint16)
    for row in range(0, rows, 32):
        for column in range(0, columns, 32):
            _, atom = sparse_semi_structured_from_dense_cutlass(
                dense[row : row + 32, column : column + 32].contiguous()
            )
            offset = row // 128 * 64 * 8 + column // 64 * 64 * 8 * (rows // 128)
            offset += row % 128 // 32 * 64 + column % 64 // 32 * 64 * 4
            words[offset : offset + 64] = atom.numpy().reshape(-1).view(np.uint16)
    agree(named("sparse_24_cusparselt"), {"codes": positions}, positions.shape, words.view(np.uint8))


@pytest.mark.parametrize("shape", [(128, 4), (256, 12), (200, 7), (1, 1)])
def test_blackwell_scales(shape: tuple[int, int]) -> None:
    """Offsets after the cuBLAS documentation, "1D block scaling factors layout"; tiles of 128 x 4 row by row."""
    scales = random_codes("u8", shape)
    outer, inner = np.indices(shape)
    tile = outer // 128 * -(-shape[1] // 4) + inner // 4
    oracle = np.zeros(-(-shape[0] // 128) * -(-shape[1] // 4) * 512, np.uint8)
    oracle[tile * 512 + outer % 128 % 32 * 16 + outer % 128 // 32 * 4 + inner % 4] = scales
    layout = named("blackwell_scales")
    np.testing.assert_array_equal(pack(scales, 8, layout.layout), oracle)
    for wrong in mistakes(layout, shape) if shape != (1, 1) else ():
        assert not np.array_equal(pack(scales, 8, wrong.layout), oracle)
