"""Named layouts: where other programs put their bits, one TOML file a layout, and this folder is the registry.

    summary = "what it is for"
    source = "project, file or paper that defines it"
    oracle = "what its bytes were compared with"
    shape = [8, 64]                 # a small shape to draw, in the order of the dimensions

    [layouts]                       # element of the codes -> layout; the first is taken where none is asked for
    u4 = "n(n0) k(k1 k0:{block}) -> n0 k1 k0"

    [parameters]                    # what {block} stands for
    block = { default = 32, meaning = "codes along k that share a scale" }

    [parts]                         # records only: element or dtype of the parts beside the codes
    scale = "f16"

    [owner]                         # the digits that number who reads a code, for pictures
    name = "block"
    digits = "n0 k1"

To add a layout, add a file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..layout import AnyLayout, Record, Stages, parse_layout
from ..layout.chain import BITS

_FOLDER = Path(__file__).parent
_CALL = re.compile(r"\s*(?P<name>\w+)\s*(?:\{(?P<options>[^{}]*)\}\s*)?", re.ASCII)
_OPTION = re.compile(r"\s*(\w+)\s*=\s*(\w+)\s*", re.ASCII)
_BITS = re.compile(r"(?:[iuf]|bf)(\d+)|e(?P<e>\d)m(?P<m>\d)", re.ASCII)


@dataclass(frozen=True)
class Parameter:
    """A number that a layout leaves open."""

    name: str
    default: int
    meaning: str


@dataclass(frozen=True)
class NamedLayout:
    """A layout of the field, with its parameters filled in."""

    name: str
    element: str
    """Element of the codes, as a format spells it: `u4`, `i8`."""
    layout: AnyLayout | Record
    parts: tuple[tuple[str, str], ...]
    """Each part of a record with its element or dtype, the codes first; of other layouts just the codes."""
    values: tuple[tuple[str, int], ...]
    """The parameters and what they were set to."""
    summary: str
    source: str
    oracle: str
    shape: tuple[int, ...]
    """A small shape that shows the pattern."""
    owner: tuple[str, tuple[str, ...]] | None
    """Who reads a code: a name such as `lane`, and the digits that number it, outer first."""

    def __str__(self) -> str:
        chosen = {"element": self.element, **dict(self.values)}
        return f"{self.name}{{{','.join(f'{key}={value}' for key, value in chosen.items())}}}"

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return bits_of(self.element)

    @property
    def part_bits(self) -> dict[str, int]:
        """Bits of one value of each part."""
        return {part: bits_of(dtype) for part, dtype in self.parts}


@dataclass(frozen=True)
class Entry:
    """One file of the registry: a layout with its parameters open."""

    name: str
    summary: str
    source: str
    oracle: str
    shape: tuple[int, ...]
    layouts: Mapping[str, str]
    parameters: tuple[Parameter, ...]
    parts: tuple[tuple[str, str], ...]
    owner: tuple[str, tuple[str, ...]] | None


def names() -> list[str]:
    """The layouts that can be named."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def named(name: str, element: str | None = None, **parameters: int) -> NamedLayout:
    """The layout called `name` for codes of `element` (the first it knows where None), with `parameters` set.

    Raises `BadInput` for a name, an element or a parameter that is not known, or a parameter below 1.
    """
    entry = load(name)
    element = element or next(iter(entry.layouts))
    if element not in entry.layouts:
        raise BadInput(f"layout {name} does not store {element!r} codes", hint=f"it stores {' '.join(entry.layouts)}")
    text = _line(entry.layouts[element])
    values = {p.name: p.default for p in entry.parameters if f"{{{p.name}}}" in text}
    for key, value in parameters.items():
        if key not in values:
            hint = f"its parameters are {' '.join(values)}" if values else "it has none"
            raise BadInput(f"layout {name} of {element} codes has no parameter {key!r}", hint=hint)
        if value < 1:
            raise BadInput(f"layout {name}: {key} is {value}, but a radix is at least 1")
    values |= parameters
    layout = parse_layout(re.sub(r"\{(\w+)\}", lambda m: str(values.get(m[1], m[0])), text))
    return NamedLayout(
        name,
        element,
        layout,
        (("codes", element), *entry.parts),
        tuple(values.items()),
        entry.summary,
        entry.source,
        entry.oracle,
        _bound_shape(layout) if isinstance(layout, Stages) else entry.shape,
        entry.owner,
    )


def _bound_shape(layout: Stages) -> tuple[int, ...]:
    """The one shape that stages are for, without the bits of a code."""
    return tuple(dimension.block for dimension in layout.stages[0].dimensions if dimension.name != BITS)


def parse(text: str) -> NamedLayout:
    """The layout of `marlin`, `marlin{element=u8}` or `onnxruntime_matmul_nbits{element=u4,block=128}`."""
    call = _CALL.fullmatch(text)
    options: dict[str, str] = {}
    for option in (call["options"] or "").split(",") if call else ():
        if option.strip():
            if not (match := _OPTION.fullmatch(option)):
                raise BadInput(f"cannot read {option.strip()!r} in {text!r}", hint="write it like marlin{element=u8}")
            options[match[1]] = match[2]
    if call is None:
        raise BadInput(f"cannot read {text!r}", hint="write it like marlin or marlin{element=u8}")
    load(call["name"])
    element = options.pop("element", None)
    for key, value in options.items():
        if not value.isdecimal():
            raise BadInput(f"{key}={value} in {text!r} is not a whole number")
    return named(call["name"], element, **{key: int(value) for key, value in options.items()})


@cache
def load(name: str) -> Entry:
    """The file of the layout called `name`."""
    if name not in names():
        raise BadInput(f"no layout is called {name!r}", hint=f"known layouts: {', '.join(names())}")
    data: dict[str, Any] = tomllib.loads((_FOLDER / f"{name}.toml").read_text())  # Any: a table of TOML
    owner = data.get("owner")
    return Entry(
        name,
        _line(data["summary"]),
        _line(data["source"]),
        _line(data["oracle"]),
        tuple(data["shape"]),
        data["layouts"],
        tuple(Parameter(key, row["default"], row["meaning"]) for key, row in data.get("parameters", {}).items()),
        tuple(data.get("parts", {}).items()),
        (owner["name"], tuple(owner["digits"].split())) if owner else None,
    )


def _line(text: str) -> str:
    """Text that may go over several lines, on one."""
    return " ".join(text.split())


def bits_of(dtype: str) -> int:
    """How many bits a value of an element or a dtype takes: 4 for `u4`, 16 for `f16`, 8 for `e8m0` and `e4m3`."""
    match = _BITS.fullmatch(dtype)
    if match is None:
        raise BadInput(f"cannot tell how many bits {dtype!r} takes", hint="as in u4, f16, bf16, e8m0 or e4m3")
    if match["e"] is None:
        return int(match[1])
    sign = 0 if match["m"] == "0" else 1  # a power of two has none
    return sign + int(match["e"]) + int(match["m"])
