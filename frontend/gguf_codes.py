"""Blocks of GGUF as our codes and scales, where a format with one level of scales says the same bit by bit.

    Q8_0: d q               q int8, d float16 for 32          `i8, f32 per 32`
    Q5_0: d (q - 16)        q 5 bits, d float16 for 32        `i5, f32 per 32`
    Q4_0: d (q - 8)         q 4 bits, d float16 for 32        `i4, f32 per 32`
    Q6_K: (d s) (q - 32)    q 6 bits, s int8 for 16, d f16    `i6, f32 per 16`

(ggml's `block_q8_0`, `block_q5_0`, `block_q4_0`, `block_q6_K`.) Scales are widened to float32, which loses nothing: the
products are the ones that ggml's dequantization rounds. Q4_K, Q5_K and the like have a second level with minima.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qcc.ir.format import Format
from qcc.ir.program import StoredCodes

_Blocks = np.ndarray
"""uint8 [rows, blocks, bytes of a block]."""


def codes_of(kind: str, data: np.ndarray, shape: tuple[int, int]) -> StoredCodes | None:
    """The codes int8 [N, K] and scales float32 [N, blocks] of a tensor's bytes; None for other kinds of block."""
    if kind not in _KINDS:
        return None
    text, size, take_apart = _KINDS[kind]
    blocks = np.ascontiguousarray(data).view(np.uint8).reshape(shape[0], -1, size)
    codes, scale = take_apart(blocks)
    return StoredCodes(Format.parse(text), codes.reshape(shape), scale.reshape(shape[0], -1), None, kind)


def _half(blocks: _Blocks, begin: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[..., begin : begin + 2]).view(np.float16).astype(np.float32)


def _q8_0(blocks: _Blocks) -> tuple[np.ndarray, np.ndarray]:
    return blocks[..., 2:].view(np.int8), _half(blocks, 0)


def _q4_0(blocks: _Blocks) -> tuple[np.ndarray, np.ndarray]:
    return _nibbles(blocks[..., 2:]).astype(np.int8) - np.int8(8), _half(blocks, 0)


def _q5_0(blocks: _Blocks) -> tuple[np.ndarray, np.ndarray]:
    high = np.unpackbits(blocks[..., 2:6], axis=-1, bitorder="little")
    return (_nibbles(blocks[..., 6:]) | (high << 4)).astype(np.int8) - np.int8(16), _half(blocks, 0)


def _q6_k(blocks: _Blocks) -> tuple[np.ndarray, np.ndarray]:
    """ql[128] has the low nibbles, qh[64] the two high bits: of each half of 128, four runs of 32."""
    rows, count, _ = blocks.shape
    low = blocks[..., :128].reshape(rows, count, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(2, 1)
    low = (low & 15).reshape(rows, count, 2, 4, 32)
    high = blocks[..., 128:192].reshape(rows, count, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)
    codes = (low | ((high & 3) << 4)).astype(np.int8) - np.int8(32)
    scales = blocks[..., 192:208].view(np.int8).astype(np.float32)
    return codes, scales * _half(blocks, 208)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Low nibbles first, then high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


_KINDS: dict[str, tuple[str, int, Callable[[_Blocks], tuple[np.ndarray, np.ndarray]]]] = {
    "Q8_0": ("i8, f32 per 32", 34, _q8_0),
    "Q5_0": ("i5, f32 per 32", 22, _q5_0),
    "Q4_0": ("i4, f32 per 32", 18, _q4_0),
    "Q6_K": ("i6, f32 per 16", 210, _q6_k),
}
