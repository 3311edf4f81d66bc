"""What a code means: `value = (decode(code) - zero) * scale`, with scales and zero points shared by blocks.

    i4, f32 per 32                                               one float32 scale for 32 signed 4-bit codes
    u8, f32 per tensor, zero u8                                  asymmetric bytes
    e2m1, e4m3 per 16, f32 per tensor                            NVFP4: two levels of scales, the inner one first
    u4, u6 per 32, f16 per 256, minus u6 per 32 by f16 per 256   Q4_K: a minimum with levels of its own
    nf4, i8 per 64, f32 per *, mean f32 per tensor               double quantization: scale = product + mean
    k16 in f16 per *                                             a codebook of 16 float16 values for each row
    [e2m1z5|e2m1z-5] per 128, f16 per 128                        an element for each group
    i3, f16 per 16, outliers f16 csr                             single values that are kept as they are

A `Format` prints and parses. Where the bits lie is a `Layout`, how the codes were chosen an algorithm: neither appears
here. `docs/formats.md` has the grammar; the numbers themselves are a `Quantized` (`ir/quantized.py`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .errors import BadInput
from .formats import ElementFamily, TrainedFamily, is_trained, load_element
from .level import Level, block_text, holds
from .levels import level_dtype

HINT = 'write it like "i4, f32 per 32" or "u8, f32 per tensor, zero u8"'


@dataclass(frozen=True)
class Offset:
    """What is added after scaling: `plus` or `minus` the product of levels of its own, the inner one first."""

    negative: bool
    levels: tuple[Level, ...]

    def __str__(self) -> str:
        return f"{self.word} {' by '.join(map(str, self.levels))}"

    @property
    def word(self) -> str:
        """`plus` or `minus`, which is the name of its parts too."""
        return "minus" if self.negative else "plus"


@dataclass(frozen=True)
class Outliers:
    """Values that are kept beside the codes and replace what these decode to: whole columns, or single ones by row."""

    dtype: str
    columns: bool

    def __str__(self) -> str:
        return f"outliers {self.dtype} {'columns' if self.columns else 'csr'}"


@dataclass(frozen=True)
class Format:
    """An element type, the scale levels from the inside out, a zero point, and what else the codes need.

    `zero` is a level, or a number that all blocks share. `lookup` is the block (and dtype) of codebook values, or the
    block for which one of several elements `[a|b]` is chosen. Raises `BadInput` where parts do not fit together.
    """

    element: str
    scales: tuple[Level, ...] = ()
    zero: Level | float | None = None
    offset: Offset | None = None
    mean: Level | None = None
    lookup: Level | None = None
    permuted: bool = False
    """Groups are of columns in another order, GPTQ's act-order: the last axis is permuted first."""
    sparsity: tuple[int, int] | None = None
    """(n, m): of m neighbours along the last axis at most n stand for another value than 0."""
    outliers: Outliers | None = None

    def __post_init__(self) -> None:
        _check(self)

    def __str__(self) -> str:
        from .format_text import texts

        return ", ".join(texts(self))

    @staticmethod
    def parse(text: str) -> Format:
        """The format that prints as `text`; `BadInput` names the part that does not parse."""
        from .format_text import parse

        return parse(text)

    @property
    def families(self) -> tuple[ElementFamily, ...]:
        """The elements that a block may choose from; one where there is no choice."""
        return tuple(load_element(name) for name in self.choices)

    @property
    def choices(self) -> tuple[str, ...]:
        """Names of the elements."""
        return tuple(self.element[1:-1].split("|")) if "|" in self.element else (self.element,)

    @property
    def family(self) -> ElementFamily:
        """The element: its bits, limits, `encode` and `decode`. The first one where blocks choose."""
        return self.families[0]

    @property
    def codebook(self) -> TrainedFamily | None:
        """The element where its values lie beside the codes; None where it has values of its own."""
        family = self.family
        return family if is_trained(family) else None

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return self.family.bits

    @property
    def scale(self) -> Level:
        """The innermost scale level; the block of the codebook where there is none."""
        return self.scales[0] if self.scales else self.lookup or Level("f32", None)

    @property
    def zero_level(self) -> Level | None:
        """The level of the zero points, None where there are none or one number for all."""
        return self.zero if isinstance(self.zero, Level) else None

    @property
    def zero_dtype(self) -> str:
        """The dtype of zero points; empty where they are no level."""
        return self.zero.dtype if isinstance(self.zero, Level) else ""

    @property
    def zero_code(self) -> int | None:
        """The code of 0 in an element that has one; None where 0 has none of its own, or it depends on the block."""
        if self.codebook is not None or self.zero is not None or self.offset or not (self.family.table == 0).any():
            return None
        return int(self.family.encode(np.zeros(1, np.float32))[0])

    @property
    def is_integer(self) -> bool:
        """Whether codes are the integers themselves."""
        return re.fullmatch(r"[iu][1-8]", self.element) is not None

    @property
    def is_plain(self) -> bool:
        """Whether it is what kernels take: integers, one level of scales and at most zero points of the same blocks."""
        zero = self.zero is None or (isinstance(self.zero, Level) and self.zero.block == self.scale.block)
        more = self.offset or self.mean or self.lookup or self.permuted or self.sparsity or self.outliers
        return self.is_integer and len(self.scales) == 1 and zero and not more

    @property
    def by_powers_of_two(self) -> bool:
        """Whether every scale is a power of two."""
        return bool(self.scales) and all(level.dtype == "e8m0" for level in self.scales)

    def holds_scale(self, scale: np.ndarray) -> bool:
        """Whether values can be scales of this format: finite, above zero, and powers of two where it says so."""
        values = np.asarray(scale, np.float32)
        if not (np.isfinite(values).all() and (values > 0).all()):
            return False
        return not self.by_powers_of_two or bool((np.frexp(values)[0] == 0.5).all())

    def block_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The block of the innermost scale for a tensor of `shape`, one extent an axis."""
        return self.scale.block_of(shape)

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the innermost scales of a tensor of `shape`: ceil(extent / block) along each axis."""
        return self.scale.shape_of(shape)

    def levels(self) -> dict[str, Level]:
        """Every level by the name of its part: scales, `zero`, `plus` or `minus`, `mean`, `table`, `choice`."""
        found = {_numbered("scale", i): level for i, level in enumerate(self.scales)}
        if isinstance(self.zero, Level):
            found["zero"] = self.zero
        if self.offset:
            found |= {_numbered(self.offset.word, i): level for i, level in enumerate(self.offset.levels)}
        if self.mean:
            found["mean"] = self.mean
        if self.lookup:
            found["choice" if len(self.choices) > 1 else "table"] = self.lookup
        return found

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """Bits per element with scales, zero points, tables and positions of nonzeros included; outliers are extra."""
        count = math.prod(shape)
        kept = 1.0 if self.sparsity is None else self.sparsity[0] / self.sparsity[1]
        place = 0 if self.sparsity is None else math.ceil(math.log2(self.sparsity[1]))
        total = kept * (self.bits + place)
        if not count:
            return total
        for name, level in self.levels().items():
            each = level_dtype(level.dtype).bits
            if name == "table" and self.codebook:
                each *= self.codebook.entries
            elif name == "choice":
                each = math.ceil(math.log2(len(self.choices)))
            total += math.prod(level.shape_of(shape)) * each / count
        return total + (32 * shape[-1] / count if self.permuted else 0)

    def spread(self, per_block: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """One value a block of the innermost scale, given back so that it broadcasts against `shape`."""
        return self.scale.spread(per_block, shape)

    def scaled(self, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """`x` in units of the codes for one scale a block, float32 of memory of its own; 0 where the scale is 0."""
        scale = np.asarray(scale, np.float32)
        none = scale == 0
        scaled = x.astype(np.float32, copy=False) / self.spread(np.where(none, np.float32(1), scale), x.shape)
        return np.where(self.spread(none, x.shape), np.float32(0), scaled) if none.any() else scaled

    def encode(
        self,
        x: np.ndarray,
        scale: np.ndarray,
        zero: np.ndarray | None = None,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """Codes of `x` for one scale (and zero point) a block: nearest, ties to even, clipped; stochastic with `rng`.

        Error <= scale * half_gap of the element (1/2 for integers) for values that the range holds. A block whose
        scale is 0 takes the codes that are nearest to 0.
        """
        scaled = self.scaled(x, scale)
        if zero is not None:
            if rng is None and (self.is_integer and not self.zero_dtype.startswith(("f", "b"))):
                np.rint(scaled, out=scaled)  # an odd zero point must not turn ties around
            scaled = scaled + self.spread(np.asarray(zero, np.float32), x.shape)
        return self.family.encode(scaled, rng)

    def decode(self, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
        """The float32 values of `codes` for one scale (and zero point) a block."""
        values = self.family.decode(codes)
        if zero is not None:
            values = values - self.spread(np.asarray(zero, np.float32), codes.shape)
        return values * self.spread(np.asarray(scale, np.float32), codes.shape)


def _numbered(name: str, index: int) -> str:
    return f"{name}{index}" if index else name


def _check(fmt: Format) -> None:
    """The parts fit together."""

    def refuse(message: str, hint: str = HINT) -> BadInput:
        return BadInput(f"format {str(fmt)!r} {message}", hint=hint)

    families = fmt.families
    if len({(f.bits, f.signed) for f in families}) > 1:
        raise refuse(f"chooses among {', '.join(fmt.choices)}, which have different bits", "elements of one width")
    trained = families[0].trained
    if len(families) > 1 and any(f.trained for f in families):
        raise refuse("chooses among codebooks", "elements with values of their own")
    if len(families) > 1 and fmt.lookup is None:
        raise refuse("does not say which blocks choose an element", f'write it like "{fmt.element} per 128"')
    if trained and fmt.lookup is None:
        raise refuse("does not say where the values of its codebook are", f'write it like "{fmt.element} in f16 per *"')
    if fmt.lookup and not trained and len(families) == 1:
        raise refuse(f"has values beside the codes, but {fmt.element} has values of its own", "leave them out")
    if not fmt.scales and not trained:
        raise refuse("has no scale", 'add one, as in "i8, f32 per *"')
    for levels in (fmt.scales, fmt.offset.levels if fmt.offset else ()):
        for inner, outer in pairwise(levels):
            if not holds(outer.block, inner.block):
                raise refuse(f"has a level {outer} around {inner}, which is not made of whole blocks of it")
    if fmt.mean and not (fmt.scales and holds(fmt.mean.block, fmt.scale.block)):
        raise refuse(f"has a mean per {block_text(fmt.mean.block)}, which is not made of whole blocks of scales")
    if len(families) > 1 and fmt.lookup and not holds(fmt.lookup.block, fmt.scale.block):
        raise refuse(f"chooses an element for {block_text(fmt.lookup.block)}, which is less than a block of scales")
    if fmt.sparsity and (fmt.zero is not None or fmt.offset or len(families) > 1 or fmt.zero_code is None):
        raise refuse("prunes values, which needs one code of 0 for all blocks", "symmetric codes that hold 0")
    if fmt.sparsity and not 0 < fmt.sparsity[0] < fmt.sparsity[1] <= 32:
        raise refuse(f"keeps {fmt.sparsity[0]} of {fmt.sparsity[1]} values", "n of m with 0 < n < m <= 32")
