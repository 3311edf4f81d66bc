"""What an artifact of a language model says about itself, and the inputs of one step of it.

A step takes new tokens and a cache, and gives logits and the longer cache: `input_ids [1, S]`, `past_length [1]`,
`logits_at [L]` (at which of the S positions logits are wanted), and `past_key_i`, `past_value_i` [1, G, C, D] for each
layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

TOKENIZER = "tokenizer.json"


class LanguageRecord(BaseModel):
    """A decoder: vocabulary, positions it was made for, the shape of its cache, special tokens, sampling it prefers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    vocabulary: int = Field(gt=0)
    context: int = Field(gt=0)
    layers: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_size: int = Field(gt=0)
    cache_dtype: str
    """float32, float16, or int8 with a float32 scale for each entry of a head."""
    bos: int | None
    eos: list[int]
    temperature: float | None
    top_k: int | None
    top_p: float | None
    source: str
    programs: dict[str, str]
    """The file that computes `prefill` and that which computes `decode`; one file may serve both."""

    def cache_names(self) -> list[tuple[str, str]]:
        """The names of each cache as input and as output of a step."""
        kinds = [(kind, i) for i in range(self.layers) for kind in ("key", "value")]
        return [(f"past_{kind}_{i}", f"present_{kind}_{i}") for kind, i in kinds]

    def cache_bytes(self, positions: int) -> int:
        """Bytes of a cache for so many positions."""
        entry = np.dtype(self.cache_dtype).itemsize * self.head_size + (4 if self.cache_dtype == "int8" else 0)
        return 2 * self.layers * self.kv_heads * entry * positions

    def step(
        self, ids: Sequence[int], *, keep: Sequence[int], past: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """The inputs of a step over `ids`, after the outputs `past` of an earlier one; `keep` counts within `ids`."""
        kind = "float32" if self.cache_dtype == "int8" else self.cache_dtype  # what a network takes for codes
        empty = np.zeros((1, self.kv_heads, 0, self.head_size), kind)
        caches = {name: empty if past is None else past[out] for name, out in self.cache_names()}
        seen = next(iter(caches.values())).shape[2]
        return {
            "input_ids": np.array([ids], np.int64),
            "past_length": np.array([seen], np.int64),
            "logits_at": np.array(keep, np.int64),
            **caches,
        }
