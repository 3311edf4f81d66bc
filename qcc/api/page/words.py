"""Numbers and formats as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from qcc.ir.errors import QccError
from qcc.ir.format import Format
from qcc.ir.level import Level
from qcc.ir.verify import EXACT

_DTYPES = {"f32": "float32", "f16": "float16"}


def amount(count: int) -> str:
    """Bytes: 1.2 MB."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def ratio(part: float, whole: float) -> str:
    """A part of a whole: 0.26x; a question mark where there is no whole."""
    return f"{part / whole:.2f}x" if whole else "?"


def decibels(value: float) -> str:
    """A signal to noise ratio."""
    if abs(value) >= EXACT:
        return "exact" if value > 0 else "broken"
    return f"{value:.1f} dB"


def noise(sqnr_db: float) -> float:
    """The error relative to the signal, `10^(-dB/20)`, in percent; nothing is worse than 100."""
    return min(100.0, 100 * 10 ** (-sqnr_db / 20))


def percent(value: float) -> str:
    """Two digits that matter: 1.0 %, 0.062 %."""
    if not value or value >= 9.95:
        return f"{value:.0f} %"
    if value < 1e-4:
        return "under 0.0001 %"
    return f"{value:#.2g} %"


def milliseconds(value: float) -> str:
    """Three digits that matter."""
    return f"{value:,.0f} ms" if value >= 99.95 else f"{value:#.3g} ms"


def count(number: int, noun: str) -> str:
    """`1 layer`, `6 layers`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shape(extents: Sequence[int | str | None]) -> str:
    """`24x1x3x3`; an unknown extent is a question mark."""
    return "x".join("?" if e is None else str(e) for e in extents) or "scalar"


def format_in_words(text: str) -> str:
    """`i8, f32 per *` as "8-bit signed integers, a float32 scale for each row"; empty where the text is no format."""
    try:
        fmt = Format.parse(text)
        kind = "signed" if fmt.family.signed else "unsigned"
        words = f"{fmt.bits}-bit {kind} codes, {_scale(fmt.scale)}"
    except QccError:
        return ""
    return f"{words}, with a zero point" if fmt.zero is not None else words


def _scale(scale: Level) -> str:
    dtype, block = _DTYPES.get(scale.dtype, scale.dtype), scale.block
    if block is None:
        return f"one {dtype} scale"
    if all(extent is None for extent in block):
        return f"a {dtype} scale for each output channel"
    if len(block) == 1:
        return f"a {dtype} scale for every {block[0]} values of a row"
    extents = "x".join("all" if extent is None else str(extent) for extent in block)
    return f"a {dtype} scale for each block of {extents}"
