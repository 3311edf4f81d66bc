"""The options of `compile` as one frozen value, checked before any work is done."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qcc.backends import select
from qcc.frontend.images import ImageOptions
from qcc.ir import target as targets
from qcc.ir.dialects.q_attention import CACHES
from qcc.ir.errors import BadInput
from qcc.passes import algorithms, observers, schemes

_LEAST_RAM = 1 << 29


@dataclass(frozen=True)
class Options:
    """What the user asked for. Field names are those of the keyword arguments of `compile` and of the flags."""

    target: str = "cpu"
    backend: str = "auto"
    scheme: str = ""
    """Empty: the target's own, filled in when the options are made."""
    group_size: int = 0
    algorithm: str = "rtn"
    observer: str = "mse"
    calibration: str = ""
    calibration_limit: int = 128
    image: ImageOptions = field(default_factory=ImageOptions)
    ignore: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    kv_cache: str = ""
    """What the caches of a language model keep: f32, f16 or i8. Empty: what the backend prefers."""
    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict[str, Mapping[int, str]])
    seed: int = 0
    min_sqnr: float | None = None
    max_error: float | None = None
    verify_passes: bool = False
    max_ram: int = 0
    """Bytes; weights take at most a quarter of them in memory, the rest is mapped from files. 0: no bound."""

    def __post_init__(self) -> None:
        if not self.scheme:
            object.__setattr__(self, "scheme", targets.load(self.target).scheme)

    def check(self) -> None:
        """Raise `BadInput` for names that do not exist and values that cannot be."""
        targets.load(self.target)
        scheme = schemes.load(self.scheme)
        algorithms.load(self.algorithm)
        observers.load(self.observer)
        if self.kv_cache and self.kv_cache not in CACHES:
            raise BadInput(f"a cache of {self.kv_cache!r}", hint=f"--kv-cache takes {', '.join(CACHES)}")
        select.check(targets.load(self.target), self.backend, scheme.name)
        if self.group_size and (self.group_size < 16 or self.group_size & (self.group_size - 1)):
            raise BadInput(
                f"group size {self.group_size} is not a power of two of at least 16", hint="use 32, 64 or 128"
            )
        if self.group_size and not scheme.group:
            raise BadInput(
                f"scheme {scheme.name} has one scale an output channel: it takes no group size",
                hint="leave out --group-size",
            )
        if scheme.needs_calibration and not self.calibration:
            other = "" if scheme.is_fixed_point else "W8A8_DYNAMIC needs none; "
            raise BadInput(
                f"scheme {scheme.name} needs calibration data for the scales of its activations",
                hint=f"pass --calibration FILE.npz or FOLDER; {other}--calibration random only to try speed",
            )
        if algorithms.needs_hessian(self.algorithm) and not self.calibration:
            raise BadInput(
                f"algorithm {self.algorithm} needs calibration data for the second moments of activations",
                hint="pass --calibration FILE.npz or FOLDER, or --algorithm rtn",
            )
        if self.calibration_limit < 1:
            raise BadInput("the calibration limit must be at least 1")
        if 0 < self.max_ram < _LEAST_RAM:
            raise BadInput(
                f"--max-ram of {self.max_ram} bytes is less than the compiler itself takes", hint="give 1GiB or more"
            )
        if self.seed < 0:
            raise BadInput(f"the seed is {self.seed}: it must not be negative")
        for name, shape in self.input_shapes.items():
            if any(not 0 < extent < 1 << 31 for extent in shape):
                raise BadInput(f"the shape {list(shape)} of input {name!r} cannot be", hint="write it like 1,3,48,320")
        check_gates(self.min_sqnr, self.max_error)


def bytes_of(text: str | int | None) -> int:
    """`4GiB`, `500MB` or a number of bytes as bytes; 0 for None. `BadInput` for anything else."""
    if text is None or isinstance(text, int):
        return max(0, text or 0)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", text.strip(), re.IGNORECASE | re.ASCII)
    if match is None:
        raise BadInput(f"{text!r} is no size", hint="write it like 4GiB or 500MB")
    unit = (match[2] or "").upper()
    base = 1024 if unit.endswith("I") else 1000
    return int(float(match[1]) * base ** (" KMGT".index(unit[0]) if unit else 0))


def check_gates(min_sqnr: float | None, max_error: float | None) -> None:
    """`BadInput` for a gate that no result could fail, or pass: NaN."""
    for name, gate in (("min_sqnr", min_sqnr), ("max_error", max_error)):
        if gate is not None and math.isnan(gate):
            raise BadInput(f"{name} is not a number", hint="give a number of decibels, or an absolute error")
