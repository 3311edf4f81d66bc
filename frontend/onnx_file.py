"""The ONNX door: a file, or a `ModelProto`, to a `Program`.

The road: look at the first bytes, parse, lift large weights out of the graph (mapped where they lie in external files),
inline local functions, raise old opsets with the version converter, infer shapes, build the module, verify it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from qcc.ir import attributes as attr
from qcc.ir import types
from qcc.ir.dialects.schema import DIALECTS, latest_opset, lookup
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.program import Program
from qcc.ir.weights import WeightStore

from .onnx_external import map_external, tensors
from .onnx_graph import build_program
from .onnx_guard import all_nodes, check, check_functions, check_graph, without_long_vectors, write_defaults
from .onnx_opset import raise_opset

OLDEST_OPSET = 7
LOWEST_OPSET = 21
"""Older models are raised to this opset: the first with blocked and 4-bit quantization."""
HIGHEST_OPSET = 26
"""ONNX Runtime 1.31 runs no newer one."""
_LIFT_BYTES = 2048

_MAGIC = (
    (b"PK\x03\x04", "a zip archive (a .pt2 or .npz file, or a packed model)"),
    (b"\x80\x02", "a Python pickle, which qcc never loads"),
    (b"\x80\x03", "a Python pickle, which qcc never loads"),
    (b"\x80\x04", "a Python pickle, which qcc never loads"),
    (b"\x80\x05", "a Python pickle, which qcc never loads"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
)


@dataclass(frozen=True)
class Shapes:
    """What the user says about inputs: whole shapes by name, and names for single axes."""

    fixed: dict[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])
    symbols: dict[str, dict[int, str]] = field(default_factory=dict[str, dict[int, str]])


_AS_IS = Shapes()


def read(path: Path, *, shapes: Shapes = _AS_IS) -> Program:
    """The program of an ONNX file, with its external data mapped. `BadInput` or `NotSupported` say what is wrong."""
    model = _parse(path)
    store = WeightStore()
    map_external(model, path, store)
    return from_model(model, store, str(path), shapes=shapes)


def from_model(
    model: ModelProto,
    store: WeightStore | None = None,
    name: str = "the model",
    *,
    lowest_opset: int = LOWEST_OPSET,
    shapes: Shapes = _AS_IS,
) -> Program:
    """The program of a `ModelProto`. The proto is taken over: its weights move to the store."""
    store = store if store is not None else WeightStore()
    _check_self_contained(model, name)
    _check_opsets(model, name)
    lifted = _lift_weights(model, store)
    _check_structure(model, name)
    if model.functions:
        model = _inline_functions(model, name)
    check_graph(model.graph, name)
    model = raise_opset(model, lowest_opset, name)
    _apply_shapes(model.graph, shapes, set(lifted), name)
    _check_domains(model.graph, {o.domain: o.version for o in model.opset_import}, name)
    try:
        model = without_long_vectors(model, lambda m: onnx.shape_inference.infer_shapes(m, data_prop=True))
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise BadInput(
            f"{name}: shapes do not fit: {_line(error)}", hint="check the model with onnx.checker"
        ) from error
    program = build_program(model, store, lifted, name)
    _check_values(store, name)
    return program


def _apply_shapes(graph: GraphProto, shapes: Shapes, lifted: set[str], name: str) -> None:
    """Set the dimensions that the user named; inference finds the others anew."""
    inputs = {i.name: i.type.tensor_type for i in graph.input if i.name not in lifted}
    for key, wanted in [*shapes.fixed.items(), *shapes.symbols.items()]:
        if key not in inputs:
            raise BadInput(f"{name}: no input is called {key!r}", hint=f"its inputs: {', '.join(inputs)}")
        dims = inputs[key].shape.dim
        if not inputs[key].HasField("shape") and not isinstance(wanted, dict):
            for _ in wanted:
                dims.add()
        pairs = wanted.items() if isinstance(wanted, dict) else enumerate(wanted)
        if (not isinstance(wanted, dict) and len(wanted) != len(dims)) or any(
            not -len(dims) <= axis < len(dims) for axis, _ in pairs
        ):
            raise BadInput(f"{name}: input {key!r} has {len(dims)} axes, which {wanted} does not fit")
        for axis, value in wanted.items() if isinstance(wanted, dict) else enumerate(wanted):
            dim = dims[axis]
            if isinstance(value, int) and dim.HasField("dim_value") and dim.dim_value not in (-1, value):
                raise BadInput(
                    f"{name}: axis {axis} of input {key!r} is fixed at {dim.dim_value}, not {value}",
                    hint="export the model with that axis dynamic",
                )
            dim.Clear()
            if isinstance(value, int):
                dim.dim_value = value
            else:
                dim.dim_param = value
    if shapes.fixed or shapes.symbols:
        del graph.value_info[:]
        for output in graph.output:
            if output.type.HasField("tensor_type"):
                output.type.tensor_type.ClearField("shape")


def _parse(path: Path) -> ModelProto:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}", hint="give the path of a model file") from error
    if not size:
        raise BadInput(f"{path} is empty", hint="copy or export the model again")
    for magic, what in _MAGIC:
        if head.startswith(magic):
            raise BadInput(
                f"{path} is {what}, not an ONNX model", hint="give an .onnx file, or use the file's own extension"
            )
    try:
        model = onnx.load_model(os.fspath(path), load_external_data=False)  # pyright: ignore[reportUnknownMemberType]
    except (DecodeError, ValueError, OSError) as error:
        raise BadInput(
            f"{path}: not an ONNX model, or truncated ({_line(error)})", hint="copy or export the model again"
        ) from error
    if not model.ir_version or not (model.graph.node or model.graph.output):
        raise BadInput(f"{path}: not an ONNX model: it has no graph", hint="copy or export the model again")
    check(model, str(path))
    return model


def _check_self_contained(model: ModelProto, name: str) -> None:
    for tensor in tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise BadInput(
                f"{name}: tensor {tensor.name!r} lies in a file",
                hint="give the path of the model, or load its external data first",
            )


def _check_opsets(model: ModelProto, name: str) -> None:
    if not any(o.domain in ("", "ai.onnx") for o in model.opset_import):
        model.opset_import.append(
            helper.make_opsetid(
                "", LOWEST_OPSET if not model.opset_import else 1 if model.ir_version < 3 else LOWEST_OPSET
            )
        )
    for entry in model.opset_import:
        if entry.domain == "ai.onnx":
            entry.domain = ""
        if entry.domain:
            if entry.domain in DIALECTS and not 0 < entry.version <= latest_opset(entry.domain):
                raise NotSupported(
                    f"{name}: version {entry.version} of domain {entry.domain} is not known",
                    hint=f"export it at a version from 1 to {latest_opset(entry.domain)}",
                )
            continue
        if entry.version < OLDEST_OPSET:
            raise NotSupported(
                f"{name}: opset {entry.version} is older than {OLDEST_OPSET}", hint="export it at a newer opset"
            )
        if entry.version > HIGHEST_OPSET:
            raise NotSupported(
                f"{name}: opset {entry.version} is newer than {HIGHEST_OPSET}, the last that ONNX Runtime runs",
                hint="export it at an older opset",
            )
    for node in all_nodes(model.graph.node):
        if node.domain == "ai.onnx":
            node.domain = ""


def _check_structure(model: ModelProto, name: str) -> None:
    try:
        onnx.checker.check_model(model)  # pyright: ignore[reportUnknownMemberType]
    except onnx.checker.ValidationError as error:
        raise BadInput(
            f"{name}: not a valid ONNX graph: {_line(error)}", hint="check the model with onnx.checker"
        ) from error


def _inline_functions(model: ModelProto, name: str) -> ModelProto:
    check_functions(model, name)
    write_defaults(model)
    try:
        model = onnx.inliner.inline_local_functions(model)
    except (onnx.checker.ValidationError, RuntimeError) as error:
        raise BadInput(
            f"{name}: its local functions cannot be inlined: {_line(error)}", hint="check the model with onnx.checker"
        ) from error
    _check_structure(model, name)
    return model


def _check_domains(graph: GraphProto, opsets: dict[str, int], name: str) -> None:
    for node in all_nodes(graph.node):
        if node.domain not in DIALECTS:
            known = ", ".join(d or "ai.onnx" for d in DIALECTS)
            raise NotSupported(
                f"{name}: node {node.name!r}: operator {node.op_type!r} is of the unknown domain {node.domain!r}",
                hint=f"known domains: {known}",
            )
        if lookup(node.domain, node.op_type, opsets.get(node.domain, latest_opset(node.domain))) is None:
            domain, version = node.domain or "ai.onnx", opsets.get(node.domain, "none")
            raise NotSupported(
                f"{name}: node {node.name!r}: {domain} has no operator {node.op_type!r} at opset {version}"
            )


def _lift_weights(model: ModelProto, store: WeightStore) -> dict[str, str]:
    """Move large tensors of the top graph to the store and leave graph inputs in their place; graph name -> store name.

    As inputs they cost nothing to the checker, the version converter, the inliner and inference, and cannot grow past
    2 GiB.
    """
    graph, lifted = model.graph, dict[str, str]()
    initialized = {t.name for t in graph.initializer}
    for value in [i for i in graph.input if i.name in initialized]:
        graph.input.remove(value)
        model.ir_version = max(model.ir_version, 4)  # version 3 wants every initializer among the inputs

    def lift(name: str, array: np.ndarray, key: str) -> None:
        lifted[name] = key
        graph.input.append(helper.make_tensor_value_info(name, types.element_of(array.dtype).onnx, array.shape))

    kept: list[TensorProto] = []
    for tensor in graph.initializer:
        if tensor.name in store:
            lift(tensor.name, store[tensor.name], tensor.name)
        elif _bytes(tensor) > _LIFT_BYTES:
            array = _to_array(tensor)
            lift(tensor.name, array, store.add(tensor.name, array))
        else:
            kept.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    nodes: list[NodeProto] = []
    for node in graph.node:
        tensor = _constant_tensor(node)
        if tensor is None or _bytes(tensor) <= _LIFT_BYTES:
            nodes.append(node)
            continue
        array = _to_array(tensor)
        lift(node.output[0], array, store.add(node.output[0], array))
    if len(nodes) != len(graph.node):
        del graph.node[:]
        graph.node.extend(nodes)
    return lifted


def _constant_tensor(node: NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or node.domain:
        return None
    tensor = next((a.t for a in node.attribute if a.name == "value"), None)
    return tensor if tensor is not None and tensor.data_type != TensorProto.STRING else None


def _bytes(tensor: TensorProto) -> int:
    if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        return 0
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count * types.element_of(tensor.data_type).numpy.itemsize


def _to_array(tensor: TensorProto) -> np.ndarray:
    try:
        return attr.to_array(tensor)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadInput(
            f"tensor {tensor.name!r}: its data does not fit its shape {list(tensor.dims)}",
            hint="the file is damaged: export it again",
        ) from error


def _check_values(store: WeightStore, name: str) -> None:
    """Weights must be finite: a NaN would spread through every scale."""
    for key in store:
        array = store[key]
        if not array.dtype.name.startswith(("float", "bfloat")):
            continue
        flat = array.reshape(-1)
        for begin in range(0, flat.size, 1 << 22):
            if not np.isfinite(flat[begin : begin + (1 << 22)]).all():
                where = begin + int(np.argmin(np.isfinite(flat[begin : begin + (1 << 22)])))
                index = [int(i) for i in np.unravel_index(where, array.shape)]
                raise BadInput(
                    f"{name}: weight {key!r} holds {array[tuple(index)]} at {index}",
                    hint="mend the checkpoint: qcc quantizes finite weights only",
                )


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
