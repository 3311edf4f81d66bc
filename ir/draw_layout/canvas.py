"""A drawing of boxes and labels, gathered by kind: all boxes of one kind are one path, and labels share their style."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from xml.sax.saxutils import escape

LETTER = 0.605
"""Width of a letter of the font, in its sizes."""


class Canvas:
    """What is drawn so far. Boxes lie under outlines, and those under labels."""

    def __init__(self) -> None:
        self._boxes: defaultdict[str, list[str]] = defaultdict(list)
        self._outlines: list[str] = []
        self._labels: defaultdict[str, list[str]] = defaultdict(list)

    def box(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        """A filled box of a kind: its class in the style sheet."""
        self._boxes[kind].append(_path(x, y, width, height))

    def outline(self, x: float, y: float, width: float, height: float) -> None:
        """A box without filling, over the others."""
        self._outlines.append(_path(x, y, width, height))

    def label(self, x: float, y: float, kind: str, text: str) -> None:
        """Text at the baseline `y`."""
        self._labels[kind].append(f'<text x="{x:g}" y="{y:g}">{escape(text)}</text>')

    def upright(self, x: float, y: float, kind: str, text: str) -> None:
        """Text that reads from below, its middle at (x, y)."""
        place = f"translate({x:g} {y:g}) rotate(-90)"
        self._labels[kind].append(f'<text transform="{place}">{escape(text)}</text>')

    def elements(self) -> Iterator[str]:
        """The elements of the document."""
        for kind, boxes in self._boxes.items():
            yield f'  <path class="cell {kind}" d="{"".join(boxes)}"/>'
        if self._outlines:
            yield f'  <path class="byte" d="{"".join(self._outlines)}"/>'
        for kind, labels in self._labels.items():
            yield f'  <g class="{kind}">'
            yield from (f"    {label}" for label in labels)
            yield "  </g>"


def _path(x: float, y: float, width: float, height: float) -> str:
    return f"M{x:g} {y:g}h{width:g}v{height:g}h{-width:g}z"
