"""`q.attention` as a call that appends to its caches in place; norms and rotations of heads become part of it.

A cache is an argument of the function that the call writes to: what the operation gives as the longer cache is the same
memory, and leaves the function as no result of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xdsl.dialects.func import ReturnOp
from xdsl.ir import BlockArgument, Operation, SSAValue

from qcc.backends.native.attention_spec import AttentionSpec
from qcc.backends.native.cached_attention import Heads, cached_attention_function
from qcc.ir import types
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q_attention import Attention
from qcc.ir.errors import NotSupported
from qcc.ir.program import Program
from qcc.ir.rewrite import has_one_use, producer, rank_of

from .caches import Cache
from .lower import extents_of
from .toolchain import Tvm

if TYPE_CHECKING:
    from .lower import Lowering

FULL = "a cache does not hold the new positions: rewind it, or open one of more capacity"
"""What is said where an attention refuses its call."""


@dataclass(frozen=True)
class Prologue:
    """What happens to q and k before they meet: the operations that become part of the attention."""

    q: SSAValue
    k: SSAValue
    heads: Heads
    weights: tuple[SSAValue, ...]
    """The weights of the norms, then cosines and sines."""
    covered: tuple[Operation, ...] = field(default=())


def caches_of(program: Program) -> dict[SSAValue, Cache]:
    """The caches of every `q.attention`, by argument. `NotSupported` where one is anything but input and output."""
    body, found = program.body, dict[SSAValue, Cache]()
    inputs = dict(zip(body.args, program.inputs(), strict=True))
    outputs = program.results()
    for op in [op for op in body.ops if isinstance(op, Attention)]:
        for past, present in zip(op.operands[3:5], op.results[1:], strict=True):
            use = present.get_unique_use()
            if not isinstance(past, BlockArgument) or not has_one_use(past) or past not in inputs:
                raise NotSupported(f"{op.where()}: a cache that is no input of the network, or that others read")
            if use is None or not isinstance(use.operation, ReturnOp):
                raise NotSupported(f"{op.where()}: the longer cache is no output of the network, or others read it")
            found[past] = Cache(inputs[past].name, outputs[use.index].name, op.cache or "f32")
    return found


def growth(program: Program) -> tuple[str, int] | int:
    """How many positions a call adds to its caches: an axis of an input, or always so many."""
    attention = next(op for op in program.body.ops if isinstance(op, Attention))
    dims = types.dims_of(attention.operands[0].type)
    length = None if dims is None else dims[1]
    if isinstance(length, int):
        return length
    for port, arg in zip(program.inputs(), program.body.args, strict=True):
        if arg is attention.operands[0]:
            return port.name, 1
        for axis, dim in enumerate(types.dims_of(port.type) or ()):
            if length is not None and dim == length:
                return port.name, axis
    raise NotSupported(f"{attention.where()}: the length of its queries is no extent of an input")


def prologue(op: Attention) -> Prologue:
    """The norms and rotations of an attention that nothing else reads; those of q and of k turn by the same angles."""
    q, k = op.operands[:2]
    covered, angles, rotated, pairs = list[Operation](), tuple[SSAValue, ...](), 0, False
    first, second = _rotation(q, op.heads), _rotation(k, op.kv_heads)
    if first is not None and second is not None and _alike(first, second):
        rotated, pairs = first.integer("rotary_embedding_dim") or op.head_size or 0, bool(first.integer("interleaved"))
        angles, covered = tuple(first.operands[1:3]), [first, second]
        q, k = first.operands[0], second.operands[0]
    norms = [_norm(q, op.heads), _norm(k, op.kv_heads)]
    for reshape, norm in (n for n in norms if n is not None):
        covered += [reshape, norm]
    split = [None if n is None else n[1].operands[0] for n in norms]
    apart = [_joined(x) for x in split]
    covered += [r for r in apart if r is not None]
    q, k = (x if s is None else s if r is None else r.operands[0] for x, s, r in zip((q, k), split, apart, strict=True))
    q_epsilon, k_epsilon = (None if n is None else _epsilon(n[1]) for n in norms)
    weights = [n[1].operands[1] for n in norms if n is not None]
    return Prologue(q, k, Heads(q_epsilon, k_epsilon, rotated, pairs), (*weights, *angles), tuple(covered))


def lower(op: Attention, lowering: Lowering) -> None:
    """Put the result of an attention into the lowering."""
    before = lowering.prologues[op]
    form = op.cache or "f32"
    size = op.head_size
    if size is None:
        raise NotSupported("the size of a head is not known")
    spec = AttentionSpec(
        op.heads, size, op.kv_heads, form, causal=True, window=op.window or None, softcap=op.softcap or None,
        scale=op.scale,
    )  # fmt: skip
    widths = [heads * size for heads in (op.heads, op.kv_heads, op.kv_heads)]
    q, *others = (lowering.tensor(v) for v in (before.q, before.k, op.operands[2]))
    q = _flat(q, widths[0], lowering)
    batch, queries = (extents_of(q) or [])[:2]
    new = [
        q,
        *(lowering.agreed(_flat(x, w, lowering), [batch, queries, w]) for x, w in zip(others, widths[1:], strict=True)),
    ]
    capacity = (extents_of(lowering.values[op.operands[3]]) or [])[2]
    held = [lowering.agreed(lowering.values[v], [batch, op.kv_heads, capacity, size]) for v in op.operands[3:5]]
    scales = [
        lowering.agreed(lowering.scales[v], [batch, op.kv_heads, capacity]) for v in op.operands[3:5] if form == "i8"
    ]
    norms, angles = before.weights[: len(before.weights) - 2], before.weights[len(before.weights) - 2 :]
    if not before.heads.rotated:
        norms, angles = before.weights, ()
    tables = [lowering.tensor(v) for v in angles]
    rows = (extents_of(tables[0]) or [])[0] if tables else 1
    shared = isinstance(rows, int) and rows == 1
    wanted = [1 if shared else batch, queries, before.heads.rotated // 2]
    more = [*map(lowering.tensor, norms), *(lowering.agreed(x, wanted) for x in tables)]
    numbers = [batch, queries, capacity, *widths, 0 if shared else queries]
    inputs = [*new, *held, *scales, lowering.tensor(op.operands[5]), *more]
    function = cached_attention_function(spec, before.heads, lowering.isa)
    changed = range(3, 3 + len(held) + len(scales))
    lowering.values[op.results[0]] = lowering.call(
        function, inputs, ([batch, queries, op.heads * size], "float32"), numbers, refusal=FULL, changed=changed
    )


def _flat(x: Tvm, width: int, lowering: Lowering) -> Tvm:
    """[batch, length, width], where heads may be an axis of their own."""
    extents = extents_of(x) or []
    if len(extents) == 3:
        return x
    return lowering.emit(lowering.relax.op.reshape(x, [*extents[:2], width]))


def _rotation(x: SSAValue, heads: int) -> OnnxOp | None:
    """The rotation of [batch, length, heads * size] by a table of its own for each token."""
    op = producer(x, "onnx.RotaryEmbedding")
    if op is None or not has_one_use(x) or len(op.slots) != 3 or rank_of(x) != 3 or rank_of(op.operands[1]) != 3:
        return None
    return op if op.integer("num_heads") == heads else None


def _alike(one: OnnxOp, other: OnnxOp) -> bool:
    options = ("interleaved", "rotary_embedding_dim")
    same = all(one.integer(name) == other.integer(name) for name in options)
    return same and list(one.operands[1:3]) == list(other.operands[1:3])


def _norm(x: SSAValue, heads: int) -> tuple[OnnxOp, OnnxOp] | None:
    """`Reshape(RMSNormalization([batch, length, heads, size]))` that gives `x` alone [batch, length, heads * size]."""
    outer = producer(x, "onnx.Reshape")
    norm = producer(outer.operands[0], "onnx.RMSNormalization") if outer is not None and has_one_use(x) else None
    if outer is None or norm is None or not has_one_use(norm.results[0]):
        return None
    dims, flat = types.dims_of(norm.results[0].type), types.dims_of(x.type)
    if dims is None or flat is None or len(dims) != 4 or len(flat) != 3 or dims[2] != heads:
        return None
    size, last = dims[3], norm.get("axis", -1) in (-1, 3)
    plain = norm.get("stash_type", 1) == 1 and rank_of(norm.operands[1]) == 1
    return (outer, norm) if last and plain and isinstance(size, int) and flat[2] == heads * size else None


def _joined(x: SSAValue | None) -> OnnxOp | None:
    """The reshape that makes heads an axis of [batch, length, heads * size], for `x` alone."""
    made = producer(x, "onnx.Reshape")
    return made if x is not None and made is not None and has_one_use(x) and rank_of(made.operands[0]) == 3 else None


def _epsilon(norm: OnnxOp) -> float:
    value: Any = norm.get("epsilon", 1e-5)
    return float(value)


def covered(program: Program) -> Iterator[tuple[Attention, Prologue]]:
    """Every attention with its prologue."""
    for op in program.body.ops:
        if isinstance(op, Attention):
            yield op, prologue(op)
