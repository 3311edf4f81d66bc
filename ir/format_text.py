"""The text of a format, both ways: `parse(", ".join(texts(f))) = f`. The grammar is in `docs/formats.md`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from .errors import BadInput, NotSupported
from .format import HINT, Format, Offset, Outliers
from .level import BLOCK, Level, block_text, parse_block, parse_level
from .levels import level_dtype


def texts(fmt: Format) -> Iterator[str]:
    """The parts of the text of a format, in the order in which they print."""
    if fmt.lookup and len(fmt.choices) > 1:
        yield f"{fmt.element} per {block_text(fmt.lookup.block)}"
    elif fmt.lookup:
        yield f"{fmt.element} in {fmt.lookup}"
    else:
        yield fmt.element
    yield from map(str, fmt.scales)
    if isinstance(fmt.zero, Level):
        same = fmt.scales and fmt.zero.block == fmt.scales[0].block
        yield f"zero {fmt.zero.dtype if same else fmt.zero}"
    elif fmt.zero is not None:
        yield f"zero {np.format_float_positional(fmt.zero, trim='-')}"
    if fmt.offset:
        yield str(fmt.offset)
    if fmt.mean:
        yield f"mean {fmt.mean}"
    if fmt.permuted:
        yield "permuted"
    if fmt.sparsity:
        yield f"sparse {fmt.sparsity[0]}:{fmt.sparsity[1]}"
    if fmt.outliers:
        yield str(fmt.outliers)


def parse(text: str) -> Format:
    """The format that prints as `text`; `BadInput` names the part that does not parse."""
    head, *parts = [" ".join(part.split()) for part in text.split(",")]
    element, lookup = _parse_element(head, text)
    scales: list[Level] = []
    while parts and (level := parse_level(parts[0])) and _is_level_dtype(level.dtype):
        scales.append(level)
        parts.pop(0)
    found: dict[str, object] = {}
    for part in parts:
        name, value = _parse_part(part, scales)
        if not name or name in found:
            raise BadInput(f"format {text!r}: cannot read {part!r}", hint=HINT)
        found[name] = value
    return Format(element, tuple(scales), lookup=lookup, **found)  # pyright: ignore[reportArgumentType]


def _parse_element(head: str, text: str) -> tuple[str, Level | None]:
    if match := re.fullmatch(rf"(\[[^\s\[\]|]+(?:\|[^\s\[\]|]+)+\]) per ({BLOCK})", head):
        return match[1], Level("u8", parse_block(match[2]))
    if match := re.fullmatch(rf"(\S+) in (\S+ per (?:{BLOCK}))", head):
        level = parse_level(match[2])
        if level is None or not _is_level_dtype(level.dtype):
            raise BadInput(f"format {text!r}: cannot read {match[2]!r}", hint='write it like "k16 in f16 per *"')
        return match[1], level
    if not re.fullmatch(r"[\w.-]*", head):
        raise BadInput(
            f"format {text!r}: cannot read {head!r}", hint='an element, as i4, or "[e2m1z5|e2m1z-5] per 128"'
        )
    return head, None


def _parse_part(part: str, scales: Sequence[Level]) -> tuple[str, object]:
    """The field of a format that `part` says, and its value; an empty name where it says none."""
    word, _, rest = part.partition(" ")
    match word:
        case "zero":
            if re.fullmatch(r"-?[0-9]{1,38}(\.[0-9]{1,400})?", rest):
                return "zero", float(rest)
            level = parse_level(rest) or (Level(rest, scales[0].block if scales else None) if rest else None)
            return ("zero", level) if level and _is_level_dtype(level.dtype) else ("", None)
        case "plus" | "minus":
            levels = [parse_level(each) for each in rest.split(" by ")]
            known = [level for level in levels if level is not None and _is_level_dtype(level.dtype)]
            return ("offset", Offset(word == "minus", tuple(known))) if len(known) == len(levels) else ("", None)
        case "mean":
            level = parse_level(rest)
            return ("mean", level) if level and _is_level_dtype(level.dtype) else ("", None)
        case "permuted" if not rest:
            return "permuted", True
        case "sparse" if match := re.fullmatch(r"([1-9][0-9]{0,3}):([1-9][0-9]{0,3})", rest):
            return "sparsity", (int(match[1]), int(match[2]))
        case "outliers" if match := re.fullmatch(r"(f32|f16|bf16) (columns|csr)", rest):
            return "outliers", Outliers(match[1], match[2] == "columns")
        case _:
            return "", None


def _is_level_dtype(name: str) -> bool:
    try:
        level_dtype(name)
    except (BadInput, NotSupported):
        return False
    return True
