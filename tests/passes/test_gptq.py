"""GPTQ: it lowers the error of the layer's output below rounding to nearest, and keeps to the format."""

from __future__ import annotations

import numpy as np
import pytest

from qcc.ir.format import Format
from qcc.passes import algorithms

FORMATS = ["i4, f32 per 32", "u4, f32 per 16, zero u4", "i8, f32 per *", "u2, f32 per 32, zero u2"]


def layer(seed: int = 0, n: int = 48, k: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A weight [N, K] and inputs [512, K] whose channels are correlated and of different sizes."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(k, k)) * (rng.random(k) < 0.3)
    x = rng.normal(size=(512, k)) @ (mixing + np.eye(k)) * np.exp(rng.normal(size=k))
    return rng.normal(size=(n, k)).astype(np.float32), x.astype(np.float32)


def output_error(weight: np.ndarray, x: np.ndarray, name: str, fmt: Format) -> float:
    hessian = x.T.astype(np.float64) @ x / len(x)
    fitted = algorithms.load(name)(weight, fmt, hessian)
    decoded = fmt.decode(fitted.codes, fitted.scale, fitted.zero)
    return float(np.square(x @ (weight - decoded).T).sum())


@pytest.mark.parametrize("text", FORMATS)
def test_output_error_is_below_rounding_to_nearest(text: str) -> None:
    weight, x = layer()
    fmt = Format.parse(text)
    assert output_error(weight, x, "gptq", fmt) < 0.8 * output_error(weight, x, "rtn", fmt)


@pytest.mark.parametrize("text", FORMATS)
def test_codes_stay_in_range_and_in_place(text: str) -> None:
    weight, x = layer(seed=1, n=7, k=40)
    fmt = Format.parse(text)
    fitted = algorithms.load("gptq")(weight, fmt, x.T.astype(np.float64) @ x)
    assert fitted.codes.shape == weight.shape
    assert fitted.scale.shape == fmt.scale_shape(weight.shape)
    assert fmt.family.low <= fitted.codes.min() and fitted.codes.max() <= fmt.family.high


def test_uncorrelated_inputs_give_rounding_to_nearest() -> None:
    weight, _ = layer(seed=2)
    fmt = Format.parse("i4, f32 per 32")
    plain, compensated = (algorithms.load(n)(weight, fmt, np.eye(96)) for n in ("rtn", "gptq"))
    assert np.array_equal(plain.codes, compensated.codes)


def test_dead_channels_and_missing_statistics() -> None:
    weight, x = layer(seed=3)
    x[:, ::5] = 0
    fmt = Format.parse("i4, f32 per 32")
    fitted = algorithms.load("gptq")(weight, fmt, x.T.astype(np.float64) @ x)
    assert np.isfinite(fmt.decode(fitted.codes, fitted.scale)).all()
    without = algorithms.load("gptq")(weight, fmt)
    assert np.array_equal(without.codes, algorithms.load("rtn")(weight, fmt).codes)
