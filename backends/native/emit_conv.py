"""The C text of a convolution kernel: tiles of pixels by blocks of output channels, summed in registers.

    for each chunk of rows, block of V x 16 channels:     one task of a thread
        for each tile of R x Q pixels:
            acc[v][p] = bias[v] - x_zero * sum(w[v])      what u8 codes are too high by
            for each block of input channels, tap row, tap column:
                for each 4 channels: acc[v][p] += w[v] * x[p + tap]     u8 * s8, exact in int32
            y[v][p] = codes of acc[v][p] * scale[v]

Channels, taps and strides are constants of the text, the size of an image is not: one kernel serves all sizes. The last
tile of a row, or of rows, lies on top of the one before it, so that every tile is whole; an image smaller than a tile
is computed pixel by pixel. A depthwise kernel has no channels to sum: it sums four taps of a
row instead, transposed in registers, and uses each transposed vector for all pixels and rows that it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .blocked import BLOCK
from .conv_spec import TAPS, ConvSchedule, ConvSpec
from .emit_rows import function_of
from .isa import C_FOLDER, Isa


@dataclass(frozen=True)
class Tile:
    """`rows` x `columns` pixels by `vectors` blocks of output channels."""

    rows: int
    columns: int
    vectors: int

    @property
    def name(self) -> str:
        """The C function that sums it."""
        return f"tile_{self.rows}_{self.columns}_{self.vectors}"

    @property
    def pixels(self) -> list[tuple[int, int]]:
        """Row and column of each."""
        return [(r, q) for r in range(self.rows) for q in range(self.columns)]


@dataclass(frozen=True)
class ConvText:
    """A generated kernel."""

    spec: ConvSpec
    isa: Isa
    schedule: ConvSchedule

    def text(self) -> str:
        """The whole C text."""
        lines = [f"/* {self.spec}, {self.isa.name}: {self.schedule} */", "#include <stddef.h>"]
        lines += [self.isa.text(), (C_FOLDER / f"conv_{self.isa.header}").read_text()]
        if self.spec.epilogue is not None:
            lines += [(C_FOLDER / name).read_text() for name in (f"rows_{self.isa.header}", "functions.h")]
            lines += function_of(self.spec.epilogue, "epilogue")
        lines += [*self._constants(), (C_FOLDER / "conv_job.h").read_text()]
        for tile in self._tiles():
            lines += self._depthwise(tile) if self.spec.depthwise else self._channels(tile)
        lines += [*self._choose(), (C_FOLDER / "conv.h").read_text()]
        return "\n".join(lines) + "\n"

    def _tiles(self) -> list[Tile]:
        """The tile of the schedule and a single pixel, for V blocks of channels and for those that are left over."""
        s, last = self.schedule, self.spec.output_blocks % self.schedule.vectors
        shapes = dict.fromkeys([(s.rows, s.columns), (1, 1)])
        return [Tile(*shape, vectors) for vectors in (s.vectors, *([last] if last else [])) for shape in shapes]

    @property
    def weight_block(self) -> int:
        """Bytes of the weight of 16 output channels."""
        (kh, kw), x = self.spec.kernel, self.spec.x
        if self.spec.depthwise:
            return kh * len(self.starts) * TAPS * BLOCK
        return self.spec.input_blocks * kh * kw * x.block * BLOCK

    @property
    def starts(self) -> tuple[int, ...]:
        """The first taps of the fours that a row of a depthwise kernel is split into; the last may overlap."""
        columns = self.spec.kernel[1]
        if columns <= TAPS:
            return (0,)
        return tuple(min(start, columns - TAPS) for start in range(0, columns, TAPS))

    def _constants(self) -> Iterator[str]:
        spec, s, x, y = self.spec, self.schedule, self.spec.x, self.spec.y
        values = {
            "ROWS": s.rows,
            "COLUMNS": s.columns,
            "VECTORS": s.vectors,
            "DEPTHWISE": int(spec.depthwise),
            "CHUNK": s.chunk,
            "BLOCKS": spec.output_blocks,
            "WEIGHT_BLOCK": self.weight_block,
            "X_BLOCK": x.block,
            "X_BLOCKS": x.blocks,
            "STRIDE_ROWS": spec.strides[0],
            "STRIDE_COLUMNS": spec.strides[1],
            "REACH_ROWS": spec.reach[0],
            "REACH_COLUMNS": spec.reach[1],
        }
        sides = ("TOP", "LEFT", "BOTTOM", "RIGHT")
        for name, pixels in (("PAD", spec.pads), ("X_HALO", x.halo), ("HALO", y.halo)):
            values |= {f"{name}_{side}": count for side, count in zip(sides, pixels, strict=True)}
        yield from (f"#define {name} {value}L" for name, value in values.items())
        yield f"typedef {'float' if spec.dtype == 'f32' else 'uint8_t'} output;"
        shared = len(set(spec.first_blocks)) == 1 or spec.depthwise
        if not shared:
            yield f"static const int FIRST[BLOCKS] = {{{', '.join(map(str, spec.first_blocks))}}};"
        yield f"#define FIRST_OF(block) {'(block)' if spec.depthwise else '0' if shared else 'FIRST[block]'}"

    def _channels(self, tile: Tile) -> Iterator[str]:
        """A tile, summed over channels and taps.

        Where `fetch`, it asks for the pixels of the next tile and for the weight of the next V blocks.
        """
        spec, x, vectors = self.spec, self.spec.x, tile.vectors
        (kh, kw), (dh, dw), quads = spec.kernel, spec.dilations, x.block // TAPS
        yield from self._head(tile)
        for v in range(vectors):
            for r, q in tile.pixels:
                yield f"    ints a_{v}_{r}_{q} = load_ints(job->start + 16 * (block + {v}));"
        # one pointer for each vector of channels would take registers of addresses: the blocks lie a constant apart
        unrolled = range(kw) if quads == 1 else range(1)
        span = ((tile.columns - 1) * spec.strides[1] + spec.reach[1]) * x.block
        yield f"    for (long c = 0; c < {spec.input_blocks}; c++, x += job->x_plane, next += job->x_plane)"
        yield f"        for (long i = 0; i < {kh}; i++) {{"
        yield "            if (fetch) {"
        for r in range(tile.rows):
            for line in range(0, span, 64):
                yield f"                prefetch(next + i * {dh} * job->x_row + {r} * X_ROW + {line});"
        yield "            }"
        yield f"            for (long j = 0; j < {kw // len(unrolled)}; j++, w += {len(unrolled) * x.block * BLOCK}) {{"
        yield f"                const uint8_t *p = x + i * {dh} * job->x_row + j * {dw * x.block};"
        for tap in unrolled:
            for quad in range(quads):
                yield "                {"
                for v in range(vectors):
                    at = f"w + {v} * WEIGHT_BLOCK + {(tap * quads + quad) * TAPS * BLOCK}"
                    yield f"                    const ints w{v} = load_ints({at});"
                    yield f"                    if (fetch) prefetch_far({at} + {vectors} * WEIGHT_BLOCK);"
                for r, q in tile.pixels:
                    at = f"p + {tap * dw * x.block + TAPS * quad} + {r} * X_ROW + {q} * X_PIXEL"
                    yield f"                    const bytes64 x_{r}_{q} = spread_bytes({at});"
                    for v in range(vectors):
                        name = f"a_{v}_{r}_{q}"
                        yield f"                    {name} = dot_wide({name}, x_{r}_{q}, w{v});"
                yield "                }"
        yield "            }"
        yield "        }"
        yield from self._finish(tile)

    def _depthwise(self, tile: Tile) -> Iterator[str]:
        """A tile of one block of channels, summed over four taps at a time."""
        spec = self.spec
        (kh, _), (dh, dw), (sh, sw) = spec.kernel, spec.dilations, spec.strides
        yield from self._head(tile)
        for r, q in tile.pixels:
            yield f"    ints a_0_{r}_{q} = load_ints(job->start + 16 * block);"
        count = len(self.starts)
        for i in range(kh):
            for j in range(count):
                yield f"    const ints w_{i}_{j} = load_ints(w + {(i * count + j) * TAPS * BLOCK});"
        uses: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
        for r, q in tile.pixels:
            for i in range(kh):
                for j, start in enumerate(self.starts):
                    uses.setdefault((r * sh + i * dh, q * sw + start * dw), []).append((r, q, i, j))
        span = ((tile.columns - 1) * sw + spec.reach[1]) * BLOCK
        for row in sorted({row for row, _ in uses}):
            yield from (f"    if (fetch) prefetch(next + {row} * job->x_row + {line});" for line in range(0, span, 64))
        for (row, column), users in sorted(uses.items()):
            yield f"    {{ const bytes64 t = gather_taps(x + {row} * job->x_row + {column * BLOCK}, {dw * BLOCK});"
            for r, q, i, j in users:
                yield f"      a_0_{r}_{q} = dot_wide(a_0_{r}_{q}, t, w_{i}_{j});"
            yield "    }"
        yield from self._finish(tile)

    def _head(self, tile: Tile) -> Iterator[str]:
        yield f"INLINE void {tile.name}({_NAMES}, int fetch) {{"

    def _finish(self, tile: Tile) -> Iterator[str]:
        """Scales the sums and stores them: codes four pixels at a time, or numbers."""
        if self.spec.dtype == "f32":
            yield "    const floats least = set_floats(job->least), most = set_floats(job->most);"
        else:
            yield "    const code_range range = range_of(job->zero, job->low, job->high);"
        for v in range(tile.vectors):
            yield f"    {{ const floats scale = load_f32(job->scale + 16 * (block + {v}));"
            if self.spec.epilogue is not None:
                yield from self._epilogue(tile, v)
                continue
            for r in range(tile.rows):
                row = f"y + {v} * job->y_plane + {r} * job->y_row"
                if self.spec.dtype == "f32":
                    for q in range(tile.columns):
                        yield f"      store_clamped({row} + {BLOCK * q}, a_{v}_{r}_{q}, scale, least, most);"
                    continue
                for q in range(0, tile.columns, 4):
                    count = min(4, tile.columns - q)
                    sums = ", ".join(f"a_{v}_{r}_{min(q + k, tile.columns - 1)}" for k in range(4))
                    yield f"      store_codes({row} + {BLOCK * q}, {count}, {sums}, scale, range);"
            yield "    }"
        yield "}"

    def _epilogue(self, tile: Tile, v: int) -> Iterator[str]:
        """Numbers through the expression, then stored, or rounded as QuantizeLinear does: by a division."""
        codes = self.spec.dtype != "f32"
        for r, q in tile.pixels:
            yield f"      const floats y_{r}_{q} = epilogue(mul(to_floats(a_{v}_{r}_{q}), scale), job->numbers + 1);"
            if codes:
                scaled = f"divide(y_{r}_{q}, set_floats(job->numbers[0]))"
                yield f"      const ints c_{r}_{q} = to_ints(min_floats({scaled}, set_floats(0x1p20f)));"
        for r in range(tile.rows):
            row = f"y + {v} * job->y_plane + {r} * job->y_row"
            for q in range(0, tile.columns, 4 if codes else 1):
                if codes:
                    sums = ", ".join(f"c_{r}_{min(q + k, tile.columns - 1)}" for k in range(4))
                    count = min(4, tile.columns - q)
                    yield f"      store_codes({row} + {BLOCK * q}, {count}, {sums}, set_floats(1.0f), range);"
                else:
                    yield f"      store_floats({row} + {BLOCK * q}, y_{r}_{q}, 16);"
        yield "    }"

    def _choose(self) -> Iterator[str]:
        """`tile(whole, vectors, fetch, ...)`: the function for a whole tile, or one pixel, of some channels."""
        yield f"static void tile(int whole, long vectors, int fetch, {_NAMES}) {{"
        for tile in self._tiles():
            whole = (tile.rows, tile.columns) == (self.schedule.rows, self.schedule.columns)
            yield f"    if (whole == {int(whole)} && vectors == {tile.vectors}) {{"
            yield f"        if (fetch) {tile.name}(job, x, next, w, y, block, 1);"
            yield f"        else {tile.name}(job, x, next, w, y, block, 0);"
            yield "    }"
        yield "}"


_NAMES = "const conv_job *job, const uint8_t *x, const uint8_t *next, const int8_t *w, output *y, long block"
