"""A Hugging Face folder: weights as they stream by, config.json with a quantization_config, the tokenizer."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from qcc.frontend.checkpoints import WHOLE, Checkpoint
from qcc.ir.errors import NotSupported
from qcc.ir.quantized import Quantized

from . import Choices, Record
from ._safetensors import writing_tensors
from ._stream import HEAD, Container, is_linear, refuse_activation_scales, stream


class Method(ABC):
    """How one method of quantization lays its tensors out. Settings of layers gather in it."""

    name = ""
    container: Container

    @abstractmethod
    def tensors(self, layer: str, value: Quantized) -> dict[str, np.ndarray]:
        """The tensors of a quantized layer, by what follows its name."""

    @abstractmethod
    def config(self, layers: list[str], left: list[str]) -> dict[str, Any]:
        """`quantization_config` for the layers that are quantized and the linear ones that are not. Any: JSON."""


def write_folder(checkpoint: Checkpoint, folder: Path, choices: Choices, method: Method) -> list[Record]:
    """Write a checkpoint in another method of quantization; what happened to each weight."""
    refuse_activation_scales(checkpoint, method.name)
    records: list[Record] = []
    layers: list[str] = []
    left: list[str] = []
    with writing_tensors(folder / WHOLE, checkpoint.names) as file:
        for item in stream(checkpoint, choices, method.container):
            records.append(item.record)
            if isinstance(item.weight, Quantized):
                layers.append(item.layer)
                for suffix, array in method.tensors(item.layer, item.weight).items():
                    file.add(f"{item.layer}.{suffix}", array)
                continue
            file.add(item.name, item.weight)
            if is_linear(item.name, item.weight.shape):
                left.append(item.layer)
    config = dict(checkpoint.config)
    if config.get("tie_word_embeddings") and HEAD not in checkpoint.names:
        left.append(HEAD.removesuffix(".weight"))
    if layers:
        config["quantization_config"] = method.config(layers, left)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    checkpoint.save_tokenizer(folder)
    return records


def common(found: set[Any], what: str, method: str) -> Any:
    """The one setting of all layers; `NotSupported` where there are several. Any: numbers and such."""
    if len(found) > 1:
        told = ", ".join(map(str, sorted(found)))
        raise NotSupported(f"layers differ in {what} ({told}): the configuration of {method} has one for all")
    return next(iter(found))
