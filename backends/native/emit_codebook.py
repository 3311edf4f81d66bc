"""The C text of a linear kernel for trained codebooks: vectors of 64 neighbours of a row, looked up in its own table.

    for each block of R rows:
        for each chunk: 8 vectors of codes                 fields of 1, 2, 4 bits become wider ones, two by two
            for each vector: its high and low bytes        two lookups in the table of its row
                acc[p + a] += byte_p . activation_a        four at a time, exact in int32
        y = step * (sum over lanes, minus 128 * sum(x))    once a row, in 64 bits

Two registers with fields of w bits are merged into two with fields of 2 w bits by a shift and a select each, so that a
chunk of b planes costs about half the instructions of a mask for every plane of every vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .codebook_spec import COLUMNS, VECTORS, CodebookSchedule, CodebookSpec, CodebookStorage
from .emit_group import indent
from .emit_linear import LinearText
from .isa import C_FOLDER

NEAR = 512
"""Bytes ahead up to which a prefetch goes into the first cache; what is further ahead would push activations out."""
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
            *(line for rows in range(1, self.schedule.tile + 1) for line in self._direct(rows, 1)),
            *self._rows_functions(),
            *self._streams(),
            (C_FOLDER / "linear.h").read_text(),
        ]
        return "\n".join(lines) + "\n"

    def _places(self) -> Iterator[str]:
        s = self.storage
        values = {"BITS": self.spec.bits, "TABLES_AT": s.tables, "STEPS_AT": s.steps}
        yield from (f"#define {name} {value}" for name, value in values.items())

    def _rows_functions(self) -> Iterator[str]:
        """`multiply(job, block)`: any number of rows of activations, in tiles of equal size."""
        most = self.schedule.tile
        yield "static void multiply(const linear_job *job, long block) {"
        yield "    const uint8_t *x = job->x;"
        yield "    float *y = job->y;"
        yield f"    const long tiles = (job->m + {most - 1}) / {most};"
        yield "    for (long m = job->m, left = tiles; left > 0; left--) {"
        yield "        const long rows = (m + left - 1) / left;"
        yield "        switch (rows) {"
        yield from (f"        case {rows}: direct_{rows}(job, x, y, block); break;" for rows in range(1, most + 1))
        yield "        }"
        yield "        m -= rows, x += rows * ROW_BYTES, y += rows * (long)N;"
        yield "    }"
        yield "}"

    def _streams(self) -> Iterator[str]:
        """Blocks are read one by one: the rows of a chunk, and planes, are streams enough."""
        yield "#define STREAMS 1"
        yield "#define DIRECT_STREAMS(job, first, part) multiply(job, first)"

    def _direct(self, rows: int, streams: int) -> Iterator[str]:
        """`direct_M(job, x, y, block)`: M rows of activations times a block of rows of the weight."""
        yield from Direct(self, rows).function()


class Direct:
    """Writes one `direct` function."""

    def __init__(self, text: CodebookText, rows: int) -> None:
        self.text, self.spec, self.storage, self.rows = text, text.spec, text.storage, rows
        self.height = text.storage.block
        self.sums = [f"{r}_{m}" for r in range(self.height) for m in range(rows)]

    def function(self) -> Iterator[str]:
        """Its lines."""
        s = self.storage
        yield f"static void direct_{self.rows}(const linear_job *job, const uint8_t *x, float *y, long block) {{"
        yield "    const uint8_t *w = job->w + (size_t)block * BLOCK_BYTES, *t = TABLES_OF(job->w, block * BLOCK_ROWS);"
        yield "    const int8_t *q = (const int8_t *)x;"
        for level in self.levels:
            yield "    ints " + ", ".join(f"a_{name}_{level} = zero_ints()" for name in self.sums) + ";"
        if self.text.schedule.prefetch:  # the next block would wait for its tables
            size = self.height * 2 << self.spec.bits
            yield from indent(1, (f"prefetch_far(t + {size + line});" for line in range(0, size, 64)))
        step = VECTORS // self.height * COLUMNS
        yield f"    for (long chunk = 0; chunk < {s.cells}; chunk++, w += {s.chunk_bytes}, q += {step}) {{"
        yield from indent(2, self._chunk())
        yield "    }"
        yield from indent(1, self._end())
        yield "}"

    @property
    def levels(self) -> list[str]:
        """The sums of a row. The middle one takes two products of every vector, each of which waits for the last: apart
        they take 2 to 6% less time on Zen 4. More rows of activations hide the wait, and planes leave no registers."""
        waits = self.text.levels == 3 and self.rows == 1 and self.height <= 2
        apart = waits and not self.spec.nested and self.text.isa.header == "avx512.h"
        return [*map(str, range(self.text.levels)), *(["apart"] if apart else [])]

    @property
    def tables_stay(self) -> bool:
        """Whether registers hold the tables beside the sums; else every lookup reads them from the cache."""
        if self.text.isa.header != "avx512.h":
            return False
        registers = 2 * max(1, (1 << self.spec.bits) // 64) if self.text.isa.has("avx512vbmi") else 2
        return self.height * (self.rows * len(self.levels) + registers) <= REGISTERS

    def _chunk(self) -> Iterator[str]:
        """The vectors of a chunk, each multiplied as soon as its codes are whole."""
        ahead = self.text.schedule.prefetch
        prefetch = "prefetch" if ahead <= NEAR else "prefetch_far"
        for field in self.storage.cell.fields if ahead else ():
            yield from (f"{prefetch}(w + {field.offset + 64 * j + ahead});" for j in range(field.width))
        if not self.tables_stay:
            yield '__asm__("" : "+r"(t));'
        fields = Fields(self.storage, self.spec.bits)
        lines, held = fields.of(0, fields.width)
        yield from lines
        for v in range(VECTORS):
            register, place = held[v % fields.width], v // fields.width
            yield from self._multiply(v, f"shifted({register}, {fields.width * place})" if place else register)

    def _multiply(self, v: int, codes: str) -> Iterator[str]:
        """Vector v of a chunk: the bytes of its values, and their products with all activations."""
        each = VECTORS // self.height
        r, column = v // each, v % each * COLUMNS
        yield f"{{ const bytes64 codes = {codes};"
        for p, byte in enumerate(("high", "low")):
            yield f"  const bytes64 {byte} = find(codes, t + {(2 * r + p) << self.spec.bits}, BITS);"
        for m in range(self.rows):
            for a in range(self.spec.activation.parts):
                yield f"  {{ const ints four = load_ints(q + {m} * ROW_BYTES + {a} * COLUMNS + {column});"
                for p, byte in enumerate(("high", "low")):
                    level = "apart" if "apart" in self.levels and (a, p) == (0, 1) else a + p
                    acc = f"a_{r}_{m}_{level}"
                    yield f"    {acc} = dot_wide({acc}, {byte}, four);"
                yield "  }"
        yield "}"

    def _end(self) -> Iterator[str]:
        """The sums over lanes, four at a time, and the results."""
        count = -(-len(self.sums) // 4) * 4
        if "apart" in self.levels:
            yield from (f"a_{name}_1 = add_ints(a_{name}_1, a_{name}_apart);" for name in self.sums)
        yield f"int32_t sums[{self.text.levels}][{count}];"
        for level in range(self.text.levels):
            for first in range(0, count, 4):
                four = [f"a_{name}_{level}" for name in self.sums[first : first + 4]]
                yield f"sums_of_four({', '.join(four + ['zero_ints()'] * (4 - len(four)))}, sums[{level}] + {first});"
        for index, (r, m) in enumerate((r, m) for r in range(self.height) for m in range(self.rows)):
            row = f"x + {m} * ROW_BYTES, y + {m} * (long)N, block * BLOCK_ROWS + {r}"
            yield f"finish_row(job, {row}, sums[0] + {index}, {count});"


class Fields:
    """Widens the stored fields of a chunk to fields of `width` bits that hold whole codes, and any bits above them."""

    def __init__(self, storage: CodebookStorage, bits: int) -> None:
        self.stored = {(field.low, field.width): field.offset for field in storage.cell.fields}
        self.bits, self.width = bits, next(width for width in (1, 2, 4, 8) if width >= bits)

    def of(self, low: int, width: int) -> tuple[list[str], list[str]]:
        """Lines, and the `width` registers that then hold bits low, low + 1, ... of the codes in fields of that width.

        Register j holds the vectors j, j + width, ...: from the lowest field of a byte on.
        """
        if (low, width) in self.stored:
            at = self.stored[low, width]
            return [], [f"load_bytes(w + {at + 64 * j})" for j in range(width)]
        half = width // 2
        lines, lower = self.of(low, half)
        lines, lower = _named(lines, lower, f"f{low}_{half}")
        names = [f"f{low}_{width}_{j}" for j in range(width)]
        if low + half >= self.bits:
            even, odd = lower, [f"shifted({register}, {half})" for register in lower]
        else:
            more, upper = self.of(low + half, half)
            more, upper = _named(more, upper, f"f{low + half}_{half}")
            lines = lines + more
            pairs = [f"({u}, {register}, {half})" for u, register in zip(upper, lower, strict=True)]
            even, odd = [f"merge_even{pair}" for pair in pairs], [f"merge_odd{pair}" for pair in pairs]
        made = [f"const bytes64 {name} = {value};" for name, value in zip(names, [*even, *odd], strict=True)]
        return [*lines, *made], names


def _named(lines: Sequence[str], registers: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """The same with loads given names, as each is used twice."""
    named = [f"{name}_{j}" if "(" in register else register for j, register in enumerate(registers)]
    loads = [f"const bytes64 {n} = {r};" for n, r in zip(named, registers, strict=True) if n != r]
    return [*lines, *loads], named
