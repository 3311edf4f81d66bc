"""What the ONNX libraries are spared: text that is not UTF-8, and tensors whose data is not what their type and shape say.

On such models they do not raise their own errors, but others, or read beyond the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import ModelProto, TensorProto, helper

from qcc.ir import types
from qcc.ir.errors import BadInput

_MOST_AXES = 64
_MOST_ITEMS = 1 << 48
_DAMAGED = "the file is damaged: copy or export it again"


def check(model: ModelProto, name: str) -> None:
    """Raise `BadInput` unless all text is readable, every shape possible, and every tensor in the file as long as its shape."""
    for message, fields in _messages(model):
        _check_text(message, fields, name)
        if isinstance(message, TensorProto):
            where = f"{name}: tensor {message.name!r}"
            _check_shape(message, where)
            if message.data_location != TensorProto.EXTERNAL:
                _check_data(message, where)


def _messages(message: Message) -> Iterator[tuple[Message, list[tuple[FieldDescriptor, Any]]]]:
    """Every message from `message` down, with the fields that are set: what a value is depends on its field."""
    fields = message.ListFields()
    yield message, fields
    for field, value in fields:
        if field.message_type is not None:
            for item in value if field.is_repeated else (value,):
                yield from _messages(item)


def _check_text(message: Message, fields: list[tuple[FieldDescriptor, Any]], name: str) -> None:
    """Protobuf gives text that is not UTF-8 as bytes."""
    for field, value in fields:
        if field.type == FieldDescriptor.TYPE_STRING and any(isinstance(t, bytes) for t in (value if field.is_repeated else (value,))):
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
        raise BadInput(f"{where} holds {held} {unit} of data where its shape {list(tensor.dims)} needs {needed}", hint=_DAMAGED)
