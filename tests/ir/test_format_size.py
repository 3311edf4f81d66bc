"""Bits per weight of every format: what papers, specifications and ggml's blocks say."""

from __future__ import annotations

import pytest

from qcc.ir.format import Format
from qcc.passes import schemes


@pytest.mark.parametrize(
    ("text", "shape", "bits"),
    [
        ("i4, f32 per 32", (64, 128), 5.0),
        ("i4, f16 per 32", (64, 128), 4.5),
        ("u4, f32 per 32, zero u4", (64, 128), 4 + 36 / 32),
        ("u2, f16 per 16, zero f16", (64, 128), 4.0),
        ("i4, f32 per 32", (1, 33), 4 + 64 / 33),
        ("i8, f32 per tensor", (4, 8), 9.0),
        ("i8, f32 per *", (4, 8), 12.0),
        ("i8, f32 per *", (0, 8), 8.0),
    ],
)
def test_bits_per_weight_counts_scales_and_zero_points(text: str, shape: tuple[int, ...], bits: float) -> None:
    assert Format.parse(text).bits_per_weight(shape) == pytest.approx(bits)


PUBLISHED = {
    "Q4_0": 4.5, "Q4_1": 5.0, "Q5_0": 5.5, "Q5_1": 6.0, "Q8_0": 8.5, "Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5,
    "Q5_K": 5.5, "Q6_K": 6.5625, "IQ4_NL": 4.5, "TQ2_0": 2.0625, "MXFP4": 4.25, "MXFP6": 6.25, "MXFP8": 8.25,
    "MXFP8_E5M2A16": 8.25, "MXFP6_E3M2A16": 6.25, "MXINT8": 8.25, "NVFP4": 4.5, "NVINT4": 4.5, "NF4": 4.5, "FP4": 4.5,
    "NF4_DQ": 4.125, "FP4_DQ": 4.125, "FP8": 8.0, "LLM_FP4": 4.0, "LLM_INT8": 8.0, "KMEANS3": 3.0, "KMEANS4": 4.0,
    "BITMOD3": 3 + 18 / 128, "BITMOD4": 4 + 18 / 128, "TERNARY": 2.125, "BINARY": 1.125, "W4A16_24": 3.125,
    "SPQR3": 3 + 6 / 16 + 16 / 256, "W4A16_2D": 4.125, "W8A8": 8.0, "W8A16": 8.25, "W4A16": 4.25, "W4A8": 5.0,
    "W4A16_ASYM": 4 + 36 / 128, "W2A16": 2 + 34 / 32, "W3A16": 3.25, "XINT8": 8.0, "W8A8_GROUP": 9.0,
    "ANY_PRECISION": 8.0,
}  # fmt: skip
"""What papers and specifications give, what a long row or the whole tensor shares left out."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_bits_per_weight_are_the_published_ones(name: str) -> None:
    fmt = schemes.load(name).linear_format()
    assert fmt.bits_per_weight((1 << 14, 1 << 22)) == pytest.approx(PUBLISHED[name], abs=3e-3)


def test_ggml_blocks_have_as_many_bytes() -> None:
    gguf = pytest.importorskip("gguf")
    for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "TQ2_0"):
        size, count = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        fmt = schemes.load(name).linear_format()
        assert fmt.bits_per_weight((1, size)) == 8 * count / size, name


@pytest.mark.parametrize(
    ("text", "shape", "bits"),
    [
        ("k16 in f16 per *", (4, 64), 4 + 16 * 16 / 64),
        ("k5 in f32 per tensor", (4, 64), 3 + 5 * 32 / 256),
        ("n3..4 in f16 per *", (4, 64), 4 + 24 * 16 / 64),
        ("[nf4|fp4] per 64, f16 per 16", (4, 64), 4 + 1 + 1 / 64),
        ("[e2m1z5|e2m1z-5|e2m1z8|e2m1z-8] per 32, f16 per 32", (4, 64), 4 + 18 / 32),
        ("nf4, i8 per 64, f32 per *, mean f32 per tensor", (4, 128), 4 + 8 / 64 + 32 / 128 + 32 / 512),
        ("u4, f16 per 32, zero u8 per *", (4, 64), 4.5 + 8 / 64),
        ("u8, f16 per 32, zero 128", (4, 64), 8.5),
        ("i4, f16 per 32, permuted", (4, 64), 4.5 + 32 / 4),
        ("i4, f16 per 32, sparse 2:4", (4, 64), 3.5),
        ("i4, f16 per 32, sparse 1:4", (4, 64), 2.0),
        ("i4, f16 per 32, outliers f16 csr", (4, 64), 4.5),
    ],
)
def test_bits_per_weight_counts_every_part(text: str, shape: tuple[int, ...], bits: float) -> None:
    assert Format.parse(text).bits_per_weight(shape) == pytest.approx(bits)


def test_a_power_of_two_counts_its_exponent_byte() -> None:
    assert Format.parse("i8, e8m0 per *").bits_per_weight((4, 8)) == 9
