"""A decoder on a compiled network whose attention appends to caches in place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..language import LanguageRecord
from .caches import Held
from .run import NetworkRunner


class Decoder:
    """Prefill and decode over one cache of `capacity` positions. Not to be shared between threads."""

    def __init__(self, runner: NetworkRunner, record: LanguageRecord, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._runner = runner
        shape = (1, record.kv_heads, capacity, record.head_size)
        self._held = runner.held(Held.empty(runner.caches, shape))

    def step(self, ids: Sequence[int], *, keep: Sequence[int] | None = None) -> np.ndarray:
        """Append tokens; logits float32 [len(keep), V] at the positions of `ids` named by `keep` (default: the last).

        `ValueError` where the cache is full, or `ids` is empty.
        """
        if not ids:
            raise ValueError("a step takes at least one token")
        if self.length + len(ids) > self.capacity:
            raise ValueError(f"{self.length} + {len(ids)} positions do not fit a cache of {self.capacity}")
        feeds = {
            "input_ids": np.array([ids], np.int64),
            "past_length": np.array([self.length], np.int64),
            "logits_at": np.array([len(ids) - 1] if keep is None else keep, np.int64),
        }
        logits = self._runner.step(feeds, self._held)["logits"]
        self.length += len(ids)
        return logits[0]

    def rewind(self, length: int) -> None:
        """Forget the positions from `length` on."""
        self.length = min(self.length, max(length, 0))


def open_decoder(runner: NetworkRunner, record: LanguageRecord, capacity: int) -> Decoder:
    """A decoder on the network of an artifact; its caches are its own, the weights are shared with other decoders."""
    return Decoder(runner, record, capacity)
