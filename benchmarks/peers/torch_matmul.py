"""PyTorch's products on a CPU: bf16, int8 with dynamic quantization, and bf16 activations on int8 or int4 weights.

Where a form needs bf16, turning x to bf16 and y back to f32 is in its time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from . import Peer, Problem

Product = Callable[[Tensor, Tensor], Tensor]
"""y f32 [M, N] from x f32 [M, K] and a weight as the form packs it."""


def make(name: str, problem: Problem) -> Peer:
    """Quantize and pack the weight with PyTorch's own functions; N and K are padded where the kernel asks for it."""
    build, rows, columns = _FORMS[name]
    x = torch.from_numpy(np.pad(problem.x(), ((0, 0), (0, -problem.K % columns))))
    w = torch.from_numpy(np.pad(problem.w(), ((0, -problem.N % rows), (0, -problem.K % columns))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the quantized tensors' deprecation
        torch.set_num_threads(problem.threads)
        pack, product, decoded, bytes_per_copy = build(w, problem.M)
        copies, products = problem.copies(bytes_per_copy)
        packed = [pack() for _ in range(copies)]
    runs = [packed[i : i + products] for i in range(0, copies, products)]
    last = [product(x, packed[0])]

    def run(i: int) -> None:
        if torch.get_num_threads() != problem.threads:  # one setting for the whole process
            torch.set_num_threads(problem.threads)
        with torch.inference_mode():
            for weight in runs[i % len(runs)]:
                last[0] = product(x, weight)

    def result() -> np.ndarray:
        return last[0].numpy()[:, : problem.N]

    def decode() -> np.ndarray:
        return decoded().float().numpy()[: problem.N, : problem.K]

    return Peer(name, problem, bytes_per_copy, copies, products, run, result, decode)


Built = tuple[Callable[[], Tensor], Product, Callable[[], Tensor], int]
"""Makes one packed copy, which may be a script object; the product; the weight in floats; the bytes of a copy."""
Build = Callable[[Tensor, int], Built]
"""Of a form: from the weight, f32 [N, K], and M."""


def _bf16(w: Tensor, M: int) -> Built:
    half = w.bfloat16()

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.linear(x.bfloat16(), weight).float()

    return half.clone, product, lambda: half, half.nbytes


def _bf16_packed(w: Tensor, M: int) -> Built:
    """The blocked layout of oneDNN for this M, as the compiler of PyTorch packs a frozen model."""
    half, ops = w.bfloat16(), torch.ops.mkldnn

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return ops._linear_pointwise(x.bfloat16(), weight, None, "none", [], "").float()

    return lambda: ops._reorder_linear_weight(half, M), product, lambda: half, half.nbytes


def _dynamic(engine: str) -> Build:
    """`torch.ao.nn.quantized.dynamic.Linear`: int8 by channel, activations of 8 bits by tensor."""

    def build(w: Tensor, M: int) -> Built:
        torch.backends.quantized.engine = engine
        scales = w.abs().amax(1).double() / 127
        quantized = torch.quantize_per_channel(w, scales, torch.zeros(len(w), dtype=torch.long), 0, torch.qint8)

        def product(x: Tensor, weight: Tensor) -> Tensor:
            if torch.backends.quantized.engine != engine:
                torch.backends.quantized.engine = engine
            return torch.ops.quantized.linear_dynamic(x, weight, False)

        def pack() -> Tensor:
            return torch.ops.quantized.linear_prepack(quantized.clone(), None)

        return pack, product, quantized.dequantize, w.numel() + 4 * len(w)

    return build


def _int8_bf16(w: Tensor, M: int) -> Built:
    scales = (w.abs().amax(1) / 127).bfloat16()
    codes = (w / scales.float()[:, None]).round().clamp(-128, 127).to(torch.int8)

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return torch.ops.aten._weight_int8pack_mm(x.bfloat16(), weight, scales).float()

    return codes.clone, product, lambda: codes.float() * scales.float()[:, None], codes.nbytes + scales.nbytes


def _int4_bf16(group: int) -> Build:
    """Codes 0 to 15 around 8 by group, a bf16 scale and zero point each."""

    def build(w: Tensor, M: int) -> Built:
        N, K = w.shape
        blocks = w.reshape(N, K // group, group)
        scales = (blocks.abs().amax(2) / 7).bfloat16()
        codes = ((blocks / scales.float()[..., None]).round().clamp(-8, 7) + 8).to(torch.int32)
        with_zeros = torch.stack([scales.T, torch.zeros_like(scales.T)], 2).contiguous()
        weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.reshape(N, K), 1)

        def product(x: Tensor, weight: Tensor) -> Tensor:
            return torch.ops.aten._weight_int4pack_mm_for_cpu(x.bfloat16(), weight, group, with_zeros).float()

        def decoded() -> Tensor:
            return ((codes - 8) * scales.float()[..., None]).reshape(N, K)

        return weight.clone, product, decoded, N * K // 2 + with_zeros.nbytes

    return build


_FORMS: dict[str, tuple[Build, int, int]] = {
    "torch bf16": (_bf16, 1, 1),
    "torch bf16 packed": (_bf16_packed, 1, 1),
    "torch int8 channel dynamic x86": (_dynamic("x86"), 1, 1),
    "torch int8 channel dynamic onednn": (_dynamic("onednn"), 1, 1),
    "torch int8 channel bf16": (_int8_bf16, 1, 64),  # reads past the end of a ragged row
    "torch int4 g32 bf16": (_int4_bf16(32), 32, 32),
    "torch int4 g128 bf16": (_int4_bf16(128), 32, 128),
}
"""By name: the form, and the multiples its kernel wants N and K to be of."""
NAMES = tuple(_FORMS)
