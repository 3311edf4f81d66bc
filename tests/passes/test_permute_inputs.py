"""Weights in permuted columns keep every value when their inputs are permuted instead, and reach a kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcc.ir.execute import run
from qcc.ir.program import Program, StoredCodes, stored_value
from qcc.passes.permute_inputs import PermuteInputs
from qcc.passes.pipeline import QuantizeOptions, quantize
from qcc.passes.quantize_linear import QuantizeLinear
from tests.backends.lowering import built, decibels
from tests.ir.formats_of_the_field import random_value
from tests.networks import normal, program, rewritten


def layers(text: str) -> Program:
    """A layer whose stored codes are permuted between two that stay float."""
    value = random_value(text, (48, 64), seed=1)
    form = "(float[N,64] x) => (float[N,8] y) { [a] a = MatMul(x, u) [b] b = MatMul(a, w) [c] y = MatMul(b, v) }"
    made = program(form, u=normal(64, 64), w=np.ascontiguousarray(value.decode().T), v=normal(48, 8))
    made.stored = {"w": StoredCodes(value, "TEST")}
    return made


@pytest.mark.parametrize("text", ["i4, f16 per 32, permuted", "u4, f16 per 16, zero u4, permuted"])
def test_the_numbers_stay_and_the_order_goes(text: str) -> None:
    before = rewritten(layers(text), QuantizeLinear("W8A16", ignore=("a", "c")))
    after = rewritten(before, PermuteInputs())
    (weight,) = [op for op in after.weight_ops() if op.weight == "w.q"]
    value = stored_value(weight, after)
    value.check("w")
    assert str(value.format) == text.removesuffix(", permuted")
    (old,) = [op for op in before.weight_ops() if op.weight == "w.q"]
    order = before.weights["w.q.order"]
    np.testing.assert_array_equal(value.decode(), stored_value(old, before).decode()[:, order])
    assert not np.array_equal(order, np.arange(64))
    feeds = {"x": normal(3, 64, seed=2)}
    np.testing.assert_allclose(run(after, feeds)["y"], run(before, feeds)["y"], rtol=1e-4, atol=1e-4)


def test_outliers_are_of_the_columns_as_they_were() -> None:
    before = rewritten(layers("i4, f16 per 32, permuted, outliers f16 csr"), QuantizeLinear("W8A16", ignore=("a", "c")))
    after = rewritten(before, PermuteInputs())
    assert "w.q.order" in after.weights


@pytest.mark.parametrize("scheme", ["W8A16", "W8A8_GROUP"])
def test_act_order_reaches_a_kernel(scheme: str, tmp_path: Path) -> None:
    options = QuantizeOptions(scheme, ignore=("a", "c"))
    subject = rewritten(layers("u4, f16 per 32, zero u4, permuted"), *quantize(options))
    found = decibels(subject, built(subject, "matmul_nbits", tmp_path), [{"x": normal(5, 64, seed=3)}])
    assert min(found) >= (110 if scheme == "W8A16" else 60)
