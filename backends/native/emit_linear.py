"""The C text of a linear kernel: rounds the activations once, then multiplies blocks of rows with them.

    for each block of 16 R rows:                       one task of a thread
        for each group of columns:                     acc = -offset * sum(x)          what u8 codes are too high by
            for each cell: unpack, then dot            acc += u8 * s8, four at a time, exact in int32
            y += scale * acc                           one conversion and one product a group
        y *= row scale

Rows of activations are taken in tiles whose sums the registers hold. Codes go from memory through registers into the
dot products, once a tile: the second tile finds the block in the cache, and unpacking again takes other units of the
processor than the dot products. One packed copy of a weight serves one row and many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .emit_direct import Direct
from .isa import C_FOLDER, Isa
from .linear_spec import LinearSpec, Schedule
from .storage import Storage


@dataclass(frozen=True)
class Workspace:
    """Where the numbers of one prepared row of activations lie, in bytes from its start."""

    columns: int
    parts: int
    groups: int
    grouped: bool

    @property
    def starts(self) -> int:
        """int32 [parts, groups]: what sums of products start with."""
        return _up(self.columns * self.parts, 64)

    @property
    def scales(self) -> int:
        """float32 [groups], or one for the row."""
        return self.starts + 4 * self.parts * self.groups

    @property
    def totals(self) -> int:
        """float32 [groups]: sums of the whole numbers, times the scale of the group where each has one."""
        return self.scales + 4 * (self.groups if self.grouped else 1)

    @property
    def bytes(self) -> int:
        """Bytes of a row: odd multiples of 64, so that rows fall into different sets of a cache."""
        size = _up(self.totals + 4 * self.groups, 64)
        return size if size // 64 % 2 else size + 64


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


@dataclass(frozen=True)
class LinearText:
    """A generated kernel: its C text and the sizes of what it is called with."""

    spec: LinearSpec
    isa: Isa
    schedule: Schedule
    storage: Storage
    workspace: Workspace

    @property
    def panel_bytes(self) -> int:
        """Bytes of memory that each thread needs."""
        return 0

    @property
    def levels(self) -> int:
        """Sums of one vector of rows: one for each significance that products of bytes have."""
        return self.spec.lattice.parts + self.spec.activation.parts - 1

    @property
    def dot(self) -> str:
        """The dot product that is exact for the bytes of the weight."""
        return "dot" if self.spec.lattice.high < 128 else "dot_wide"

    def text(self) -> str:
        """The whole C text."""
        lines = [
            "#include <math.h>",
            "#include <stddef.h>",
            self.isa.text(),
            *self._constants(),
            (C_FOLDER / "activations.h").read_text(),
        ]
        lines += [(C_FOLDER / "linear_job.h").read_text()]
        lines += self._unpack_functions()
        for rows in range(1, self.schedule.tile + 1):
            lines += self._direct(rows, 1)
        if self.schedule.streams > 1:
            lines += self._direct(1, self.schedule.streams)
        lines += [*self._rows_functions(), *self._streams()]
        lines += [(C_FOLDER / "linear.h").read_text()]
        return "\n".join(lines) + "\n"

    def _constants(self) -> Iterator[str]:
        s, w, spec = self.storage, self.workspace, self.spec
        values = {
            "N": s.n,
            "K": s.k,
            "COLUMNS": s.columns,
            "GROUP": s.group,
            "GROUPS": s.groups * s.supers,
            "GROUPED": int(spec.activation.grouped),
            "PARTS": spec.activation.parts,
            "LIMIT": f"{spec.activation.limit}.0f",
            "BF16": int(spec.activation.dtype == "bf16"),
            "FIXED": int(spec.activation.fixed),
            "ROW_BYTES": w.bytes,
            "STARTS_AT": w.starts,
            "OFFSET": 1 if spec.zero_points else spec.offset,
            "SCALES_AT": w.scales,
            "TOTALS_AT": w.totals,
            "BLOCK_ROWS": s.rows,
            "BLOCKS": s.blocks,
            "BLOCK_BYTES": s.block_bytes,
            "PANEL_BYTES": self.panel_bytes,
        }
        yield f"/* {spec}, {self.isa.name}: {self.schedule}\n   {s.layout} */"
        yield from (f"#define {name} {value}" for name, value in values.items())
        for p, table in enumerate(spec.lattice.tables):
            bytes_ = table if len(table) >= 16 else table + bytes(16 - len(table))
            yield f"static const uint8_t TABLE{p}[{len(bytes_)}] = {{{', '.join(map(str, bytes_))}}};"
        if s.cell.unpack == "dense":
            bits = s.cell.bits
            places = [q * bits + min(j, bits) for q in range(8) for j in range(8)]
            shifts = [j * bits for _ in range(8) for j in range(8)]
            yield f"static const uint8_t PLACES[64] = {{{', '.join(map(str, places))}}};"
            yield f"static const uint8_t SHIFTS[64] = {{{', '.join(map(str, shifts))}}};"

    def _unpack_functions(self) -> Iterator[str]:
        """`unpack_Q(p)`: vector Q of the cell at p, the bytes of the packed codes times the multiplier."""
        cell, by = self.storage.cell, self.spec.lattice.multiplier
        for quad in range(cell.quads):
            yield f"INLINE bytes64 unpack_{quad}(const uint8_t *p) {{"
            if cell.unpack == "dense":
                yield f"    return expand_bits(p, {cell.bits}, PLACES, SHIFTS);"
            else:
                for index, field in enumerate(cell.fields):
                    yield "    " + _take(field.low, field.width, field.offset, quad, first=index == 0, by=by)
                yield "    return v;"
            yield "}"

    def _rows_functions(self) -> Iterator[str]:
        """`multiply(job, m, block)`: any number of rows of activations, in tiles.

        The first tile reads a block from memory, the others find it in the cache: so that they do not idle the memory,
        each of them fetches its share of the next block.
        """
        s, most = self.storage, self.schedule.tile
        yield "static void multiply(const linear_job *job, long block) {"
        yield "    const uint8_t *x = job->x, *w = job->w + (size_t)block * BLOCK_BYTES;"
        yield "    float *y = job->y + block * BLOCK_ROWS;"
        yield "    const float *bias = job->bias ? job->bias + block * BLOCK_ROWS : 0;"
        yield f"    const long tiles = (job->m + {most - 1}) / {most}, cells = {s.cells * s.groups * s.supers};"
        yield "    const size_t share = tiles > 1 ? BLOCK_BYTES / tiles : 0, step = share / cells;"
        yield "    const uint8_t *ahead = share ? w + BLOCK_BYTES : w;"
        yield from ["    (void)step;"] if most == 1 else []
        yield "    for (long m = job->m, left = tiles; left > 0; left--, ahead += share) {"
        yield "        const long rows = (m + left - 1) / left;"
        yield "        switch (rows) {"
        for rows in range(1, most + 1):
            ahead = ", ahead, step" if rows > 1 else ""
            call = f"direct_{rows}_1(x, job->alpha, N, w, y, bias, ROWS_OF(block){ahead});"
            yield f"        case {rows}: {call} break;"
        yield "        }"
        yield "        m -= rows, x += rows * ROW_BYTES, y += rows * N;"
        yield "    }"
        yield "}"

    def _streams(self) -> Iterator[str]:
        """What `linear.h` calls for one row of activations and STREAMS blocks, each `part` blocks behind the last."""
        count = self.schedule.streams
        blocks = ", ".join(f"BLOCK(job, first + {i} * part)" for i in range(count))
        yield f"#define STREAMS {count}"
        yield f"#define DIRECT_STREAMS(job, first, part) direct_1_{count}(job->x, job->alpha, 0, {blocks})"

    def _direct(self, rows: int, streams: int) -> Iterator[str]:
        """`direct_R_S(x, w, y)`: some rows of activations times S blocks that lie anywhere."""
        yield from Direct(self, rows, streams).function()


def _take(low: int, width: int, offset: int, quad: int, *, first: bool, by: int) -> str:
    """One field of one vector, on top of the fields before it."""
    if width == 1:
        at, value = f"p + {offset + 8 * quad}", (1 << low) * by
        return f"bytes64 v = plane({at}, {value});" if first else f"v = add_plane(v, {at}, {value});"
    share = 8 // width
    at, shift = f"load_bytes(p + {offset + 64 * (quad // share)})", width * (quad % share)
    mask = (1 << width) - 1
    if first:
        return "bytes64 v = " + (f"{at};" if width == 8 else f"field({at}, {shift}, {mask});")
    return f"v = merge(v, {at}, {low - shift}, {mask << low});"
