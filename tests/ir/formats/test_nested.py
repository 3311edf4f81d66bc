"""Nested bit planes: every precision is a prefix of the codes, and each bit cuts each cluster at the best place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.formats import is_trained, load_element
from qcc.ir.formats.codebook import Codebook, fit_codebook
from qcc.ir.formats.nested import Nested, fit_nested

BLOCKS = np.random.default_rng(0).standard_t(5, (6, 600)).astype(np.float32)


def test_lowest_precision_is_plain_k_means() -> None:
    element = Nested(3, 8)
    tables = element.fit(BLOCKS)
    lowest = fit_codebook(BLOCKS, 8)
    np.testing.assert_array_equal(element.tables_at(tables, 3), lowest)
    codes = element.encode(BLOCKS, tables=tables)
    np.testing.assert_array_equal(element.codes_at(codes, 3), Codebook(8).encode(BLOCKS, tables=lowest))
    np.testing.assert_array_equal(
        element.decode(codes, tables, bits=3), Codebook(8).decode(element.codes_at(codes, 3), lowest)
    )


def test_each_bit_more_is_a_prefix_more_and_an_error_less() -> None:
    element = Nested(2, 8)
    tables = element.fit(BLOCKS)
    codes = element.encode(BLOCKS, tables=tables)
    errors = [((element.decode(codes, tables, bits) - BLOCKS) ** 2).mean() for bits in range(2, 9)]
    assert (np.diff(errors) < 0).all()
    for bits, error in zip(range(2, 9), errors, strict=True):
        np.testing.assert_array_equal(element.codes_at(codes, bits), codes >> (8 - bits))
        table = element.tables_at(tables, bits)
        assert table.shape == (6, 1 << bits) and (np.diff(table, axis=1) >= 0).all()
        assert element.at(bits) == Codebook(1 << bits)
        if bits < 6:  # nesting costs little against k-means of that precision alone
            alone = fit_codebook(BLOCKS, 1 << bits)
            best = (Codebook(1 << bits).decode(Codebook(1 << bits).encode(BLOCKS, tables=alone), alone) - BLOCKS) ** 2
            assert error <= 1.5 * best.mean()


@pytest.mark.parametrize("weighted", [False, True])
def test_clusters_are_cut_where_the_error_falls_most(weighted: bool) -> None:
    """All cuts of all clusters tried, one at a time."""
    rng = np.random.default_rng(1)
    blocks = rng.normal(0, 1, (5, 40)).astype(np.float32)
    weights = rng.uniform(0.2, 5, blocks.shape) if weighted else np.ones(blocks.shape)
    tables = fit_nested(blocks, 2, 3, weights if weighted else None)
    for block, weight, low, high in zip(blocks, weights, tables[2], tables[3], strict=True):
        nearest = np.abs(block[:, None].astype(np.float64) - low[None, :]).argmin(axis=1)
        for cluster in range(4):
            order = np.argsort(block[nearest == cluster])
            v, w = block[nearest == cluster][order].astype(np.float64), weight[nearest == cluster][order]
            found = min((cost(v[:t], w[:t]) + cost(v[t:], w[t:]), t) for t in range(1, len(v)))[1] if len(v) > 1 else 1
            halves = [
                np.average(part, weights=u) for part, u in ((v[:found], w[:found]), (v[found:], w[found:])) if len(part)
            ]
            np.testing.assert_allclose(high[2 * cluster : 2 * cluster + len(halves)], halves, rtol=1e-5, atol=1e-6)


def cost(values: np.ndarray, weights: np.ndarray) -> float:
    """Weighted squared error about the mean."""
    return float((weights * (values - np.average(values, weights=weights)) ** 2).sum())


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_decode_then_encode_changes_nothing(n: int, distinct: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = rng.choice(np.float32(rng.normal(0, 1, distinct)), (3, n))
    element = Nested(2, 5)
    tables = element.fit(blocks)
    codes = element.encode(blocks, tables=tables)
    values = element.decode(codes, tables)
    np.testing.assert_array_equal(element.encode(values, tables=tables), codes)
    if distinct <= 4:
        np.testing.assert_array_equal(values, blocks)


def test_of_equal_entries_the_first_is_taken() -> None:
    element = Nested(2, 5)
    tables = element.fit(np.ones((1, 9), np.float32))
    np.testing.assert_array_equal(tables, np.ones((1, 32 + 16 + 8 + 4)))
    assert not element.encode(np.float32([[-5, 1, 5]]), tables=tables).any()


def test_the_highest_table_comes_first() -> None:
    """So the codes index the row of a block as they are."""
    element = load_element("n3..5")
    assert is_trained(element) and (element.bits, element.entries) == (5, 32 + 16 + 8)
    tables = element.fit(BLOCKS)
    codes = element.encode(BLOCKS, None, tables)
    np.testing.assert_array_equal(element.decode(codes, tables), np.take_along_axis(tables, codes.astype(int), axis=1))
    parts = fit_nested(BLOCKS, 3, 5)
    np.testing.assert_array_equal(tables, np.concatenate([parts[5], parts[4], parts[3]], axis=1))


@pytest.mark.parametrize("name", ["n8..3", "n3..3", "n1..4", "n3..9", "n0..8"])
def test_ranges_that_are_none(name: str) -> None:
    low, high = name[1:].split("..")
    with pytest.raises(BadInput, match=f"nested element '{name}': {low} to {high} bits") as caught:
        load_element(name)
    assert caught.value.hint


def test_what_is_not_there_is_refused() -> None:
    element = Nested(3, 5)
    tables = element.fit(BLOCKS)
    with pytest.raises(BadInput, match=r"n3..5 has no precision of 6 bits"):
        element.decode(np.zeros((6, 1), np.uint8), tables, bits=6)
    with pytest.raises(BadInput, match=r"n3..5 has tables of 56 values"):
        element.encode(BLOCKS, tables=tables[:, 1:])
    with pytest.raises(NotSupported, match="no stochastic rounding"):
        element.encode(BLOCKS, np.random.default_rng(0), tables)
    with pytest.raises(NotSupported, match="no table of its own"):
        element.encode(BLOCKS)
