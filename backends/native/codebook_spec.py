"""What a kernel for trained codebooks computes, and where its bits lie: rows along k, their tables beside them.

    n(n1 v2:2) k(k1 v1:2 v0:2 k0:64) e(e4:16) -> {n1 k1 {codes v1 v0 k0 v2}; n1 v2 {high e4; low e4}; step n1 v2}

Every row has a table of its own, so a vector holds 64 neighbours of one row, and is multiplied with the 64 activations
beside them. A value is `step * (256 * (high - 128) + low)`: 16 bits with a step for each row, so that its rounding
error is at most 1/65534 of the largest value of its row.

A *chunk* is 8 such vectors, of `rows` rows: the fewest whose bits fill registers. A field of w bits of its codes is w
registers; the one that holds vector v is v mod w, and there it is the (v / w)th field of every byte. Fields of 8, 4, 2
and 1 bits make up a code. Nested codes (Any-Precision LLM) are single bits instead, each a plane of the whole weight,
the most significant first: reading b bits touches b planes and the table for b bits, and one copy serves all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from qcc.ir.errors import BadInput
from qcc.ir.formats import TrainedFamily
from qcc.ir.formats.nested import Nested
from qcc.ir.layout import Record

from .isa import Isa
from .lattice import Lattice
from .linear_spec import LinearSpec, Schedule
from .storage import Cell, Field, Storage

COLUMNS = 64
"""Codes of a row that a vector holds."""
VECTORS = 8
"""Vectors of a chunk."""
LIMIT = 32767
"""The largest whole number of a value."""
LARGEST = ((1 << 31) - 1) // (255 * 128 + 255 * 127)
"""K at which a high byte times a low one of 16-bit activations, and a low one times a high one, still fit an int32."""


@dataclass(frozen=True)
class CodebookSpec(LinearSpec):
    """A linear operation whose weight has a table of values for each row; `NotSupported` for others, with reason."""

    precision: int = 0
    """Bits of nested codes that are read; 0 for all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision and not isinstance(self.book, Nested):
            raise BadInput(f"codes of {self.weight.element} have one precision, not {self.precision} bits")
        if self.precision and isinstance(self.book, Nested):
            self.book.at(self.precision)

    def __str__(self) -> str:
        return super().__str__() + (f" at {self.precision} bits" if self.precision else "")

    @property
    def book(self) -> TrainedFamily:
        """The element."""
        assert self.weight.codebook is not None
        return self.weight.codebook

    @property
    def bits(self) -> int:
        """Bits of a code as it is read."""
        return self.precision or self.weight.bits

    @property
    def nested(self) -> bool:
        """Whether the upper bits of the codes are codes of their own."""
        return isinstance(self.book, Nested)

    @property
    def precisions(self) -> range:
        """Bits of the codes that tables are packed for."""
        return range(self.book.least if isinstance(self.book, Nested) else self.weight.bits, self.weight.bits + 1)

    @cached_property
    def lattice(self) -> Lattice:
        """The codes themselves: what they stand for lies beside them."""
        return Lattice(self.bits, 0, (), 1, self.offset, 1.0, 0.5 / LIMIT)

    @cached_property
    def offset(self) -> int:
        """What the high byte of a value is above it."""
        return 128

    def _obstacle(self) -> str:
        fmt, shape = self.weight, (self.n, self.k)
        if fmt.codebook is None:
            return "its values do not lie beside the codes"
        for what, present in {
            "it holds outliers": fmt.outliers,
            "its groups are of permuted columns": fmt.permuted,
            "it has zero points": fmt.zero is not None,
            "it has a minimum": fmt.offset,
        }.items():
            if present:
                return what
        for name, level in fmt.levels().items():
            if level.shape_of(shape)[1] != 1:
                return f"{name} is not one for the whole row"
        if self.activation.fixed:
            return "activations have a scale for each row, no fixed one"
        if self.activation.grouped:
            return "activations have a scale for each row: the weight has no groups"
        if self.activation.bits > 8 and self.k > LARGEST:
            return f"{self.k} columns: sums of products of 16-bit activations stay within 32 bits up to {LARGEST}"
        return ""


@dataclass(frozen=True)
class CodebookSchedule(Schedule):
    """The parameters of the generator: `rows` decides where bits lie, `prefetch` and `tile` change only speed."""

    unpack: str = "fields"
    rows: int = 2
    """Rows of a chunk: 1, 2, 4 or 8. Columns are padded to a multiple of 512 / rows."""

    def __str__(self) -> str:
        ahead = f", prefetch {self.prefetch}" if self.prefetch else ""
        return f"{self.rows} rows{ahead}, tile {self.tile}"


def default_schedule(spec: CodebookSpec, isa: Isa) -> CodebookSchedule:
    """What read memory fastest on AMD Zen 4, with more rows where columns would need much padding. Where bits lie
    does not depend on the precision, nor on the activations: they are loaded once for all rows of a chunk, which counts
    where codes are so small that memory waits for the dot products."""
    few = not spec.nested and spec.bits <= 2
    rows = next((r for r in (2, 4)[few:] if 16 * (padded(spec.k, r) - spec.k) <= spec.k), 8)
    ahead = (1024 if spec.bits == 8 else 256) if spec.nested else 384 if spec.bits <= 4 else 256
    return CodebookSchedule(rows=rows, prefetch=ahead, tile=tile_of(spec, isa, rows))


def space(spec: CodebookSpec, isa: Isa) -> Iterator[CodebookSchedule]:
    """Every schedule that is worth a trial."""
    for rows in (1, 2, 4, 8):
        for ahead in (0, 256, 384, 1024):
            yield CodebookSchedule(rows=rows, prefetch=ahead, tile=tile_of(spec, isa, rows))


def tile_of(spec: CodebookSpec, isa: Isa, rows: int) -> int:
    """As many rows of activations as leave the sums of a tile in registers, and a few in any case."""
    least = 2 if isa.sums > 8 else 4
    return max(least, min(8, isa.sums // (rows * (1 + spec.activation.parts))))


def padded(k: int, rows: int) -> int:
    """K with the padding of chunks of `rows` rows."""
    columns = VECTORS // rows * COLUMNS
    return -(-k // columns) * columns


@dataclass(frozen=True)
class CodebookStorage(Storage):
    """The record of a weight [N, K] with tables: its codes, then the tables and steps of each precision, by rows."""

    spec: CodebookSpec
    block: int
    """Rows of a chunk."""

    @property
    def rows(self) -> int:
        """Rows in a block."""
        return self.block

    @property
    def cells(self) -> int:
        """Chunks of a block."""
        return self.columns * self.block // (VECTORS * COLUMNS)

    @property
    def padded_rows(self) -> int:
        """N with its padding."""
        return self.blocks * self.block

    @property
    def chunk_bytes(self) -> int:
        """Bytes from a chunk to the next: of all its bits, or of one plane where these lie apart."""
        return VECTORS * COLUMNS // 8 * (1 if self.spec.nested else self.spec.bits)

    @property
    def block_bytes(self) -> int:
        """Bytes of the codes of a block, or of one plane of them."""
        return self.cells * self.chunk_bytes

    @property
    def tables(self) -> int:
        """Where the tables for the bits that are read begin: uint8 [rows, high and low, 2^bits]."""
        below = (bits for bits in self.spec.precisions if bits < self.spec.bits)
        return self.all_codes + sum(map(self._table_bytes, below))

    @property
    def steps(self) -> int:
        """Where the steps of these tables begin: float32 [rows]."""
        return self.tables + self.padded_rows * (2 << self.spec.bits)

    @property
    def all_codes(self) -> int:
        """Bytes of the codes."""
        return self.padded_rows * self.columns * self.spec.weight.bits // 8

    @property
    def bytes(self) -> int:
        """Bytes of the packed weight."""
        return self.all_codes + sum(map(self._table_bytes, self.spec.precisions))

    @property
    def read_bytes(self) -> int:
        """Bytes that one product reads at the precision of the spec."""
        return self.padded_rows * self.columns * self.spec.bits // 8 + self._table_bytes(self.spec.bits)

    def _table_bytes(self, bits: int) -> int:
        return self.padded_rows * ((2 << bits) + 4)


def storage(spec: CodebookSpec, schedule: CodebookSchedule) -> CodebookStorage:
    """Where the packed bits lie, the same for all precisions. `BadInput` for rows that make no chunk."""
    if schedule.rows not in (1, 2, 4, 8):
        raise BadInput(f"chunks of {schedule.rows} rows", hint="1, 2, 4 or 8")
    columns, blocks = padded(spec.k, schedule.rows), -(-spec.n // schedule.rows)
    plane = blocks * schedule.rows * columns // 8
    of_rows = schedule.rows.bit_length() - 1
    vectors = ["v2", "v1", "v0"]  # the digits of a vector's place in its chunk: of rows, then of columns
    if spec.nested:
        stored = [(bit, 1) for bit in reversed(range(spec.weight.bits))]
        read = tuple(Field(bit, 1, (spec.bits - 1 - bit) * plane) for bit in range(spec.bits))
    else:
        stored, at = list[tuple[int, int]](), 0
        for width in (width for width in (8, 4, 2, 1) if spec.bits & width):
            stored.append((at, width))
            at += width
        read = tuple(Field(low, width, COLUMNS * low) for low, width in stored)
    items = [_item(low, width, vectors, "n1 k1 " if spec.nested else "") for low, width in stored]
    codes = "; ".join(items) if spec.nested else f"n1 k1 {{{'; '.join(items)}}}"
    row, entries, tables = " ".join(["n1", *vectors[:of_rows]]), list[str](), list[str]()
    for bits in spec.precisions:  # an entry of a table counts the bits of the least precision, then one more for each
        entries.append(f"e{bits}")
        of = " ".join(entries)
        tables.append(f"{row} {{high{bits} {of}; low{bits} {of}}}; step{bits} {row}")
    of_n, of_k = (" ".join(f"{name}:2" for name in names) for names in (vectors[:of_rows], vectors[of_rows:]))
    of_e = " ".join(f"{name}:{2 if i else 1 << spec.precisions[0]}" for i, name in enumerate(entries))
    text = f"n(n1 {of_n}) k(k1 {of_k} k0:{COLUMNS}) e({of_e}) -> {{{'; '.join([codes, *tables])}}}"
    cell = Cell("fields", spec.bits, VECTORS, read)
    return CodebookStorage(spec.n, spec.k, cell, 1, columns, 1, 1, (), (), Record.parse(text), spec, schedule.rows)


def _item(low: int, width: int, vectors: list[str], outer: str) -> str:
    """A field of the codes of a chunk as an item of a record: registers, bytes, and the fields of a byte."""
    registers = width.bit_length() - 1
    digits = " ".join([*vectors[3 - registers :], "k0", *vectors[: 3 - registers]])
    return f"codes[{low}:{low + width}] {outer}{digits}"
