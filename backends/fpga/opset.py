"""Bring a model down to the opset that hardware tools read, where its operators mean the same there.

20 rather than 21: from 21 on QuantizeLinear has an attribute `output_dtype`, and ONNX Runtime 1.31 refuses models in
which an int8 DequantizeLinear feeds a Transpose or Reshape and no quantized node follows: moving the QuantizeLinear, it
sets that attribute beside a zero point that it takes for uint8 (microsoft/onnxruntime issue 25526).
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto, checker, defs

OPSET = 20
IR_VERSION = 9
_CHANGED = ("GroupNormalization",)
"""Operators that mean something else above."""


def at_opset(model: ModelProto, opset: int = OPSET) -> ModelProto:
    """The model at `opset` where every node is valid there with the same attributes; else as it is.

    Above 20 ONNX changed the types that operators take, and hardly one's meaning; an operator that is new since, as
    Attention is, keeps the model at its own opset.
    """
    (imported,) = [o for o in model.opset_import if not o.domain]
    if imported.version <= opset or not all(_exists(node, opset) for node in model.graph.node):
        return model
    lower = ModelProto()
    lower.CopyFrom(model)
    (entry,) = [o for o in lower.opset_import if not o.domain]
    entry.version, lower.ir_version = opset, IR_VERSION
    try:
        checker.check_model(lower, full_check=True)  # pyright: ignore[reportUnknownMemberType]
    except (checker.ValidationError, RuntimeError):  # a type that the older operator does not take
        return model
    return lower


def _exists(node: NodeProto, opset: int) -> bool:
    if node.domain or node.op_type in _CHANGED or any(a.HasField("g") for a in node.attribute):
        return False
    try:
        schema = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return False
    return all(a.name in schema.attributes for a in node.attribute)
