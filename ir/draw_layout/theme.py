"""Colours on light and dark ground: a hue for every four owners, four shades of it, and one for each part."""

from __future__ import annotations

import colorsys
from functools import cache

_SHADES = 4
_MOST = 64
_PARTS = {"scale": 38, "scale1": 18, "plus": 150, "minus": 150, "minus1": 175, "zero": 150}
_OTHER_PART = 285

FONT = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'
SANS = 'ui-sans-serif, system-ui, "Segoe UI", Helvetica, Arial, sans-serif'


def owner_class(number: int) -> str:
    """The class of the colour of an owner; beyond 64 of them colours repeat."""
    return f"o{number % _MOST}"


def part_class(part: str) -> str:
    """The class of the colour of a part of a record."""
    return f"p-{part}"


def style(owners: int, parts: list[str]) -> str:
    """The style sheet for `owners` different colours and the named parts."""
    count = max(1, min(owners, _MOST))
    light = [f"    .o{i} {{ fill: {_owner(i, count, False)}; }}" for i in range(count)]
    dark = [f"      .o{i} {{ fill: {_owner(i, count, True)}; }}" for i in range(count)]
    for part in parts:
        hue = _PARTS.get(part, _OTHER_PART)
        light.append(f"    .p-{part} {{ fill: {_hex(hue, 0.86, 0.80)}; }}")
        dark.append(f"      .p-{part} {{ fill: {_hex(hue, 0.32, 0.55)}; }}")
    return "\n".join(
        [
            "  <style>",
            f"    g {{ font-family: {FONT}; fill: #1f2328; }}",
            f"    .sans {{ font-family: {SANS}; }}",
            "    .title { font-size: 17px; font-weight: 600; }",
            "    .text { font-size: 13px; }",
            "    .note { font-size: 12px; fill: #57606a; }",
            "    .head { font-size: 12px; font-weight: 600; }",
            "    .axis { font-size: 9px; fill: #57606a; }",
            "    .mid { text-anchor: middle; } .end { text-anchor: end; }",
            "    .slot { font-size: 11px; text-anchor: middle; }",
            "    .tiny { font-size: 8px; text-anchor: middle; fill: #57606a; }",
            "    .code { font-size: 9px; text-anchor: middle; }",
            "    .thin { font-size: 7px; text-anchor: middle; }",
            "    .cell { stroke: #8c96a3; stroke-width: 0.6; stroke-linejoin: round; }",
            "    .pad { fill: none; stroke-dasharray: 2 2; }",
            "    .byte { fill: none; stroke: #57606a; stroke-width: 1.2; stroke-linejoin: round; }",
            *light,
            "    @media (prefers-color-scheme: dark) {",
            "      g { fill: #e6edf3; }",
            "      .note, .axis, .tiny { fill: #9da7b3; }",
            "      .cell { stroke: #6e7681; }",
            "      .byte { stroke: #9da7b3; }",
            *dark,
            "    }",
            "  </style>",
        ]
    )


def _owner(number: int, count: int, dark: bool) -> str:
    """Neighbours share a hue and differ in shade; few owners have a hue each."""
    if count <= 8:
        hue, shade = 360 * number / count + 205, 1
    else:
        hue, shade = 360 * (number // _SHADES) / -(-count // _SHADES) + 205, number % _SHADES
    return _hex(hue, 0.22 + 0.07 * shade, 0.45) if dark else _hex(hue, 0.94 - 0.055 * shade, 0.75)


@cache
def _hex(hue: float, lightness: float, saturation: float) -> str:
    red, green, blue = colorsys.hls_to_rgb(hue % 360 / 360, lightness, saturation)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
