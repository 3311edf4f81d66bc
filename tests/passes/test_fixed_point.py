"""Fixed point: which nodes the form holds, which tensors share a scale, where rounding is left out, what is skipped."""

from __future__ import annotations

import numpy as np
import pytest

from qcc.ir.dialects.q import Conv, Dequantize, Linear, Quantize
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.execute import run
from qcc.ir.program import Program
from qcc.ir.rewrite import ProgramContext, array_of
from qcc.ir.text import check, parse, show
from qcc.ir.types import QuantizedType
from qcc.passes import pipeline
from qcc.passes.calibrate import calibrate
from qcc.passes.quantize_bias import bias_scale, decoded_bias
from qcc.passes.quantize_fixed_point import QuantizeFixedPoint
from tests.networks import Array, agreement, names, normal, program, reasons

CONV = {"w": normal(6, 4, 3, 3, scale=0.3), "b": normal(6, seed=1)}
IMAGE = "float[1,4,8,8] x"


def fixed(
    text: str, *, ignore: tuple[str, ...] = (), shape: tuple[int, ...] = (1, 4, 8, 8), **weights: Array
) -> Program:
    """A network after the passes of XINT8, calibrated on normal inputs."""
    made = program(text, **weights)
    ctx = ProgramContext(program=made)
    samples = [{"x": normal(*shape, seed=i)} for i in range(6)]
    pipeline.run(pipeline.smooth("XINT8", ()), made, ctx)
    ctx.statistics = calibrate(made, samples)
    pipeline.run(pipeline.quantize(pipeline.QuantizeOptions("XINT8", ignore=ignore)), made, ctx)
    return made


def scales(made: Program) -> list[float]:
    """The scales of the activations, from the top down."""
    found = [array_of(op.slot(1), made) for op in made.body.ops if isinstance(op, Quantize)]
    return [float(s) for s in found if s is not None]


def test_a_convolution_stands_between_codes() -> None:
    made = fixed(f"({IMAGE}) => (float[1,6,8,8] y) {{ [conv] y = Conv<pads=[1,1,1,1]>(x, w, b) }}", **CONV)
    assert names(made) == ["q.quantize", "q.dequantize", "q.conv", "q.quantize", "q.dequantize"]
    (conv,) = [op for op in made.body.ops if isinstance(op, Conv)]
    assert str(conv.weight_type().format) == "i8, e8m0 per tensor"
    assert isinstance(conv.operands[0].type, QuantizedType)
    bias = decoded_bias(conv.slot(2), made)
    assert bias is not None
    assert float(np.abs(bias - CONV["b"]).max()) <= float(np.abs(CONV["b"]).max()) / 64
    assert reasons(made, "fixed point")[0].startswith("result in 2^")


def test_the_fixed_point_network_computes_nearly_what_the_float_network_does() -> None:
    text = f"({IMAGE}) => (float[1,6,8,8] y) {{ a = Conv<pads=[1,1,1,1]>(x, w, b) y = HardSwish(a) }}"
    assert agreement(program(text, **CONV), fixed(text, **CONV), {"x": normal(1, 4, 8, 8, seed=40)}) > 30


def test_the_ir_prints_and_parses() -> None:
    made = fixed(f"({IMAGE}) => (float[1,6,8,8] y) {{ y = Conv<pads=[1,1,1,1]>(x, w, b) }}", **CONV)
    again = Program(parse(show(made.module)), made.weights)
    check(again.module, "again")
    assert show(again.module) == show(made.module)
    np.testing.assert_array_equal(*(run(p, {"x": normal(1, 4, 8, 8)})["y"] for p in (made, again)))


@pytest.mark.parametrize("activation", ["Relu(s)", "LeakyRelu<alpha=0.1>(s)", "Clip(s, zero, six)"])
def test_an_activation_behind_a_sum_runs_before_rounding(activation: str) -> None:
    made = fixed(
        f"({IMAGE}) => (float[1,6,8,8] y) {{ s = Conv<pads=[1,1,1,1]>(x, w, b) y = {activation} }}",
        **CONV,
        zero=np.array(0, np.float32),
        six=np.array(6, np.float32),
    )
    assert names(made)[2:] == ["q.conv", activation.split("(")[0].split("<")[0], "q.quantize", "q.dequantize"]


def test_a_sum_that_others_read_is_rounded_itself() -> None:
    made = fixed(
        f"({IMAGE}) => (float[1,6,8,8] y) {{ s = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(s) y = Add(s, r) }}", **CONV
    )
    assert names(made).count("q.quantize") == 4, "x, s, r and y"


def test_operators_that_move_or_average_codes_share_one_scale() -> None:
    made = fixed(
        f"({IMAGE}) => (float[1,12,1,1] y) {{ a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) h = HardSwish(r) "
        "c = Concat<axis=1>(r, h) m = MaxPool<kernel_shape=[2,2]>(c) y = GlobalAveragePool(m) }",
        **CONV,
    )
    first, *others = scales(made)
    assert first != others[0]
    assert len(others) == 5
    assert len(set(others)) == 1


def test_additions_and_products_have_scales_of_their_own_and_constants_become_codes() -> None:
    made = fixed(
        f"({IMAGE}) => (float[1,6,8,8] y) {{ a = Conv<pads=[1,1,1,1]>(x, w, b) p = Mul(a, k) y = Add(p, m) }}",
        **CONV,
        k=np.full((6, 1, 1), 40, np.float32),
        m=np.array(0.5, np.float32),
    )
    assert len(set(scales(made))) >= 3
    decoded = [op for op in made.body.ops if isinstance(op, Dequantize)]
    assert sum(not isinstance(op.operands[0].owner, Quantize) for op in decoded) == 3, "two constants and the bias"


def test_what_the_form_does_not_hold_stays_float_with_a_reason() -> None:
    made = fixed(
        f"({IMAGE}) => (float[1,6,8,8] y) {{ [conv] a = Conv<pads=[1,1,1,1]>(x, w, b) [soft] y = Softmax(a) }}", **CONV
    )
    assert names(made)[-1] == "Softmax"
    assert [(d.node, d.reason) for d in made.decisions if d.action == "skipped"] == [
        ("soft", "the fixed-point form has no Softmax")
    ]


def test_a_node_far_from_layers_stays_float() -> None:
    made = fixed(
        f"({IMAGE}) => (float[1,6,8,8] y) {{ [relu] r = Relu(x) [conv] y = Conv<pads=[1,1,1,1]>(r, w, b) }}", **CONV
    )
    assert names(made)[0] == "Relu"
    assert reasons(made, "skipped") == ["none of its operands comes from a node of the form"]


def test_nodes_outside_read_what_the_host_computed_in_float() -> None:
    made = fixed(
        f"({IMAGE}) => (float[1,4,8,8] y, float[1,4,8,8] z) {{ y = Conv<pads=[1,1,1,1]>(x, v) z = Softmax(x) }}",
        v=normal(4, 4, 3, 3),
    )
    (softmax,) = [op for op in made.body.ops if op.name == "onnx.Softmax"]
    assert softmax.operands[0] is made.body.args[0]


@pytest.mark.parametrize("name", ["conv", "relu", "re:^r"])
def test_ignored_nodes_stay_float(name: str) -> None:
    made = fixed(
        f"({IMAGE}) => (float[1,6,8,8] y) {{ [first] f = Conv<pads=[1,1,1,1]>(x, v) "
        "[conv] a = Conv<pads=[1,1,1,1]>(f, w, b) [relu] y = Relu(a) }",
        ignore=(name,),
        **CONV,
        v=normal(4, 4, 3, 3),
    )
    assert f"ignored by {name!r}" in reasons(made, "skipped")
    assert ("Conv" in names(made)) == (name == "conv")


def test_weights_that_are_computed_and_other_obstacles_are_told() -> None:
    made = fixed(
        f"({IMAGE}) => (float[1,4,8,8] y) {{ [conv] a = Conv<pads=[1,1,1,1]>(x, v) [self] m = MatMul(a, a) "
        '[stack] s = MatMul(m, t) [edge] e = Pad<mode="reflect">(s, pads) [slice] y = Slice(e, one, nine, axes) }',
        v=normal(4, 4, 3, 3),
        t=normal(8, 8),
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        one=np.array([1, 1]),
        nine=np.array([9, 9]),
        axes=np.array([2, 3]),
    )
    assert {d.node: d.reason for d in made.decisions if d.action == "skipped"} == {
        "self": "both operands are computed",
        "stack": "its operand has rank 4: the form multiplies matrices only",
        "edge": "it pads with other values than zero",
        "slice": "none of its operands comes from a node of the form",
    }


def test_a_network_without_any_layer_of_the_form_is_refused() -> None:
    with pytest.raises(NotSupported, match="no layer"):
        fixed("(float[1,4,8,8] x) => (float[1,4,8,8] y) { y = Softmax(x) }")


def test_a_matrix_product_takes_its_bias_in_before_ranges_are_taken() -> None:
    made = fixed(
        "(float[3,16] x) => (float[3,5] y) { [product] p = MatMul(x, w) y = Add(b, p) }",
        shape=(3, 16),
        w=normal(16, 5),
        b=100 + normal(5),
    )
    (linear,) = [op for op in made.body.ops if isinstance(op, Linear)]
    assert linear.node == "product"
    assert scales(made)[-1] >= 0.5, "the range of the result holds the bias"


def test_shifts_beyond_what_dpus_take_are_told() -> None:
    made = fixed(
        f"({IMAGE}) => (float[1,6,8,8] y) {{ [conv] a = Conv<pads=[1,1,1,1]>(x, w) [far] y = Add(a, k) }}",
        w=normal(6, 4, 3, 3),
        k=np.full((6, 1, 1), 1e4, np.float32) + normal(6, 1, 1),
    )
    told = {d.node: d.reason for d in made.decisions if d.action == "fixed point"}
    assert told["far"].endswith("(DPUs take 0 to 7 only)")
    assert "DPUs" not in told["conv"]


def test_a_bias_is_no_finer_than_the_sum_and_not_beyond_its_shift() -> None:
    fmt = pipeline.schemes.load("XINT8").bias_format
    step = 2.0**-12
    assert bias_scale(np.array([1e-9], np.float32), step, fmt) == step
    assert bias_scale(np.array([step * 100], np.float32), step, fmt) == step
    assert bias_scale(np.array([step * 1000], np.float32), step, fmt) == step * 8
    assert bias_scale(np.array([1e9], np.float32), step, fmt) == step * 2**15


def test_a_bias_that_no_shift_reaches_is_refused_with_the_node() -> None:
    with pytest.raises(NotSupported, match="its bias is more than") as raised:
        fixed(
            f"({IMAGE}) => (float[1,6,8,8] y) {{ [conv] y = Conv<pads=[1,1,1,1]>(x, w, b) }}",
            w=normal(6, 4, 3, 3, scale=1e-6),
            b=normal(6) * 100,
        )
    assert "--ignore conv" in raised.value.hint


def test_ranges_of_another_program_are_refused() -> None:
    made = program(f"({IMAGE}) => (float[1,6,8,8] y) {{ y = Conv<pads=[1,1,1,1]>(x, w, b) }}", **CONV)
    weights = pipeline.quantize(pipeline.QuantizeOptions("XINT8"))[1]
    pipeline.run([weights], made, ProgramContext(program=made))
    with pytest.raises(BadInput, match="no calibration statistics"):
        QuantizeFixedPoint().run(made, ProgramContext(program=made))
