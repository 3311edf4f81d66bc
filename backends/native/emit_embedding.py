"""The C text of an embedding kernel: the layout of the weight says where the bits of a row lie.

    for each group of columns:                         the loops are the digits of the layout along k
        read its scales, zero point and minimum
        for each four columns: load, shift, mask       codes, one a byte
        y = ((value(code) - zero) * scale - low) * factor

An address is a sum over the digits of a row and of a column (`qcc.ir.layout.Record.pieces`), so that the part of the
row is computed once and every layout is read by the same few lines. The arithmetic is that of `Quantized.decode`,
operation for operation: results are the same bits, but where a scale of the whole table is folded into a step that is
no power of two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import gcd, prod
from typing import TYPE_CHECKING

import numpy as np

from qcc.ir.formats import load_element

from .codebook_spec import CodebookSpec
from .embedding_spec import EmbeddingSpec
from .isa import C_FOLDER, Isa

if TYPE_CHECKING:
    from qcc.ir.layout.pieces import Piece

WORD = 4
"""Columns that are taken out at once: neighbours in every layout."""
UNROLLED = 64
"""Columns whose code is written out, at most."""
BUFFER = 512
"""Columns whose codes are kept before they become numbers, where a group has so many."""
LEAST_SHARED = 1 << 16
"""Numbers of a result from which on threads share it."""


@dataclass(frozen=True)
class Walk:
    """How columns are gone through: the digits along k, outermost first, as loops, then as code that is written out."""

    grouped: tuple[str, ...]
    """Loops around the numbers of a group."""
    inside: tuple[str, ...]
    """Loops in a group."""
    unrolled: tuple[str, ...]
    """The last of them counts neighbours."""
    extents: dict[str, int]

    def columns(self, name: str) -> int:
        """Columns that a digit moves by."""
        names = [*self.grouped, *self.inside, *self.unrolled]
        return prod(self.extents[inner] for inner in names[names.index(name) + 1 :])

    @property
    def cell(self) -> int:
        """Columns of the code that is written out."""
        return prod(self.extents[name] for name in self.unrolled)

    @property
    def group(self) -> int:
        """Columns of a group, its padding included."""
        return self.cell * prod(self.extents[name] for name in self.inside)


@dataclass(frozen=True)
class EmbeddingText:
    """A generated kernel: static functions, of which `embed` is what is called."""

    spec: EmbeddingSpec
    isa: Isa

    def text(self) -> str:
        """The C text, but for a function that others see."""
        linear = self.spec.linear
        lines = [
            f"/* {self.spec}, {self.isa.name}\n   {self.spec.storage.layout} */",
            f"#define ROWS {linear.n}",
            f"#define COLUMNS {linear.k}",
            f"#define STEP {float(linear.lattice.step).hex()}",
            f"#define LEAST_SHARED {LEAST_SHARED}",
            (C_FOLDER / "embedding.h").read_text(),
            *self._values(),
            *self._convert(),
            *self._read_row(),
        ]
        return "\n".join(lines) + "\n"

    @cached_property
    def book(self) -> CodebookSpec | None:
        """The table's own spec where its values lie beside the codes."""
        return self.spec.linear if isinstance(self.spec.linear, CodebookSpec) else None

    @cached_property
    def pieces(self) -> dict[str, list[Piece]]:
        """Where the bits of each part lie, as sums over digits."""
        found: dict[str, list[Piece]] = {}
        for piece in self.spec.storage.layout.pieces(self.spec.widths, self.spec.shape):
            found.setdefault(piece.part, []).append(piece)
        return found

    @cached_property
    def extents(self) -> dict[str, int]:
        """How many values each digit of the layout takes."""
        return self.spec.storage.layout.extents(self.spec.shape)

    @cached_property
    def rows(self) -> list[str]:
        """The digits of a row, outermost first."""
        return [digit.name for digit in self.spec.storage.layout.dimensions[0].digits]

    @cached_property
    def walk(self) -> Walk:
        """The digits of a column: those of levels are loops, and of the others as many are written out as may be."""
        names = [digit.name for digit in self.spec.storage.layout.dimensions[1].digits]
        held = {name for part, found in self.pieces.items() if part != "codes" for name, _ in found[0].strides}
        grouped = [name for name in names if name in held]
        others = names[len(grouped) :]
        first = len(others) - 1
        while first and prod(self.extents[name] for name in others[first - 1 :]) <= UNROLLED:
            first -= 1
        return Walk(tuple(grouped), tuple(others[:first]), tuple(others[first:]), self.extents)

    @property
    def levels(self) -> list[str]:
        """Levels whose numbers are read for each group."""
        return [] if self.book else [*self.spec.linear.levels]

    def _values(self) -> Iterator[str]:
        """`VALUE(code)`: of the packed code, by arithmetic where that gives the same bits, else from a table."""
        if self.book:
            yield "#define VALUE(code) values[code]"
            return
        lattice = self.spec.linear.lattice
        codes = np.arange(1 << lattice.bits)
        values = load_element(self.spec.linear.weight.element).table.astype(np.float32)[codes ^ lattice.flip]
        made = (codes * lattice.multiplier - lattice.offset).astype(np.float32) * np.float32(lattice.step)
        if not lattice.tables and values.tobytes() == made.tobytes():
            by = f" * {number(lattice.step)}" if lattice.step != 1 else ""
            yield f"#define VALUE(code) ((float)((int)(code) * {lattice.multiplier} - {lattice.offset}){by})"
            return
        yield f"static const float VALUES[{values.size}] = {{{', '.join(map(number, values))}}};"
        yield "#define VALUE(code) VALUES[code]"

    @property
    def parameters(self) -> dict[str, str]:
        """What the numbers of a group are made of, and the type of each."""
        if self.book:
            return {"values": "const float *"}
        fmt = self.spec.linear.weight
        used = {"zero": fmt.zero_level is not None, "scale": bool(fmt.scales), "low": fmt.offset is not None}
        return {name: "float " for name, given in used.items() if given}

    def _convert(self) -> Iterator[str]:
        """`convert(codes, y, count, ...)`: codes of a group as numbers."""
        fmt, names = self.spec.linear.weight, self.parameters
        value = "VALUE(codes[j])"
        if not self.book:
            if isinstance(fmt.zero, (int, float)):
                value = f"({value} - {number(fmt.zero)})"
            elif "zero" in names:
                value = f"({value} - zero)"
            value = f"{value} * scale" if "scale" in names else value
            if fmt.offset is not None:
                value = f"({value} {'-' if fmt.offset.negative else '+'} low)"
        if self.spec.factor != 1:
            value = f"{value} * {number(self.spec.factor)}"
        given = "".join(f", {kind}{name}" for name, kind in names.items())
        yield f"INLINE void convert(const uint8_t *restrict codes, float *restrict y, long count{given}) {{"
        yield f"    for (long j = 0; j < count; j++) y[j] = {value};"
        yield "}"

    def _read_row(self) -> Iterator[str]:
        """`read_row(w, n, tensor, y)`: one row as numbers."""
        yield "static void read_row(const uint8_t *w, int64_t n, float tensor, float *y) {"
        after = 1
        for name in reversed(self.rows):
            inside = f"n / {after}" if after > 1 else "n"
            radix = "" if name == self.rows[0] else f" % {self.extents[name]}"
            yield f"    const size_t {name} = (size_t)({inside}{radix});"
            after *= self.extents[name]
        for i, piece in enumerate(self.codes):
            yield f"    const uint8_t *const codes_{i} = {self._of_row(piece)};"
            if bits := self._bits_of_row(piece):
                yield f"    const int shift_{i} = ({bits}) % 8;"
        yield from self._table_of_row()
        yield from self._groups(1, 0)
        yield "}"

    @property
    def codes(self) -> list[Piece]:
        """The pieces of the bits of codes that are read."""
        unread = self.spec.linear.weight.bits - self.book.bits if self.book else 0
        return [piece for piece in self.pieces["codes"] if piece.low >= unread]

    def _of_row(self, piece: Piece) -> str:
        """The address of the first column of a row."""
        strides = {name: stride for name, stride in piece.strides if name in self.rows}
        whole = [f"{name} * {stride // 8}" for name, stride in strides.items() if stride % 8 == 0]
        parts = f" + ({self._bits_of_row(piece)}) / 8" if self._bits_of_row(piece) else ""
        return " + ".join(["w", *whole]) + parts

    def _bits_of_row(self, piece: Piece) -> str:
        """What digits whose strides are no whole bytes add, in bits."""
        return " + ".join(f"{name} * {by}" for name, by in piece.strides if name in self.rows and by % 8)

    def _table_of_row(self) -> Iterator[str]:
        """The values of a row of a codebook, as floats."""
        if self.book is None:
            return
        high, low, step = (self.pieces[f"{name}{self.book.bits}"][0] for name in ("high", "low", "step"))
        entries = 1 << self.book.bits
        yield f"    const float step = number_f32({self._of_row(step)} + {step.base // 8});"
        for name, piece in (("high", high), ("low", low)):
            yield f"    const uint8_t *const {name} = {self._of_row(piece)} + {piece.base // 8};"
        yield f"    float values[{entries}];"
        yield f"    for (int i = 0; i < {entries}; i++) values[i] = (float)((high[i] - 128) * 256 + low[i]) * step;"

    def _groups(self, depth: int, at: int) -> Iterator[str]:
        """The loop of a digit around groups, after the numbers that all in it share."""
        tab, walk = "    " * depth, self.walk
        around = walk.grouped[:at]
        for name in self.levels:
            (piece,) = self.pieces[name]
            if [digit for digit, _ in piece.strides if digit in walk.extents and digit not in self.rows] == [*around]:
                dtype = self.spec.linear.levels[name].dtype
                kind = f"{dtype[0]}8" if dtype[0] in "iu" else dtype
                where = [self._of_row(piece), *self._moved(piece, around), str(piece.base // 8)]
                yield f"{tab}const float {name}_ = number_{kind}({' + '.join(where)});"
        if at == len(walk.grouped):
            yield from self._group(tab)
            return
        digit = walk.grouped[at]
        yield f"{tab}for (size_t {digit} = 0; {digit} < {self.extents[digit]}; {digit}++) {{"
        yield from self._groups(depth + 1, at + 1)
        yield f"{tab}}}"

    def _moved(self, piece: Piece, digits: tuple[str, ...]) -> Iterator[str]:
        """What the digits of loops add to an address, but for those that count the bits of a byte."""
        strides = dict(piece.strides)
        return (f"{name} * {strides[name] // 8}" for name in digits if strides[name] % 8 == 0)

    def _group(self, tab: str) -> Iterator[str]:
        """The columns of a group: some codes to a buffer, then to numbers."""
        walk = self.walk
        for name in self.parameters if not self.book else ():
            yield f"{tab}const float {name} = {self._product(name)};"
        if walk.inside:
            outer, *others = walk.inside
            extent, by = self.extents[outer], walk.columns(outer)
            step = max(1, min(extent, BUFFER // by))
        else:
            outer, others, extent, by, step = "", [], 1, walk.group, 1
        first = " + ".join([f"{name} * {walk.columns(name)}" for name in walk.grouped]) or "0"
        if step < extent:
            yield f"{tab}for (size_t begin = 0; begin < {extent}; begin += {step}) {{"
            end = f"begin + {step} < {extent} ? begin + {step} : {extent}" if extent % step else f"begin + {step}"
            yield f"{tab}const size_t end = {end};"
            first = f"{first} + begin * {by}" if walk.grouped else f"begin * {by}"
            begins, ends = "begin", "end"
        else:
            yield f"{tab}{{"
            begins, ends = "0", str(extent)
        yield f"{tab}    uint8_t codes[{step * by}], *c = codes;"
        loops = [(outer, begins, ends)] if outer else []
        loops += [(name, "0", str(self.extents[name])) for name in others]
        for name, low, high in loops:
            yield f"{tab}    for (size_t {name} = {low}; {name} < {high}; {name}++)"
        yield f"{tab}    {{"
        yield from (f"{tab}        {line}" for line in self._cell())
        yield f"{tab}        c += {walk.cell};"
        yield f"{tab}    }}"
        yield f"{tab}    const long first = (long)({first});"
        given = "".join(f", {name}" for name in self.parameters)
        if walk.group * prod(self.extents[name] for name in walk.grouped) == self.spec.linear.k and not extent % step:
            yield f"{tab}    convert(codes, y + first, {step * by}{given});"
        else:
            yield f"{tab}    if (first + {step * by} <= COLUMNS) convert(codes, y + first, {step * by}{given});"
            yield f"{tab}    else convert(codes, y + first, COLUMNS - first{given});"
        yield f"{tab}}}"

    def _product(self, parameter: str) -> str:
        """The number of a group: levels from the outermost inwards, the scale of the whole table among the outer."""
        linear, fmt = self.spec.linear, self.spec.linear.weight
        if parameter == "zero":
            return "zero_"
        if parameter == "scale":
            names = [f"scale{i}" if i else "scale" for i in range(len(fmt.scales))]
        else:
            assert fmt.offset is not None
            names = [f"{fmt.offset.word}{i}" if i else fmt.offset.word for i in range(len(fmt.offset.levels))]
        terms = [f"{name}_" for name in reversed(names) if name not in linear.tensor_levels]
        tensor = ["tensor"] if any(name in linear.tensor_levels for name in names) else []
        return " * ".join([*tensor, *terms])

    def _cell(self) -> Iterator[str]:
        """The codes of some columns, four at a time: the bits of each piece, shifted into place."""
        *outer, last = self.walk.unrolled
        at, unread = 0, self.spec.linear.weight.bits - (self.book.bits if self.book else self.spec.linear.weight.bits)
        for values in product(*(range(self.extents[name]) for name in outer)):
            for column in range(0, self.extents[last], WORD):
                words = list[str]()
                for i, piece in enumerate(self.codes):
                    strides = dict(piece.strides)
                    bit = piece.base + column * strides[last]
                    bit += sum(value * strides[name] for name, value in zip(outer, values, strict=True))
                    word = self._word(i, piece, bit, strides[last])
                    low = piece.low - unread
                    words.append(f"{word} << {low}" if low else word)
                yield f"{{ const uint32_t v = {' | '.join(words)}; memcpy(c + {at}, &v, {WORD}); }}"
                at += WORD

    def _word(self, i: int, piece: Piece, bit: int, by: int) -> str:
        """Four fields of one piece, as bytes; `bit` is the place of the first from the row's address on."""
        width, strides = piece.high - piece.low, dict(piece.strides)
        loops = (*self.walk.grouped, *self.walk.inside)
        uneven = [stride for name, stride in piece.strides if name in self.rows and stride % 8]
        within = [name for name in loops if strides[name] % 8]
        most = bit % 8 + (8 - gcd(8, *uneven) if uneven else 0)
        most += sum((self.extents[name] - 1) * strides[name] for name in within)
        count = -(-(most + 3 * by + width) // 8)
        assert count <= WORD, f"four codes of {self.spec.storage.layout} do not lie in a word"
        where = [f"codes_{i}", *self._moved(piece, loops), str(bit // 8)]
        shift = [*([str(bit % 8)] if bit % 8 else []), *([f"shift_{i}"] if uneven else [])]
        shift += [f"{name} * {strides[name]}" for name in within]
        loaded = f"load_word({' + '.join(where)}, {count})"
        moved = f"{loaded} >> ({' + '.join(shift)})" if shift else loaded
        return f"spread({moved}, {by}, {width})"


def number(value: float) -> str:
    """A float32 as C, exactly."""
    single = float(np.float32(value))
    if np.isnan(single):
        return '__builtin_nanf("")'
    if np.isinf(single):
        return "-__builtin_inff()" if single < 0 else "__builtin_inff()"
    return f"{single.hex()}f"
