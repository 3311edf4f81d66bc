"""Generated dialects: every operator is there, and the verifier holds each operation to its schema."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema
from xdsl.utils.exceptions import VerifyException

from qcc.frontend.onnx_file import from_model
from qcc.ir.dialects import schema
from qcc.ir.dialects.onnx import OnnxOp, compatible, dialect, operator
from qcc.ir.dialects.schema import DIALECTS
from qcc.ir.emit_onnx import emit
from qcc.ir.errors import BadInput
from qcc.ir.execute import run
from qcc.ir.program import Program
from qcc.ir.text import parse, show
from qcc.ir.types import tensor_type
from tests.ir.helpers import floats, onnx_graph, onnx_model, program, run_model

STANDARD = sorted({(s.domain, s.name) for s in onnx.defs.get_all_schemas()})
CONTRIB = sorted(s.name for s in get_all_operator_schema() if s.domain == "com.microsoft")


@pytest.mark.parametrize("domain", DIALECTS)
def test_dialect_holds_every_operator_of_its_domain(domain: str) -> None:
    name = DIALECTS[domain]
    held = {op.name for op in dialect(name).operations}
    expected = {op for d, op in STANDARD if d == domain} if domain != "com.microsoft" else set(CONTRIB)
    assert expected
    assert {f"{name}.{op}" for op in expected} <= held


def test_every_domain_of_the_registry_has_a_dialect() -> None:
    assert {domain for domain, _ in STANDARD} <= set(DIALECTS)


@pytest.mark.parametrize("domain", [d for d in DIALECTS if d != "com.microsoft"])
def test_schema_of_every_current_operator_is_found_at_every_version(domain: str) -> None:
    for found in onnx.defs.get_all_schemas_with_history():
        if found.domain != domain:
            continue
        seen = schema.lookup(domain, found.name, found.since_version)
        assert (seen is None) == found.deprecated, found.name
        if seen is not None:
            assert seen.since_version == found.since_version
            assert [f.name for f in seen.inputs] == [f.name for f in found.inputs]
            assert set(seen.attributes) == set(found.attributes)
            assert seen.arity_in == (found.min_input, found.max_input)


def test_schema_of_every_contrib_operator_is_found() -> None:
    native = {s.name: s for s in get_all_operator_schema() if s.domain == "com.microsoft"}
    for name in CONTRIB:
        seen = schema.lookup("com.microsoft", name, 1)
        assert seen is not None
        assert [f.name for f in seen.outputs] == [f.name for f in native[name].outputs]
        assert set(seen.attributes) == set(native[name].attributes)
        assert operator("msft", name).name == f"msft.{name}"


def test_operator_that_left_the_standard_has_no_schema_any_more() -> None:
    assert schema.lookup("", "Upsample", 9) is not None
    assert schema.lookup("", "Upsample", 10) is None
    assert schema.lookup("", "NoSuchOperator", 21) is None


def test_one_class_serves_every_version() -> None:
    assert operator("onnx", "Squeeze") is operator("onnx", "Squeeze")
    old = program({"x": "tensor<1x3xf32>"}, SQUEEZE_11, {"y": "tensor<3xf32>"}, opset=11)
    squeeze = next(op for op in old.body.ops if isinstance(op, OnnxOp))
    assert (squeeze.schema.since_version, squeeze.op_type, squeeze.domain) == (11, "Squeeze", "")


SQUEEZE_11 = "%y = onnx.Squeeze(%x) {axes = array<i64: 0>} : tensor<3xf32>"


def test_verifier_holds_to_the_opset_of_the_module() -> None:
    with pytest.raises(BadInput, match=r"onnx.Squeeze: no attribute is called 'axes'; known: \[\]"):
        program({"x": "tensor<1x3xf32>"}, SQUEEZE_11, {"y": "tensor<3xf32>"}, opset=13)
    with pytest.raises(BadInput, match=r"onnx.Upsample: opset 21 of domain 'ai.onnx' has no such operator"):
        program({"x": "tensor<1xf32>"}, "%y = onnx.Upsample(%x, %x) : tensor<1xf32>", {"y": "tensor<1xf32>"})


REFUSED = {
    "missing operand": ("onnx.Relu() : tensor<2x3xf32>", "onnx.Relu: expected 1 operands, found 0"),
    "too many operands": ("onnx.Relu(%x, %x) : tensor<2x3xf32>", "onnx.Relu: expected 1 operands, found 2"),
    "required operand left out": (
        'onnx.Clip "c"(_, %s) : tensor<2x3xf32>',
        "onnx.Clip 'c': operand 'input' is missing",
    ),
    "too few of a variadic operand": (
        "onnx.Max() : tensor<2x3xf32>",
        "onnx.Max: expected at least 1 operands, found 0",
    ),
    "missing result": ("onnx.TopK(%x, %k) : tensor<2x3xf32>", "onnx.TopK: expected 2 results, found 1"),
    "operand of a wrong type": (
        "onnx.BitwiseAnd(%x, %x) : tensor<2x3xf32>",
        r"onnx.BitwiseAnd: operand 'A' has type tensor\(float\), expected one of \['tensor\(int16\)'",
    ),
    "operands of two types": (
        "onnx.Add(%x, %i) : tensor<2x3xf32>",
        r"onnx.Add: operand 'B' has type tensor\(int64\), but T is tensor\(float\)",
    ),
    "result of a wrong type": (
        "onnx.Shape(%x) : tensor<2xi32>",
        r"onnx.Shape: result 'shape' has type tensor\(int32\), expected one of \['tensor\(int64\)'\]",
    ),
    "unknown attribute": ("onnx.Relu(%x) {alpha = 1.0 : f32} : tensor<2x3xf32>", "no attribute is called 'alpha'"),
    "attribute of a wrong type": (
        "onnx.Softmax(%x) {axis = 1.0 : f32} : tensor<2x3xf32>",
        "onnx.Softmax: attribute 'axis' is 1.* : f32, expected type INT",
    ),
    "attribute of a wrong width": (
        "onnx.Softmax(%x) {axis = 1 : i32} : tensor<2x3xf32>",
        "attribute 'axis' is 1 : i32, expected type INT",
    ),
    "required attribute missing": ("onnx.Cast(%x) : tensor<2x3xf32>", "onnx.Cast: attribute 'to' is missing"),
    "unknown word": (
        'onnx.Pad(%x, %p) {mode = "mirror"} : tensor<2x3xf32>',
        r"attribute 'mode' is 'mirror', expected one of \['constant', 'reflect', 'edge', 'wrap'\]",
    ),
    "unknown padding": (
        'onnx.MaxPool(%n) {kernel_shape = array<i64: 1, 1>, auto_pad = "SAME"} : tensor<1x2x3x4xf32>',
        "attribute 'auto_pad' is 'SAME'",
    ),
    "stride of zero": (
        "onnx.MaxPool(%n) {kernel_shape = array<i64: 1, 1>, strides = array<i64: 0, 1>} : tensor<1x2x3x4xf32>",
        "attribute 'strides' is .*, expected positive integers",
    ),
    "result of another shape": (
        "onnx.Relu(%x) : tensor<2x4xf32>",
        "the result is tensor<2x3xf32> by its operands, but tensor<2x4xf32> is written",
    ),
    "result of another rank": ("onnx.Relu(%x) : tensor<6xf32>", "the result is tensor<2x3xf32> by its operands"),
    "result of another element type": (
        "onnx.Cast(%x) {to = 7 : i64} : tensor<2x3xf32>",
        "the result is tensor<2x3xi64> by its operands",
    ),
    "shape by a constant operand": (
        "onnx.Reshape(%x, %c) : tensor<2x3xf32>",
        "the result is tensor<6xf32> by its operands",
    ),
    "shapes that do not multiply": (
        "onnx.MatMul(%x, %x) : tensor<2x3xf32>",
        "onnx.MatMul: .*[Ii]ncompatible dimensions",
    ),
    "quantized operand": ("onnx.Relu(%q) : tensor<2x3xf32>", "operand 'X' is quantized; dequantize it first"),
    "subgraph missing": (
        "onnx.If(%b) : tensor<2x3xf32>",
        r"expected the subgraphs \['else_branch', 'then_branch'\], found 0",
    ),
    "contrib: unknown attribute": (
        "msft.FusedMatMul(%x, %x) {beta = 1.0 : f32} : tensor<2x3xf32>",
        "msft.FusedMatMul: no attribute is called 'beta'",
    ),
    "contrib: required attribute missing": (
        "msft.MatMulNBits(%x, %x, %x) : tensor<2x3xf32>",
        "msft.MatMulNBits: operand 'B' has type",
    ),
}
INPUTS = {
    "x": "tensor<2x3xf32>",
    "n": "tensor<1x2x3x4xf32>",
    "i": "tensor<2x3xi64>",
    "k": "tensor<1xi64>",
    "p": "tensor<4xi64>",
    "s": "tensor<f32>",
    "b": "tensor<i1>",
}
GIVEN = """%c = onnx.Constant() {value = #onnx.tensor<tensor<1xi64>, "6">} : tensor<1xi64>
    %q = q.quantize(%x) : !q.tensor<tensor<2x3xf32>, "u8, f32 per tensor, zero u8">
    """


@pytest.mark.parametrize("case", REFUSED)
def test_operation_that_breaks_its_schema_is_refused(case: str) -> None:
    operation, message = REFUSED[case]
    with pytest.raises(BadInput, match=message):
        program(INPUTS, f"{GIVEN}%y = {operation}", {"y": operation.rsplit(" : ", 1)[1]})


ACCEPTED = {
    "trailing operands left out": ("onnx.Clip(%x) : tensor<2x3xf32>", "tensor<2x3xf32>"),
    "operand in the middle left out": ("onnx.Clip(%x, _, %s) : tensor<2x3xf32>", "tensor<2x3xf32>"),
    "variadic operand": ("onnx.Max(%x, %x, %x) : tensor<2x3xf32>", "tensor<2x3xf32>"),
    "symbolic for fixed": (
        'onnx.Relu(%x) : tensor<?x3xf32, #onnx.dims<"batch,">>',
        'tensor<?x3xf32, #onnx.dims<"batch,">>',
    ),
    "unknown rank": ("onnx.Relu(%x) : tensor<*xf32>", "tensor<*xf32>"),
    "unknown type": ("onnx.Relu(%x) : !onnx.unknown", "!onnx.unknown"),
    "contrib": ("msft.Gelu(%x) : tensor<2x3xf32>", "tensor<2x3xf32>"),
    "empty list for any list": ("onnx.Pad(%x, %p) {} : tensor<*xf32>", "tensor<*xf32>"),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_operation_that_keeps_to_its_schema_is_accepted(case: str) -> None:
    operation, type_ = ACCEPTED[case]
    program(INPUTS, f"{GIVEN}%y = {operation}", {"y": type_})


@pytest.mark.parametrize(
    ("left", "right", "fits"),
    [
        (("n", 3), (4, 3), True),
        (("n", 3), (None, 3), True),
        ((2, 3), (4, 3), False),
        ((3,), (1, 3), False),
        (None, (1, 3), True),
    ],
)
def test_two_shapes_of_one_value(left: tuple[object, ...], right: tuple[object, ...], fits: bool) -> None:
    from xdsl.dialects.builtin import f32, i32

    a, b = tensor_type(f32, left), tensor_type(f32, right)  # pyright: ignore[reportArgumentType]
    assert compatible(a, b) is compatible(b, a) is fits
    assert not compatible(a, tensor_type(i32, left))  # pyright: ignore[reportArgumentType]


def test_attributes_not_given_have_the_default_of_the_schema() -> None:
    made = program(
        INPUTS, f"{GIVEN}%y = onnx.Gemm(%x, %x) {{transB = 1 : i64}} : tensor<2x2xf32>", {"y": "tensor<2x2xf32>"}
    )
    gemm = next(op for op in made.body.ops if isinstance(op, OnnxOp) and op.op_type == "Gemm")
    assert (gemm.get("alpha"), gemm.get("transA"), gemm.get("transB"), gemm.get("nothing", 5)) == (1.0, 0, 1, 5)
    assert gemm.operand_named("C") is None
    assert gemm.operand_named("B") is gemm.operands[1]


def nested_if() -> onnx.ModelProto:
    """`y = c ? (x > 0 for its first item ? x + w : x) : -x`: branches see values around them at two depths."""
    inner_then = onnx_graph([helper.make_node("Add", ["x", "w"], ["sum"])], {}, {"sum": floats("n")})
    inner_else = onnx_graph([helper.make_node("Identity", ["x"], ["same"])], {}, {"same": floats("n")})
    then_branch = onnx_graph(
        [helper.make_node("If", ["d"], ["inner"], then_branch=inner_then, else_branch=inner_else)],
        {},
        {"inner": floats("n")},
    )
    else_branch = onnx_graph([helper.make_node("Neg", ["x"], ["minus"])], {}, {"minus": floats("n")})
    node = helper.make_node("If", ["c"], ["y"], then_branch=then_branch, else_branch=else_branch)
    flags = {"c": (TensorProto.BOOL, []), "d": (TensorProto.BOOL, [])}
    return onnx_model([node], {"x": floats("n"), **flags}, {"y": floats("n")}, {"w": np.full(1, 10, np.float32)})


def loop() -> onnx.ModelProto:
    """Powers of x: a carried value, a scanned output, and a weight inside the body."""
    body = onnx_graph(
        [
            helper.make_node("Mul", ["state", "x"], ["next"]),
            helper.make_node("Add", ["next", "table"], ["shifted"]),
            helper.make_node("Identity", ["go"], ["going"]),
            helper.make_node("Identity", ["shifted"], ["scanned"]),
        ],
        {"i": (TensorProto.INT64, []), "go": (TensorProto.BOOL, []), "state": floats(40)},
        {"going": (TensorProto.BOOL, []), "next": floats(40), "scanned": floats(40)},
        {"table": np.arange(40, dtype=np.float32)},
    )
    node = helper.make_node("Loop", ["trips", "", "x"], ["last", "all"], body=body)
    return onnx_model(
        [node], {"x": floats(40), "trips": (TensorProto.INT64, [])}, {"last": floats(40), "all": floats(None, 40)}
    )


def scan() -> onnx.ModelProto:
    """Running sums along the first axis."""
    body = onnx_graph(
        [helper.make_node("Add", ["sum_in", "row"], ["sum_out"]), helper.make_node("Identity", ["sum_out"], ["out"])],
        {"sum_in": floats(3), "row": floats(3)},
        {"sum_out": floats(3), "out": floats(3)},
    )
    node = helper.make_node("Scan", ["zero", "x"], ["total", "sums"], body=body, num_scan_inputs=1)
    return onnx_model([node], {"zero": floats(3), "x": floats("n", 3)}, {"total": floats(3), "sums": floats("n", 3)})


X40 = np.linspace(-1, 1, 40, dtype=np.float32)
CONTROL_FLOW = {
    "if true true": (nested_if, {"x": np.array([1, 2], np.float32), "c": np.array(True), "d": np.array(True)}),
    "if true false": (nested_if, {"x": np.array([1, 2], np.float32), "c": np.array(True), "d": np.array(False)}),
    "if false": (nested_if, {"x": np.array([1, 2], np.float32), "c": np.array(False), "d": np.array(True)}),
    "loop": (loop, {"x": X40, "trips": np.array(3)}),
    "loop of no trips": (loop, {"x": X40, "trips": np.array(0)}),
    "scan": (scan, {"zero": np.zeros(3, np.float32), "x": np.arange(12, dtype=np.float32).reshape(4, 3)}),
}


@pytest.mark.parametrize("case", CONTROL_FLOW)
def test_regions_import_print_parse_export_and_run(case: str) -> None:
    build, feeds = CONTROL_FLOW[case]
    expected = run_model(build(), feeds)
    imported = from_model(build())
    text = show(imported.module)
    again = Program(parse(text), imported.weights)
    assert show(again.module) == text
    for found in (run(again, feeds).values(), run_model(emit(again).embed(again.weights), feeds)):
        for left, right in zip(found, expected, strict=True):
            np.testing.assert_array_equal(left, right)


def test_regions_print_inside_the_operation() -> None:
    text = show(from_model(nested_if()).module)
    assert text.count("onnx.yield") == 4
    assert text.count("onnx.If") == 2
    assert "}, {" in text


@pytest.mark.parametrize(
    ("operands", "message"),
    [
        ("%x, %good", ""),
        ("%x, %bad", "the scale 0.75 is not a power of two"),
        ("%x, %computed", "must be a constant"),
        ("%x", ""),
    ],
)
def test_a_scale_in_powers_of_two_is_one(operands: str, message: str) -> None:
    text = f"""
builtin.module attributes {{onnx.opset = {{"" = 21 : i64}}}} {{
  func.func @main(%x: tensor<2xf32> {{onnx.name = "x"}}, %computed: tensor<f32> {{onnx.name = "s"}}) -> (tensor<2xf32>
  {{onnx.name = "y"}}) {{
    %good = onnx.Constant() {{value = #onnx.tensor<tensor<f32>, "0.25">}} : tensor<f32>
    %bad = onnx.Constant() {{value = #onnx.tensor<tensor<f32>, "0.75">}} : tensor<f32>
    %q = q.quantize({operands}) : !q.tensor<tensor<2xf32>, "i8, e8m0 per tensor">
    %y = q.dequantize(%q) : tensor<2xf32>
    func.return %y : tensor<2xf32>
  }}
}}"""
    if not message:
        parse(text).verify()
        return
    with pytest.raises((BadInput, VerifyException), match=message):
        parse(text).verify()
