"""An oracle for kernels with codebooks: random weights with tables, and what their products have to be.

Whole numbers, where every result is one rounding of an exact sum and has to be met bit for bit; and the decoded weight
in float64, within half a step of the tables.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcc.backends.native import codebook, isa, linear
from qcc.backends.native.codebook import CodebookKernel
from qcc.backends.native.codebook_spec import CodebookSchedule, CodebookSpec
from qcc.backends.native.linear_spec import Activation
from qcc.ir import target
from qcc.ir.format import Format
from qcc.ir.levels import level_dtype
from qcc.ir.quantized import Quantized
from tests.backends.native_oracle import LIMITS, host_isas, rounded

HOST = target.load("cpu")
SETS = [name for name in host_isas() if name != "amx"]
"""The best of this host first."""
N, K = 37, 500
WHOLE = 32767
"""The largest whole number of a table; with it, a row of whole numbers has the step 1."""
ONE, TWO = CodebookSchedule(rows=2, tile=1), CodebookSchedule(rows=2, tile=2)
"""Small tiles: the default ones take a compiler several times as long."""


def weight(text: str, n: int = N, k: int = K, *, whole: bool = False, seed: int = 0) -> Quantized:
    """Random codes, and for each row a table of random values; whole numbers, or with an outlier."""
    rng, fmt = np.random.default_rng(seed), Format.parse(text)
    assert fmt.codebook is not None
    entries, parts = fmt.codebook.entries, dict[str, NDArray[np.generic]]()
    for name, level in fmt.levels().items():
        dtype, size = level_dtype(level.dtype).numpy, level.shape_of((n, k))
        if name != "table":
            parts[name] = rng.uniform(0.1, 2, size).astype(dtype)
            continue
        table = rng.integers(-WHOLE, WHOLE + 1, (*size, entries)) if whole else rng.standard_normal((*size, entries))
        if whole:  # in the table of each precision
            begins = [0] if fmt.element[0] == "k" else np.cumsum([0, *(1 << np.arange(fmt.bits, 2, -1))])[:-1]
            table[..., begins] = rng.choice([-WHOLE, WHOLE], (*size, len(begins)))
        else:
            table[..., -1] *= 8
        parts[name] = table.astype(dtype)
    codes = rng.integers(0, min(entries, 1 << fmt.bits), (n, k)).astype(np.uint8)
    return Quantized(fmt, {"codes": codes, **parts})


def build(
    w: Quantized, bits: int = 8, name: str = "", schedule: CodebookSchedule | None = TWO, precision: int = 0
) -> CodebookKernel:
    """The kernel of a weight."""
    (n, k), chosen = w.shape, isa.named(name) if name else isa.best(HOST)
    return codebook.build(CodebookSpec(n, k, w.format, Activation(bits), precision), chosen, schedule)


def whole_activations(m: int, k: int, bits: int, seed: int = 1) -> NDArray[np.float32]:
    """Whole numbers of all sizes with the largest in every row, so that its scale is 1."""
    x = np.random.default_rng(seed).integers(-LIMITS[bits], LIMITS[bits] + 1, (m, k))
    x[:, 0] = LIMITS[bits]
    return x.astype(np.float32)


def check_exact(kernel: CodebookKernel, packed: linear.Packed, w: Quantized, m: int, threads: int = 1) -> None:
    """Every result is its exact sum, rounded once."""
    x = whole_activations(m, w.shape[1], kernel.spec.activation.bits)
    exact = x.astype(np.int64) @ w.decode().astype(np.int64).T
    y = kernel(x, packed, out=np.full(exact.shape, np.nan, np.float32), threads=threads)
    np.testing.assert_array_equal(y, exact.astype(np.float32))


def check_near(kernel: CodebookKernel, packed: linear.Packed, w: Quantized, m: int, threads: int = 1) -> None:
    """Within half a step of each value times the activations, which are rounded as it is documented."""
    rng, (_, k) = np.random.default_rng(m), w.shape
    x = rng.standard_normal((m, k)).astype(np.float32) * np.exp(rng.standard_normal((m, 1))).astype(np.float32)
    q, scale = rounded(x, kernel.spec.activation, np.zeros(1, np.int64))
    values, held = w.decode().astype(np.float64), q * scale
    tables = np.abs(np.asarray(w.parts["table"], np.float64)).max(axis=-1).reshape(-1)
    if w.format.scales:
        tables = tables * np.asarray(w.parts["scale"], np.float64).reshape(-1)
    step = np.broadcast_to(tables, w.shape[:1]) / WHOLE
    terms = np.abs(held) @ np.abs(values).T
    y = kernel(x, packed, out=np.full(terms.shape, np.nan, np.float32), threads=threads)
    allowed = 0.5001 * np.abs(held).sum(1, keepdims=True) * step + 2.0**-22 * terms
    assert (np.abs(y - held @ values.T) <= allowed).all()
    if kernel.spec.activation.bits == 16:
        exact = x.astype(np.float64) @ values.T
        assert np.abs(y - exact).max() < 1e-3 * np.sqrt((exact**2).mean())
