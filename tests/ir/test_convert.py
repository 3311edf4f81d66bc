"""Conversions keep every value bit by bit or are refused with the tensor and the reason; nothing is rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcc.ir.codecs import awq, compressed_tensors, gguf, gptq, matmul_nbits, qdq
from qcc.ir.convert import convert
from qcc.ir.errors import NotSupported
from qcc.ir.format import Format
from qcc.ir.levels import level_dtype
from qcc.ir.quantized import Quantized

Array = NDArray[Any]
SHAPE = (16, 256)


def random(text: str, seed: int = 0, shape: tuple[int, int] = SHAPE) -> Quantized:
    """Random parts of any format of elements with a table."""
    fmt, rng = Format.parse(text), np.random.default_rng(seed)
    raw = rng.integers(0, 1 << fmt.bits, shape).astype(np.uint8)
    raw = np.where(np.isfinite(fmt.family.table[raw]), raw, np.uint8(0))
    if fmt.family.signed:
        raw = ((raw.astype(np.int16) ^ 1 << fmt.bits - 1) - (1 << fmt.bits - 1)).astype(np.int8)
    parts: dict[str, Array] = {"codes": raw}
    for name, level in fmt.levels().items():
        dtype, count = level_dtype(level.dtype), level.shape_of(shape)
        if dtype.is_integer:
            parts[name] = rng.integers(int(dtype.low), int(dtype.high) + 1, count).astype(dtype.numpy)
        else:
            parts[name] = rng.uniform(0.01, 0.02, count).astype(dtype.numpy)
    if fmt.permuted:
        parts["order"] = rng.permutation(shape[-1]).astype(np.int32)
    return Quantized(fmt, parts)


def assert_same(made: Quantized, value: Quantized, text: str) -> None:
    assert made.format == Format.parse(text)
    made.check("made")
    np.testing.assert_array_equal(made.decode().view(np.uint32), value.decode().view(np.uint32))


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ("i4, f16 per 32", "u4, f16 per 32, zero 8"),
        ("u4, f16 per 32, zero 8", "i4, f16 per 32"),
        ("i4, f16 per 32", "u4, f16 per 32, zero u4"),
        ("u4, f16 per 32, zero u4", "i4, f16 per 32, zero i4"),
        ("u4, f16 per 32, zero u4", "i5, f16 per 32"),
        ("u4, f16 per 32, zero u4", "u4, f32 per 32, zero f16"),
        ("u4, f16 per 64, zero u4", "u4, f16 per 32, zero u4"),
        ("u4, f16 per 32, zero u8 per *", "i8, f16 per 32, zero i8"),
        ("u8, f32 per *, zero 128", "i8, f32 per 32"),
        ("i8, f32 per tensor", "i8, f32 per 16"),
        ("i4, f16 per 16x64", "i4, f16 per 32"),
        ("i4, f16 per 32", "i8, f32 per 32"),
        ("i4, f16 per 32", "u4, f16 per 32, plus f16 per 32"),
        ("u4, f16 per 32", "u4, f16 per 32, minus f16 per 32"),
        ("ternary, f16 per 256", "i2, f16 per 32"),
        ("binary, f16 per *", "i4, f16 per 32"),
        ("iq4nl, f16 per 32", "i8, f16 per 32"),
        ("i6, i8 per 16, f16 per 256", "i6, f32 per 16"),
        ("u4, u6 per 32, f16 per 256, minus u6 per 32 by f16 per 256", "u4, f32 per 32, plus f32 per 32"),
        ("u4, f16 per 32, plus f16 per 32", "u4, f16 per 32, minus f16 per 32"),
        ("e2m1, e4m3 per 16, f32 per tensor", "e2m1, f32 per 16"),
        ("e2m1, e8m0 per 32", "e4m3, f32 per 32"),
        ("i4, f16 per 32", "i4, f16 per 32, permuted"),
        ("u4, f16 per 32, zero u4, permuted", "i4, f16 per 16, zero i4, permuted"),
        ("i4, f16 per *, permuted", "i4, f16 per *"),
    ],
)
def test_exact_conversions(have: str, want: str) -> None:
    value = random(have)
    assert_same(convert(value, Format.parse(want)), value, want)


@pytest.mark.parametrize(
    ("have", "want", "why"),
    [
        ("i4, f16 per 32, permuted", "i4, f16 per 32", "an act-order permutation of columns would be lost"),
        ("i4, f32 per 32", "i4, f16 per 32", "is no value of f16"),
        ("i8, f16 per 32", "i4, f16 per 32", "the number -?[0-9]+ at .* has no code"),
        ("i4, f16 per 32", "i4, f16 per 64", "blocks of 1x64 would share one scale"),
        ("i4, f16 per 24", "i4, f16 per 32", "blocks of 1x32 would share one scale"),
        ("u4, f16 per 32, zero u4", "u4, f16 per 64, zero u4", "blocks of 1x64 would share one"),
        ("u4, f16 per 32, zero u4", "i4, f16 per 32", "has no code"),
        ("i6, i8 per 16, f16 per 256", "i6, f16 per 16", "product of scales .* is no value of f16"),
        ("i4, f16 per 32", "u4, u6 per 32, f16 per 256, minus u6 per 32 by f16 per 256", "scales of scales"),
        ("u4, f16 per 32, plus f16 per 32", "u4, f16 per 32, zero u4", "is no multiple of its scale"),
        ("e2m1, f16 per 32", "i4, f16 per 32", "the number .* has no code"),
        ("i4, f16 per 32", "i4, f16 per 32, outliers f16 csr", "beside the codes on one side only"),
        ("i4, f16 per 32", "i4, f16 per 32, sparse 2:4", "not 2:4 sparse"),
        ("i4, f16 per 32", "k16 in f16 per *", "codebook"),
    ],
)
def test_what_would_change_a_value_is_refused_by_name(have: str, want: str, why: str) -> None:
    with pytest.raises(NotSupported, match=f"^layer: .*{why}"):
        convert(random(have), Format.parse(want), "layer")


def test_groups_with_one_scale_become_one_channel() -> None:
    value = random("i4, f16 per 32")
    value.parts["scale"][:] = value.parts["scale"][:, :1]
    assert_same(convert(value, Format.parse("i4, f16 per *")), value, "i4, f16 per *")


def test_narrower_element_where_all_codes_fit() -> None:
    value = random("i8, f16 per 32")
    value.codes[:] = value.codes % 16 - 8
    assert_same(convert(value, Format.parse("i4, f16 per 32")), value, "i4, f16 per 32")


def test_a_minimum_that_is_a_multiple_of_its_scale_is_a_zero_point() -> None:
    value = random("u4, f16 per 32, zero u4")
    scale = value.scale.astype(np.float32)
    value.parts["scale"][:] = np.exp2(np.rint(np.log2(scale)))  # so that zero * scale is a float16
    there = convert(value, Format.parse("u4, f16 per 32, plus f16 per 32"))
    assert_same(convert(there, value.format), value, str(value.format))
    np.testing.assert_array_equal(convert(there, value.format).codes, value.codes)


def test_negative_zero_is_not_lost_silently() -> None:
    value = random("e2m1, f32 per 32")
    value.codes[:] = 8  # -0
    with pytest.raises(NotSupported, match="last bits"):
        convert(value, Format.parse("i8, f32 per 32"))


TARGETS = {"gptq": gptq, "awq": awq, "compressed": compressed_tensors, "nbits": matmul_nbits, "qdq": qdq, "gguf": gguf}
FORMATS = (
    "i4, f16 per 32",
    "u4, f16 per 32, zero u4",
    "u4, f16 per 128, zero 8",
    "i8, f16 per *",
    "i3, f16 per 64",
    "i5, f16 per 32",
    "u2, f16 per 16, zero u2",
    "u4, f16 per 32, plus f16 per 32",
    "i6, i8 per 16, f16 per 256",
    "ternary, f16 per 256",
    "e4m3, f32 per *",
    "i4, f16 per 32, permuted",
)


@pytest.mark.parametrize("container", TARGETS)
@settings(max_examples=25)
@given(text=st.sampled_from(FORMATS), seed=st.integers(0, 99))
def test_any_format_in_any_container_is_exact_or_refused_by_name(container: str, text: str, seed: int) -> None:
    value = random(text, seed)
    codec = TARGETS[container]
    try:
        wanted = codec.accepted(value, "layer.w")  # type: ignore[attr-defined]
        made = convert(value, wanted, "layer.w")
    except NotSupported as error:
        assert error.message.startswith("layer.w: ")
        return
    np.testing.assert_array_equal(made.decode().view(np.uint32), value.decode().view(np.uint32))
    assert codec.accepted(made, "layer.w") == wanted  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("i4, f16 per 32", "Q4_0"),
        ("i4, f16 per 128", "Q4_0"),
        ("u4, f16 per 64, zero u4", "Q5_0"),
        ("u2, f16 per 64, zero u2", "Q4_0"),
        ("i8, f16 per *", "Q8_0"),
        ("ternary, f16 per 256", "TQ1_0"),
        ("i6, i8 per 16, f16 per 256", "Q6_K"),
    ],
)
def test_the_narrowest_kind_of_gguf_that_holds_the_values(text: str, kind: str) -> None:
    value = random(text)
    found = gguf.accepted(value, "w")
    assert found == gguf.kind_of(kind).format
    np.testing.assert_array_equal(convert(value, found, "w").decode(), value.decode())


def test_act_order_is_refused_by_name_where_there_is_no_order() -> None:
    value = random("u4, f16 per 32, zero u4, permuted")
    for codec, name in ((awq, "AWQ"), (matmul_nbits, "MatMulNBits"), (qdq, "DequantizeLinear")):
        with pytest.raises(NotSupported, match=f"w: an act-order permutation cannot be expressed in {name}"):
            codec.accepted(value, "w")
    with pytest.raises(NotSupported, match="w: an act-order permutation cannot be expressed in GGUF"):
        gguf.candidates(value, "w")
    assert gptq.accepted(value, "w") == value.format
