"""What an attention kernel computes, and the parameters that only change its speed.

    y = softmax(cap(scale q k^T) + mask) v        cap(s) = softcap tanh(s / softcap)

Query i of n stands at position p = length - n + i of the keys. It sees all of them; where `causal`, those up to p;
where there is a window, those from p - window + 1 on. Groups of `heads / kv_heads` heads share keys and values. A row
that sees no key gives zeros; a bias that is finite, however low, leaves its key seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from qcc.ir.errors import BadInput, NotSupported

from .isa import Isa

CACHES = ("f32", "f16", "i8")
"""What keys and values are kept in. i8 has one float32 scale for each token and head: the largest value is 127."""
MASKS = ("none", "bool", "f32")
LARGEST_HEAD = 512
MOST_KEYS = (1 << 31) - 1


@dataclass(frozen=True)
class AttentionSpec:
    """An attention. Raises `BadInput` or `NotSupported` with the reason where no kernel is generated for it."""

    heads: int
    size: int
    """Values of a head."""
    kv_heads: int = 0
    """0: as many as `heads`."""
    cache: str = "f32"
    causal: bool = False
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    """None: 1 / sqrt(size)."""
    mask: str = "none"
    """`bool`: true where a key is seen. `f32`: numbers that are added to scores; -inf where a key is not seen."""

    def __post_init__(self) -> None:
        if not self.kv_heads:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.scale is None:
            object.__setattr__(self, "scale", self.size**-0.5 if self.size > 0 else 1.0)
        if min(self.heads, self.kv_heads, self.size) < 1:
            raise BadInput(f"an attention of {self.heads} heads of {self.size} on {self.kv_heads}")
        if self.heads % self.kv_heads:
            raise BadInput(f"{self.heads} heads cannot share {self.kv_heads} of keys and values")
        if self.size > LARGEST_HEAD:
            raise NotSupported(f"heads of {self.size} values; kernels take up to {LARGEST_HEAD}")
        if self.cache not in CACHES:
            raise BadInput(f"a cache of {self.cache}", hint=f"one of: {', '.join(CACHES)}")
        if self.mask not in MASKS:
            raise BadInput(f"a mask of {self.mask}", hint=f"one of: {', '.join(MASKS)}")
        if self.window is not None and not (self.causal and 1 <= self.window <= MOST_KEYS):
            raise BadInput(
                f"a window of {self.window}", hint=f"1 to {MOST_KEYS}, and causal: it counts from a query backwards"
            )
        if self.softcap is not None and not (math.isfinite(self.softcap) and self.softcap > 0):
            raise BadInput(f"a softcap of {self.softcap}", hint="a positive number, or None")
        if not math.isfinite(self.factor):
            raise BadInput(f"a scale of {self.scale}", hint="a number")

    def __str__(self) -> str:
        parts = [f"attention {self.heads}x{self.size} on {self.kv_heads} {self.cache}", *["causal"] * self.causal]
        parts += [f"window {self.window}"] * (self.window is not None)
        parts += [f"softcap {self.softcap:g}"] if self.softcap is not None else []
        parts += [f"scale {self.factor:g}", *[f"{self.mask} mask"] * (self.mask != "none")]
        return ", ".join(parts)

    @property
    def group(self) -> int:
        """Heads that share keys and values."""
        return self.heads // self.kv_heads

    @property
    def factor(self) -> float:
        """What products are multiplied by."""
        assert self.scale is not None
        return self.scale


@dataclass(frozen=True)
class AttentionSchedule:
    """The parameters of a generator. `split` and `keys` change the order of sums; the others change no bit."""

    vectors: int = 4
    """Vectors of 16 rows in a tile."""
    key_rows: int = 4
    """Keys, or values of a head, that are multiplied with all vectors of a tile at once."""
    keys: int = 64
    """Keys of a tile."""
    split: int = 128
    """Keys of a task where there are few rows."""

    def __str__(self) -> str:
        tile = f"tiles of {16 * self.vectors} rows by {self.keys} keys, {self.key_rows} at a time"
        return f"{tile}, splits of {self.split}"


def default_schedule(isa: Isa) -> AttentionSchedule:
    """The schedule that is taken where nothing was measured."""
    return AttentionSchedule() if isa.header == "avx512.h" else AttentionSchedule(1, 4)


def space(isa: Isa) -> Iterator[AttentionSchedule]:
    """Every schedule that can be generated, whose sums the registers hold."""
    held = 31 if isa.header == "avx512.h" else 7
    for vectors in (1, 2, 3, 4, 6):
        for rows in (2, 4, 8, 16):
            if rows * vectors + vectors + 1 > held:
                continue
            for keys in (32, 64, 128):
                for split in (64, 128, 256):
                    yield AttentionSchedule(vectors, rows, keys, split)
