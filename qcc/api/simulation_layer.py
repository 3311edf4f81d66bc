"""One quantized layer by itself: `y = layer(x)` with x in floating point, by the expansion of its operation."""

from __future__ import annotations

import numpy as np
from xdsl.dialects.builtin import ArrayAttr, DictionaryAttr, ModuleOp
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Block, Operation, Region, SSAValue

from qcc.ir import attributes as attr
from qcc.ir.dialects.onnx import OPSET
from qcc.ir.dialects.q import Dequantize, Quantize, QuantizedOp, Weight
from qcc.ir.execute import Reference
from qcc.ir.program import NAME, Program
from qcc.ir.rewrite import array_of, producer
from qcc.ir.verify import Comparison

from .simulation_float import FloatLayers


def output_sqnr(op: QuantizedOp, program: Program, floats: FloatLayers) -> float | None:
    """Decibels of the result of a layer of a quantized program where it alone is quantized; None where not known.

    Its activations are quantized too where the scheme does that; what it reads is that of the float network.
    """
    alone = _alone(op, program) if floats.reaches(op.node) else None
    if alone is None:
        return None
    floats.take([op.node])
    bias = _taken_in(op, program, floats)
    reference, comparison = Reference(alone), Comparison()
    for x, y in floats.values(op.node):
        comparison.add(y if bias is None else y + bias, reference.run({"x": x})["y"])
    return comparison.result.sqnr_db


def _alone(op: QuantizedOp, program: Program) -> Program | None:
    """A program of the layer, the constants it reads, and an input `x`; None where it reads another computed value."""
    data = op.operands[0]
    while isinstance(data.owner, Quantize | Dequantize):
        data = data.owner.operands[0]
    block = Block(arg_types=[data.type])
    copies: dict[SSAValue, SSAValue] = {data: block.args[0]}
    if not _copy(op, block, copies):
        return None
    block.add_op(ReturnOp(copies[op.results[0]]))
    names = [ArrayAttr([DictionaryAttr({NAME: attr.text_attribute(name)})]) for name in ("x", "y")]
    types = ([data.type], [op.results[0].type])
    function = FuncOp("main", types, Region(block), arg_attrs=names[0], res_attrs=names[1])
    return Program(ModuleOp([function], {OPSET: program.module.attributes[OPSET]}), program.weights)


def _copy(op: Operation, block: Block, copies: dict[SSAValue, SSAValue]) -> bool:
    """Append a copy of `op` and, first, of the constants that it reads; False where it reads something computed."""
    for operand in op.operands:
        if operand in copies:
            continue
        owner = operand.owner
        known = isinstance(owner, Weight | Quantize | Dequantize) or producer(operand, *_OF_CONSTANTS) is not None
        if not known or not isinstance(owner, Operation) or not _copy(owner, block, copies):
            return False
    block.add_op(op.clone(copies))
    return True


def _taken_in(op: QuantizedOp, program: Program, floats: FloatLayers) -> np.ndarray | None:
    """The bias that stood behind a product in the float network, and that the layer has taken in."""
    had = floats.layers[op.node]
    return array_of(op.slot(2), program) if had.op_type == "MatMul" else None


_OF_CONSTANTS = ("onnx.Constant", "onnx.Mul")
"""What gives the parameters of a layer: a bias may be multiplied by the `beta` of its Gemm."""
