"""Damage to any field of any message: set to a value that code tends to forget, dropped, doubled, moved."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import ModelProto, NodeProto

INTEGERS = (
    *(0, 1, -1, 2, -2, 3, -3, 7, 8, 16, 26, 27, 127, 255),
    *(1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40, 1 << 62, (1 << 63) - 1, -(1 << 63)),
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 3e38, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "x", "a\nb", "a\0b", "größe", "%s%n{}", "../../etc/passwd", '"', "0", "-1", "9" * 30, "n" * 5000)
BYTES = (*(text.encode() for text in TEXTS), b"\xff\xfe")

Rule = Callable[[ModelProto, random.Random], None]


def set_any(model: ModelProto, rng: random.Random) -> None:
    """Set a field, whether it was set or not."""
    message = _any_message(model, rng)
    field = rng.choice(message.DESCRIPTOR.fields)
    held = getattr(message, field.name)
    if field.message_type is not None:
        held.add() if field.is_repeated else held.SetInParent()
    elif not field.is_repeated:
        setattr(message, field.name, _value(field, model, rng))
    elif not held or rng.random() < 0.2:
        held.append(_value(field, model, rng))
    else:
        held[rng.randrange(len(held))] = _value(field, model, rng)


def set_present(model: ModelProto, rng: random.Random) -> None:
    """Give a field that is set another value."""
    message = _any_message(model, rng)
    scalars = [(f, v) for f, v in _present(message) if f.message_type is None]
    if scalars:
        field, held = rng.choice(scalars)
        if field.is_repeated:
            held[rng.randrange(len(held))] = _value(field, model, rng)
        else:
            setattr(message, field.name, _value(field, model, rng))


def drop(model: ModelProto, rng: random.Random) -> None:
    """Drop a field, or one item of a list."""
    message = _any_message(model, rng)
    present = _present(message)
    if present:
        field, held = rng.choice(present)
        if field.is_repeated and rng.random() < 0.8:
            del held[rng.randrange(len(held))]
        else:
            message.ClearField(field.name)


def double(model: ModelProto, rng: random.Random) -> None:
    """Append a copy of an item of a list."""
    lists = [(f, v) for f, v in _present(_any_message(model, rng)) if f.is_repeated]
    if lists:
        field, held = rng.choice(lists)
        item = rng.choice(held)
        held.add().CopyFrom(item) if field.message_type else held.append(item)


def shuffle(model: ModelProto, rng: random.Random) -> None:
    """Put the items of a list in another order."""
    lists = [(f, v) for f, v in _present(_any_message(model, rng)) if f.is_repeated and len(v) > 1]
    if lists:
        field, held = rng.choice(lists)
        items = list(held)
        rng.shuffle(items)
        copies = [type(i).FromString(i.SerializePartialToString()) for i in items] if field.message_type else items
        del held[:]
        held.extend(copies)


def graft(model: ModelProto, rng: random.Random) -> None:
    """Put a copy of one message in the place of another of its type."""
    target = _any_message(model, rng)
    source = type(target)()
    source.CopyFrom(rng.choice([m for m in messages(model) if m.DESCRIPTOR is target.DESCRIPTOR]))
    target.CopyFrom(source)


RULES: dict[Rule, int] = {set_any: 2, set_present: 3, drop: 2, double: 1, shuffle: 1, graft: 1}
"""The rules, with how often each is taken."""


def messages(message: Message) -> Iterator[Message]:
    """Every message from `message` down."""
    yield message
    for field, held in _present(message):
        if field.message_type is not None:
            for item in held if field.is_repeated else (held,):
                yield from messages(item)


def nodes(model: ModelProto) -> list[NodeProto]:
    """The nodes of every graph and function."""
    return [m for m in messages(model) if isinstance(m, NodeProto)]


def names(model: ModelProto) -> list[str]:
    """The names of values, the empty one and an unknown one."""
    return sorted({name for node in nodes(model) for name in (*node.input, *node.output)} | {"", "unknown"})


def _any_message(model: ModelProto, rng: random.Random) -> Message:
    """A message of a type chosen first, so that the many nodes of a large model do not hide its one header."""
    kinds: dict[str, list[Message]] = {}
    for message in messages(model):
        kinds.setdefault(message.DESCRIPTOR.full_name, []).append(message)
    return rng.choice(kinds[rng.choice(sorted(kinds))])


def _present(message: Message) -> list[tuple[FieldDescriptor, Any]]:
    """The fields that are set. Any: what a value is depends on its field."""
    return list(message.ListFields())


def _value(field: FieldDescriptor, model: ModelProto, rng: random.Random) -> object:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.choice((*BYTES, rng.randbytes(9)))
        case FieldDescriptor.CPPTYPE_STRING:
            return rng.choice((*TEXTS, *names(model)))
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return rng.choice(FLOATS)
        case FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice(field.enum_type.values).number
        case FieldDescriptor.CPPTYPE_INT32:
            return rng.choice([i for i in INTEGERS if -(1 << 31) <= i < 1 << 31])
        case FieldDescriptor.CPPTYPE_UINT64:
            return rng.choice([i for i in INTEGERS if i >= 0])
        case _:
            return rng.choice(INTEGERS)
