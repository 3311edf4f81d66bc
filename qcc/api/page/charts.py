"""Pictures as inline SVG and lists: bars that a reader without the picture still reads, and dots along the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .facts import Layer
from .markup import Html, element, join
from .words import decibels

WIDTH, HEIGHT = 960, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 2, 12, 34
INSET = 24
NAMED_DOTS = 400
"""Up to so many dots each carry their name; more are drawn as one path, so that the page stays quick."""

CEILING, FLOOR = 120.0, -20.0
"""Decibels beyond these are drawn at the edge: an exact layer would press all others together."""


@dataclass(frozen=True)
class Bar:
    """A bar of length `value`. `ghost` is a paler one behind it, `spread` a thin line from one value to another."""

    label: Html
    value: float
    text: str
    note: str = ""
    ghost: float = 0.0
    spread: tuple[float, float] | None = None
    kind: str = ""


def bars(rows: Sequence[Bar], *, label: str) -> Html:
    """A list of bars on one scale, each with its label and its value as text."""
    longest = max((max(r.value, r.ghost, *(r.spread or ())) for r in rows), default=0.0) or 1.0
    items = [
        element(
            "li",
            element("span", row.label, class_="name"),
            _bar(row, longest),
            element("span", element("b", row.text), element("small", row.note) if row.note else None, class_="value"),
        )
        for row in rows
    ]
    return element("ol", *items, class_="bars", aria_label=label)


def _bar(row: Bar, longest: float) -> Html:
    def rect(kind: str, begin: float, end: float, y: float, height: float) -> Html:
        x, width = 100 * begin / longest, 100 * (end - begin) / longest
        return element("rect", class_=kind, x=f"{x:.2f}", y=y, width=f"{max(width, 0.3):.2f}", height=height)

    parts = [rect("ghost", 0, row.ghost, 0, 10)] if row.ghost else []
    parts.append(rect("fill", 0, row.value, 0, 10))
    if row.spread:
        parts.append(rect("spread", *row.spread, 4, 2))
    return element(
        "svg",
        *parts,
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        aria_hidden="true",
        class_=f"bar {row.kind}".strip(),
    )


def dots(layers: Sequence[Layer]) -> Html:
    """The signal to noise ratio of each layer's result over its place in the network."""
    known = [(layer, layer.sqnr_db) for layer in layers if layer.sqnr_db is not None]
    low, high, step = _axis([value for _, value in known])
    last = max(len(layers) - 1, 1)

    def x(index: int) -> float:
        return LEFT + INSET + (WIDTH - LEFT - RIGHT - 2 * INSET) * (index / last if len(layers) > 1 else 0.5)

    def y(value: float) -> float:
        inside = min(max(value, low), high)
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - inside) / (high - low)

    points = [(x(layer.index), y(value)) for layer, value in known]
    grid = [_grid_line(y(tick), tick) for tick in _ticks(low, high, step)]
    worst, best = min(value for _, value in known), max(value for _, value in known)
    road = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
    drawn = (
        [
            element(
                "circle",
                element("title", f"{layer.record.node}: {decibels(value)}"),
                cx=f"{px:.1f}",
                cy=f"{py:.1f}",
                r=5 if len(known) <= 60 else 3,
            )
            for (layer, value), (px, py) in zip(known, points, strict=True)
        ]
        if len(known) <= NAMED_DOTS
        else [element("path", d="".join(f"M{px:.1f} {py:.1f}h0" for px, py in points), class_="dots")]
    )
    base = HEIGHT - 8
    return element(
        "svg",
        *grid,
        element("path", d=road, class_="road"),
        *drawn,
        element("text", "first layer", x=LEFT, y=base),
        element("text", "last layer", x=WIDTH - RIGHT, y=base, text_anchor="end"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"Signal to noise of {len(known)} layers in the order of the network, "
        f"from {decibels(worst)} to {decibels(best)}",
        class_="dots",
    )


def _grid_line(y: float, value: float) -> Html:
    return join(
        (
            element("path", d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", class_="grid"),
            element("text", f"{value:.0f} dB", x=LEFT - 10, y=f"{y + 4:.1f}", text_anchor="end"),
        )
    )


def _axis(values: Sequence[float]) -> tuple[float, float, float]:
    """Ends and step of an axis that holds the values, at round numbers."""
    inside = [min(max(value, FLOOR), CEILING) for value in values]
    low, high = min(inside), max(inside)
    step = next((s for s in (1, 2, 5, 10, 20) if (high - low) / s <= 5), 50)
    low, high = step * math.floor(low / step), step * math.ceil(high / step)
    return (low - step, high + step, step) if low == high else (low, high, step)


def _ticks(low: float, high: float, step: float) -> list[float]:
    return [low + step * k for k in range(round((high - low) / step) + 1)]
