"""Codes that a model's file holds: kept where they are no wider than asked, widened where no kernel reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.backends.onnxruntime.build import build
from qcc.backends.onnxruntime.run import open_folder
from qcc.backends.onnxruntime.widen import widen, widened
from qcc.ir import target
from qcc.ir.dialects.q import Quantize, part
from qcc.ir.execute import run
from qcc.ir.format import Format
from qcc.ir.program import Program, StoredCodes, stored_value
from qcc.ir.quantized import Quantized
from qcc.ir.verify import compare
from qcc.passes import pipeline
from qcc.passes.pipeline import QuantizeOptions
from tests.ir.formats_of_the_field import random_value
from tests.networks import names, normal, program, reasons, rewritten

Array = NDArray[Any]
FORMATS = ("i8, f32 per 32", "i5, f32 per 32", "i4, f32 per 32", "i6, f32 per 16", "i3, f32 per 32", "i7, f32 per 16")


def stored(text: str, rows: int, columns: int, seed: int = 0) -> StoredCodes:
    """Random codes of a format, the lowest and the highest among them."""
    fmt, rng = Format.parse(text), np.random.default_rng(seed)
    block = fmt.scale.block
    assert block is not None and block[-1] is not None
    codes = rng.integers(fmt.family.low, fmt.family.high + 1, (rows, columns), np.int8)
    codes[0, :2] = fmt.family.low, fmt.family.high
    scale = rng.uniform(0.001, 0.02, (rows, columns // block[-1])).astype(np.float32)
    return StoredCodes(Quantized.plain(fmt, codes, scale), "TEST")


def decoded(codes: StoredCodes) -> Array:
    return codes.value.decode()


def layers(codes: StoredCodes) -> Program:
    """Three layers, the middle one of which has stored codes."""
    text = "(float[N,64] x) => (float[N,8] y) { [a] a = MatMul(x, u) [b] b = MatMul(a, w) [c] y = MatMul(b, v) }"
    made = program(text, u=normal(64, 64), w=np.ascontiguousarray(decoded(codes).T), v=normal(64, 8))
    made.stored = {"w": codes}
    return made


def tied(codes: StoredCodes) -> Program:
    """A table that is also the output head."""
    text = """(int64[N] i) => (float[N,40] y) {
        [table] e = Gather(w, i) [layer] h = MatMul(e, u) t = Transpose<perm=[1,0]>(w) [head] y = MatMul(h, t)
    }"""
    made = program(text, w=decoded(codes), u=normal(64, 64))
    made.stored = {"w": codes}
    return made


def quantized(made: Program, scheme: str, **options: Any) -> Program:
    return rewritten(made, *pipeline.quantize(QuantizeOptions(scheme, **options)))


def formats(made: Program) -> dict[str, str]:
    """The format of each quantized weight by node."""
    return {
        getattr(use.operation, "node", ""): str(op.result.type.format)  # type: ignore[attr-defined]
        for op in made.weight_ops()
        if part(op.weight, "codes") in made.weights
        for use in op.result.uses
    }


@pytest.mark.parametrize("text", FORMATS)
def test_codes_are_kept_up_to_the_width_of_the_scheme(text: str) -> None:
    codes = stored(text, 64, 64)
    for scheme, bits in (("W8A16", 8), ("W4A16", 4)):
        found = formats(quantized(layers(codes), scheme, include=("re:.*",)))["b"]
        assert (found == text) == (codes.format.bits <= bits)
        assert int(found[1]) <= bits


def test_kept_codes_are_the_very_ones() -> None:
    codes = stored("i5, f32 per 32", 64, 64)
    after = quantized(layers(codes), "W8A16")
    np.testing.assert_array_equal(after.weights[part("w.q", "codes")], codes.value.codes)
    np.testing.assert_array_equal(after.weights[part("w.q", "scale")], codes.value.scale)
    assert any("kept as i5, f32 per 32, the TEST of its file" in r for r in reasons(after, "quantized"))


def test_codes_of_a_weight_that_was_changed_are_not_kept() -> None:
    codes = stored("i8, f32 per 32", 64, 64)
    changed = layers(codes)
    changed.weights["w"] = changed.weights["w"] * np.float32(1.5)
    assert not any("kept" in r for r in reasons(quantized(changed, "W8A16"), "quantized"))
    turned = layers(codes)
    turned.stored = {
        "w": StoredCodes(Quantized.plain(codes.format, codes.value.codes.T.copy(), codes.value.scale), "TEST")
    }
    assert not any("kept" in r for r in reasons(quantized(turned, "W8A16"), "quantized"))


def test_codes_that_the_user_wants_left_float_are_not_kept() -> None:
    after = quantized(layers(stored("i8, f32 per 32", 64, 64)), "W8A16", ignore=("b",))
    assert "b" not in formats(after)


@pytest.mark.parametrize(
    ("text", "scheme", "include", "found"),
    [
        ("i8, f32 per 32", "W8A16", (), ("i8, f32 per 32", "i8, f32 per 32")),
        ("i6, f32 per 16", "W4A16", (), ("i6, f32 per 16", "i6, f32 per 16")),
        ("i4, f32 per 32", "W4A16", ("table", "head"), ("i4, f32 per 32", "i4, f32 per 32")),
    ],
)
def test_tied_table_and_head_share_their_codes(
    text: str, scheme: str, include: tuple[str, ...], found: tuple[str, str]
) -> None:
    after = quantized(tied(stored(text, 40, 64)), scheme, include=include)
    assert (formats(after)["table"], formats(after)["head"]) == found
    assert len([op for op in after.weight_ops() if op.weight.startswith("w.q")]) == 1
    assert "w" not in after.weights


def test_tied_table_that_is_asked_for_narrower_is_quantized_again_and_stays_one() -> None:
    after = quantized(tied(stored("i8, f32 per 32", 40, 64)), "W4A16", include=("table", "head"))
    assert formats(after)["table"] == formats(after)["head"]
    assert formats(after)["table"].startswith(("i4", "u4"))
    assert len([op for op in after.weight_ops() if op.weight.startswith("w.q")]) == 1


@pytest.mark.parametrize("text", FORMATS)
def test_widened_codes_are_the_same_numbers(text: str) -> None:
    before = quantized(layers(stored(text, 64, 64)), "W8A16")
    after = before.clone()
    for op in list(after.weight_ops()):
        if op.weight.endswith(".q"):
            widen(op, after)
    wide = {"i3": "i4", "i5": "i8", "i6": "i8", "i7": "i8"}.get(text[:2], text[:2])
    assert formats(after)["b"] == wide + text[2:]
    feeds = {"x": normal(3, 64, seed=5)}
    np.testing.assert_array_equal(run(after, feeds)["y"], run(before, feeds)["y"])
    widened = [d.node for d in after.decisions if d.action == "widened"]
    assert widened == (["b"] if wide != text[:2] else [])


@pytest.mark.parametrize("scheme", ["W8A16", "W8A8_DYNAMIC", "W4A16", "W4A8"])
@pytest.mark.parametrize("text", FORMATS)
def test_built_artifact_computes_what_the_kept_codes_mean(text: str, scheme: str, tmp_path: Path) -> None:
    codes = stored(text, 64, 64)
    subject = quantized(layers(codes), scheme)
    expected = run(subject, {"x": normal(3, 64, seed=5)})
    build(subject.clone(), target.load("cpu"), tmp_path, "weights.safetensors")
    found = open_folder(tmp_path, 1).run({"x": normal(3, 64, seed=5)})
    assert compare([expected], [found]).sqnr_db > (30 if "A8" in scheme else 90)


@pytest.mark.parametrize("text", ["i8, f32 per 32", "i6, f32 per 16"])
def test_built_tied_artifact_computes_what_the_kept_codes_mean(text: str, tmp_path: Path) -> None:
    subject = quantized(tied(stored(text, 40, 64)), "W8A16")
    feeds = {"i": np.array([0, 39, 7], np.int64)}
    expected = run(subject, feeds)
    build(subject.clone(), target.load("cpu"), tmp_path, "weights.safetensors")
    assert compare([expected], [open_folder(tmp_path, 1).run(feeds)]).sqnr_db > 90


def test_activations_take_the_groups_of_the_weight_they_meet() -> None:
    codes = stored("i6, f32 per 16", 64, 64)
    after = quantized(layers(codes), "W8A8_DYNAMIC", group_size=32, include=("re:.*",))
    quantize = [op for op in after.body.ops if isinstance(op, Quantize)]
    assert names(after).count("q.quantize") == len(quantize) == 3
    blocks = [op.results[0].type.format.scale.block for op in quantize]  # type: ignore[attr-defined]
    assert blocks[1] == (16,)


@pytest.mark.parametrize(
    ("text", "wide"),
    [
        ("i4, f16 per 32, zero i4", "u4, f32 per 32, zero u4"),
        ("i3, f32 per 32, zero i3", "u4, f32 per 32, zero u4"),
        ("i8, f16 per 16, zero i8", "u8, f32 per 16, zero u8"),
        ("u4, f16 per 32, zero 8", "i4, f32 per 32"),
        ("u3, f32 per 32, zero 4", "i4, f32 per 32"),
        ("u8, f16 per 32, zero 128", "i8, f32 per 32"),
        ("u1, f32 per 32, zero u1", "u2, f32 per 32, zero u2"),
        ("i6, i8 per 16, f16 per 64", "i8, f32 per 16"),
        ("u4, u6 per 32, f16 per 64, minus u6 per 32 by f16 per 64", "u4, f32 per 32, minus f32 per 32"),
        ("u4, f32 per 32, zero 7", "u4, f32 per 32, zero 7"),
        ("i4, f32 per 32, zero i8", "i4, f32 per 32, zero i8"),
    ],
)
def test_what_kernels_read_is_the_same_numbers(text: str, wide: str) -> None:
    assert str(widened(Format.parse(text))) == wide
    value = random_value(text, (64, 64), seed=6)
    before = quantized(layers(StoredCodes(value, "TEST")), "W8A16")
    after = before.clone()
    for op in list(after.weight_ops()):
        if op.weight == "w.q":
            widen(op, after)
            stored_value(op, after).check("w")
            np.testing.assert_array_equal(stored_value(op, after).decode(), value.decode())
    feeds = {"x": normal(3, 64, seed=5)}
    np.testing.assert_array_equal(run(after, feeds)["y"], run(before, feeds)["y"])
