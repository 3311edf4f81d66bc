"""Run `model.onnx` of an artifact folder on ONNX Runtime's CPU provider; weights are mapped from the file beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qcc.ir.errors import BadInput

if TYPE_CHECKING:
    from onnxruntime import IOBinding

MODEL = "model.onnx"


class SessionRunner:
    """An ONNX Runtime session; `run` is safe to call from several threads."""

    def __init__(self, model: str | bytes, folder: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        if isinstance(model, bytes):
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(folder.absolute())
            )
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except _errors() as error:
            place = folder if isinstance(model, bytes) else model
            raise BadInput(
                f"{place}: ONNX Runtime {onnxruntime.__version__} does not load the model: {_line(error)}",
                hint="compile the model again, or run it with the release that it was compiled with",
            ) from error
        self.outputs = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name; `BadInput` where the network fails on these inputs."""
        try:
            return dict(zip(self.outputs, self._session.run(self.outputs, dict(feeds)), strict=True))
        except _errors() as error:
            raise BadInput(
                f"the network does not run on these inputs: {_line(error)}", hint="check their shapes and values"
            ) from error

    def binding(self) -> IOBinding:
        """A new set of bound inputs and outputs."""
        return self._session.io_binding()

    def run_bound(self, binding: IOBinding) -> None:
        """Run on what is bound; `BadInput` where the network fails on it."""
        try:
            self._session.run_with_iobinding(binding)
        except _errors() as error:
            raise BadInput(
                f"the network does not run on these inputs: {_line(error)}", hint="check their values"
            ) from error


def open_folder(folder: Path, threads: int) -> SessionRunner:
    """A runner on an artifact folder."""
    return SessionRunner(str(folder / MODEL), folder, threads)


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
