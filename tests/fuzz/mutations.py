"""Damage to a model, decided by a seeded generator alone: `mutate(model, others, rng)` gives the same bytes each time.

Half of the mutants are damaged as bytes, the other half as messages: any field of any message may be set to a value
that code tends to forget, dropped, doubled or moved, and a few rules know what ONNX graphs die of (cycles, depth,
extents, opsets, other operators).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

_INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    16,
    26,
    27,
    127,
    255,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    1 << 32,
    1 << 40,
    1 << 62,
    (1 << 63) - 1,
    -(1 << 63),
    -2,
    -3,
)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 3e38, float("inf"), float("-inf"), float("nan"))
_TEXTS = (
    b"",
    b"x",
    b"\xff\xfe",
    b"a\nb",
    b"a\0b",
    "größe".encode(),
    b"%s%n{}",
    b"../../etc/passwd",
    b'"',
    b"0",
    b"-1",
    b"9" * 30,
    b"n" * 5000,
)
_BYTES = (0x00, 0x01, 0x08, 0x0A, 0x12, 0x7F, 0x80, 0xFF)


def mutate(model: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """`model` with one to four damages; `others` are models to splice from."""
    if rng.random() < 0.45:
        return _damage_bytes(model, others, rng)
    if rng.random() < 0.03:
        return _nest_graph(model, rng)
    proto = ModelProto.FromString(model)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(_STRUCTURAL)(proto, rng)
    damaged = proto.SerializePartialToString()
    return _damage_bytes(damaged, others, rng) if rng.random() < 0.05 else damaged


def _damage_bytes(model: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    data = bytearray(model)
    for _ in range(rng.choice((1, 1, 2, 4))):
        begin, end = _span(data, rng)
        match rng.randrange(9):
            case 0 | 1 | 2:
                data[begin : begin + 1] = bytes([(data[begin] if begin < len(data) else 0) ^ 1 << rng.randrange(8)])
            case 3:
                data[begin : begin + 1] = bytes([rng.choice(_BYTES)])
            case 4:
                del data[begin:]
            case 5:
                data[begin:begin] = rng.randbytes(rng.choice((1, 2, 5, 40)))
            case 6:
                data[begin:begin] = data[begin:end]
            case 7:
                del data[begin:end]
            case _:
                other = rng.choice(others)
                first, last = _span(other, rng)
                data[begin:end] = other[first:last]
    return bytes(data)


def _span(data: bytes | bytearray, rng: random.Random) -> tuple[int, int]:
    """A short range, more often in the first and last kilobyte, where a large model holds its structure."""
    edge = min(len(data), 1000)
    begin = rng.choice((rng.randrange(edge + 1), len(data) - rng.randrange(edge + 1), rng.randrange(len(data) + 1)))
    return begin, min(len(data), begin + rng.choice((1, 4, 16, 64, 300)))


def _set_field(model: ModelProto, rng: random.Random) -> None:
    message = _any_message(model, rng)
    field = rng.choice(message.DESCRIPTOR.fields)
    if field.message_type is not None:
        getattr(message, field.name).add() if field.is_repeated else getattr(message, field.name).SetInParent()
    elif not field.is_repeated:
        setattr(message, field.name, _value(field, model, rng))
    elif not getattr(message, field.name) or rng.random() < 0.2:
        getattr(message, field.name).append(_value(field, model, rng))
    else:
        values = getattr(message, field.name)
        values[rng.randrange(len(values))] = _value(field, model, rng)


def _set_present_field(model: ModelProto, rng: random.Random) -> None:
    message = _any_message(model, rng)
    scalars = [(f, v) for f, v in _listed(message) if f.message_type is None]
    if scalars:
        field, held = rng.choice(scalars)
        if field.is_repeated:
            held[rng.randrange(len(held))] = _value(field, model, rng)
        else:
            setattr(message, field.name, _value(field, model, rng))


def _clear_field(model: ModelProto, rng: random.Random) -> None:
    message = _any_message(model, rng)
    present = _listed(message)
    if present:
        field, held = rng.choice(present)
        if field.is_repeated and rng.random() < 0.8:
            del held[rng.randrange(len(held))]
        else:
            message.ClearField(field.name)


def _double_item(model: ModelProto, rng: random.Random) -> None:
    message = _any_message(model, rng)
    lists = [(f, v) for f, v in _listed(message) if f.is_repeated]
    if lists:
        field, held = rng.choice(lists)
        item = rng.choice(held)
        held.add().CopyFrom(item) if field.message_type else held.append(item)


def _swap_items(model: ModelProto, rng: random.Random) -> None:
    message = _any_message(model, rng)
    lists = [(f, v) for f, v in _listed(message) if f.is_repeated and len(v) > 1]
    if not lists:
        return
    field, held = rng.choice(lists)
    items = list(held)
    rng.shuffle(items)
    copies = [type(i).FromString(i.SerializePartialToString()) for i in items] if field.message_type else items
    del held[:]
    held.extend(copies)


def _graft(model: ModelProto, rng: random.Random) -> None:
    """Put a copy of one message in the place of another of its type."""
    messages = list(_messages(model))
    target = rng.choice(messages)
    alike = [m for m in messages if m.DESCRIPTOR is target.DESCRIPTOR]
    source = type(target)()
    source.CopyFrom(rng.choice(alike))
    target.CopyFrom(source)


def _rename(model: ModelProto, rng: random.Random) -> None:
    """One name for another, everywhere or at one place: inputs of nodes, unknown names, cycles, clashes."""
    nodes = list(_nodes(model))
    if nodes:
        node = rng.choice(nodes)
        names = rng.choice((node.input, node.output, node.input))
        if names:
            names[rng.randrange(len(names))] = rng.choice(_names(model))


def _make_cycle(model: ModelProto, rng: random.Random) -> None:
    nodes = [n for n in _nodes(model) if n.input and n.output]
    if nodes:
        node = rng.choice(nodes)
        node.input[rng.randrange(len(node.input))] = rng.choice(nodes).output[0]


def _other_operator(model: ModelProto, rng: random.Random) -> None:
    nodes = list(_nodes(model))
    if nodes:
        node = rng.choice(nodes)
        node.domain, node.op_type = rng.choice(_operators())


def _other_attribute(model: ModelProto, rng: random.Random) -> None:
    """An attribute that the operator has, of any type and with any value."""
    nodes = list(_nodes(model))
    if not nodes:
        return
    node = rng.choice(nodes)
    names = _attribute_names(node.domain, node.op_type)
    attribute = (
        rng.choice(node.attribute)
        if node.attribute and rng.random() < 0.5
        else node.attribute.add(name=rng.choice(names or ("axis",)))
    )
    attribute.type = rng.choice(list(AttributeProto.AttributeType.values()))
    attribute.i, attribute.f, attribute.s = rng.choice(_INTEGERS), rng.choice(_FLOATS), rng.choice(_TEXTS)
    attribute.ints.extend(rng.choice(_INTEGERS) for _ in range(rng.randrange(4)))


def _other_dims(model: ModelProto, rng: random.Random) -> None:
    dims = [m for m in _messages(model) if isinstance(m, TensorProto | onnx.TensorShapeProto)]
    if not dims:
        return
    message, value = rng.choice(dims), rng.choice(_INTEGERS)
    if isinstance(message, TensorProto):
        message.dims[rng.randrange(len(message.dims) + 1) :] = [value] * rng.choice((1, 1, 3, 70))
    elif message.dim:
        rng.choice(message.dim).dim_value = value


def _other_element_type(model: ModelProto, rng: random.Random) -> None:
    holders = [m for m in _messages(model) if isinstance(m, TensorProto | onnx.TypeProto.Tensor)]
    if holders:
        holder, value = rng.choice(holders), rng.choice((*range(28), -1, 1 << 20))
        if isinstance(holder, TensorProto):
            holder.data_type = value
        else:
            holder.elem_type = value


def _other_opset(model: ModelProto, rng: random.Random) -> None:
    if model.opset_import:
        rng.choice(model.opset_import).version = rng.choice((*range(30), *_INTEGERS))


def _nest_type(model: ModelProto, rng: random.Random) -> None:
    """The type of an input wrapped in sequences and optionals: protobuf itself allows about fifty."""
    for value in model.graph.input[:1]:
        for _ in range(rng.choice((1, 5, 40))):
            outer = onnx.TypeProto()
            rng.choice((outer.sequence_type, outer.optional_type)).elem_type.CopyFrom(value.type)
            value.type.CopyFrom(outer)


def _nest_graph(model: bytes, rng: random.Random) -> bytes:
    """One more node: If within If within If. As bytes, because protobuf refuses to build what it refuses to read."""
    proto = ModelProto.FromString(model)
    node = NodeProto(op_type="Identity", input=[rng.choice(_names(proto))], output=["nested"]).SerializeToString()
    output = onnx.ValueInfoProto(name="nested").SerializeToString()
    for _ in range(rng.choice((1, 5, 20, 30, 33, 40, 300, 5000))):
        graph = _field(1, node) + _field(2, b"level") + _field(12, output)
        branches = (
            _field(5, _field(1, name) + _field(6, graph) + b"\xa0\x01\x05")
            for name in (b"then_branch", b"else_branch")[: rng.choice((1, 1, 2))]
        )
        node = _field(1, _names(proto)[-1].encode()) + _field(2, b"nested") + _field(4, b"If") + b"".join(branches)
        if len(node) > 1 << 16:
            break
    return model + _field(7, _field(1, node))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field with a number below 16."""
    length, size = bytearray(), len(payload)
    while size >= 128:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2]) + bytes([*length, size]) + payload


def _call_itself(model: ModelProto, rng: random.Random) -> None:
    """A local function that calls itself, or one that shadows an operator."""
    nodes = list(_nodes(model))
    if not nodes:
        return
    used = rng.choice(nodes)
    function = model.functions.add(
        name=used.op_type, domain=used.domain, input=used.input, output=used.output, opset_import=model.opset_import
    )
    function.node.add().CopyFrom(used if rng.random() < 0.5 else rng.choice(nodes))


_STRUCTURAL = (
    *(
        _set_field,
        _set_field,
        _set_present_field,
        _set_present_field,
        _set_present_field,
        _clear_field,
        _clear_field,
        _double_item,
    ),
    *(
        _swap_items,
        _graft,
        _rename,
        _rename,
        _make_cycle,
        _other_operator,
        _other_attribute,
        _other_attribute,
        _other_dims,
    ),
    *(_other_dims, _other_element_type, _other_opset, _nest_type, _call_itself),
)


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, held in _listed(message):
        if field.message_type is not None:
            for item in held if field.is_repeated else (held,):
                yield from _messages(item)


def _any_message(model: ModelProto, rng: random.Random) -> Message:
    """A message of a type chosen first, so that the many nodes of a large model do not hide its one header."""
    kinds: dict[str, list[Message]] = {}
    for message in _messages(model):
        kinds.setdefault(message.DESCRIPTOR.full_name, []).append(message)
    return rng.choice(kinds[rng.choice(sorted(kinds))])


def _listed(message: Message) -> list[tuple[FieldDescriptor, object]]:
    """The fields that are set, text that is not UTF-8 (which cannot be read) left out."""
    fields: list[tuple[FieldDescriptor, object]] = []
    for field in message.DESCRIPTOR.fields:
        held = getattr(message, field.name)
        if len(held) if field.is_repeated else message.HasField(field.name):
            fields.append((field, held))
    return fields


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    return (m for m in _messages(model) if isinstance(m, NodeProto))


def _names(model: ModelProto) -> list[str]:
    return sorted({name for node in _nodes(model) for name in (*node.input, *node.output)} | {"", "unknown"})


def _value(field: FieldDescriptor, model: ModelProto, rng: random.Random) -> object:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.choice((*_TEXTS, rng.randbytes(9)))
        case FieldDescriptor.CPPTYPE_STRING:
            texts = [t.decode() for t in _TEXTS if t != b"\xff\xfe"]
            return rng.choice((*texts, *_names(model)))
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return rng.choice(_FLOATS)
        case FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice(field.enum_type.values).number
        case FieldDescriptor.CPPTYPE_INT32:
            return rng.choice([i for i in _INTEGERS if -(1 << 31) <= i < 1 << 31])
        case FieldDescriptor.CPPTYPE_UINT64:
            return rng.choice([i for i in _INTEGERS if i >= 0])
        case _:
            return rng.choice(_INTEGERS)


@cache
def _operators() -> list[tuple[str, str]]:
    known = {(s.domain, s.name) for s in onnx.defs.get_all_schemas_with_history()}
    return sorted(known | {("com.microsoft", "MatMulNBits"), ("com.microsoft", "FusedConv"), ("nowhere", "Op")})


@cache
def _attribute_names(domain: str, op_type: str) -> tuple[str, ...]:
    return tuple(
        sorted(
            {
                n
                for s in onnx.defs.get_all_schemas_with_history()
                if (s.domain, s.name) == (domain, op_type)
                for n in s.attributes
            }
        )
    )
