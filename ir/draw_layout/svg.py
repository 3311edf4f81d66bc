"""The picture itself: above, the elements in the colours of their owners; below, the bytes and their bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from ..layout import Layout, Record
from .canvas import LETTER, Canvas
from .places import CODES, Plan, Span, addresses, dimension_names, has_bit_planes, owners, spans, total_bytes
from .theme import owner_class, part_class, style

_MARGIN = 24
_WIDTH = 1150  # of what is drawn between the margins
_BIT = 8  # width of a bit
_LINE_BYTES = 16
_MOST_LINES = 16
_BYTE_HEIGHT = 34


def svg(plan: Plan) -> str:
    """The picture as an SVG document: no scripts, no fonts of its own, for light and dark ground."""
    number = owners(plan)
    canvas = Canvas()
    canvas.label(_MARGIN, 34, "sans title", plan.name)
    canvas.label(_MARGIN, 54, "sans note", plan.summary)
    _text_lines(canvas, str(plan.layout))
    bottom = _storage(canvas, plan, _elements(canvas, plan, number, 124) + 28)
    width, height = _WIDTH + 2 * _MARGIN, round(bottom + _MARGIN)
    shape = " x ".join(map(str, plan.shape))
    description = (
        f"A tensor of {shape}, {plan.bits[CODES]} bits a code, {total_bytes(plan)} bytes. Above, each element with the "
        f"place it is stored at, coloured by {plan.owner}; below, the bytes."
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'role="img" aria-labelledby="title text">',
            f'  <title id="title">{escape(plan.name)}: {escape(str(plan.layout))}</title>',
            f'  <desc id="text">{escape(description)}</desc>',
            style(int(number.max()) + 1, [part for part in plan.bits if part != CODES]),
            *canvas.elements(),
            "</svg>\n",
        ]
    )


def _text_lines(canvas: Canvas, text: str) -> None:
    """The text of the layout on at most two lines."""
    most = int(_WIDTH / (13 * LETTER))
    cut = text.rfind(" ", 0, most) if len(text) > most else len(text)
    canvas.label(_MARGIN, 76, "text", text[:cut])
    rest = text[cut:].strip()
    canvas.label(_MARGIN + 16, 93, "text", rest if len(rest) <= most else rest[: most - 3] + " …")


@dataclass(frozen=True)
class _Cells:
    """Sizes of the cells of elements: large ones show place and owner, small ones the place."""

    width: int
    height: int
    is_large: bool


def _elements(canvas: Canvas, plan: Plan, number: NDArray[np.int64], top: int) -> int:
    """The elements in panels of at most 32 by 32, left to right; gives where they end."""
    rows, columns = prod(plan.shape[:-1]), plan.shape[-1]
    by_byte = isinstance(plan.layout, Record) or has_bit_planes(plan)
    places = addresses(plan).reshape(rows, columns) // (8 if by_byte else plan.bits[CODES])
    number = number.reshape(rows, columns)
    cells = _Cells(34, 28, True) if places.size <= 1024 else _Cells(25, 16, False)
    below = f"; below it the {plan.owner}" if cells.is_large else f"; a colour is one {plan.owner}"
    canvas.label(_MARGIN, top, "sans head", "Elements")
    canvas.label(_MARGIN + 72, top, "sans note", f"the number is the {'byte' if by_byte else 'slot'}{below}")
    y, x, line = top + 28, _MARGIN, 0
    for row in range(0, rows, 32):
        for column in range(0, columns, 32):
            panel = (slice(row, row + 32), slice(column, column + 32))
            high, wide = places[panel].shape
            wide, high = 54 + wide * cells.width, 28 + high * cells.height
            if x > _MARGIN and x + wide > _MARGIN + _WIDTH + 14:
                x, y, line = _MARGIN, y + line, 0
            _panel(canvas, plan, places[panel], number[panel], cells, (x, y), (row, column))
            x, line = x + wide, max(line, high)
    return y + line


def _panel(
    canvas: Canvas,
    plan: Plan,
    places: NDArray[np.int64],
    number: NDArray[np.int64],
    cells: _Cells,
    at: tuple[int, int],
    first: tuple[int, int],
) -> None:
    """One panel whose upper left element is `first`, at a point; names of dimensions stand in its corner."""
    x0, y0 = at[0] + 40, at[1]
    *outer, last = dimension_names(plan)
    corner = f"{','.join(outer)}\u2193 {last}\u2192" if outer else f"{last}\u2192"
    canvas.label(x0 - 6, y0 - 4, "axis end", corner)
    for column in range(places.shape[1]):
        canvas.label(x0 + (column + 0.5) * cells.width - 1, y0 - 4, "axis mid", str(first[1] + column))
    for row in range(places.shape[0]):
        y = y0 + row * cells.height
        if outer:
            label = ",".join(map(str, np.unravel_index(first[0] + row, plan.shape[:-1])))
            canvas.label(x0 - 6, y + cells.height / 2 + 3, "axis end", label)
        for column in range(places.shape[1]):
            x = x0 + column * cells.width
            middle = x + cells.width / 2 - 1
            canvas.box(x, y, cells.width - 2, cells.height - 2, owner_class(int(number[row, column])))
            canvas.label(
                middle,
                y + (13 if cells.is_large else 10),
                "slot" if cells.is_large else "code",
                str(places[row, column]),
            )
            if cells.is_large:
                canvas.label(middle, y + 23, "tiny", str(number[row, column]))


def _storage(canvas: Canvas, plan: Plan, top: int) -> float:
    """The first bytes, 16 a line; gives where they end. Named spaces begin lines of their own."""
    names = dimension_names(plan)
    label = ", ".join(names[-1:] if _is_one_row(plan) else names)
    canvas.label(_MARGIN, top, "sans head", "Bytes")
    canvas.label(_MARGIN + 72, top, "sans note", f"least significant bit on the left; a label is ({label})")
    total, y = total_bytes(plan), float(top + 24)
    lines = _lines(plan, total)
    padding: list[int] = []
    for start, stop in lines:
        found = [span for span in spans(plan, start * 8 - 64, stop * 8) if span.stop > start * 8]
        if all(span.is_padding for span in found):
            padding += [start, stop]
            continue
        y = _padding_note(canvas, padding, y)
        captions = list(_captions(plan, found, start * 8))
        y += 12 if captions else 0
        canvas.label(_MARGIN + 34, y + _BYTE_HEIGHT / 2 + 3, "axis end", str(start))
        for bit, text in captions:
            canvas.label(_x(bit, start), y - 3, "axis", text)
        for span in found:
            _span(canvas, plan, span, start * 8, stop * 8, y)
        _outlines(canvas, found, start * 8, stop * 8, y)
        y += _BYTE_HEIGHT + 8
    y = _padding_note(canvas, padding, y)
    if missing := total - sum(stop - start for start, stop in lines):
        canvas.label(_MARGIN + 42, y + 12, "sans note", f"… and {missing} bytes more")
        y += 20
    return y


def _lines(plan: Plan, total: int) -> list[tuple[int, int]]:
    """The bytes of each line: from, to."""
    size, most = total, _MOST_LINES
    if isinstance(plan.layout, Layout) and plan.layout.spaces:
        extents = plan.layout.extents(plan.shape)
        banks = prod(extents[name] for name in plan.layout.stored()[plan.layout.spaces[0].name])
        if total % banks == 0:
            size, most = total // banks, max(1, _MOST_LINES // banks)
    starts = [bank + line * _LINE_BYTES for bank in range(0, total, size) for line in range(min(most, -(-size // 16)))]
    return [(start, min(start + _LINE_BYTES, start // size * size + size)) for start in starts[:_MOST_LINES]]


def _padding_note(canvas: Canvas, padding: list[int], y: float) -> float:
    """A line for the bytes of padding that were left out, if any."""
    if not padding:
        return y
    canvas.label(_MARGIN + 42, y + 12, "sans note", f"bytes {padding[0]} to {padding[-1] - 1} are padding")
    padding.clear()
    return y + 24


def _captions(plan: Plan, found: Sequence[Span], start: int) -> Iterator[tuple[int, str]]:
    """Where a run of one field, or of one owner, begins in a line of bits: its name, where there is room for it."""
    are_planes = plan.bits[CODES] > 1 and all(span.high - span.low == 1 for span in found)
    free = start
    for text, run in groupby(found, lambda span: _caption(plan, span, are_planes)):
        begin = max(start, next(iter(run)).start)
        if text and begin >= free:
            yield begin, text
            free = begin + round(len(text) * 9 * LETTER / _BIT) + 1


def _caption(plan: Plan, span: Span, are_planes: bool) -> str:
    if isinstance(plan.layout, Record):
        bits = plan.bits[span.part]
        return span.part if span.high - span.low == bits else f"{span.part}[{span.low}:{span.high}]"
    if span.owner is None or span.is_padding:
        return ""
    return f"{plan.owner} {span.owner}" + (f", bit {span.low}" if are_planes else "")


def _span(canvas: Canvas, plan: Plan, span: Span, start: int, stop: int, y: float) -> None:
    """A span, or the part of it in this line of bits."""
    left, right = max(span.start, start), min(span.stop, stop)
    x, width = _x(left, start // 8), (right - left) * _BIT
    if span.is_padding:
        canvas.box(x + 1, y + 1, width - 2, _BYTE_HEIGHT - 2, "pad")
        return
    kind = owner_class(span.owner or 0) if span.part == CODES else part_class(span.part)
    canvas.box(x, y, width, _BYTE_HEIGHT, kind)
    label = ",".join(map(str, span.coords[-1:] if _is_one_row(plan) else span.coords))
    if width >= len(label) * 9 * LETTER + 2:
        canvas.label(x + width / 2, y + _BYTE_HEIGHT / 2 + 3, "code", label)
    else:
        canvas.upright(x + width / 2 + 2.5, y + _BYTE_HEIGHT / 2, "thin", label)


def _outlines(canvas: Canvas, found: Sequence[Span], start: int, stop: int, y: float) -> None:
    """Bytes, several together where one value lies in all of them."""
    wide = [span for span in found if span.high - span.low > 8]
    edges = [bit for bit in range(start + 8, stop, 8) if not any(span.start < bit < span.stop for span in wide)]
    for left, right in zip([start, *edges], [*edges, stop], strict=True):
        canvas.outline(_x(left, start // 8), y, (right - left) * _BIT, _BYTE_HEIGHT)


def _is_one_row(plan: Plan) -> bool:
    return all(extent == 1 for extent in plan.shape[:-1])


def _x(bit: int, first_byte: int) -> float:
    return _MARGIN + 42 + (bit - first_byte * 8) * _BIT
