"""The loops of a linear kernel: blocks of the weight, read once, times some rows of activations held in registers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .emit_group import GroupEnd, factor, indent, read_number
from .storage import ROWS, Place

if TYPE_CHECKING:
    from .emit_linear import LinearText


class Direct:
    """Writes one `direct` function: some rows of activations times blocks whose codes go through registers alone."""

    def __init__(self, text: LinearText, rows: int, streams: int) -> None:
        self.text, self.storage, self.spec = text, text.storage, text.spec
        self.rows, self.streams = rows, streams
        self.lanes = [f"{s}_{r}" for s in range(streams) for r in range(self.storage.vectors)]
        self.unroll = max(1, min(text.schedule.unroll, self.storage.cells)) if rows == 1 else 1

    def function(self) -> Iterator[str]:
        """Its lines."""
        s, ends = self.storage, GroupEnd(self.text, self.lanes, self.rows)
        blocks = ", ".join(
            f"const uint8_t *w{i}, float *y{i}, const float *b{i}, int n{i}" for i in range(self.streams)
        )
        ahead = ", const uint8_t *ahead, size_t step" if self.rows > 1 else ""
        name = f"direct_{self.rows}_{self.streams}"
        yield f"static void {name}(const uint8_t *x, float alpha, long ldy, {blocks}{ahead}) {{"
        yield from indent(1, ends.declare("y"))
        yield f"    for (long g = 0, super = 0; super < {s.supers}; super++) {{"
        yield from indent(2, ends.declare_outer())
        yield f"        for (long group = 0; group < {s.groups}; group++, g++) {{"
        yield from indent(3, ends.starts(self._number))
        yield "            const int8_t *q = (const int8_t *)x + g * GROUP;"
        yield f'            _Pragma("GCC unroll {self.unroll}")'
        yield f"            for (long cell = 0; cell < {s.cells}; cell++, q += {s.cell.columns}) {{"
        yield from indent(4, self._cell())
        yield "            }"
        yield from indent(3, ends.group(self._number))
        yield from indent(3, [f"w{i} += {s.group_bytes};" for i in range(self.streams)])
        yield "        }"
        if s.outer:
            yield from indent(2, [f"w{i} -= {s.outer[0].offset};" for i in range(self.streams)])
            yield from indent(2, ends.super_block(self._number))
            yield from indent(2, [f"w{i} += {s.super_bytes};" for i in range(self.streams)])
        yield "    }"
        for m in range(self.rows):
            yield f"    {{ const floats factor = {factor(self.spec, f'x + {m} * ROW_BYTES')};"
            for lane in self.lanes:
                i, r = lane.split("_")
                at = ROWS * int(r)
                sums = ends.value("y", f"{lane}_{m}")
                yield f"      finish(y{i} + {m} * ldy + {at}, {sums}, factor, b{i}, {at}, n{i});"
            yield "    }"
        yield "}"

    def _number(self, place: Place, lane: str, whole: bool) -> str:
        """The numbers of a level for the 16 rows of a lane, at the stream's place in its record."""
        i, r = lane.split("_")
        return read_number(place, f"w{i}", int(r), whole)

    def _cell(self) -> Iterator[str]:
        """One cell of every block: each vector is unpacked, and multiplied with every row before the next."""
        s, cell, lattice, ahead = self.storage, self.storage.cell, self.spec.lattice, self.text.schedule.prefetch
        at = {lane: f"w{lane[0]} + (cell * {s.vectors} + {lane[2]}) * {cell.bytes}" for lane in self.lanes}
        for lane in self.lanes if ahead else ():
            yield from (f"prefetch_far({at[lane]} + {ahead + line});" for line in range(0, max(64, cell.bytes), 64))
        if self.rows > 1:
            lines = -(-s.block_bytes // (128 * s.cells * s.groups * s.supers))  # what two tiles or more have to fetch
            yield from (f"fetch_line(ahead, step, {line}, w0);" for line in range(lines))
            yield "ahead += step;"
        for quad in range(cell.quads):
            for lane in self.lanes:
                yield f"const bytes64 v_{lane}_{quad} = unpack_{quad}({at[lane]});"
            for p in range(lattice.parts):
                for lane in self.lanes if lattice.tables else ():
                    looked = f"lookup(v_{lane}_{quad}, TABLE{p}, {lattice.bits})"
                    yield f"const bytes64 b_{lane}_{quad}_{p} = {looked};"
                for m in range(self.rows):
                    for a in range(self.spec.activation.parts):
                        x = f"x_{quad}_{p}_{m}_{a}"
                        yield f"const ints {x} = spread4(q + {m} * ROW_BYTES + {a} * COLUMNS + {4 * quad});"
                        for lane in self.lanes:
                            value = f"b_{lane}_{quad}_{p}" if lattice.tables else f"v_{lane}_{quad}"
                            name = f"a_{lane}_{m}_{p + a}"
                            yield f"{name} = {self.text.dot}({name}, {value}, {x});"
