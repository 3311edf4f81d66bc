"""Damage that knows what ONNX graphs die of: cycles, extents, types, operators, attributes, constants, calls, depth."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import onnx
from field_damage import BYTES, FLOATS, INTEGERS, Rule, messages, names, nodes
from onnx import AttributeProto, ModelProto, TensorProto, TensorShapeProto, TypeProto, helper

T = TypeVar("T")


def rename(model: ModelProto, rng: random.Random) -> None:
    """Another name for one input or output of a node: unknown, used before, its own."""
    chosen = [list_ for node in nodes(model) for list_ in (node.input, node.input, node.output) if list_]
    if chosen:
        values = rng.choice(chosen)
        values[rng.randrange(len(values))] = rng.choice(names(model))


def close_cycle(model: ModelProto, rng: random.Random) -> None:
    """A node reads what a node, perhaps itself, computes from it."""
    chosen = [n for n in nodes(model) if n.input and n.output]
    if chosen:
        node = rng.choice(chosen)
        node.input[rng.randrange(len(node.input))] = rng.choice(chosen).output[0]


def change_operator(model: ModelProto, rng: random.Random) -> None:
    """Another operator in the place of a node's."""
    for node in _one(nodes(model), rng):
        node.domain, node.op_type = rng.choice(_operators())


def change_arity(model: ModelProto, rng: random.Random) -> None:
    """One input or output of a node more, fewer or left out."""
    for node in _one(nodes(model), rng):
        values = rng.choice((node.input, node.output))
        match rng.randrange(3):
            case 0:
                values.append(rng.choice(("", *values)))
            case 1 if values:
                values.pop()
            case _ if values:
                values[rng.randrange(len(values))] = ""
            case _:
                pass


def set_attribute(model: ModelProto, rng: random.Random) -> None:
    """An attribute that the operator has, of its type, with an extreme value."""
    for node in _one(nodes(model), rng):
        for name, type_ in _one(_attributes(node.domain, node.op_type), rng):
            for held in [a for a in node.attribute if a.name == name]:
                node.attribute.remove(held)
            attribute, some = node.attribute.add(name=name, type=type_), range(rng.choice((0, 1, 2, 3, 4, 8)))
            match type_:
                case AttributeProto.INT:
                    attribute.i = rng.choice(INTEGERS)
                case AttributeProto.FLOAT:
                    attribute.f = rng.choice(FLOATS)
                case AttributeProto.INTS:
                    attribute.ints.extend(rng.choice(INTEGERS) for _ in some)
                case AttributeProto.FLOATS:
                    attribute.floats.extend(rng.choice(FLOATS) for _ in some)
                case AttributeProto.STRINGS:
                    attribute.strings.extend(rng.choice(BYTES) for _ in some)
                case _:
                    attribute.s = rng.choice(BYTES)


def retype_attribute(model: ModelProto, rng: random.Random) -> None:
    """An attribute whose type is not that of its value."""
    for attribute in _one([a for node in nodes(model) for a in node.attribute], rng):
        attribute.type = rng.choice(list(AttributeProto.AttributeType.values()))


def set_dims(model: ModelProto, rng: random.Random) -> None:
    """Other extents of a tensor, or one of a declared shape."""
    for message in _one([m for m in messages(model) if isinstance(m, TensorProto | TensorShapeProto)], rng):
        value = rng.choice(INTEGERS)
        if isinstance(message, TensorProto):
            message.dims[rng.randrange(len(message.dims) + 1) :] = [value] * rng.choice((1, 1, 3, 70))
        elif message.dim:
            rng.choice(message.dim).dim_value = value


def set_rank(model: ModelProto, rng: random.Random) -> None:
    """Another number of axes of a graph input."""
    for value in _one(model.graph.input, rng):
        dims, rank = value.type.tensor_type.shape.dim, rng.choice((0, 1, 2, 3, 4, 5, 6, 8))
        del dims[rank:]
        while len(dims) < rank:
            dims.add(dim_value=rng.choice((0, 1, 2, 3, 5)))


def set_element_type(model: ModelProto, rng: random.Random) -> None:
    """Another element type of a tensor or a value, known or not."""
    for holder in _one([m for m in messages(model) if isinstance(m, TensorProto | TypeProto.Tensor)], rng):
        name = "data_type" if isinstance(holder, TensorProto) else "elem_type"
        setattr(holder, name, rng.choice((*range(28), -1, 1 << 20)))


def bake_input(model: ModelProto, rng: random.Random) -> None:
    """A graph input of few numbers becomes a constant with an extreme value: shapes and axes are computed from such."""
    chosen = [(i, i.type.tensor_type) for i in model.graph.input if i.type.tensor_type.elem_type in (1, 6, 7)]
    for value, type_ in _one([(i, t) for i, t in chosen if len(t.shape.dim) <= 1], rng):
        dims = [min(max(d.dim_value, 0), 9) for d in type_.shape.dim]
        items = [rng.choice((0, 1, 2, 3, -1)) for _ in range(math.prod(dims))]
        bound = 1 << (31 if type_.elem_type == TensorProto.INT32 else 63)
        extremes = FLOATS if type_.elem_type == TensorProto.FLOAT else [i for i in INTEGERS if -bound <= i < bound]
        if items:
            items[rng.randrange(len(items))] = rng.choice(extremes)
        model.graph.initializer.append(helper.make_tensor(value.name, type_.elem_type, dims, items))


def set_opset(model: ModelProto, rng: random.Random) -> None:
    """Another version of an operator set."""
    for entry in _one(model.opset_import, rng):
        entry.version = rng.choice((*range(30), *INTEGERS))


def nest_type(model: ModelProto, rng: random.Random) -> None:
    """The type of an input wrapped in sequences and optionals: protobuf itself allows about fifty."""
    for value in model.graph.input[:1]:
        for _ in range(rng.choice((1, 5, 40))):
            outer = TypeProto()
            rng.choice((outer.sequence_type, outer.optional_type)).elem_type.CopyFrom(value.type)
            value.type.CopyFrom(outer)


def call_itself(model: ModelProto, rng: random.Random) -> None:
    """A local function in the place of an operator, which calls itself, or another."""
    for used in _one(nodes(model), rng):
        function = model.functions.add(
            name=used.op_type, domain=used.domain, input=used.input, output=used.output, opset_import=model.opset_import
        )
        function.node.add().CopyFrom(rng.choice((used, *nodes(model))))


RULES: dict[Rule, int] = {
    rename: 2,
    close_cycle: 1,
    change_operator: 1,
    change_arity: 1,
    set_attribute: 4,
    retype_attribute: 1,
    set_dims: 2,
    set_rank: 1,
    set_element_type: 1,
    bake_input: 2,
    set_opset: 1,
    nest_type: 1,
    call_itself: 1,
}
"""The rules, with how often each is taken."""


def _one(items: Sequence[T], rng: random.Random) -> list[T]:
    """One of the items; none where there are none."""
    return [rng.choice(items)] if items else []


@cache
def _operators() -> list[tuple[str, str]]:
    known = {(s.domain, s.name) for s in onnx.defs.get_all_schemas_with_history()}
    return sorted(known | {("com.microsoft", "MatMulNBits"), ("com.microsoft", "FusedConv"), ("nowhere", "Op")})


@cache
def _attributes(domain: str, op_type: str) -> list[tuple[str, int]]:
    """The attributes of an operator at any version, with the numbers of their types."""
    schemas = [s for s in onnx.defs.get_all_schemas_with_history() if (s.domain, s.name) == (domain, op_type)]
    return sorted({(name, a.type.value) for s in schemas for name, a in s.attributes.items()})
