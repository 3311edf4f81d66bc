"""Floats of a sign, E exponent bits and M mantissa bits, at most 8 in all: `(-1)^s * 2^(e - bias) * (1 + m / 2^M)`.

Where e = 0 the value is subnormal: `(-1)^s * 2^(1 - bias) * m / 2^M`. A name is `eEmM`, then what differs from the
usual, in this order: `bN`, the exponent bias N instead of 2^(E-1) - 1; a policy of special codes; `zV`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ..errors import BadInput
from ._table import TableElement

EXAMPLES = ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "e4m3fnuz", "e3m4ieee", "e2m1z5")

_POLICIES = {(4, 3): "fn", (5, 2): "ieee"}  # of bare names (OCP 8-bit Floating Point 1.0); all others: finite
_NAME = re.compile(r"e(\d{1,2})m(\d{1,2})(?:b(-?\d{1,3}))?(ieee|fnuz|fn|finite)?(?:z(-?\d{1,6}(?:\.\d{1,6})?))?")


@dataclass(frozen=True)
class SmallFloat(TableElement):
    """A small float. Policies of special codes, as ml_dtypes names them:

    `ieee`: exponent all ones is an infinity or NaN. `fn`: all ones behind the sign is NaN, and no infinity.
    `fnuz`: the code of -0 is NaN, and the usual bias is one larger. `finite`: every code is a finite value, and
    `special`, where given, is what the code of -0 stands for (the special values of BitMoD, HPCA 2025).
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    policy: str
    special: float | None = None

    def __str__(self) -> str:
        e, m = self.exponent_bits, self.mantissa_bits
        bias = f"b{self.bias}" if self.bias != _usual_bias(e, self.policy) else ""
        policy = self.policy if self.policy != _POLICIES.get((e, m), "finite") else ""
        special = "" if self.special is None else f"z{np.format_float_positional(np.float32(self.special), trim='-')}"
        return f"e{e}m{m}{bias}{policy}{special}"

    @property
    def bits(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Sign, exponent and mantissa."""
        return 1 + self.exponent_bits + self.mantissa_bits

    def list_values(self) -> np.ndarray:
        """float64[2**bits], exact: NaN and infinities where the policy says so."""
        E, M = self.exponent_bits, self.mantissa_bits
        codes = np.arange(1 << self.bits)
        magnitude, negative = codes & ((1 << (E + M)) - 1), codes >> (E + M)
        exponent, mantissa = magnitude >> M, magnitude & ((1 << M) - 1)
        whole = np.where(exponent > 0, mantissa + (1 << M), mantissa).astype(np.float64)
        values = np.ldexp(whole, np.maximum(exponent, 1) - self.bias - M)
        if self.policy == "ieee":
            values[exponent == (1 << E) - 1] = np.nan
            values[(exponent == (1 << E) - 1) & (mantissa == 0)] = np.inf
        elif self.policy == "fn":
            values[magnitude == magnitude.max()] = np.nan
        values = np.where(negative, -values, values)
        minus_zero = 1 << (E + M)
        if self.policy == "fnuz":
            values[minus_zero] = np.nan
        elif self.special is not None:
            values[minus_zero] = self.special
        return values


def parse(name: str) -> SmallFloat | None:
    """`e4m3`, `e5m2`, `e2m1`, `e4m3b11fnuz`, `e2m1z-8`: see the head of this file; `BadInput` where it cannot be."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    e, m = int(match[1]), int(match[2])
    if (e, m) == (8, 0):
        raise BadInput("'e8m0' has no sign: it is a type of scales, not of elements", hint='"e2m1, e8m0 per 32"')
    if 1 + e + m > 8:
        raise BadInput(
            f"element {name!r} has {1 + e + m} bits (a sign, {e} of exponent, {m} of mantissa), and codes hold 8",
            hint="the widest are e1m6, e2m5, e3m4, e4m3, e5m2, e6m1 and e7m0",
        )
    if e == 0:
        raise BadInput(f"element {name!r} has no exponent", hint="fixed point is written like i4q3")
    policy = match[4] or _POLICIES.get((e, m), "finite")
    bias = _usual_bias(e, policy) if match[3] is None else int(match[3])
    element = SmallFloat(e, m, bias, policy, None if match[5] is None else float(np.float32(match[5])))
    _check(element, name)
    return element


def _usual_bias(exponent_bits: int, policy: str) -> int:
    return (1 << (exponent_bits - 1)) - (0 if policy == "fnuz" else 1)


def _check(element: SmallFloat, name: str) -> None:
    if element.special is not None and element.policy != "finite":
        raise BadInput(
            f"element {name!r}: only where all codes are finite can the code of -0 stand for another value",
            hint=f"write e{element.exponent_bits}m{element.mantissa_bits}finitez{element.special:g}",
        )
    if element.policy == "ieee" and element.mantissa_bits == 0:
        raise BadInput(f"element {name!r}: without mantissa bits there is an infinity but no NaN", hint="fn or finite")
    exact = element.list_values()
    finite = exact[np.isfinite(exact)]
    if not finite.any():
        raise BadInput(f"element {name!r} has no finite value but 0", hint="give it another bit")
    with np.errstate(over="ignore", under="ignore"):
        fits = np.array_equal(finite.astype(np.float32).astype(np.float64), finite)
    if not fits:
        raise BadInput(f"element {name!r}: with bias {element.bias} not all values are float32", hint="choose another")
    if element.special is not None and np.count_nonzero(finite == element.special) > 1:
        raise BadInput(f"element {name!r}: {element.special:g} already has a code", hint="choose another value")
