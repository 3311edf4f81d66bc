"""Numbers and formats as people read them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from qcc.ir.errors import QccError
from qcc.ir.format import Format
from qcc.ir.level import Level
from qcc.ir.verify import EXACT

_DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "e8m0": "power-of-two",
    "e4m3": "float8",
    "e5m2": "float8",
}


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
    """`i8, f32 per *` as "8-bit signed codes, a float32 scale for each output channel"; empty where it is no format."""
    try:
        fmt = Format.parse(text)
        return ", ".join(_clauses(fmt))
    except QccError:
        return ""


def _clauses(fmt: Format) -> Iterator[str]:
    """What a format says, part by part."""
    yield _codes(fmt)
    if fmt.scales:
        yield _product("scale", fmt.scales)
    if fmt.mean:
        yield f"around {_level('mean', fmt.mean)}"
    if isinstance(fmt.zero, Level):
        same = fmt.scales and fmt.zero.block == fmt.scales[0].block
        yield "with a zero point" if same else f"with {_level('zero point', fmt.zero)}"
    elif fmt.zero is not None:
        yield f"with the zero point {fmt.zero:g}"
    if fmt.offset:
        word, noun = ("less", "minimum") if fmt.offset.negative else ("plus", "offset")
        yield f"{word} {_product(noun, fmt.offset.levels)}"
    if fmt.permuted:
        yield "columns in an order of their own"
    if fmt.sparsity:
        yield f"{fmt.sparsity[0]} of {fmt.sparsity[1]} neighbours kept"
    if fmt.outliers:
        kept = "outlier columns" if fmt.outliers.columns else "single outliers"
        yield f"{kept} in {_DTYPES[fmt.outliers.dtype]}"


def _codes(fmt: Format) -> str:
    if fmt.lookup and len(fmt.choices) > 1:
        return f"{fmt.bits}-bit codes, one of {len(fmt.choices)} types {_where(fmt.lookup)}"
    if fmt.lookup and fmt.codebook:
        dtype = _DTYPES.get(fmt.lookup.dtype, fmt.lookup.dtype)
        return f"{fmt.bits}-bit codes, {fmt.codebook.entries} {dtype} values {_where(fmt.lookup)}"
    if fmt.is_integer:
        return f"{fmt.bits}-bit {'signed' if fmt.family.signed else 'unsigned'} codes"
    if fmt.element in ("ternary", "binary"):
        return f"{fmt.element} codes"
    kind = (
        "floats" if re.match(r"e\d", fmt.element) else "fixed point" if re.match(r"[iu]\d+q", fmt.element) else "codes"
    )
    return f"{fmt.bits}-bit {kind} ({fmt.element.upper()})"


def _product(noun: str, levels: Sequence[Level]) -> str:
    """Levels from the inside out."""
    return " times ".join(_level("one" if i else noun, level) for i, level in enumerate(levels))


def _level(noun: str, level: Level) -> str:
    dtype = _DTYPES.get(level.dtype) or f"{level.dtype[1:]}-bit"
    if level.block is None:
        return f"one {dtype} {noun}" if noun != "one" else f"one {dtype}"
    return f"{'an' if dtype[0] == '8' else 'a'} {dtype} {noun} {_where(level)}"


def _where(level: Level) -> str:
    if level.block is None:
        return "in all"
    if all(extent is None for extent in level.block):
        return "for each output channel"
    if len(level.block) == 1:
        return f"for every {level.block[0]} values of a row"
    extents = "x".join("all" if extent is None else str(extent) for extent in level.block)
    return f"for each block of {extents}"
