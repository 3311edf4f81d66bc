"""`q.attention` on ONNX Runtime: what it is lowered to, against the float64 oracle, with the cache in place too."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcc.backends.onnxruntime.attention import lower_attention
from qcc.ir.emit_onnx import emit
from qcc.ir.errors import NotSupported
from qcc.ir.execute import session
from qcc.ir.text import check
from qcc.passes.recognize_attention import RecognizeAttention
from tests.ir.attention import CASES, Arrays, Case, assert_meets, attention, extremes
from tests.networks import names, normal, program, reasons, rewritten


@cache
def lowered(case: Case) -> Any:
    """A session over the lowered attention; open lengths, so cases that differ in them share it."""
    made = attention(case)
    lower_attention(made)
    check(made.module)
    assert "q.attention" not in names(made)
    return session(emit(made), made, threads=1)


def opened(case: Case) -> Any:
    return lowered(replace(case, length=1, past=1, slack=0))


def separately(case: Case, feeds: Arrays) -> Arrays:
    """Past and present in memory of their own."""
    return dict(zip(("y", "key", "value"), opened(case).run(["y", "key", "value"], feeds), strict=True))


def in_place(case: Case, feeds: Arrays, *, swapped: bool = False) -> Arrays:
    """Past and present are one buffer of more positions than are used; the rest of it is dirty."""
    binding = opened(case).io_binding()
    buffers: Arrays = {}
    for name in ("key", "value"):
        old = feeds[f"past_{name}"]
        buffers[name] = np.full((*old.shape[:2], case.total + case.slack + 3, case.size), 7000, case.dtype)
        buffers[name][:, :, : case.past] = old[:, :, : case.past]
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in buffers.items()}
    for name, value in values.items():
        other = {"key": "value", "value": "key"}[name] if swapped else name
        binding.bind_ortvalue_input(f"past_{other}", value)
        binding.bind_ortvalue_output(other, value)
    for name in ("q", "k", "v", "total"):
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(feeds[name]))
    y = np.zeros_like(feeds["q"])
    binding.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_numpy(y))
    opened(case).run_with_iobinding(binding)
    for name, buffer in buffers.items():
        assert swapped or (buffer[:, :, case.total :] == 7000).all(), f"{name} was written behind its end"
    return {"y": y, **buffers}


TAKEN = [case for case in CASES if case.size % 8 == 0]
"""ONNX Runtime takes no other sizes of a head."""
HALF = [replace(case, element="f16") for case in TAKEN if case.past < 100]
WAYS = pytest.mark.parametrize("compute", [separately, in_place])


@WAYS
@pytest.mark.parametrize("case", TAKEN, ids=repr)
def test_lowering_is_what_the_operation_says(case: Case, compute: Any) -> None:
    feeds = case.feeds()
    assert_meets(compute(case, feeds), case, feeds)


@WAYS
@pytest.mark.parametrize("case", HALF, ids=repr)
def test_lowering_in_half_precision(case: Case, compute: Any) -> None:
    feeds = case.feeds()
    assert_meets(compute(case, feeds), case, feeds)


@WAYS
@pytest.mark.parametrize("kind", ["huge", "signed zeros", "alike", "spike"])
@pytest.mark.parametrize("case", [Case(), Case(window=2), Case(softcap=5.0), Case(length=1, slack=3)])
def test_lowering_of_extreme_values(case: Case, kind: str, compute: Any) -> None:
    feeds = extremes(case)[kind]
    assert_meets(compute(case, feeds), case, feeds)


@settings(max_examples=40)
@given(
    group=st.sampled_from([(1, 1), (2, 1), (3, 3), (6, 2)]),
    size=st.sampled_from([8, 16, 24]),
    length=st.integers(1, 6),
    past=st.integers(0, 9),
    slack=st.integers(0, 4),
    window=st.sampled_from([0, 1, 2, 5, 20]),
    shared=st.booleans(),
    seed=st.integers(0, 99),
)
def test_lowering_of_any_shape(
    group: tuple[int, int], size: int, length: int, past: int, slack: int, window: int, shared: bool, seed: int
) -> None:
    enough = slack if slack == 0 or shared else max(slack, length)  # the operator refuses a cache of too few positions
    case = Case(*group, size, length, past, enough, 1, window)
    feeds = case.feeds(seed)
    assert_meets((in_place if shared else separately)(case, feeds), case, feeds)


def test_steps_one_after_another_are_one_whole_step() -> None:
    whole = Case(length=9, past=0, window=4)
    feeds = whole.feeds(3)
    expected = separately(whole, feeds)
    caches: Arrays = {n: feeds[f"past_{n}"] for n in ("key", "value")}
    pieces: list[Any] = []
    for begin, end in ((0, 4), (4, 5), (5, 9)):
        part = replace(whole, length=end - begin, past=begin)
        step = {n: feeds[n][:, begin:end].copy() for n in ("q", "k", "v")}
        step |= {f"past_{n}": a for n, a in caches.items()} | {"total": np.array(end, np.int32)}
        found = separately(part, step)
        caches = {n: found[n] for n in caches}
        pieces.append(found["y"])
    np.testing.assert_allclose(np.concatenate(pieces, 1), expected["y"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [2, 4, 0])
def test_oracle_sees_a_window_that_is_off_by_one(window: int) -> None:
    case = Case(window=3, length=4, past=6)
    feeds = case.feeds()
    for compute in (separately, in_place):
        with pytest.raises(AssertionError):
            assert_meets(compute(replace(case, window=window), feeds), case, feeds)


def test_oracle_sees_swapped_caches() -> None:
    case = Case()
    with pytest.raises(AssertionError):
        assert_meets(in_place(case, case.feeds(), swapped=True), case, case.feeds())


def test_element_type_without_a_kernel_is_refused() -> None:
    with pytest.raises(NotSupported, match=r"layer.*float32 or float16"):
        lower_attention(attention(Case(element="bf16")))


def test_heads_of_a_size_without_a_kernel_are_refused() -> None:
    with pytest.raises(NotSupported, match=r"layer.*heads of 6 values.*multiples of 8"):
        lower_attention(attention(Case(size=6)))


GQA = "y, key, value = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2{}>({})"
PLAIN = "q, k, v, past_key, past_value, ends, total"


def written(body: str, **weights: Any) -> Any:
    """A program with the contrib operator in it, as ONNX files have it."""
    ports = "float[1,S,32] q, float[1,S,16] k, float[1,S,16] v, float[1,2,P,8] past_key, float[1,2,P,8] past_value"
    results = "float[1,S,32] y, float[1,2,T,8] key, float[1,2,T,8] value"
    text = f"({ports}, int32 total, int32[1] lengths) => ({results}) {{ {body} }}"
    return program(text, one=np.array([1], np.int32), minus=np.array(-1, np.int32), **weights)


ENDS = {
    "Sub": "ends = Sub(total, one)",
    "Add of minus one": "less = Add(total, minus) ends = Reshape(less, shape)",
    "cast there and back": "wide = Cast<to=7>(total) l = Sub(wide, wide_one) ends = Cast<to=6>(l)",
}
SHAPES = {"shape": np.array([1], np.int64), "wide_one": np.array([1], np.int64)}


@pytest.mark.parametrize("ends", list(ENDS))
@pytest.mark.parametrize(
    "attributes", ["", ", local_window_size=3", ", softcap=2.0", ", scale=0.1", ", do_rotary=0, smooth_softmax=0"]
)
def test_recognized_attention_computes_what_the_operator_did(ends: str, attributes: str) -> None:
    before = written(f"{ENDS[ends]} {GQA.format(attributes, PLAIN)}", **SHAPES)
    after = rewritten(before, RecognizeAttention())
    assert "q.attention" in names(after), reasons(after, "recognize_attention declined")
    window = 3 if "window" in attributes else 0
    scale = 0.1 if "scale" in attributes else 8**-0.5
    case = Case(window=window, softcap=2.0 if "softcap" in attributes else 0.0, scale=scale)
    feeds = case.feeds()
    lower_attention(after)
    found = session(emit(after), after, threads=1).run(None, {**feeds, "lengths": np.zeros(1, np.int32)})
    assert_meets(dict(zip(("y", "key", "value"), found, strict=True)), case, feeds)


STAYS = {
    "rotary": (GQA.format(", do_rotary=1", f"{PLAIN}, table, table"), "'do_rotary' has no counterpart"),
    "tables": (GQA.format("", f"{PLAIN}, table, table"), "have no counterpart"),
    "sinks": (GQA.format("", f"{PLAIN}, , , , , sink"), "have no counterpart"),
    "smooth softmax": (GQA.format(", smooth_softmax=1", PLAIN), "'smooth_softmax' has no counterpart"),
    "ragged rows": (GQA.format("", PLAIN.replace("ends", "lengths")), "may end at different places"),
    "two less": (
        f"less = Sub(ends, one) {GQA.format('', PLAIN.replace('ends', 'less'))}",
        "may end at different places",
    ),
}


@pytest.mark.parametrize("kind", list(STAYS))
def test_attention_that_says_more_stays(kind: str) -> None:
    body, reason = STAYS[kind]
    before = written(f"ends = Sub(total, one) {body}", table=normal(64, 4), sink=normal(4))
    after = rewritten(before, RecognizeAttention())
    assert "msft.GroupQueryAttention" in names(after)
    assert any(reason in r for r in reasons(after, "recognize_attention declined"))


def test_attention_that_gives_no_cache_stays() -> None:
    body = f"ends = Sub(total, one) {GQA.format('', PLAIN)}".replace("y, key, value =", "y =")
    text = "(float[1,S,32] q, float[1,S,16] k, float[1,S,16] v, float[1,2,P,8] past_key, float[1,2,P,8] past_value"
    before = program(f"{text}, int32 total) => (float[1,S,32] y) {{ {body} }}", one=np.array([1], np.int32))
    after = rewritten(before, RecognizeAttention())
    assert names(after) == names(before)


def test_attention_of_unknown_head_size_and_no_scale_stays() -> None:
    body = f"ends = Sub(total, one) {GQA.format('', PLAIN)}"
    text = "(float[1,S,D] q, float[1,S,K] k, float[1,S,K] v, float[1,2,P,E] past_key, float[1,2,P,E] past_value"
    outputs = "float[1,S,D] y, float[1,2,T,E] key, float[1,2,T,E] value"
    before = program(f"{text}, int32 total) => ({outputs}) {{ {body} }}", one=np.array([1], np.int32))
    after = rewritten(before, RecognizeAttention())
    assert names(after) == names(before)
    assert any("scale" in r for r in reasons(after, "recognize_attention declined"))
