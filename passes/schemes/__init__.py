"""Schemes: the names people know, as data. The file `W4A16.toml` is the scheme W4A16; this folder is the registry.

The text of a format is a scheme too: weights in that format, activations in floating point.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from qcc.ir.errors import BadInput
from qcc.ir.format import Format
from qcc.ir.formats import load_element
from qcc.ir.level import Level

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Scheme:
    """Formats for weights and activations. `weight=""` leaves the network in floating point."""

    name: str
    summary: str
    weight: str = ""
    """Element type of weights, such as `i4`, or a whole format, such as `e2m1, e8m0 per 32`."""
    group: int = 0
    """Weights of a row that share a scale; 0: the whole row (one scale an output channel)."""
    asymmetric: bool = False
    activation: str = ""
    """Element type of activations, or a whole format; empty: float."""
    dynamic: bool = False
    """Scales of activations are computed at run time, by group where weights have groups; else they are calibrated."""
    scale: str = "f32"
    """The dtype of scales; `e8m0`: powers of two."""
    per_tensor: bool = False
    """One scale a weight instead of one an output channel."""
    bias: str = ""
    """Element type of biases; empty: as the kernel takes them."""

    @property
    def bits(self) -> int:
        """Bits of a weight; 32 for float."""
        return load_element(self.weight).bits if self.is_element else self.linear_format().bits if self.weight else 32

    @property
    def is_element(self) -> bool:
        """Whether `weight` is an element type, whose scales the other fields describe, and no whole format."""
        return bool(self.weight) and "," not in self.weight and " " not in self.weight

    @property
    def needs_calibration(self) -> bool:
        """Whether activations have scales that only samples can give."""
        return bool(self.activation) and not self.dynamic

    @property
    def is_fixed_point(self) -> bool:
        """Whether every tensor of the network has one power of two as its scale: arithmetic is integers and shifts."""
        return self.scale == "e8m0" and self.per_tensor and bool(self.weight and self.activation and self.bias)

    def linear_format(self, group_size: int = 0) -> Format:
        """The format of a weight [N, K]."""
        if not self.is_element:
            return Format.parse(self.weight)
        group = group_size or self.group
        return self._format((group,) if group else (None,))

    def conv_format(self, shape: tuple[int, ...], *, transposed: bool = False, group_size: int = 0) -> Format:
        """The format of a convolution weight [M, C/group, kernel...].

        A scale for each output channel and, in schemes with groups, for as many of its input channels as make up a
        group. A scheme that names a whole format gives convolutions 8 bits, one scale an output channel.
        """
        if not self.is_element:  # blocks of a matrix: a convolution has none such
            return self.at_eight_bits.conv_format(shape, transposed=transposed)
        kernel = (None,) * (len(shape) - 2)
        if transposed:
            return self._format((None, 1, *kernel))
        group = group_size or self.group
        channels = group // max(1, math.prod(shape[2:])) if group else 0
        if self.activation or channels < 1 or channels >= shape[1]:
            return self._format((None,) * (len(shape) - 1))
        while shape[1] % channels:
            channels -= 1
        return self._format((channels, *kernel))

    @property
    def at_eight_bits(self) -> Scheme:
        """The same scheme with symmetric 8-bit weights, one scale an output channel."""
        return replace(self, weight="i8", group=0, asymmetric=False)

    def activation_format(self, group_size: int = 0) -> Format | None:
        """The format of activations, None where they stay float."""
        if not self.activation:
            return None
        if "," in self.activation:
            return Format.parse(self.activation)
        group = group_size or self.group
        block = (group,) if self.dynamic and group else None
        symmetric = self.activation[0] == "i"
        shared = Level(self.scale, block)
        return Format(self.activation, (shared,), None if symmetric else Level(self.activation, block))

    @property
    def bias_format(self) -> Format:
        """The format of a bias [N] in a scheme that has one."""
        return Format(self.bias, (Level(self.scale, None),))

    def _format(self, block: tuple[int | None, ...]) -> Format:
        element = f"u{self.bits}" if self.asymmetric else self.weight
        shared = Level(self.scale, None if self.per_tensor else block)
        return Format(element, (shared,), Level(element, shared.block) if self.asymmetric else None)


def names() -> list[str]:
    """The names of all schemes."""
    return sorted(p.stem for p in _FOLDER.glob("*.toml"))


@cache
def load(name: str) -> Scheme:
    """The scheme called `name`, in any case, or the one of a format's text; `GGUF:` may stand before GGUF's types."""
    known = {n.upper(): n for n in names()}
    found = known.get(name.upper().removeprefix("GGUF:"))
    if found is None and ("," in name or " " in name):
        return Scheme(str(Format.parse(name)), "weights as given, float activations", weight=str(Format.parse(name)))
    if found is None:
        raise BadInput(f"no scheme is called {name!r}", hint=f"known schemes: {', '.join(names())}, or a format's text")
    data = tomllib.loads((_FOLDER / f"{found}.toml").read_text())
    return Scheme(found, **data)
