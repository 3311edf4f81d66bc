"""Kernels as C functions that a compiled network calls: `Function(symbol, text, flags)`, linked with `runtime()`.

    qcc_linear_<hash>(x, w..., bias..., y..., rows, alpha..., scale, zero)      in linear_group.py
    qcc_attention_<hash>(q, k, v[, mask], y, batch, queries, keys, strides...)
    qcc_rows_<hash>(inputs..., results..., rows, steps...)
    qcc_conv_<hash>(x, w, start, scale, numbers, y, images, height, width, zero, low, high)
    qcc_embedding_<hash>(indices, w, y, count, alpha)

A function takes plain pointers and numbers. Its threads and scratch memory are those of the library that it is linked
into: `qcc_set_threads(n)` says how many, on the pool of `pool.c`. One call at a time: the memory is one for all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from . import attention, conv
from .attention_spec import AttentionSpec
from .compile import compile_object
from .conv_spec import ConvSchedule, ConvSpec
from .embedding_spec import EmbeddingSpec
from .emit_conv import ConvText
from .emit_embedding import EmbeddingText
from .emit_rows import RowsText
from .isa import C_FOLDER, Isa
from .rows_spec import RowsSpec

_OWN = (
    "qcc_linear", "qcc_prepare", "qcc_blocks", "qcc_conv", "qcc_rows", "qcc_attention_scratch", "qcc_attention",
    "qcc_attention_append", "qcc_ask_for_tiles",
)  # fmt: skip
"""What the texts of kernels define for all to see: each gets names of its own where several are linked."""

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

_ATTENTION = """
void qcc_launch(task_fn task, void *data, long count, long chunk, int threads);
void *qcc_scratch(size_t bytes);
extern int qcc_threads;
void {symbol}(const float *q, const element *k, const element *v, {mask}float *y, int64_t batch, int64_t queries,
              int64_t keys, int64_t q0, int64_t q1, int64_t q2, int64_t k0, int64_t k1, int64_t k2, int64_t y0,
              int64_t y1, int64_t y2{mask_by}) {{
    const int64_t bytes = (qcc_attention_scratch(batch, queries, keys, qcc_threads) + 63) / 64 * 64;
    uint8_t *scratch = qcc_scratch((size_t)(bytes + 8 * batch));
    int64_t *lengths = (int64_t *)(scratch + bytes);
    for (int64_t b = 0; b < batch; b++) lengths[b] = keys;
    attention_call call = {{.q = q, .y = y, .k = k, .v = v, {given}.lengths = lengths, .q_by = {{q0, q1, q2}},
                           .y_by = {{y0, y1, y2}}, .kv_by = {{k0, k1, k2}}, .batch = batch, .queries = queries,
                           .scratch = scratch, .threads = qcc_threads, .launch = qcc_launch}};
    qcc_attention(&call);
}}
"""

_EMBEDDING = """
void qcc_launch(task_fn task, void *data, long count, long chunk, int threads);
extern int qcc_threads;
int {symbol}(const int64_t *indices, const uint8_t *w, float *y, int64_t count, float alpha) {{
    return embed(indices, w, y, count, alpha, qcc_threads, qcc_launch);
}}
"""


@dataclass(frozen=True)
class Function:
    """A C function and the text that defines it: none where it belongs to the runtime."""

    symbol: str
    text: str
    flags: tuple[str, ...]

    def compile(self) -> Path:
        """Its object file."""
        return compile_object(self.text, self.flags)


def conv_function(spec: ConvSpec, isa: Isa, schedule: ConvSchedule | None = None) -> tuple[Function, ConvText]:
    """The function of a convolution, and its kernel's text, which knows the layout of the weight."""
    text = conv.generate(spec, isa, schedule)
    return function_of("conv", text.text(), _CONV, isa), text


def attention_function(spec: AttentionSpec, isa: Isa) -> Function:
    """The function of an attention without a cache: keys and values are float32 tensors."""
    masked = spec.mask != "none"
    entry = {
        "mask": "const void *mask, " if masked else "",
        "mask_by": ", int64_t m0, int64_t m1, int64_t m2" if masked else "",
        "given": ".mask = mask, .mask_by = {m0, m1, m2}, " if masked else "",
    }
    text = attention.generate(spec, isa).text()
    return function_of(f"attention_{spec.mask}", text, _ATTENTION, isa, **entry)


def embedding_function(spec: EmbeddingSpec, isa: Isa) -> Function:
    """The function of an embedding: of `count` indices int64, from -V to V - 1, to y float32 [count, D].

    It gives 1 where an index is out of range, and then has written nothing, else 0. `alpha` is that of the packed one.
    """
    return function_of("embedding", EmbeddingText(spec, isa).text(), _EMBEDDING, isa)


def rows_function(spec: RowsSpec, isa: Isa) -> Function:
    """The function of a row kernel: `RowsText.function` says what it takes."""
    text = RowsText(spec, isa)
    tag = _tag(isa, text.text())
    symbol = f"qcc_rows_{tag}"
    return Function(symbol, _renamed(tag) + text.text() + text.function(symbol), isa.flags)


GATHER = Function("qcc_gather", "", ())
"""`int qcc_gather(x, places, y, outer, extent, count, bytes)`: pieces of `bytes` of x [outer, extent], at the int64
`places` [count]; 1 where one is not there."""


def runtime() -> Path:
    """The object file of what functions share: threads, and memory."""
    return compile_object((C_FOLDER / "pool.c").read_text() + (C_FOLDER / "runtime.c").read_text())


def function_of(kind: str, text: str, entry: str, isa: Isa, **parts: str) -> Function:
    """The function that `entry`, a format of its `symbol` and `parts`, adds to the text of a kernel."""
    tag = _tag(isa, text + entry)
    symbol = f"qcc_{kind}_{tag}"
    return Function(symbol, _renamed(tag) + text + entry.format(symbol=symbol, **parts), isa.flags)


def object_of(text: str, isa: Isa) -> Function:
    """A kernel that other functions call: what it defines for all to see ends in `_own_` and its `symbol`."""
    tag = _tag(isa, text)
    return Function(tag, _renamed(tag) + text, isa.flags)


def _tag(isa: Isa, text: str) -> str:
    return hashlib.sha256(f"{isa.name} {text}".encode()).hexdigest()[:16]


def _renamed(tag: str) -> str:
    """Definitions that give what a text defines for all to see a name of its own."""
    return "".join(f"#define {name} {name}_own_{tag}\n" for name in _OWN)
