"""A module of standard and contrib operators back to an ONNX model, rebuilt from the IR alone.

Large weights are not copied: the model refers to them as external data, and the caller says where they lie (`embed`,
`refer`), or injects them into a session.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from xdsl.dialects.builtin import DictionaryAttr, IntegerAttr
from xdsl.dialects.func import ReturnOp
from xdsl.ir import Attribute, Block, SSAValue

from . import attributes as attr
from . import types
from .dialects.graph_op import Yield
from .dialects.onnx import OPSET, OnnxOp
from .dialects.q import Weight
from .errors import NotSupported
from .program import Program
from .weights import Extent, WeightStore

IR_VERSION = 10
"""Written where the opset allows it; newer opsets need 11 to 13 (ONNX Runtime 1.31 reads up to 13)."""

METADATA = "onnx.metadata"
_INLINE_BYTES = 1024


@dataclass
class EmittedModel:
    """An ONNX model whose large initializers are still to be placed: initializer name -> name in the weight store."""

    proto: ModelProto
    external: dict[str, str] = field(default_factory=dict[str, str])
    value_names: dict[SSAValue, str] = field(default_factory=dict[SSAValue, str])

    def embed(self, store: WeightStore) -> ModelProto:
        """The model with every weight inside it (below protobuf's 2 GiB)."""
        for tensor in self.proto.graph.initializer:
            if tensor.name in self.external:
                tensor.CopyFrom(attr.from_array(store[self.external[tensor.name]], tensor.name))
        return self.proto

    def refer(self, location: str, extents: dict[str, Extent]) -> ModelProto:
        """The model with every large weight in the file `location` beside it."""
        for tensor in self.proto.graph.initializer:
            if tensor.name in self.external:
                extent = extents[self.external[tensor.name]]
                _set_external(tensor, location, extent)
        return self.proto


def _set_external(tensor: TensorProto, location: str, extent: Extent) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", str(extent.offset)), ("length", str(extent.length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def emit(program: Program, *, also: tuple[SSAValue, ...] = ()) -> EmittedModel:
    """The ONNX model of a program without `q` operations other than `q.weight`; `also` are further values to return."""
    return _Emitter(program).emit(also)


class _Emitter:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.names: dict[SSAValue, str] = {}
        self.taken: set[str] = set()
        self.model = EmittedModel(ModelProto())

    def emit(self, also: tuple[SSAValue, ...]) -> EmittedModel:
        program, proto = self.program, self.model.proto
        opsets = {"": types_opset(program, "")}
        graph = proto.graph
        graph.name = "main"
        inputs, outputs = program.inputs(), program.results()
        self.taken.update(p.name for p in (*inputs, *outputs))
        for argument, port in zip(program.body.args, inputs, strict=True):
            self.names[argument] = port.name
            graph.input.append(_value_info(port.name, argument.type))
        renamed = self._name_outputs([p.name for p in outputs])
        self._emit_block(program.body, graph, opsets)
        for name, (value, port) in zip(renamed, zip(program.outputs, outputs, strict=True), strict=True):
            if name:
                graph.node.append(NodeProto(op_type="Identity", input=[self._name(value)], output=[name]))
            graph.output.append(_value_info(port.name, value.type))
        for value in also:
            if self._name(value) not in {o.name for o in graph.output}:
                graph.output.append(_value_info(self._name(value), value.type))
        for domain, version in opsets.items():
            proto.opset_import.append(helper.make_opsetid(domain, version))
        proto.ir_version = _ir_version(opsets[""])
        proto.producer_name = "qcc"
        metadata = program.module.attributes.get(METADATA)
        if metadata is not None:
            helper.set_model_props(proto, json.loads(attr.text_of(metadata)))
        self.model.value_names = self.names
        return self.model

    def _name_outputs(self, wanted: list[str]) -> list[str]:
        """Let each returned value carry its output's name where it can; gives the names that need an Identity."""
        pending: list[str] = []
        for value, name in zip(self.program.outputs, wanted, strict=True):
            if value in self.names:
                pending.append("" if self.names[value] == name else name)
            else:
                self.names[value] = name
                pending.append("")
        return pending

    def _name(self, value: SSAValue) -> str:
        if value not in self.names:
            base = value.name_hint or "v"
            name, count = base, 0
            while name in self.taken:
                count += 1
                name = f"{base}_{count}"
            self.taken.add(name)
            self.names[value] = name
        return self.names[value]

    def _emit_block(self, block: Block, graph: GraphProto, opsets: dict[str, int]) -> None:
        for op in block.ops:
            match op:
                case Weight() if op.result.first_use is None:
                    pass
                case Weight():  # of the top graph always, where `embed` and `refer` find it: subgraphs see it
                    self.model.proto.graph.initializer.append(self._initializer(op))
                case OnnxOp(op_type="Constant") if isinstance(op.properties.get("value"), attr.TensorAttr):
                    tensor = op.properties["value"]
                    assert isinstance(tensor, attr.TensorAttr)
                    graph.initializer.append(attr.from_array(tensor.array, self._name(op.results[0])))
                case OnnxOp():
                    graph.node.append(self._node(op, opsets))
                case ReturnOp() | Yield():
                    pass
                case _:
                    raise NotSupported(f"{op.name} has no ONNX form", hint="expand the q dialect first")

    def _node(self, op: OnnxOp, opsets: dict[str, int]) -> NodeProto:
        if op.domain not in opsets:
            opsets[op.domain] = types_opset(self.program, op.domain)
        node = NodeProto(op_type=op.op_type, domain=op.domain, name=op.node)
        node.input.extend("" if v is None else self._name(v) for v in op.slots)
        node.output.extend("" if _is_unused_optional(op, i) else self._name(r) for i, r in enumerate(op.results))
        node.attribute.extend(attr.to_proto(name, value) for name, value in op.parameters.items())
        for name, region in zip(op.graph_names(), op.regions, strict=False):
            node.attribute.append(helper.make_attribute(name, self._subgraph(name, region.block, opsets)))
        return node

    def _subgraph(self, name: str, block: Block, opsets: dict[str, int]) -> GraphProto:
        graph = GraphProto(name=name)
        for argument in block.args:
            graph.input.append(_value_info(self._name(argument), argument.type))
        self._emit_block(block, graph, opsets)
        last = block.last_op
        inside = {r for op in block.ops if not isinstance(op, Weight) for r in op.results}
        seen: set[str] = set()
        for value in last.operands if last is not None else ():
            name = self._name(value)
            if value not in inside or name in seen:
                outer, name = name, self._fresh(f"{name}_out")
                graph.node.append(NodeProto(op_type="Identity", input=[outer], output=[name]))
            seen.add(name)
            graph.output.append(_value_info(name, value.type))
        return graph

    def _fresh(self, base: str) -> str:
        name, count = base, 0
        while name in self.taken:
            count += 1
            name = f"{base}_{count}"
        self.taken.add(name)
        return name

    def _initializer(self, op: Weight) -> TensorProto:
        array = self.program.weights[op.weight]
        name, element, dims = self._name(op.result), types.element_type(op.result.type), types.dims_of(op.result.type)
        shape = [d for d in dims or () if isinstance(d, int)]
        if types.element_of(element).numpy != array.dtype or tuple(shape) != array.shape:
            array = array.view(types.element_of(element).numpy).reshape(shape)  # the same bytes, read in a second way
        narrow = types.element_of(array.dtype).bits < 8  # the store holds one a byte, an ONNX file several
        if array.nbytes <= _INLINE_BYTES or narrow:
            return attr.from_array(array, name)
        tensor = TensorProto(name=name, data_type=types.element_of(array.dtype).onnx, dims=array.shape)
        _set_external(tensor, "weights", Extent(0, array.nbytes))
        self.model.external[name] = op.weight
        return tensor


def types_opset(program: Program, domain: str) -> int:
    """The version of a domain that the module imports (1 for a domain it does not mention)."""
    table = program.module.attributes.get(OPSET)
    version = table.data.get(domain) if isinstance(table, DictionaryAttr) else None
    return version.value.data if isinstance(version, IntegerAttr) else 1


def _ir_version(opset: int) -> int:
    return max(IR_VERSION, {23: 11, 24: 12, 25: 13, 26: 13}.get(opset, IR_VERSION))


def _is_unused_optional(op: OnnxOp, index: int) -> bool:
    return (
        index >= op.schema.arity_out[0]
        and op.results[index].first_use is None
        and op.schema.output_at(index).option == "optional"
    )


def _value_info(name: str, type_: Attribute) -> ValueInfoProto:
    info = ValueInfoProto(name=name)
    proto = types.to_proto(type_)
    if proto.WhichOneof("value") is not None:
        info.type.CopyFrom(proto)
    return info
