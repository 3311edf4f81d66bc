"""The pipeline verifies after every pass, names the one that breaks the program, and lists every pass there is."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from xdsl.dialects.builtin import f32
from xdsl.rewriter import Rewriter

from qcc import passes
from qcc.ir import types
from qcc.ir.errors import BadInput, CheckFailed
from qcc.ir.program import Program
from qcc.ir.rewrite import Pass, ProgramContext
from qcc.passes import pipeline
from qcc.passes.canonicalize import Canonicalize
from tests.networks import names, normal, program

TEXT = "(float[N,4] x) => (float[N,3] y) { a = MatMul(x, w) i = Identity(a) y = Relu(i) }"


@dataclass(frozen=True)
class BreakType(Pass):
    """Claims that a result has another shape than its operands give."""

    name = "break_type"

    def run(self, program: Program, ctx: ProgramContext) -> None:
        """Retype the product."""
        del ctx
        product = next(op for op in program.body.ops if op.name == "onnx.MatMul")
        Rewriter.replace_value_with_new_type(product.results[0], types.tensor_type(f32, [7, 7]))


@dataclass(frozen=True)
class BreakOrder(Pass):
    """Moves an operation above what it reads."""

    name = "break_order"

    def run(self, program: Program, ctx: ProgramContext) -> None:
        """Put the last operation first."""
        del ctx
        last = next(op for op in program.body.ops if op.name == "onnx.Relu")
        last.detach()
        first = program.body.first_op
        assert first is not None
        program.body.insert_op_before(last, first)


def small() -> Program:
    return program(TEXT, w=normal(4, 3))


@pytest.mark.parametrize("broken", [BreakType(), BreakOrder()], ids=lambda p: p.name)
def test_a_pass_that_breaks_the_program_is_named(broken: Pass) -> None:
    with pytest.raises(CheckFailed, match=f"pass {broken.name} broke the program") as caught:
        pipeline.run([Canonicalize(), broken, Canonicalize()], small(), ProgramContext())
    assert "report it" in caught.value.hint


def test_passes_run_in_order_and_are_observed_one_by_one() -> None:
    seen: list[tuple[str, int]] = []
    subject = small()
    pipeline.run(
        [Canonicalize(), *pipeline.quantize(pipeline.QuantizeOptions("W8A16"))],
        subject,
        ProgramContext(),
        after=lambda each, now: seen.append((each.name, len(names(now)))),
    )
    assert [name for name, _ in seen][:3] == ["canonicalize", "quantize_linear", "quantize_conv"]
    assert seen[0][1] == 2
    assert names(subject) == ["q.linear", "Relu"]


def test_weights_are_quantized_before_activations_and_packing_is_no_part_of_it() -> None:
    order = [p.name for p in pipeline.quantize(pipeline.QuantizeOptions("W8A8"))]
    assert order[-1] == "quantize_activations"
    assert "pack_weights" not in order
    assert order.index("quantize_linear") < order.index("fuse_bias") < order.index("quantize_activations")


def test_the_options_reach_every_pass_that_takes_them() -> None:
    options = pipeline.QuantizeOptions("W4A8", 64, "rtn", "mse", ("a",), ("b",))
    for each in pipeline.quantize(options):
        given = {name: getattr(each, name) for name in vars(options) if hasattr(each, name)}
        assert given == {name: getattr(options, name) for name in given}, each.name


def test_every_pass_is_found_by_its_file_name_and_takes_its_options_as_text() -> None:
    from xdsl.utils.arg_spec import parse_pipeline

    found = passes.names()
    assert "fold_affine" in found
    assert not {"pipeline", "selection", "schemes", "calibrate"} & set(found)
    for name in found:
        assert passes.load(name).name == name
    (spec,) = parse_pipeline('quantize_linear{scheme="W8A8" include="a","b"}')
    assert passes.load("quantize_linear").from_spec(spec) == passes.load("quantize_linear")(  # type: ignore[call-arg]
        scheme="W8A8", include=("a", "b")
    )
    for name in ("pipeline", "nope", "../ir"):
        with pytest.raises(BadInput, match="no pass is called"):
            passes.load(name)
