"""Another format with the same values, bit by bit, or a refusal that says why: nothing is rounded here.

    i4 <-> u4, zero 8 <-> u4, zero u4        (code + 8) - 8            scales of scales -> their product, where it fits
    one scale a row -> one a group           groups of 64 -> of 32     u4, plus m -> u4, zero z   where m = -z * scale

A conversion rearranges codes and numbers; whether the result decodes to the very float32 values is checked each time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from .errors import NotSupported
from .format import Format
from .level import Level, spread
from .levels import level_dtype
from .quantized import OUTLIERS, Quantized, combined, combined_scale


def convert(value: Quantized, target: Format, where: str = "tensor") -> Quantized:
    """`value` in the format `target`; `NotSupported`, naming the tensor and why, where its values would change."""
    if value.format == target:
        return value
    made = _Conversion(value, target, where).made()
    for place, part in made.chunks():
        same = value.rows(place.start, place.stop) if place.stop - place.start < value.shape[0] else value
        if not np.array_equal(part.decode().view(np.uint32), same.decode().view(np.uint32)):
            raise NotSupported(f"{where}: {value.format} cannot be {target}: a value would change in its last bits")
    return made


def exact(numbers: np.ndarray, level: Level, what: str, where: str) -> np.ndarray:
    """Numbers in the dtype of a level; `NotSupported` where one of them is no value of it."""
    dtype = level_dtype(level.dtype)
    if numbers.dtype == dtype.numpy and not dtype.is_integer:
        return numbers
    wide = np.asarray(numbers, np.float32)
    held = wide if dtype.name != "e8m0" else np.maximum(wide, 0)
    held = dtype.round(held)
    lost = np.asarray(held, np.float32).view(np.uint32) != wide.view(np.uint32)
    if dtype.is_integer:
        lost = np.asarray(held, np.float32) != wide
    if lost.any():
        place = tuple(map(int, np.argwhere(lost)[0]))
        raise NotSupported(f"{where}: {what} {wide[place]:.9g} at block {place} is no value of {level.dtype}")
    return held


def regroup(
    numbers: np.ndarray, level: Level, wanted: Level, shape: Sequence[int], what: str, where: str
) -> np.ndarray:
    """Numbers of the blocks of one level for the blocks of another; `NotSupported` where such a block has several."""
    if level.block == wanted.block:
        return numbers.reshape(wanted.shape_of(shape))
    have, want = level.block_of(shape), wanted.block_of(shape)
    units = tuple(math.gcd(a, b) for a, b in zip(have, want, strict=True))
    counts = tuple(-(-d // u) for d, u in zip(shape, units, strict=True))
    repeats = [h // u for h, u in zip(have, units, strict=True)]
    fine = np.broadcast_to(spread(numbers.reshape(level.shape_of(shape)), repeats, counts), counts)
    steps = tuple(w // u for w, u in zip(want, units, strict=True))
    first = fine[tuple(slice(None, None, s) for s in steps)]
    if not np.array_equal(np.broadcast_to(spread(first, steps, counts), counts), fine):
        raise NotSupported(f"{where}: blocks of {_text(want)} would share one {what}, but it differs: {level}")
    return np.ascontiguousarray(first)


class _Conversion:
    """One tensor on its way into another format."""

    def __init__(self, value: Quantized, target: Format, where: str) -> None:
        self.value, self.target, self.where = value, target, where
        self.source, self.shape = value.format, value.shape

    def made(self) -> Quantized:
        parts = {**self._order(), **self._kept()}
        scale = self._scale()
        parts |= scale if scale is not None else self._same_scales()
        parts |= self._codes()
        return Quantized(self.target, parts)

    def _refuse(self, why: str) -> NotSupported:
        return NotSupported(f"{self.where}: {self.source} cannot be {self.target}: {why}")

    def _order(self) -> dict[str, np.ndarray]:
        source, target = self.source, self.target
        if source.permuted and target.permuted:
            return {"order": self.value.parts["order"]}
        if target.permuted:
            return {"order": np.arange(self.shape[-1], dtype=np.int32)}
        if source.permuted:
            place, plain = np.argsort(self.value.parts["order"]), np.arange(self.shape[-1])
            for level in source.levels().values():
                size = level.block_of(self.shape)[-1]
                if not np.array_equal(place // size, plain // size):
                    raise self._refuse("an act-order permutation of columns would be lost")
        return {}

    def _kept(self) -> dict[str, np.ndarray]:
        """What stays as it is or is refused: tables, choices, outliers; a pattern of zeros may be forgotten."""
        source, target = self.source, self.target
        if source.outliers != target.outliers:
            raise self._refuse("values are kept beside the codes on one side only")
        if target.sparsity not in (None, source.sparsity):
            raise self._refuse(f"it is not {target.sparsity[0]}:{target.sparsity[1]} sparse")
        if (source.lookup or target.lookup) and (source.element, source.lookup) != (target.element, target.lookup):
            raise self._refuse("values of a codebook lie beside the codes")
        names = [*OUTLIERS, "table", "choice"]
        return {name: self.value.parts[name] for name in names if name in self.value.parts}

    def _same_scales(self) -> dict[str, np.ndarray]:
        levels = self.target.levels()
        return {name: self.value.parts[name] for name in levels if name.startswith("scale") or name == "mean"}

    def _scale(self) -> dict[str, np.ndarray] | None:
        """The product of scales as the one level of the target; None where all levels stay what they are."""
        source, target = self.source, self.target
        if (source.scales, source.mean) == (target.scales, target.mean):
            return None
        if len(target.scales) != 1 or target.mean or not source.scales:
            raise self._refuse("scales of scales cannot be made out of other scales")
        level = dataclasses.replace(source.scales[0], dtype="f32")
        numbers = regroup(combined_scale(self.value), level, target.scales[0], self.shape, "scale", self.where)
        what = "product of scales" if len(source.scales) > 1 else "scale"
        return {"scale": exact(numbers, target.scales[0], what, self.where)}

    def _codes(self) -> dict[str, np.ndarray]:
        """Codes, zero points and offsets: all numbers move by one amount, as far as their ranges lie apart."""
        source, target = self.source, self.target
        if (source.element, source.zero, source.offset) == (target.element, target.zero, target.offset):
            names = [n for n in target.levels() if n == "zero" or n.startswith(("plus", "minus"))]
            return {"codes": self.value.codes} | {name: self.value.parts[name] for name in names}
        if source.family.trained or len(source.choices) > 1:
            raise self._refuse("codes of tables have no place in between")
        if source.offset and target.offset:
            return {"codes": self._encoded(np.float32(0)), **self._offset_of_offset()}
        zero, level = self._centre()
        shift = np.float32(target.family.low - source.family.low) if self._moves() else np.float32(0)
        if target.offset:
            return {"codes": self._encoded(shift), **self._offset_of_zero(zero + shift, level)}
        if target.zero_level is None:
            constant = np.float32(target.zero) if isinstance(target.zero, float) else np.float32(0)
            return {"codes": self._encoded(constant - self._wide(zero, level))}
        held = regroup(zero + shift, level, target.zero_level, self.shape, "zero point", self.where)
        return {"codes": self._encoded(shift), "zero": exact(held, target.zero_level, "zero point", self.where)}

    def _moves(self) -> bool:
        """Whether codes and zero points move together: between elements whose lowest code differs."""
        return self.source.element != self.target.element and self.target.is_integer

    def _encoded(self, shift: np.ndarray | np.float32) -> np.ndarray:
        """The codes of numbers that are moved by `shift`, each one exactly there."""
        family = self.target.family
        numbers = self.source.family.decode(self.value.codes)
        numbers = numbers + shift if np.any(shift) else numbers  # -0 + 0 would be 0
        codes = family.encode(numbers)
        below = (numbers == 0) & np.signbit(numbers)
        if below.any() and (place := np.flatnonzero((family.table == 0) & np.signbit(family.table))).size:
            codes[below] = place[0]
        lost = family.decode(codes) != numbers
        if lost.any():
            place = tuple(map(int, np.argwhere(lost)[0]))
            raise self._refuse(f"the number {numbers[place]:g} at {place} has no code")
        return codes

    def _centre(self) -> tuple[np.ndarray, Level]:
        """The number that stands for 0, float32 one a block, and the level of these blocks."""
        zero = self.source.zero
        if self.source.offset is not None:
            return self._zero_of_offset()
        if isinstance(zero, Level):
            return np.asarray(self.value.parts["zero"], np.float32), zero
        constant = np.full((1,) * len(self.shape), zero or 0, np.float32)
        return constant, Level("f32", None)

    def _zero_of_offset(self) -> tuple[np.ndarray, Level]:
        """An offset as a zero point: z = -offset / scale, where that is a whole number."""
        offset = self.source.offset
        assert offset is not None
        level = dataclasses.replace(offset.levels[0], dtype="f32")
        scale = regroup(combined_scale(self.value), self.source.scale, level, self.shape, "scale", self.where)
        numbers = combined(self.value, offset.word, offset.levels)
        numbers = numbers if offset.negative else -numbers
        zero = np.rint(numbers / np.where(scale == 0, np.float32(1), scale))
        lost = zero * scale != numbers
        if lost.any():
            place = tuple(map(int, np.argwhere(lost)[0]))
            raise self._refuse(f"the minimum {numbers[place]:g} at block {place} is no multiple of its scale")
        return zero, level

    def _offset_of_zero(self, zero: np.ndarray, level: Level) -> dict[str, np.ndarray]:
        offset = self.target.offset
        assert offset is not None
        wanted, *more = offset.levels
        if more:
            raise self._refuse("minima of several levels cannot be made out of zero points")
        scale = regroup(combined_scale(self.value), self.source.scale, wanted, self.shape, "scale", self.where)
        numbers = scale * regroup(zero, level, wanted, self.shape, "zero point", self.where)
        numbers = numbers if offset.negative else -numbers
        return {offset.word: exact(numbers + np.float32(0), wanted, "minimum", self.where)}

    def _offset_of_offset(self) -> dict[str, np.ndarray]:
        have, want = self.source.offset, self.target.offset
        assert have is not None and want is not None
        wanted, *more = want.levels
        if more:
            raise self._refuse("minima of several levels cannot be made out of others")
        numbers = combined(self.value, have.word, have.levels)
        numbers = numbers if have.negative == want.negative else -numbers
        held = regroup(numbers, have.levels[0], wanted, self.shape, "minimum", self.where)
        return {want.word: exact(held, wanted, "minimum", self.where)}

    def _wide(self, numbers: np.ndarray, level: Level) -> np.ndarray:
        return self.value.arranged(numbers, level)


def _text(block: Sequence[int]) -> str:
    return "x".join(map(str, block))
