"""The part of ONNX Runtime that qcc uses, with types: the package has none of its own."""

from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np

__version__: str

def get_available_providers() -> list[str]: ...
def preload_dlls() -> None: ...

class GraphOptimizationLevel:
    ORT_DISABLE_ALL: GraphOptimizationLevel
    ORT_ENABLE_BASIC: GraphOptimizationLevel
    ORT_ENABLE_EXTENDED: GraphOptimizationLevel
    ORT_ENABLE_ALL: GraphOptimizationLevel

class OrtValue:
    @staticmethod
    def ortvalue_from_numpy(numpy_obj: np.ndarray, device_type: str = "cpu", device_id: int = 0, /) -> OrtValue: ...
    @staticmethod
    def ortvalue_from_numpy_with_onnx_type(data: np.ndarray, /, onnx_element_type: int) -> OrtValue: ...

class SessionOptions:
    enable_cpu_mem_arena: bool
    graph_optimization_level: GraphOptimizationLevel
    intra_op_num_threads: int
    log_severity_level: int
    def add_external_initializers(self, names: list[str], values: list[OrtValue]) -> None: ...
    def add_session_config_entry(self, key: str, value: str) -> None: ...

class IOBinding:
    def bind_ortvalue_input(self, name: str, ortvalue: OrtValue) -> None: ...
    def bind_ortvalue_output(self, name: str, ortvalue: OrtValue) -> None: ...

class NodeArg:
    @property
    def name(self) -> str: ...

class InferenceSession:
    def __init__(
        self,
        path_or_bytes: str | bytes | PathLike[str],
        sess_options: SessionOptions | None = None,
        providers: Sequence[str] | None = None,
        *,
        disabled_optimizers: Sequence[str] | None = None,
    ) -> None: ...
    def io_binding(self) -> IOBinding: ...
    def run_with_iobinding(self, iobinding: IOBinding) -> None: ...
    def get_inputs(self) -> list[NodeArg]: ...
    def get_providers(self) -> list[str]: ...
    def get_outputs(self) -> list[NodeArg]: ...
    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Sequences come as lists and maps as dicts; the networks that qcc runs give tensors."""
