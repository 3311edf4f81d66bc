"""What each form costs on a GPU that is not here to be measured: `time = bytes of a weight / bandwidth`.

A decoding step reads every weight once, and multiplies in its shadow. Weights that are decoded when the model is loaded
move two bytes each. Infinite costs stand for what the CUDA provider cannot compute: integer products of activations
(`QLinearConv`, `DynamicQuantizeMatMul` and `DynamicQuantizeLinear` have no CUDA kernel), MatMulNBits with quantized
activations (`accuracy_level` is ignored there), and 4-bit codes in blocks of 256, of which its kernel for few rows says
"block size 256 is not supported" when it runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qcc.ir.target import Gpu

from .speed import Speed

_HALF = 2
"""Bytes of a float16."""


@dataclass(frozen=True)
class Traffic(Speed):
    """Milliseconds a weight, from bytes alone."""

    bandwidth_gb_s: float

    def matmul_nbits(self, bits: int, level: int, block: int) -> float:
        """Codes and their share of a scale."""
        if level == 4 or (bits, block) == (4, 256):
            return math.inf
        return self._time(bits / 8 + _HALF / block)

    @property
    def int8_matmul(self) -> float:
        """No kernel."""
        return math.inf

    @property
    def float_matmul(self) -> float:
        """A float16 product."""
        return self._time(_HALF)

    @property
    def decoded_matmul(self) -> float:
        """A float16 product too: the weight was decoded when the model was loaded."""
        return self.float_matmul

    def _time(self, bytes_: float) -> float:
        return bytes_ / (self.bandwidth_gb_s * 1e6)


def stated(gpu: Gpu) -> Traffic:
    """The costs on the board of a target."""
    return Traffic({}, gpu.bandwidth_gb_s)
