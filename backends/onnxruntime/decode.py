"""A decoder on ONNX Runtime with its cache in place: past and present are one buffer, which the kernel appends to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..language import LanguageRecord
from .run import SessionRunner

if TYPE_CHECKING:
    from onnxruntime import IOBinding


class Decoder:
    """Prefill and decode over one cache of `capacity` positions. Not to be shared between threads."""

    def __init__(self, runner: SessionRunner, record: LanguageRecord, capacity: int) -> None:
        from onnxruntime import OrtValue

        self.capacity = capacity
        self.length = 0
        self._runner = runner
        self._binding = runner.binding()
        shape = (1, record.kv_heads, capacity, record.head_size)
        for past, present in record.cache_names():
            cache = OrtValue.ortvalue_from_numpy(np.zeros(shape, record.cache_dtype), runner.device, 0)
            self._binding.bind_ortvalue_input(past, cache)
            self._binding.bind_ortvalue_output(present, cache)
        self._vocabulary = record.vocabulary
        self._single = _Step(1, 1, record.vocabulary)
        self._bound: _Step | None = None

    def step(self, ids: Sequence[int], *, keep: Sequence[int] | None = None) -> np.ndarray:
        """Append tokens; logits float32 [len(keep), V] at the positions of `ids` named by `keep` (default: the last).

        The next step of one token overwrites the array. `ValueError` where the cache is full, or `ids` is empty.
        """
        if not ids:
            raise ValueError("a step takes at least one token")
        keep = [len(ids) - 1] if keep is None else keep
        if self.length + len(ids) > self.capacity:
            raise ValueError(f"{self.length} + {len(ids)} positions do not fit a cache of {self.capacity}")
        step = self._single if (len(ids), len(keep)) == (1, 1) else _Step(len(ids), len(keep), self._vocabulary)
        step.fill(ids, self.length, keep)
        if step is not self._bound or self._runner.device != "cpu":  # elsewhere, binding copies the inputs
            step.bind(self._binding)
            self._bound = step
        self._runner.run_bound(self._binding)
        self._runner.check_finite("logits", step.logits)
        self.length += len(ids)
        return step.logits[0]

    def rewind(self, length: int) -> None:
        """Forget the positions from `length` on."""
        self.length = min(self.length, max(length, 0))


class _Step:
    """The arrays of a step of so many tokens and wanted logits. ONNX Runtime reads and writes their memory itself."""

    def __init__(self, tokens: int, kept: int, vocabulary: int) -> None:
        self.ids = np.zeros((1, tokens), np.int64)
        self.past = np.zeros(1, np.int64)
        self.keep = np.zeros(kept, np.int64)
        self.logits = np.zeros((1, kept, vocabulary), np.float32)

    def fill(self, ids: Sequence[int], past: int, keep: Sequence[int]) -> None:
        """Write the inputs."""
        self.ids[0], self.past[0], self.keep[:] = ids, past, keep

    def bind(self, binding: IOBinding) -> None:
        """Let a binding use these arrays."""
        from onnxruntime import OrtValue

        for name, array in (("input_ids", self.ids), ("past_length", self.past), ("logits_at", self.keep)):
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))
        binding.bind_ortvalue_output("logits", OrtValue.ortvalue_from_numpy(self.logits))


def open_decoder(runner: SessionRunner, record: LanguageRecord, capacity: int) -> Decoder:
    """A decoder over the session of an artifact: one graph is prefill and decode, and holds the weights once."""
    return Decoder(runner, record, capacity)
