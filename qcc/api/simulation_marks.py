"""What a plot is made of: axes with round numbers, marks that differ in shape and colour, labels that keep apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .page.markup import Html, element, join

LINE = 15
"""Pixels from one line of text to the next."""
COLOURS = (
    ("#0072b2", "#56b4e9"),
    ("#c2500a", "#ff9654"),
    ("#00795a", "#3ccfa4"),
    ("#a33e86", "#eba3d0"),
    ("#7a6200", "#e8c547"),
    ("#3d4652", "#d3d9e1"),
)
"""On light and on dark ground. After Okabe and Ito, "Color Universal Design": told apart with any colour vision."""
_SHAPES = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "M-4.5 -4.5h9v9h-9z",
    "M0 -6L5.8 4.4H-5.8z",
    "M0 -6.2L6.2 0L0 6.2L-6.2 0z",
    "M0 6L5.8 -4.4H-5.8z",
    "M-6 -2h4v-4h4v4h4v4h-4v4h-4v-4h-4z",
)
_DASHES = ("", " dash", " dot")


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` on pixels from `begin` to `end`, with a tick at every `step`."""

    low: float
    high: float
    step: float
    begin: float
    end: float

    @staticmethod
    def around(values: Iterable[float], begin: float, end: float, *, least: float, ticks: int = 6) -> Axis:
        """The least axis with round ends that holds the values, with about so many ticks, `least` apart or more."""
        found = list(values) or [0.0]
        low, high = min(found), max(found)
        rough = max((high - low) / ticks, least)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
        low, high = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)
        return Axis(low - step, high + step, step, begin, end) if low == high else Axis(low, high, step, begin, end)

    def at(self, value: float) -> float:
        """The pixel of a value; values beyond the ends stay at them."""
        inside = min(max(value, self.low), self.high)
        return self.begin + (self.end - self.begin) * (inside - self.low) / (self.high - self.low)

    def ticks(self) -> Iterator[float]:
        """The round numbers."""
        yield from (self.low + self.step * k for k in range(round((self.high - self.low) / self.step) + 1))


def mark(series: int, x: float, y: float, title: str = "", *, hollow: bool = False, small: bool = False) -> Html:
    """The mark of a series at a place; its title shows where the pointer rests."""
    name = f"mark s{series % len(COLOURS)}{' hollow' if hollow else ''}"
    moved = f"translate({x:.1f} {y:.1f}){' scale(0.7)' if small else ''}"
    shape = _SHAPES[(series + series // len(COLOURS)) % len(_SHAPES)]
    return element("path", element("title", title) if title else None, class_=name, transform=moved, d=shape)


def line(series: int, points: Sequence[tuple[float, float] | None]) -> Html:
    """The line of a series, broken where a point is missing."""
    path, pen = "", "M"
    for point in points:
        path += f"{pen}{point[0]:.1f} {point[1]:.1f}" if point else ""
        pen = "L" if point else "M"
    dash = _DASHES[series // len(COLOURS) % len(_DASHES)]
    return element("path", class_=f"line s{series % len(COLOURS)}{dash}", d=path or "M0 0")


def text(words: str, x: float, y: float, *, kind: str = "", anchor: str = "start", turn: float = 0) -> Html:
    """Words at a place."""
    turned = f"rotate({turn} {x:.1f} {y:.1f})" if turn else None
    return element("text", words, class_=kind or None, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, transform=turned)


def width(words: str) -> float:
    """Pixels that words take at 12 px: enough for the usual fonts, of which nobody knows which one there will be."""
    return sum(4.2 if c in " ,.:;ijlt|[]()'" else 8.6 if c.isupper() or c in "mw_" else 7.4 for c in words)


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def away(self, x: float, y: float) -> float:
        """How far a point is from the box."""
        return math.hypot(max(self.left - x, 0, x - self.right), max(self.top - y, 0, y - self.bottom))

    def overlap(self, other: _Box) -> float:
        """The area that two boxes share."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, wide) * max(0.0, high)


def labels(
    points: Sequence[tuple[float, float, str]],
    frame: tuple[float, float, float, float],
    lines: Sequence[tuple[float, float, float, float]] = (),
) -> Html:
    """A label beside each point (x, y, words), inside a frame (left, top, right, bottom), clear of marks and others.

    One after another takes the nearest place where it covers nothing, not even `lines`, which run along an axis, and
    where no other point is nearer. Where there is none, a thin line says to which point it belongs.
    """
    placed = [_Box(x - 7, y - 7, x + 7, y + 7) for x, y, _ in points]
    placed += [_Box(min(a, c) - 1, min(b, d) - 1, max(a, c) + 1, max(b, d) + 1) for a, b, c, d in lines]
    spots = [(x, y) for x, y, _ in points]
    drawn: list[Html] = []
    for x, y, words in sorted(points, key=lambda point: (point[1], point[0])):
        boxes = [box for box in _places(x, y, width(words)) if _inside(box, frame)]
        if not boxes:
            continue
        others = [spot for spot in spots if spot != (x, y)]
        unclear = [any(box.away(*spot) < box.away(x, y) for spot in others) for box in boxes]
        covered = [round(sum(box.overlap(p) for p in placed)) for box in boxes]
        at = min(range(len(boxes)), key=lambda i: (covered[i], i + 8 * unclear[i]))
        best = boxes[at]
        placed.append(best)
        near_x, near_y = min(max(x, best.left), best.right), (best.top + best.bottom) / 2
        if unclear[at] or best.away(x, y) > 14:
            drawn.append(element("path", class_="lead", d=f"M{x:.1f} {y:.1f}L{near_x:.1f} {near_y:.1f}"))
        side = {best.left: "start", best.right: "end"}.get(near_x, "middle")
        begin = {"start": best.left, "end": best.right, "middle": (best.left + best.right) / 2}[side]
        drawn.append(text(words, begin, best.bottom - 4, kind="name", anchor=side))
    return join(drawn)


def _places(x: float, y: float, wide: float) -> Iterator[_Box]:
    """Boxes for a label, the best first: right, left, above, below, and then further away."""

    def box(left: float, middle: float) -> _Box:
        return _Box(left, middle - LINE / 2, left + wide, middle + LINE / 2)

    yield box(x + 10, y)
    yield box(x - 10 - wide, y)
    for rows in range(1, 12):
        for shift in (-LINE * rows, LINE * rows):
            yield from (box(left, y + shift) for left in (x + 10, x - wide / 2, x - 10 - wide))


def _inside(box: _Box, frame: tuple[float, float, float, float]) -> bool:
    left, top, right, bottom = frame
    return box.left >= left and box.top >= top and box.right <= right and box.bottom <= bottom
