"""External data of an ONNX file: initializers are mapped where they lie; no path leads out of the model's folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from qcc.ir import attributes as attr
from qcc.ir import types
from qcc.ir.errors import BadInput
from qcc.ir.weights import WeightStore


def map_external(model: ModelProto, path: Path, store: WeightStore) -> None:
    """Map the external initializers of the main graph into `store`; the few external tensors elsewhere are read in.

    `BadInput` for files that are missing, too short or outside the folder of `path`.
    """
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            store[tensor.name] = _external_array(tensor, path)
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    for tensor in tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(attr.from_array(_external_array(tensor, path), tensor.name))


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model: initializers, and attributes of nodes, in subgraphs and local functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for attribute in (a for node in nodes for a in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _graph_tensors(graph)


def _external_array(tensor: TensorProto, path: Path) -> np.ndarray:
    folder = path.parent.resolve()
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    try:
        file = (folder / location).resolve()
        found = file.is_file()
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path}: the external data of tensor {tensor.name!r} cannot be at {location[:80]!r}",
            hint="the file is damaged: export it again",
        ) from error
    if not file.is_relative_to(folder):
        raise BadInput(
            f"{path}: tensor {tensor.name!r} points outside the model's folder: {location!r}",
            hint="keep external data beside the model",
        )
    if not found:
        raise BadInput(
            f"{path}: the external data file {location!r} of tensor {tensor.name!r} is missing",
            hint=f"put it into {folder}",
        )
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
    except ValueError as error:
        raise BadInput(f"{path}: tensor {tensor.name!r}: its external offset or length is not a number") from error
    if tensor.data_type == TensorProto.STRING:
        raise BadInput(
            f"{path}: tensor {tensor.name!r} is external text, which ONNX does not allow",
            hint="store it inside the model",
        )
    element, shape = types.element_of(tensor.data_type), tuple(tensor.dims)
    expected, present = -(-math.prod(shape) * element.bits // 8), file.stat().st_size
    if offset < 0 or any(d < 0 for d in shape) or offset + expected > present or length not in (-1, expected):
        raise BadInput(
            f"{path}: tensor {tensor.name!r} needs {expected} bytes at {offset} of {file.name}, which has {present}",
            hint="the data file is truncated or of another model",
        )
    if not expected:
        return np.empty(shape, element.numpy)
    if element.bits >= 8:
        return np.memmap(file, element.numpy, "r", offset, shape or (1,)).reshape(shape)
    packed = np.memmap(file, np.uint8, "r", offset, (expected,)).tobytes()
    return attr.to_array(TensorProto(data_type=tensor.data_type, dims=shape, raw_data=packed))
