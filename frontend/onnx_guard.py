"""What the ONNX libraries are spared, because they answer it not with errors of their own, but with others or a crash.

Text that is not UTF-8; tensors whose data is not what their type and shape say; graph outputs that nothing computes;
counts out of range; local functions that call themselves; vectors so long that to write out each item takes all memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto, ValueInfoProto, helper

from qcc.ir import attributes as attr
from qcc.ir import types
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.infer import LONGEST_VECTOR

_MOST_AXES = 64
_MOST_ITEMS = 1 << 48
_MOST_NODES = 1_000_000
_DEEPEST_CALL = 100
_INLINE = "inline the functions with onnx.inliner first"
_DAMAGED = "the file is damaged: copy or export it again"


def check(model: ModelProto, name: str) -> None:
    """Raise `BadInput` unless all text is readable, every shape possible, and every tensor as long as its shape."""
    for message, fields in _messages(model):
        _check_text(message, fields, name)
        if isinstance(message, TensorProto):
            where = f"{name}: tensor {message.name!r}"
            _check_shape(message, where)
            if message.data_location != TensorProto.EXTERNAL:
                _check_data(message, where)


def check_functions(model: ModelProto, name: str) -> None:
    """Raise where inlining local functions would not end: one calls itself, or they call each other without measure."""
    bodies = {_called(f.domain, f.name, f.overload): f.node for f in model.functions}
    sizes: dict[tuple[str, str, str], int] = {}

    def size(nodes: Iterable[NodeProto], callers: list[tuple[str, str, str]]) -> int:
        total = 0
        for node in all_nodes(nodes):
            key = _called(node.domain, node.op_type, node.overload)
            if key in callers:
                raise BadInput(f"{name}: local function {node.op_type!r} calls itself", hint="export the model again")
            if key in bodies and key not in sizes:
                if len(callers) == _DEEPEST_CALL:
                    raise NotSupported(f"{name}: local functions call each other {_DEEPEST_CALL} deep", hint=_INLINE)
                sizes[key] = size(bodies[key], [*callers, key])
            total += 1 + sizes.get(key, 0)
        return total

    nodes = size(model.graph.node, [])
    if nodes > _MOST_NODES:
        raise NotSupported(f"{name}: its local functions stand for {nodes} nodes, over {_MOST_NODES}", hint=_INLINE)


def write_defaults(model: ModelProto) -> None:
    """Give calls of local functions the attributes they leave to their defaults: the inliner forgets those."""
    defaults = {_called(f.domain, f.name, f.overload): f.attribute_proto for f in model.functions}
    for nodes in (model.graph.node, *(f.node for f in model.functions)):
        for node in all_nodes(nodes):
            given = {a.name for a in node.attribute}
            missing = defaults.get(_called(node.domain, node.op_type, node.overload), ())
            node.attribute.extend(a for a in missing if a.name not in given)


def _called(domain: str, op_type: str, overload: str) -> tuple[str, str, str]:
    return ("" if domain == "ai.onnx" else domain, op_type, overload)


def all_nodes(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """The nodes and, after each, those of its subgraphs."""
    found: list[NodeProto] = []
    for node in nodes:
        found.append(node)
        for graph in subgraphs(node):
            found += all_nodes(graph.node)
    return found


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in the attributes of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def check_graph(graph: GraphProto, name: str) -> None:
    """Raise `BadInput` for what the checker overlooks in a graph, and the version converter or inference crashes on."""
    _check_outputs(graph, name)
    _check_counts(graph, name)


def _check_outputs(graph: GraphProto, name: str, outer: frozenset[str] = frozenset()) -> None:
    """Every graph computes what it gives."""
    known = outer.union(
        (i.name for i in graph.input), (t.name for t in graph.initializer), *(n.output for n in graph.node)
    )
    for output in graph.output:
        if output.name not in known:
            raise BadInput(
                f"{name}: graph output {output.name!r} is computed by no node", hint="the graph is incomplete"
            )
    for node in graph.node:
        for inner in subgraphs(node):
            _check_outputs(inner, name, known)


def _check_counts(graph: GraphProto, name: str) -> None:
    """What the libraries index, allocate or divide by is in its range."""
    for node in all_nodes(graph.node):
        ranges = {
            "axis": (-_MOST_AXES, _MOST_AXES),
            "batch_dims": (0, _MOST_AXES),
            "blocksize": (1, 1 << 16),
            "q_num_heads": (1, 1 << 31),
            "kv_num_heads": (1, 1 << 31),
            "num_outputs": (1, len(node.output)),
            "num_scan_inputs": (1, len(node.input)),
        }
        where = f"{name}: node {node.name!r} ({node.op_type})"
        for attribute in node.attribute:
            low, high = ranges.get(attribute.name, (attribute.i, attribute.i))
            if not low <= attribute.i <= high:
                raise BadInput(f"{where}: {attribute.name} is {attribute.i}, not {low} to {high}", hint=_DAMAGED)
        if node.op_type == "SplitToSequence" and not _zero_scalars(graph).isdisjoint(node.input[1:]):
            raise BadInput(f"{where}: splits into pieces of length 0", hint=_DAMAGED)


def _zero_scalars(graph: GraphProto) -> set[str]:
    """The names of constants of one integer, anywhere in the graph, that is 0."""
    nodes = all_nodes(graph.node)
    tensors = [(t.name, t) for g in (graph, *(s for n in nodes for s in subgraphs(n))) for t in g.initializer]
    constants = [(n.output[0], a) for n in nodes if n.op_type == "Constant" and n.output for a in n.attribute]
    tensors += [(output, a.t) for output, a in constants if a.name == "value"]
    whole = (TensorProto.INT32, TensorProto.INT64)
    zeros = {key for key, t in tensors if t.data_type in whole and not t.dims and not attr.to_array(t).any()}
    return zeros.union(output for output, a in constants if a.name == "value_int" and not a.i)


def without_long_vectors(model: ModelProto, run: Callable[[ModelProto], ModelProto]) -> ModelProto:
    """`run(model)`, where for its time no vector has a known length above `LONGEST_VECTOR`."""
    hidden: list[tuple[str, TensorShapeProto.Dimension, int]] = []
    for message, _ in _messages(model):
        if isinstance(message, ValueInfoProto) and len(message.type.tensor_type.shape.dim) == 1:
            dim = message.type.tensor_type.shape.dim[0]
            if dim.dim_value > LONGEST_VECTOR:
                hidden.append((message.name, dim, dim.dim_value))
                dim.ClearField("dim_value")
    result = run(model)
    lengths = {name: length for name, _, length in hidden}
    for value in (*result.graph.input, *result.graph.output):
        if value.name in lengths and len(value.type.tensor_type.shape.dim) == 1:
            value.type.tensor_type.shape.dim[0].dim_value = lengths[value.name]
    for _, dim, length in hidden:
        dim.dim_value = length
    return result


def _messages(message: Message) -> Iterator[tuple[Message, Sequence[tuple[FieldDescriptor, Any]]]]:
    """Every message from `message` down, with the fields that are set. Any: what a value is depends on its field."""
    fields = message.ListFields()
    yield message, fields
    for field, value in fields:
        if field.message_type is not None:
            for item in value if field.is_repeated else (value,):
                yield from _messages(item)


def _check_text(message: Message, fields: Sequence[tuple[FieldDescriptor, Any]], name: str) -> None:
    """Protobuf gives text that is not UTF-8 as bytes."""
    for field, value in fields:
        if field.type == FieldDescriptor.TYPE_STRING and any(
            isinstance(t, bytes) for t in (value if field.is_repeated else (value,))
        ):
            raise BadInput(f"{name}: the {field.name} of a {message.DESCRIPTOR.name} is not UTF-8 text", hint=_DAMAGED)


def _check_shape(tensor: TensorProto, where: str) -> None:
    if tensor.data_type == TensorProto.UNDEFINED or tensor.HasField("segment"):
        raise BadInput(f"{where} has no element type or comes in segments", hint=_DAMAGED)
    dims = tensor.dims
    if len(dims) > _MOST_AXES:
        raise BadInput(f"{where} has {len(dims)} axes; there may be {_MOST_AXES}", hint=_DAMAGED)
    if min(dims, default=0) < 0 or math.prod(max(d, 1) for d in dims) > _MOST_ITEMS:
        raise BadInput(f"{where} has the impossible shape {list(dims)}", hint=_DAMAGED)


def _check_data(tensor: TensorProto, where: str) -> None:
    element, count = types.element_of(tensor.data_type), math.prod(tensor.dims)
    bytes_needed = -(-count * element.bits // 8)
    if tensor.HasField("raw_data"):
        held, needed, unit = len(tensor.raw_data), bytes_needed, "bytes"
    else:
        held, unit = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type))), "items"
        needed = bytes_needed if element.bits < 8 else 2 * count if element.numpy.kind == "c" else count
    if held != needed:
        raise BadInput(
            f"{where} holds {held} {unit} of data where its shape {list(tensor.dims)} needs {needed}", hint=_DAMAGED
        )
