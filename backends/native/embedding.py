"""An embedding as a compiled kernel: `build(spec, isa) -> EmbeddingKernel`, then `kernel(indices, packed) -> y`.

The table is what `linear.pack` or `CodebookKernel.pack` made, for the linear kernel of whose storage the spec knows.
"""

from __future__ import annotations

import ctypes

import numpy as np

from qcc.ir import target
from qcc.ir.errors import BadInput

from . import compile, isa
from .embedding_spec import EmbeddingSpec
from .emit_embedding import EmbeddingText
from .isa import Isa
from .linear import Packed
from .pool import launcher

_ENTRY = """
int qcc_embedding(const int64_t *indices, const uint8_t *w, float *y, int64_t count, float alpha, int threads,
                  launch_fn launch) {
    return embed(indices, w, y, count, alpha, threads, launch);
}
"""


class EmbeddingKernel:
    """`y[..., D] = factor * table[indices]` for one table's shape, format and layout."""

    def __init__(self, text: EmbeddingText) -> None:
        self.spec, self.isa = text.spec, text.isa
        self.source = text.text() + _ENTRY
        isa.check(text.isa, target.load("cpu"))
        self._run = compile.load(compile.compile_c(self.source, text.isa.flags)).qcc_embedding
        self._run.restype = ctypes.c_int
        pointer = ctypes.c_void_p
        self._run.argtypes = [pointer, pointer, pointer, ctypes.c_int64, ctypes.c_float, ctypes.c_int, pointer]

    def __call__(
        self, indices: np.ndarray, packed: Packed, *, out: np.ndarray | None = None, threads: int = 1
    ) -> np.ndarray:
        """float32 [..., D] of indices int64 [...]; those below 0 count from the end. `BadInput` for one that is not
        there, and for a buffer that does not fit."""
        linear = self.spec.linear
        if indices.dtype != np.int64:
            raise BadInput(f"indices are {indices.dtype}", hint="pass int64")
        if packed.data.dtype != np.uint8 or packed.data.shape != (self.spec.storage.bytes,):
            raise BadInput(
                f"packed is {list(packed.data.shape)} {packed.data.dtype}",
                hint=f"pass [{self.spec.storage.bytes}] uint8, as the linear kernel packs it",
            )
        shape = (*indices.shape, linear.k)
        y = np.empty(shape, np.float32) if out is None else out
        if y.dtype != np.float32 or y.shape != shape or not y.flags.c_contiguous or not y.flags.writeable:
            raise BadInput(f"out is {list(y.shape)} {y.dtype}", hint=f"pass {list(shape)} float32, contiguous")
        cores = target.load("cpu").cores
        if not 1 <= threads <= cores:
            raise BadInput(f"{threads} threads on {cores} cores", hint=f"1 to {cores}")
        whole = np.ascontiguousarray(indices)
        launch = launcher() if threads > 1 else None
        places = whole.ctypes.data, packed.data.ctypes.data, y.ctypes.data
        if self._run(*places, whole.size, packed.alpha, threads, launch):
            wrong = indices[(indices < -linear.n) | (indices >= linear.n)][0]
            raise BadInput(f"index {wrong} of a table of {linear.n} rows", hint=f"{-linear.n} to {linear.n - 1}")
        return y


def build(spec: EmbeddingSpec, isa: Isa) -> EmbeddingKernel:
    """The kernel, generated and compiled; `NotSupported` where this host lacks its instructions."""
    return EmbeddingKernel(EmbeddingText(spec, isa))
