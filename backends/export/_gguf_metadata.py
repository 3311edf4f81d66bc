"""The configuration of a transformers decoder as the entries that llama.cpp reads, or why it has none for it.

Each architecture of llama.cpp computes one way: an activation, a scaling or a pattern of layers that it has no entry
for must be its own, else the file would mean another network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from qcc.ir.errors import BadInput, NotSupported

_ACTIVATIONS = {
    "llama": "silu",
    "mistral": "silu",
    "qwen2": "silu",
    "qwen3": "silu",
    "phi3": "silu",
    "gemma2": "gelu_pytorch_tanh",
    "gemma3_text": "gelu_pytorch_tanh",
}
"""Architectures that are written, and the activation that llama.cpp computes for them."""
_WINDOWED = ("phi3", "gemma2", "gemma3_text")
"""Architectures whose sliding window llama.cpp reads."""
_LOCAL_BASE = 10000.0
"""Frequency base of Gemma 3's sliding layers, which no entry says."""


class Metadata:
    """The entries of a file: values by key without the architecture, and frequencies of rotary positions."""

    def __init__(self, config: Mapping[str, Any], path: Path) -> None:
        self.config, self.path = config, path
        self.kind = str(config.get("model_type"))
        self.integers: dict[str, int] = {}
        self.floats: dict[str, float] = {}
        self.texts: dict[str, str] = {}
        self.frequencies: np.ndarray | None = None
        if self.kind not in _ACTIVATIONS:
            raise NotSupported(
                f"{path}: architecture {self.kind!r} is not written as GGUF", hint=f"known: {', '.join(_ACTIVATIONS)}"
            )
        try:
            self._require_own_ways()
            self._sizes()
            self._rope()
        except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise BadInput(
                f"{path}: config.json does not describe a {self.kind}: {type(error).__name__} {error}",
                hint="copy the model again",
            ) from error

    def _require_own_ways(self) -> None:
        c, kind = self.config, self.kind
        activation = c.get("hidden_activation") or c.get("hidden_act")
        if activation != _ACTIVATIONS[kind]:
            raise self._refuse(f"the activation {activation!r}")
        if c.get("use_sliding_window") or (kind == "mistral" and c.get("sliding_window")):
            raise self._refuse("a sliding window")
        if kind.startswith("gemma") and c.get("query_pre_attn_scalar") not in (None, self._head()):
            raise self._refuse(f"query_pre_attn_scalar {c.get('query_pre_attn_scalar')}")
        if kind.startswith("gemma"):
            span = 6 if kind == "gemma3_text" else 2
            count = self.integer("num_hidden_layers")
            own = ["full_attention" if (i + 1) % span == 0 else "sliding_attention" for i in range(count)]
            if c.get("layer_types") not in (None, own):
                raise self._refuse("its pattern of layers that see a window")

    def _sizes(self) -> None:
        c, head = self.config, self._head()
        heads = self.integer("num_attention_heads")
        self.integers = {
            "context_length": self.integer("max_position_embeddings"),
            "embedding_length": self.integer("hidden_size"),
            "block_count": self.integer("num_hidden_layers"),
            "feed_forward_length": self.integer("intermediate_size"),
            "attention.head_count": heads,
            "attention.head_count_kv": int(c.get("num_key_value_heads") or heads),
            "attention.key_length": head,
            "attention.value_length": head,
            "vocab_size": self.integer("vocab_size"),
        }
        if self.kind in ("llama", "mistral", "phi3"):
            self.integers["rope.dimension_count"] = int(head * float(c.get("partial_rotary_factor") or 1))
        if self.kind in _WINDOWED and c.get("sliding_window"):
            self.integers["attention.sliding_window"] = self.integer("sliding_window")
        if self.kind == "phi3":
            original = c.get("original_max_position_embeddings") or c["max_position_embeddings"]
            self.integers["rope.scaling.original_context_length"] = int(original)
        self.floats["attention.layer_norm_rms_epsilon"] = float(c.get("rms_norm_eps", 1e-6))
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            if c.get(name):
                self.floats[name] = float(c[name])

    def _rope(self) -> None:
        """Frequencies of rotary positions; Gemma 3 has one set for each kind of layer."""
        told: Any = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        rope = cast("dict[str, Any]", told)
        if "full_attention" in rope:
            local = cast("dict[str, Any]", rope.get("sliding_attention") or {})
            if self.kind != "gemma3_text" or local.get("rope_theta") != _LOCAL_BASE:
                raise self._refuse("rotary positions that differ among layers")
            rope = cast("dict[str, Any]", rope["full_attention"])
        base = float(rope.get("rope_theta") or self.config.get("rope_theta") or _LOCAL_BASE)
        self.floats["rope.freq_base"] = base
        match rope.get("rope_type") or rope.get("type") or "default":
            case "default":
                pass
            case "linear":
                self.texts["rope.scaling.type"] = "linear"
                self.floats["rope.scaling.factor"] = float(rope["factor"])
            case "llama3" if self.kind == "llama":
                self.frequencies = _llama3(rope, base, self._head())
            case other:
                raise self._refuse(f"rotary positions {other!r}")

    def integer(self, name: str) -> int:
        """A whole number of the configuration."""
        value = self.config.get(name)
        if not isinstance(value, int) or value < 1:
            raise BadInput(f"{self.path}: config.json has {name} = {value!r}", hint="copy the model again")
        return value

    def _head(self) -> int:
        return int(self.config.get("head_dim") or self.integer("hidden_size") // self.integer("num_attention_heads"))

    def _refuse(self, what: str) -> NotSupported:
        return NotSupported(f"{self.path}: {what} of this {self.kind} cannot be expressed in GGUF")


def _llama3(rope: Mapping[str, Any], base: float, size: int) -> np.ndarray:
    """Divisors of frequencies, float32 [size / 2]: Llama 3.1's scaling, as llama.cpp keeps it in a tensor."""
    context, factor = float(rope["original_max_position_embeddings"]), float(rope["factor"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    wavelength = 2 * math.pi * base ** (np.arange(0, size, 2) / size)
    smooth = np.clip((context / wavelength - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
