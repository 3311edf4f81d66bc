"""Models of other programs' packers in plain arithmetic on words; they owe nothing to `qcc.ir`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def stream_words(codes: Array, bits: int) -> Array:
    """Codes [R, C] as one stream of bits a row, lowest first, in int32 words: GPTQ and compressed-tensors."""
    stream = np.unpackbits(codes.astype(np.uint8)[..., None], axis=-1, count=bits, bitorder="little")
    stream = stream.reshape(len(codes), -1)
    stream = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 32)))
    return np.packbits(stream, axis=-1, bitorder="little").view("<i4")


def awq_words(codes: Array) -> Array:
    """Codes [R, C] as AutoAWQ's int32 [R, C / 8]: nibble i of a word is column AWQ_ORDER[i]."""
    columns = codes.reshape(len(codes), -1, 8).astype(np.uint64)
    words = np.zeros(columns.shape[:2], np.uint64)
    for nibble, column in enumerate(AWQ_ORDER):
        words |= columns[..., column] << np.uint64(4 * nibble)
    return words.astype(np.uint32).view(np.int32)


class Layer:
    """A quantized linear layer with random numbers: q, zero [.., G], scale, and its float values in float32."""

    def __init__(
        self, n: int, k: int, bits: int, group: int, *, seed: int = 0, symmetric: bool = False, act_order: bool = False
    ) -> None:
        rng = np.random.default_rng(seed)
        self.n, self.k, self.bits, self.group = n, k, bits, group
        groups = k // group
        self.q = rng.integers(0, 1 << bits, (n, k)).astype(np.uint8)
        self.zero = rng.integers(1, 1 << bits, (n, groups)).astype(np.uint8)
        if symmetric:
            self.zero[:] = 1 << (bits - 1)
        self.scale = rng.uniform(0.001, 0.02, (n, groups)).astype(np.float16)
        self.g_idx = (np.arange(k) // group).astype(np.int32)
        if act_order:
            self.g_idx = rng.permutation(self.g_idx)

    def values(self) -> Array:
        centred = self.q.astype(np.float32) - self.zero[:, self.g_idx].astype(np.float32)
        return centred * self.scale[:, self.g_idx].astype(np.float32)

    def gptq(self, version: int = 1) -> dict[str, Array]:
        """Its tensors as AutoGPTQ (version 1: zero points less one) or gptqmodel (2) writes them."""
        zeros = self.zero.T - np.uint8(version == 1)
        return {
            "qweight": np.ascontiguousarray(stream_words(self.q, self.bits).T),
            "qzeros": stream_words(np.ascontiguousarray(zeros), self.bits),
            "scales": np.ascontiguousarray(self.scale.T),
            "g_idx": self.g_idx,
        }

    def awq(self) -> dict[str, Array]:
        return {
            "qweight": awq_words(np.ascontiguousarray(self.q.T)),
            "qzeros": awq_words(np.ascontiguousarray(self.zero.T)),
            "scales": np.ascontiguousarray(self.scale.T),
        }

    def compressed(self, *, symmetric: bool) -> dict[str, Array]:
        """As compressed-tensors packs it: offset binary, zero points along N."""
        tensors = {
            "weight_packed": stream_words(self.q, self.bits),
            "weight_scale": self.scale,
            "weight_shape": np.array([self.n, self.k], np.int64),
        }
        if not symmetric:
            tensors["weight_zero_point"] = np.ascontiguousarray(stream_words(self.zero.T.copy(), self.bits).T)
        return tensors
