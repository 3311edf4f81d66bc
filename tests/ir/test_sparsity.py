"""n:m sparse codes: what is kept and where, against torch's conversion for tensor cores, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from qcc.ir.errors import BadInput
from qcc.ir.format import Format
from qcc.ir.layout import Layout, pack
from qcc.ir.layouts import named
from qcc.ir.sparsity import compress, restore
from tests.ir.formats_of_the_field import random_value


@given(
    st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 8), (5, 16)]),
    st.integers(0, 5),
    st.integers(0, 70),
    st.integers(0, 99),
)
def test_restoring_inverts_compressing(ratio: tuple[int, int], rows: int, columns: int, seed: int) -> None:
    (n, m), rng = ratio, np.random.default_rng(seed)
    codes = rng.integers(-8, 8, (rows, columns)).astype(np.int8)
    count = -(-columns // m)
    places = np.argsort(rng.random((rows, count, m)), axis=2).reshape(rows, count * m)[:, :columns]
    codes[places >= n] = 3
    kept, index = compress(codes, n, m, 3)
    assert kept.shape == index.shape == (rows, -(-columns // m) * n)
    np.testing.assert_array_equal(restore(kept, index, n, m, 3, columns), codes)


def test_kept_values_and_metadata_are_those_of_torch() -> None:
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((64, 128)).astype(np.float16)
    places = np.argsort(rng.random((64, 32, 4)), axis=2).reshape(64, 128)
    dense[places >= 2] = 0
    codes = np.where(dense != 0, rng.integers(1, 8, dense.shape), 0).astype(np.int8)
    theirs, metadata = sparse_semi_structured_from_dense_cutlass(torch.from_numpy(codes.astype(np.float16)))
    kept, index = compress(codes, 2, 4, 0)
    np.testing.assert_array_equal(kept, theirs.numpy().astype(np.int8))
    layout = named("sparse_24_cutlass").layout
    assert isinstance(layout, Layout)
    np.testing.assert_array_equal(pack(index, 2, layout), metadata.numpy().view(np.uint8).reshape(-1))


def test_a_group_with_too_many_values_is_named() -> None:
    codes = np.zeros((2, 8), np.int8)
    codes[1, 4:7] = 1
    with pytest.raises(BadInput, match=r"weight 'w': group \(1, 1\) has 3 codes other than 0, and 2:4 keeps 2"):
        compress(codes, 2, 4, 0, "weight 'w'")


@pytest.mark.parametrize("index", [[[1, 0]], [[0, 0]], [[0, 4]]])
def test_places_that_cannot_be_are_refused(index: list[list[int]]) -> None:
    with pytest.raises(BadInput, match="not ascending below 4"):
        restore(np.ones((1, 2), np.int8), np.array(index, np.uint8), 2, 4, 0, 4)


@pytest.mark.parametrize(
    "text", ["binary, f16 per 32, sparse 2:4", "u4, f16 per 32, zero u4, sparse 2:4", "iq4nl, f16 per 32, sparse 2:4"]
)
def test_formats_without_a_code_of_zero_are_not_pruned(text: str) -> None:
    with pytest.raises(BadInput, match="needs one code of 0"):
        Format.parse(text)


def test_nested_codes_have_a_codebook_for_each_precision() -> None:
    value = random_value("n3..6 in f16 per *", (4, 64))
    for bits in (3, 4, 5, 6):
        part = value.at(bits)
        part.check("w")
        assert str(part.format) == f"k{1 << bits} in f16 per *"
        np.testing.assert_array_equal(part.codes, value.codes >> (6 - bits))
    np.testing.assert_array_equal(value.at(6).decode(), value.decode())
    with pytest.raises(BadInput):
        value.at(7)
