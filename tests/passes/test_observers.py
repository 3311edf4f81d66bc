"""Observers: ranges that hold zero, agree with brute force on small data, and do not depend on how the data arrived."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from qcc.ir.errors import BadInput
from qcc.passes import observers
from qcc.passes.observers import percentile
from qcc.passes.observers.statistics import BINS, Histogram

ALL = ["entropy", "minmax", "mse", "percentile"]
CLIPPING = ["entropy", "mse", "percentile"]

batches = st.lists(
    arrays(np.float32, st.integers(0, 30), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    min_size=1,
    max_size=5,
)


def seen(*parts: NDArray[Any]) -> Histogram:
    histogram = Histogram("x")
    for part in parts:
        histogram.update(part)
    return histogram


def state(histogram: Histogram) -> tuple[object, ...]:
    h = histogram
    return h.count, h.zeros, h.minimum, h.maximum, h.exponent, h.first, h.counts.tolist()


def quantization_error(x: NDArray[Any], low: float, high: float, steps: int) -> float:
    """Mean squared error of rounding `x` to the grid with a zero point that `low` and `high` give."""
    scale = (high - low) / steps
    zero_point = round(-low / scale)
    codes = np.clip(np.rint(x / scale) + zero_point, 0, steps)
    return float(np.mean(((codes - zero_point) * scale - x) ** 2))


@pytest.fixture(scope="module")
def outlier() -> Histogram:
    x = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    x[123_456] = 1000.0
    return seen(x)


def test_the_folder_lists_its_observers() -> None:
    assert observers.names() == ALL


def test_an_unknown_observer_is_refused_with_the_known_ones() -> None:
    for name in ("statistics", "median", "../minmax"):
        with pytest.raises(BadInput, match="minmax, mse, percentile"):
            observers.load(name)


def test_bins_count_what_floor_says() -> None:
    x = np.random.default_rng(1).standard_normal((7, 11, 13))
    h = seen(x)
    index = np.floor(x.reshape(-1) / h.width).astype(int) - h.first
    assert h.counts.tolist() == np.bincount(index, minlength=BINS).tolist()
    assert (h.count, h.minimum, h.maximum) == (x.size, x.min(), x.max())


@pytest.mark.parametrize(
    "x", [[1.0, 9.9], [-3.0, 5.0], [-1.0, 1e-3], [-7.0, -6.5], [1e30], [1e-40], [1.7e308, -1.7e308]]
)
def test_the_window_is_the_finest_that_holds_the_range(x: list[float]) -> None:
    h = seen(np.array(x))
    low, high = min(*x, 0.0), max(*x, 0.0)

    def spanned(exponent: int) -> int:
        return math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) + 1

    assert spanned(h.exponent) <= BINS < spanned(h.exponent - 1)
    assert h.counts.sum() == len(x)


def test_zeros_are_counted_apart_whatever_their_sign() -> None:
    h = seen(np.array([0.0, -0.0, 1.0, -1.0]), np.zeros(3))
    assert (h.zeros, h.count, int(h.counts.sum())) == (5, 7, 2)


def test_magnitudes_fold_the_negative_bins() -> None:
    x = np.random.default_rng(2).standard_normal(5000) - 1.0
    h = seen(x)
    expected = np.bincount(np.floor(np.abs(x) / h.width).astype(int), minlength=BINS)
    assert h.magnitudes().counts.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_every_float_dtype_is_read(dtype: type) -> None:
    h = seen(np.array([[-1.5], [2.0]], dtype))
    assert (h.count, h.minimum, h.maximum) == (2, -1.5, 2.0)


@settings(max_examples=60)
@given(batches)
def test_order_and_batches_do_not_matter(parts: list[NDArray[Any]]) -> None:
    whole = np.concatenate(parts)
    assert state(seen(*parts)) == state(seen(whole)) == state(seen(whole[::-1])) == state(seen(*reversed(parts)))


@settings(max_examples=60)
@given(batches, batches)
def test_merging_equals_one_pass(left: list[NDArray[Any]], right: list[NDArray[Any]]) -> None:
    merged = seen(*left)
    merged.merge(seen(*right))
    assert state(merged) == state(seen(*left, *right))


def test_long_arrays_are_counted_in_full() -> None:
    x = np.linspace(-1, 3, 2_500_000, dtype=np.float32)
    h = seen(x)
    assert h.count == int(h.counts.sum()) + h.zeros == x.size


@pytest.mark.parametrize(("bad", "said"), [(np.nan, "1 NaN and 0 infinite"), (-np.inf, "0 NaN and 1 infinite")])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_values_that_are_not_finite_are_refused_whole(bad: float, said: str, dtype: type) -> None:
    h = seen(np.ones(3, np.float32))
    before = state(h)
    with pytest.raises(BadInput, match=f"tensor 'x': {said} among 4 values"):
        h.update(np.array([[1, 2], [bad, 100]], dtype))
    assert state(h) == before


@pytest.mark.parametrize("name", ALL)
class TestEveryObserver:
    @settings(max_examples=40)
    @given(parts=batches, bits=st.integers(2, 16), signed=st.booleans(), symmetric=st.booleans())
    def test_the_range_holds_zero_and_lies_within_the_values(
        self, name: str, parts: list[NDArray[Any]], bits: int, signed: bool, symmetric: bool
    ) -> None:
        x = np.concatenate([*parts, np.zeros(1, np.float32)]).astype(np.float64)
        if symmetric and not signed:
            x = np.abs(x)
        low, high = observers.load(name).range_of(seen(x), bits=bits, signed=signed, symmetric=symmetric)
        assert low <= 0 <= high
        assert type(low) is type(high) is float
        if symmetric and signed:
            assert low == -high
            assert high <= np.abs(x).max()
        else:
            assert x.min() <= low
            assert high <= x.max()

    def test_nothing_seen_is_refused(self, name: str) -> None:
        with pytest.raises(BadInput, match="'x': no value was seen"):
            observers.load(name).range_of(seen(np.zeros((0, 4))), bits=8, signed=True, symmetric=False)

    @pytest.mark.parametrize("bits", [1, 33])
    def test_bits_out_of_range_are_refused(self, name: str, bits: int) -> None:
        with pytest.raises(BadInput, match=f"{bits} bits"):
            observers.load(name).range_of(seen(np.ones(2)), bits=bits, signed=True, symmetric=True)

    def test_negative_values_do_not_fit_an_unsigned_symmetric_range(self, name: str) -> None:
        with pytest.raises(BadInput, match="-2 was seen"):
            observers.load(name).range_of(seen(np.array([-2.0, 5.0])), bits=8, signed=False, symmetric=True)

    @pytest.mark.parametrize("symmetric", [False, True])
    def test_all_zeros_give_an_empty_range(self, name: str, symmetric: bool) -> None:
        found = observers.load(name).range_of(seen(np.zeros(9)), bits=8, signed=True, symmetric=symmetric)
        assert found == (0.0, 0.0)

    @pytest.mark.parametrize("value", [5.0, -0.3, 1e-30, 3e38])
    def test_a_constant_is_never_clipped(self, name: str, value: float) -> None:
        h, observer = seen(np.full(100, value)), observers.load(name)
        assert observer.range_of(h, bits=8, signed=True, symmetric=False) == (min(value, 0.0), max(value, 0.0))
        assert observer.range_of(h, bits=8, signed=True, symmetric=True) == (-abs(value), abs(value))

    def test_one_sided_data_keep_their_side(self, name: str) -> None:
        x = np.maximum(np.random.default_rng(3).standard_normal(100_000), 0)
        low, high = observers.load(name).range_of(seen(x), bits=8, signed=False, symmetric=False)
        assert low == 0
        assert 3.5 < high <= x.max()
        assert observers.load(name).range_of(seen(-x), bits=8, signed=True, symmetric=False)[1] == 0


@pytest.mark.parametrize("name", CLIPPING)
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_single_outlier_is_clipped(name: str, symmetric: bool, outlier: Histogram) -> None:
    low, high = observers.load(name).range_of(outlier, bits=8, signed=True, symmetric=symmetric)
    assert 3.0 < high < 500
    assert low < -1.5


def test_minmax_keeps_the_outlier(outlier: Histogram) -> None:
    minmax = observers.load("minmax")
    assert minmax.range_of(outlier, bits=8, signed=True, symmetric=False) == (outlier.minimum, 1000.0)
    assert minmax.range_of(outlier, bits=8, signed=True, symmetric=True) == (-1000.0, 1000.0)


@given(arrays(np.float32, st.integers(1, 200), elements=st.floats(-1000, 1000, width=32)), st.floats(51, 100))
def test_percentiles_agree_with_sorting_to_one_bin(x: NDArray[Any], p: float) -> None:
    h = seen(x)
    low, high = percentile.range_of(h, bits=8, signed=True, symmetric=False, percentile=p)
    slack = h.width * (1 + 1e-9)

    def cut(values: NDArray[Any], fraction: float) -> list[float]:
        """The quantile by sorting, with a margin for a rank that rounds to the value beside it."""
        around = [max(fraction - 1e-9, 0), min(fraction + 1e-9, 1)]
        return [float(np.quantile(values, f, method="inverted_cdf")) for f in around]

    upper, lower, size = cut(x, p / 100), cut(x, 1 - p / 100), cut(np.abs(x), p / 100)
    assert max(upper[0], 0) - slack <= high <= max(upper[1], 0) + slack
    assert min(lower[0], 0) - slack <= low <= min(lower[1], 0) + slack
    bound = percentile.range_of(h, bits=8, signed=True, symmetric=True, percentile=p)[1]
    assert size[0] - slack <= bound <= size[1] + slack


def test_the_percentile_counts_zeros() -> None:
    x = np.concatenate([np.zeros(9_900), np.linspace(0.01, 1, 100)])
    assert percentile.range_of(seen(x), bits=8, signed=True, symmetric=False, percentile=98) == (0.0, 0.0)
    high = percentile.range_of(seen(x), bits=8, signed=True, symmetric=False, percentile=99.5)[1]
    assert high == pytest.approx(0.5, abs=2e-3)


@pytest.mark.parametrize("p", [50, 100.5, math.nan])
def test_a_percentile_out_of_range_is_refused(p: float) -> None:
    with pytest.raises(BadInput, match="percentile"):
        percentile.range_of(seen(np.ones(2)), bits=8, signed=True, symmetric=False, percentile=p)


def mixtures() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(5)
    normal = rng.standard_normal(4000)
    return {
        "normal": normal,
        "laplace": rng.laplace(size=4000),
        "skewed": np.exp(normal) - 1,
        "sparse": np.maximum(normal, 0) * (rng.random(4000) < 0.1),
        "outliers": np.concatenate([normal, [25.0, -18.0, 30.0]]),
        "few": np.concatenate([normal[:60], [9.001]]),
        "two humps": np.concatenate([normal * 0.1 + 4, normal * 0.2 - 1]),
    }


@pytest.mark.parametrize("kind", mixtures())
@pytest.mark.parametrize(("bits", "symmetric"), [(3, False), (4, True), (4, False), (8, True), (8, False)])
def test_mse_is_as_good_as_trying_every_range_on_the_data(kind: str, bits: int, symmetric: bool) -> None:
    x = mixtures()[kind]
    steps = 2**bits - (2 if symmetric else 1)
    chosen = observers.load("mse").range_of(seen(x), bits=bits, signed=True, symmetric=symmetric)
    bound = float(np.abs(x).max())
    ratios = np.linspace(0.02, 1, 50)
    if symmetric:
        ranges = [(-bound * r, bound * r) for r in ratios]
    else:
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        ranges = list(itertools.product(low * (ratios[::2] if low else np.zeros(1)), high * ratios))
    best = min(quantization_error(x, low, high, steps) for low, high in ranges)
    assert quantization_error(x, *chosen, steps) <= 1.06 * best


def test_mse_takes_exact_zeros_as_free() -> None:
    tail = np.abs(np.random.default_rng(6).standard_normal(2000))
    alone = observers.load("mse").range_of(seen(tail), bits=4, signed=False, symmetric=False)
    among_zeros = observers.load("mse").range_of(seen(tail, np.zeros(200_000)), bits=4, signed=False, symmetric=False)
    assert among_zeros == alone


def divergence_by_hand(counts: list[int], below: int, above: int, levels: int, zero: int) -> float:
    """KL of the clipped counts against their merged ones, bin by bin; `zero` is the bin that starts at zero."""
    kept = [float(count) for count in counts[zero - below : zero + above]]
    p = list(kept)
    p[0] += sum(counts[: zero - below])
    p[-1] += sum(counts[zero + above :])
    result = 0.0
    for level in range(levels):
        group = [i for i in range(len(p)) if i * levels // len(p) == level and p[i] > 0]
        for i in group:
            share = max(sum(kept[j] for j in group) / len(group), 1e-4)
            result += p[i] / sum(counts) * math.log(p[i] / share)
    return result


@pytest.mark.parametrize("kind", ["laplace", "skewed", "sparse", "outliers", "few"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_finds_the_least_divergence(kind: str, symmetric: bool) -> None:
    x = mixtures()[kind]
    h = seen(x)
    low, high = observers.load("entropy").range_of(h, bits=4, signed=True, symmetric=symmetric)
    values = np.abs(x[x != 0]) if symmetric else x[x != 0]
    index = np.floor(values / h.width).astype(int)
    zero, levels = max(-int(index.min()), 0), 8 if symmetric else 16
    counts = np.bincount(index + zero).tolist()
    below, above = zero, len(counts) - zero

    def divergence(threshold: int) -> float:
        return divergence_by_hand(counts, min(threshold, below), min(threshold, above), levels, zero)

    chosen = math.ceil(max(-low, high) / h.width)
    if not symmetric:
        assert low == min(max(h.minimum, -chosen * h.width), 0.0)
        assert high == min(h.maximum, chosen * h.width)
    tried = [t for t in range(1, max(below, above) + 1, 23) if min(t, below) + min(t, above) >= levels]
    assert divergence(chosen) <= min(map(divergence, tried)) * 1.05 + 1e-9


@pytest.mark.parametrize(("bits", "least", "most"), [(4, 2.5, 4.5), (8, 4.0, 5.0)])
def test_entropy_clips_a_normal_where_the_bits_ask(bits: int, least: float, most: float) -> None:
    h = seen(np.random.default_rng(7).standard_normal(500_000))
    for symmetric in (False, True):
        assert least < observers.load("entropy").range_of(h, bits=bits, signed=True, symmetric=symmetric)[1] < most


def test_entropy_does_not_clip_all_values_onto_one_bin() -> None:
    h = seen(np.random.default_rng(8).normal(5, 0.01, 20_000))
    assert observers.load("entropy").range_of(h, bits=4, signed=False, symmetric=False)[1] > 5


def test_entropy_clips_nothing_with_more_levels_than_bins() -> None:
    h = seen(np.random.default_rng(9).laplace(size=1000))
    found = observers.load("entropy").range_of(h, bits=16, signed=True, symmetric=False)
    assert found == (h.minimum, h.maximum)


@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_takes_less_than_50_ms(symmetric: bool) -> None:
    h, entropy = seen(np.random.default_rng(4).laplace(size=200_000)), observers.load("entropy")
    seconds: list[float] = []
    for _ in range(5):
        start = time.process_time()
        entropy.range_of(h, bits=8, signed=True, symmetric=symmetric)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05
