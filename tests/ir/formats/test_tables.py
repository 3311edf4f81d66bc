"""Elements that are one table somebody published: against how it was made, and against gguf."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import norm

from qcc.ir.formats import load_element
from qcc.ir.formats._table import FixedTable
from qcc.ir.formats.normal_float import parse


def quantiles_of_the_normal_distribution() -> np.ndarray:
    """QLoRA's construction: 8 positive and 7 negative quantiles, evenly spaced in probability, the largest made 1."""
    offset = 0.9677083  # the mean of 1 - 1/30 and 1 - 1/32, to seven digits
    positive = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    values = np.sort([*positive, 0.0, *negative])
    return values / values.max()


def check_nf4(element: FixedTable) -> None:
    np.testing.assert_allclose(element.table, quantiles_of_the_normal_distribution(), rtol=0, atol=2e-7)


def test_nf4_is_made_of_quantiles() -> None:
    element = parse("nf4")
    assert element is not None
    check_nf4(element)
    swapped = list(element.entries)
    swapped[3], swapped[4] = swapped[4], swapped[3]
    with pytest.raises(AssertionError):
        check_nf4(dataclasses.replace(element, entries=tuple(swapped)))


def test_fp4_is_a_float_of_its_own() -> None:
    """Bits s e e m: 2^(4 - e) * (1 + m / 2), or m / 16 where e is 0, over the largest, 12."""
    for code in range(16):
        exponent, mantissa = (code >> 1) & 3, code & 1
        value = 2.0 ** (4 - exponent) * (1 + mantissa / 2) if exponent else mantissa / 16
        expected = np.float32((-1 if code & 8 else 1) * value / 12)
        assert load_element("fp4").table[code] == expected
    assert load_element("fp4").encode(np.float32([0.0, -0.0, -1e-9])).tolist() == [0, 0, 0]


def test_iq4nl_is_gguf_s() -> None:
    gguf = pytest.importorskip("gguf")
    element = load_element("iq4nl")
    np.testing.assert_array_equal(element.table, np.float32(gguf.quants.IQ4_NL.kvalues))
    codes = np.random.default_rng(0).integers(0, 16, 32).astype(np.uint8)
    block = np.concatenate([np.float16([1.0]).view(np.uint8), codes[:16] | (codes[16:] << 4)])
    decoded = gguf.quants.dequantize(block, gguf.GGMLQuantizationType.IQ4_NL)
    np.testing.assert_array_equal(element.decode(codes), decoded.reshape(-1))


def test_ternary_rounds_as_gguf_does() -> None:
    gguf = pytest.importorskip("gguf")
    element = load_element("ternary")
    x = np.random.default_rng(1).uniform(-1, 1, (4, 256)).astype(np.float32)
    x[:, :8] = [1, -1, 0.5, -0.5, np.nextafter(np.float32(0.5), np.float32(0)), -0.25, 0, -0.0]
    kind = gguf.GGMLQuantizationType.TQ2_0
    theirs = gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)
    np.testing.assert_array_equal(element.decode(element.encode(x)), theirs)
    assert np.isnan(element.decode(np.uint8([3])))[0]


def test_e2m1_is_half_of_gguf_s_mxfp4() -> None:
    gguf = pytest.importorskip("gguf")
    np.testing.assert_array_equal(2 * load_element("e2m1").table, np.float32(gguf.quants.MXFP4.kvalues))


def test_binary_sends_zero_down() -> None:
    element = load_element("binary")
    assert element.encode(np.float32([-3, 0, -0.0, 1e-45, 3])).tolist() == [0, 0, 0, 1, 1]
    assert element.half_gap == 1
