"""Standard ONNX: weights behind `DequantizeLinear`, by block, by axis or by tensor."""

from __future__ import annotations

from pathlib import Path

from xdsl.ir import SSAValue

from qcc.ir.dialects.q import Linear
from qcc.ir.program import Program
from qcc.ir.quantized import Quantized

from . import Choices, Record
from ._graph import Site, dequantized, write_graph


def write(program: Program, place: Path, choices: Choices) -> list[Record]:
    """Write the model; convolutions are their expansion."""
    del choices
    return write_graph(program, place, _linear)


def _linear(op: Linear, x: SSAValue, value: Quantized, site: Site) -> tuple[SSAValue, str]:
    weight, written = dequantized(value, site)
    return site.build.op("onnx.MatMul", [x, weight], op.results[0].type, node=op.node), written
