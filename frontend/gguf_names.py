"""What GGUF calls architectures and tensors of transformers, and the order in which it keeps the rows of some."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qcc.ir.errors import MissingExtra

FREQUENCIES = "rope_freqs.weight"
"""What llama.cpp divides the frequencies of rotary positions by; no weight of the network."""

_TRANSFORMERS = {"gemma3": "gemma3_text"}
"""Architectures that GGUF calls otherwise than transformers; the others have one name."""
_FILE = {"mistral": "llama"}
"""Architectures of transformers whose tensors GGUF names as another's."""
_INTERLEAVED = {"llama", "mistral"}


def import_gguf() -> Any:
    """The gguf module. Any: it has no stubs that hold."""
    try:
        import gguf
    except ImportError as error:
        raise MissingExtra("GGUF files need the package gguf", hint='pip install "qcc[hf]"') from error
    return gguf


def model_type(architecture: str) -> str:
    """What transformers calls an architecture of GGUF."""
    return _TRANSFORMERS.get(architecture, architecture)


def architecture(kind: str) -> str:
    """What GGUF calls a `model_type` of transformers."""
    named = {theirs: ours for ours, theirs in _TRANSFORMERS.items()}
    return _FILE.get(kind, named.get(kind, kind))


def tensor_names(kind: str, layers: int) -> Callable[[str], str | None]:
    """The name in a file of a weight of a `model_type`, None where GGUF has none."""
    gguf = import_gguf()
    number = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture(kind))
    table = gguf.get_tensor_name_map(number, layers)

    def name_of(weight: str) -> str | None:
        base, _, suffix = weight.rpartition(".")
        found = table.get_name(base)
        return None if found is None else f"{found}.{suffix}"

    return name_of


def rotary_rows(name: str, rows: int, kind: str, heads: int, kv_heads: int) -> np.ndarray | None:
    """Where each row of a query or key projection lies in the file: llama.cpp interleaves the halves of a head."""
    if kind not in _INTERLEAVED or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return None
    count = heads if "q_proj" in name else kv_heads
    return np.arange(rows).reshape(count, -1, 2).swapaxes(1, 2).reshape(-1)


def holds_one_more(name: str, kind: str) -> bool:
    """Whether the file holds 1 + w: the norms of Gemma."""
    return kind.startswith("gemma") and name.endswith("norm.weight")
