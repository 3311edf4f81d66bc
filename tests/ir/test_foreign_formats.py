"""Whole formats, scales and all, against what other programs quantize: gguf, torchao and bitsandbytes.

torchao and bitsandbytes run where they are installed (`pip install --no-deps torchao bitsandbytes`); they need no GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.format import Format
from qcc.ir.quantize import quantize
from qcc.ir.quantized import Quantized

SHAPE = (24, 512)
Real = NDArray[np.float32]


def weights(seed: int = 0) -> Real:
    """Normal numbers whose rows have many magnitudes, a block of zeros and a power of two among them."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(SHAPE) * np.exp2(rng.integers(-12, 8, (SHAPE[0], 1)))).astype(np.float32)
    x[3, 64:128], x[5, 64:128], x[5, 70] = 0, 0.25, -4
    return x


def differing(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The share of elements that differ."""
    return float((found != expected).mean())


def test_mxfp4_is_gguf_s() -> None:
    import gguf

    kind, x = gguf.GGMLQuantizationType.MXFP4, weights()
    theirs = gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)
    np.testing.assert_array_equal(quantize(x, Format.parse("e2m1, e8m0 per 32")).decode(), theirs)
    assert differing(quantize(x, Format.parse("e2m1, e8m0 per 16")).decode(), theirs) > 0.01


def test_nvfp4_of_one_level_decodes_as_gguf_s() -> None:
    """Blocks of 64: four scales, then for each 16 values eight bytes, the first eight in the low nibbles."""
    import gguf

    value = quantize(weights(), Format.parse("e2m1, e4m3 per 16"))
    codes = value.codes.reshape(-1, 4, 2, 8)
    scale = np.minimum(value.scale.view(np.uint8), 0x7D).reshape(-1, 4)  # gguf takes the largest for no scale
    blocks = np.concatenate([scale, (codes[:, :, 0] | (codes[:, :, 1] << 4)).reshape(-1, 32)], axis=1)
    theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.NVFP4).reshape(SHAPE)
    ours = Quantized(value.format, {**value.parts, "scale": scale.reshape(value.scale.shape).view(value.scale.dtype)})
    np.testing.assert_array_equal(ours.decode(), theirs)


@pytest.mark.parametrize(
    ("element", "theirs"),
    [
        ("e4m3", "float8_e4m3fn"),
        ("e5m2", "float8_e5m2"),
        ("e2m3", "fp6_e2m3"),
        ("e3m2", "fp6_e3m2"),
        ("e2m1", "float4_e2m1fn_x2"),
    ],
)
def test_microscaling_is_torchao_s(element: str, theirs: str) -> None:
    """Scales by the floor rule of OCP MX 1.0, section 6.3; equal values bit by bit."""
    import torch
    from torchao.prototype.mx_formats import mx_tensor as mx

    x = weights(1)
    tensor = mx.MXTensor.to_mx(torch.from_numpy(x), getattr(torch, theirs, theirs), 32)
    ours = quantize(x, Format.parse(f"{element}, e8m0 per 32"))
    np.testing.assert_array_equal(ours.decode(), tensor.dequantize(torch.float32).numpy())
    scales = tensor.scale.view(torch.uint8).numpy()
    filled = np.abs(x).reshape(SHAPE[0], -1, 32).max(axis=2) > 0
    np.testing.assert_array_equal(ours.scale.view(np.uint8)[filled], scales[filled])


def test_nvfp4_is_torchao_s() -> None:
    """The same scales; codes but for one in a thousand, since torchao multiplies by a rounded reciprocal."""
    import torch
    from torchao.prototype.mx_formats import nvfp4_tensor as nvfp4

    x = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float32)
    ours = quantize(x, Format.parse("e2m1, e4m3 per 16, f32 per tensor"))
    whole = torch.from_numpy(ours.parts["scale1"].reshape(()))
    assert float(whole) == pytest.approx(
        float(nvfp4.per_tensor_amax_to_scale(torch.from_numpy(np.abs(x)).max())), rel=1e-6
    )
    scales, packed = nvfp4.nvfp4_quantize(torch.from_numpy(x), 16, whole)
    np.testing.assert_array_equal(scales.view(torch.uint8).numpy(), ours.scale.view(np.uint8))
    low, high = packed.numpy() & 15, packed.numpy() >> 4
    codes = np.stack([low, high], axis=-1).reshape(SHAPE)
    value = Quantized(ours.format, {**ours.parts, "codes": codes})
    assert differing(value.decode(), ours.decode()) < 1e-3
    theirs = nvfp4.NVFP4Tensor.to_nvfp4(torch.from_numpy(x), per_tensor_scale=whole).dequantize(torch.float32).numpy()
    np.testing.assert_allclose(value.decode(), theirs, rtol=2e-7)


@pytest.mark.parametrize("element", ["nf4", "fp4"])
def test_four_bits_are_bitsandbytes(element: str) -> None:
    """The same scales and decoded values; codes but for one in a thousand: theirs are cut by rounded thresholds."""
    import torch
    from bitsandbytes import functional

    x = weights(3)
    packed, state = functional.quantize_4bit(torch.from_numpy(x), blocksize=64, quant_type=element)
    raw = packed.numpy().reshape(-1)
    codes = np.stack([raw >> 4, raw & 15], axis=-1).reshape(SHAPE)
    fmt = Format.parse(f"{element}, f32 per 64")
    value = Quantized.plain(fmt, codes, state.absmax.numpy().reshape(SHAPE[0], -1))
    theirs = functional.dequantize_4bit(packed, state).numpy()
    np.testing.assert_array_equal(value.decode(), theirs)
    ours = quantize(x, fmt)
    filled = value.scale > 0
    np.testing.assert_array_equal(ours.scale[filled], value.scale[filled])
    assert differing(ours.decode(), theirs) < 1e-3
