"""What torchao and bitsandbytes make of some weights, in a process of its own: transformers changes beside them.

    python -m tests.ir.foreign_oracles IN.npz OUT.npz        with the packages on PYTHONPATH

IN holds `mx`, `nvfp4` (with its outer scale `whole`) and `blocks`, each float32 [N, K]; OUT what each program gives.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

MICROSCALING = {
    "e4m3": "float8_e4m3fn",
    "e5m2": "float8_e5m2",
    "e2m3": "fp6_e2m3",
    "e3m2": "fp6_e3m2",
    "e2m1": "float4_e2m1fn_x2",
}
"""Our elements by the names that torchao gives theirs."""
Arrays = dict[str, NDArray[Any]]


def microscaling(x: torch.Tensor) -> Arrays:
    """torchao's `to_mx` in blocks of 32: values and exponent bytes of each element."""
    from torchao.prototype.mx_formats import mx_tensor

    found: Arrays = {}
    for element, theirs in MICROSCALING.items():
        tensor = mx_tensor.MXTensor.to_mx(x, getattr(torch, theirs, theirs), 32)
        found[f"{element}.values"] = tensor.dequantize(torch.float32).numpy()
        found[f"{element}.scale"] = tensor.scale.view(torch.uint8).numpy()
    return found


def nvfp4(x: torch.Tensor, whole: torch.Tensor) -> Arrays:
    """torchao's NVFP4 with a given outer scale: float8 scales, codes, values; and the outer scale it would take."""
    from torchao.prototype.mx_formats import nvfp4_tensor as nvfp4

    scales, packed = nvfp4.nvfp4_quantize(x, 16, whole)
    values = nvfp4.NVFP4Tensor.to_nvfp4(x, per_tensor_scale=whole).dequantize(torch.float32)
    return {
        "nvfp4.whole": nvfp4.per_tensor_amax_to_scale(x.abs().max()).numpy(),
        "nvfp4.scale": scales.view(torch.uint8).numpy(),
        "nvfp4.packed": packed.numpy(),
        "nvfp4.values": values.numpy(),
    }


def four_bits(x: torch.Tensor) -> Arrays:
    """bitsandbytes' `quantize_4bit` in blocks of 64: two codes a byte, scales, values of nf4 and fp4."""
    from bitsandbytes import functional

    found: Arrays = {}
    for element in ("nf4", "fp4"):
        packed, state = functional.quantize_4bit(x, blocksize=64, quant_type=element)
        found[f"{element}.packed"] = packed.numpy().reshape(-1)
        found[f"{element}.scale"] = state.absmax.numpy()
        found[f"{element}.values"] = functional.dequantize_4bit(packed, state).numpy()
    return found


def main() -> None:
    """Read the weights, write what became of them."""
    with np.load(sys.argv[1]) as data:
        given = {name: torch.from_numpy(data[name]) for name in data}
    made = microscaling(given["mx"]) | nvfp4(given["nvfp4"], given["whole"]) | four_bits(given["blocks"])
    np.savez(sys.argv[2], **made)


if __name__ == "__main__":
    main()
