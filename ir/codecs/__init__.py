"""Containers that hold quantized tensors: one file a container, and this folder is the registry.

Every codec turns the tensors of its container into a `Quantized` and back, bit by bit:

    gguf                 blocks of ggml: Q4_0 ... Q6_K, TQ1_0, TQ2_0, IQ4_NL
    gptq                 qweight, qzeros, scales, g_idx
    awq                  qweight, qzeros, scales in AWQ's order of columns
    compressed_tensors   weight_packed or weight, weight_scale, weight_zero_point, ...
    matmul_nbits         the inputs of com.microsoft.MatMulNBits
    qdq                  the inputs of ONNX DequantizeLinear

`accepted(value, where)` of a codec is the format in which it would hold the same values; `qcc.ir.convert` changes the
format where that is exact. What a container cannot say is `NotSupported`, naming the tensor. Files whose name begins
with `_` hold what codecs share.
"""

from __future__ import annotations

import pkgutil


def names() -> list[str]:
    """The names of the codecs: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
