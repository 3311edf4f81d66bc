"""The C text of a linear kernel for trained codebooks: vectors of 64 neighbours of a row, looked up in its own table.

    for each row:
        for each 64 columns: codes, then two lookups       high and low byte of the value of each code
            acc[p + a] += byte_p . activation_a            four at a time, exact in int32
        y = step * (sum over lanes, minus 128 * sum(x))    once a row, in 64 bits

`rows * streams` rows are multiplied at once, so that a vector of activations is loaded once for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .codebook_spec import COLUMNS, CodebookSchedule, CodebookSpec, CodebookStorage
from .emit_group import indent
from .emit_linear import LinearText
from .isa import C_FOLDER

REGISTERS = 28
"""Vectors of sums and of tables that the 32 registers of AVX-512 hold beside what is multiplied."""


@dataclass(frozen=True)
class CodebookText(LinearText):
    """A generated kernel: its C text and the sizes of what it is called with."""

    spec: CodebookSpec
    schedule: CodebookSchedule
    storage: CodebookStorage

    @property
    def panel_bytes(self) -> int:
        """There are no panels."""
        return 0

    @property
    def levels(self) -> int:
        """Sums of a row: of two bytes of a value times the bytes of an activation, by significance."""
        return 1 + self.spec.activation.parts

    @property
    def dot(self) -> str:
        """The dot product that takes every byte."""
        return "dot_wide"

    def text(self) -> str:
        """The whole C text."""
        headers = ("activations.h", "linear_job.h", "codebook.h")
        lines = [
            "#include <math.h>",
            "#include <stddef.h>",
            self.isa.text(),
            *self._constants(),
            *self._places(),
            *(C_FOLDER.joinpath(name).read_text() for name in headers),
            *self._unpack_functions(),
            *(line for rows in range(1, self.schedule.tile + 1) for line in self._direct(rows, 1)),
            *(self._direct(1, self.streams) if self.streams > 1 else ()),
            *self._rows_functions(),
            *self._streams(),
            (C_FOLDER / "linear.h").read_text(),
        ]
        return "\n".join(lines) + "\n"

    @property
    def streams(self) -> int:
        """Blocks that are read side by side where M = 1, as far as registers hold their tables."""
        return max(s for s in range(1, self.schedule.streams + 1) if s == 1 or self.fits(s))

    def at_once(self, rows: int, streams: int) -> int:
        """Rows of each block that are multiplied at once with `rows` rows of activations."""
        fitting = (r for r in (8, 4, 2) if self.storage.block % r == 0 and self.fits(r * streams, rows))
        return next(fitting, 1)

    def fits(self, lanes: int, rows: int = 1) -> bool:
        """Whether registers hold the sums and the tables of so many rows of the weight."""
        sums = lanes * rows * self.levels
        if self.isa.header != "avx512.h":
            return sums <= self.isa.sums
        tables = 2 * max(1, (1 << self.spec.bits) // 64) if self.isa.has("avx512vbmi") else 2
        return sums + lanes * tables <= REGISTERS

    def _places(self) -> Iterator[str]:
        s = self.storage
        values = {
            "ENTRIES": 1 << self.spec.bits,
            "SPAN_ROWS": s.block * s.span,
            "SPAN_BYTES": s.span_bytes,
            "PIECE_BYTES": s.piece_bytes,
            "STRIDE": s.stride,
            "TABLES_AT": s.tables,
            "STEPS_AT": s.steps,
        }
        yield from (f"#define {name} {value}" for name, value in values.items())

    def _rows_functions(self) -> Iterator[str]:
        """`multiply(job, block)`: any number of rows of activations, in tiles of equal size."""
        most = self.schedule.tile
        yield "static void multiply(const linear_job *job, long block) {"
        yield "    const uint8_t *x = job->x;"
        yield "    float *y = job->y;"
        yield f"    const long tiles = (job->m + {most - 1}) / {most}, first = block * BLOCK_ROWS;"
        yield "    for (long m = job->m, left = tiles; left > 0; left--) {"
        yield "        const long rows = (m + left - 1) / left;"
        yield "        switch (rows) {"
        for rows in range(1, most + 1):
            step = self.at_once(rows, 1)
            each = f"for (long r = 0; r < BLOCK_ROWS && first + r < N; r += {step})"
            yield f"        case {rows}: {each} direct_{rows}_1(job, x, y, first + r); break;"
        yield "        }"
        yield "        m -= rows, x += rows * ROW_BYTES, y += rows * N;"
        yield "    }"
        yield "}"

    def _streams(self) -> Iterator[str]:
        """What `linear.h` calls for one row of activations and STREAMS blocks, each `part` blocks behind the last."""
        count = self.streams
        rows = ", ".join(f"(first + {i} * part) * BLOCK_ROWS + r" for i in range(count))
        step = self.at_once(1, count)
        call = f"direct_1_{count}(job, job->x, job->y, {rows})"
        yield f"#define STREAMS {count}"
        yield f"#define DIRECT_STREAMS(job, first, part) for (long r = 0; r < BLOCK_ROWS; r += {step}) {call}"

    def _direct(self, rows: int, streams: int) -> Iterator[str]:
        """`direct_M_S(job, x, y, row, ...)`: M rows of activations times some rows of the weight from S places on."""
        yield from Direct(self, rows, streams).function()


class Direct:
    """Writes one `direct` function."""

    def __init__(self, text: CodebookText, rows: int, streams: int) -> None:
        self.text, self.spec, self.storage, self.rows = text, text.spec, text.storage, rows
        self.streams = range(streams)
        self.height = text.at_once(rows, streams)
        self.lanes = [(i, r) for i in self.streams for r in range(self.height)]
        self.sums = [f"{i}_{r}_{m}" for i, r in self.lanes for m in range(rows)]

    def function(self) -> Iterator[str]:
        """Its lines."""
        s, text = self.storage, self.text
        places = ", ".join(f"long row{i}" for i in self.streams)
        name = f"direct_{self.rows}_{len(self.streams)}"
        yield f"static void {name}(const linear_job *job, const uint8_t *x, float *y, {places}) {{"
        for i in self.streams:
            yield f"    const uint8_t *w{i} = CODES(job->w, row{i}), *t{i} = TABLES_OF(job->w, row{i});"
        for level in range(text.levels):
            yield "    ints " + ", ".join(f"a_{name}_{level} = zero_ints()" for name in self.sums) + ";"
        yield "    const int8_t *q = (const int8_t *)x;"
        unroll = max(1, min(text.schedule.unroll, s.cells)) if self.rows == 1 else 1
        whole, rest = divmod(s.cells, unroll)
        yield f"    for (long step = 0; step < {whole}; step++) {{"
        yield from indent(2, self._cells(unroll))
        yield "    }"
        yield from indent(1, self._cells(rest))
        yield from indent(1, self._end())
        yield "}"

    def _cells(self, count: int) -> Iterator[str]:
        """Some cells of every row, one after the other."""
        s = self.storage
        for index in range(count):
            yield "{"
            yield from indent(1, self._prefetch(index))
            for quad in range(s.cell.quads):
                yield from indent(1, self._multiply(index, quad))
            yield "}"
        if count:
            yield f"q += {count * s.cell.quads * COLUMNS};"
            yield from (f"w{i} += {count * s.block * s.stride};" for i in self.streams)

    def _prefetch(self, index: int) -> Iterator[str]:
        """The lines that begin in the codes of a cell, some way ahead."""
        s, ahead = self.storage, self.text.schedule.prefetch
        begin, size = index * s.block * s.stride, s.block * s.stride
        planes = [field.offset for field in s.cell.fields] if self.spec.nested else [0]
        for at in range(-(-begin // 64) * 64, begin + size, 64) if ahead and self.rows == 1 else ():
            yield from (f"prefetch(w{i} + {plane + at + ahead});" for i in self.streams for plane in planes)

    def _multiply(self, index: int, quad: int) -> Iterator[str]:
        """Vector `quad` of a cell of every row: its codes, their bytes, and the products with all activations."""
        s, bits = self.storage, self.spec.bits
        column = (index * s.cell.quads + quad) * COLUMNS
        for i, r in self.lanes:
            codes, at = f"v_{i}_{r}_{quad}", f"w{i} + {(index * s.block + r) * s.stride}"
            yield f"const bytes64 {codes} = unpack_{quad}({at});"
            for p, byte in enumerate(("h", "l")):
                table = f"t{i} + {(2 * r + p) << bits}"
                yield f"const bytes64 {byte}_{i}_{r}_{quad} = lookup({codes}, {table}, {bits});"
            for m in range(self.rows):
                for a in range(self.spec.activation.parts):
                    x = f"load_ints(q + {m} * ROW_BYTES + {a} * COLUMNS + {column})"
                    for p, byte in enumerate(("h", "l")):
                        acc = f"a_{i}_{r}_{m}_{a + p}"
                        yield f"{acc} = {self.text.dot}({acc}, {byte}_{i}_{r}_{quad}, {x});"

    def _end(self) -> Iterator[str]:
        """The sums over lanes, four at a time, and the results."""
        count = -(-len(self.sums) // 4) * 4
        yield f"int32_t sums[{self.text.levels}][{count}];"
        for level in range(self.text.levels):
            for first in range(0, count, 4):
                four = (f"a_{name}_{level}" for name in (*self.sums, *["none"] * 3)[first : first + 4])
                named = ", ".join("zero_ints()" if "none" in name else name for name in four)
                yield f"sum_lanes({named}, sums[{level}] + {first});"
        for index, (i, r, m) in enumerate((i, r, m) for i, r in self.lanes for m in range(self.rows)):
            row = f"x + {m} * ROW_BYTES, y + {m} * (long)N, row{i} + {r}"
            yield f"finish_row(job, {row}, sums[0] + {index}, {count});"
