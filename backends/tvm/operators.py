"""Standard operators: those that keep the form of what they read, then TVM's own converters of ONNX operators."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any

from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.errors import NotSupported

from . import symbolic
from .converters import CONVERTERS
from .lower import extents_of, opset
from .toolchain import Tvm

if TYPE_CHECKING:
    from .lower import Lowering

_BROADCAST = {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Equal", "Less", "Greater", "And", "Or", "Where"}


def lower(op: OnnxOp, lowering: Lowering) -> None:
    """Put the results of `op` into the lowering. `NotSupported` where TVM has no converter for it."""
    if op.op_type == "Constant":
        return
    if op.op_type == "Shape" and (dims := lowering.dims(op.operands[0])) is not None:
        lowering.known[op.results[0]] = symbolic.shape_slice(op, dims)
        return
    known = symbolic.evaluate(op, [None if v is None else lowering.integers(v) for v in op.slots])
    if known is not None:
        lowering.known[op.results[0]] = known
        return
    if not lowering.blocks.keeps(op) and not lowering.lazy.takes(op):
        eager(op, lowering)


def eager(op: OnnxOp, lowering: Lowering) -> None:
    """Compute the results of `op` where it stands."""
    inputs = [None if v is None else lowering.operand(op, v) for v in op.slots]
    if op.op_type in _BROADCAST:
        inputs = agreeing(inputs, lowering)
    elif op.op_type == "Concat":
        inputs = _aligned(inputs, op, lowering)
    results = _converted(op, inputs, lowering)
    for value, made in zip(op.results, results, strict=False):
        lowering.values[value] = made


def convert(op: OnnxOp, inputs: list[Tvm | None], lowering: Lowering) -> Tvm:
    """One operator of one result by TVM's converter."""
    return _converted(op, inputs, lowering)[0]


def _converted(op: OnnxOp, inputs: list[Tvm | None], lowering: Lowering) -> list[Tvm]:
    own = CONVERTERS.get(op.op_type)
    if own is not None and not op.domain:
        return [lowering.emit(own(op, inputs, lowering))]
    converters = _converters()
    if op.domain or op.regions or op.op_type not in converters:
        raise NotSupported(f"TVM has no form for {op.op_type}")
    attributes: dict[str, Any] = {name: _plain(op.get(name)) for name in op.schema.attributes}
    attributes = {name: value for name, value in attributes.items() if value is not None}
    attributes["tvm_custom"] = {"name": op.node, "num_outputs": len(op.results)}
    convert = converters[op.op_type].get_converter(opset(op))
    try:
        made = convert(lowering.builder, _Operands(inputs), attributes, [{}, {}])
    except NotSupported:
        raise
    except Exception as error:  # TVM raises no class of its own for what its converters do not take
        raise NotSupported(
            f"TVM does not take it: {str(error).strip().splitlines()[-1:] or [type(error).__name__]}"
        ) from error
    relax = lowering.relax
    if isinstance(made, relax.Tuple):
        return [lowering.emit(field) for field in made]
    bound = lowering.builder.emit(lowering.builder.normalize(made))
    if isinstance(bound.ty, relax.TupleType):
        return [lowering.emit(relax.TupleGetItem(bound, i)) for i in range(len(bound.ty.fields))]
    if getattr(bound.ty, "shape", True) is None:
        raise NotSupported("the shape of its result is not known before it runs")
    return [bound]


class _Operands(list[Any]):
    """Operands as TVM's converters index them: None behind the last. Any: TVM's expressions."""

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, int):
            return _Operands(list(self)[index])
        return super().__getitem__(index) if index < len(self) else None


@cache
def _converters() -> dict[str, Any]:
    """TVM's converters by operator. Any: its classes."""
    module = importlib.import_module("tvm.relax.frontend.onnx.onnx_frontend")
    return module._get_convert_map()


def _plain(value: object) -> object:
    """An attribute as `onnx.helper` gives it: text is bytes."""
    return value.encode() if isinstance(value, str) else value


def agreeing(inputs: list[Tvm | None], lowering: Lowering) -> list[Tvm | None]:
    """Operands of one shape but for extents of 1: where two symbols meet, the second is checked to be the first."""
    extents = [None if x is None else extents_of(x) for x in inputs]
    rank = max((len(e) for e in extents if e is not None), default=0)
    wanted: list[Any] = [1] * rank
    for each in extents:
        for axis, extent in enumerate(each or [], start=rank - len(each or [])):
            if (isinstance(wanted[axis], int) and wanted[axis] == 1) or (isinstance(extent, int) and extent != 1):
                wanted[axis] = extent
    made: list[Tvm | None] = []
    for x, own in zip(inputs, extents, strict=True):
        mine = wanted[rank - len(own or []) :]
        spread = [o if isinstance(w, int) and w == 1 else w for o, w in zip(own or [], mine, strict=True)]
        made.append(x if x is None or own is None else lowering.agreed(x, spread))
    return made


def _aligned(inputs: list[Tvm | None], op: OnnxOp, lowering: Lowering) -> list[Tvm | None]:
    """Operands of `Concat`: all extents but that of its axis agree; one that is known is that of all."""
    extents = [None if x is None else extents_of(x) for x in inputs]
    axis = op.get("axis", 0)
    if not isinstance(axis, int) or any(e is None for e in extents):
        return inputs
    rows = [e for e in extents if e is not None]
    wanted = [next((d for d in column if isinstance(d, int)), column[0]) for column in zip(*rows, strict=True)]
    made: list[Tvm | None] = []
    for x, own in zip(inputs, rows, strict=True):
        mine = [o if i == axis % len(own) else w for i, (o, w) in enumerate(zip(own, wanted, strict=True))]
        made.append(lowering.agreed(x, mine))
    return made
