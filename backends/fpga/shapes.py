"""Write the known types of inner values into an ONNX model: hardware tools size buffers by them."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, ValueInfoProto
from xdsl.ir import SSAValue

from qcc.ir import types


def add_shapes(model: ModelProto, names: Mapping[SSAValue, str]) -> None:
    """A value_info for every value that a node gives and that is no output."""
    made = {o for node in model.graph.node for o in node.output} - {o.name for o in model.graph.output}
    for value, name in names.items():
        proto = types.to_proto(value.type)
        if name in made and proto.WhichOneof("value") is not None:
            info = ValueInfoProto(name=name)
            info.type.CopyFrom(proto)
            model.graph.value_info.append(info)
