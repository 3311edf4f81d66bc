"""Old opsets raised by the version converter of the onnx package, with what it gets wrong mended or refused."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper

from qcc.ir import attributes as attr
from qcc.ir import types
from qcc.ir.errors import NotSupported

from .onnx_guard import all_nodes, without_long_vectors

_CHANGED = {"Scan": 9, "Hardmax": 13}
"""Operators that mean something else from that opset on, which the converter overlooks."""
_RESIZE = 10
"""The opset that brought Resize in the place of Upsample; from the next one on it says how it maps coordinates."""


def raise_opset(model: ModelProto, lowest: int, name: str) -> ModelProto:
    """The model at opset `lowest` or above; `NotSupported` where it would no longer compute the same."""
    version = next(o.version for o in model.opset_import if not o.domain)
    if version >= lowest:
        return model
    hint = f"export it at opset {lowest} or newer"
    for node in all_nodes(model.graph.node):
        if not node.domain and version < _CHANGED.get(node.op_type, 0):
            raise NotSupported(
                f"{name}: node {node.name!r}: {node.op_type} had another meaning before opset "
                f"{_CHANGED[node.op_type]}, and the model is of opset {version}",
                hint=hint,
            )
    try:
        raised = without_long_vectors(model, lambda m: onnx.version_converter.convert_version(m, lowest))
    except (
        onnx.version_converter.ConvertError,
        onnx.shape_inference.InferenceError,
        RuntimeError,
        ValueError,
        IndexError,
    ) as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise NotSupported(f"{name}: opset {version} could not be raised to {lowest}: {reason}", hint=hint) from error
    for before, after in zip(model.graph.input, raised.graph.input, strict=True):
        if types.from_proto(before.type) != types.from_proto(after.type):
            raise NotSupported(
                f"{name}: raising opset {version} to {lowest} would change input {before.name!r}", hint=hint
            )
    if version <= _RESIZE:
        for node in all_nodes(raised.graph.node):
            if node.op_type == "Resize" and not node.domain:
                _mend_resize(node, raised.graph, version, name)
    return raised


def _mend_resize(node: NodeProto, graph: GraphProto, version: int, name: str) -> None:
    """Write out what Upsample, and Resize at its first opset, meant: `x = i / scale`, rounded up where it shrinks.

    So the ONNX node test `resize_downsample_nearest` of opset 10 has it, and ONNX Runtime.
    """
    rounding = "floor"
    if version == _RESIZE and not any(a.name == "mode" and a.s == b"linear" for a in node.attribute):
        scales = _constant(node.input[2], graph)
        if scales is None or ((scales < 1).any() and (scales > 1).any()):
            raise NotSupported(
                f"{name}: node {node.name!r}: how Resize rounded at opset {_RESIZE} depends on its scales, which are "
                "computed, or both above and below 1",
                hint=f"export it at opset {_RESIZE + 1} or newer",
            )
        rounding = "ceil" if (scales < 1).any() else "floor"
    node.attribute.extend(
        helper.make_attribute(key, value)
        for key, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", rounding))
    )


def _constant(value: str, graph: GraphProto) -> np.ndarray | None:
    """The array behind an initializer or a Constant node of the main graph."""
    for tensor in graph.initializer:
        if tensor.name == value:
            return attr.to_array(tensor)
    for node in graph.node:
        if node.op_type == "Constant" and value in node.output:
            return attr.to_array(node.attribute[0].t)
    return None
