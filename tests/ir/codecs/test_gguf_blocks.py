"""GGUF blocks against the gguf package: values bit by bit, bytes that come back, boundary scales, clear refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcc.ir.codecs import gguf as codec
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.format import Format
from qcc.ir.quantized import Quantized

gguf = pytest.importorskip("gguf")

Array = NDArray[Any]
KINDS = codec.kinds()
HALVES = {
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
"""Where a block has its float16 numbers, where that is not at its beginning alone."""
TERNARY = {"TQ1_0": (52,), "TQ2_0": (64,)}


def blocks(kind: str, count: int, seed: int = 0, scale: float | None = None) -> Array:
    """Random blocks uint8 [count, bytes] whose float16 numbers are finite; ternary codes are legal."""
    found, rng = codec.kind_of(kind), np.random.default_rng(seed)
    if kind in TERNARY:
        codes = rng.integers(0, 3, (count, 256)).astype(np.uint8)
        numbers = rng.standard_normal((count, 1)).astype(np.float16)
        numbers = numbers if scale is None else np.full_like(numbers, scale)
        return codec.encode(kind, Quantized(found.format, {"codes": codes, "scale": numbers}))
    data = rng.integers(0, 256, (count, found.bytes), np.uint8)
    for at in HALVES.get(kind, (0,)):
        numbers = rng.standard_normal(count).astype(np.float16) if scale is None else np.full(count, scale, np.float16)
        data[:, at : at + 2] = numbers[:, None].view(np.uint8)
    return data


def assert_exact(kind: str, data: Array) -> None:
    shape = (len(data), codec.kind_of(kind).values)
    value = codec.decode(kind, data, shape, "w")
    expected = np.ascontiguousarray(gguf.dequantize(data, gguf.GGMLQuantizationType[kind]), np.float32)
    np.testing.assert_array_equal(value.decode().view(np.uint32), expected.view(np.uint32))
    np.testing.assert_array_equal(codec.encode(kind, value, "w"), data)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_have_the_sizes_of_ggml(kind: str) -> None:
    found = codec.kind_of(kind)
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]] == (found.values, found.bytes)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_values_are_those_of_ggml_and_bytes_come_back(kind: str, seed: int) -> None:
    assert_exact(kind, blocks(kind, 5, seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.0, -0.0, 6e-8, -6e-8, 65504.0, -65504.0, 1.0])
def test_boundary_scales(kind: str, scale: float) -> None:
    assert_exact(kind, blocks(kind, 3, scale=scale))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
def test_scales_that_are_no_numbers_are_refused_with_their_block(kind: str, scale: float) -> None:
    data = blocks(kind, 4)
    data[2] = data[2] if kind in TERNARY else blocks(kind, 1, scale=scale)[0]
    at = (*TERNARY.get(kind, HALVES.get(kind, (0,))),)[0]
    data[2, at : at + 2] = np.array([scale], np.float16).view(np.uint8)
    with pytest.raises(BadInput, match=r"blk\.0\.w: .* at block \(2, 0\) is -?(nan|inf)"):
        codec.decode(kind, data, (4, codec.kind_of(kind).values), "blk.0.w")


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q6_K", "TQ2_0", "IQ4_NL"])
def test_a_changed_bit_is_another_value(kind: str) -> None:
    data = blocks(kind, 1)
    value = codec.decode(kind, data, (1, codec.kind_of(kind).values))
    swapped = data.copy()
    swapped[0, 8] = (int(data[0, 8]) << 4 | int(data[0, 8]) >> 4) & 255
    assert not np.array_equal(swapped, data)
    changed = codec.decode(kind, swapped, (1, codec.kind_of(kind).values))
    assert not np.array_equal(value.codes, changed.codes)


def test_code_3_of_tq2_0_is_refused() -> None:
    data = blocks("TQ2_0", 2)
    data[1, 5] |= 3
    with pytest.raises(BadInput, match=r"w: code 3 at \(1, 5\) stands for no number in ternary"):
        codec.decode("TQ2_0", data, (2, 256), "w")


def test_every_byte_of_tq1_0_has_the_digits_that_ggml_reads() -> None:
    data = np.zeros((256, 54), np.uint8)
    data[:, :52] = np.arange(256)[:, None]
    data[:, 52:] = np.ones((256, 1), np.float16).view(np.uint8)
    value = codec.decode("TQ1_0", data, (256, 256))
    np.testing.assert_array_equal(value.decode(), gguf.dequantize(data, gguf.GGMLQuantizationType.TQ1_0))


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0"])
def test_what_gguf_quantizes_comes_back(kind: str) -> None:
    weights = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    data = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[kind])
    value = codec.decode(kind, data, weights.shape)
    np.testing.assert_array_equal(codec.encode(kind, value), data)


def test_tensors_of_several_axes() -> None:
    data = blocks("Q4_0", 24)
    value = codec.decode("Q4_0", data, (2, 3, 4 * 32))
    assert value.shape == (2, 3, 128) and value.scale.shape == (2, 3, 4)
    assert codec.encode("Q4_0", value).tobytes() == data.tobytes()


def test_bytes_that_do_not_fit_the_shape() -> None:
    with pytest.raises(BadInput, match=r"w: 18 bytes of Q4_0 do not hold a tensor of shape \[1, 64\]"):
        codec.decode("Q4_0", blocks("Q4_0", 1), (1, 64), "w")
    with pytest.raises(BadInput, match="33"):
        codec.decode("Q4_0", blocks("Q4_0", 1), (1, 33), "w")


def test_kinds_without_a_codec_are_named() -> None:
    with pytest.raises(NotSupported, match="IQ2_XXS"):
        codec.decode("IQ2_XXS", np.zeros(66, np.uint8), (1, 256))


def test_another_format_is_not_written() -> None:
    value = codec.decode("Q4_0", blocks("Q4_0", 1), (1, 32))
    with pytest.raises(NotSupported, match="w: Q8_0 holds `i8, f16 per 32`, not `i4, f16 per 32`"):
        codec.encode("Q8_0", value, "w")


def test_k_quants_are_true_formats() -> None:
    assert codec.kind_of("Q4_K").format == Format.parse("u4, u6 per 32, f16 per 256, minus u6 per 32 by f16 per 256")
    assert codec.kind_of("Q6_K").format == Format.parse("i6, i8 per 16, f16 per 256")
