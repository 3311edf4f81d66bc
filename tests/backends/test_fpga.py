"""QDQ and QONNX of one network compute the same numbers, in int8 with powers of two, and a wrong exponent shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import qcc
from qcc.backends.fpga.opset import at_opset
from qcc.backends.fpga.qonnx import to_qonnx
from qcc.ir.errors import NotSupported
from tests import qonnx_forms as forms
from tests.networks import Array, model, normal

IMAGE = "float[1,4,8,8] x"
CONV = "a = Conv<pads=[1,1,1,1]>(x, w, b)"
LAYER = {"w": normal(6, 4, 3, 3, scale=0.3), "b": normal(6, seed=1)}
NETWORKS: dict[str, tuple[str, dict[str, Array]]] = {
    "conv": (f"({IMAGE}) => (float[1,6,8,8] a) {{ {CONV} }}", LAYER),
    "relu": (f"({IMAGE}) => (float[1,6,8,8] y) {{ {CONV} y = Relu(a) }}", LAYER),
    "relu6": (
        f"({IMAGE}) => (float[1,6,8,8] y) {{ {CONV} low = Constant<value_float=0.0>() "
        "high = Constant<value_float=6.0>() y = Clip(a, low, high) }",
        LAYER,
    ),
    "leaky": (f"({IMAGE}) => (float[1,6,8,8] y) {{ {CONV} y = LeakyRelu<alpha=0.125>(a) }}", LAYER),
    "swish": (f"({IMAGE}) => (float[1,6,8,8] y) {{ {CONV} y = HardSwish(a) }}", LAYER),
    "gate": (
        f"({IMAGE}) => (float[1,6,8,8] y) {{ {CONV} p = GlobalAveragePool(a) s = HardSigmoid<alpha=0.2>(p) "
        "y = Mul(a, s) }",
        LAYER,
    ),
    "residual": (
        f"({IMAGE}) => (float[1,6,8,8] y) {{ {CONV} c = Conv<pads=[1,1,1,1]>(x, v) s = Add(a, c) y = Relu(s) }}",
        {**LAYER, "v": normal(6, 4, 3, 3, seed=2)},
    ),
    "constants": (
        f"({IMAGE}) => (float[1,6,8,8] y) {{ {CONV} s = Mul(a, k) y = Add(s, m) }}",
        {**LAYER, "k": normal(6, 1, 1, seed=4), "m": np.array(0.75, np.float32)},
    ),
    "pools": (
        f"({IMAGE}) => (float[1,6,2,2] y) {{ {CONV} m = MaxPool<kernel_shape=[2,2],strides=[2,2]>(a) "
        "y = AveragePool<kernel_shape=[2,2],strides=[2,2]>(m) }",
        LAYER,
    ),
    "concat": (
        f"({IMAGE}) => (float[1,12,8,8] y) {{ {CONV} r = Relu(a) h = HardSwish(r) y = Concat<axis=1>(r, h) }}",
        LAYER,
    ),
    "depthwise": (
        f"({IMAGE}) => (float[1,4,8,8] y) {{ d = Conv<pads=[1,1,1,1], group=4>(x, w, b) r = Relu(d) y = Conv(r, v) }}",
        {"w": normal(4, 1, 3, 3), "b": normal(4), "v": normal(4, 4, 1, 1, seed=3)},
    ),
    "transposed": (
        f"({IMAGE}) => (float[1,3,16,16] y) {{ y = ConvTranspose<strides=[2,2]>(x, w, b) }}",
        {"w": normal(4, 3, 2, 2), "b": normal(3)},
    ),
    "moves": (
        f"({IMAGE}) => (float[1,64,6] y) {{ {CONV} f = Reshape(a, shape) y = Transpose<perm=[0,2,1]>(f) }}",
        {**LAYER, "shape": np.array([1, 6, 64])},
    ),
    "pads": (
        f"({IMAGE}) => (float[1,6,20,20] y) {{ {CONV} e = Pad(a, edges) "
        'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(e, , twice) }',
        {
            **LAYER,
            "edges": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
            "twice": np.array([1, 1, 2, 2], np.float32),
        },
    ),
    "parts": (
        f"({IMAGE}) => (float[6,4,8] y) {{ {CONV} l, r = Split<axis=2, num_outputs=2>(a) s = Add(l, r) "
        "c = Slice(s, begin, end, axes) u = Unsqueeze(c, axis) q = Squeeze(u, drop) y = Relu(q) }",
        {
            **LAYER,
            "begin": np.array([0]),
            "end": np.array([8]),
            "axes": np.array([3]),
            "axis": np.array([4]),
            "drop": np.array([0, 4]),
        },
    ),
    "linear": (
        "(float[3,16] x) => (float[3,5] y) { h = MatMul(x, w) s = Add(h, b) r = Relu(s) y = Gemm<transB=1>(r, v) }",
        {"w": normal(16, 8), "b": normal(8), "v": normal(5, 8)},
    ),
    "head": (
        "(float[2,16] x) => (float[2,4] y) { h = Gemm<transB=1>(x, v, c) y = Softmax(h) }",
        {"v": normal(4, 16, scale=0.2), "c": normal(1, 4)},
    ),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The artifact folder of each network."""
    return {name: build(name, tmp_path_factory.mktemp(name) / "a.qcc") for name in NETWORKS}


def build(name: str, place: Path) -> Path:
    text, weights = NETWORKS[name]
    qcc.compile(model(text, **weights), target="fpga", calibration=inputs(name, 8), output=place)
    return place


def inputs(name: str, count: int, seed: int = 0) -> list[dict[str, Array]]:
    shape = [int(d) for d in NETWORKS[name][0].split("[")[1].split("]")[0].split(",")]
    return [{"x": normal(*shape, seed=seed + i)} for i in range(count)]


@pytest.mark.parametrize("name", NETWORKS)
def test_both_forms_give_the_same_numbers(name: str, compiled: dict[str, Path]) -> None:
    left, right = forms.qdq(compiled[name]), forms.qonnx(compiled[name])
    for sample in inputs(name, 3, seed=50):
        for one, other in zip(forms.run_qdq(left, sample), forms.run_qonnx(right, list(sample.values())), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("form", [forms.qdq, forms.qonnx], ids=["qdq", "qonnx"])
def test_every_scale_is_a_power_of_two_and_every_zero_point_zero(
    name: str, form: object, compiled: dict[str, Path]
) -> None:
    assert callable(form)
    made: ModelProto = form(compiled[name])
    onnx.checker.check_model(made, full_check=form is forms.qdq)
    found = forms.scales(made)
    assert found
    assert all(np.frexp(np.float32(s))[0] == 0.5 for s in found.values()), found
    assert set(forms.zero_points(made)) == {0.0}


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "head"])
def test_no_float_tensor_is_left_between_nodes_of_the_form(name: str, compiled: dict[str, Path]) -> None:
    """Each node reads what a quantizer gives, but for an activation function behind its sum."""
    graph = forms.qonnx(compiled[name]).graph
    made = {o: n.op_type for n in graph.node for o in n.output}
    for node in graph.node:
        data = [i for i in node.input if i in made or i == graph.input[0].name]
        joined = node.op_type in ("Relu", "Clip", "LeakyRelu")
        if node.op_type != "Quant":
            assert all(made.get(i) == "Quant" or (joined and made[i] in ("Conv", "Gemm", "Add")) for i in data), node
    assert all(made[o.name] == "Quant" for o in graph.output)


def test_the_residual_network_matches_integer_arithmetic(compiled: dict[str, Path]) -> None:
    """Conv, Conv, Add and Relu once more in int64 with shifts alone: the codes are equal."""
    graph = forms.qdq(compiled["residual"]).graph
    scale = forms.scales(forms.qdq(compiled["residual"]))
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    node = {n.op_type + str(sum(m.op_type == n.op_type for m in graph.node[:i])): n for i, n in enumerate(graph.node)}
    producer = {o: n for n in graph.node for o in n.output}
    x = inputs("residual", 1, seed=9)[0]["x"]

    def exponent(value: str) -> int:
        return int(np.log2(scale[value]))

    def codes(value: str) -> Array:
        return constants[producer[value].input[0]].astype(np.int64)

    def rounded(total: Array, at: int, to: int) -> Array:
        step = 2.0 ** (to - at)
        return np.clip(np.rint(total / step), -128, 127).astype(np.int64)

    first, second, add = node["Conv0"], node["Conv1"], node["Add0"]
    xq = np.clip(np.rint(x / scale[first.input[0]]), -128, 127).astype(np.int64)
    sums, outs = [], []
    for conv in (first, second):
        at = exponent(conv.input[0]) + exponent(conv.input[1])
        total = convolved(xq, codes(conv.input[1]))
        if len(conv.input) > 2:
            total = total + (codes(conv.input[2]) << (exponent(conv.input[2]) - at)).reshape(1, -1, 1, 1)
        sums.append(total)
        (reader,) = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == conv.output[0]]
        outs.append((rounded(total, at, exponent(reader.output[0])), exponent(reader.output[0])))
    least = min(e for _, e in outs)
    total = sum((c << (e - least) for c, e in outs), np.zeros(1, np.int64))
    (last,) = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.output[0] == graph.output[0].name]
    expected = rounded(np.maximum(total, 0), least, exponent(last.output[0])) * scale[last.output[0]]
    assert producer[add.input[0]].op_type == "DequantizeLinear"
    np.testing.assert_array_equal(
        forms.run_qdq(forms.qdq(compiled["residual"]), {"x": x})[0], expected.astype(np.float32)
    )


def convolved(x: Array, w: Array) -> Array:
    """A 3x3 convolution with padding 1 in integers."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("ncyxhw,ochw->noyx", windows, w)


@pytest.mark.parametrize("name", ["relu", "gate", "linear"])
def test_a_scale_off_by_one_exponent_changes_the_numbers(name: str, compiled: dict[str, Path]) -> None:
    """Mutation check: the comparison of the two forms would catch any single wrong scale."""
    made, sample = forms.qonnx(compiled[name]), inputs(name, 1, seed=50)[0]
    right = forms.run_qonnx(made, list(sample.values()))[0]
    for node in forms.quantizers(made):
        wrong = forms.run_qonnx(forms.shifted(made, node), list(sample.values()))[0]
        assert not np.array_equal(right, wrong), f"nobody notices the scale of {node.name}"


def test_names_are_identifiers_and_tensors_have_shapes(compiled: dict[str, Path]) -> None:
    graph = forms.qonnx(compiled["residual"]).graph
    names = [n.name for n in graph.node] + [t.name for t in (*graph.initializer, *graph.value_info)]
    names += [p.name for p in (*graph.input, *graph.output)]
    assert all(name.isidentifier() for name in names)
    assert len({n.name for n in graph.node}) == len(graph.node)
    typed = {v.name for v in (*graph.value_info, *graph.output)}
    assert {o for n in graph.node for o in n.output} <= typed


def test_ports_get_clean_names_too() -> None:
    proto = model("(float[1] x) => (float[1] y) { y = Relu(x) }")
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "images/0.raw"
    proto.graph.output[0].name = proto.graph.node[0].output[0] = "0"
    graph = to_qonnx(proto).graph
    assert [graph.input[0].name, graph.output[0].name] == ["images_0_raw", "_0"]
    assert [*graph.node[0].input, *graph.node[0].output] == ["images_0_raw", "_0"]


def test_qonnx_cleans_the_model_up_without_changing_it(compiled: dict[str, Path]) -> None:
    from qonnx.core.modelwrapper import ModelWrapper  # type: ignore[import-untyped]
    from qonnx.util.cleanup import cleanup_model  # type: ignore[import-untyped]

    made, sample = forms.qonnx(compiled["gate"]), list(inputs("gate", 1, seed=50)[0].values())
    expected = forms.run_qonnx(made, sample)[0]
    clean = cleanup_model(ModelWrapper(forms.qonnx(compiled["gate"]))).model
    np.testing.assert_array_equal(forms.run_qonnx(clean, sample)[0], expected)


def test_models_come_down_to_opset_20_where_they_can() -> None:
    new = model("(float[1,4] x) => (float[1,4] y) { y = HardSwish(x) }", opset=23)
    new.ir_version = 11
    assert at_opset(new).opset_import[0].version == 20
    assert at_opset(new).ir_version == 9
    norm = model("(float[1,4] x) => (float[1,4] y) { y = RMSNormalization(x, s) }", opset=23, s=normal(4))
    assert at_opset(norm).opset_import[0].version == 23, "20 has no RMSNormalization"


def test_codes_may_be_moved_by_the_host(tmp_path: Path) -> None:
    """ONNX Runtime 1.31 refuses this network at opset 21 and above."""
    text = f"({IMAGE}) => (float[1,8,8,6] y) {{ {CONV} [move] t = Transpose<perm=[0,2,3,1]>(a) y = Softmax(t) }}"
    made = qcc.compile(model(text, **LAYER), target="fpga", calibration=inputs("conv", 4), ignore="move")
    assert made.manifest.error.sqnr_db > 20
    assert next(d.node for d in made.manifest.decisions if d.action == "skipped") == "move"


def test_control_flow_has_no_qonnx_form() -> None:
    proto = model(
        "(bool c, float[1] x) => (float[1] y) { y = If(c) "
        "<then_branch = g1 () => (float[1] a) { a = Relu(x) }, else_branch = g2 () => (float[1] b) { b = Neg(x) }> }"
    )
    with pytest.raises(NotSupported, match="If"):
        to_qonnx(proto)
