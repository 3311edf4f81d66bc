"""What the tests of the IR share: small ONNX models, programs from text, and ONNX Runtime as the judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import onnxruntime
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from qcc.ir import attributes as attr
from qcc.ir import types
from qcc.ir.program import Program
from qcc.ir.text import parse
from qcc.ir.weights import WeightStore

Port = tuple[int, Sequence[types.Dim] | None]
"""Element type (a number of `TensorProto`) and dimensions of an input or output."""

Feeds = Mapping[str, np.ndarray]


def floats(*dims: types.Dim) -> Port:
    """A float32 tensor."""
    return TensorProto.FLOAT, dims


def onnx_graph(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Port],
    outputs: Mapping[str, Port],
    weights: Feeds | None = None,
) -> GraphProto:
    """A graph with initializers `weights`."""
    initializers = [attr.from_array(array, name) for name, array in (weights or {}).items()]
    return helper.make_graph(list(nodes), "graph", _ports(inputs), _ports(outputs), initializers)


def onnx_model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Port],
    outputs: Mapping[str, Port],
    weights: Feeds | None = None,
    *,
    opset: int = 21,
    domains: Mapping[str, int] | None = None,
    functions: Sequence[object] = (),
) -> ModelProto:
    """A model at an opset of the standard domain, with further `domains`."""
    imports = [helper.make_opsetid(domain, version) for domain, version in {"": opset, **(domains or {})}.items()]
    graph = onnx_graph(nodes, inputs, outputs, weights)
    ir_version = {23: 11, 24: 12, 25: 13, 26: 13}.get(opset, 10)
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=list(functions))


def _ports(ports: Mapping[str, Port]) -> list[ValueInfoProto]:
    return [helper.make_tensor_value_info(name, element, dims) for name, (element, dims) in ports.items()]


def run_model(model: ModelProto, feeds: Feeds) -> list[np.ndarray]:
    """What ONNX Runtime computes, unoptimized, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


def program(
    inputs: Mapping[str, str], body: str, results: Mapping[str, str], weights: Feeds | None = None, *, opset: int = 21
) -> Program:
    """The program of a function whose `inputs` and `results` are SSA names with their types in IR text."""
    store = WeightStore()
    for name, array in (weights or {}).items():
        store[name] = array
    arguments = ", ".join(f'%{name}: {type_} {{onnx.name = "{name}"}}' for name, type_ in inputs.items())
    returned = ", ".join(f'{type_} {{onnx.name = "{name}"}}' for name, type_ in results.items())
    text = f"""
builtin.module attributes {{onnx.opset = {{"" = {opset} : i64, "com.microsoft" = 1 : i64}}}} {{
  func.func @main({arguments}) -> ({returned}) {{
    {body}
    func.return {", ".join(f"%{name}" for name in results)} : {", ".join(results.values())}
  }}
}}"""
    return Program(parse(text), store)


def bits_of(array: np.ndarray) -> bytes:
    """The bytes of an array, with every NaN made the same."""
    if array.dtype.kind == "O":
        return repr(array.tolist()).encode()
    if array.dtype.kind in "fc" or array.dtype.name.startswith(("float", "bfloat")):
        if array.dtype == ml_dtypes.float4_e2m1fn:
            return array.tobytes()
        with np.errstate(invalid="ignore"):
            array = np.where(np.isnan(array), np.array(np.nan, array.dtype), array)
    return array.tobytes()


def same_array(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal dtype, shape and bits, any NaN counting as any other."""
    return left.dtype == right.dtype and left.shape == right.shape and bits_of(left) == bits_of(right)
