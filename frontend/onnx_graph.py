"""An ONNX graph as IR operations, node by node: the inverse of `qcc.ir.emit_onnx`."""

from __future__ import annotations

import json
import re

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto
from xdsl.dialects.builtin import ArrayAttr, DictionaryAttr, IntegerAttr, ModuleOp, StringAttr
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Attribute, Block, Operation, Region, SSAValue
from xdsl.utils.exceptions import VerifyException

from qcc.ir import attributes as attr
from qcc.ir import types
from qcc.ir.dialects.graph_op import Yield
from qcc.ir.dialects.onnx import OPSET, OnnxOp, operator
from qcc.ir.dialects.q import Weight
from qcc.ir.dialects.schema import DIALECTS
from qcc.ir.emit_onnx import METADATA
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.infer import infer_types
from qcc.ir.program import NAME, Program
from qcc.ir.text import first_line
from qcc.ir.weights import WeightStore

_INLINE_ELEMENTS = 16
_LONGEST_REASON = 300


def build_program(model: ModelProto, store: WeightStore, lifted: dict[str, str], name: str) -> Program:
    """The program of a checked model. `lifted` maps graph inputs that stand for weights to their names in the store."""
    builder = _Builder(model.graph, store, lifted)
    function = builder.function()
    opsets = {o.domain: IntegerAttr(o.version, attr.I64) for o in model.opset_import if o.domain in DIALECTS}
    attributes: dict[str, Attribute] = {OPSET: DictionaryAttr(opsets)}
    if model.metadata_props:
        attributes[METADATA] = StringAttr(json.dumps({p.key: p.value for p in model.metadata_props}))
    program = Program(ModuleOp([function], attributes), store)
    try:
        infer_types(program.module)
        program.module.verify()
    except VerifyException as error:
        reason = first_line(error)
        if len(reason) > _LONGEST_REASON:
            reason = f"{reason[:_LONGEST_REASON]} ..."
        raise BadInput(
            f"{name}: {reason}", hint="the model breaks the ONNX specification: check it with onnx.checker"
        ) from error
    return program


class _Builder:
    def __init__(self, graph: GraphProto, store: WeightStore, lifted: dict[str, str]) -> None:
        self.graph = graph
        self.store = store
        self.lifted = lifted
        self.types: dict[str, Attribute] = {}
        self.node_names: set[str] = {""}

    def function(self) -> FuncOp:
        graph = self.graph
        inputs = [i for i in graph.input if i.name not in self.lifted]
        self._note_types(graph)
        block = Block(arg_types=[types.from_proto(i.type) for i in inputs])
        scope: dict[str, SSAValue] = {}
        for argument, info in zip(block.args, inputs, strict=True):
            if isinstance(argument.type, types.UnknownType):
                raise BadInput(f"graph input {info.name!r} has no element type", hint="export the model again")
            argument.name_hint = _hint(info.name)
            scope[info.name] = argument
        for name, key in self.lifted.items():
            self._add_weight(block, scope, name, key)
        outputs = self._fill(block, graph, scope)
        block.add_op(ReturnOp(*outputs))
        _sink_constants(block)
        return FuncOp(
            "main",
            ([a.type for a in block.args], [v.type for v in outputs]),
            Region(block),
            arg_attrs=_ports(inputs),
            res_attrs=_ports(list(graph.output)),
        )

    def _note_types(self, graph: GraphProto) -> None:
        for info in (*graph.value_info, *graph.output):
            if info.type.WhichOneof("value") is not None:
                self.types[info.name] = types.from_proto(info.type)

    def _fill(self, block: Block, graph: GraphProto, scope: dict[str, SSAValue]) -> list[SSAValue]:
        """Append the nodes of `graph`; gives its outputs."""
        if graph.sparse_initializer:
            raise NotSupported(f"sparse initializer {graph.sparse_initializer[0].values.name!r}", hint="store it dense")
        for tensor in graph.initializer:
            self._add_constant(block, scope, tensor.name, attr.to_array(tensor))
        for node in graph.node:
            self._add_node(block, scope, node)
        missing = [o.name for o in graph.output if o.name not in scope]
        if missing:
            raise BadInput(
                f"graph output {missing[0]!r} is computed by no node", hint="the graph is cyclic or incomplete"
            )
        return [scope[o.name] for o in graph.output]

    def _add_weight(self, block: Block, scope: dict[str, SSAValue], name: str, key: str) -> None:
        weight = Weight(key, types.numpy_type(self.store[key]))
        weight.result.name_hint = _hint(name)
        scope[name] = weight.result
        block.add_op(weight)

    def _add_constant(self, block: Block, scope: dict[str, SSAValue], name: str, array: np.ndarray) -> None:
        if array.size > _INLINE_ELEMENTS and array.dtype != np.object_:
            self._add_weight(block, scope, name, self.store.add(name, array))
            return
        op = operator("onnx", "Constant")([], [types.numpy_type(array)], {"value": array})
        op.results[0].name_hint = _hint(name)
        scope[name] = op.results[0]
        block.add_op(op)

    def _add_node(self, block: Block, scope: dict[str, SSAValue], node: NodeProto) -> None:
        constant = _constant(node)
        if constant is not None:
            self._add_constant(block, scope, node.output[0], constant)
            return
        where = f"node {node.name!r} ({node.op_type})"
        operands: list[SSAValue | None] = []
        for name in node.input:
            if name and name not in scope:
                raise BadInput(
                    f"{where}: input {name!r} is computed by no earlier node", hint="the graph is cyclic or incomplete"
                )
            operands.append(scope[name] if name else None)
        attributes: dict[str, object] = {}
        graphs: list[tuple[str, GraphProto]] = []
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                graphs.append((attribute.name, attribute.g))
            else:
                attributes[attribute.name] = attr.from_proto(attribute, where)
        regions = [self._region(graph, scope) for _, graph in sorted(graphs, key=lambda g: g[0])]
        result_types = [self.types.get(name, types.UnknownType()) for name in node.output]
        op_class: type[OnnxOp] = operator(DIALECTS[node.domain], node.op_type)
        op = op_class(operands, result_types, attributes, node=self._unique(node), regions=regions)
        for result, name in zip(op.results, node.output, strict=True):
            if name:
                result.name_hint = _hint(name)
                scope[name] = result
        block.add_op(op)

    def _region(self, graph: GraphProto, outer: dict[str, SSAValue]) -> Region:
        self._note_types(graph)
        block = Block(arg_types=[types.from_proto(i.type) for i in graph.input])
        scope = dict(outer)
        for argument, info in zip(block.args, graph.input, strict=True):
            argument.name_hint = _hint(info.name)
            scope[info.name] = argument
        block.add_op(Yield(self._fill(block, graph, scope)))
        return Region(block)

    def _unique(self, node: NodeProto) -> str:
        name, count = node.name or (f"{node.op_type}:{node.output[0]}" if node.output else node.op_type), 0
        base = name
        while name in self.node_names:
            count += 1
            name = f"{base}.{count}"
        self.node_names.add(name)
        return name


def _sink_constants(block: Block) -> None:
    """Move weights and constants down to their first reader, so that the text reads layer by layer."""
    place = {op: index for index, op in enumerate(block.ops)}
    for op in [op for op in block.ops if isinstance(op, Weight) or op.name == "onnx.Constant"]:
        readers = [_ancestor_in(block, use.operation) for use in op.results[0].uses]
        if readers:
            op.detach()
            block.insert_op_before(op, min(readers, key=lambda reader: place[reader]))


def _ancestor_in(block: Block, op: Operation) -> Operation:
    """The operation of `block` that is `op` or holds it in a region."""
    while op.parent is not block:
        parent = op.parent_op()
        assert parent is not None
        op = parent
    return op


def _constant(node: NodeProto) -> np.ndarray | None:
    """The array of a Constant node in any of its forms; None for other nodes."""
    if node.op_type != "Constant" or node.domain or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    match attribute.name:
        case "value":
            return attr.to_array(attribute.t)
        case "value_int":
            return np.array(attribute.i, np.int64)
        case "value_ints":
            return np.array(attribute.ints, np.int64)
        case "value_float":
            return np.array(attribute.f, np.float32)
        case "value_floats":
            return np.array(attribute.floats, np.float32)
        case "value_string":
            return np.array(attribute.s, dtype=np.object_)
        case "value_strings":
            return np.array(list(attribute.strings), dtype=np.object_)
        case other:
            raise NotSupported(f"node {node.name!r}: a Constant given as {other}", hint="store it as a dense tensor")


def _ports(values: list[ValueInfoProto]) -> ArrayAttr[DictionaryAttr]:
    return ArrayAttr([DictionaryAttr({NAME: attr.text_attribute(v.name)}) for v in values])


def _hint(name: str) -> str:
    hint = re.sub(r"[^A-Za-z0-9_$.-]", "_", name)
    return hint if re.match(r"[A-Za-z_$.-]", hint) else f"_{hint}"
