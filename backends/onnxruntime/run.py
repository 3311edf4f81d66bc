"""Run `model.onnx` of an artifact folder on ONNX Runtime; weights are mapped from the file beside it.

An artifact for a GPU runs on the CUDA provider where the installed ONNX Runtime has one that starts, else on the CPU.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qcc.ir.errors import BadInput, NotSupported

if TYPE_CHECKING:
    from onnxruntime import IOBinding

MODEL, SESSION = "model.onnx", "session.json"
_CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Session:
    """How a model is to be loaded and watched."""

    fold_weights: bool = False
    """Decode weights when it is loaded.

    ONNX Runtime keeps DequantizeLinear nodes for the fusion with QuantizeLinear nodes, and decodes at every call. A
    model without the latter has nothing to fuse.
    """
    device: str = "cpu"
    finite: bool = False
    """Its float32 outputs are finite where nothing overflows: others are an error."""


class SessionRunner:
    """An ONNX Runtime session; `run` is safe to call from several threads.

    `device` is what it runs on, `wanted` what its model was compiled for.
    """

    def __init__(self, model: str | bytes, folder: Path, threads: int, *, frugal: bool = False) -> None:
        """`frugal` holds no memory in reserve. Weights are packed all the same: kernels compute otherwise without."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        settings = read_session(folder)
        if settings.fold_weights:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if frugal:
            options.enable_cpu_mem_arena = False
        if isinstance(model, bytes):
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(folder.absolute())
            )
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=_providers(settings.device))
        except _errors() as error:
            place = folder if isinstance(model, bytes) else model
            raise BadInput(
                f"{place}: ONNX Runtime {onnxruntime.__version__} does not load the model: {_line(error)}",
                hint="compile the model again, or run it with the release that it was compiled with",
            ) from error
        self.outputs = [o.name for o in self._session.get_outputs()]
        self.wanted, self._finite = settings.device, settings.finite
        self.device = "cuda" if _CUDA in self._session.get_providers() else "cpu"

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name; `BadInput` where the network fails on these inputs."""
        try:
            outputs = dict(zip(self.outputs, self._session.run(self.outputs, dict(feeds)), strict=True))
        except _errors() as error:
            raise BadInput(
                f"the network does not run on these inputs: {_line(error)}", hint="check their shapes and values"
            ) from error
        for name, array in outputs.items():
            self.check_finite(name, array)
        return outputs

    def check_finite(self, name: str, array: np.ndarray) -> None:
        """`NotSupported` where float16 overflowed on the way to a float32 output."""
        if self._finite and array.dtype == np.float32 and not np.isfinite(array).all():
            raise NotSupported(
                f"{name} holds NaN or infinity: float16 overflowed on these inputs",
                hint="compile the model for cpu, which computes in float32",
            )

    def binding(self) -> IOBinding:
        """A new set of bound inputs and outputs."""
        return self._session.io_binding()

    def run_bound(self, binding: IOBinding) -> None:
        """Run on what is bound; `BadInput` where the network fails on it."""
        try:
            self._session.run_with_iobinding(binding)
        except (*_errors(), RuntimeError) as error:  # it raises no class of its own here
            raise BadInput(
                f"the network does not run on these inputs: {_line(error)}", hint="check their values"
            ) from error


def open_folder(folder: Path, threads: int, *, frugal: bool = False) -> SessionRunner:
    """A runner on an artifact folder."""
    return SessionRunner(str(folder / MODEL), folder, threads, frugal=frugal)


def write_session(folder: Path, session: Session) -> str:
    """Note how the model is to be loaded; gives the name of the file."""
    (folder / SESSION).write_text(json.dumps(asdict(session)) + "\n")
    return SESSION


def read_session(folder: Path) -> Session:
    """How the model of an artifact is to be loaded; `BadInput` where the note is damaged."""
    try:
        return Session(**json.loads((folder / SESSION).read_text()))
    except FileNotFoundError:
        return Session()
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{folder / SESSION}: cannot be read: {error}", hint="compile the model again") from error


def _providers(device: str) -> list[str]:
    """The providers of a session in the order of preference; CUDA libraries that came as packages are loaded first."""
    import onnxruntime

    if device != "cuda" or _CUDA not in onnxruntime.get_available_providers():
        return ["CPUExecutionProvider"]
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it misses
        onnxruntime.preload_dlls()
    return [_CUDA, "CPUExecutionProvider"]


def open_with_values(folder: Path, values: Sequence[str], threads: int) -> SessionRunner:
    """A runner that also gives inner values of the model by name, for finding out where error comes from."""
    import onnx

    proto = onnx.ModelProto.FromString((folder / MODEL).read_bytes())
    present = {o for node in proto.graph.node for o in node.output} - {o.name for o in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=v) for v in dict.fromkeys(values) if v in present)
    return SessionRunner(proto.SerializeToString(), folder, threads)


def _errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for a model or inputs that are wrong; it has no common base."""
    from onnxruntime.capi.onnxruntime_pybind11_state import (
        Fail,
        InvalidArgument,
        InvalidGraph,
        InvalidProtobuf,
        NoSuchFile,
        NotImplemented,
        RuntimeException,
    )

    refused = (InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile, NotImplemented)
    return (*refused, Fail, RuntimeException, ValueError)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
