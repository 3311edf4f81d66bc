"""Smoothing keeps the network's results and shrinks the outliers of the activations that get one scale."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qcc.frontend.onnx_file import from_model
from qcc.ir.execute import Reference, run
from qcc.ir.program import Program
from qcc.ir.rewrite import ProgramContext
from qcc.passes.calibrate import channel_peaks, linear_inputs
from qcc.passes.smooth_activations import SmoothActivations

K = 24


def network(*, residual: bool, gemm: bool = False) -> ModelProto:
    """LayerNorm with an outlier channel -> two linear layers; with `residual` the norm is read by an Add as well."""
    rng = np.random.default_rng(0)
    scale = np.ones(K, np.float32)
    scale[3] = 60
    weights = {"g": scale, "b": rng.normal(size=K).astype(np.float32)}
    weights |= {f"w{i}": rng.normal(size=(K, K)).astype(np.float32) for i in (0, 1)}
    nodes = [helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"], name="norm")]
    kind, attributes = ("Gemm", {"transB": 1}) if gemm else ("MatMul", {})
    nodes += [helper.make_node(kind, ["n", f"w{i}"], [f"y{i}"], name=f"linear{i}", **attributes) for i in (0, 1)]
    nodes.append(helper.make_node("Add", ["y0", "n" if residual else "y1"], ["y"], name="sum"))
    outputs = ["y", "y1"]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", K])
    ports = [helper.make_tensor_value_info(o, TensorProto.FLOAT, ["rows", K]) for o in outputs]
    tensors = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], ports, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def samples() -> list[dict[str, np.ndarray]]:
    return [{"x": np.random.default_rng(i).normal(size=(5, K)).astype(np.float32)} for i in range(3)]


def smoothed(model: ModelProto, scheme: str = "W8A8", ignore: tuple[str, ...] = ()) -> tuple[Program, Program]:
    before = from_model(model)
    after = before.clone()
    after.peaks = channel_peaks(after, samples())
    SmoothActivations(scheme, ignore).run(after, ProgramContext(program=after))
    after.module.verify()
    return before, after


def spread_of_operands(program: Program) -> float:
    """The ratio of the largest channel peak to the median one, at the worst linear operand."""
    peaks = channel_peaks(program, samples())
    return max(float(p.max() / np.median(p)) for p in peaks.values())


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("gemm", [False, True])
def test_results_stay_and_outliers_shrink(residual: bool, gemm: bool) -> None:
    before, after = smoothed(network(residual=residual, gemm=gemm))
    for sample in samples():
        expected, got = run(before, sample), run(after, sample)
        for name in expected:
            np.testing.assert_allclose(got[name], expected[name], rtol=2e-4, atol=2e-3)
    assert spread_of_operands(after) < 0.3 * spread_of_operands(before)


def test_a_norm_read_by_linear_layers_alone_takes_the_division_in() -> None:
    _, folded = smoothed(network(residual=False))
    _, multiplied = smoothed(network(residual=True))
    assert not any(op.name == "onnx.Mul" for op in folded.module.walk())
    assert sum(op.name == "onnx.Mul" for op in multiplied.module.walk()) == 1


def test_layers_left_float_are_not_touched() -> None:
    before, after = smoothed(network(residual=False), ignore=("re:linear",))
    assert after.module.is_structurally_equivalent(before.module)
    _, weights_only = smoothed(network(residual=False), scheme="W4A16")
    assert weights_only.module.is_structurally_equivalent(before.module)


def test_the_new_operand_can_be_calibrated() -> None:
    _, after = smoothed(network(residual=True))
    values = linear_inputs(after)
    assert len(values) == 1
    assert Reference(after, values).fetch(samples()[0])[0].shape == (5, K)
