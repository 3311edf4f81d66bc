"""Activations in whole numbers, in TIR: the numbers of `backends/native/c/activations.h`, each held in 16 bits.

    q = round(x / scale)        scale = max |x| / limit of a row, or of a group of a row

Lanes are compared as the bits of |x|, whose order is that of the numbers; what is not finite is above all others and
gives a scale that is not a number.
"""

from __future__ import annotations

from dataclasses import dataclass

from qcc.backends.native.emit_linear import Workspace
from qcc.backends.native.linear_spec import LinearSpec
from qcc.backends.native.storage import Storage

from .toolchain import Tvm
from .vectors import LANES, Vectors, table_bytes

_INFINITE = 0x7F800000
_MAGIC = 12582912.0
"""1.5 * 2^23: adding it rounds a number below 2^22 to a whole one, which is then in its last bits."""
_MAGIC_BITS = 0x4B400000
_FOURS = (0, 2, 1, 3)
"""The order of every four numbers."""


@dataclass(frozen=True)
class WideWorkspace(Workspace):
    """Whole numbers of 8 bits, or the two bytes of one of 16, as 16 bits each; of every four 0 and 2, then 1 and 3."""

    @property
    def starts(self) -> int:
        """int32 [parts, groups]: what sums of products start with."""
        return -(-2 * self.columns * self.parts // 64) * 64


class Prepare:
    """Writes `prepare(input, rows, m, tables)`: [m, K] numbers become m rows of the workspace."""

    def __init__(self, spec: LinearSpec, storage: Storage, workspace: WideWorkspace) -> None:
        self.spec, self.storage, self.work = spec, storage, workspace
        self.v = Vectors()
        self.T = self.v.T

    def write(self) -> None:
        """The function."""
        T, work = self.T, self.work
        wide = self.spec.activation.dtype == "f32"
        element = "uint32" if wide else "uint16"
        source, target = T.arg("input", T.handle(element)), T.arg("rows", T.handle("uint8"))
        m = T.arg("m", T.int64())
        T.arg("tables", T.buffer((table_bytes(self.spec),), "uint8"))  # from a tensor TVM learns the device of arrays
        size = m * T.int64(work.bytes)
        self.x = T.decl_buffer((m * T.int64(self.spec.k),), element, data=source, align=4 if wide else 2)
        self.q = T.decl_buffer((size // 2,), "int16", data=target, align=64)
        self.starts = T.decl_buffer((size // 4,), "int32", data=target, align=64)
        self.numbers = T.decl_buffer((size // 4,), "float32", data=target, align=64)
        self.high = T.alloc_buffer((LANES,), "int32", scope="local")
        self.sums = [T.alloc_buffer((LANES,), "int32", scope="local") for _ in range(work.parts)]
        self.inverse = T.alloc_buffer((1,), "float32", scope="local")
        self.scale = T.alloc_buffer((1,), "float32", scope="local")
        with T.serial(T.int64(0), m) as row:
            self._row(row)

    def _row(self, row: Tvm) -> None:
        T, work, k = self.T, self.work, self.spec.k
        at, x = T.bind(row * T.int64(work.bytes)), T.bind(row * T.int64(k))
        if not work.grouped:
            self._scale(x, T.int64(k), at + T.int64(work.scales))
        with T.serial(T.int64(k), T.int64(work.columns)) as padding:
            for part in range(work.parts):
                T.buffer_store(self.q, T.int16(0), [at // T.int64(2) + padding + T.int64(part * work.columns)])
        with T.serial(T.int64(0), T.int64(work.groups)) as group:
            first = T.bind(group * T.int64(self.storage.group))
            count = T.bind(T.max(T.int64(0), T.min(T.int64(k) - first, T.int64(self.storage.group))))
            if work.grouped:
                self._scale(x + first, count, at + T.int64(work.scales) + group * T.int64(4))
            for sums in self.sums:
                T.buffer_store(sums, self.v.ints(0), [self._whole])
            with T.serial(T.int64(0), count // T.int64(LANES)) as step:
                place = T.bind(first + step * T.int64(LANES))
                self._round(x, at, place, LANES)
            with T.serial(T.int64(0), count % T.int64(LANES)) as step:
                place = T.bind(first + count // T.int64(LANES) * T.int64(LANES) + step)
                self._round(x, at, place, 1)
            self._group(at, group)

    @property
    def _whole(self) -> Tvm:
        return self.T.ramp(0, 1, LANES)

    def _bits(self, at: Tvm, lanes: int) -> Tvm:
        """The float32 bits of inputs, as int32."""
        T = self.T
        place, kind = (T.ramp(at, 1, lanes), f"int32x{lanes}") if lanes > 1 else (at, "int32")
        if self.spec.activation.dtype == "f32":
            return T.reinterpret(kind, self.x[place])
        shift = T.broadcast(T.int32(16), lanes) if lanes > 1 else T.int32(16)
        return T.cast(self.x[place], kind) << shift

    def _scale(self, x: Tvm, count: Tvm, to: Tvm) -> None:
        """The scale of `count` inputs, and its inverse: 0 where there is none."""
        T, v = self.T, self.v
        T.buffer_store(self.high, v.ints(0), [self._whole])
        with T.serial(T.int64(0), count // T.int64(LANES)) as step:
            size = self._bits(x + step * T.int64(LANES), LANES) & v.ints(0x7FFFFFFF)
            T.buffer_store(self.high, T.max(self.high[self._whole], size), [self._whole])
        with T.serial(T.int64(0), count % T.int64(LANES)) as step:
            size = self._bits(x + count // T.int64(LANES) * T.int64(LANES) + step, 1) & T.int32(0x7FFFFFFF)
            T.buffer_store(self.high, T.max(self.high[0], size), [0])
        for lane in range(1, LANES):
            T.buffer_store(self.high, T.max(self.high[0], self.high[lane]), [0])
        high = T.Select(self.high[0] < T.int32(_INFINITE), self.high[0], T.int32(_INFINITE + 1))  # the latter is a NaN
        limit = T.float32(float(self.spec.activation.limit))
        T.buffer_store(self.scale, T.reinterpret("float32", high) / limit, [0])
        least = T.float32(2.0**-126)  # the inverse of what is below is infinite
        with T.If(T.And(high > T.int32(0), self.scale[0] < least)), T.Then():
            T.buffer_store(self.scale, least, [0])
        T.buffer_store(self.numbers, self.scale[0], [to // T.int64(4)])
        T.buffer_store(self.inverse, T.float32(0.0), [0])
        with T.If(self.scale[0] > T.float32(0.0)), T.Then():
            T.buffer_store(self.inverse, T.float32(1.0) / self.scale[0], [0])

    def _round(self, x: Tvm, row: Tvm, place: Tvm, lanes: int) -> None:
        """Some inputs, from column `place` on, as whole numbers of 8 bits, or of 16 as two bytes."""
        T, work = self.T, self.work

        def same(value: Tvm) -> Tvm:
            return T.broadcast(value, lanes) if lanes > 1 else value

        suffix = f"x{lanes}" if lanes > 1 else ""
        limit = float(self.spec.activation.limit)
        scaled = T.bind(T.reinterpret(f"float32{suffix}", self._bits(x + place, lanes)) * same(self.inverse[0]))
        scaled = T.bind(T.Select(scaled < same(T.float32(limit)), scaled, same(T.float32(limit))))
        scaled = T.bind(T.Select(scaled > same(T.float32(-limit)), scaled, same(T.float32(-limit))))
        q = T.bind(T.reinterpret(f"int32{suffix}", scaled + same(T.float32(_MAGIC))) - same(T.int32(_MAGIC_BITS)))
        parts = [q]
        if work.parts == 2:
            high = T.bind((q + same(T.int32(128))) >> same(T.int32(8)))
            parts = [high, T.bind(q - (high << same(T.int32(8))))]
        for part, number in enumerate(parts):
            at = row // T.int64(2) + T.int64(part * work.columns) + place
            if lanes > 1:
                fours = [4 * (i // 4) + _FOURS[i % 4] for i in range(lanes)]
                T.buffer_store(self.q, T.Shuffle([T.cast(number, f"int16{suffix}")], fours), [T.ramp(at, 1, lanes)])
            else:
                moved = T.Select(place % T.int64(4) == T.int64(1), T.int64(1), T.int64(0))
                moved = moved - T.Select(place % T.int64(4) == T.int64(2), T.int64(1), T.int64(0))
                T.buffer_store(self.q, T.cast(number, "int16"), [at + moved])
            lane = self._whole if lanes > 1 else 0
            T.buffer_store(self.sums[part], self.sums[part][lane] + number, [lane])

    def _group(self, at: Tvm, group: Tvm) -> None:
        """What sums of products start with, and the sum of the whole numbers."""
        T, work, spec = self.T, self.work, self.spec
        total: Tvm = T.float32(0.0)
        for part, sums in enumerate(self.sums):
            for lane in range(1, LANES):
                T.buffer_store(sums, sums[0] + sums[lane], [0])
            offset = 1 if spec.zero_points else spec.offset
            place = at + T.int64(work.starts + 4 * part * work.groups) + group * T.int64(4)
            T.buffer_store(self.starts, sums[0] * T.int32(-offset), [place // T.int64(4)])
            total = total * T.float32(256.0) + T.cast(sums[0], "float32")
        total = total * self.scale[0] if work.grouped else total
        T.buffer_store(self.numbers, total, [(at + T.int64(work.totals)) // T.int64(4) + group])
