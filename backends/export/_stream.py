"""The weights of a checkpoint on their way into another, one at a time: kept, converted, quantized, decoded exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from qcc.frontend.checkpoints import Checkpoint
from qcc.frontend.quantization_config import Activations
from qcc.ir.convert import convert
from qcc.ir.errors import NotSupported
from qcc.ir.format import Format
from qcc.ir.program import StoredCodes
from qcc.ir.quantized import Quantized
from qcc.passes import algorithms
from qcc.passes.selection import check_patterns, matches

from . import Choices, Record

_TABLES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Container:
    """What the stream must know of the target."""

    accepted: Callable[[Quantized, str], Format]
    """The format in which it holds a value; raises `NotSupported`."""
    scale: str
    """The dtype of scales that weights are quantized with."""
    settle: Callable[[Quantized, np.ndarray], Quantized] = lambda value, weight: value
    """Changes scales that were just chosen for a weight into ones that the container can say."""
    tables: bool = False
    """Whether embeddings may be codes."""
    heads: bool = False
    """Whether the output head may be codes."""


@dataclass(frozen=True)
class Item:
    """One weight: a float array, or codes in a format of the container."""

    name: str
    weight: np.ndarray | Quantized
    record: Record

    @property
    def layer(self) -> str:
        """The name of the module."""
        return self.name.removesuffix(".weight")


def is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is the matrix of a linear layer: two axes, and no embedding; the output head is one."""
    return name.endswith(".weight") and len(shape) == 2 and not name.endswith(_TABLES)


def refuse_activation_scales(checkpoint: Checkpoint, to: str) -> None:
    """`NotSupported` where activations have scales of their own: no container that is written has a place for them."""
    if checkpoint.activations is Activations.STATIC:
        raise NotSupported(
            f"{checkpoint.path}: its activations are quantized with scales of their own, which an export to {to} "
            "would lose",
            hint="export a checkpoint whose weights alone are quantized",
        )


def stream(checkpoint: Checkpoint, choices: Choices, container: Container) -> Iterator[Item]:
    """Every weight of a checkpoint as its container takes it. The output head and embeddings are not quantized."""
    check_patterns(choices.ignore, [n.removesuffix(".weight") for n in checkpoint.names], "--ignore")
    for name in checkpoint.names:
        weight = checkpoint.read(name)
        left = any(matches(p, n) for p in choices.ignore for n in (name, name.removesuffix(".weight")))
        if isinstance(weight, StoredCodes):
            yield _codes(name, weight, left, container)
        else:
            yield _floats(name, weight, left, choices, container)


def _codes(name: str, stored: StoredCodes, left: bool, container: Container) -> Item:
    value, source = stored.value, f"{stored.format} ({stored.source})"
    linear = is_linear(name, value.shape)
    held = container.tables if not linear else container.heads if name == HEAD else True
    if left or not held:
        array = exact_floats(value)
        note = "ignored" if left else "no place for codes of such a tensor"
        return Item(name, array, Record(name, source, float_name(array), f"{note}: decoded exactly"))
    try:
        made = convert(value, container.accepted(value, name), name)
    except NotSupported as error:
        hint = f"--ignore {name.removesuffix('.weight')} stores the exact values of this one as floats"
        raise NotSupported(error.message, hint=error.hint or hint) from error
    return Item(name, made, Record(name, source, str(made.format)))


def _floats(name: str, weight: np.ndarray, left: bool, choices: Choices, container: Container) -> Item:
    source, scheme = float_name(weight), choices.scheme
    if scheme is None or left or not is_linear(name, weight.shape) or name == HEAD:
        return Item(name, weight, Record(name, source, source, "ignored" if left else ""))
    fmt = scheme.linear_format(choices.group_size)
    if len(fmt.scales) == 1 and fmt.scales[0].dtype == "f32":
        fmt = dataclasses.replace(fmt, scales=(dataclasses.replace(fmt.scales[0], dtype=container.scale),))
    value = algorithms.load(choices.algorithm)(weight.astype(np.float32), fmt)
    value = container.settle(value, weight.astype(np.float32))
    made = convert(value, container.accepted(value, name), name)
    return Item(name, made, Record(name, source, str(made.format), f"quantized by {choices.algorithm}"))


def exact_floats(value: Quantized) -> np.ndarray:
    """What codes decode to in the narrowest of float16, bfloat16 and float32 that has every value."""
    wide = value.decode()
    for dtype in (np.float16, ml_dtypes.bfloat16):
        with np.errstate(over="ignore"):
            narrow = wide.astype(dtype)
        if np.array_equal(narrow.astype(np.float32).view(np.uint32), wide.view(np.uint32)):
            return narrow
    return wide


def float_name(array: np.ndarray) -> str:
    """`f16`, `bf16` ..."""
    return array.dtype.name.replace("bfloat", "bf").replace("float", "f")
