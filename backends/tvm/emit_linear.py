"""The product of a linear kernel in TIR: `y[m, N] = x[m, K] w[N, K]^T (+ bias)` of packed bits and rounded activations.

    for each block, for each 16 rows:                  y = 0
        for each group of columns:                     acc = what sums start with
            for each cell: take apart, then dot        acc += u8 * s8, exact in int32
            y += scale * acc

Where bits lie is asked of the layout, as the place of single bits: `Storage.layout.index`. The 16 rows are the vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from qcc.backends.native.linear_spec import LinearSpec, Schedule
from qcc.backends.native.storage import Place, Storage

from .emit_activations import WideWorkspace
from .toolchain import Tvm
from .vectors import LANES, Vectors, table_bytes


class Places:
    """Where the bits of a packed weight lie, in bytes: the layout's own answer for the first block, and the strides."""

    def __init__(self, spec: LinearSpec, storage: Storage) -> None:
        self.spec, self.storage = spec, storage
        levels = {place.name: 8 * place.bytes for place in (*storage.inner, *storage.outer)}
        self.bits = {"codes": spec.weight.bits} | levels

    def code(self, n: int, k: int, bit: int = 0) -> int:
        """The address, in bits, of one bit of a code."""
        return int(self.storage.layout.index("codes", (n, k), (self.storage.n, self.storage.k), self.bits, bit))

    def stride(self, n: int, k: int) -> int:
        """Bytes between codes that are so many rows or columns apart."""
        return (self.code(n, k) - self.code(0, 0)) // 8

    def level(self, place: Place, n: int) -> int:
        """Bytes from the start of the weight to the first number of a level, of row n."""
        shape = (self.storage.n, self.storage.k)
        return int(self.storage.layout.index(place.name, (n, 0), shape, self.bits)) // 8

    @cached_property
    def block(self) -> int:
        """Bytes of a block."""
        return self.stride(self.storage.rows, 0)


class Product:
    """Writes `product(rows, w, bias, y, m, alpha, first, last, biased, tables)`: some blocks for all activations."""

    def __init__(self, spec: LinearSpec, storage: Storage, workspace: WideWorkspace, schedule: Schedule) -> None:
        self.spec, self.storage, self.work = spec, storage, workspace
        self.tile, self.unroll = schedule.tile, schedule.unroll
        self.places = Places(spec, storage)
        self.v = Vectors()
        self.T = self.v.T
        self.lane = self.T.ramp(0, 1, LANES)
        word = spec.weight.offset.word if spec.weight.offset else "-"
        self.sign = -1.0 if word == "minus" else 1.0
        self.scales = [[p for p in level if p.name.startswith("scale")] for level in (storage.inner, storage.outer)]
        self.lows = [[p for p in level if p.name.startswith(word)] for level in (storage.inner, storage.outer)]
        self.zero = next((p for p in storage.inner if p.name == "zero"), None)

    def write(self) -> None:
        """The function."""
        T, n = self.T, self.storage.n
        rows, w, bias, y = (
            T.arg(name, T.handle(kind))
            for name, kind in (("rows", "uint8"), ("w", "uint8"), ("bias", "float32"), ("y", "float32"))
        )
        m, self.alpha = T.arg("m", T.int64()), T.arg("alpha", T.float32())
        first, last = T.arg("first", T.int64()), T.arg("last", T.int64())
        self.biased = T.arg("biased", T.int32())
        self.tables = T.arg("tables", T.buffer((table_bytes(self.spec),), "uint8"))
        size = m * T.int64(self.work.bytes)
        self.rows = T.decl_buffer((size // 4,), "int32", data=rows, align=64)
        self.numbers = T.decl_buffer((size // 4,), "float32", data=rows, align=64)
        self.w = T.decl_buffer((T.int64(self.storage.bytes),), "uint8", data=w, align=64)
        self.bias = T.decl_buffer((T.int64(n),), "float32", data=bias, align=4)
        self.y = T.decl_buffer((m * T.int64(n),), "float32", data=y, align=4)
        self.levels = self.spec.lattice.parts + self.work.parts - 1
        self.acc = [self._locals("int32", self.levels) for _ in range(self.tile)]
        self.sum, self.outer, self.low = (self._locals("float32", self.tile) for _ in range(3))
        with T.serial(T.int64(0), last - first) as step:
            block = T.bind(first + step)
            with T.serial(T.int64(0), T.int64(self.storage.vectors)) as r:
                with T.serial(T.int64(0), m // T.int64(self.tile)) as some:
                    self._tile(block, r, some * T.int64(self.tile), self.tile)
                if self.tile > 1:
                    with T.serial(T.int64(0), m % T.int64(self.tile)) as left:
                        self._tile(block, r, m // T.int64(self.tile) * T.int64(self.tile) + left, 1)

    def _locals(self, dtype: str, count: int) -> list[Tvm]:
        return [self.T.alloc_buffer((LANES,), dtype, scope="local") for _ in range(count)]

    def _add(self, to: Tvm, value: Tvm) -> None:
        self.T.buffer_store(to, to[self.lane] + value, [self.lane])

    def _set(self, to: Tvm, value: Tvm) -> None:
        self.T.buffer_store(to, value, [self.lane])

    def _tile(self, block: Tvm, r: Tvm, row: Tvm, count: int) -> None:
        """16 rows of the weight times `count` rows of activations."""
        T, s, places = self.T, self.storage, self.places
        self.count, self.r = count, r
        self.at = [T.bind((row + T.int64(i)) * T.int64(self.work.bytes // 4)) for i in range(count)]
        for i in range(count):
            self._set(self.sum[i], self.v.floats(0.0))
        with T.serial(T.int64(0), T.int64(s.supers)) as super_block:
            for i in range(count):
                self._set(self.outer[i], self.v.floats(0.0))
                self._set(self.low[i], self.v.floats(0.0))
            span = places.stride(0, s.group * s.groups)
            start = T.bind(block * T.int64(places.block) + super_block * T.int64(span))
            with T.serial(T.int64(0), T.int64(s.groups)) as group:
                step = places.stride(0, s.group) if s.groups > 1 else 0
                self._group(T.bind(start + group * T.int64(step)), T.bind(super_block * T.int64(s.groups) + group))
            self._super_block(start)
        self._finish(block, row)

    def _group(self, base: Tvm, g: Tvm) -> None:
        """The sums of one group: `base` is the place of the record that it begins, `g` counts groups of the row."""
        T, s = self.T, self.storage
        self._begin(base, g)
        stride = self.places.stride(0, s.cell.columns) if s.cells > 1 else 0
        together = next(n for n in range(min(self.unroll, s.cells), 0, -1) if s.cells % n == 0)
        lane = self.r * T.int64(self.places.stride(LANES, 0))
        with T.serial(T.int64(0), T.int64(s.cells // together)) as step:
            products = [[list[Tvm]() for _ in range(self.levels)] for _ in range(self.count)]
            for i in range(together):
                cell = T.bind(step * T.int64(together) + T.int64(i))
                columns = T.bind((g * T.int64(s.group) + cell * T.int64(s.cell.columns)) // T.int64(2))
                self._cell(T.bind(base + cell * T.int64(stride) + lane), columns, products)
            largest = 128 * self.spec.lattice.high
            for sums, rows in zip(self.acc, products, strict=False):
                for acc, found in zip(sums, rows, strict=True):
                    self._set(acc, self.v.add_products(acc[self.lane], found, largest))
        self._end(base, g)

    def _cell(self, at: Tvm, columns: Tvm, products: list[list[list[Tvm]]]) -> None:
        """Adds the products of a cell to those of each row and level; `columns` counts the activations in twos."""
        parts = self.work.parts
        for quad in range(self.storage.cell.quads):
            x = [[self._x(i, columns, quad, part) for part in range(parts)] for i in range(self.count)]
            for p, weights in enumerate(self._bytes(at, quad)):
                for i in range(self.count):
                    for part in range(parts):
                        products[i][p + part] += self.v.products(weights, *x[i][part])

    def _x(self, i: int, columns: Tvm, quad: int, part: int) -> Sequence[Tvm]:
        """Four neighbouring activations of row i in every lane, as two words of two."""
        at = self.at[i] + columns + self.T.int64(2 * quad + part * self.work.columns // 2)
        return [self.v.keep(self.v.ints(self.rows[at + self.T.int64(half)])) for half in range(2)]

    def _bytes(self, at: Tvm, quad: int) -> list[Tvm]:
        """The bytes of the values of 16 rows and 4 columns, a vector for each part."""
        T, lattice, places = self.T, self.spec.lattice, self.places
        codes: Tvm = None
        for field in self.storage.cell.fields:
            first = places.code(0, 4 * quad, field.low)
            apart = places.code(0, 4 * quad + 1, field.low) - first
            where = at + T.int64(first // 8)
            if apart == 8:
                word = self.v.load(self.w, where, 4 * LANES, f"int32x{LANES}")
                found = self.v.field(self.v.keep(word), first % 8, field.low, field.width)
            else:
                word = self.v.dense(self.w, where, apart, field.width)
                found = word << self.v.ints(field.low) if field.low else word
            codes = found if codes is None else codes | found
        codes = self.v.keep(codes * self.v.ints(lattice.multiplier) if lattice.multiplier > 1 else codes)
        if not lattice.tables:
            return [codes]
        return [
            self.v.keep(self.v.lookup(codes, table, lattice.bits, self.tables, p << lattice.bits))
            for p, table in enumerate(lattice.tables)
        ]

    def _begin(self, base: Tvm, g: Tvm) -> None:
        """What sums begin with: minus the offset, or the zero points, times the sum of the activations."""
        T, v = self.T, self.v
        raised: Tvm = None
        if self.zero is not None and self.spec.zero_points:
            number = v.whole(self.w, base + self._level(self.zero), self.zero.dtype)
            raised = v.keep(number + v.ints(self.spec.offset))
        for i in range(self.count):
            for level in range(self.levels):
                if level < self.work.parts:
                    at = self.at[i] + T.int64(self.work.starts // 4 + level * self.work.groups) + g
                    start = v.ints(self.rows[at])
                    self._set(self.acc[i][level], start if raised is None else raised * start)
                else:
                    self._set(self.acc[i][level], v.ints(0))

    def _end(self, base: Tvm, g: Tvm) -> None:
        """The sums of a group as floats, times its scales."""
        T, v = self.T, self.v
        scale = self._product(self.scales[0], base)
        low = self._product(self.lows[0], base)
        zero = None
        if self.zero is not None and not self.spec.zero_points:
            number = v.number(self.w, base + self._level(self.zero), self.zero.dtype)
            zero = T.bind(number if scale is None else number * scale)
        for i in range(self.count):
            value = T.cast(self.acc[i][0][self.lane], f"float32x{LANES}")
            for level in range(1, self.levels):
                value = value * v.floats(256.0) + T.cast(self.acc[i][level][self.lane], f"float32x{LANES}")
            if self.work.grouped:
                own = v.floats(self.numbers[self.at[i] + T.int64(self.work.scales // 4) + g])
                value = value * (own if scale is None else scale * own)
            elif scale is not None:
                value = value * scale
            to = self.outer[i] if self.scales[1] else self.sum[i]
            self._add(to, value)
            if zero is None and not self.spec.weight.offset:
                continue
            total = T.bind(self.numbers[self.at[i] + T.int64(self.work.totals // 4) + g])
            if zero is not None:
                self._add(to, zero * v.floats(T.float32(-1.0) * total))
            if self.spec.weight.offset:
                signed = v.floats(T.float32(self.sign) * total)
                self._add(self.low[i] if self.lows[1] else self.sum[i], signed if low is None else low * signed)

    def _super_block(self, base: Tvm) -> None:
        """The sums of a super-block times its own scales, and its minima times theirs."""
        for places, sums in ((self.scales[1], self.outer), (self.lows[1], self.low)):
            by = self._product(places, base)
            for i in range(self.count) if by is not None else ():
                self._add(self.sum[i], sums[i][self.lane] * by)

    def _level(self, place: Place) -> Tvm:
        """Bytes from the start of a record to the 16 numbers of a level."""
        first, vectors = self.places.level(place, 0), self.storage.vectors
        step = self.places.level(place, LANES) - first if vectors > 1 else 0
        return self.r * self.T.int64(step) + self.T.int64(first)

    def _product(self, levels: Sequence[Place], base: Tvm) -> Tvm:
        """The product of some levels for 16 rows; None where there are none."""
        found: Tvm = None
        for place in levels:
            number = self.v.number(self.w, base + self._level(place), place.dtype)
            found = number if found is None else found * number
        return None if found is None else self.T.bind(found)

    def _finish(self, block: Tvm, row: Tvm) -> None:
        """The results times the scale of the row, plus the bias: those of the rows that the weight has."""
        T, v, s = self.T, self.v, self.storage
        first = T.bind(block * T.int64(s.rows) + T.int64(LANES) * self.r)
        for i in range(self.count):
            factor: Tvm = self.alpha
            if not self.work.grouped:
                factor = factor * self.numbers[self.at[i] + T.int64(self.work.scales // 4)]
            self._set(self.sum[i], self.sum[i][self.lane] * v.floats(T.bind(factor)))
        at = [T.bind((row + T.int64(i)) * T.int64(s.n) + first) for i in range(self.count)]
        with T.If(first + T.int64(LANES) <= T.int64(s.n)):
            with T.Then():
                for i in range(self.count):
                    with T.If(self.biased != T.int32(0)), T.Then():
                        self._add(self.sum[i], self.bias[T.ramp(first, 1, LANES)])
                    T.buffer_store(self.y, self.sum[i][self.lane], [T.ramp(at[i], 1, LANES)])
            with T.Else(), T.serial(T.int64(0), T.max(T.int64(0), T.int64(s.n) - first)) as lane:
                for i in range(self.count):
                    with T.If(self.biased != T.int32(0)), T.Then():
                        T.buffer_store(self.sum[i], self.sum[i][lane] + self.bias[first + lane], [lane])
                    T.buffer_store(self.y, self.sum[i][lane], [at[i] + lane])
