"""Whole formats, scales and all, against what other programs quantize: gguf, torchao and bitsandbytes.

torchao and bitsandbytes need no GPU; `make` puts them into a folder of their own beside the environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.format import Format
from qcc.ir.quantize import quantize
from qcc.ir.quantized import Quantized
from tests.ir.foreign_oracles import MICROSCALING

SHAPE = (24, 512)
Real = NDArray[np.float32]
NVFP4 = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float32)


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


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[Any]]:
    """What the other programs gave, in a process of their own."""
    folder = tmp_path_factory.mktemp("oracles")
    tensor = quantize(NVFP4, Format.parse("e2m1, e4m3 per 16, f32 per tensor"))
    np.savez(folder / "in.npz", mx=weights(1), nvfp4=NVFP4, whole=tensor.parts["scale1"].reshape(()), blocks=weights(3))
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(Path(sys.prefix) / "oracles"), str(root)])
    command = [sys.executable, "-m", "tests.ir.foreign_oracles", str(folder / "in.npz"), str(folder / "out.npz")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "out.npz") as data:
        return {name: data[name] for name in data}


@pytest.mark.parametrize("element", MICROSCALING)
def test_microscaling_is_torchao_s(element: str, theirs: dict[str, NDArray[Any]]) -> None:
    """Scales by the floor rule of OCP MX 1.0, section 6.3; equal values bit by bit."""
    x = weights(1)
    ours = quantize(x, Format.parse(f"{element}, e8m0 per 32"))
    np.testing.assert_array_equal(ours.decode(), theirs[f"{element}.values"])
    filled = np.abs(x).reshape(SHAPE[0], -1, 32).max(axis=2) > 0
    np.testing.assert_array_equal(ours.scale.view(np.uint8)[filled], theirs[f"{element}.scale"][filled])


def test_nvfp4_is_torchao_s(theirs: dict[str, NDArray[Any]]) -> None:
    """The same scales; codes but for one in a thousand, since torchao multiplies by a rounded reciprocal."""
    ours = quantize(NVFP4, Format.parse("e2m1, e4m3 per 16, f32 per tensor"))
    assert float(ours.parts["scale1"].reshape(())) == pytest.approx(float(theirs["nvfp4.whole"]), rel=1e-6)
    np.testing.assert_array_equal(theirs["nvfp4.scale"], ours.scale.view(np.uint8))
    packed = theirs["nvfp4.packed"]
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(SHAPE)
    value = Quantized(ours.format, {**ours.parts, "codes": codes})
    assert differing(value.decode(), ours.decode()) < 1e-3
    np.testing.assert_allclose(value.decode(), theirs["nvfp4.values"], rtol=2e-7)


@pytest.mark.parametrize("element", ["nf4", "fp4"])
def test_four_bits_are_bitsandbytes(element: str, theirs: dict[str, NDArray[Any]]) -> None:
    """The same scales and decoded values; codes but for one in a thousand: theirs are cut by rounded thresholds."""
    raw = theirs[f"{element}.packed"]
    codes = np.stack([raw >> 4, raw & 15], axis=-1).reshape(SHAPE)
    fmt = Format.parse(f"{element}, f32 per 64")
    value = Quantized.plain(fmt, codes, theirs[f"{element}.scale"].reshape(SHAPE[0], -1))
    np.testing.assert_array_equal(value.decode(), theirs[f"{element}.values"])
    ours = quantize(weights(3), fmt)
    filled = value.scale > 0
    np.testing.assert_array_equal(ours.scale[filled], value.scale[filled])
    assert differing(ours.decode(), theirs[f"{element}.values"]) < 1e-3
