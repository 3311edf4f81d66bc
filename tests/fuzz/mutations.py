"""Damage to a model, decided by a seeded generator alone: `mutate(model, others, rng)` gives the same bytes each time.

A third of the mutants are damaged as bytes. The others are damaged as messages, which get past the parser: any field of
any message (`field_damage.py`), or what ONNX graphs in particular die of (`graph_damage.py`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import field_damage
import graph_damage
from onnx import ModelProto, NodeProto, ValueInfoProto

_BYTES = (0x00, 0x01, 0x08, 0x0A, 0x12, 0x7F, 0x80, 0xFF)
_RULES = field_damage.RULES | graph_damage.RULES


def mutate(model: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """`model` with one to four damages; `others` are models to splice from."""
    kind = rng.random()
    if kind < 0.33:
        return _damage_bytes(model, others, rng)
    if kind < 0.35:
        return _nest(model, rng)
    proto = ModelProto.FromString(model)
    for rule in rng.choices(list(_RULES), list(_RULES.values()), k=rng.choice((1, 1, 1, 2, 3))):
        rule(proto, rng)
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


def _nest(model: bytes, rng: random.Random) -> bytes:
    """One more node: If within If within If. As bytes, because protobuf refuses to build what it refuses to read."""
    names = field_damage.names(ModelProto.FromString(model))
    node = NodeProto(op_type="Identity", input=[rng.choice(names)], output=["nested"]).SerializeToString()
    output = ValueInfoProto(name="nested").SerializeToString()
    condition, both = rng.choice(names).encode(), rng.random() < 0.3
    for _ in range(rng.choice((1, 5, 20, 30, 33, 40, 300, 5000))):
        if len(node) > 1 << 13:
            break
        graph = _field(1, node) + _field(2, b"level") + _field(12, output)
        branches = [
            _field(5, _field(1, name) + _field(6, graph) + b"\xa0\x01\x05")
            for name in ((b"then_branch", b"else_branch") if both else (b"then_branch",))
        ]
        node = _field(1, condition) + _field(2, b"nested") + _field(4, b"If") + b"".join(branches)
    return model + _field(7, _field(1, node))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field with a number below 16."""
    length, size = bytearray(), len(payload)
    while size >= 128:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2]) + bytes([*length, size]) + payload
