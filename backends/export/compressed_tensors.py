"""compressed-tensors checkpoints, as that package, transformers and vLLM read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qcc.frontend.checkpoints import Checkpoint
from qcc.ir.codecs import compressed_tensors as codec
from qcc.ir.quantized import Quantized

from . import Choices, Record
from ._folder import Method, write_folder
from ._stream import Container

_SCALES = {"float16": "f16", "bfloat16": "bf16"}


def write(checkpoint: Checkpoint, place: Path, choices: Choices) -> list[Record]:
    """Write the folder: one config group for each way in which layers are quantized."""
    dtype = str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype"))
    return write_folder(checkpoint, place, choices, _CompressedTensors(_SCALES.get(dtype, "f32")))


class _CompressedTensors(Method):
    name = "compressed-tensors"

    def __init__(self, scale: str) -> None:
        self.container = Container(codec.accepted, scale, _settle, heads=True)
        self.groups: dict[codec.Settings, list[str]] = {}

    def tensors(self, layer: str, value: Quantized) -> dict[str, np.ndarray]:
        self.groups.setdefault(codec.settings_for(value.format), []).append(layer)
        return codec.encode(value, f"{layer}.weight")

    def config(self, layers: list[str], left: list[str]) -> dict[str, Any]:
        containers = {settings.container for settings in self.groups}
        groups: dict[str, Any] = {}
        for i, (settings, members) in enumerate(self.groups.items()):
            targets = ["Linear"] if len(self.groups) == 1 else sorted(members)
            groups[f"group_{i}"] = {
                "targets": targets,
                "weights": _weights(settings),
                "input_activations": None,
                "output_activations": None,
                "format": settings.container,
            }
        return {
            "quant_method": "compressed-tensors",
            "format": containers.pop() if len(containers) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": sorted(left),
            "kv_cache_scheme": None,
        }


def _settle(value: Quantized, weight: np.ndarray) -> Quantized:
    return codec.with_divisor(value, weight) if value.format == codec.NVFP4_FORMAT else value


def _weights(settings: codec.Settings) -> dict[str, Any]:
    """`weights` of a config group."""
    told: dict[str, Any] = {
        "num_bits": settings.bits,
        "type": "float" if settings.is_float else "int",
        "symmetric": settings.symmetric,
        "dynamic": False,
    }
    match settings.block:
        case None:
            return {**told, "strategy": "tensor"}
        case (None,):
            return {**told, "strategy": "channel"}
        case (int(size),):
            strategy = "tensor_group" if settings.container == codec.NVFP4 else "group"
            return {**told, "strategy": strategy, "group_size": size}
        case block:
            return {**told, "strategy": "block", "block_structure": list(block)}
