"""Every opset that comes in computes the same at the opset it is raised to, or is refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from qcc.frontend.onnx_file import HIGHEST_OPSET, LOWEST_OPSET, from_model
from qcc.ir.emit_onnx import emit
from qcc.ir.errors import NotSupported
from qcc.ir.execute import run
from tests import networks
from tests.ir.helpers import floats, onnx_model, run_model
from tests.networks import normal

RNG = np.random.default_rng(0)


def feeds_of(model: ModelProto) -> dict[str, np.ndarray]:
    """Random inputs; dynamic dimensions get 2."""
    feeds: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        shape = [d.dim_value or 2 for d in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feeds[value.name] = np.asarray(RNG.normal(size=shape) * 3).astype(dtype)
    return feeds


IMAGE = "(float[2,3,8,8] x)"
TWICE = {"s": np.array([1, 1, 2, 2], np.float32)}
NO_ROI = {"r": np.empty(0, np.float32)}
NORM = {"a": normal(3), "b": normal(3, seed=1), "v": np.abs(normal(3, seed=2))}
OLD_MODELS: dict[str, tuple[int, str, dict[str, np.ndarray]]] = {
    "7 clip, dropout": (
        7,
        f"{IMAGE} => (float[2,3,8,8] y) {{ d = Dropout<ratio=0.3>(x) y = Clip<min=0.0, max=0.5>(d) }}",
        {},
    ),
    "7 batch norm": (7, f"{IMAGE} => (float[2,3,8,8] y) {{ y = BatchNormalization(x, a, b, b, v) }}", NORM),
    "7 pad, slice": (
        7,
        f"{IMAGE} => (float[2,3,2,9] y) {{ p = Pad<pads=[0,0,1,0,0,0,1,1], value=2.0>(x) "
        "y = Slice<axes=[2], starts=[1], ends=[3]>(p) }",
        {},
    ),
    "7 top k": (7, f"{IMAGE} => (float[2,3,8,2] y, int64[2,3,8,2] i) {{ y, i = TopK<k=2>(x) }}", {}),
    "7 gemm": (
        7,
        "(float[2,4] x) => (float[2,3] y) { y = Gemm<transB=1>(x, w, b) }",
        {"w": normal(3, 4), "b": normal(3)},
    ),
    "7 lstm": (
        7,
        "(float[5,2,4] x) => (float[5,1,2,3] y) { y = LSTM<hidden_size=3>(x, w, r) }",
        {"w": normal(1, 12, 4), "r": normal(1, 12, 3)},
    ),
    "7 upsample nearest": (
        7,
        f'{IMAGE} => (float[2,3,12,24] y) {{ y = Upsample<mode="nearest", scales=[1.0,1.0,1.5,3.0]>(x) }}',
        {},
    ),
    "7 upsample linear": (
        7,
        f'{IMAGE} => (float[2,3,16,16] y) {{ y = Upsample<mode="linear", scales=[1.0,1.0,2.0,2.0]>(x) }}',
        {},
    ),
    "9 upsample linear": (9, f'{IMAGE} => (float[2,3,16,16] y) {{ y = Upsample<mode="linear">(x, s) }}', TWICE),
    "9 upsample by computed scales": (
        9,
        "(float[2,3,8,8] x, float[4] s) => (float[a,b,c,d] y) { k = Constant<value = float[4] {0.0, 0.0, 0.0, 0.0}>() "
        "t = Mul(s, k) o = Exp(t) y = Upsample(x, o) }",
        {},
    ),
    "9 scatter": (
        9,
        "(float[3,3] x) => (float[3,3] y) { y = Scatter<axis=0>(x, i, u) }",
        {"i": np.array([[1, 0, 2]]), "u": normal(1, 3)},
    ),
    "10 resize linear": (10, f'{IMAGE} => (float[2,3,16,16] y) {{ y = Resize<mode="linear">(x, s) }}', TWICE),
    "10 resize nearest, larger": (10, f'{IMAGE} => (float[2,3,16,16] y) {{ y = Resize<mode="nearest">(x, s) }}', TWICE),
    "10 resize nearest, smaller": (
        10,
        f'{IMAGE} => (float[2,3,6,4] y) {{ y = Resize<mode="nearest">(x, s) }}',
        {"s": np.array([1, 1, 0.75, 0.6], np.float32)},
    ),
    "10 resize by a constant node": (
        10,
        f"{IMAGE} => (float[2,3,16,16] y) "
        "{ s = Constant<value = float[4] {1.0, 1.0, 2.0, 2.0}>() y = Resize(x, s) }",
        {},
    ),
    "10 quantize": (
        10,
        "(float[2,3] x) => (float[2,3] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
        {"s": np.array(0.1, np.float32), "z": np.array(3, np.uint8)},
    ),
    "11 softmax over several axes": (11, f"{IMAGE} => (float[2,3,8,8] y) {{ y = Softmax(x) }}", {}),
    "11 log softmax, dynamic": (11, "(float[n,3,h,8] x) => (float[n,3,h,8] y) { y = LogSoftmax<axis=2>(x) }", {}),
    "11 axes as attributes": (
        11,
        f"{IMAGE} => (float[2,3] y) {{ u = Unsqueeze<axes=[0,2]>(x) q = Squeeze<axes=[0,2]>(u) "
        "r = ReduceSum<axes=[2], keepdims=0>(q) y = ReduceMax<axes=[-1], keepdims=0>(r) }",
        {},
    ),
    "11 split": (11, f"{IMAGE} => (float[2,3,3,8] y, float[2,3,5,8] z) {{ y, z = Split<axis=2, split=[3,5]>(x) }}", {}),
    "11 resize": (11, f'{IMAGE} => (float[2,3,16,16] y) {{ y = Resize<mode="cubic">(x, r, s) }}', {**TWICE, **NO_ROI}),
    "11 in subgraphs": (
        11,
        "(float[2,3] x, bool c) => (float[2,3] y) { y = If<"
        "then_branch = t () => (float[2,3] a) { u = Unsqueeze<axes=[0]>(x) a = Squeeze<axes=[0]>(u) }, "
        "else_branch = e () => (float[2,3] b) { b = Softmax<axis=0>(x) }>(c) }",
        {},
    ),
    "11 contrib": (
        11,
        "(float[2,3] x) => (float[2] y) { h = com.microsoft.Gelu(x) y = ReduceSum<axes=[1], keepdims=0>(h) }",
        {},
    ),
    "12 dropout, arg max": (12, f"{IMAGE} => (int64[2,3,1,8] y) {{ d = Dropout(x) y = ArgMax<axis=2>(d) }}", {}),
    "13 split, reduce": (
        13,
        f"{IMAGE} => (float[2,3,4,1] y, float[2,3,4,8] z) {{ h, z = Split<axis=2>(x) y = ReduceMean<axes=[3]>(h) }}",
        {},
    ),
    "16 grid sample": (
        16,
        '(float[1,1,4,4] x, float[1,2,2,2] g) => (float[1,1,2,2] y) { y = GridSample<mode="bicubic">(x, g) }',
        {},
    ),
    "17 layer norm": (
        17,
        "(float[2,3,8] x) => (float[2,3,8] y) { y = LayerNormalization(x, a, b) }",
        {"a": normal(8), "b": normal(8)},
    ),
    "17 dft": (17, "(float[1,8,6,1] x) => (float[1,8,6,2] y) { y = DFT<axis=2>(x) }", {}),
    "18 split": (18, "(float[2,7] x) => (float[2,4] y, float[2,3] z) { y, z = Split<axis=1, num_outputs=2>(x) }", {}),
    "20 gelu": (20, f'{IMAGE} => (float[2,3,8,8] y) {{ y = Gelu<approximate="tanh">(x) }}', {}),
    "21 blocked weights": (
        21,
        "(float[2,64] x) => (float[2,4] y) { d = DequantizeLinear<axis=0, block_size=32>(w, s) y = MatMul(x, d) }",
        {"w": RNG.integers(-8, 8, (64, 4)).astype(ml_dtypes.int4), "s": np.abs(normal(2, 4))},
    ),
    "23 rms norm, attention": (
        23,
        "(float[1,2,5,8] x) => (float[1,2,5,8] y) { h = RMSNormalization(x, a) y = Attention(h, h, h) }",
        {"a": normal(8)},
    ),
}


@pytest.mark.parametrize("case", OLD_MODELS)
def test_model_computes_the_same_after_import(case: str) -> None:
    opset, text, weights = OLD_MODELS[case]
    model = networks.model(text, opset=opset, **weights)
    feeds = feeds_of(model)
    expected = run_model(model, feeds)
    imported = from_model(model)
    for found in (list(run(imported, feeds).values()), run_model(emit(imported).embed(imported.weights), feeds)):
        for left, right in zip(found, expected, strict=True):
            assert left.dtype == right.dtype
            np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-6)
    assert emit(imported).proto.opset_import[0].version == max(opset, LOWEST_OPSET)


REFUSED_OPSETS = {
    "hardmax over several axes": (
        11,
        f"{IMAGE} => (float[2,3,8,8] y) {{ [h] y = Hardmax(x) }}",
        {},
        "node 'h': Hardmax had another meaning",
    ),
    "resize by scales on both sides of 1": (
        10,
        f"{IMAGE} => (float[2,3,4,16] y) {{ [r] y = Resize(x, s) }}",
        {"s": np.array([1, 1, 0.5, 2], np.float32)},
        "node 'r': how Resize rounded at opset 10 depends on its scales",
    ),
    "resize by computed scales": (
        10,
        "(float[2,3,8,8] x, float[4] s) => (float[a,b,c,d] y) { [r] y = Resize(x, s) }",
        {},
        "node 'r': how Resize rounded at opset 10 depends on its scales",
    ),
}


@pytest.mark.parametrize("case", REFUSED_OPSETS)
def test_old_operator_that_would_compute_something_else_is_not_supported(case: str) -> None:
    opset, text, weights, message = REFUSED_OPSETS[case]
    with pytest.raises(NotSupported, match=message) as caught:
        from_model(networks.model(text, opset=opset, **weights))
    assert "opset" in caught.value.hint


def test_scan_of_opset_8_is_not_supported() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "r"], ["t"]), helper.make_node("Identity", ["t"], ["o"])],
        "body",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("s", "r")],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("t", "o")],
    )
    node = helper.make_node("Scan", ["", "i", "x"], ["y", "z"], body=body, num_scan_inputs=1)
    model = onnx_model(
        [node], {"i": floats(1, 2), "x": floats(1, 3, 2)}, {"y": floats(1, 2), "z": floats(1, 3, 2)}, opset=8
    )
    with pytest.raises(NotSupported, match="Scan had another meaning before opset 9"):
        from_model(model)


@pytest.mark.parametrize(
    ("opset", "word"), [(5, "older than 7"), (6, "older than 7"), (27, f"newer than {HIGHEST_OPSET}")]
)
def test_opset_outside_the_range_is_not_supported(opset: int, word: str) -> None:
    model = networks.model("(float[2] x) => (float[2] y) { y = Relu(x) }")
    model.opset_import[0].version = opset
    with pytest.raises(NotSupported, match=f"opset {opset} is {word}") as caught:
        from_model(model)
    assert caught.value.code == 3
