"""The vocabulary of kernels in TIR, as `backends/native/c/portable.h` has it in C: 64 bytes, or 16 lanes of 32 bits.

64 bytes are held as 16 whole numbers of 32 bits. Nothing here is an instruction of one processor: LLVM makes of it what
the processor has.
"""

from __future__ import annotations

from collections.abc import Sequence

from qcc.backends.native.linear_spec import LinearSpec

from .toolchain import Tvm, script

LANES = 16


def table_bytes(spec: LinearSpec) -> int:
    """Bytes of the tables of an element; one where it has none, for TVM has no empty tensors."""
    return sum(map(len, spec.lattice.tables)) or 1


class Vectors:
    """Expressions of TIR on 16 lanes; `at` is a place in bytes in a buffer of uint8.

    TVM tells LLVM that sums and products of signed numbers never overflow: none here may.
    """

    def __init__(self) -> None:
        self.T = script()

    def ints(self, value: Tvm) -> Tvm:
        """One whole number in every lane."""
        return self.T.broadcast(self.T.int32(value) if isinstance(value, int) else value, LANES)

    def floats(self, value: Tvm) -> Tvm:
        """One number in every lane."""
        return self.T.broadcast(self.T.float32(value) if isinstance(value, float) else value, LANES)

    def keep(self, value: Tvm) -> Tvm:
        """16 whole numbers, computed once: TVM writes a bound expression out again at each use, but not what it stores.

        LLVM holds such arrays in registers.
        """
        place = self.T.alloc_buffer((LANES,), "int32", scope="local")
        self.T.buffer_store(place, value, [self.T.ramp(0, 1, LANES)])
        return place[self.T.ramp(0, 1, LANES)]

    def load(self, buffer: Tvm, at: Tvm, count: int, dtype: str) -> Tvm:
        """`count` bytes, aligned to nothing, as `dtype`."""
        return self.T.reinterpret(dtype, buffer.vload([at], f"uint8x{count}"))

    def pattern(self, byte: int) -> Tvm:
        """A byte in each of the 64."""
        word = byte * 0x01010101
        return self.ints(word - (1 << 32) if word >> 31 else word)

    # Bytes

    def field(self, word: Tvm, shift: int, low: int, width: int) -> Tvm:
        """Bits `shift` to `shift + width - 1` of every byte, as bits `low` and on."""
        moved = low - shift
        if moved:
            word = word << self.ints(moved) if moved > 0 else word >> self.ints(-moved)
        return word if width == 8 else word & self.pattern(((1 << width) - 1) << low)

    def dense(self, buffer: Tvm, at: Tvm, bits: int, width: int) -> Tvm:
        """64 fields of `width` bits, each `bits` apart, end to end: four of them for every lane."""
        last = 8 * bits - 1
        from_bytes = [min(bits * lane // 2 + j, last) for lane in range(LANES) for j in range(4)]
        loaded = self.T.bind(buffer.vload([at], f"uint8x{8 * bits}"))
        found = self.T.Shuffle([loaded] * -(-8 // bits), from_bytes)  # it takes as many bytes as it gives, or more
        odd = self.T.ramp(0, 1, LANES) & self.ints(1)  # lanes of half bytes begin in the middle of one
        word = self.keep(self.T.reinterpret(f"int32x{LANES}", found) >> (odd * self.ints(4 * bits % 8)))
        mask = (1 << width) - 1
        parts = [(word >> self.ints(k * bits) & self.ints(mask)) << self.ints(8 * k) for k in range(4)]
        return parts[0] | parts[1] | parts[2] | parts[3]

    def lookup(self, codes: Tvm, table: bytes, bits: int, stored: Tvm, at: int) -> Tvm:
        """`table[code]` of every byte. `stored` is a buffer that has the table from its byte `at` on.

        Up to 16 values come from a tree of choices by the bits of the code, the last first; more are read one by one.
        """
        if bits > 4:
            code = self.T.cast(self.T.reinterpret(f"uint8x{4 * LANES}", codes), f"int32x{4 * LANES}")
            return self.T.reinterpret(f"int32x{LANES}", stored[code + self.T.broadcast(self.T.int32(at), 4 * LANES)])
        values: list[int | Tvm] = list(table[: 1 << bits])
        for bit in range(bits):
            ones = self.keep(codes >> self.ints(bit) & self.pattern(1))
            mask = self.keep((ones << self.ints(8)) - ones)  # 255 where the bit is set; a product would overflow
            pairs = zip(values[::2], values[1::2], strict=True)
            values = [self._choice(mask, low, high) for low, high in pairs]
        return self.pattern(values[0]) if isinstance(values[0], int) else values[0]

    def _choice(self, mask: Tvm, low: int | Tvm, high: int | Tvm) -> int | Tvm:
        """`high` in the bytes that the mask has, `low` in the others; numbers stand for the same byte everywhere."""
        if isinstance(low, int) and isinstance(high, int):
            return low if low == high else self.pattern(low) ^ (self.pattern(low ^ high) & mask)
        low, high = (self.pattern(value) if isinstance(value, int) else value for value in (low, high))
        low, high = self.keep(low), self.keep(high)
        return low ^ ((low ^ high) & mask)

    def products(self, weights: Tvm, even: Tvm, odd: Tvm) -> Sequence[Tvm]:
        """Unsigned bytes times whole numbers of 8 bits: 64 products of 16 bits, which hold 255 * 128, in two halves.

        `even` has the numbers for bytes 0 and 2 of every lane as 16 bits, `odd` those for bytes 1 and 3.
        """
        low, high = weights & self.ints(0x00FF00FF), weights >> self.ints(8) & self.ints(0x00FF00FF)
        return self._halves(low) * self._halves(even), self._halves(high) * self._halves(odd)

    def add_products(self, acc: Tvm, products: Sequence[Tvm], largest: int) -> Tvm:
        """acc + the products of every lane, exact. As many as 16 bits can hold are added before they become 32 bits."""
        together = max(1, 0x7FFF // largest)
        for first in range(0, len(products), together):
            some, *others = products[first : first + together]
            for other in others:
                some = some + other
            word = self.keep(self.T.reinterpret(f"int32x{LANES}", some))
            acc = acc + (word << self.ints(16) >> self.ints(16)) + (word >> self.ints(16))
        return acc

    def _halves(self, word: Tvm) -> Tvm:
        return self.T.reinterpret(f"int16x{2 * LANES}", word)

    # Numbers of levels

    def number(self, buffer: Tvm, at: Tvm, dtype: str) -> Tvm:
        """16 numbers of a level as float32."""
        T = self.T
        if dtype == "f32":
            return self.load(buffer, at, 64, f"float32x{LANES}")
        if dtype in ("f16", "bf16"):
            bits = T.cast(self.load(buffer, at, 32, f"uint16x{LANES}"), f"int32x{LANES}")
            return self._float(bits << self.ints(16)) if dtype == "bf16" else self._half(bits)
        if dtype == "e8m0":
            exponent = self.keep(self.whole(buffer, at, "u8"))
            return T.Select(exponent == self.ints(0), self.floats(2.0**-127), self._float(exponent << self.ints(23)))
        if dtype == "e4m3":  # float16 shifted by its exponent bias: 2^8 times the same bits one place up
            code = self.keep(self.whole(buffer, at, "u8"))
            half = (code & self.ints(0x80)) << self.ints(8) | (code & self.ints(0x7F)) << self.ints(7)
            return self._half(half) * self.floats(256.0)
        return T.cast(self.whole(buffer, at, dtype), f"float32x{LANES}")

    def whole(self, buffer: Tvm, at: Tvm, dtype: str) -> Tvm:
        """16 whole numbers of a level, a byte each."""
        kind = "int8" if dtype[0] == "i" else "uint8"
        return self.T.cast(self.load(buffer, at, LANES, f"{kind}x{LANES}"), f"int32x{LANES}")

    def _float(self, bits: Tvm) -> Tvm:
        return self.T.reinterpret(f"float32x{LANES}", bits)

    def _half(self, bits: Tvm) -> Tvm:
        """float32 of float16 bits; without instructions of that kind a conversion would be a call for every lane."""
        T = self.T
        bits = self.keep(bits)
        sign, rest = (bits & self.ints(0x8000)) << self.ints(16), self.keep(bits & self.ints(0x7FFF))
        normal = T.Select(rest < self.ints(0x7C00), self.ints(112 << 23), self.ints(224 << 23))
        small = T.reinterpret(f"int32x{LANES}", T.cast(rest, f"float32x{LANES}") * self.floats(2.0**-24))
        return self._float(sign | T.Select(rest < self.ints(0x400), small, (rest << self.ints(13)) + normal))
