"""Int8 tiles for many rows of activations: C[16 m, 16 n] += A[16 m, 64 k] B[64 k, 16 n], a chunk of a block at a time.

    for each block of 16 R rows of the weight:                one task of a thread
        for each chunk of its columns:
            unpack it once into a panel of bytes              [k / 4, R, P, 16 rows x 4 columns], in the first cache
            for each strip of activations:                    two tiles of sums, or four, and more for several bytes
                multiply; the sums of a group go to memory
                y += scale * sums                             of the strip before, while the tiles multiply

A row of tile B is what a vector of the panel holds, and tile A is read from the prepared activations as they are.
Where a value less its offset (and its zero point) fits a signed byte, the panel holds that: sums then start at 0.
Else, and for the lower bytes of values of several, bytes are unsigned. Scales of a group and of its super-block are
multiplied once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qcc.ir.levels import level_dtype

from .emit_group import Number, indent, product_of, read_number
from .emit_linear import LinearText
from .isa import C_FOLDER
from .storage import ROWS, Place

REGISTERS = 8
TILE_BYTES = 1024
SHAPES = ((2, 2), (2, 1), (1, 2), (1, 1))
"""Tiles of activations and vectors of weight rows that are multiplied at once, the best first."""


@dataclass(frozen=True)
class TiledText(LinearText):
    """A kernel that multiplies 16 rows of activations or more by tiles, and fewer by vectors."""

    @property
    def panel_bytes(self) -> int:
        """Bytes of a thread: of the panel, its numbers, the sums of strips and the results of a block."""
        return Tiling.of(self).bytes

    def _rows_functions(self) -> Iterator[str]:
        yield from super()._rows_functions()
        yield from Tiling.of(self).functions()


@dataclass(frozen=True)
class Tiling:
    """How one kernel uses tiles. A step is what one tile product takes along k, at most 64 columns of a group."""

    text: LinearText
    tiles: int
    """Tiles of 16 rows of activations in a strip."""
    lanes: int
    """Vectors of 16 rows of the weight in a strip."""
    depth: int
    """Columns of a step: whole cells."""
    steps: int
    """Steps of a group; the last may be filled up with zeros."""
    steps_at_once: int
    """Steps of a chunk: those of a group, or fewer where they do not fit; then sums are carried on."""
    groups_at_once: int
    """Groups of a chunk."""

    @staticmethod
    def of(text: LinearText) -> Tiling:
        """The largest strip that eight tiles hold, and the longest chunk that the panel holds."""
        s, parts, own = text.storage, text.spec.lattice.parts, text.spec.activation.parts
        tiles, lanes = next(
            (tiles, lanes)
            for tiles, lanes in SHAPES
            if lanes <= s.vectors and tiles * (lanes * text.levels + own) + min(2, lanes * parts) <= REGISTERS
        )
        steps = -(-s.group // 64)
        cells = -(-s.cells // steps)
        depth = cells * s.cell.columns
        fit = max(1, text.schedule.panel // (depth * s.rows * parts))
        if steps > fit:
            return Tiling(text, tiles, lanes, depth, steps, fit, 1)
        return Tiling(text, tiles, lanes, depth, steps, steps, min(s.groups * s.supers, fit // steps))

    @property
    def quad_bytes(self) -> int:
        """Bytes of four columns of a block in the panel."""
        return 4 * self.text.storage.rows * self.text.spec.lattice.parts

    @property
    def signed(self) -> bool:
        """Whether the first byte of a value, less its offset and its zero point, always fits a signed byte."""
        spec = self.text.spec
        table = spec.lattice.tables[0] if spec.lattice.tables else (0, spec.lattice.high)
        low, high = min(table) - spec.offset, max(table) - spec.offset
        if self._zero:
            dtype = level_dtype(self._zero.dtype)
            low, high = low - int(dtype.high), high - int(dtype.low)
        return low >= -128 and high <= 127

    @property
    def numbers(self) -> tuple[str, ...]:
        """What the panel holds of each group, 16 R numbers of each."""
        fmt = self.text.spec.weight
        low = fmt.offset is not None or (self._zero is None and fmt.zero_level is not None)
        start = self._zero is not None and not self.signed
        present = {"scale": bool(self._named("scale")), "low": low, "zero": start}
        return tuple(name for name, there in present.items() if there)

    @property
    def batch(self) -> int:
        """Groups whose sums are taken from memory together."""
        return min(self.text.schedule.batch, self.groups_at_once)

    @property
    def sums(self) -> int:
        """Tiles of sums of a strip and a group."""
        return self.tiles * self.lanes * self.text.levels

    @property
    def slots(self) -> int:
        """Places for the sums of a strip: that multiplied and that before; all where sums are carried."""
        if self.steps_at_once == self.steps:
            return 2
        return -(-self.text.schedule.most_tiles // self.tiles) * (self.text.storage.vectors // self.lanes)

    @property
    def places(self) -> tuple[int, int, int, int]:
        """Bytes from the start of a thread's memory to the numbers, the sums, the results and the end."""
        codes = self.groups_at_once * self.steps_at_once * self.depth // 4 * self.quad_bytes
        sums = codes + self.groups_at_once * len(self.numbers) * self.text.storage.rows * 4
        results = sums + self.slots * self.batch * self.sums * TILE_BYTES
        return codes, sums, results, results + self.text.schedule.most_tiles * 16 * self.text.storage.rows * 4

    @property
    def bytes(self) -> int:
        """Bytes of the memory of a thread, a multiple of 64."""
        return self.places[-1]

    def functions(self) -> Iterator[str]:
        """The constants that `amx.h` speaks of, and the functions that it calls."""
        s, (numbers, sums, results, _) = self.text.storage, self.places
        whole = self.steps_at_once == self.steps
        values = {
            "TILES": self.tiles,
            "MOST_TILES": self.text.schedule.most_tiles,
            "VECTORS": s.vectors,
            "LANES": self.lanes,
            "LEVELS": self.text.levels,
            "DEPTH": self.depth,
            "STEPS": self.steps,
            "STEPS_AT_ONCE": self.steps_at_once,
            "GROUPS_AT_ONCE": self.groups_at_once,
            "BATCH": self.batch,
            "CARRIED": int(not whole),
            "NUMBERS": len(self.numbers),
            "LANE_BYTES": 64 * self.text.spec.lattice.parts,
            "PANEL_GROUP": self.steps_at_once * self.depth // 4 * self.quad_bytes,
            "NUMBERS_AT": numbers,
            "SUMS_AT": sums,
            "RESULTS_AT": results,
            "CHUNK_BYTES": self.groups_at_once * s.group_bytes
            if whole
            else s.code_bytes * self.steps_at_once // self.steps,
            "FIRST_A": self.sums,
            "FIRST_B": self.sums + self.tiles * self.text.spec.activation.parts,
        }
        yield from (f"#define {name} {value}" for name, value in values.items())
        yield (C_FOLDER / "amx.h").read_text()
        yield from self._fill()
        for tiles in range(1, self.tiles + 1):
            yield from self._multiply(tiles)
        yield from self._flush()

    @property
    def _zero(self) -> Place | None:
        """The level of whole zero points."""
        places = self.text.storage.inner if self.text.spec.zero_points else ()
        return next((place for place in places if place.name == "zero"), None)

    def _named(self, word: str) -> list[Place]:
        """The levels of a kind, of groups and of super-blocks."""
        s = self.text.storage
        return [place for place in (*s.inner, *s.outer) if place.name.startswith(word)]

    def _fill(self) -> Iterator[str]:
        """`fill_panel`: some steps of some groups of a block at `w`, unpacked, with their numbers."""
        s, lattice, offset = self.text.storage, self.text.spec.lattice, self.text.spec.offset
        centred = self.signed and (self._zero is not None or offset != 0)
        number = self._number
        deep = self.depth // s.cell.columns
        yield "static void fill_panel(const uint8_t *w, uint8_t *to, float *numbers, long g, long groups, long step,"
        yield "                       long steps) {"
        yield f"    const long from = step * {deep}, end = (step + steps) * {deep};"
        yield f"    const long last = end < {s.cells} ? end : {s.cells};"
        yield "    for (; groups > 0; groups--, g++) {"
        yield f"        const uint8_t *outer = w + g / {s.groups} * {s.super_bytes};"
        yield f"        const uint8_t *inner = outer + g % {s.groups} * {s.group_bytes};"
        for r in range(s.vectors if centred else 0):
            raised = f"set_ints({offset})"
            if self._zero:
                raised = f"add_ints({number(self._zero, str(r), True)}, {raised})"
            yield f"        const bytes64 centre_{r} = repeat_low_bytes({raised});"
        yield f"        for (long cell = from; cell < last; cell++, to += {s.cell.quads * self.quad_bytes}) {{"
        for r in range(s.vectors):
            for quad in range(s.cell.quads):
                at = f"inner + (cell * {s.vectors} + {r}) * {s.cell.bytes}"
                yield f"            {{ const bytes64 v = unpack_{quad}({at});"
                for p in range(lattice.parts):
                    value = f"lookup(v, TABLE{p}, {lattice.bits})" if lattice.tables else "v"
                    value = f"sub_bytes({value}, centre_{r})" if centred and p == 0 else value
                    to = 64 * ((quad * s.vectors + r) * lattice.parts + p)
                    yield f"              store_bytes(to + {to}, {value});"
                yield "            }"
        yield "        }"
        padding = s.cell.quads * self.quad_bytes
        yield f"        for (long cell = last; cell < end; cell++, to += {padding}) memset(to, 0, {padding});"
        for name in self.numbers:
            for r in range(s.vectors):
                yield from indent(2, self._keep(name, r))
            yield "        numbers += BLOCK_ROWS;"
        yield "    }"
        yield "}"

    def _keep(self, name: str, r: int) -> Iterator[str]:
        """One number of each of 16 rows: the product of scales, zero points, or what multiplies sums of activations."""
        fmt, number, lane = self.text.spec.weight, self._number, str(r)
        if name == "zero":
            assert self._zero is not None
            raised = f"add_ints({number(self._zero, lane, True)}, set_ints({self.text.spec.offset}))"
            yield f"store_bytes(numbers + {ROWS * r}, {raised});"
            return
        (scale,) = product_of(self._named("scale"), lane, number) if self._named("scale") else ("",)
        value = scale
        if name == "low":
            terms = list[str]()
            if fmt.offset:
                (low,) = product_of(self._named(fmt.offset.word), lane, number)
                terms.append(f"mul({low}, set_floats({'-1' if fmt.offset.word == 'minus' else '1'}))")
            if self._zero is None and fmt.zero_level is not None:
                (place,) = self._named("zero")
                zero = f"mul({number(place, lane, False)}, set_floats(-1))"
                terms.append(f"mul({zero}, {scale})" if scale else zero)
            value = f"add({', '.join(terms)})" if len(terms) == 2 else terms[0]
        yield f"store_floats(numbers + {ROWS * r}, {value}, 16);"

    @property
    def _number(self) -> Number:
        inner = self.text.storage.inner
        return lambda place, lane, whole: read_number(place, "inner" if place in inner else "outer", int(lane), whole)

    def _multiply(self, tiles: int) -> Iterator[str]:
        """`multiply_T`: some steps of one group, for T tiles of activations."""
        spec, levels = self.text.spec, self.text.levels
        own, parts, spare = (
            spec.activation.parts,
            spec.lattice.parts,
            REGISTERS - self.sums - self.tiles * spec.activation.parts,
        )
        sums = range(tiles * self.lanes * levels)
        yield f"static void multiply_{tiles}(const strip *s, long column, const uint8_t *b, long steps, int32_t *sums,"
        yield "                       int more) {"
        for i in range(tiles):
            yield f"    const uint8_t *x{i} = s->x[{i}] + column;"
        yield "    if (more) {"
        yield from (f"        _tile_loadd({c}, sums + {256 * c}, 64);" for c in sums)
        yield "    } else {"
        yield from (f"        _tile_zero({c});" for c in sums)
        yield "    }"
        ahead = ", ".join(f"x{i} += DEPTH" for i in range(tiles))
        yield f"    for (; steps > 0; steps--, b += {self.depth // 4 * self.quad_bytes}, {ahead}) {{"
        for i in range(tiles):
            for a in range(own):
                yield f"        _tile_loadd({self.sums + i * own + a}, x{i} + {a} * COLUMNS, ROW_BYTES);"
        for lane in range(self.lanes):
            for p in range(parts):
                which = lane * parts + p
                of_weight = self.sums + self.tiles * own + which % spare
                yield f"        _tile_loadd({of_weight}, b + {64 * which}, {self.quad_bytes});"
                product = "_tile_dpbssd" if p == 0 and self.signed else "_tile_dpbsud"
                for i in range(tiles):
                    for a in range(own):
                        c = (i * self.lanes + lane) * levels + p + a
                        yield f"        {product}({c}, {self.sums + i * own + a}, {of_weight});"
        yield "    }"
        yield from (f"    _tile_stored({c}, sums + {256 * c}, 64);" for c in sums)
        yield "}"

    def _flush(self) -> Iterator[str]:
        """`flush`: adds the sums of the groups of a strip to its results; numbers of the groups stay in registers."""
        for groups in range(1, self.batch + 1):
            yield f"static void flush_{groups}(const strip *s) {{"
            for b in range(groups):
                for lane in range(self.lanes):
                    for index, name in enumerate(self.numbers):
                        at = f"s->numbers + {b * len(self.numbers) + index} * BLOCK_ROWS + {ROWS * lane}"
                        kind, load = ("ints", "load_ints") if name == "zero" else ("floats", "load_f32")
                        yield f"    const {kind} {name}_{b}_{lane} = {load}({at});"
            yield "    for (long i = 0; i < s->tiles; i++) {"
            yield "        const uint8_t *x = s->x[i];"
            yield "        const int32_t *sums = s->sums + i * (256 * LANES * LEVELS);"
            yield "        float *results = s->results + i * 16 * BLOCK_ROWS;"
            yield "        const long g = s->g;"
            yield "        (void)g;"
            yield "        for (long m = 0; m < 16; m++, x += ROW_BYTES, sums += 16, results += BLOCK_ROWS) {"
            for lane in range(self.lanes):
                yield f"            floats y_{lane} = load_f32(results + {ROWS * lane});"
            for b in range(groups):
                for lane in range(self.lanes):
                    yield from indent(3, self._add(b, lane))
            for lane in range(self.lanes):
                yield f"            store_floats(results + {ROWS * lane}, y_{lane}, 16);"
            yield "        }"
            yield "    }"
            yield "}"
        yield "static void flush(const strip *s) {"
        yield "    switch (s->groups) {"
        yield from (f"    case {groups}: flush_{groups}(s); break;" for groups in range(1, self.batch + 1))
        yield "    }"
        yield "}"

    def _add(self, b: int, lane: int) -> Iterator[str]:
        """Group `b` of a strip, 16 results of one row of activations: the sums of all significances, scaled."""
        spec, levels, name = self.text.spec, self.text.levels, f"{b}_{lane}"
        starts = not self.signed and (self._zero is not None or spec.offset != 0)
        values = list[str]()
        for level in range(levels):
            value = f"load_ints(sums + {256 * (b * self.sums + lane * levels + level)})"
            if starts and level < spec.activation.parts:
                start = f"set_ints(STARTS(x, {level})[g + {b}])"
                start = f"mul_ints({start}, zero_{name})" if self._zero else start
                value = f"add_ints({value}, {start})"
            values.append(f"to_floats({value})")
        whole = values[0]
        for value in values[1:]:
            whole = f"fma_({whole}, set_floats(256), {value})"
        by = [f"scale_{name}"] if "scale" in self.numbers else []
        by += [f"set_floats(SCALES(x)[g + {b}])"] if spec.activation.grouped else []
        factor = f"mul({', '.join(by)})" if len(by) == 2 else "".join(by)
        yield f"y_{lane} = " + (f"fma_({whole}, {factor}, y_{lane});" if by else f"add({whole}, y_{lane});")
        if "low" in self.numbers:
            yield f"y_{lane} = fma_(low_{name}, set_floats(TOTALS(x)[g + {b}]), y_{lane});"
