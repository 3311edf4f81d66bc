"""Codes of a quantized ONNX model: the same numbers before and after, in every orientation, or a reason to leave it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.execute import run
from qcc.ir.program import Program
from qcc.passes.keep_codes import KeepCodes
from tests.networks import names, normal, program, reasons, rewritten

Array = NDArray[Any]
RNG = np.random.default_rng(0)
CODES = RNG.integers(-128, 128, (32, 24)).astype(np.int8)
UNSIGNED = CODES.view(np.uint8)
BY_COLUMN = RNG.uniform(0.01, 0.02, 24).astype(np.float32)
BY_ROW = RNG.uniform(0.01, 0.02, 32).astype(np.float32)
BLOCKS = RNG.uniform(0.01, 0.02, (2, 24)).astype(np.float32)
ZEROS = RNG.integers(0, 256, (2, 24)).astype(np.uint8)
ONE = np.array(0.5, np.float32)

KEPT: dict[str, tuple[str, dict[str, Array], str]] = {
    "by tensor": ("w = DequantizeLinear(c, s) y = MatMul(x, w)", {"c": CODES, "s": ONE}, "i8, f32 per tensor"),
    "by column": (
        "w = DequantizeLinear<axis=1>(c, s) y = MatMul(x, w)",
        {"c": CODES, "s": BY_COLUMN},
        "i8, f32 per *",
    ),
    "by row of the matrix": (
        "w = DequantizeLinear<axis=0>(c, s) y = MatMul(x, w)",
        {"c": CODES, "s": BY_ROW},
        "i8, f32 per *x1",
    ),
    "by block": (
        "w = DequantizeLinear<axis=0, block_size=16>(c, s, z) y = MatMul(x, w)",
        {"c": UNSIGNED, "s": BLOCKS, "z": ZEROS},
        "u8, f32 per 16, zero u8",
    ),
    "turned": (
        "w = DequantizeLinear<axis=-1, block_size=16>(c, s, z) t = Transpose<perm=[1,0]>(w) y = MatMul(x, t)",
        {"c": UNSIGNED.T.copy(), "s": BLOCKS.T.copy(), "z": ZEROS.T.copy()},
        "u8, f32 per 16, zero u8",
    ),
    "Gemm": (
        "w = DequantizeLinear<axis=0>(c, s) y = Gemm<transB=1>(x, w, b)",
        {"c": CODES.T.copy(), "s": BY_COLUMN, "b": normal(24)},
        "i8, f32 per *",
    ),
}


def model(body: str, weights: dict[str, Array]) -> Program:
    return program(f"(float[N,32] x) => (float[N,24] y) {{ {body} }}", **weights)


@pytest.mark.parametrize("case", KEPT)
def test_kept_codes_are_the_same_numbers(case: str) -> None:
    body, weights, text = KEPT[case]
    before = model(body, weights)
    after = rewritten(before, KeepCodes())
    assert names(after).count("q.linear") == 1 and not any("Dequantize" in n for n in names(after))
    weight = next(op for op in after.weight_ops() if "q.tensor" in str(op.result.type))
    assert str(weight.result.type.format) == text  # type: ignore[attr-defined]
    feeds = {"x": normal(3, 32, seed=4)}
    np.testing.assert_allclose(run(after, feeds)["y"], run(before, feeds)["y"], rtol=1e-5, atol=1e-5)


def test_a_shifted_zero_point_would_be_seen() -> None:
    body, weights, _ = KEPT["by block"]
    feeds = {"x": normal(3, 32, seed=4)}
    wrong = rewritten(model(body, {**weights, "z": (ZEROS + 1).astype(np.uint8)}), KeepCodes())
    assert np.abs(run(wrong, feeds)["y"] - run(model(body, weights), feeds)["y"]).max() > 1e-3


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("w = DequantizeLinear(c, s) y = Gemm<alpha=2.0>(x, w)", {"c": CODES, "s": ONE}, "its product scaled"),
        (
            "f = DequantizeLinear(c, s) q = QuantizeLinear(f, s) w = DequantizeLinear(q, s) y = MatMul(x, w)",
            {"c": CODES, "s": ONE},
            "the second operand is computed",
        ),
        (
            "u = Add(s, s) w = DequantizeLinear(c, u) y = MatMul(x, w)",
            {"c": CODES, "s": ONE},
            "its scales are computed",
        ),
        (
            "w = DequantizeLinear<axis=1>(c, s) y = MatMul(x, w)",
            {"c": RNG.integers(-9, 9, (32, 24)).astype(np.int16), "s": BY_COLUMN},
            "codes of int16",
        ),
    ],
)
def test_what_stays_says_why(body: str, weights: dict[str, Array], reason: str) -> None:
    after = rewritten(model(body, weights), KeepCodes())
    assert "q.linear" not in names(after)
    assert any(reason in r for r in reasons(after, "keep_codes declined"))


def test_float_products_are_not_looked_at() -> None:
    after = rewritten(model("y = MatMul(x, w)", {"w": normal(32, 24)}), KeepCodes())
    assert names(after) == ["MatMul"] and not after.decisions
