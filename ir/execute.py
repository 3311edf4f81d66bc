"""Run a program for reference: expanded into standard operators, on ONNX Runtime, with any intermediate value fetched.

This is the one place outside the ONNX Runtime backend that runs a graph; calibration, constant folding, pass checks and
verification call it. Weights are handed to the session without a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from xdsl.ir import SSAValue

from .emit_onnx import EmittedModel, emit
from .errors import BadInput, NotSupported
from .expand import expand_with
from .program import Program

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, OrtValue

Feeds = Mapping[str, np.ndarray]

_LARGE = 1 << 28
"""Bytes of weights from which a reference session takes less memory rather than less time."""


class Reference:
    """A program ready to run. `also` are values of its main block to give beside the outputs."""

    def __init__(
        self, program: Program, also: Sequence[SSAValue] = (), *, threads: int = 0, optimize: bool = False
    ) -> None:
        if any(op.name.startswith("q.") and op.name != "q.weight" for op in program.module.walk()):
            program, also = expand_with(program, also)
        emitted = emit(program, also=tuple(also))
        self._session = session(emitted, program, threads=threads, optimize=optimize)
        self.outputs = [p.name for p in program.results()]
        self.names = [emitted.value_names[v] for v in also]

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """The outputs by name."""
        return dict(zip(self.outputs, self._run(self.outputs, feeds), strict=True))

    def fetch(self, feeds: Feeds) -> list[np.ndarray]:
        """The values of `also`, in their order."""
        return self._run(self.names, feeds)

    def _run(self, names: Sequence[str], feeds: Feeds) -> list[np.ndarray]:
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

        known = [i.name for i in self._session.get_inputs()]
        missing = [name for name in known if name not in feeds]
        if missing:
            raise BadInput(f"input {missing[0]!r} is missing", hint=f"the inputs are {', '.join(known)}")
        unique = list(dict.fromkeys(names))
        if not unique:
            return []  # ONNX Runtime takes an empty list as a wish for every output
        try:
            found = dict(zip(unique, self._session.run(unique, dict(feeds)), strict=True))
        except (Fail, InvalidArgument, RuntimeException) as error:
            raise BadInput(
                f"the model does not run on these inputs: {_line(error)}",
                hint="check the shapes and values of the samples",
            ) from error
        return [found[name] for name in names]


def session(emitted: EmittedModel, program: Program, *, threads: int = 0, optimize: bool = False) -> InferenceSession:
    """An ONNX Runtime session on the CPU over an emitted model; large weights are passed, not copied."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_ENABLE_BASIC
    disabled: list[str] = []
    if sum(program.weights[key].nbytes for key in emitted.external.values()) > _LARGE:
        options.add_session_config_entry("session.disable_prepacking", "1")  # a second copy of every weight
        options.enable_cpu_mem_arena = False
        disabled = ["ConstantFolding"]  # a turned copy of a tied output head: fused into the product instead
        options.graph_optimization_level = level.ORT_ENABLE_EXTENDED
    names = list(emitted.external)
    arrays = [np.ascontiguousarray(program.weights[emitted.external[name]]) for name in names]
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(a) if a.dtype.isbuiltin == 1 else _exotic(a) for a in arrays]
    options.add_external_initializers(names, values)
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, NotImplemented, RuntimeException

    try:
        return onnxruntime.InferenceSession(
            emitted.proto.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=disabled,
        )
    except NotImplemented as error:
        raise NotSupported(
            f"ONNX Runtime has no kernel: {_line(error)}", hint="another opset or element type may have one"
        ) from error
    except (Fail, InvalidGraph, RuntimeException) as error:
        raise BadInput(
            f"ONNX Runtime refuses the model: {_line(error)}", hint="check the model with onnx.checker"
        ) from error


def _exotic(array: np.ndarray) -> OrtValue:
    """A value of an element type that numpy does not have by itself."""
    import onnxruntime

    from .types import element_of

    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, element_of(array.dtype).onnx)


def run(program: Program, feeds: Feeds) -> dict[str, np.ndarray]:
    """The outputs of a program for one set of inputs."""
    return Reference(program).run(feeds)


def run_all(program: Program, samples: Iterable[Feeds], *, optimize: bool = True) -> list[dict[str, np.ndarray]]:
    """The outputs of a program for each sample."""
    reference = Reference(program, optimize=optimize)
    return [reference.run(sample) for sample in samples]


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300]
