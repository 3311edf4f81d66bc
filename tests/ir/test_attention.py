"""`q.attention`: its expansion against a float64 oracle, what its verifier refuses, how it is written."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcc.ir.errors import BadInput
from qcc.ir.execute import run
from qcc.ir.text import check, parse, show
from tests.ir.attention import CASES, IDS, Case, assert_meets, attention, extremes
from tests.ir.helpers import program


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_expansion_is_what_the_operation_says(case: Case) -> None:
    feeds = case.feeds()
    assert_meets(run(attention(case), feeds), case, feeds)


@pytest.mark.parametrize("kind", ["huge", "signed zeros", "alike", "spike"])
@pytest.mark.parametrize("case", [Case(), Case(window=2), Case(softcap=5.0), Case(length=1, slack=3)])
def test_expansion_of_extreme_values(case: Case, kind: str) -> None:
    feeds = extremes(case)[kind]
    assert_meets(run(attention(case), feeds), case, feeds)


@pytest.mark.parametrize("case", [Case(), Case(window=3, softcap=4.0), Case(8, 1, 16, length=1, past=20)])
def test_expansion_in_half_precision(case: Case) -> None:
    case = replace(case, element="f16")
    feeds = case.feeds()
    assert_meets(run(attention(case), feeds), case, feeds)


@settings(max_examples=25)
@given(
    group=st.sampled_from([(1, 1), (2, 1), (3, 3), (6, 2)]),
    size=st.integers(1, 12),
    length=st.integers(1, 6),
    past=st.integers(0, 9),
    slack=st.integers(0, 4),
    window=st.integers(0, 12),
    softcap=st.sampled_from([0.0, 1.5]),
    seed=st.integers(0, 99),
)
def test_expansion_of_any_shape(
    group: tuple[int, int], size: int, length: int, past: int, slack: int, window: int, softcap: float, seed: int
) -> None:
    case = Case(*group, size, length, past, slack, 1, window, softcap)
    feeds = case.feeds(seed)
    assert_meets(run(attention(case), feeds), case, feeds)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda c: replace(c, window=c.window + 1),
        lambda c: replace(c, window=c.window - 1),
        lambda c: replace(c, window=0),
        lambda c: replace(c, scale=c.scale * 1.01),
        lambda c: replace(c, softcap=3.0),
    ],
)
def test_oracle_sees_a_wrong_window_scale_or_softcap(wrong: object) -> None:
    case = Case(window=3, length=4, past=6)
    feeds = case.feeds()
    with pytest.raises(AssertionError):
        assert_meets(run(attention(wrong(case)), feeds), case, feeds)  # type: ignore[operator]


def test_oracle_sees_swapped_caches_and_entries_out_of_order() -> None:
    case = Case(length=2, past=6)
    feeds = case.feeds()
    swapped = {**feeds, "past_key": feeds["past_value"], "past_value": feeds["past_key"]}
    turned = {**feeds, "past_value": feeds["past_value"][:, :, ::-1].copy()}
    late = {**feeds, "total": np.array(case.total - 1, np.int32)}
    for other in (swapped, turned, late):
        with pytest.raises(AssertionError):
            assert_meets(run(attention(case), other), case, feeds)


def test_oracle_sees_heads_that_read_the_wrong_group() -> None:
    case = Case(4, 2, 8)
    feeds = case.feeds()
    halves = feeds["q"].reshape(1, 3, 2, 2, 8).swapaxes(2, 3).reshape(1, 3, 32)
    with pytest.raises(AssertionError):
        assert_meets(run(attention(case), {**feeds, "q": halves}), case, feeds)


@pytest.mark.parametrize("case", [Case(), Case(window=3, softcap=30.0), Case(element="f16"), Case(cache="i8")])
def test_text_round_trip(case: Case) -> None:
    module = attention(case).module
    text = show(module)
    again = parse(text)
    check(again)
    assert show(again) == text
    assert "q.attention" in text and "layer" in text


PLAIN = "heads = 4 : i64, kv_heads = 2 : i64, scale = 0.5 : f32"


def attended(
    attributes: str = PLAIN,
    *,
    operands: str = "%q, %k, %v, %past, %past, %total",
    results: int = 3,
    **types_: str,
) -> str:
    """IR text of an attention, right but for what is given."""
    known = {"q": "1x?x32", "k": "1x?x16", "v": "1x?x16", "past": "1x2x?x8", "total": "i32"} | types_
    inputs = {name: f"tensor<{t if t.startswith('i') else f'{t}xf32'}>" for name, t in known.items()}
    outputs = {"y": inputs["q"], "a": inputs["past"], "b": inputs["past"]}
    names = ", ".join(f"%{n}" for n in list(outputs)[:results])
    body = f'{names} = q.attention "here"({operands}) {{{attributes}}} : {", ".join(list(outputs.values())[:results])}'
    return show(program(inputs, body, dict(list(outputs.items())[:results])).module)


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"operands": "%q, %k, %v, %past, %past"}, "six operands and three results"),
    ({"operands": "%q, %k, _, %past, %past, %total"}, "six operands and three results"),
    ({"results": 2}, "six operands and three results"),
    ({"attributes": f"{PLAIN}, causal = 1 : i64"}, "no attribute is called 'causal'"),
    ({"attributes": "heads = 4 : i64, kv_heads = 3 : i64, scale = 0.5 : f32"}, "do not share 3 heads"),
    ({"attributes": "heads = 4 : i64, kv_heads = 0 : i64, scale = 0.5 : f32"}, "do not share 0 heads"),
    ({"attributes": "heads = -4 : i64, kv_heads = 2 : i64, scale = 0.5 : f32"}, "do not share"),
    ({"attributes": "kv_heads = 2 : i64, scale = 0.5 : f32"}, "do not share"),
    ({"attributes": "heads = 4 : i64, kv_heads = 2 : i64"}, "a scale"),
    ({"attributes": "heads = 4 : i64, kv_heads = 2 : i64, scale = 1 : i64"}, "scale is 1, not a float"),
    ({"attributes": f"{PLAIN}, window = -1 : i64"}, "a window and a softcap of at least 0"),
    ({"attributes": f"{PLAIN}, window = 2.0 : f32"}, "window is 2.0, not an integer"),
    ({"attributes": f"{PLAIN}, softcap = 2 : i64"}, "softcap is 2, not a float"),
    ({"attributes": f"{PLAIN}, softcap = -2.0 : f32"}, "a softcap of at least 0"),
    ({"attributes": f'{PLAIN}, cache = "f8"'}, "a cache of 'f8'; known: ['f32', 'f16', 'i8']"),
    ({"attributes": f"{PLAIN}, cache = 8 : i64"}, "cache is 8, not a text"),
    ({"q": "1x?x30"}, "4 heads of one size"),
    ({"q": "1x?x4x8"}, "4 heads of one size"),
    ({"k": "1x?x32"}, "heads of 8 in the cache, 16 in"),
    ({"v": "1x?x24"}, "heads of 8 in the cache, 12 in"),
    ({"past": "1x?x16"}, "is not"),
    ({"past": "1x4x?x8"}, "is not"),
    ({"total": "i64"}, "total"),
]


@pytest.mark.parametrize(("wrong", "reason"), REFUSED)
def test_verifier_refuses(wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(BadInput, match=re.escape(reason)) as raised:
        check(parse(attended(**wrong)))  # type: ignore[arg-type]
    assert "here" in str(raised.value)


def test_verifier_takes_what_the_refused_ones_miss() -> None:
    check(parse(attended()))
    check(parse(attended(q="1x?x?", k="?x?x16")))
