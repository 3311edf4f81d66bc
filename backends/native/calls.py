"""Kernels as C functions that a compiled network calls: `Function(symbol, text, flags)`, linked with `runtime()`.

    qcc_linear_<hash>(x, w, bias, y, rows, alpha, scale, zero)
    qcc_rows_<hash>(inputs..., results..., rows, steps...)
    qcc_conv_<hash>(x, w, start, scale, numbers, y, images, height, width, zero, low, high)

A function takes plain pointers and numbers. Its threads and scratch memory are those of the library that it is linked
into: `qcc_set_threads(n)` says how many, on the pool of `pool.c`. One call at a time: the memory is one for all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from . import conv, linear
from .compile import compile_object
from .conv_spec import ConvSchedule, ConvSpec
from .emit_conv import ConvText
from .emit_linear import LinearText
from .emit_rows import RowsText
from .isa import C_FOLDER, Isa
from .linear_spec import LinearSpec, Schedule
from .rows_spec import RowsSpec

_OWN = ("qcc_linear", "qcc_prepare", "qcc_blocks", "qcc_conv", "qcc_rows", "qcc_ask_for_tiles")
"""What the texts of kernels define for all to see: each gets names of its own where several are linked."""

_LINEAR = """
void qcc_launch(task_fn task, void *data, long count, long chunk, int threads);
void *qcc_scratch(size_t bytes);
extern int qcc_threads;
void {symbol}(const input *x, const uint8_t *w, const float *bias, float *y, int64_t m, float alpha, float scale,
              int32_t zero) {{
    uint8_t *scratch = qcc_scratch((size_t)m * ROW_BYTES + (size_t)qcc_threads * PANEL_BYTES);
    qcc_linear(x, w, bias, y, m, alpha, scratch, qcc_threads, qcc_launch, scale, zero);
}}
"""

_CONV = """
void qcc_launch(task_fn task, void *data, long count, long chunk, int threads);
extern int qcc_threads;
void {symbol}(const uint8_t *x, const int8_t *w, const int32_t *start, const float *scale, const float *numbers,
              output *y, int64_t images, int64_t height, int64_t width, int32_t zero, int32_t low, int32_t high) {{
    const int codes[3] = {{zero, low, high}};
    const float clamp[2] = {{-__builtin_inff(), __builtin_inff()}};
    qcc_conv(x, w, start, scale, y, images, height, width, codes, clamp, numbers, qcc_threads, qcc_launch);
}}
"""


@dataclass(frozen=True)
class Function:
    """A C function and the text that defines it."""

    symbol: str
    text: str
    flags: tuple[str, ...]

    def compile(self) -> Path:
        """Its object file."""
        return compile_object(self.text, self.flags)


def linear_function(spec: LinearSpec, isa: Isa, schedule: Schedule | None = None) -> tuple[Function, LinearText]:
    """The function of a linear operation, and its kernel's text, which knows the layout of the weight."""
    text = linear.generate(spec, isa, schedule)
    return _function("linear", text.text(), _LINEAR, isa), text


def conv_function(spec: ConvSpec, isa: Isa, schedule: ConvSchedule | None = None) -> tuple[Function, ConvText]:
    """The function of a convolution, and its kernel's text, which knows the layout of the weight."""
    text = conv.generate(spec, isa, schedule)
    return _function("conv", text.text(), _CONV, isa), text


def rows_function(spec: RowsSpec, isa: Isa) -> Function:
    """The function of a row kernel: `RowsText.function` says what it takes."""
    text = RowsText(spec, isa)
    tag = _tag(isa, text.text())
    symbol = f"qcc_rows_{tag}"
    return Function(symbol, _renamed(tag) + text.text() + text.function(symbol), isa.flags)


def runtime() -> Path:
    """The object file of what functions share: threads, and memory."""
    return compile_object((C_FOLDER / "pool.c").read_text() + (C_FOLDER / "runtime.c").read_text())


def _function(kind: str, text: str, entry: str, isa: Isa) -> Function:
    tag = _tag(isa, text + entry)
    symbol = f"qcc_{kind}_{tag}"
    return Function(symbol, _renamed(tag) + text + entry.format(symbol=symbol), isa.flags)


def _tag(isa: Isa, text: str) -> str:
    return hashlib.sha256(f"{isa.name} {text}".encode()).hexdigest()[:16]


def _renamed(tag: str) -> str:
    """Definitions that give what a text defines for all to see a name of its own."""
    return "".join(f"#define {name} {name}_own_{tag}\n" for name in _OWN)
