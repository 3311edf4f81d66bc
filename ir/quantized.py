"""A tensor held in a format: its parts by name, and the values they stand for.

    codes      int8 or uint8, the shape of the tensor
    scale ...  scale levels from the inside out: scale, scale1, ...; one number a block
    zero       zero points                 plus / minus ...   what is added after scaling
    mean       added to the product of scales             table    the values of a codebook, [*blocks, entries]
    choice     which of the format's elements a block uses          order   column order[i] is the i-th permuted one
    outlier_columns [C], outlier_values [N, C]                        whole columns that are kept
    outlier_start [N + 1], outlier_columns [nnz], outlier_values [nnz]   single values that are kept, by rows (CSR)

Numbers of a level are held as values, in the numpy or ml_dtypes dtype of the level or a wider one: `astype(float32)`
gives them. The product of scales is taken in float32 from the outermost inwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from .errors import BadInput
from .format import Format
from .formats.nested import Nested
from .level import Level, spread
from .levels import level_dtype
from .sparsity import compress

OUTLIERS = ("outlier_start", "outlier_columns", "outlier_values")


@dataclass(frozen=True)
class Quantized:
    """Codes with everything that is needed to decode them; `decode` gives float32 of `shape`."""

    format: Format
    parts: Mapping[str, np.ndarray] = field(repr=False)

    @staticmethod
    def plain(fmt: Format, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None) -> Quantized:
        """Codes with one level of scales, and zero points where the format has them."""
        return Quantized(fmt, {"codes": codes, "scale": scale} | ({} if zero is None else {"zero": zero}))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return self.codes.shape

    @property
    def codes(self) -> np.ndarray:
        """The codes, one a byte."""
        return self.parts["codes"]

    @property
    def scale(self) -> np.ndarray:
        """The innermost scales."""
        return self.parts["scale"]

    @property
    def zero(self) -> np.ndarray | None:
        """The zero points, None where they are no level."""
        return self.parts.get("zero")

    def decode(self) -> np.ndarray:
        """The float32 values."""
        if len(self.shape) < 2:
            return self._values()
        values = np.empty(self.shape, np.float32)
        for place, some in self.chunks(rows_of(self.shape)):
            values[place] = some._values()
        return values

    def error_bound(self) -> np.ndarray:
        """The largest error of the nearest code, for each element within its range: half a gap times the scale.

        Up to what float32 itself rounds; 0 where an outlier is kept in float32. Beyond the range values are clipped.
        `NotSupported` for codebooks, whose values lie at any distance.
        """
        fmt = self.format
        gap = np.float32(fmt.family.half_gap)
        if len(fmt.choices) > 1:
            gap = np.array([family.half_gap for family in fmt.families], np.float32)[self.parts["choice"]]
            gap = self.arranged(gap, fmt.levels()["choice"])
        return np.broadcast_to(np.abs(self.arranged(combined_scale(self), fmt.scale)) * gap, self.shape)

    def rows(self, begin: int, end: int) -> Quantized:
        """Some rows of it, sharing memory. `BadInput` where blocks of several rows would be cut."""
        levels, parts = self.format.levels(), dict[str, np.ndarray]()
        for name, array in self.parts.items():
            if name == "codes" or (name == "outlier_values" and array.ndim == 2):
                parts[name] = array[begin:end]
            elif name in levels:
                size = levels[name].block_of(self.shape)[0]
                if array.shape[0] == 1 and size >= self.shape[0]:
                    parts[name] = array
                    continue
                if begin % size:
                    raise BadInput(f"rows from {begin} cut a block of {size} rows of part {name!r}")
                parts[name] = array[begin // size : -(-end // size)]
            else:
                parts[name] = array
        if "outlier_start" in parts:
            start = self.parts["outlier_start"]
            first, last = int(start[begin]), int(start[min(end, self.shape[0])])
            parts["outlier_start"] = start[begin : end + 1] - start[begin]
            parts |= {name: self.parts[name][first:last] for name in OUTLIERS[1:]}
        return Quantized(self.format, parts)

    def at(self, bits: int) -> Quantized:
        """The tensor in the codebook of the `bits` most significant bits of nested codes (Any-Precision LLM)."""
        book = self.format.codebook
        if not isinstance(book, Nested):
            raise BadInput(f"codes of {self.format} are not nested: they have one precision", hint="use n3..8")
        table = self.parts["table"]
        chosen = book.tables_at(table.reshape(-1, table.shape[-1]), bits)
        parts = {"codes": book.codes_at(self.codes, bits), "table": chosen.reshape(*table.shape[:-1], -1)}
        return Quantized(replace(self.format, element=str(book.at(bits))), {**self.parts, **parts})

    def take_rows(self, order: np.ndarray) -> Quantized:
        """Its rows in another order. `BadInput` where blocks or outliers span rows."""
        levels = self.format.levels()
        apart = all(level.block_of(self.shape)[0] == 1 for level in levels.values())
        if not apart or self.format.outliers:
            raise BadInput(f"rows of {self.format} cannot change their order: they share numbers")
        moved = {name: array[order] for name, array in self.parts.items() if name == "codes" or name in levels}
        return Quantized(self.format, {**self.parts, **moved})

    def chunks(self, rows: int = 1 << 10) -> Iterator[tuple[slice, Quantized]]:
        """The tensor some rows at a time, with the place of each; at least whole blocks of rows."""
        if len(self.shape) < 2:
            yield slice(None), self
            return
        count, levels = self.shape[0], self.format.levels().values()
        spans = [level.block_of(self.shape)[0] for level in levels if level.shape_of(self.shape)[0] > 1]
        whole = max([1, *spans])  # blocks of rows are nested, or share one number for all rows
        rows = max(whole, rows // whole * whole)
        for begin in range(0, count, rows):
            end = min(begin + rows, count)
            yield slice(begin, end), self.rows(begin, end)

    @property
    def bits_per_weight(self) -> float:
        """Bits per element with everything included."""
        extra = sum(8 * self.parts[name].nbytes for name in OUTLIERS if name in self.parts)
        return self.format.bits_per_weight(self.shape) + extra / max(1, self.codes.size)

    def check(self, where: str) -> None:
        """Raise `BadInput` for parts that are missing, unknown, of a wrong shape, not finite, or out of range."""
        check_parts(self, where)

    def _values(self) -> np.ndarray:
        """What `decode` gives, all at once, in memory of its own."""
        fmt, values = self.format, self._unscaled()
        if "zero" in self.parts:
            values -= self._spread("zero")
        elif isinstance(fmt.zero, float):
            values -= np.float32(fmt.zero)
        if fmt.scales:
            values *= self.arranged(combined_scale(self), fmt.scale)
        if fmt.offset is not None:
            offset = self.arranged(combined(self, fmt.offset.word, fmt.offset.levels), fmt.offset.levels[0])
            (np.subtract if fmt.offset.negative else np.add)(values, offset, out=values)
        return self._with_outliers(values)

    def _unscaled(self) -> np.ndarray:
        fmt, family = self.format, self.format.family
        if len(fmt.choices) > 1:
            tables = np.stack([f.table for f in fmt.families])
            choice = np.broadcast_to(self._spread("choice").astype(np.int64), self.shape)
            return tables[choice, self.codes.view(np.uint8)]
        if fmt.codebook is None:
            return family.decode(self.codes)
        assert fmt.lookup is not None
        table = np.asarray(self.parts["table"], np.float32)
        count = int(np.prod(table.shape[:-1], dtype=np.int64))
        index = np.arange(count, dtype=np.int64).reshape(table.shape[:-1]) * table.shape[-1]
        return table.reshape(-1)[self.arranged(index, fmt.lookup) + self.codes]

    def _spread(self, name: str) -> np.ndarray:
        return self.arranged(np.asarray(self.parts[name], np.float32), self.format.levels()[name])

    def arranged(self, numbers: np.ndarray, level: Level) -> np.ndarray:
        """Numbers of blocks so that they broadcast against the tensor, its columns in their own order."""
        wide = level.spread(numbers, self.shape)
        if not self.format.permuted or wide.shape[-1] == 1:
            return wide
        return wide[..., inverse_order(self.parts["order"])]

    def _with_outliers(self, values: np.ndarray) -> np.ndarray:
        if self.format.outliers is None or not self.parts["outlier_columns"].size:
            return values
        kept = self.parts["outlier_values"].astype(np.float32)
        if self.format.outliers.columns:
            values[:, self.parts["outlier_columns"]] = kept
        else:
            values[outlier_rows(self.parts["outlier_start"]), self.parts["outlier_columns"]] = kept
        return values


def rows_of(shape: tuple[int, ...], elements: int = 1 << 18) -> int:
    """How many rows have about as many elements: what is worked on then stays in the second-level cache."""
    return max(1, elements // max(1, math.prod(shape[1:])))


def inverse_order(order: np.ndarray) -> np.ndarray:
    """Where each column is among the permuted ones."""
    places = np.empty(order.size, np.intp)
    places[order] = np.arange(order.size)
    return places


def part_names(fmt: Format) -> list[str]:
    """The names of all parts of a tensor in a format."""
    names = ["codes", *fmt.levels(), *(["order"] if fmt.permuted else [])]
    if fmt.outliers:
        names += OUTLIERS[1:] if fmt.outliers.columns else OUTLIERS
    return names


def part_bits(fmt: Format) -> dict[str, int]:
    """Bits of one code, and of one number of each level, where they are packed."""
    return {"codes": fmt.bits} | {name: level_dtype(level.dtype).bits for name, level in fmt.levels().items()}


def outlier_rows(start: np.ndarray) -> np.ndarray:
    """The row of each value of a CSR matrix with these row starts."""
    return np.repeat(np.arange(len(start) - 1), np.diff(start))


def combined_scale(value: Quantized) -> np.ndarray:
    """The product of all scale levels plus their mean, one float32 for each block of the innermost level."""
    scale = combined(value, "scale", value.format.scales)
    if value.format.mean is None:
        return scale
    mean = np.asarray(value.parts["mean"], np.float32)
    return scale + _to_inner(mean, value.format.mean, value.format.scales[0], value.shape)


def combined(value: Quantized, name: str, levels: tuple[Level, ...]) -> np.ndarray:
    """The product of some levels from the outermost inwards, float32, one number for each innermost block."""
    product: np.ndarray | None = None
    for index in reversed(range(len(levels))):
        numbers = np.asarray(value.parts[f"{name}{index}" if index else name], np.float32)
        inner = _to_inner(numbers, levels[index], levels[0], value.shape)
        product = inner if product is None else product * inner
    assert product is not None
    return np.broadcast_to(product, levels[0].shape_of(value.shape))


def _to_inner(numbers: np.ndarray, level: Level, inner: Level, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of a level for each block of a finer one, by broadcasting."""
    return spread(numbers.reshape(level.shape_of(shape)), inner_blocks(level, inner, shape), inner.shape_of(shape))


def inner_blocks(level: Level, inner: Level, shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many blocks of a finer level one block of a level spans along each axis."""
    return tuple(max(1, -(-o // i)) for o, i in zip(level.block_of(shape), inner.block_of(shape), strict=True))


def check_parts(value: Quantized, where: str) -> None:
    """Raise `BadInput` for parts that are missing, unknown, of a wrong shape, not finite, or out of range."""
    fmt, shape, levels = value.format, value.shape, value.format.levels()
    wanted = set(part_names(fmt))
    if set(value.parts) != wanted:
        odd = sorted(set(value.parts) ^ wanted)[0]
        raise BadInput(f"{where}: part {odd!r} is {'missing' if odd in wanted else 'unknown'} in format {fmt}")
    kind = np.int8 if fmt.family.signed else np.uint8
    if value.codes.dtype != kind:
        raise BadInput(f"{where}: codes of {fmt.element} are {np.dtype(kind)}, found {value.codes.dtype}")
    book = fmt.codebook
    if book is None and value.codes.size:
        raw = value.codes.view(np.uint8) & np.uint8((1 << fmt.bits) - 1)
        if value.codes.max() > _largest(fmt) or value.codes.min() < _smallest(fmt):
            raise BadInput(f"{where}: a code does not fit {fmt.element}")
        for family in fmt.families if not fmt.is_integer else ():
            bad = ~np.isfinite(family.table[raw])
            if len(fmt.choices) == 1 and bad.any():
                place = tuple(map(int, np.argwhere(bad)[0]))
                raise BadInput(f"{where}: code {value.codes[place]} at {place} stands for no number in {fmt.element}")
    elif book is not None and value.codes.size and value.codes.max() >= min(book.entries, 1 << fmt.bits):
        raise BadInput(f"{where}: code {value.codes.max()} is beyond the {book.entries} values of the codebook")
    for name, level in levels.items():
        array, expected = value.parts[name], level.shape_of(shape)
        if name == "table" and book is not None:
            expected = (*expected, book.entries)
        if array.shape != expected:
            raise BadInput(f"{where}: part {name!r} has shape {list(array.shape)}, format {fmt} wants {list(expected)}")
        if name == "choice" and array.size and array.max() >= len(fmt.choices):
            raise BadInput(f"{where}: choice {array.max()} is beyond the {len(fmt.choices)} elements of {fmt.element}")
        numbers = np.asarray(array, np.float32)
        if not np.isfinite(numbers).all():
            place = tuple(map(int, np.argwhere(~np.isfinite(numbers))[0]))
            raise BadInput(f"{where}: {name} at block {place} is {numbers[place]}", hint="the checkpoint is damaged")
        dtype = level_dtype(level.dtype)
        integer = dtype.is_integer and name != "choice" and array.size > 0
        if integer and not dtype.low <= array.min() <= array.max() <= dtype.high:
            raise BadInput(f"{where}: {name} {array.min()} to {array.max()} does not fit {level.dtype}")
    if fmt.sparsity and fmt.zero_code is not None:
        compress(value.codes, *fmt.sparsity, fmt.zero_code, where)
    if fmt.permuted and not np.array_equal(np.sort(value.parts["order"]), np.arange(shape[-1])):
        raise BadInput(f"{where}: the order of columns is no permutation of {shape[-1]}")


def _largest(fmt: Format) -> int:
    return (1 << (fmt.bits - 1)) - 1 if fmt.family.signed else (1 << fmt.bits) - 1


def _smallest(fmt: Format) -> int:
    return -(1 << (fmt.bits - 1)) if fmt.family.signed else 0
