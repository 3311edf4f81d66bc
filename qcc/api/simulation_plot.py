"""The plot of a simulation, one SVG: network error over size with the Pareto front, and the error of every layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from .page.charts import CEILING, FLOOR
from .page.markup import Html, element, join
from .page.words import decibels
from .simulation import SimulatedScheme, Simulation, shortened
from .simulation_marks import COLOURS, Axis, labels, line, mark, text, width

_WIDTH, _LEFT, _RIGHT = 960, 64, 24
_UPPER, _LOWER = 300, 260
"""Heights of the panels without their titles and what is written under them."""
_TURNED = 60
"""Up to so many layers are named, at a slant where that is needed; more are counted."""
_LEVEL, _SLANT = 110, 60
"""Names are level where a layer has so many pixels, else they climb at so many degrees."""
_LABEL = 26
"""Letters of a scheme's name beside its point; the legend has all of them."""
_STYLE = """
text { font: 12px ui-sans-serif, system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #57606a; }
.title { font-size: 17px; font-weight: 600; fill: #1f2328; }
.panel { font-size: 13px; font-weight: 600; fill: #1f2328; }
.name { fill: #1f2328; stroke: #ffffff; stroke-width: 3; stroke-linejoin: round; paint-order: stroke; }
.paper { fill: #ffffff; }
.grid { stroke: #e3e6ea; }
.front { fill: none; stroke: #8c96a3; stroke-width: 1.5; stroke-dasharray: 5 4; }
.lead { stroke: #8c96a3; stroke-width: 0.8; }
.mark { fill: currentColor; stroke: currentColor; stroke-width: 1.6; }
.hollow { fill: #ffffff; }
.line { fill: none; stroke: currentColor; stroke-width: 1.6; stroke-linejoin: round; }
.dash { stroke-dasharray: 7 4; }
.dot { stroke-dasharray: 2 3; }
"""
_DARK = """
text { fill: #9da7b3; }
.title, .panel, .name { fill: #e6edf3; }
.name { stroke: #0d1117; }
.paper, .hollow { fill: #0d1117; }
.grid { stroke: #2b323b; }
.front, .lead { stroke: #6b7684; }
"""


def draw(simulation: Simulation) -> str:
    """The picture of a simulation, an SVG document that follows the reader's light or dark theme."""
    named = [_printable(s.scheme) for s in simulation.schemes]
    upper = _sizes(simulation, named, 84)
    legend, below = _legend(named, 84 + _UPPER + 62)
    lower, height = _layers(simulation, named, below + 40)
    plural = "scheme" if len(named) == 1 else "schemes"
    title = f"{_printable(simulation.name)} in {len(named)} {plural}"
    best = max(simulation.schemes, key=lambda s: s.sqnr_db)
    described = (
        f"Network error from {decibels(min(s.sqnr_db for s in simulation.schemes))} to {decibels(best.sqnr_db)}, "
        f"the least in {_printable(best.scheme)}; below, the error of {len(simulation.nodes)} layers."
    )
    return element(
        "svg",
        element("title", title),
        element("desc", described),
        element(
            "style", Html(_STYLE + _colours(0) + "@media (prefers-color-scheme: dark) {" + _DARK + _colours(1) + "}")
        ),
        element("rect", class_="paper", width=_WIDTH, height=f"{height:.0f}"),
        text(title, 24, 34, kind="title"),
        text(_printable(f"Signal to quantization noise; {simulation.samples}"), 24, 54),
        upper,
        legend,
        lower,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH} {height:.0f}",
        width=_WIDTH,
        height=f"{height:.0f}",
        role="img",
    )


def pareto(schemes: Sequence[SimulatedScheme]) -> list[SimulatedScheme]:
    """The schemes that no other one beats in both size and error, by size."""
    front: list[SimulatedScheme] = []
    for scheme in sorted(schemes, key=lambda s: (s.bits_per_weight, -s.sqnr_db)):
        if not front or scheme.sqnr_db > front[-1].sqnr_db:
            front.append(scheme)
    return front


def _is_beaten(scheme: SimulatedScheme, simulation: Simulation) -> bool:
    mine = (-scheme.bits_per_weight, scheme.sqnr_db)
    others = [(-s.bits_per_weight, s.sqnr_db) for s in simulation.schemes]
    return any(other != mine and other[0] >= mine[0] and other[1] >= mine[1] for other in others)


def _sizes(simulation: Simulation, named: Sequence[str], top: float) -> Html:
    """Decibels of the network over bits a weight: a point a scheme."""
    x = Axis.around(
        (s.bits_per_weight for s in simulation.schemes), _LEFT + 20, _WIDTH - _RIGHT - 20, least=0.05, ticks=8
    )
    y = Axis.around((_clipped(s.sqnr_db) for s in simulation.schemes), top + _UPPER, top + 34, least=1)
    front = pareto(simulation.schemes)
    places = [(x.at(s.bits_per_weight), y.at(s.sqnr_db)) for s in simulation.schemes]
    steps = [(x.at(s.bits_per_weight), y.at(s.sqnr_db)) for s in front]
    roads = [r for (a, b), (c, d) in pairwise(steps) for r in ((a, b, c, b), (c, b, c, d))]
    points = [
        mark(
            i, px, py, f"{name}: {s.bits_per_weight:.2f} bits, {decibels(s.sqnr_db)}", hollow=_is_beaten(s, simulation)
        )
        for i, (s, name, (px, py)) in enumerate(zip(simulation.schemes, named, places, strict=True))
    ]
    beside = [(px, py, _cut(name)) for name, (px, py) in zip(named, places, strict=True)]
    ticks = [text(f"{v:.10g}", x.at(v), top + _UPPER + 20, anchor="middle") for v in x.ticks()]
    return element(
        "g",
        text("Error of the network over size: up and to the left is better", 24, top + 8, kind="panel"),
        _grid(y),
        *ticks,
        text("bits per quantized weight, scales included", _WIDTH - _RIGHT, top + _UPPER + 38, anchor="end"),
        text("dashed: the Pareto front; hollow: another scheme is no larger and no worse", _LEFT, top + _UPPER + 38),
        *(element("path", class_="front", d=f"M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}") for a, b, c, d in roads),
        *points,
        labels(beside, (_LEFT, top + 20, _WIDTH - 4, top + _UPPER), roads),
        class_="sizes",
    )


def _legend(named: Sequence[str], top: float) -> tuple[Html, float]:
    """The marks with the full names, in rows, and where they end."""
    x, y, entries = 30.0, top, list[Html]()
    for index, name in enumerate(named):
        wide = 38 + width(name)
        if entries and x + wide > _WIDTH:
            x, y = 30.0, y + 20
        entries += [mark(index, x, y), text(name, x + 12, y + 4, kind="name")]
        x += wide
    return element("g", *entries, class_="legend"), y


def _layers(simulation: Simulation, named: Sequence[str], top: float) -> tuple[Html, float]:
    """Decibels of each layer's result in the order of the network, a line a scheme; and where the picture ends."""
    nodes = simulation.nodes
    if not nodes:
        return text("No layer was quantized.", 24, top + 8, kind="panel"), top + 32
    rows = list(zip(*(simulation.output_sqnr(node) for node in nodes), strict=True))
    y = Axis.around((_clipped(db) for row in rows for db in row if db is not None), top + _LOWER, top + 34, least=1)
    slot = (_WIDTH - _LEFT - _RIGHT) / len(nodes)
    places = [_LEFT + slot * (i + 0.5) for i in range(len(nodes))]
    drawn: list[Html] = []
    for index, row in enumerate(rows):
        points = [None if db is None else (px, y.at(db)) for px, db in zip(places, row, strict=True)]
        drawn.append(line(index, points))
        if len(nodes) <= _TURNED:
            drawn += [
                mark(index, *point, f"{named[index]}, {_printable(node)}: {decibels(db)}", small=True)
                for node, point, db in zip(nodes, points, row, strict=True)
                if point is not None and db is not None
            ]
    names, bottom = _names([_printable(node) for node in nodes], places, slot, top + _LOWER + 18)
    title = "Error of each layer's result where that layer alone is quantized, first to last: up is better"
    return element("g", text(title, 24, top + 8, kind="panel"), _grid(y), *drawn, names, class_="layers"), bottom


def _names(nodes: Sequence[str], places: Sequence[float], slot: float, top: float) -> tuple[Html, float]:
    """What stands under the layers: their names, level or at a slant, or numbers; and where the picture ends."""
    if len(nodes) > _TURNED:
        every = next(e for e in (10, 20, 50, 100, 200, 500, 1000, 10_000) if len(nodes) / e <= 20)
        numbers = [(i + 1, x) for i, x in enumerate(places) if i == 0 or (i + 1) % every == 0]
        return join(text(str(i), x, top, anchor="middle") for i, x in numbers), top + 20
    names = shortened(nodes)
    if slot > _LEVEL:
        return join(
            text(_end(n, slot - 8), x, top, anchor="middle") for n, x in zip(names, places, strict=True)
        ), top + 20
    cut = [_end(name, (places[0] - 8) / math.cos(math.radians(_SLANT))) for name in names]
    slanted = join(text(n, x + 4, top - 4, anchor="end", turn=-_SLANT) for n, x in zip(cut, places, strict=True))
    return slanted, top + 12 + math.sin(math.radians(_SLANT)) * max(map(width, cut))


def _end(name: str, room: float) -> str:
    """As much of the end of a name as there is room for: the end tells more than the beginning."""
    if width(name) <= room:
        return name
    count = next((n for n in range(len(name) - 1, 0, -1) if width("…" + name[-n:]) <= room), 1)
    return "…" + name[-count:]


def _grid(y: Axis) -> Html:
    return join(
        join(
            (
                element("path", class_="grid", d=f"M{_LEFT} {y.at(v):.1f}H{_WIDTH - _RIGHT}"),
                text(f"{v:.10g} dB", _LEFT - 8, y.at(v) + 4, anchor="end"),
            )
        )
        for v in y.ticks()
    )


def _clipped(sqnr_db: float) -> float:
    """Exact and broken results stand at the edge: they would press all others together."""
    return min(max(sqnr_db, FLOOR), CEILING)


def _cut(name: str) -> str:
    return name if len(name) <= _LABEL else name[: _LABEL - 1] + "…"


def _colours(theme: int) -> str:
    return "".join(f".s{i} {{ color: {pair[theme]}; }}\n" for i, pair in enumerate(COLOURS))


def _printable(words: str) -> str:
    """Without what XML does not hold: names come from the model."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
