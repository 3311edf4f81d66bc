"""What is quantized: patterns of the user first, then the rule for first and last layers; every skip has its reason."""

from __future__ import annotations

import numpy as np
import pytest

from qcc.ir.errors import BadInput
from qcc.ir.program import Program
from qcc.passes.pipeline import QuantizeOptions, quantize, simplify
from qcc.passes.selection import check_patterns, matches
from tests.networks import normal, program, rewritten

CHAIN = """(float[N,32] x) => (float[N,8] y) {
    [first] a = MatMul(x, w1) [act1] b = Relu(a)
    [middle] c = MatMul(b, w2) [act2] d = Relu(c)
    [last] e = Gemm(d, w3, bias) [soft] y = Softmax(e)
}"""
WEIGHTS = {"w1": normal(32, 48), "w2": normal(48, 48, seed=1), "w3": normal(48, 8, seed=2), "bias": normal(8)}


def decided(text: str, scheme: str = "W4A16", ignore: tuple[str, ...] = (), include: tuple[str, ...] = ()) -> Program:
    options = QuantizeOptions(scheme, ignore=ignore, include=include)
    return rewritten(program(text, **WEIGHTS), *simplify(), *quantize(options)[:3])


def quantized(after: Program) -> list[str]:
    return [d.node for d in after.decisions if d.action == "quantized"]


def skipped(after: Program) -> dict[str, str]:
    return {d.node: d.reason for d in after.decisions if d.action == "skipped"}


def test_below_eight_bits_the_first_and_last_layers_stay_float() -> None:
    after = decided(CHAIN)
    assert quantized(after) == ["middle"]
    assert "network's input" in skipped(after)["first"]
    assert "network's output" in skipped(after)["last"]


@pytest.mark.parametrize("scheme", ["W8A8", "W8A16", "W8A8_DYNAMIC"])
def test_at_eight_bits_every_layer_is_quantized(scheme: str) -> None:
    assert quantized(decided(CHAIN, scheme)) == ["first", "middle", "last"]


def test_the_float_scheme_decides_nothing() -> None:
    assert not decided(CHAIN, "float").decisions


@pytest.mark.parametrize("pattern", ["first", "w1", "re:^fir", "re:1$"])
def test_include_takes_node_and_weight_names_and_expressions(pattern: str) -> None:
    assert quantized(decided(CHAIN, include=(pattern,))) == ["first", "middle"]


@pytest.mark.parametrize("pattern", ["middle", "w2", "re:id+l", "re:^w2$"])
def test_ignore_leaves_a_layer_float_and_says_by_which_pattern(pattern: str) -> None:
    after = decided(CHAIN, ignore=(pattern,))
    assert quantized(after) == []
    assert skipped(after)["middle"] == f"ignored by {pattern!r}"


def test_ignore_wins_over_include() -> None:
    after = decided(CHAIN, ignore=("first",), include=("re:.*",))
    assert quantized(after) == ["middle", "last"]
    table = "(int64[N] i) => (float[N,48] y) { [embed] t = Gather(w1, i) y = Relu(t) }"
    assert quantized(decided(table, include=("embed",))) == ["embed"]
    both = decided(table, ignore=("w1",), include=("embed",))
    assert skipped(both)["embed"] == "ignored by 'w1'"


def test_a_name_without_re_is_no_expression() -> None:
    assert quantized(decided(CHAIN, ignore=("mid",))) == ["middle"]
    assert not matches("a.c", "abc")
    assert matches("re:a.c", "abc")
    assert not matches("re:.*", "")


def test_a_layer_behind_others_that_read_its_result_is_the_last_only_where_it_is_returned() -> None:
    text = """(float[N,32] x) => (float[N,48] y, float[N,48] z) {
        h = Tanh(x) [one] a = MatMul(h, w1) [two] b = MatMul(a, w2) y = Relu(a) z = Tanh(b) }"""
    assert quantized(decided(text)) == ["one", "two"]
    returned = text.replace("y = Relu(a)", "c = Relu(a)").replace("float[N,48] y,", "float[N,48] a,")
    assert skipped(decided(returned))["one"].startswith("last layer")


def test_integer_inputs_do_not_make_a_first_layer() -> None:
    text = "(int64[N] i) => (float[N,48] y) { e = Gather(table, i) [one] a = MatMul(e, w1) y = Relu(a) }"
    after = rewritten(program(text, table=normal(100, 32), **WEIGHTS), *quantize(QuantizeOptions("W4A16"))[:3])
    assert quantized(after) == ["one"]
    assert "--include" in skipped(after)["Gather:e"]


def test_reasons_for_what_cannot_be_quantized() -> None:
    text = """(float[N,48] x, float[48,48] v, float[48] vec)
        => (float[N,48] a, float[48,48] b, float[1,N,48] c, float[48] d, float[48,48] e) {
        h = Relu(x) h3 = Unsqueeze(h, zero) k = Relu(vec) m = Relu(v)
        [computed] a = MatMul(h, v) [left] b = MatMul(w2, v) [batched] c = MatMul(h3, w4)
        [vector] d = MatMul(k, w2) [turned] e = Gemm<transA=1>(m, w2) }"""
    before = program(text, w2=WEIGHTS["w2"], w4=normal(1, 48, 48), zero=np.array([0], np.int64))
    assert skipped(rewritten(before, *quantize(QuantizeOptions("W8A16"))[:3])) == {
        "computed": "both operands are computed",
        "left": "the constant is the left operand",
        "batched": "the weight has rank 3, not 2",
        "vector": "the activation is a vector",
        "turned": "its first operand is transposed",
    }


def test_patterns_that_match_nothing_or_do_not_parse_are_refused() -> None:
    for pattern in ("nowhere", "re:^nowhere$", ""):
        with pytest.raises(BadInput, match="matches no node and no weight"):
            check_patterns((pattern,), ["first", ""], "--ignore")
    with pytest.raises(BadInput, match="not a regular expression"):
        check_patterns(("re:(",), ["first"], "--include")
    check_patterns(("first", "re:f"), ["first"], "--include")
