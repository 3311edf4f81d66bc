"""Kernels for codebooks of each row: the values lie beside the codes, and nested codes are read at any precision."""

from __future__ import annotations

import numpy as np
import pytest

from qcc.backends.native import codebook, isa
from qcc.backends.native.codebook_spec import CodebookSpec
from qcc.backends.native.linear_spec import Activation
from qcc.ir import target
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.format import Format
from qcc.ir.quantized import Quantized

HOST = target.load("cpu")
SETS = [name for name in ("avx512_vbmi", "avx512_vnni", "avx2") if not isa.named(name).missing(HOST)]
N, K = 37, 333


def weight(text: str, n: int = N, k: int = K, seed: int = 0) -> Quantized:
    """Random codes, and for each row a table of random values with an extreme one."""
    rng, fmt = np.random.default_rng(seed), Format.parse(text)
    assert fmt.codebook is not None
    entries = fmt.codebook.entries
    table = rng.standard_normal((n, 1, entries)).astype(np.float16)
    table[:, :, -1] *= 8
    highest = min(entries, 1 << fmt.bits)
    return Quantized(fmt, {"codes": rng.integers(0, highest, (n, k)).astype(np.uint8), "table": table})


def rounded(x: np.ndarray) -> np.ndarray:
    """Activations as 8 bits hold them."""
    scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    whole = np.rint(x * (np.float32(1) / np.where(scale > 0, scale, np.float32(1))))
    return whole.astype(np.float64) * scale


def error(kernel: codebook.CodebookKernel, packed: codebook.Packed, w: Quantized, m: int, threads: int = 1) -> float:
    """The largest error over the RMS of the result, against float64 products of the decoded weight."""
    x = np.random.default_rng(m).standard_normal((m, w.shape[1])).astype(np.float32)
    exact = (rounded(x) if kernel.spec.activation.bits == 8 else x.astype(np.float64)) @ w.decode().astype(np.float64).T
    y = kernel(x, packed, threads=threads)
    return float(np.abs(y - exact).max() / np.sqrt(np.mean(exact**2)))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("text", ["k16 in f16 per *", "k8 in f16 per *", "k40 in f16 per *", "k256 in f16 per *"])
@pytest.mark.parametrize("name", SETS)
def test_products_are_those_of_the_decoded_weight(name: str, text: str, bits: int) -> None:
    w = weight(text)
    kernel = codebook.build(CodebookSpec(N, K, w.format, Activation(bits)), isa.named(name))
    packed = kernel.pack(w)
    for m in (1, 3, 9):
        assert error(kernel, packed, w, m, threads=min(2, HOST.cores)) < 1e-3


@pytest.mark.parametrize("name", SETS)
def test_one_packed_copy_serves_every_precision(name: str) -> None:
    w = weight("n3..8 in f16 per *")
    kernel = codebook.build(CodebookSpec(N, K, w.format, Activation(16)), isa.named(name))
    packed = kernel.pack(w)
    reads = []
    for bits in (3, 4, 8):
        at = kernel.at(bits)
        reads.append(at.read_bytes)
        for m in (1, 9):
            assert error(at, packed, w.at(bits), m) < 1e-3
    assert reads[0] < reads[1] < reads[2], "fewer bits read fewer planes"


@pytest.mark.parametrize("shape", [(1, 1), (2, 64), (15, 65), (130, 700)])
def test_ragged_shapes(shape: tuple[int, int]) -> None:
    w = weight("k16 in f16 per *", *shape)
    kernel = codebook.build(CodebookSpec(*shape, w.format, Activation(16)), isa.best(HOST))
    packed = kernel.pack(w)
    for m in (1, 2, 8):
        assert error(kernel, packed, w, m) < 1e-3


def test_extreme_codes_activations_and_tables() -> None:
    w = weight("k16 in f16 per *")
    kernel = codebook.build(CodebookSpec(N, K, w.format, Activation(8)), isa.best(HOST))
    x = np.full((2, K), 127, np.float32) * np.array([[1], [-1]], np.float32)
    for code in (0, 15):
        some = Quantized(w.format, {**w.parts, "codes": np.full((N, K), code, np.uint8)})
        exact = x.astype(np.float64) @ some.decode().astype(np.float64).T
        most = np.abs(some.parts["table"].astype(np.float64)).max(axis=-1).reshape(-1)
        assert (np.abs(kernel(x, kernel.pack(some)) - exact) <= 127 * K * most / 65000).all()
    none = Quantized(w.format, {**w.parts, "table": np.zeros_like(w.parts["table"])})
    assert not kernel(x, kernel.pack(none)).any()


def test_a_row_in_the_wrong_order_is_noticed() -> None:
    w = weight("k16 in f16 per *")
    kernel = codebook.build(CodebookSpec(N, K, w.format, Activation(16)), isa.best(HOST))
    turned = Quantized(w.format, {**w.parts, "codes": np.roll(w.codes, 1, axis=1)})
    assert error(kernel, kernel.pack(turned), w, 1) > 0.1


def test_bias_and_an_empty_batch() -> None:
    w = weight("k16 in f16 per *")
    kernel = codebook.build(CodebookSpec(N, K, w.format, Activation(16)), isa.best(HOST))
    packed, bias = kernel.pack(w), np.arange(N, dtype=np.float32)
    x = np.ones((1, K), np.float32)
    assert np.allclose(kernel(x, packed, bias), kernel(x, packed) + bias, atol=1e-3)
    assert kernel(x[:0], packed).shape == (0, N)


def test_what_does_not_fit_is_refused() -> None:
    w = weight("k16 in f16 per *")
    kernel = codebook.build(CodebookSpec(N, K, w.format, Activation(8)), isa.best(HOST))
    with pytest.raises(BadInput, match="the kernel is for"):
        kernel.pack(weight("k8 in f16 per *"))
    with pytest.raises(BadInput, match="x is"):
        kernel(np.ones((1, K - 1), np.float32), kernel.pack(w))
    with pytest.raises(NotSupported, match="beside the codes"):
        CodebookSpec(N, K, Format.parse("i4, f16 per 32"), Activation(8))
    with pytest.raises(NotSupported, match="whole row"):
        CodebookSpec(N, K, Format.parse("k16 in f16 per 32"), Activation(8))
