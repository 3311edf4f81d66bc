"""A row kernel as compiled: `build(spec, isa)`, then `kernel({"x": x, "w": w}) -> results`."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qcc.ir import target
from qcc.ir.errors import BadInput

from . import compile, isa
from .emit_rows import RowsText
from .isa import Isa
from .memory import ALIGNMENT, aligned
from .pool import launcher
from .rows_expression import Node
from .rows_spec import DTYPES, Output, RowsSpec


class RowsKernel:
    """Results [M, K] of expressions over rows, for one K."""

    def __init__(self, text: RowsText) -> None:
        self.spec, self.isa = text.spec, text.isa
        self.source = text.text()
        isa.check(text.isa, target.load("cpu"))
        self._run = compile.load(compile.compile_c(self.source, text.isa.flags)).qcc_rows
        self._run.restype = None
        pointer = ctypes.c_void_p
        self._run.argtypes = [*[pointer] * 4, ctypes.c_long, ctypes.c_int, pointer]

    def __call__(
        self, inputs: Mapping[str, np.ndarray], *, out: Sequence[np.ndarray | None] = (), threads: int = 1
    ) -> list[np.ndarray]:
        """The results of inputs float32: tensors [M, K], whose rows may lie apart, and contiguous [K], [M] and [1].

        `out` has an array or None for each result, or is left out. A result may lie exactly on top of a tensor of its
        dtype, else beside all. `BadInput` names the array that does not fit.
        """
        call = self.prepared(inputs, out=out, threads=threads)
        call()
        return call.results

    def prepared(
        self, inputs: Mapping[str, np.ndarray], *, out: Sequence[np.ndarray | None] = (), threads: int = 1
    ) -> RowsCall:
        """The same call, checked once and made as often as one likes."""
        wanted = {node.name for node in self.spec.inputs}
        if wanted != set(inputs):
            raise BadInput(
                f"the inputs are {', '.join(sorted(inputs)) or 'none'}", hint=f"pass {', '.join(sorted(wanted))}"
            )
        sizes = [inputs[node.name].shape[:1] for node in self.spec.inputs if node.op in ("tensor", "row")]
        m = sizes[0][0] if sizes[0] else 0
        arrays = [_input(node, inputs[node.name], m, self.spec.k) for node in self.spec.inputs]
        if out and len(out) != len(self.spec.outputs):
            raise BadInput(f"{len(out)} arrays for {len(self.spec.outputs)} results")
        given = out or [None] * len(self.spec.outputs)
        results = [_result(o, array, m, self.spec.k) for o, array in zip(self.spec.outputs, given, strict=True)]
        for i, result in enumerate(results):
            _check_apart(f"result {i}", result, arrays, results[:i])
        cores = target.load("cpu").cores
        if not 1 <= threads <= cores:
            raise BadInput(f"{threads} threads on {cores} cores", hint=f"1 to {cores}")
        return RowsCall(self, arrays, results, m, threads)

    @property
    def run(self) -> ctypes._NamedFuncPointer:  # pyright: ignore[reportPrivateUsage]
        """The C function `qcc_rows`."""
        return self._run


class RowsCall:
    """A kernel with its arrays: calling it computes `results` again."""

    def __init__(
        self, kernel: RowsKernel, inputs: list[np.ndarray], results: list[np.ndarray], m: int, threads: int
    ) -> None:
        self.results, self._run = results, kernel.run
        table = [_pointers(inputs), _steps(inputs), _pointers(results), _steps(results)]
        self._held = (kernel, inputs, table)
        self._arguments = (*map(ctypes.addressof, table), m, threads, launcher() if threads > 1 else None)

    def __call__(self) -> None:
        self._run(*self._arguments)


def build(spec: RowsSpec, isa: Isa) -> RowsKernel:
    """The kernel, generated and compiled; `NotSupported` where this host lacks its instructions."""
    return RowsKernel(RowsText(spec, isa))


def _input(node: Node, array: np.ndarray, m: int, k: int) -> np.ndarray:
    """`BadInput` where an array is not what a kernel reads."""
    shape = {"tensor": (m, k), "column": (k,), "row": (m,), "single": (1,)}[node.op]
    if array.dtype != np.float32 or array.shape != shape:
        raise BadInput(f"{node.name} is {list(array.shape)} {array.dtype}", hint=f"pass {list(shape)} float32")
    return _in_rows(node.name, array)


def _result(output: Output, array: np.ndarray | None, m: int, k: int) -> np.ndarray:
    """Where a result goes. `BadInput` where it does not fit there."""
    shape, dtype = (m, output.prepared.bytes if output.prepared else k), DTYPES[output.form]
    if array is None:
        return aligned(m * shape[1] * dtype.itemsize).view(dtype).reshape(shape)
    if array.dtype != dtype or array.shape != shape:
        raise BadInput(f"a result is {list(array.shape)} {array.dtype}", hint=f"pass {list(shape)} {dtype}")
    if not array.flags.writeable:
        raise BadInput("a result is read-only")
    if output.prepared and (not array.flags.c_contiguous or array.ctypes.data % ALIGNMENT):
        raise BadInput(f"prepared rows are contiguous at a multiple of {ALIGNMENT} bytes")
    _in_rows("a result", array)
    if m > 1 and array.strides[0] < shape[1] * dtype.itemsize:
        raise BadInput("the rows of a result overlap")
    return array


def _in_rows(name: str, array: np.ndarray) -> np.ndarray:
    """`BadInput` where the numbers of a row do not lie one behind the other."""
    size = array.dtype.itemsize
    packed = array.size == 0 or array.shape[-1] == 1 or array.strides[-1] == size
    if not packed or not array.flags.aligned or (array.ndim == 2 and array.strides[0] % size):
        raise BadInput(f"{name} has rows that are not contiguous", hint="np.ascontiguousarray")
    return array


def _check_apart(name: str, result: np.ndarray, inputs: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> None:
    """`BadInput` where a result lies over an input, but not exactly, or over another result."""
    for other in (*inputs, *others):
        same = (result.ctypes.data, result.strides, result.shape, result.dtype) == (
            other.ctypes.data, other.strides, other.shape, other.dtype,
        )  # fmt: skip
        allowed = same and not any(other is o for o in others)
        if not allowed and np.may_share_memory(result, other) and np.shares_memory(result, other):
            raise BadInput(f"{name} lies over another array", hint="exactly on top of a tensor, or beside all")


def _pointers(arrays: Sequence[np.ndarray]) -> Any:
    """Addresses as a C array. Any: ctypes has no names for such types."""
    return (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))


def _steps(arrays: Sequence[np.ndarray]) -> Any:
    """Elements from one row to the next, as a C array."""
    return (ctypes.c_long * len(arrays))(*(a.strides[0] // a.itemsize for a in arrays))
