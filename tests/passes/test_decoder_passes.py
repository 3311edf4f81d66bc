"""The passes that decoders need: rotary fusion, merging of duplicates, pairs that undo each other, known shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.execute import run
from qcc.ir.program import Program
from qcc.passes.canonicalize import Canonicalize
from qcc.passes.fuse_rotary import FuseRotary
from qcc.passes.merge_duplicates import MergeDuplicates
from tests.networks import agreement, names, normal, program, reasons, rewritten

Arrays = dict[str, NDArray[Any]]

SPLIT = "first, second = Split<axis=-1, num_outputs=2>(x)"
SLICE = "first = Slice(x, zero, half, axis) second = Slice(x, half, end, axis)"
NEGATIVE = "first = Slice(x, zero, back, axis, one) second = Slice(x, back, end, axis, one)"
TURN = "minus = Neg(second) turned = Concat<axis=-1>(minus, first)"
ANGLES = "both = Concat<axis=-1>(angle, angle) cos = Cos(both) sin = Sin(both)"
SUM = "a = Mul(x, cos) b = Mul(turned, sin) y = Add(a, b)"
PLAIN = f"{ANGLES} {SPLIT} {TURN} {SUM}"


def rotary(body: str, size: int = 8, *, x: str = "B,2,S", angle: str = "B,1,S", opset: int = 23) -> Program:
    """A network that turns x by angles."""
    text = f"(float[{x},{size}] x, float[{angle},{size // 2}] angle, float[B,1,S,{size}] free) => (float[{x},{size}] y)"
    bounds = {"zero": 0, "half": size // 2, "back": -(size // 2), "end": 2**63 - 1, "axis": -1, "one": 1, "heads": 1}
    bounds |= {"two": 2, "wide": size // 2 + 1}
    constants: Arrays = {name: np.array([value], np.int64) for name, value in bounds.items()}
    return program(f"{text} {{ {body} }}", opset=opset, **constants)


def turned(size: int = 8, batch: int = 2, length: int = 5, angles: tuple[int, ...] = (2, 1, 5)) -> Arrays:
    return {
        "x": normal(batch, 2, length, size),
        "angle": normal(*angles, size // 2, seed=1, scale=3),
        "free": normal(batch, 1, length, size, seed=2),
    }


@pytest.mark.parametrize("size", [2, 8, 14, 64])
@pytest.mark.parametrize("halves", [SPLIT, SLICE, NEGATIVE])
@pytest.mark.parametrize("order", [SUM, "b = Mul(sin, turned) a = Mul(cos, x) y = Add(b, a)"])
def test_rotary_is_fused_and_computes_the_same(size: int, halves: str, order: str) -> None:
    before = rotary(f"{ANGLES} {halves} {TURN} {order}", size)
    after = rewritten(before, FuseRotary())
    assert names(after)[-1] == "RotaryEmbedding"
    assert "Neg" not in names(after)
    assert agreement(before, after, turned(size)) >= 120


@pytest.mark.parametrize(
    ("angle", "extents", "angles"),
    [
        ("B,1,S", (2, 1, 5), ANGLES),
        ("1,1,S", (1, 1, 5), ANGLES),
        ("B,1,1", (2, 1, 1), ANGLES),
        ("1,S", (1, 5), ANGLES),
        ("1,S", (1, 5), "both = Concat<axis=2>(angle, angle) c = Cos(both) s = Sin(both) "
                        "cos = Unsqueeze(c, heads) sin = Unsqueeze(s, heads)"),
        ("B,S", (2, 5), "both = Concat<axis=-1>(angle, angle) c = Cos(both) s = Sin(both) "
                        "cos = Unsqueeze(c, heads) sin = Unsqueeze(s, heads)"),
    ],
)  # fmt: skip
def test_rotary_takes_angles_that_broadcast(angle: str, extents: tuple[int, ...], angles: str) -> None:
    before = rotary(f"{angles} {SPLIT} {TURN} {SUM}", angle=angle)
    after = rewritten(before, FuseRotary())
    assert "RotaryEmbedding" in names(after)
    for length in (5, 1):
        shape = tuple(length if e == 5 else e for e in extents)
        assert agreement(before, after, turned(length=length, angles=shape)) >= 120


NOT_ROTARY = {
    "halves in the wrong order": PLAIN.replace("(minus, first)", "(first, minus)"),
    "the first half negated": PLAIN.replace("Neg(second)", "Neg(first)").replace("(minus, first)", "(minus, second)"),
    "one half twice": PLAIN.replace("(minus, first)", "(minus, second)"),
    "nothing negated": PLAIN.replace("Neg(second)", "Abs(second)"),
    "along another axis": PLAIN.replace(f"{SPLIT}", "first, second = Split<axis=1, num_outputs=2>(x)").replace(
        "turned = Concat<axis=-1>", "turned = Concat<axis=1>"
    ),
    "unequal angles": PLAIN.replace("Mul(turned, sin)", "Mul(turned, free)"),
    "halves that overlap": PLAIN.replace(SPLIT, SLICE.replace("Slice(x, zero, half", "Slice(x, one, wide")),
    "every other value": PLAIN.replace(
        SPLIT, "first = Slice(x, zero, end, axis, two) second = Slice(x, one, end, axis, two)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(NOT_ROTARY))
def test_what_is_no_rotation_stays(kind: str) -> None:
    before = rotary(NOT_ROTARY[kind])
    after = rewritten(before, FuseRotary())
    assert names(after)[-1] == "Add" and "RotaryEmbedding" not in names(after)
    if kind != "along another axis":
        assert agreement(before, after, turned()) == 200


def test_rotary_declines_angles_of_each_head() -> None:
    """[heads, S, D] broadcasts over the batch, not over heads, also where both extents are alike."""
    before = rotary(PLAIN, x="2,2,S", angle="2,S")
    after = rewritten(before, FuseRotary())
    assert names(after) == names(before)
    assert "not [batch, 1, length, 8]" in reasons(after, "fuse_rotary declined")[0]
    assert agreement(before, after, turned(angles=(2, 5))) == 200


def test_rotary_declines_halves_repeated_along_another_axis() -> None:
    body = f"both = Concat<axis=2>(free, free) cos = Cos(both) sin = Sin(both) {SPLIT} {TURN} {SUM}"
    before = rotary(body)
    after = rewritten(before, FuseRotary())
    assert names(after) == names(before)
    assert "second half" in reasons(after, "fuse_rotary declined")[0]


def test_rotary_declines_angles_that_make_x_longer() -> None:
    before = rotary(PLAIN, x="1,2,1", angle="B,1,S")
    assert "RotaryEmbedding" not in names(rewritten(before, FuseRotary()))


def test_rotary_needs_its_opset() -> None:
    after = rewritten(rotary(PLAIN, opset=22), FuseRotary())
    assert "RotaryEmbedding" not in names(after)
    assert "needs opset 23" in reasons(after, "fuse_rotary declined")[0]


def test_rotary_declines_x_of_rank_3() -> None:
    before = rotary(PLAIN, x="2,S", angle="2,S")
    after = rewritten(before, FuseRotary())
    assert names(after) == names(before)
    assert "not [batch, heads, length, size]" in reasons(after, "fuse_rotary declined")[0]


def merged(body: str, outputs: str = "float[N,4] y", **weights: NDArray[Any]) -> tuple[Program, Program]:
    before = program(f"(float[N,4] x) => ({outputs}) {{ {body} }}", **weights)
    return before, rewritten(before, MergeDuplicates())


def test_duplicates_of_duplicates_are_merged() -> None:
    before, after = merged("a = Cos(x) b = Cos(x) c = Neg(a) d = Neg(b) y = Add(c, d)")
    assert names(after) == ["Cos", "Neg", "Add"]
    assert agreement(before, after, {"x": normal(3, 4)}) == 200


def test_duplicates_that_are_both_outputs_keep_their_names() -> None:
    before, after = merged("y = Cos(x) z = Cos(x)", "float[N,4] y, float[N,4] z")
    assert names(after) == ["Cos"]
    found = run(after, {"x": normal(3, 4)})
    assert list(found) == ["y", "z"]
    np.testing.assert_array_equal(found["y"], found["z"])
    assert agreement(before, after, {"x": normal(3, 4)}) == 200


def test_duplicates_with_several_results_are_merged_result_by_result() -> None:
    body = "a, b = Split<axis=1, num_outputs=2>(x) c, d = Split<axis=1, num_outputs=2>(x) e = Sub(a, d) y = Mul(e, c)"
    before, after = merged(body, "float[N,2] y")
    assert names(after) == ["Split", "Sub", "Mul"]
    assert agreement(before, after, {"x": normal(3, 4)}) == 200


@pytest.mark.parametrize(
    "body",
    [
        "a = Sub(x, w) b = Sub(w, x) y = Add(a, b)",
        "a = Softmax<axis=0>(x) b = Softmax<axis=1>(x) y = Add(a, b)",
        "a = Clip(x, low) b = Clip(x, , low) y = Add(a, b)",
        "a = Clip(x, low) b = Clip(x, high) y = Add(a, b)",
        "a = RandomUniformLike(x) b = RandomUniformLike(x) y = Sub(a, b)",
        "a = Bernoulli(x) b = Bernoulli(x) y = Sub(a, b)",
        "h = Cast<to=10>(x) d = Cast<to=11>(x) a = Cast<to=1>(h) b = Cast<to=1>(d) y = Sub(a, b)",
    ],
)
def test_what_only_looks_equal_stays(body: str) -> None:
    constants: Arrays = {"low": np.array(0.25, np.float32), "high": np.array(0.5, np.float32)}
    before, after = merged(body, w=normal(1, 4, seed=9), **constants)
    assert names(after) == names(before)


def test_duplicates_with_subgraphs_stay() -> None:
    branch = "If<then_branch=g1() => (float[N,4] t) { t = Cos(x) }, else_branch=g2() => (float[N,4] e) { e = Sin(x) }>"
    body = f"s = ReduceSum<keepdims=0>(x) c = Greater(s, zero) a = {branch}(c) b = {branch}(c) y = Add(a, b)"
    before, after = merged(body, zero=np.array(0, np.float32))
    assert names(after) == names(before)
    assert agreement(before, after, {"x": normal(3, 4)}) == 200


TURNS = [((0, 2, 1), (1, 0, 2)), ((2, 0, 1), (1, 2, 0)), ((1, 2, 0), (1, 2, 0)), ((0, 1, 2), (2, 1, 0))]


@pytest.mark.parametrize(("first", "second"), TURNS)
def test_transpositions_become_one_or_none(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    both = [first[i] for i in second]
    shape = ",".join(str((2, 3, 4)[i]) for i in both)
    text = f"a = Transpose<perm={list(first)}>(x) b = Transpose<perm={list(second)}>(a) y = Relu(b)"
    before = program(f"(float[2,3,4] x) => (float[{shape}] y) {{ {text} }}")
    after = rewritten(before, Canonicalize())
    assert names(after) == (["Relu"] if both == [0, 1, 2] else ["Transpose", "Relu"])
    assert agreement(before, after, {"x": normal(2, 3, 4)}) == 200


def test_transpositions_that_others_read_stay_readable() -> None:
    text = "a = Transpose<perm=[1,0]>(x) b = Transpose<perm=[1,0]>(a) y = Relu(b) z = Cos(a)"
    before = program(f"(float[2,3] x) => (float[2,3] y, float[3,2] z) {{ {text} }}")
    after = rewritten(before, Canonicalize())
    assert sorted(names(after)) == ["Cos", "Relu", "Transpose"]
    assert agreement(before, after, {"x": normal(2, 3)}) == 200


@pytest.mark.parametrize("shape", [[2, 12], [-1, 6], [2, 3, 4], [24], [1, -1, 2]])
def test_reshape_of_reshape_reads_the_first_operand(shape: list[int]) -> None:
    inferred = [24 // -int(np.prod(shape)) if d == -1 else d for d in shape]
    text = f"(float[2,3,4] x) => (float[{','.join(map(str, inferred))}] y) {{ a = Reshape(x, s1) y = Reshape(a, s2) }}"
    before = program(text, s1=np.array([6, 4], np.int64), s2=np.array(shape, np.int64))
    after = rewritten(before, Canonicalize())
    assert names(after).count("Reshape") == (0 if shape == [2, 3, 4] else 1)
    assert agreement(before, after, {"x": normal(2, 3, 4)}) == 200


def test_reshape_that_copies_an_extent_keeps_its_reshape() -> None:
    text = "(float[2,3,4] x) => (float[6,2,2] y) { a = Reshape(x, s1) y = Reshape(a, s2) }"
    before = program(text, s1=np.array([6, 4], np.int64), s2=np.array([0, 2, 2], np.int64))
    after = rewritten(before, Canonicalize())
    assert names(after) == ["Reshape", "Reshape"]
    assert agreement(before, after, {"x": normal(2, 3, 4)}) == 200


@pytest.mark.parametrize(
    ("attributes", "known"),
    [
        ("", None),
        ("<start=1>", [3, 4]),
        ("<start=-2>", [3, 4]),
        ("<start=1, end=2>", [3]),
        ("<start=1, end=-1>", [3]),
        ("<start=-1, end=9>", [4]),
        ("<start=2, end=1>", []),
        ("<end=1>", None),
    ],
)
def test_shape_of_known_extents_is_a_constant(attributes: str, known: list[int] | None) -> None:
    before = program(f"(float[N,3,4] x) => (int64[K] y) {{ s = Shape{attributes}(x) y = Mul(s, s) }}")
    after = rewritten(before, Canonicalize())
    assert names(after) == (["Shape", "Mul"] if known is None else ["Mul"])
    assert agreement(before, after, {"x": normal(2, 3, 4)}) == 200
    if known is not None:
        assert run(after, {"x": normal(2, 3, 4)})["y"].tolist() == [d * d for d in known]


@pytest.mark.parametrize(
    ("x", "shape", "y", "stays"),
    [
        ("2,3", [2, 3], "2,3", False),
        ("2,3", [1, 1], "2,3", False),
        ("2,3", [3], "2,3", False),
        ("1,3", [2, 1], "2,3", True),
        ("2,3", [1, 2, 3], "1,2,3", True),
        ("N,3", [2, 3], "2,3", True),
    ],
)
def test_expand_that_does_nothing_disappears(x: str, shape: list[int], y: str, stays: bool) -> None:
    before = program(f"(float[{x}] x) => (float[{y}] y) {{ e = Expand(x, s) y = Neg(e) }}", s=np.array(shape, np.int64))
    after = rewritten(before, Canonicalize())
    assert names(after) == (["Expand", "Neg"] if stays else ["Neg"])
    rows = 1 if x.startswith(("1", "N")) else 2
    assert agreement(before, after, {"x": normal(rows, 3)}) == 200


def test_expand_to_a_computed_shape_stays() -> None:
    before = program(
        "(float[N,3] x, float[M,3] like) => (float[M,3] y) { s = Shape(like) e = Expand(x, s) y = Neg(e) }"
    )
    after = rewritten(before, Canonicalize())
    assert "Expand" in names(after)
    assert agreement(before, after, {"x": normal(1, 3), "like": normal(4, 3)}) == 200
