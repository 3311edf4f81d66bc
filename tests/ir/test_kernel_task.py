"""The seam to tuning: a picker decides kernels and layouts; bytes follow the pick, results do not change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from qcc.backends.onnxruntime import kernels, tasks
from qcc.backends.onnxruntime.lower import lower
from qcc.backends.onnxruntime.speed import Speed
from qcc.backends.onnxruntime.tasks import choice_of, choose, kernel_tasks
from qcc.ir.dialects.q import Linear, QuantizedOp, Weight
from qcc.ir.errors import BadInput
from qcc.ir.execute import Reference, run
from qcc.ir.format import Format
from qcc.ir.kernel_task import Choice, KernelTask, Picker, assign, cheapest, from_mapping
from qcc.ir.layout import Layout, unpack
from qcc.ir.program import Program
from qcc.ir.rewrite import ProgramContext
from qcc.ir.target import load
from qcc.ir.text import parse, show
from qcc.ir.types import QuantizedType
from qcc.passes.pack_weights import PackWeights
from tests.ir.helpers import program
from tests.ir.stored import Stored

TARGET = load("cpu")
EVEN = Speed(defaultdict(lambda: 1.0))
"""Every form as fast as any other."""


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not depend on how fast this host is."""
    monkeypatch.setattr(tasks, "measured", lambda machine: EVEN)


def layer(
    element: str = "i4", block: int = 32, *, zero: bool = False, activation: str = "", shape: tuple[int, int] = (24, 96)
) -> Program:
    """One `q.linear` with a bias."""
    n, k = shape
    stored = Stored(shape, element, (1, block), zero=zero)
    stored.scale[:] = np.random.default_rng(1).uniform(0.5, 2, stored.scale.shape)
    features = f"tensor<?x{k}xf32>"
    lines = [f'%w = q.weight "w" : {stored.weight()}', f'%b = q.weight "b" : tensor<{n}xf32>']
    if activation:
        lines.append(f'%q = q.quantize(%x) : !q.tensor<{features}, "{activation}">')
    lines.append(f'%y = q.linear "fc"({"%q" if activation else "%x"}, %w, %b) : tensor<?x{n}xf32>')
    parts = {**stored.parts(), "b": np.arange(n, dtype=np.float32)}
    return program({"x": features}, "\n    ".join(lines), {"y": f"tensor<?x{n}xf32>"}, parts)


def named(kernel: str) -> Picker:
    """A picker that takes the choice of one kernel."""
    return lambda task, choices: next(c for c in choices if c.kernel == kernel)


def packed(made: Program, pick: Picker) -> Program:
    """A copy with kernels chosen by `pick` and weights packed."""
    made = made.clone()
    choose(made, TARGET, pick)
    PackWeights().run(made, ProgramContext(program=made))
    return made


def linear_of(made: Program) -> Linear:
    return next(op for op in made.body.ops if isinstance(op, Linear))


CASES = {
    "i4 by blocks": ({"element": "i4"}, ("matmul_nbits", "expansion")),
    "u4 with zero points": ({"element": "u4", "zero": True}, ("matmul_nbits", "expansion")),
    "u2 with zero points": ({"element": "u2", "zero": True, "block": 16}, ("matmul_nbits", "expansion")),
    "i8 by blocks": ({"element": "i8"}, ("matmul_nbits", "expansion")),
    "i4, ragged": ({"element": "i4", "shape": (24, 80)}, ("matmul_nbits", "expansion")),
    "i8 by channel, dynamic bytes": (
        {"element": "i8", "block": 96, "activation": "u8, f32 per tensor, zero u8"},
        ("dynamic_quantize_matmul", "expansion"),
    ),
}
X = np.random.default_rng(3).normal(size=(5, 96)).astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_each_pick_changes_the_bytes_and_keeps_the_result(case: str) -> None:
    options, names = CASES[case]
    made = layer(**options)  # pyright: ignore[reportArgumentType]
    x = X[:, : linear_of(made).weight_type().shape[1]]
    expected = run(made, {"x": x})["y"]
    stored: dict[str, bytes] = {}
    for name in names:
        placed = packed(made, named(name))
        stored[name] = b"".join(
            placed.weights[f"w.{p}"].tobytes() for p in ("codes", "zero") if f"w.{p}" in placed.weights
        )
        np.testing.assert_allclose(run(placed, {"x": x})["y"], expected, rtol=1e-5, atol=1e-4)
        found = Reference(lower(placed).program).run({"x": x})["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert len(set(stored.values())) == len(names)


@pytest.mark.parametrize("case", CASES)
def test_codes_are_recovered_from_the_bytes_of_each_pick(case: str) -> None:
    options, names = CASES[case]
    made = layer(**options)  # pyright: ignore[reportArgumentType]
    codes = made.weights["w.codes"]
    for name in names:
        placed = packed(made, named(name))
        type_ = linear_of(placed).weight_type()
        assert type_.layout is not None
        found = unpack(
            placed.weights["w.codes"], type_.format.bits, type_.shape, type_.layout, type_.format.family.signed
        )
        np.testing.assert_array_equal(found, codes)


@pytest.mark.parametrize("case", CASES)
def test_the_choice_is_read_back_from_the_ir_and_from_its_text(case: str) -> None:
    options, names = CASES[case]
    for name in names:
        made = layer(**options)  # pyright: ignore[reportArgumentType]
        (assignment,) = choose(made, TARGET, named(name))
        chosen = assignment.choice
        again = Program(parse(show(made.module)), made.weights)
        for op in (linear_of(made), linear_of(again)):
            read = choice_of(op)
            assert (read.kernel, read.layout, read.parameters) == (chosen.kernel, chosen.layout, chosen.parameters)
            assert read.zero_layout == chosen.zero_layout
            assert str(read) == str(chosen)


def test_a_pick_that_was_not_offered_is_refused() -> None:
    made = layer()
    other = Choice("expansion", Layout.parse("n(n0) k(k0) -> k0 n0"))
    before = show(made.module)
    with pytest.raises(BadInput, match=r"q\.linear 'fc': expansion was not offered for this task"):
        choose(made, TARGET, lambda task, choices: other)
    assert show(made.module) == before


def test_the_task_says_what_is_computed() -> None:
    made = layer("i8", 96, activation="u8, f32 per tensor, zero u8")
    ((op, task),) = kernel_tasks(made, TARGET)
    assert op is linear_of(made)
    assert task == KernelTask(
        "q.linear",
        (None, 96),
        (24, 96),
        Format.parse("i8, f32 per *"),
        Format.parse("u8, f32 per tensor, zero u8"),
        dynamic=True,
        target="cpu",
    )
    choose(made, TARGET, cheapest)
    ((_, again),) = kernel_tasks(made, TARGET)
    assert again == task, "a choice is no part of the task"


def test_the_task_holds_attributes_that_a_kernel_depends_on() -> None:
    stored = Stored((4, 3, 3, 3), "i8", (1, 3, 3, 3))
    body = f"""%w = q.weight "w" : {stored.weight()}
    %y = q.conv(%x, %w) {{strides = array<i64: 2, 2>, pads = array<i64: 1, 1, 1, 1>}} : tensor<1x4x4x4xf32>"""
    made = program({"x": "tensor<1x3x8x8xf32>"}, body, {"y": "tensor<1x4x4x4xf32>"}, stored.parts())
    ((_, task),) = kernel_tasks(made, TARGET)
    assert task.attributes == (("pads", "[1, 1, 1, 1]"), ("strides", "[2, 2]"))
    assert task.x == (1, 3, 8, 8)


def three_layers() -> Program:
    """Two equal layers and one of another shape."""
    parts: dict[str, np.ndarray] = {}
    lines: list[str] = []
    for name, source, shape in (("a", "x", (96, 96)), ("b", "a", (96, 96)), ("y", "b", (24, 96))):
        stored = Stored(shape, "i4", (1, 32), seed=len(lines))
        parts |= {key.replace("w", name, 1): value for key, value in stored.parts().items()}
        lines.append(f'%w{name} = q.weight "{name}" : {stored.weight()}')
        lines.append(f'%{name} = q.linear "{name}"(%{source}, %w{name}) : tensor<?x{shape[0]}xf32>')
    return program({"x": "tensor<?x96xf32>"}, "\n    ".join(lines), {"y": "tensor<?x24xf32>"}, parts)


def test_equal_tasks_get_equal_choices_and_are_picked_once() -> None:
    seen: list[KernelTask] = []

    def pick(task: KernelTask, choices: Sequence[Choice]) -> Choice:
        seen.append(task)
        return choices[len(seen) % len(choices)]

    made = three_layers()
    found = choose(made, TARGET, pick)
    assert [a.op.node for a in found] == ["a", "b", "y"]
    assert len(seen) == 2
    assert found[0].choice is found[1].choice
    assert found[0].choice.kernel != found[2].choice.kernel


def test_a_mapping_decides_the_tasks_it_knows() -> None:
    made = three_layers()
    known = kernel_tasks(made, TARGET)[0][1]
    offered = {c.kernel: c for c in kernels.offers(known, EVEN)}
    pick = from_mapping({known: offered["expansion"]})
    assert [a.choice.kernel for a in choose(made, TARGET, pick)] == ["expansion", "expansion", "matmul_nbits"]
    slow = Choice("slow", offered["expansion"].layout, cost=2.0)
    fast = Choice("fast", offered["expansion"].layout, cost=1.0)
    assert pick(kernel_tasks(made, TARGET)[2][1], [slow, fast]) is fast


def test_the_cheapest_choice_is_the_default_and_the_first_where_equal() -> None:
    layout = Layout.parse("n(n0) k(k0) -> n0 k0")
    one, two, three = (Choice(name, layout, cost=cost) for name, cost in (("a", 2.0), ("b", 1.0), ("c", 1.0)))
    task = kernel_tasks(layer(), TARGET)[0][1]
    assert cheapest(task, [one, two, three]) is two
    op: QuantizedOp = linear_of(layer())
    assert assign([(op, task)], lambda _: [one, two, three])[0].choice is two


@pytest.mark.parametrize("text", ["i3, f32 per 32", "e2m1, e4m3 per 16, f32 per tensor", "k16 in f16 per *"])
def test_format_without_a_kernel_of_its_own_is_expanded(text: str) -> None:
    task = replace(kernel_tasks(layer(), TARGET)[0][1], weight_format=Format.parse(text))
    assert [choice.kernel for choice in kernels.offers(task, EVEN)] == ["expansion"]


def test_codes_of_odd_widths_take_the_next_one() -> None:
    made = layer("i3")
    choose(made, TARGET)
    assert [str(op.result.type.format) for op in made.weight_ops() if isinstance(op.result.type, QuantizedType)] == [
        "i4, f32 per 32"
    ]
    assert [d.action for d in made.decisions] == ["widened"]


def test_layers_of_one_weight_with_different_picks_get_bytes_of_their_own() -> None:
    stored = Stored((96, 96), "i4", (1, 32))
    stored.scale[:] = 0.1
    body = f"""%w = q.weight "w" : {stored.weight()}
    %a = q.linear "a"(%x, %w) : tensor<?x96xf32>
    %s = onnx.Reshape(%a, %shape) : tensor<?x1x96xf32>
    %y = q.linear "b"(%s, %w) : tensor<?x1x96xf32>"""
    shape = '%shape = onnx.Constant() {value = #onnx.tensor<tensor<3xi64>, "-1 1 96">} : tensor<3xi64>\n    '
    made = program({"x": "tensor<?x96xf32>"}, shape + body, {"y": "tensor<?x1x96xf32>"}, stored.parts())
    expected = run(made, {"x": X})["y"]

    def pick(task: KernelTask, choices: Sequence[Choice]) -> Choice:
        return next(c for c in choices if (c.kernel == "expansion") == (task.x is not None and len(task.x) == 3))

    placed = packed(made, pick)
    names = {op.weight for op in placed.module.walk() if isinstance(op, Weight)}
    assert len(names) == 2
    assert len({placed.weights[f"{name}.codes"].tobytes() for name in names}) == 2
    np.testing.assert_allclose(Reference(lower(placed).program).run({"x": X})["y"], expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(run(placed, {"x": X})["y"], expected, rtol=1e-5, atol=1e-4)


def test_layers_of_one_weight_with_one_layout_share_its_bytes() -> None:
    stored = Stored((96, 96), "i4", (1, 32))
    body = f"""%w = q.weight "w" : {stored.weight()}
    %a = q.linear "a"(%x, %w) : tensor<?x96xf32>
    %y = q.linear "b"(%a, %w) : tensor<?x96xf32>"""
    made = program({"x": "tensor<?x96xf32>"}, body, {"y": "tensor<?x96xf32>"}, stored.parts())
    placed = packed(made, named("matmul_nbits"))
    assert {op.weight for op in placed.module.walk() if isinstance(op, Weight)} == {"w"}
