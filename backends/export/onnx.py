"""ONNX with `com.microsoft.MatMulNBits`, the operator of ONNX Runtime for weights of 2, 4 and 8 bits in blocks."""

from __future__ import annotations

from pathlib import Path

from xdsl.ir import SSAValue

from qcc.ir.codecs import matmul_nbits as codec
from qcc.ir.convert import convert
from qcc.ir.dialects.q import Linear
from qcc.ir.program import Program
from qcc.ir.quantized import Quantized

from . import Choices, Record
from ._graph import Site, write_graph


def write(program: Program, place: Path, choices: Choices) -> list[Record]:
    """Write the model; layers become MatMulNBits, tables DequantizeLinear, convolutions their expansion."""
    del choices
    return write_graph(program, place, _linear)


def _linear(op: Linear, x: SSAValue, value: Quantized, site: Site) -> tuple[SSAValue, str]:
    held = convert(value, codec.accepted(value, site.name), site.name)
    b, scales, zeros, s = codec.encode(held)
    slots = [x, site.weight("codes.nbits", b), site.weight("scale.nbits", scales)]
    if zeros is not None:
        slots.append(site.weight("zero.nbits", zeros))
    attributes: dict[str, object] = {"N": s.n, "K": s.k, "bits": s.bits, "block_size": s.block}
    product = site.build.op("msft.MatMulNBits", slots, op.results[0].type, attributes, node=op.node)
    return product, str(held.format)
