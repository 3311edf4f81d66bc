"""The C text of a convolution kernel: tiles of pixels by blocks of output channels, summed in registers.

    for each chunk of rows, block of V x 16 channels:     one task of a thread
        for each tile of R x Q pixels:
            acc[v][p] = bias[v] - x_zero * sum(w[v])      what u8 codes are too high by
            for each block of input channels, tap row, tap column:
                for each 4 channels: acc[v][p] += w[v] * x[p + tap]     u8 * s8, exact in int32
            y[v][p] = codes of acc[v][p] * scale[v]

Addresses of pixels are constants beside one pointer, because the shape is. The last tile of a row, or of rows, lies on
top of the one before it, so that every tile is whole. A depthwise kernel has no channels to sum: it sums four taps of a
row instead, transposed in registers, and uses each transposed vector for all pixels and rows that it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .blocked import BLOCK
from .conv_spec import TAPS, ConvSchedule, ConvSpec
from .isa import C_FOLDER, Isa


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
        lines += [*self._constants(), (C_FOLDER / "conv_job.h").read_text()]
        last = self.spec.output_blocks % self.schedule.vectors
        for vectors in (self.schedule.vectors, last)[: 2 if last else 1]:
            lines += self._depthwise() if self.spec.depthwise else self._tile(vectors)
        lines += [*self._choose(last), (C_FOLDER / "conv.h").read_text()]
        return "\n".join(lines) + "\n"

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
        height, width = spec.size
        chunk = s.chunk if 0 < s.chunk < height else height
        values = {
            "HEIGHT": height,
            "WIDTH": width,
            "ROWS": s.rows,
            "COLUMNS": s.columns,
            "VECTORS": s.vectors,
            "DEPTHWISE": int(spec.depthwise),
            "CHUNK": chunk,
            "CHUNKS": height // chunk,
            "BLOCKS": spec.output_blocks,
            "WEIGHT_BLOCK": self.weight_block,
            "X_FIRST": x.interior - spec.pads[0] * x.row - spec.pads[1] * x.block,
            "X_PIXEL": spec.strides[1] * x.block,
            "X_ROW": spec.strides[0] * x.row,
            "X_PLANE": x.plane,
            "X_IMAGE": x.image,
            "Y_FIRST": y.interior,
            "Y_ROW": y.row,
            "Y_PLANE": y.plane,
            "Y_IMAGE": y.image,
            "Y_ROWS": y.rows,
            "HALO_TOP": y.halo[0],
            "HALO_LEFT": y.halo[1],
            "HALO_BOTTOM": y.halo[2],
            "HALO_RIGHT": y.halo[3],
        }
        yield from (f"#define {name} {value}L" for name, value in values.items())
        yield f"typedef {'float' if spec.dtype == 'f32' else 'uint8_t'} output;"
        shared = len(set(spec.first_blocks)) == 1 or spec.depthwise
        if not shared:
            yield f"static const int FIRST[BLOCKS] = {{{', '.join(map(str, spec.first_blocks))}}};"
        yield f"#define FIRST_OF(block) {'(block)' if spec.depthwise else '0' if shared else 'FIRST[block]'}"

    def _tile(self, vectors: int) -> Iterator[str]:
        """`tile_V(...)`: a tile of pixels by V blocks of channels, summed over channels.

        Where `fetch`, it asks for the pixels of the next tile and for the weight of the next V blocks.
        """
        spec, x, s = self.spec, self.spec.x, self.schedule
        (kh, kw), (dh, dw), quads = spec.kernel, spec.dilations, x.block // TAPS
        pixels = [(r, q) for r in range(self.schedule.rows) for q in range(self.schedule.columns)]
        yield from self._head(f"tile_{vectors}")
        for v in range(vectors):
            for r, q in pixels:
                yield f"    ints a_{v}_{r}_{q} = load_ints(job->start + 16 * (block + {v}));"
        # one pointer for each vector of channels would take registers of addresses: the blocks lie a constant apart
        unrolled = range(kw) if quads == 1 else range(1)
        span = ((s.columns - 1) * spec.strides[1] + spec.reach[1]) * x.block
        yield f"    for (long c = 0; c < {spec.input_blocks}; c++, x += X_PLANE, next += X_PLANE)"
        yield f"        for (long i = 0; i < {kh}; i++) {{"
        yield "            if (fetch) {"
        for r in range(s.rows):
            for line in range(0, span, 64):
                yield f"                prefetch(next + i * {dh * x.row} + {r} * X_ROW + {line});"
        yield "            }"
        yield f"            for (long j = 0; j < {kw // len(unrolled)}; j++, w += {len(unrolled) * x.block * BLOCK}) {{"
        yield f"                const uint8_t *p = x + i * {dh * x.row} + j * {dw * x.block};"
        for tap in unrolled:
            for quad in range(quads):
                yield "                {"
                for v in range(vectors):
                    at = f"w + {v} * WEIGHT_BLOCK + {(tap * quads + quad) * TAPS * BLOCK}"
                    yield f"                    const ints w{v} = load_ints({at});"
                    yield f"                    if (fetch) prefetch_far({at} + {vectors} * WEIGHT_BLOCK);"
                for r, q in pixels:
                    at = f"p + {tap * dw * x.block + TAPS * quad} + {r} * X_ROW + {q} * X_PIXEL"
                    yield f"                    const bytes64 x_{r}_{q} = spread_bytes({at});"
                    for v in range(vectors):
                        name = f"a_{v}_{r}_{q}"
                        yield f"                    {name} = dot_wide({name}, x_{r}_{q}, w{v});"
                yield "                }"
        yield "            }"
        yield "        }"
        yield from self._finish(vectors)

    def _depthwise(self) -> Iterator[str]:
        """`tile_1(...)`: a tile of pixels of one block of channels, summed over four taps at a time."""
        spec, x, s = self.spec, self.spec.x, self.schedule
        (kh, _), (dh, dw), (sh, sw) = spec.kernel, spec.dilations, spec.strides
        yield from self._head("tile_1")
        for r in range(s.rows):
            for q in range(s.columns):
                yield f"    ints a_0_{r}_{q} = load_ints(job->start + 16 * block);"
        count = len(self.starts)
        for i in range(kh):
            for j in range(count):
                yield f"    const ints w_{i}_{j} = load_ints(w + {(i * count + j) * TAPS * BLOCK});"
        uses: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
        for r in range(s.rows):
            for q in range(s.columns):
                for i in range(kh):
                    for j, start in enumerate(self.starts):
                        uses.setdefault((r * sh + i * dh, q * sw + start * dw), []).append((r, q, i, j))
        span = ((s.columns - 1) * sw + spec.reach[1]) * BLOCK
        for row in sorted({row for row, _ in uses}):
            yield from (f"    if (fetch) prefetch(next + {row * x.row + line});" for line in range(0, span, 64))
        for (row, column), users in sorted(uses.items()):
            yield f"    {{ const bytes64 t = gather_taps(x + {row * x.row + column * BLOCK}, {dw * BLOCK});"
            for r, q, i, j in users:
                yield f"      a_0_{r}_{q} = dot_wide(a_0_{r}_{q}, t, w_{i}_{j});"
            yield "    }"
        yield from self._finish(1)

    def _head(self, name: str) -> Iterator[str]:
        names = "const conv_job *job, const uint8_t *x, const uint8_t *next, const int8_t *w, output *y, long block"
        yield f"INLINE void {name}({names}, int fetch) {{"

    def _finish(self, vectors: int) -> Iterator[str]:
        """Scales the sums and stores them: codes four pixels at a time, or numbers."""
        if self.spec.dtype == "f32":
            yield "    const floats least = set_floats(job->least), most = set_floats(job->most);"
        else:
            yield "    const code_range range = range_of(job->zero, job->low, job->high);"
        for v in range(vectors):
            yield f"    {{ const floats scale = load_f32(job->scale + 16 * (block + {v}));"
            for r in range(self.schedule.rows):
                row = f"y + {v} * Y_PLANE + {r} * Y_ROW"
                if self.spec.dtype == "f32":
                    for q in range(self.schedule.columns):
                        yield f"      store_clamped({row} + {BLOCK * q}, a_{v}_{r}_{q}, scale, least, most);"
                    continue
                for q in range(0, self.schedule.columns, 4):
                    count = min(4, self.schedule.columns - q)
                    sums = ", ".join(f"a_{v}_{r}_{min(q + k, self.schedule.columns - 1)}" for k in range(4))
                    yield f"      store_codes({row} + {BLOCK * q}, {count}, {sums}, scale, range);"
            yield "    }"
        yield "}"

    def _choose(self, last: int) -> Iterator[str]:
        """`tile(vectors, fetch, ...)`: the function for some blocks of channels."""
        names = "const conv_job *job, const uint8_t *x, const uint8_t *next, const int8_t *w, output *y, long block"
        yield f"static void tile(long vectors, int fetch, {names}) {{"
        for vectors in (self.schedule.vectors, last)[: 2 if last else 1]:
            yield f"    if (vectors == {vectors}) {{"
            yield f"        if (fetch) tile_{vectors}(job, x, next, w, y, block, 1);"
            yield f"        else tile_{vectors}(job, x, next, w, y, block, 0);"
            yield "    }"
        yield "}"
