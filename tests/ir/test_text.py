"""IR text: what is printed parses to the same module; anything else is refused with its line, never with a crash."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import helper
from xdsl.dialects.builtin import ModuleOp

from qcc.frontend.onnx_file import from_model
from qcc.ir.dialects.onnx import OnnxOp, operator
from qcc.ir.dialects.q import Weight
from qcc.ir.emit_onnx import emit
from qcc.ir.errors import BadInput, QccError
from qcc.ir.text import parse, show
from qcc.ir.types import numpy_type
from tests.ir.helpers import floats, onnx_model

TYPE = 'tensor<?x64xf32, #onnx.dims<"N,">>'
MODULE = f"""builtin.module attributes {{onnx.opset = {{"" = 21 : i64, com.microsoft = 1 : i64}}}} {{
  func.func @main(%x: {TYPE} {{onnx.name = "x"}}, %c: tensor<i1> {{onnx.name = "c"}}) -> ({TYPE} {{onnx.name = "y"}}) {{
    %high = onnx.Constant() {{value = #onnx.tensor<tensor<f32>, "0.5">}} : tensor<f32>
    %w = q.weight "fc.w" zero "n(n0) b(b1 b0:2) -> n0 b1 b0" : !q.tensor<tensor<64x64xf32>, "u4, f32 per 32, zero u4", "n(n0) k(k1 k0:32) -> n0 k1 k0">
    %h = onnx.Clip "clip_3"(%x, _, %high) : {TYPE}
    %q = q.quantize(%h) : !q.tensor<{TYPE}, "u8, f32 per tensor, zero u8">
    %l = q.linear "fc"(%q, %w) : {TYPE}
    %y = onnx.If "choose"(%c) ({{
      onnx.yield %l
    }}, {{
      %s = msft.Gelu(%l) : {TYPE}
      onnx.yield %s
    }}) : {TYPE}
    func.return %y : {TYPE}
  }}
}}
"""  # noqa: E501 - IR text has the lines it has


def test_text_is_what_was_parsed() -> None:
    assert show(parse(MODULE)) == MODULE


def test_absent_operands_keep_their_place() -> None:
    clip = next(op for op in parse(MODULE).walk() if op.name == "onnx.Clip")
    assert isinstance(clip, OnnxOp)
    assert [slot is None for slot in clip.slots] == [False, True, False]
    assert clip.slot(2) is clip.operand_named("max") is not None
    assert clip.slot(1) is clip.operand_named("min") is None
    assert clip.slot(9) is None


def test_trailing_absent_operands_are_dropped() -> None:
    x = Weight("x", numpy_type(np.zeros(3, np.float32)))
    clip = operator("onnx", "Clip")([x.result, None, None], [x.result.type])
    assert (len(clip.slots), clip.parameters) == (1, {})


def test_comments_and_spaces_are_free() -> None:
    spaced = MODULE.replace("(%x, _, %high)", '(%x , _ // a "comment, not a string\n  , %high)')
    assert show(parse(spaced)) == MODULE


NAMES = st.text(min_size=1, max_size=12)


@given(NAMES)
@example('"')
@example('a"b\\c\n\t\x00\x7f')
@example("größe/层:0 🙂")
@example("\\2A")
def test_any_node_and_weight_name_comes_back(name: str) -> None:
    weight = Weight(name, numpy_type(np.zeros(3, np.float32)))
    relu = operator("onnx", "Relu")([weight.result], [weight.result.type], node=name)
    module = ModuleOp([weight, relu])
    again = parse(show(module), verify=False)
    first, second = again.ops
    assert isinstance(first, Weight) and isinstance(second, OnnxOp)
    assert (first.weight, second.node) == (name, name)
    assert show(again) == show(module)


@settings(max_examples=40)
@given(NAMES, NAMES, NAMES)
def test_any_names_in_a_model_survive_the_way_through_text(x: str, h: str, y: str) -> None:
    if len({x, h, y}) < 3:
        return
    nodes = [helper.make_node("Relu", [x], [h], name=h), helper.make_node("Neg", [h], [y], name=h)]
    program = from_model(onnx_model(nodes, {x: floats("größe")}, {y: floats("größe")}))
    program.module = parse(show(program.module))
    graph = emit(program).proto.graph
    assert ([i.name for i in graph.input], [o.name for o in graph.output]) == ([x], [y])
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "größe"
    assert [n.name for n in graph.node] == [h, f"{h}.1"]


def body(line: str) -> str:
    """A module whose fourth line is `line`."""
    return f"""builtin.module attributes {{onnx.opset = {{"" = 21 : i64}}}} {{
  func.func @main(%x: tensor<2x3xf32> {{onnx.name = "x"}}) -> (tensor<2x3xf32> {{onnx.name = "y"}}) {{
    %z = onnx.Neg(%x) : tensor<2x3xf32>
    {line}
    func.return %y : tensor<2x3xf32>
  }}
}}
"""


UNREADABLE = {
    "%y = onnx.Relu(%u) : tensor<2x3xf32>": "%u is used before it is defined",
    "%y = onnx.Relu(%z#1) : tensor<2x3xf32>": "%z is used before it is defined",
    "%y = onnx.Rleu(%x) : tensor<2x3xf32>": "onnx.Rleu is not registered",
    "%y = foo.Relu(%x) : tensor<2x3xf32>": "foo.Relu is not registered",
    "%y = onnx.Relu(%x : tensor<2x3xf32>": "expected",
    "%y = onnx.Relu(%x)": "Operation has 0 results",
    "%y, %u = onnx.Relu(%x) : tensor<2x3xf32>": "Operation has 1 results",
    "%y = onnx.Relu(%x) {absent = array<i64: 0>} : tensor<2x3xf32>": "an operand left out is written `_`",
    "%y = onnx.Relu(%x) : tensor<2x3xf33>": "Expected shape type",
    '%y = onnx.Relu "a(%x) : tensor<2x3xf32>': "a string is not closed",
    '%y = onnx.Relu "a\\q"(%x) : tensor<2x3xf32>': "unknown escape",
    '%y = onnx.Relu "\\FF"(%x) : tensor<2x3xf32>': "the string is not UTF-8",
    "%y = onnx.If(%x) ({ onnx.yield %u }) : tensor<2x3xf32>": "%u is used before it is defined",
    '%y = onnx.Constant() {value = #onnx.tensor<tensor<2xf32>, "1">} : tensor<2xf32>': "the values do not fit",
    '%y = q.weight "w" zero "n(n0)" : tensor<2x3xf32>': "cannot read 'n(n0)' in layout",
    '%y = q.weight "w" : !q.tensor<tensor<2x3xf32>, "i9">': "no element type is called 'i9'",
    "~": "Unexpected character",
}


@pytest.mark.parametrize("line", UNREADABLE)
def test_text_that_does_not_parse_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(body(line), "model.mlir")
    assert re.match(r"model\.mlir:4[:\s]", caught.value.message), caught.value.message
    assert UNREADABLE[line] in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("%y = onnx.Relu() : tensor<2x3xf32>", "model.mlir: onnx.Relu: expected 1 operands, found 0"),
        ('%y = onnx.Relu "r"(%x) : tensor<9xf32>', "model.mlir: onnx.Relu 'r': the result is tensor<2x3xf32>"),
        ('%y = onnx.Relu(%x) : tensor<?x3xf32, #onnx.dims<"a,b,c">>', "the names do not fit the rank"),
    ],
)
def test_text_that_does_not_verify_is_refused_by_operation(line: str, message: str) -> None:
    text = body(line).replace("func.return %y : tensor<2x3xf32>", "func.return %z : tensor<2x3xf32>")
    with pytest.raises(BadInput) as caught:
        parse(text, "model.mlir")
    assert message in caught.value.message
    assert parse(text, verify=False)


@pytest.mark.parametrize("text", ["", "{", "func.func", "\x00", "é", '"' + "a" * 10_000, "builtin.module {" * 100])
def test_text_that_is_no_module_is_refused(text: str) -> None:
    try:
        parse(text)
    except BadInput:
        return
    assert text == ""


TOKENS = re.findall(r"\w+|\s+|.", MODULE)
EDITS = st.lists(
    st.tuples(
        st.integers(0, len(TOKENS) - 1),
        st.sampled_from(["delete", "insert", "replace"]),
        st.sampled_from([*sorted(set(TOKENS)), "-1", "9" * 20, "nan", "é", "{", "f99", "!", "#", "^"]),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=150)
@given(EDITS)
def test_damaged_text_is_read_or_refused_but_never_crashes(edits: list[tuple[int, str, str]]) -> None:
    tokens = list(TOKENS)
    for place, kind, token in edits:
        place = min(place, len(tokens) - 1)
        tokens[place : place + (kind != "insert")] = [] if kind == "delete" else [token]
    try:
        module = parse("".join(tokens))
    except QccError:
        return
    assert show(parse(show(module))) == show(module)
