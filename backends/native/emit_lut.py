"""The C text of a linear kernel by table lookup, after T-MAC: bits of weights choose sums of activations.

    for every four activations:                        once a row of activations, 16 sums
        table[choice] = sum of the chosen ones
    for each block of 64 rows:
        for each group, each plane p of bits:          four bits of a row are a choice
            acc += 2^p * table[choice]                 bytes, then 16 bits, then int32: exact
        y += scale * acc                               as in a kernel by dot products, bit for bit

Wei et al., "T-MAC: CPU Renaissance via Table Lookup for Low-Bit LLM Deployment on Edge" (2024), whose tables are
rounded to 8 bits. Here a sum of 10 bits lies in two tables of 5 bits, of which eight entries fit a byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .emit_group import GroupEnd, factor, indent, read_number
from .emit_linear import LinearText, Workspace
from .isa import C_FOLDER
from .lut import VECTORS
from .storage import ROWS, Place

LOOKUPS = 8
"""Lookups whose halves, of 5 bits, a byte can sum."""
BIAS = 512
"""What entries of tables are above the sums of four activations, which are at least 4 * -128."""


@dataclass(frozen=True)
class LookupWorkspace(Workspace):
    """A prepared row of activations, with its tables: 32 bytes for every four columns of a part."""

    @property
    def tables(self) -> int:
        """Where the tables lie: uint8 [parts, columns / 4, 2, 16]."""
        return super().bytes

    @property
    def bytes(self) -> int:
        """Bytes of a row with its tables."""
        return self.tables + 8 * self.columns * self.parts


class LookupText(LinearText):
    """A generated kernel by table lookup: its C text and the sizes of what it is called with."""

    @property
    def panel_bytes(self) -> int:
        """There are no panels."""
        return 0

    @property
    def steps(self) -> tuple[int, int]:
        """Lookups whose bytes are summed together, and how many of these sums 16 bits hold."""
        weight = BIAS * self.spec.lattice.multiplier * ((1 << self.spec.weight.bits) - 1)
        lookups = min(LOOKUPS, 32767 // weight // 2 * 2)
        return lookups, 32767 // (lookups * weight)

    def text(self) -> str:
        """The whole C text."""
        assert isinstance(self.workspace, LookupWorkspace)
        lines = [
            "#include <math.h>",
            "#include <stddef.h>",
            self.isa.text(),
            *self._constants(),
            f"#define TABLES_AT {self.workspace.tables}",
            *(C_FOLDER.joinpath(name).read_text() for name in ("activations.h", "lookup.h", "linear_job.h")),
            *(line for lookups in self._lengths() for line in self._choose(lookups)),
            *self._group(),
            *self._direct(1, 1),
            *(self._direct(1, self.schedule.streams) if self.schedule.streams > 1 else ()),
            *self._rows_functions(),
            *self._streams(),
            (C_FOLDER / "linear.h").read_text(),
        ]
        return "\n".join(lines) + "\n"

    def _rows_functions(self) -> Iterator[str]:
        """`multiply(job, block)`: any number of rows of activations, which find the block in the cache."""
        yield "static void multiply(const linear_job *job, long block) {"
        yield "    for (long m = 0; m < job->m; m++) {"
        yield "        float *y = job->y + m * N + block * BLOCK_ROWS;"
        yield "        const float *bias = job->bias ? job->bias + block * BLOCK_ROWS : 0;"
        yield "        const uint8_t *w = job->w + (size_t)block * BLOCK_BYTES;"
        yield "        direct_1_1(ROW(job->x, m), job->alpha, 0, w, y, bias, ROWS_OF(block));"
        yield "    }"
        yield "}"

    def _lengths(self) -> list[int]:
        """The numbers of lookups that pieces of a group have: the usual one, and that of a last shorter piece."""
        lookups, total = self.steps[0], self.storage.group // 4
        return sorted({min(lookups, total), total % lookups} - {0})

    def _choose(self, lookups: int) -> Iterator[str]:
        """`choose_L(sum, w, t)`: the sum of L entries a plane for 64 rows, times the value of the plane."""
        bits, by = self.spec.weight.bits, self.spec.lattice.multiplier
        yield f"INLINE words64 choose_{lookups}(words64 sum, const uint8_t *w, const uint8_t *t) {{"
        for plane in range(bits):
            yield "    {"
            for cell in range(lookups // 2):
                yield f"        const bytes64 v{cell} = load_bytes(w + {64 * (bits * cell + plane)});"
                for half in range(2):
                    at, choice = f"t + {64 * cell + 32 * half}", f"field(v{cell}, {4 * half}, 15)"
                    for name, table in (("low", at), ("high", f"{at} + 16")):
                        found = f"lookup({choice}, {table}, 4)"
                        first = cell == half == 0
                        yield "        " + (
                            f"bytes64 {name} = {found};" if first else f"{name} = add_bytes({name}, {found});"
                        )
            yield f"        sum = add_halves(sum, low, high, {plane + by - 1});"
            yield "    }"
        yield "    return sum;"
        yield "}"

    def _group(self) -> Iterator[str]:
        """`group_of(x, g, w, y)`: adds a group of columns to the sums of 64 rows, which lie in memory."""
        s, lanes = self.storage, [f"0_{r}" for r in range(VECTORS)]
        ends = MemoryEnd(self, lanes, 1)
        yield f"INLINE void group_of(const uint8_t *x, long g, const uint8_t *w, {ends.parameters}) {{"
        if self.schedule.prefetch:
            lines = range(0, s.group_bytes, 64)
            yield from indent(1, (f"prefetch(w + {self.schedule.prefetch + line});" for line in lines))
        yield from indent(1, ends.keep())
        yield from indent(1, ends.starts(_number))
        for part in range(self.spec.activation.parts):
            yield f"    {{ const uint8_t *p = w, *t = TABLES(x, {part}) + g * {8 * s.group};"
            yield from indent(2, self._pieces(part))
            yield "    }"
        yield from indent(1, ends.group(_number))
        yield "}"
        if s.outer:
            yield f"INLINE void super_of(const uint8_t *w, {ends.parameters}) {{"
            yield from indent(1, ends.super_block(_number))
            yield "}"

    def _pieces(self, part: int) -> Iterator[str]:
        """A group in runs of pieces: 16 bits sum a run."""
        lookups, run = self.steps
        total = self.storage.group // 4
        whole, rest = divmod(total, lookups)
        runs, last = divmod(whole, run)
        if runs > 1:
            yield f"for (long run = 0; run < {runs}; run++) {{"
            yield from indent(1, self._run(part, run, 0))
            yield "}"
        elif runs:
            yield from self._run(part, run, 0)
        if last or rest:
            yield from self._run(part, last, rest)

    def _run(self, part: int, whole: int, rest: int) -> Iterator[str]:
        lookups, bits = self.steps[0], self.spec.weight.bits
        above = BIAS * self.spec.lattice.multiplier * ((1 << bits) - 1) * (whole * lookups + rest)
        yield f"{{ words64 sum = set_words({-above});"
        if whole > 1:
            yield f"  for (long piece = 0; piece < {whole}; piece++) {{"
        if whole:
            yield f"  sum = choose_{lookups}(sum, p, t); p += {32 * bits * lookups}, t += {32 * lookups};"
        if whole > 1:
            yield "  }"
        if rest:
            yield f"  sum = choose_{rest}(sum, p, t); p += {32 * bits * rest}, t += {32 * rest};"
        for r in range(VECTORS):
            yield f"  a_0_{r}_0_{part} = add_ints(a_0_{r}_0_{part}, widen(sum, {r}));"
        yield "}"

    def _direct(self, rows: int, streams: int) -> Iterator[str]:
        """`direct_1_S(x, alpha, ldy, w, y, b, n)`: one row of activations times S blocks that lie anywhere."""
        s, ends = self.storage, MemoryEnd(self, [f"0_{r}" for r in range(VECTORS)], 1)
        blocks = ", ".join(f"const uint8_t *w{i}, float *y{i}, const float *b{i}, int n{i}" for i in range(streams))
        yield f"static void direct_{rows}_{streams}(const uint8_t *x, float alpha, long ldy, {blocks}) {{"
        yield f"    _Alignas(64) float y[{streams}][BLOCK_ROWS] = {{0}};"
        yield f"    for (long g = 0, super = 0; super < {s.supers}; super++) {{"
        for kind in ends.outer_kinds:
            yield f"        _Alignas(64) float {kind}[{streams}][BLOCK_ROWS] = {{0}};"
        yield f"        for (long group = 0; group < {s.groups}; group++, g++) {{"
        for i in range(streams):
            yield f"            group_of(x, g, w{i}, {ends.arguments(i)}); w{i} += {s.group_bytes};"
        yield "        }"
        for i in range(streams) if s.outer else ():
            yield f"        super_of(w{i} - {s.outer[0].offset}, {ends.arguments(i)});"
            yield f"        w{i} += {s.super_bytes - s.outer[0].offset};"
        yield "    }"
        yield f"    const floats factor = {factor(self.spec, 'x')};"
        for i in range(streams):
            for at in range(0, ROWS * VECTORS, ROWS):
                yield f"    finish(y{i} + {at}, load_f32(y[{i}] + {at}), factor, b{i}, {at}, n{i});"
        yield "}"


class MemoryEnd(GroupEnd):
    """What begins and ends a group, with all sums of floats in memory: lookups need the registers."""

    def __init__(self, text: LinearText, lanes: list[str], rows: int) -> None:
        super().__init__(text, lanes, rows)
        self.in_memory = True

    @property
    def outer_kinds(self) -> list[str]:
        """The sums of a super-block."""
        return [kind for kind, used in (("o", self.scaled_outside), ("l", self.offset_outside)) if used]

    @property
    def parameters(self) -> str:
        """The sums as parameters of a function."""
        return ", ".join(f"float *{kind}" for kind in ["y", *self.outer_kinds])

    def arguments(self, stream: int) -> str:
        """The sums of a stream as arguments."""
        return ", ".join(f"{kind}[{stream}]" for kind in ["y", *self.outer_kinds])


def _number(place: Place, lane: str, whole: bool) -> str:
    """The numbers of a level for the 16 rows of a lane."""
    return read_number(place, "w", int(lane.partition("_")[2]), whole)
