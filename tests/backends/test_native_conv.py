"""Convolution kernels against whole numbers in numpy and ONNX Runtime's QLinearConv, on ordinary and extreme codes."""

from __future__ import annotations

import os
import random
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qcc.backends.native import compile, conv, isa
from qcc.backends.native.blocked import Blocked
from qcc.backends.native.conv import ConvKernel, Scales
from qcc.backends.native.conv_spec import ConvSchedule, ConvSpec, default_schedule, space
from qcc.backends.native.memory import READ_AHEAD
from qcc.backends.native.rows_expression import parse
from qcc.ir import target
from qcc.ir.errors import BadInput, NotSupported
from tests.backends.native_oracle import host_isas

BEST = host_isas()[0]
CORES = target.load("cpu").cores
HEADERS = list({isa.named(name).header: name for name in reversed(host_isas())}.values())
"""The best instruction set of this host for each vocabulary of vectors."""

ONE, SAME = (1, 1), (1, 1, 1, 1)
SPECS = {
    "1x1": ConvSpec.of((17, 5, 9), 33, ONE),
    "1x1 to one pixel": ConvSpec.of((64, 1, 1), 20, ONE),
    "1x1 strided": ConvSpec.of((16, 7, 8), 16, ONE, (2, 3)),
    "3x3": ConvSpec.of((20, 8, 7), 40, (3, 3), ONE, SAME),
    "3x3 to another with padding": ConvSpec.of((16, 8, 7), 72, (3, 3), ONE, SAME, halo=(2, 1, 0, 3)),
    "first layer": ConvSpec.of((3, 13, 21), 17, (7, 7), (2, 2), (3, 3, 3, 3)),
    "grey image": ConvSpec.of((1, 9, 9), 16, (3, 3), ONE, SAME, dtypes=("s8", "s8")),
    "1x3": ConvSpec.of((32, 1, 40), 30, (1, 3), ONE, (0, 1, 0, 1)),
    "dilated, padded on two sides": ConvSpec.of((16, 9, 12), 16, (2, 3), (1, 2), (2, 0, 0, 1), (2, 3)),
    "signed": ConvSpec.of((24, 6, 6), 24, (3, 3), (2, 2), SAME, dtypes=("s8", "s8")),
    "signed to unsigned": ConvSpec.of((16, 6, 6), 16, (3, 3), (1, 2), SAME, dtypes=("s8", "u8"), halo=SAME),
    "numbers": ConvSpec.of((16, 5, 5), 24, (3, 3), ONE, SAME, dtypes=("u8", "f32"), halo=SAME),
    "two groups": ConvSpec.of((32, 6, 5), 64, (3, 3), ONE, SAME, groups=2),
    "many groups": ConvSpec.of((40, 6, 5), 40, (3, 3), ONE, SAME, groups=10),
    "groups across blocks": ConvSpec.of((30, 4, 5), 35, (1, 2), ONE, groups=5),
    "depthwise 3x3": ConvSpec.of((17, 9, 10), 17, (3, 3), ONE, SAME, groups=17),
    "depthwise 5x5": ConvSpec.of((48, 6, 9), 48, (5, 5), (2, 1), (2, 2, 2, 2), groups=48, halo=(1, 2, 3, 4)),
    "depthwise 7x9": ConvSpec.of((16, 9, 11), 16, (7, 9), (1, 2), (3, 4, 3, 4), groups=16, dtypes=("s8", "s8")),
    "depthwise 3x1": ConvSpec.of((16, 7, 5), 16, (3, 1), ONE, (1, 0, 1, 0), groups=16),
    "depthwise dilated": ConvSpec.of((16, 9, 12), 16, (3, 4), ONE, (2, 2, 2, 1), (2, 3), groups=16),
    "depthwise dilated beyond the slack": ConvSpec.of((16, 9, 12), 16, (3, 2), ONE, (2, 2, 2, 2), (2, 3), groups=16),
    "depthwise numbers": ConvSpec.of((20, 5, 5), 20, (3, 3), (2, 2), SAME, groups=20, dtypes=("u8", "f32")),
    "two results a channel": ConvSpec.of((16, 6, 6), 32, (3, 3), ONE, SAME, groups=16),
    "a wide halo": ConvSpec(Blocked(16, 6, 6, "u8", (3, 2, 1, 4)), 16, (3, 3), ONE, (1, 0, 1, 1)),
    "few channels in blocks of 4": ConvSpec(Blocked(13, 6, 7, "u8", SAME, 4), 16, (3, 3), ONE, SAME),
}
OTHERS = ("3x3", "first layer", "signed", "numbers", "many groups", "depthwise 5x5", "depthwise 3x1")
"""Those that the lesser instruction sets compute too; the rest of their code is the same."""


def codes(spec: ConvSpec, images: int, rng: np.random.Generator, kind: str = "random") -> np.ndarray:
    """NCHW codes of the input: random, all lowest, all highest, or one beside the other."""
    shape = (images, spec.x.channels, spec.x.height, spec.x.width)
    signed = spec.x.dtype == "s8"
    unsigned = {"random": rng.integers(0, 256, shape), "lowest": np.zeros(shape), "highest": np.full(shape, 255)}
    found = unsigned[kind] if kind in unsigned else np.where(rng.random(shape) < 0.5, 0, 255)
    return (found - 128 if signed else found).astype(np.int8 if signed else np.uint8)


def sums(spec: ConvSpec, x: np.ndarray, w: np.ndarray, bias: np.ndarray, zero: int) -> np.ndarray:
    """The exact sums, int64 [N, channels, height, width], of windows of the padded image."""
    top, left, bottom, right = spec.pads
    padded = np.pad(x.astype(np.int64) - zero, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spec.reach, (2, 3))
    (sh, sw), (dh, dw) = spec.strides, spec.dilations
    windows = windows[:, :, ::sh, ::sw, ::dh, ::dw]
    parts = zip(np.split(windows, spec.groups, 1), np.split(w.astype(np.int64), spec.groups), strict=True)
    return np.concatenate([np.einsum("nchwij,ocij->nohw", a, b) for a, b in parts], 1) + bias[:, None, None]


def expected(
    spec: ConvSpec, total: np.ndarray, s: Scales, clamp: tuple[float, float] = (-np.inf, np.inf)
) -> np.ndarray:
    """What the sums become: numbers, or codes by ONNX's QLinearConv, scaled in float32 and rounded half to even."""
    scaled = total.astype(np.float32)
    if spec.dtype == "f32":
        return np.clip(scaled * (np.float32(s.x) * s.weight)[:, None, None], *np.array(clamp, np.float32))
    scaled = scaled * (np.float32(s.x) * s.weight / np.float32(s.y))[:, None, None]
    low, high = (0, 255) if spec.dtype == "u8" else (-128, 127)
    ends = np.clip(np.rint(np.array(clamp) / s.y) + s.y_zero, low, high)
    dtype = np.uint8 if spec.dtype == "u8" else np.int8
    return np.clip(np.rint(scaled) + s.y_zero, *ends).astype(dtype)


def scales_for(spec: ConvSpec, total: np.ndarray, rng: np.random.Generator) -> Scales:
    """Scales that spread the result over most of its codes, and beyond on both sides."""
    largest = max(1, np.abs(total).max(initial=1))
    weight = (rng.uniform(0.1, 1.0, spec.channels) * 2e4 / largest).astype(np.float32)
    zeros = (rng.integers(-100, 100), rng.integers(-50, 50))
    x_zero, y_zero = (
        int(z) + (0 if d == "s8" else 128) for z, d in zip(zeros, (spec.x.dtype, spec.dtype), strict=True)
    )
    return Scales(0.02, weight, 0.9, x_zero, y_zero)


def check(kernel: ConvKernel, kind: str = "random", images: int = 2, threads: int = 1, seed: int = 0) -> None:
    """The kernel gives the expected bits, inside the halo and in it."""
    spec, rng = kernel.spec, np.random.default_rng(seed)
    x = codes(spec, images, rng, kind)
    w = weights(spec, rng, kind)
    bias = rng.integers(-2000, 2000, spec.channels).astype(np.int32)
    zero = int(rng.integers(0, 256)) - spec.x.flip
    total = sums(spec, x, w, bias, zero)
    scales = replace(scales_for(spec, total, rng), x_zero=zero)
    y = spec.y.empty(images, 77)
    kernel(spec.x.pack(x, zero), kernel.pack(w, scales, bias), out=y, threads=threads)
    np.testing.assert_array_equal(spec.y.unpack(y), expected(spec, total, scales), f"{spec}, {kernel.schedule}, {kind}")
    again = spec.y.pack(spec.y.unpack(y), scales.y_zero).reshape(
        images, spec.y.blocks, spec.y.rows * spec.y.columns, 16
    )
    channels = spec.channels - 16 * (spec.y.blocks - 1)
    held = y.reshape(again.shape)
    np.testing.assert_array_equal(held[:, :-1], again[:, :-1], f"{spec}: halo")
    np.testing.assert_array_equal(
        held[:, -1, :, :channels], again[:, -1, :, :channels], f"{spec}: halo of the last block"
    )


def weights(spec: ConvSpec, rng: np.random.Generator, kind: str) -> np.ndarray:
    """int8 weights: random, or at the ends that make sums largest."""
    random = rng.integers(-128, 128, spec.weight)
    ends = {"lowest": np.full(spec.weight, -128), "highest": np.full(spec.weight, 127)}
    return ends.get(kind, random).astype(np.int8)


@pytest.mark.parametrize("name", SPECS)
def test_codes_are_exact(name: str) -> None:
    kernel = conv.build(SPECS[name], isa.named(BEST))
    for kind in ("random", "lowest", "highest", "either"):
        check(kernel, kind)
    check(kernel, images=3, threads=min(2, CORES))
    check(kernel, images=0)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("each", [h for h in HEADERS if h != BEST])
def test_codes_are_exact_on_other_instruction_sets(each: str, name: str) -> None:
    kernel = conv.build(SPECS[name], isa.named(each))
    for kind in ("random", "lowest", "highest", "either"):
        check(kernel, kind, images=1)


@pytest.mark.skipif("avx512_vnni" not in host_isas(), reason="no dot products of bytes")
def test_taps_are_turned_without_permutations_of_bytes() -> None:
    """AVX-512 without VBMI transposes in two steps."""
    check(conv.build(SPECS["depthwise 5x5"], isa.named("avx512_vnni")))


SCHEDULED = {
    "3x3": ConvSpec.of((16, 11, 13), 80, (3, 3), ONE, SAME, halo=SAME),
    "depthwise": ConvSpec.of((32, 11, 13), 32, (3, 5), ONE, (1, 2, 1, 2), groups=32, halo=SAME),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_no_schedule_changes_a_bit(name: str) -> None:
    """Tiles that overlap, chunks that end in a larger one, a group of fewer blocks at the end: a few of each."""
    spec, best = SCHEDULED[name], isa.named(BEST)
    offered = sorted(space(spec, best), key=str)
    for seed, schedule in enumerate(random.Random(3).sample(offered, 5)):
        check(conv.build(spec, best, schedule), threads=min(2, CORES), seed=seed)


@pytest.mark.parametrize("name", ["3x3", "first layer", "depthwise 5x5", "many groups", "numbers"])
def test_one_kernel_serves_images_of_every_size(name: str) -> None:
    """Smaller than a tile, as large, and larger, with chunks of rows and without."""
    spec, best = SPECS[name], isa.named(BEST)
    for chunk in (0, 4):
        kernel = conv.build(
            spec, best, replace(default_schedule(spec, best), rows=2, columns=4, vectors=1, chunk=chunk)
        )
        for size in ((1, 1), (1, 9), (9, 1), (3, 40), (23, 5), (31, 30)):
            if min(replace(spec, x=replace(spec.x, height=size[0], width=size[1])).size) > 0:
                check(kernel.resized(*size), images=1, threads=min(2, CORES))


def test_a_size_that_a_kernel_does_not_fit_is_refused() -> None:
    with pytest.raises(BadInput, match="a kernel of"):
        conv.build(ConvSpec.of((16, 4, 4), 16, (3, 3)), isa.named(BEST)).resized(2, 9)


def test_the_default_schedule_is_offered() -> None:
    for each in isa.ISAS:
        for spec in SPECS.values():
            assert default_schedule(spec, each) in set(space(spec, each))


def test_schedules_keep_their_sums_in_registers() -> None:
    for schedule in space(SPECS["3x3"], isa.named("avx512_vnni")):
        assert schedule.rows * schedule.columns * schedule.vectors + schedule.vectors <= 31


def test_a_clamp_is_that_of_numbers() -> None:
    for name in ("3x3", "signed", "numbers"):
        spec, rng = SPECS[name], np.random.default_rng(1)
        x, w, bias = codes(spec, 1, rng), weights(spec, rng, "random"), np.zeros(spec.channels, np.int32)
        total = sums(spec, x, w, bias, 3)
        scales = replace(scales_for(spec, total, rng), x_zero=3)
        kernel = conv.build(spec, isa.named(BEST))
        for clamp in ((0.0, np.inf), (0.0, 6.0), (-7.3, 21.7)):
            y = kernel(spec.x.pack(x, 3), kernel.pack(w, scales, bias, clamp))
            np.testing.assert_array_equal(spec.y.unpack(y), expected(spec, total, scales, clamp))


@pytest.mark.parametrize("each", HEADERS)
@pytest.mark.parametrize("dtype", ["u8", "s8", "f32"])
def test_an_expression_follows_before_rounding(each: str, dtype: str) -> None:
    """A hard swish of what was rounded before, times a number, plus another: what stands between convolutions."""
    expression = parse("hard_swish((clip(round(x / n0[1]) + n1[1], 0, 255) - n1[1]) * n0[1]) * n2[1] + n3[1]")
    spec = replace(SPECS["3x3"], dtype=dtype, epilogue=expression, halo=SAME)
    rng, kernel = np.random.default_rng(2), conv.build(spec, isa.named(each))
    x, w, bias = (
        codes(spec, 2, rng),
        weights(spec, rng, "random"),
        rng.integers(-99, 99, spec.channels).astype(np.int32),
    )
    total, scale, zero = sums(spec, x, w, bias, 5), np.full(spec.channels, 1e-3, np.float32), 0 if dtype != "u8" else 30
    numbers = (0.06, 101.0, 1.5, -0.25)
    y = kernel(spec.x.pack(x, 5), kernel.pack(w, Scales(0.02, scale, 0.04, 5, zero), bias, numbers=numbers))
    a, b, c, d = map(np.float32, numbers)
    f = total.astype(np.float32) * (np.float32(0.02) * scale)[:, None, None]
    f = (np.clip(np.rint(f / a) + b, 0, 255) - b) * a
    f = f * np.clip(f * np.float32(1 / 6) + np.float32(0.5), 0, 1) * c + d
    if dtype == "f32":
        np.testing.assert_allclose(spec.y.unpack(y), f, rtol=1e-6, atol=1e-6)
        return
    low = 0 if dtype == "u8" else -128
    wanted = np.clip(np.rint(f / np.float32(0.04)) + zero, low, low + 255)
    off = np.abs(spec.y.unpack(y).astype(np.int64) - wanted)
    assert off.max() <= 1
    assert np.count_nonzero(off) <= 1e-4 * off.size, "only where the last bit of a product decides"
    assert len(np.unique(wanted)) > 50


def test_an_expression_gets_its_numbers() -> None:
    spec = replace(SPECS["3x3"], epilogue=parse("x * n0[1] + n2[1]"))
    kernel, ones = conv.build(spec, isa.named(BEST)), np.ones(spec.weight, np.int8)
    for wrong in ({"numbers": (1.0,)}, {"numbers": (1.0, 2.0, 3.0), "clamp": (0.0, 1.0)}):
        with pytest.raises(BadInput, match="which takes 3"):
            kernel.pack(ones, Scales(1, np.ones(40, np.float32)), **wrong)


# Against another implementation


def session_of(spec: ConvSpec, w: np.ndarray, s: Scales, bias: np.ndarray) -> Any:
    """ONNX Runtime's session of one QLinearConv. Any: it is untyped."""
    ort = pytest.importorskip("onnxruntime")
    x_type, y_type = (np.uint8 if d == "u8" else np.int8 for d in (spec.x.dtype, spec.dtype))
    constants = {
        "xs": np.float32(s.x), "xz": x_type(s.x_zero), "w": w, "ws": s.weight, "wz": np.zeros(spec.channels, np.int8),
        "ys": np.float32(s.y), "yz": y_type(s.y_zero), "b": bias,
    }  # fmt: skip
    node = helper.make_node(
        "QLinearConv", ["x", *constants], ["y"], kernel_shape=spec.kernel, strides=spec.strides, pads=spec.pads,
        dilations=spec.dilations, group=spec.groups,
    )  # fmt: skip
    shape = ["n", spec.x.channels, spec.x.height, spec.x.width]
    kinds = (TensorProto.UINT8 if t is np.uint8 else TensorProto.INT8 for t in (x_type, y_type))
    ends = [helper.make_tensor_value_info(n, k, d) for n, k, d in zip("xy", kinds, (shape, ["n", *"chw"]), strict=True)]
    held = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    model = helper.make_model(
        helper.make_graph([node], "one", ends[:1], ends[1:], held),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", [n for n, s in SPECS.items() if s.x.dtype == s.dtype])
def test_codes_are_those_of_onnx_runtime(name: str) -> None:
    spec, rng = SPECS[name], np.random.default_rng(7)
    x, w = (
        codes(spec, 2, rng),
        (weights(spec, rng, "random") >> 1).astype(np.int8),
    )  # its u8 kernels without VNNI saturate
    bias = rng.integers(-2000, 2000, spec.channels).astype(np.int32)
    scales = scales_for(spec, sums(spec, x, w, bias, 0), rng)
    (theirs,) = session_of(spec, w, scales, bias).run(None, {"x": x})
    kernel = conv.build(spec, isa.named(BEST))
    ours = spec.y.unpack(kernel(spec.x.pack(x, scales.x_zero), kernel.pack(w, scales, bias)))
    np.testing.assert_array_equal(ours, theirs)


# Images in blocks


@given(
    st.integers(0, 3), st.integers(1, 40), st.integers(1, 6), st.integers(1, 6), st.sampled_from(["u8", "s8", "f32"]),
    st.tuples(*[st.integers(0, 3)] * 4), st.sampled_from([4, 16]), st.integers(0, 100),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_images_come_back(
    images: int, c: int, h: int, w: int, dtype: str, halo: tuple[int, int, int, int], block: int, zero: int
) -> None:
    form = Blocked(c, h, w, dtype, halo, block)
    numpy = {"u8": np.uint8, "s8": np.int8, "f32": np.float32}[dtype]
    x = np.random.default_rng(c).integers(-128, 128, (images, c, h, w)).astype(numpy)
    held = form.pack(x, zero)
    assert held.shape == (images, form.image)
    assert held.ctypes.data % 64 == 0
    np.testing.assert_array_equal(form.unpack(held), x)
    planes = held.reshape(images, form.blocks, form.rows, form.columns, block)
    for n, channel, y, z in np.ndindex(*x.shape):
        stored = planes[n, channel // block, halo[0] + y, halo[1] + z, channel % block]
        assert stored == (int(x[n, channel, y, z]) + form.flip)
    outside = planes.copy()
    outside[:, :, halo[0] : halo[0] + h, halo[1] : halo[1] + w] = 0 if dtype == "f32" else form.stored(zero)
    assert (outside == (0 if dtype == "f32" else form.stored(zero))).all()


# What is refused


REFUSED = {
    "channels": (lambda: ConvSpec.of((6, 4, 4), 8, ONE, groups=4), "4 groups of 6 channels"),
    "halo": (lambda: ConvSpec(Blocked(16, 4, 4), 16, (3, 3), ONE, SAME), "is less than the padding"),
    "kernel": (lambda: ConvSpec.of((16, 4, 4), 16, (5, 5)), "a kernel of \\(5, 5\\) pixels on 4 x 4"),
    "stride": (lambda: ConvSpec.of((16, 4, 4), 16, ONE, (0, 1)), "no positive number"),
    "numbers in": (lambda: ConvSpec.of((16, 4, 4), 16, ONE, dtypes=("f32", "u8")), "f32 images"),
    "dtype": (lambda: ConvSpec.of((16, 4, 4), 16, ONE, dtypes=("u8", "s4")), "images of s4"),
    "empty": (lambda: Blocked(0, 1, 1), "images of 0 x 1 x 1"),
    "block": (lambda: Blocked(8, 1, 1, block=8), "blocks of 8"),
    "zero": (lambda: Blocked(8, 1, 1).empty(1, 256), "256 is no u8 code"),
    "schedule": (lambda: conv.build(SPECS["3x3"], isa.named(BEST), ConvSchedule(4, 4, 4)), "cannot be computed in"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_convolutions_are_refused(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(BadInput, match=words):
        make()


def test_sums_beyond_int32_are_refused() -> None:
    with pytest.raises(NotSupported, match=r"sums of 73728 products"):
        ConvSpec.of((8192, 4, 4), 16, (3, 3))


def test_bad_weights_and_scales_are_refused() -> None:
    spec = SPECS["3x3"]
    kernel, w, ones = conv.build(spec, isa.named(BEST)), np.ones(spec.weight, np.int8), np.ones(40, np.float32)
    good = Scales(0.1, ones, 0.1, 3, 4)
    broken = {channel: ones.copy() for channel in (5, 6, 7)}
    broken[5][5], broken[6][6], broken[7][7] = np.nan, 0, -1
    for words, call in {
        r"the weight is \[40, 20, 3, 3\] uint8": lambda: kernel.pack(w.view(np.uint8), good),
        r"the weight is \[39, 20, 3, 3\]": lambda: kernel.pack(w[:39], good),
        r"the bias is \[40\] float32": lambda: kernel.pack(w, good, ones),
        r"scales of the weight are \[3\]": lambda: kernel.pack(w, replace(good, weight=ones[:3])),
        "the scale of channel 5 is nan": lambda: kernel.pack(w, replace(good, weight=broken[5])),
        "the scale of channel 6 is 0": lambda: kernel.pack(w, replace(good, weight=broken[6])),
        "the scale of channel 7 is -": lambda: kernel.pack(w, replace(good, weight=broken[7])),
        "-1 is no u8 code": lambda: kernel.pack(w, replace(good, x_zero=-1)),
        "256 is no u8 code": lambda: kernel.pack(w, replace(good, y_zero=256)),
        "a clamp from 1 to 0": lambda: kernel.pack(w, good, clamp=(1, 0)),
        "the bias of channel 1 takes": lambda: kernel.pack(w, good, np.array([0, 2**31 - 9] + 38 * [0], np.int32)),
    }.items():
        with pytest.raises(BadInput, match=words):
            call()


def test_buffers_that_do_not_fit_are_refused() -> None:
    spec = SPECS["3x3"]
    kernel = conv.build(spec, isa.named(BEST))
    packed = kernel.pack(np.ones(spec.weight, np.int8), Scales(1, np.ones(40, np.float32)))
    x, other = spec.x.empty(2), conv.build(SPECS["1x1"], isa.named(BEST))
    locked = spec.y.empty(2)
    locked.flags.writeable = False
    for words, call in {
        "x is": lambda: kernel(x[:, :-1], packed),
        "x is .* int8": lambda: kernel(x.view(np.int8), packed),
        "x is not contiguous": lambda: kernel(spec.x.empty(4)[::2], packed),
        "out is": lambda: kernel(x, packed, out=spec.y.empty(1)),
        "out is read-only": lambda: kernel(x, packed, out=locked),
        "a packed weight of": lambda: other(SPECS["1x1"].x.empty(1), packed),
        f"{CORES + 1} threads": lambda: kernel(x, packed, threads=CORES + 1),
        "pass .* uint8": lambda: spec.x.pack(np.zeros((1, 20, 8, 7), np.float32)),
    }.items():
        with pytest.raises(BadInput, match=words):
            call()


MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include <sanitizer/asan_interface.h>
static FILE *in;
/* Aligned to 64 bytes, with nothing behind it that the sanitizer lets be touched. */
static void *taken(size_t size, size_t ahead, int from_file) {
    void *p = 0;
    if (posix_memalign(&p, 64, size + ahead + 1)) abort();
    __asan_poison_memory_region((char *)p + size + ahead, 1);
    if (from_file && fread(p, 1, size, in) != size) abort();
    return p;
}
int main(int count, char **names) {
    FILE *out = fopen(names[2], "wb");
    in = fopen(names[1], "rb");
    if (count != 3) abort();
    const int codes[3] = {5, 0, 255};
    const float clamp[2] = {-1e30f, 1e30f};
    uint8_t *x = taken(IMAGES * X_IMAGE, LESS, 1);
    int8_t *w = taken(BLOCKS * WEIGHT_BLOCK, 0, 1);
    int32_t *start = taken(64 * BLOCKS, 0, 1);
    float *scale = taken(64 * BLOCKS, 0, 1);
    output *y = taken(IMAGES * Y_IMAGE * sizeof(output), 0, 0);
    qcc_conv(x, w, start, scale, y, IMAGES, IMAGE_HEIGHT, IMAGE_WIDTH, codes, clamp, 0, 1, 0);
    fwrite(y, sizeof(output), IMAGES * Y_IMAGE, out);
    return fclose(out);
}
"""


def sanitized(
    kernel: ConvKernel, folder: Path, x: np.ndarray, packed: Any, slack: int
) -> subprocess.CompletedProcess[str]:
    """The kernel as a program under the sanitizers, with `slack` bytes behind its images."""
    source, program, read = folder / "kernel.c", folder / "kernel", folder / "in"
    form = kernel.spec.x
    sizes = {"X_IMAGE": form.image, "Y_IMAGE": kernel.spec.y.image, "IMAGE_HEIGHT": form.height}
    sizes |= {"IMAGE_WIDTH": form.width, "IMAGES": len(x), "LESS": slack}
    source.write_text(kernel.source + "".join(f"#define {k} {v}L\n" for k, v in sizes.items()) + MAIN)
    flags = ["-std=gnu11", "-O1", "-g1", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = [compile.compiler(), *flags, *kernel.isa.flags, "-o", str(program), str(source), "-lm"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode and "cannot find" in made.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert made.returncode == 0, made.stderr[:3000]
    read.write_bytes(b"".join(a.tobytes() for a in (x, packed.weight, packed.start, packed.scale)))
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(
        [program, read, folder / "out"], capture_output=True, text=True, check=False, timeout=120, env=environment
    )


@pytest.mark.parametrize("name", ["first layer", "many groups", "depthwise 3x3", "depthwise 5x5", "numbers"])
def test_kernels_stay_in_their_buffers(name: str, tmp_path: Path) -> None:
    """With the address and undefined-behaviour sanitizers; images have the slack of `Blocked.empty`, the rest none."""
    spec, rng = SPECS[name], np.random.default_rng(2)
    kernel = conv.build(spec, isa.named(BEST))
    scales = Scales(0.1, np.full(spec.channels, 0.01, np.float32), 1.0, 9, 5)
    packed, x = kernel.pack(weights(spec, rng, "random"), scales), spec.x.pack(codes(spec, 2, rng), 9)
    run = sanitized(kernel, tmp_path, x, packed, READ_AHEAD if spec.depthwise else 0)
    assert run.returncode == 0, run.stderr[:3000]
    assert (tmp_path / "out").read_bytes() == kernel(x, packed).tobytes()


def test_an_image_that_is_too_short_is_found(tmp_path: Path) -> None:
    """The same program without the slack that taps of fewer than four columns need does not pass."""
    spec = SPECS["depthwise 3x3"]
    kernel = conv.build(spec, isa.named(BEST))
    packed = kernel.pack(np.ones(spec.weight, np.int8), Scales(1, np.ones(17, np.float32)))
    run = sanitized(kernel, tmp_path, spec.x.empty(1), packed, 0)
    assert run.returncode != 0
    assert "AddressSanitizer" in run.stderr
