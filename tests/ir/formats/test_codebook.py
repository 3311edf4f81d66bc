"""Codebooks: nearest codes in tables of any order, and k-means against scikit-learn, brute force and its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.formats import is_trained, load_element
from qcc.ir.formats.codebook import Codebook, fit_codebook


def squared_error(blocks: np.ndarray, tables: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Per block, every value at its nearest entry, in float64."""
    off = np.abs(blocks.astype(np.float64)[:, :, None] - tables.astype(np.float64)[:, None, :]).min(axis=2) ** 2
    return (off if weights is None else off * weights).sum(axis=1)


@given(
    st.integers(4, 20),
    st.integers(1, 4),
    st.integers(0, 30),
    st.sampled_from([np.float32(0.25), np.float32(0.1)]),
    st.integers(0, 2**32 - 1),
)
def test_codes_are_the_nearest_in_tables_of_any_order(
    entries: int, blocks: int, n: int, step: np.float32, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tables = (rng.integers(-6, 7, (blocks, entries)) * step).astype(np.float32)  # with equal entries, and many ties
    x = (rng.integers(-30, 31, (blocks, n)) * step / 4).astype(np.float32)
    element = Codebook(entries)
    codes = element.encode(x, tables=tables)
    assert codes.dtype == np.uint8 and codes.shape == x.shape
    distance = np.abs(x.astype(np.float64)[:, :, None] - tables.astype(np.float64)[:, None, :])
    chosen = np.take_along_axis(distance, codes[:, :, None].astype(int), axis=2)[:, :, 0]
    np.testing.assert_array_equal(chosen, distance.min(axis=2))
    values = element.decode(codes, tables)
    np.testing.assert_array_equal(values, np.take_along_axis(tables, codes.astype(int), axis=1))
    np.testing.assert_array_equal(element.encode(values, tables=tables), codes)
    for b, i in np.ndindex(codes.shape):  # of equal entries the first
        assert codes[b, i] == np.flatnonzero(tables[b] == values[b, i])[0]


def test_ties_go_to_the_even_code() -> None:
    tables = np.float32([[0, 1, 2, 3], [3, 1, 2, 0]])
    x = np.float32([[0.5, 1.5, 2.5], [0.5, 1.5, 2.5]])
    codes = Codebook(4).encode(x, tables=tables)
    np.testing.assert_array_equal(codes, [[0, 2, 2], [3, 2, 2]])  # 3 or 1: the nearer zero; 2 or 0: again


def test_a_middle_that_float64_cannot_hold_is_no_tie() -> None:
    """2^59 is nearer to 2^-60 than to 2^60, by too little for the rounded mean of both to show."""
    tables = np.float32([[2.0**60, 2.0**-60, -1, -2], [-(2.0**60), -(2.0**-60), 1, 2]])
    codes = Codebook(4).encode(np.float32([[2.0**59], [-(2.0**59)]]), tables=tables)
    np.testing.assert_array_equal(codes, [[1], [1]])


def test_stochastic_rounding_has_the_value_as_its_mean() -> None:
    rng = np.random.default_rng(0)
    tables = np.sort(rng.normal(0, 1, (3, 8)), axis=1).astype(np.float32)
    x = rng.uniform(-0.5, 0.5, (3, 1)).astype(np.float32)
    many = np.repeat(x, 20000, axis=1)
    values = Codebook(8).decode(Codebook(8).encode(many, rng, tables), tables)
    assert all(len(np.unique(row)) <= 2 for row in values)
    np.testing.assert_allclose(values.mean(axis=1, dtype=np.float64), x[:, 0], atol=0.03)
    ends = np.float32([[-9, 9, -np.inf, np.inf]] * 3)
    found = Codebook(8).decode(Codebook(8).encode(ends, rng, tables), tables)
    np.testing.assert_array_equal(found, tables[:, [0, 7, 0, 7]])


@pytest.mark.parametrize("weighted", [False, True])
def test_fit_is_where_k_means_stands_still(weighted: bool) -> None:
    """Every entry is the mean of the values that are nearest to it."""
    rng = np.random.default_rng(1)
    blocks = rng.standard_t(4, (20, 300)).astype(np.float32)
    weights = rng.uniform(0.1, 9, blocks.shape) if weighted else None
    tables = fit_codebook(blocks, 16, weights)
    assert tables.dtype == np.float32 and (np.diff(tables, axis=1) > 0).all()
    codes = Codebook(16).encode(blocks, tables=tables)
    for b in range(20):
        for code in range(16):
            here = codes[b] == code
            mean = np.average(blocks[b, here], weights=None if weights is None else weights[b, here])
            assert tables[b, code] == pytest.approx(mean, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("entries", [4, 8, 16, 32])
def test_fit_is_as_good_as_scikit_learn(entries: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    blocks = np.random.default_rng(2).standard_t(5, (4, 500)).astype(np.float32)
    ours = squared_error(blocks, fit_codebook(blocks, entries))
    for block, error in zip(blocks, ours, strict=True):
        found = cluster.KMeans(entries, n_init=3, random_state=0, tol=0).fit(block[:, None].astype(np.float64))
        assert error <= 1.1 * found.inertia_


def test_fit_against_the_best_of_all_partitions() -> None:
    """Clusters of one dimension are runs, so all can be tried: k-means is near the best, and often it."""
    blocks = np.random.default_rng(3).normal(0, 1, (30, 14)).astype(np.float32)
    ours = squared_error(blocks, fit_codebook(blocks, 4))
    best = np.full(30, np.inf)
    for cuts in itertools.combinations(range(1, 14), 3):
        parts = np.split(np.sort(blocks.astype(np.float64), axis=1), cuts, axis=1)
        best = np.minimum(best, sum(((p - p.mean(axis=1, keepdims=True)) ** 2).sum(axis=1) for p in parts))
    assert (ours >= best * (1 - 1e-6)).all()
    assert (ours <= best * (1 + 1e-6)).mean() >= 0.3
    assert ours.sum() <= 1.35 * best.sum()


@given(st.integers(4, 12), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_few_distinct_values_are_kept_exactly(entries: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pool = np.float32(rng.normal(0, 10.0 ** rng.integers(-3, 4), entries))
    blocks = rng.choice(pool, (3, n))
    tables = fit_codebook(blocks, entries)
    assert tables.shape == (3, entries) and (np.diff(tables, axis=1) >= 0).all()
    np.testing.assert_array_equal(
        Codebook(entries).decode(Codebook(entries).encode(blocks, tables=tables), tables), blocks
    )


def test_whole_weights_are_repetitions() -> None:
    rng = np.random.default_rng(4)
    blocks, counts = rng.normal(0, 1, (40, 60)).astype(np.float32), rng.integers(1, 9, (40, 60))
    weights = counts.astype(np.float64)
    weighted = squared_error(blocks, fit_codebook(blocks, 8, weights), weights).sum()
    repeated = sum(
        squared_error(many, fit_codebook(many, 8)).sum()
        for many in (np.repeat(block, count)[None] for block, count in zip(blocks, counts, strict=True))
    )
    assert weighted == pytest.approx(repeated, rel=0.03)
    assert weighted < 0.95 * squared_error(blocks, fit_codebook(blocks, 8), weights).sum()


def test_values_without_weight_do_not_count() -> None:
    block = np.float32([[0, 1, 2, 3, 100, 200, 300]])
    weights = np.float64([[1, 1, 1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(fit_codebook(block, 4, weights * 0), fit_codebook(block, 4))
    near = fit_codebook(block, 5, weights)
    np.testing.assert_allclose(near[0, :4], [0, 1, 2, 3], atol=1e-6)


def test_blocks_do_not_depend_on_their_neighbours() -> None:
    blocks = np.random.default_rng(5).normal(0, 1, (7, 100)).astype(np.float32)
    tables = fit_codebook(blocks, 16)
    for b in range(7):
        np.testing.assert_array_equal(fit_codebook(blocks[b : b + 1], 16)[0], tables[b])
    assert fit_codebook(blocks[:0], 16).shape == (0, 16)
    np.testing.assert_array_equal(load_element("k16").fit(blocks), tables)  # pyright: ignore[reportAttributeAccessIssue]


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_tables_lie_among_the_values(blocks: np.ndarray) -> None:
    tables = fit_codebook(blocks, 4)
    assert (tables >= blocks.min(axis=1, keepdims=True)).all() and (tables <= blocks.max(axis=1, keepdims=True)).all()


@pytest.mark.parametrize(("name", "bits"), [("k4", 2), ("k5", 3), ("k16", 4), ("k17", 5), ("k256", 8)])
def test_bits_hold_the_entries(name: str, bits: int) -> None:
    element = load_element(name)
    assert (element.bits, element.signed, element.trained) == (bits, False, True)
    assert is_trained(element) and element.entries == int(name[1:])
    for what in ("table", "low", "high", "half_gap"):
        with pytest.raises(NotSupported, match=f"element {name} has no .* of its own"):
            getattr(element, what)
    for step in (element.encode, element.decode):
        with pytest.raises(NotSupported, match="has no table of its own"):
            step(np.zeros((1, 1), np.uint8))


@pytest.mark.parametrize("name", ["k3", "k0", "k1", "k257", "k999999"])
def test_sizes_that_are_no_codebook(name: str) -> None:
    with pytest.raises(BadInput, match=f"codebook {name!r} has {name[1:]} entries") as caught:
        load_element(name)
    assert caught.value.hint == "k4 to k256"


def test_what_cannot_be_fitted_or_coded() -> None:
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(BadInput, match="blocks without values"):
        fit_codebook(x[:, :0], 4)
    x[1, 2] = np.nan
    with pytest.raises(BadInput, match="block 1 holds NaN"):
        fit_codebook(x, 4)
    with pytest.raises(BadInput, match="no code for NaN"):
        Codebook(4).encode(x, tables=np.zeros((2, 4), np.float32))
    x[1, 2] = 0
    for weights in (np.full((2, 3), -1.0), np.full((2, 3), np.nan), np.ones((3, 2))):
        with pytest.raises(BadInput, match=r"must be finite, >= 0"):
            fit_codebook(x, 4, weights)
    with pytest.raises(BadInput, match=r"k4 of 2 blocks has tables of shape \[1, 4\]"):
        Codebook(4).encode(x, tables=np.zeros((1, 4), np.float32))
    with pytest.raises(BadInput, match="the table of block 1 is not finite"):
        Codebook(4).encode(x, tables=np.float32([[0, 1, 2, 3], [0, 1, np.inf, 3]]))
    with pytest.raises(BadInput, match="has codes below 5, and the data holds 5"):
        Codebook(5).decode(np.uint8([[5]]), np.zeros((1, 5), np.float32))
