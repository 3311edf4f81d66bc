"""Formats that the tests of decoding, encoding and expansions share, with random parts for each."""

from __future__ import annotations

import numpy as np

from qcc.ir.format import Format
from qcc.ir.level import Level
from qcc.ir.levels import level_dtype
from qcc.ir.quantized import Quantized

FORMATS = (
    "i4, f32 per 32",
    "u8, f32 per tensor, zero u8",
    "i3, f16 per 16x4",
    "u4, f16 per 32, zero u4",
    "u4, f16 per 16, zero f16",
    "u4, f16 per 16, zero u8 per *",
    "u8, bf16 per *, zero 128",
    "u4, f16 per 32, plus f16 per 32",
    "u4, u6 per 32, f16 per 64, minus u6 per 32 by f16 per 64",
    "u2, u4 per 16, f16 per 64, minus u4 per 16 by f16 per 64",
    "i6, i8 per 16, f16 per 64",
    "i4, e4m3 per 16, f32 per tensor",
    "e2m1, e4m3 per 16, f32 per tensor",
    "e2m1, e8m0 per 32",
    "e4m3, e8m0 per 32",
    "e5m2, f32 per *",
    "e3m2, e8m0 per 32",
    "e2m3, e8m0 per 32",
    "e4m3fnuz, f32 per *",
    "e2m1, e8m0 per *, f32 per tensor",
    "i8q6, e8m0 per 32",
    "nf4, f32 per 64",
    "fp4, f32 per 64",
    "iq4nl, f16 per 32",
    "nf4, i8 per 64, f32 per *, mean f32 per tensor",
    "ternary, f16 per 32",
    "binary, f16 per 32",
    "k16 in f16 per *",
    "k5 in f32 per tensor",
    "k8 in bf16 per 4x*, f32 per *",
    "n3..6 in f16 per *",
    "[e2m1z5|e2m1z-5|e2m1z8|e2m1z-8] per 32, f16 per 32",
    "[nf4|e2m1z5] per 64, f16 per 16",
    "i3, f16 per 16, outliers f16 csr",
    "i8, f32 per *, outliers f16 columns",
    "i4, f16 per 32, permuted",
    "u4, f16 per 32, zero u4, permuted",
    "i4, f16 per 32, sparse 2:4",
    "nf4, f16 per 32, sparse 1:4",
)
"""Blocks are small, so that small tensors have several."""


def random_value(text: str, shape: tuple[int, int], seed: int = 0) -> Quantized:
    """Random legal parts: every code that stands for a number, scales over many binades, outliers here and there."""
    fmt, rng = Format.parse(text), np.random.default_rng(seed)
    parts = {"codes": _codes(fmt, shape, rng)}
    for name, level in fmt.levels().items():
        parts[name] = _numbers(name, level, fmt, shape, rng)
    if fmt.permuted:
        parts["order"] = rng.permutation(shape[1]).astype(np.int32)
    if fmt.outliers is not None:
        dtype = level_dtype(fmt.outliers.dtype)
        if fmt.outliers.columns:
            columns = np.sort(rng.permutation(shape[1])[: shape[1] // 8]).astype(np.int32)
            values = rng.standard_normal((shape[0], len(columns)))
        else:
            rows, found = np.nonzero(rng.random(shape) < 0.05)
            counts = np.bincount(rows, minlength=shape[0])
            parts["outlier_start"] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
            columns, values = found.astype(np.int32), rng.standard_normal(len(found))
        parts |= {"outlier_columns": columns, "outlier_values": dtype.round(values.astype(np.float32) * 9)}
    return Quantized(fmt, parts)


def _codes(fmt: Format, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    if fmt.family.trained:
        return rng.integers(0, min(fmt.family.entries, 1 << fmt.bits), shape).astype(np.uint8)
    legal = np.flatnonzero(np.isfinite(np.stack([f.table for f in fmt.families])).all(axis=0))
    raw = legal[rng.integers(0, len(legal), shape)].astype(np.uint8)
    if fmt.family.signed:
        half = 1 << (fmt.bits - 1)
        raw = ((raw.astype(np.int16) ^ half) - half).astype(np.int8)
    if fmt.sparsity:
        n, m = fmt.sparsity
        places = np.argsort(rng.random((shape[0], -(-shape[1] // m), m)), axis=2).reshape(shape[0], -1)[:, : shape[1]]
        raw = np.where(places < n, raw, fmt.zero_code)
    return raw.astype(np.int8 if fmt.family.signed else np.uint8)


def _numbers(name: str, level: Level, fmt: Format, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    blocks, dtype = level.shape_of(shape), level_dtype(level.dtype)
    if name == "choice":
        return rng.integers(0, len(fmt.choices), blocks).astype(np.uint8)
    if name == "table":
        return dtype.round(rng.standard_normal((*blocks, fmt.family.entries)).astype(np.float32))
    if dtype.is_integer:
        return rng.integers(int(dtype.low), int(dtype.high) + 1, blocks).astype(dtype.numpy)
    if name == "zero":
        return dtype.round(rng.uniform(0, 15, blocks).astype(np.float32))
    return dtype.round(np.exp2(rng.uniform(-6, 6, blocks)).astype(np.float32))
