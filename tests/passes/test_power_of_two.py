"""Powers of two as scales: the search finds the least squared error, for weights and for activations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qcc.ir.errors import BadInput
from qcc.ir.format import Format
from qcc.passes.algorithms import gptq, rtn
from qcc.passes.observers.statistics import Histogram
from qcc.passes.power_of_two import exponent_of, least_that_holds, scale_of
from tests.networks import Array, normal

I8 = Format.parse("i8, e8m0 per tensor")
WEIGHTS = arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=st.floats(-100, 100, width=32))


def error(x: Array, scale: float, fmt: Format = I8) -> float:
    """Squared error of `x` in a symmetric format, in float64."""
    codes = np.clip(np.rint(x.astype(np.float64) / scale), fmt.family.low, fmt.family.high)
    return float(((codes * scale - x) ** 2).sum())


def best_of_all(x: Array, fmt: Format = I8) -> float:
    """The least error over every exponent that could serve."""
    return min(error(x, math.ldexp(1.0, e), fmt) for e in range(-40, 12))


def statistics(x: Array) -> Histogram:
    made = Histogram("x")
    made.update(x)
    return made


@given(WEIGHTS, st.sampled_from(["i8", "i4", "i3"]))
def test_no_power_of_two_rounds_a_weight_better(weight: Array, element: str) -> None:
    weight[np.abs(weight) < 1e-3] = 0
    fmt = Format.parse(f"{element}, e8m0 per tensor")
    found = rtn.fit(weight, fmt)
    assert fmt.holds_scale(found.scale)
    assert error(weight, float(found.scale.reshape(())), fmt) <= best_of_all(weight, fmt) * (1 + 1e-4) + 1e-12


@given(WEIGHTS)
def test_blocks_have_powers_of_two_of_their_own(weight: Array) -> None:
    fmt = Format.parse("i8, e8m0 per *")
    found = rtn.fit(weight, fmt)
    assert found.scale.shape == (len(weight), 1)
    assert fmt.holds_scale(found.scale)


def test_one_outlier_is_clipped_rather_than_rounding_the_range_up() -> None:
    weight = np.append(np.linspace(-1, 1, 4001), 1.02).astype(np.float32).reshape(1, -1)
    scale = float(rtn.fit(weight, I8).scale.reshape(()))
    assert least_that_holds(-1, 1.02, I8) == 2.0**-6, "rounding up covers the outlier"
    assert scale == 2.0**-7
    assert error(weight, scale) < error(weight, 2 * scale)


def test_asymmetric_formats_take_powers_of_two_as_well() -> None:
    fmt = Format.parse("u4, e8m0 per 16, zero u4")
    weight = normal(8, 32, seed=3) + 1
    found = rtn.fit(weight, fmt)
    assert fmt.holds_scale(found.scale)
    decoded = fmt.decode(found.codes, found.scale, found.zero)
    assert float(np.mean((decoded - weight) ** 2)) < 0.05


def test_gptq_keeps_the_powers_of_two() -> None:
    x = normal(64, 24, seed=1)
    assert I8.holds_scale(gptq.fit(normal(6, 24), I8, (x.T @ x).astype(np.float64)).scale)


@given(
    arrays(np.float32, st.integers(64, 400), elements=st.floats(-8, 8, width=32)),
    st.sampled_from([0.25, 1.0, 30.0]),
)
@example(x=np.array([4.125, *[3.890625] * 399], np.float32), factor=1.0)
def test_no_power_of_two_rounds_an_activation_better(x: Array, factor: float) -> None:
    """Up to what a histogram cannot tell apart. The search takes values as spread over their bins: at most a root of a
    third of the width, in the quadratic mean, from where they are. The distance of a value to its rounded one grows by
    no more than the value moves, so the norm of the errors is seen within `spread`, for the found scale and the best.
    In the pinned case two scales are off by 1/64 at almost all values, one more at the right of the bin, one less.
    """
    x = x * np.float32(factor)
    found = scale_of([statistics(x)], I8)
    assert I8.holds_scale(np.array(found))
    spread = statistics(x).width * math.sqrt(np.count_nonzero(x) / 3)
    assert math.sqrt(error(x, found)) <= math.sqrt(best_of_all(x)) + 2.001 * spread


def test_gaussian_activations_get_the_scale_of_least_error() -> None:
    for deviation in (0.3, 0.5, 0.7, 0.9, 1.1):
        x = normal(20000, seed=7) * np.float32(deviation)
        assert error(x, scale_of([statistics(x)], I8)) <= 1.01 * best_of_all(x)


def test_tensors_that_share_a_scale_are_judged_together() -> None:
    large, small = normal(5000) * np.float32(8), normal(5000, seed=1)
    apart = scale_of([statistics(large)], I8), scale_of([statistics(small)], I8)
    assert apart[1] < scale_of([statistics(large), statistics(small)], I8) <= apart[0]


@pytest.mark.parametrize("observer", ["mse", "minmax", "percentile", "entropy"])
def test_every_observer_gives_a_power_of_two(observer: str) -> None:
    x = normal(5000)
    scale = scale_of([statistics(x)], I8, observer)
    assert I8.holds_scale(np.array(scale))
    if observer == "minmax":
        assert scale == least_that_holds(float(x.min()), float(x.max()), I8), "nothing is clipped"


def test_a_tensor_of_zeros_takes_any_scale_and_one_never_seen_is_refused() -> None:
    assert scale_of([statistics(np.zeros(9, np.float32))], I8) == 1.0
    with pytest.raises(BadInput, match="no value was seen"):
        scale_of([Histogram("x")], I8)


@given(st.integers(-100, 100), st.sampled_from([1.0, 1.5]))
def test_exponents(exponent: int, mantissa: float) -> None:
    assert exponent_of(math.ldexp(1.0, exponent)) == exponent
    least = least_that_holds(0.0, 127 * math.ldexp(mantissa, exponent), I8)
    assert least == math.ldexp(1.0, exponent + (mantissa > 1))
