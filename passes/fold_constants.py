"""Compute once what depends on constants alone: `f(constant) = constant`, run on the reference executor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from xdsl.dialects.builtin import ArrayAttr, DictionaryAttr, ModuleOp
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Block, Region, SSAValue

from qcc.ir import attributes as attr
from qcc.ir import types
from qcc.ir.dialects.onnx import OPSET, OnnxOp
from qcc.ir.dialects.q import Weight
from qcc.ir.execute import run
from qcc.ir.program import NAME, Program
from qcc.ir.rewrite import Pass, ProgramContext, builder, has_one_use, remove_dead

RANDOM = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
}
_INLINE_ELEMENTS = 16


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Fold operations whose operands are all constant, unless that makes the model larger by more than `grow` bytes."""

    name = "fold_constants"
    grow: int = 65536

    def run(self, program: Program, ctx: ProgramContext) -> None:
        """Find the constant part of the main block, run it in one go, and put its results in its place."""
        del ctx
        constant, foldable = _constant_part(program, self.grow)
        frontier = [
            r
            for op in foldable
            for r in op.results
            if any(use.operation not in foldable for use in r.uses) and _is_tensor(r)
        ]
        if not frontier:
            return
        arrays = _evaluate(program, foldable, frontier)
        for value, array in zip(frontier, arrays, strict=True):
            op = value.owner
            assert isinstance(op, OnnxOp)
            inputs = sum(_nbytes(o, program) for o in op.operands if o in constant)
            if array.nbytes > inputs + self.grow:
                program.decide(
                    op.node, "fold_constants declined", f"the result has {array.nbytes} bytes, its operands {inputs}"
                )
                continue
            build = builder(op, program)
            if array.size <= _INLINE_ELEMENTS or array.dtype == np.object_:
                new = build.constant(array)
            else:
                new = build.weight(program.weights.add(value.name_hint or op.node, array), array)
            new.name_hint = value.name_hint
            value.replace_all_uses_with(new)
        remove_dead(program)


def _constant_part(program: Program, grow: int) -> tuple[set[SSAValue], list[OnnxOp]]:
    constant: set[SSAValue] = set()
    foldable: list[OnnxOp] = []
    for op in program.body.ops:
        if isinstance(op, Weight) or op.name == "onnx.Constant":
            constant.update(op.results)
        elif (
            isinstance(op, OnnxOp)
            and op.domain == ""
            and not op.regions
            and op.op_type not in RANDOM
            and all(o in constant for o in op.operands)
            and not _turns_what_others_read(op, program, grow)
        ):
            constant.update(op.results)
            foldable.append(op)
    return constant, foldable


def _turns_what_others_read(op: OnnxOp, program: Program, grow: int) -> bool:
    """Whether folding would store a large weight a second time: transposed, beside those who read it as it is."""
    x = op.operands[0] if op.op_type == "Transpose" else None
    return x is not None and isinstance(x.owner, Weight) and not has_one_use(x) and _nbytes(x, program) > grow


def _evaluate(program: Program, foldable: list[OnnxOp], frontier: Sequence[SSAValue]) -> list[np.ndarray]:
    block = Block()
    copies: dict[SSAValue, SSAValue] = {}
    for op in program.body.ops:
        wanted = op in foldable or isinstance(op, Weight) or op.name == "onnx.Constant"
        if wanted and (op in foldable or any(use.operation in foldable for r in op.results for use in r.uses)):
            block.add_op(op.clone(copies))
    outputs = [copies[v] for v in frontier]
    block.add_op(ReturnOp(*outputs))
    names = [DictionaryAttr({NAME: attr.text_attribute(f"o{i}")}) for i in range(len(outputs))]
    function = FuncOp(
        "main", ([], [v.type for v in outputs]), Region(block), arg_attrs=ArrayAttr([]), res_attrs=ArrayAttr(names)
    )
    part = Program(ModuleOp([function], {OPSET: program.module.attributes[OPSET]}), program.weights)
    found = run(part, {})
    return [found[f"o{i}"] for i in range(len(outputs))]


def _is_tensor(value: SSAValue) -> bool:
    return types.schema_string(value.type).startswith("tensor(")


def _nbytes(value: SSAValue, program: Program) -> int:
    owner = value.owner
    if isinstance(owner, Weight):
        return program.weights[owner.weight].nbytes
    dims = types.dims_of(value.type) or ()
    return 8 * int(np.prod([d for d in dims if isinstance(d, int)], dtype=np.int64))
