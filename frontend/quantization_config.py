"""What `quantization_config` of a Hugging Face folder says, as settings of a codec for each layer.

    gptq                 bits, group_size, sym, checkpoint_format          awq   bits, group_size, zero_point, version
    compressed-tensors   config_groups with targets, format, ignore

A group of compressed-tensors is found by the name of the layer first, then by `re:...`, then by the class `Linear`, as
that library does.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from qcc.ir.codecs import awq, compressed_tensors, gptq
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.level import Block
from qcc.ir.quantized import Quantized


class Activations(Enum):
    """How a checkpoint wants the inputs of its layers."""

    FLOAT = "float"
    DYNAMIC = "quantized at run time"
    STATIC = "quantized with scales of the checkpoint"


@dataclass(frozen=True)
class Reader(ABC):
    """Finds quantized layers among the tensors of a checkpoint and decodes them. `config` is parsed JSON."""

    config: Mapping[str, Any]
    path: Path
    method: ClassVar[str]
    marks: ClassVar[tuple[str, ...]]
    """Tensors that only quantized layers have."""
    tensors: ClassVar[tuple[str, ...]]

    @property
    def activations(self) -> Activations:
        """Whether activations are quantized too."""
        return Activations.FLOAT

    def layers(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """For each quantized layer the names of its tensors: `{"qweight": "model.layers.0.mlp.up.qweight", ...}`."""
        known = set(names)
        found = {n.removesuffix(f".{mark}") for n in known for mark in self.marks if n.endswith(f".{mark}")}
        return {layer: {t: f"{layer}.{t}" for t in self.tensors if f"{layer}.{t}" in known} for layer in sorted(found)}

    @abstractmethod
    def decode(self, layer: str, tensors: Mapping[str, np.ndarray]) -> Quantized:
        """The weight [N, K] of a layer."""

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number of the configuration; `BadInput` where it is none."""
        value = self.config.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise BadInput(f"{self.path}: quantization_config has {name} = {value!r}, no whole number")
        return value

    def group(self) -> int:
        """The group size, 0 for whole rows."""
        size = self.integer("group_size", -1)
        if size == 0 or size < -1:
            raise BadInput(f"{self.path}: quantization_config has group_size = {size}")
        return max(size, 0)


@dataclass(frozen=True)
class _Gptq(Reader):
    method = "gptq"
    marks = ("qweight", "qzeros")
    tensors = gptq.TENSORS

    def decode(self, layer: str, tensors: Mapping[str, np.ndarray]) -> Quantized:
        kind = self.config.get("checkpoint_format", "gptq")
        rules: Any = self.config.get("dynamic") or {}
        if not isinstance(rules, dict):
            raise BadInput(f"{self.path}: dynamic of quantization_config is no table of layers")
        if kind not in ("gptq", "gptq_v2") or not all(rule.startswith("-:") for rule in cast("dict[str, Any]", rules)):
            odd = f"checkpoint_format {kind!r}" if kind not in ("gptq", "gptq_v2") else "settings of single layers"
            raise NotSupported(f"{self.path}: GPTQ with {odd}", hint="save it as gptq or gptq_v2, one setting for all")
        bits, symmetric = self.integer("bits"), self.config.get("sym", True) is True
        settings = gptq.Settings(bits, self.group(), symmetric, 2 if kind == "gptq_v2" else 1)
        return gptq.decode(tensors, settings, f"{layer}.weight")


@dataclass(frozen=True)
class _Awq(Reader):
    method = "awq"
    marks = ("qweight", "qzeros")
    tensors = awq.TENSORS

    def decode(self, layer: str, tensors: Mapping[str, np.ndarray]) -> Quantized:
        version, bits = str(self.config.get("version", "gemm")).lower(), self.integer("bits", 4)
        if version != "gemm" or bits != 4 or self.config.get("zero_point", True) is not True:
            raise NotSupported(
                f"{self.path}: AWQ version {version!r}, {bits} bits, zero_point {self.config.get('zero_point')!r}",
                hint="version gemm with 4 bits and zero points is known",
            )
        return awq.decode(tensors, awq.Settings(self.group()), f"{layer}.weight")


@dataclass(frozen=True)
class _CompressedTensors(Reader):
    method = "compressed-tensors"
    marks = ("weight_packed", "weight_scale")
    tensors = compressed_tensors.TENSORS

    @property
    def activations(self) -> Activations:
        found = [group.get("input_activations") for group in self._groups()]
        if all(a is None for a in found):
            return Activations.FLOAT
        told = [cast("dict[str, Any]", a) for a in found if isinstance(a, dict)]
        return Activations.DYNAMIC if all(a.get("dynamic") is True for a in told) else Activations.STATIC

    def decode(self, layer: str, tensors: Mapping[str, np.ndarray]) -> Quantized:
        ignored = next((p for p in self._texts(self.config.get("ignore"), "ignore") if _covers(p, layer)), None)
        if ignored is not None:
            raise BadInput(f"{layer}.weight: quantization_config ignores it ({ignored!r}), but it is quantized")
        return compressed_tensors.decode(tensors, self._settings(layer), f"{layer}.weight")

    def _groups(self) -> list[dict[str, Any]]:
        groups: Any = self.config.get("config_groups")
        if not isinstance(groups, dict) or not all(
            isinstance(g, dict) for g in cast("dict[str, Any]", groups).values()
        ):
            raise BadInput(f"{self.path}: quantization_config has no config_groups", hint="copy the model again")
        return list(cast("dict[str, dict[str, Any]]", groups).values())

    def _settings(self, layer: str) -> compressed_tensors.Settings:
        group = self._group_of(layer)
        weights: Any = group.get("weights")
        if not isinstance(weights, dict):
            raise BadInput(f"{layer}.weight: its config group says nothing of weights, but it is quantized")
        told = cast("dict[str, Any]", weights)
        bits, kind = told.get("num_bits", 8), told.get("type", "int")
        if not isinstance(bits, int) or kind not in ("int", "float"):
            raise BadInput(f"{layer}.weight: weights of {bits!r} bits of type {kind!r}", hint="copy the model again")
        container = group.get("format") or self.config.get("format")
        return compressed_tensors.Settings(
            str(container), bits, kind == "float", told.get("symmetric", True) is True, _block(told, layer)
        )

    def _group_of(self, layer: str) -> dict[str, Any]:
        """The config group whose target is nearest: the name, then a pattern, then a class."""
        found: list[tuple[int, int, dict[str, Any]]] = []
        for i, group in enumerate(self._groups()):
            for target in self._texts(group.get("targets"), "targets"):
                if target == layer or _covers(target, layer) or target == "Linear":
                    rank = 0 if target == layer else 2 if target == "Linear" else 1
                    found.append((rank, i, group))
        if not found:
            raise BadInput(f"{layer}.weight: no config group has it as a target, but it is quantized")
        return min(found, key=lambda entry: entry[:2])[2]

    def _texts(self, value: object, name: str) -> list[str]:
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(v, str) for v in cast("list[Any]", value)):
            raise BadInput(f"{self.path}: {name} of quantization_config is no list of names")
        return cast("list[str]", value)


def reader_of(config: object, path: Path) -> Reader:
    """The reader of a `quantization_config`; `NotSupported` for methods that are not known."""
    told = cast("dict[str, Any]", config) if isinstance(config, dict) else {}
    method = str(told.get("quant_method", config if not told else None))
    known = {each.method: each for each in (_Gptq, _Awq, _CompressedTensors)}
    if method not in known or not isinstance(config, dict):
        raise NotSupported(
            f"{path}: the checkpoint is quantized already ({method})",
            hint=f"known methods: {', '.join(known)}; else give the float checkpoint, or a GGUF file",
        )
    return known[method](told, path)


def _covers(pattern: str, layer: str) -> bool:
    if not pattern.startswith("re:"):
        return pattern == layer
    try:
        return re.match(pattern[3:], layer) is not None
    except re.error as error:
        raise BadInput(f"quantization_config has the pattern {pattern!r}: {error}") from error


def _are_sizes(values: list[object]) -> bool:
    return len(values) == 2 and all(isinstance(v, int) and v > 0 for v in values)


def _block(weights: Mapping[str, Any], layer: str) -> Block | None:
    """The block of scales that a strategy means."""
    size, structure = weights.get("group_size"), weights.get("block_structure")
    strategy = weights.get("strategy") or ("tensor" if size is None else "channel" if size == -1 else "group")
    match strategy:
        case "tensor":
            return None
        case "channel":
            return (None,)
        case "group" | "tensor_group" if isinstance(size, int) and size > 0:
            return (size,)
        case "block" if isinstance(structure, list) and _are_sizes(cast("list[object]", structure)):
            return tuple(cast("list[int]", structure))
        case _:
            raise BadInput(f"{layer}.weight: strategy {strategy!r} with group_size {size!r}", hint="copy it again")
