"""Round to nearest: codes are the nearest ones, scales are the best of the searched ones, odd data does no harm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from qcc.ir.errors import BadInput
from qcc.ir.format import Format
from qcc.passes import algorithms
from qcc.passes.algorithms.rtn import fit
from tests.networks import normal

FORMATS = [
    "i8, f32 per *",
    "i4, f32 per 32",
    "i4, f32 per 5",
    "u4, f32 per 16, zero u4",
    "u2, f32 per 32, zero u2",
    "i2, f32 per *",
    "i3, f32 per 8",
    "u8, f32 per tensor, zero u8",
    "i8, f32 per *x1",
    "i1, f32 per 4",
]
each_format = pytest.mark.parametrize("fmt", [Format.parse(text) for text in FORMATS], ids=FORMATS)


def decoded(weight: NDArray[Any], fmt: Format) -> NDArray[np.float64]:
    found = fit(weight, fmt)
    return fmt.decode(found.codes, found.scale, found.zero).astype(np.float64)


def squared_error(weight: NDArray[Any], fmt: Format) -> float:
    return float(((decoded(weight, fmt) - weight) ** 2).sum())


def plain(block: NDArray[Any], fmt: Format, ratio: float = 1.0) -> tuple[NDArray[np.float64], float]:
    """One block decoded with the range `ratio` * (min, max), in float64, and the step used."""
    low, high = min(0.0, float(block.min())) * ratio, max(0.0, float(block.max())) * ratio
    least, most = fmt.family.low, fmt.family.high
    if fmt.zero is None:
        step = max(low / least if least else 0.0, high / most if most else 0.0)
        zero = 0
    else:
        step = (high - low) / (most - least)
        zero = min(max(round(least - low / step), least), most) if step else 0
    step = step or 1.0
    codes = np.clip(np.rint(block.astype(np.float64) / step) + zero, least, most)
    return (codes - zero) * step, step


def blocks(weight: NDArray[Any], fmt: Format) -> list[NDArray[Any]]:
    """The blocks of a matrix, by plain slicing."""
    rows, columns = fmt.block_of(weight.shape)
    return [
        weight[r : r + rows, c : c + columns]
        for r in range(0, weight.shape[0], rows)
        for c in range(0, weight.shape[1], columns)
    ]


@each_format
@pytest.mark.parametrize("shape", [(7, 13), (1, 1), (32, 64), (31, 37), (2, 131)])
def test_parts_have_the_shapes_and_dtypes_of_the_format(fmt: Format, shape: tuple[int, int]) -> None:
    found = fit(normal(*shape), fmt)
    assert found.codes.shape == shape
    assert found.codes.dtype == (np.int8 if fmt.family.signed else np.uint8)
    assert found.scale.shape == fmt.scale_shape(shape)
    assert found.scale.dtype == np.float32
    assert (found.zero is None) == (fmt.zero is None)
    if found.zero is not None:
        assert found.zero.shape == fmt.scale_shape(shape)
        assert found.zero.dtype == np.uint8


@each_format
def test_each_code_is_the_nearest_one_under_its_scale(fmt: Format) -> None:
    weight = normal(31, 37)
    found = fit(weight, fmt)
    assert np.array_equal(found.codes, fmt.encode(weight, found.scale, found.zero))


@pytest.mark.parametrize("text", ["i8, f32 per *", "i8, f32 per 32", "u8, f32 per 16, zero u8"])
def test_eight_bits_clip_nothing_and_err_by_half_a_step(text: str) -> None:
    fmt, weight = Format.parse(text), normal(16, 100)
    found = fit(weight, fmt)
    step = fmt.spread(found.scale, weight.shape)
    error = np.abs(fmt.decode(found.codes, found.scale, found.zero) - weight)
    assert (error <= step * (0.5 if fmt.zero is None else 1.0) * (1 + 1e-5)).all()


@each_format
@pytest.mark.parametrize("kind", ["normal", "outlier", "one-sided", "negative", "tiny", "huge"])
def test_the_search_is_never_worse_than_the_plain_range(fmt: Format, kind: str) -> None:
    weight = normal(13, 40).astype(np.float64)
    match kind:
        case "outlier":
            weight[:, 3] *= 30
        case "one-sided":
            weight = np.abs(weight) + 3
        case "negative":
            weight = -np.abs(weight)
        case "tiny":
            weight *= 1e-12
        case "huge":
            weight *= 1e15
        case _:
            pass
    weight = weight.astype(np.float32)
    for block in blocks(weight, fmt):
        baseline = float(((plain(block, fmt)[0] - block) ** 2).sum())
        alone = Format.parse(f"{fmt.element}, f32 per tensor" + (f", zero {fmt.zero_dtype}" if fmt.zero else ""))
        assert squared_error(block, alone) <= baseline * (1 + 1e-4)


@pytest.mark.parametrize(
    "text", ["i4, f32 per 32", "u4, f32 per 32, zero u4", "i2, f32 per 32", "u2, f32 per 32, zero u2"]
)
def test_clipping_pays_where_there_are_outliers(text: str) -> None:
    fmt, weight = Format.parse(text), normal(64, 32)
    whole = sum(float(((plain(b, fmt)[0] - b) ** 2).sum()) for b in blocks(weight, fmt))
    assert squared_error(weight, fmt) < 0.95 * whole


@each_format
def test_the_chosen_scale_is_the_best_of_the_grid_by_brute_force(fmt: Format) -> None:
    weight = normal(5, 32, seed=9)
    ratios = np.linspace(1.0, 0.55, 19) if fmt.bits < 8 else [1.0]
    best = 0.0
    for block in blocks(weight, fmt):
        best += min(float(((plain(block, fmt, ratio)[0] - block) ** 2).sum()) for ratio in ratios)
    assert squared_error(weight, fmt) == pytest.approx(best, rel=1e-4)


@each_format
def test_blocks_of_zeros_decode_to_zeros(fmt: Format) -> None:
    weight = normal(6, 64)
    weight[2] = 0
    weight[:, 32:] = 0
    found = fit(weight, fmt)
    assert np.isfinite(found.scale).all()
    assert (found.scale > 0).all()
    restored = fmt.decode(found.codes, found.scale, found.zero)
    assert (restored[2] == 0).all()
    assert (restored[:, 32:] == 0).all()
    assert np.isfinite(decoded(np.zeros((3, 8), np.float32), fmt)).all()


@each_format
@pytest.mark.parametrize("magnitude", [1e38, 1e-38, 1e-44])
def test_the_ends_of_the_float_range_stay_finite(fmt: Format, magnitude: float) -> None:
    weight = (normal(4, 32).astype(np.float64).clip(-1, 1) * magnitude).astype(np.float32)
    found = fit(weight, fmt)
    assert np.isfinite(found.scale).all()
    assert (found.scale >= np.finfo(np.float32).tiny).all()
    with np.errstate(over="ignore"):
        restored = fmt.decode(found.codes, found.scale, found.zero)
    assert np.isfinite(restored).all()
    assert np.abs(restored.astype(np.float64) - weight).max() <= 1.2 * magnitude


def test_one_sided_data_uses_all_codes_of_an_asymmetric_format() -> None:
    fmt = Format.parse("u4, f32 per *, zero u4")
    for sign, zero in ((1, 0), (-1, 15)):
        found = fit(sign * np.linspace(0, 4, 64, dtype=np.float32)[None], fmt)
        assert found.zero is not None
        assert found.zero.item() == zero
        assert len(np.unique(found.codes)) >= 15
    far = fit(np.linspace(10, 11, 64, dtype=np.float32)[None], fmt)
    restored = fmt.decode(far.codes, far.scale, far.zero)
    assert np.abs(restored - np.linspace(10, 11, 64)).max() < 0.8, "zero stays inside the range: 11 / 15 a step"


def test_a_long_tensor_is_fitted_in_pieces_as_if_row_by_row() -> None:
    fmt = Format.parse("u4, f32 per 16, zero u4")
    weight = normal(3000, 32)
    whole = fit(weight, fmt)
    for row in (0, 2047, 2048, 2999):
        alone = fit(weight[row : row + 1], fmt)
        assert np.array_equal(alone.codes[0], whole.codes[row])
        assert np.array_equal(alone.scale[0], whole.scale[row])


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (7, 1, 5), (2, 6, 1, 1)])
def test_convolution_weights_have_a_scale_an_output_channel(shape: tuple[int, ...]) -> None:
    fmt = Format.parse("i8, f32 per " + "x".join("*" * (len(shape) - 1)))
    weight = normal(*shape) * np.arange(1, shape[0] + 1, dtype=np.float32).reshape(-1, *(1,) * (len(shape) - 1))
    found = fit(weight, fmt)
    for channel in range(shape[0]):
        expected = max(weight[channel].max() / 127, -weight[channel].min() / 128)
        assert found.scale[channel].item() == pytest.approx(expected, rel=1e-6)


def test_empty_weights_have_no_codes() -> None:
    for shape in ((0, 8), (8, 0)):
        found = fit(np.zeros(shape, np.float32), Format.parse("i8, f32 per *"))
        assert found.codes.shape == shape


@given(
    arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=st.floats(-1e6, 1e6, width=32)),
    st.sampled_from(FORMATS),
)
def test_any_weight_survives(weight: NDArray[np.float32], text: str) -> None:
    fmt = Format.parse(text)
    found = fit(weight, fmt)
    assert np.isfinite(found.scale).all()
    assert (found.scale > 0).all()
    assert found.codes.min() >= fmt.family.low
    assert found.codes.max() <= fmt.family.high
    assert np.array_equal(found.codes, fmt.encode(weight, found.scale, found.zero))
    assert np.abs(decoded(weight, fmt)).max() <= 2.001 * max(float(np.abs(weight).max()), float(found.scale.max()))


def test_the_folder_lists_its_algorithms() -> None:
    assert "rtn" in algorithms.names()
    assert algorithms.load("rtn") is fit
    for name in ("gptqq", "../rtn", "__init__", ""):
        with pytest.raises(BadInput, match="no algorithm is called"):
            algorithms.load(name)
