"""Attention kernels against float64 in numpy, ONNX Runtime and PyTorch, on ordinary and extreme numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from qcc.backends.native import attention, isa
from qcc.backends.native.attention import Cache
from qcc.backends.native.attention_spec import default_schedule, space
from tests.backends.attention_oracle import BEST, SPECS, TWO, built, case_of, check, expected
from tests.backends.native_oracle import host_isas

HEADERS = list({isa.named(name).header: name for name in reversed(host_isas())}.values())
"""The best instruction set of this host for each vocabulary of vectors."""

OTHERS = ("ragged codes", "bias")
"""Those that lesser instruction sets compute too: a ragged size, a cap, a mask, and both narrow caches."""
SHAPES = ((0, 1, 4), (1, 0, 4), (1, 1, 1), (2, 1, 300), (1, 2, 130), (2, 7, 7), (2, 33, 60), (1, 130, 131), (2, 3, 128))
"""Sequences, queries, and keys of the longest one."""
KINDS = ("random", "large", "equal")


@pytest.mark.parametrize("name", SPECS)
def test_results_are_near(name: str) -> None:
    for seed, shape in enumerate(SHAPES):
        check(built(name), shape, KINDS[seed % 2], seed)
    check(built(name), (1, 6, 20), "equal")


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("each", [h for h in HEADERS if h != BEST])
def test_results_are_near_on_other_instruction_sets(each: str, name: str) -> None:
    for seed, shape in enumerate(SHAPES[2:7]):
        check(built(name, each), shape, KINDS[seed % 2], seed)


def test_logits_far_apart_choose_one_value() -> None:
    """Scores of 80 and of 10^4 in size, of both signs, beside zeros."""
    kernel = built("encoder")
    for size in (80.0, 1e4):
        for n in (1, 20):
            case = case_of(kernel, (1, n, 40))
            case.q[:] = 0
            case.q[:, :, :, 0] = size * 32**0.5
            case.cache.key[:, :, :40, 0] = np.sign(np.arange(40) % 3 - 1.0)
            keys = case.cache.key.astype(np.float64)
            exact, off = expected(kernel.spec, replace(case, keys=keys))
            y = kernel(case.q, case.cache, case.lengths)
            assert (np.abs(y - exact) <= off).all()
            np.testing.assert_allclose(y[0, 0, 0], case.values[0, 0, 2:40:3].mean(0), atol=1e-6)


def test_a_cache_grows_in_place() -> None:
    """Tokens one at a time, and a few at a time, give what all at once give, but for rounding."""
    for name in ("grouped", "windowed", "codes"):
        kernel, rng = built(name), np.random.default_rng(3)
        spec, total = kernel.spec, 47
        q = rng.standard_normal((2, spec.heads, total, spec.size)).astype(np.float32)
        k, v = rng.standard_normal((2, 2, spec.kv_heads, total, spec.size)).astype(np.float32)
        whole = kernel.cache(2, total)
        kernel.append(whole, k, v, 0)
        y = kernel(q, whole, total)
        for step in (1, 5):
            grown = kernel.cache(2, total + 1, token_major=True)
            for past in range(0, total, step):
                part = slice(past, min(past + step, total))
                turned = v[:, :, part].swapaxes(1, 2).copy().swapaxes(1, 2)  # k and v may lie in other orders
                kernel.append(grown, k[:, :, part], turned, past)
                found = kernel(q[:, :, part], grown, part.stop)
                # few queries of codes are rounded to 16 bits
                np.testing.assert_allclose(found, y[:, :, part], rtol=0, atol=3e-4 if name == "codes" else 1e-5)
            np.testing.assert_array_equal(grown.key[:, :, :total], whole.key)
            np.testing.assert_array_equal(grown.value[:, :, :total], whole.value)


@pytest.mark.parametrize("n", [1, 9])
def test_a_sequence_alone_gets_the_same_bits(n: int) -> None:
    for name in ("grouped", "codes", "bias"):
        kernel = built(name)
        case = case_of(kernel, (3, n, 290))
        mask = None if case.mask is None else np.broadcast_to(case.mask, (3, kernel.spec.heads, n, 290))
        y = kernel(case.q, case.cache, case.lengths, mask, threads=TWO)
        for b in range(3):
            one = slice(b, b + 1)
            parts = (case.cache.key, case.cache.value, case.cache.key_scale, case.cache.value_scale)
            alone = Cache(*(None if a is None else a[one].copy() for a in parts))  # pyright: ignore[reportArgumentType]
            own = None if mask is None else mask[one].copy()
            found = kernel(case.q[one].copy(), alone, case.lengths[b], own)
            assert found.tobytes() == y[one].tobytes()


def test_no_tile_changes_a_bit() -> None:
    spec, best = SPECS["ragged codes"], isa.named(BEST)
    case = case_of(built("ragged codes"), (1, 50, 90))
    usual = default_schedule(best)
    y = built("ragged codes")(case.q, case.cache, 90)
    others = [s for s in space(best) if s.keys == usual.keys and s.split == usual.split and s != usual]
    assert attention.build(spec, best, others[0])(case.q, case.cache, 90).tobytes() == y.tobytes()
    other = attention.build(spec, best, replace(usual, keys=32, split=64))
    np.testing.assert_allclose(other(case.q, case.cache, 90), y, atol=1e-5)


def test_a_call_is_made_again() -> None:
    """With other lengths, memory that is shared, and in place of q."""
    kernel = built("grouped")
    case = case_of(kernel, (2, 2, 200))
    scratch = np.zeros(kernel.scratch(2, 2, case.cache.capacity, 1) + 64, np.uint8)
    scratch = scratch[-scratch.ctypes.data % 64 :][: scratch.size - 64]
    call = kernel.prepared(case.q, case.cache, 3, scratch=scratch)
    for lengths in ([200, 197], 5, [0, 1], 190):
        call(lengths)
        assert call.y.tobytes() == kernel(case.q, case.cache, lengths).tobytes()
    for n in (2, 40):
        case = case_of(kernel, (1, n, 60))
        y, q = kernel(case.q, case.cache, 60), case.q.copy()
        kernel(q, case.cache, 60, out=q)
        np.testing.assert_array_equal(q, y)


# What is no ordinary number


@pytest.mark.parametrize("n", [1, 20])
def test_rows_that_see_nothing_are_zeros(n: int) -> None:
    """As ONNX Runtime and PyTorch have it; a finite bias, however low, is a number as any: all keys count alike."""
    padded, biased = built("encoder with padding"), built("bias")
    case = case_of(padded, (2, n, 30))
    seen = np.ones((2, 1, n, 30), bool)
    seen[1] = False
    y = padded(case.q, case.cache, case.lengths, seen)
    assert (y[1] == 0).all()
    assert (y[0] != 0).all()
    assert (padded(case.q, case.cache, 0, seen) == 0).all()
    case = case_of(biased, (1, n, 30))
    low = np.full((n, 30), np.finfo(np.float32).min)
    y = biased(case.q, case.cache, 30, low)
    np.testing.assert_allclose(y[0, :, -1], np.broadcast_to(case.values[0, 0, :30].mean(0), (12, 20)), atol=1e-6)
    assert (biased(case.q, case.cache, 30, np.full_like(low, -np.inf)) == 0).all()


@pytest.mark.parametrize("each", HEADERS)
def test_what_is_not_finite_is_seen(each: str) -> None:
    kernel = built("bias", each)
    for bad in (np.nan, np.inf):
        for n in (1, 20):
            for part in ("q", "value", *["key"] * bool(np.isnan(bad))):  # an infinite key may have the score -inf
                case = case_of(kernel, (1, n, 40))
                if part == "q":
                    case.q[0, 3, n - 1, 2] = bad
                else:
                    getattr(case.cache, part)[0, 0, 5, 2] = bad
                y = kernel(case.q, case.cache, 40, np.zeros((n, 40), np.float32))
                hit = y[0, :, n - 1, 2]
                assert not np.isfinite(hit[3] if part == "q" else hit).any()
                if part == "q":
                    assert np.isfinite(np.delete(y, 3, 1)).all()


@pytest.mark.parametrize("each", HEADERS)
def test_appended_numbers_are_rounded_to_nearest(each: str) -> None:
    rng, kernel = np.random.default_rng(5), built("bias", each)
    k = np.concatenate(
        [
            rng.standard_normal(400) * 10.0 ** rng.integers(-9, 6, 400),
            np.arange(60) * 2.0**-25,
            1 + np.arange(30) * 2.0**-12,
            [65504, 65519.996, 65520, -65520, np.inf, -np.inf, np.nan, -0.0, 2.0**-14, 2.0**-24],
        ]
    )
    k = k.astype(np.float32).reshape(1, 1, 25, 20)
    cache = kernel.cache(1, 30)
    kernel.append(cache, k, -k, 5)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(cache.key[:, :, 5:], k.astype(np.float16))
        np.testing.assert_array_equal(cache.value[:, :, 5:], (-k).astype(np.float16))
    assert not cache.key[:, :, :5].any()


@pytest.mark.parametrize("each", HEADERS)
def test_appended_codes_have_a_scale_for_each_token_and_head(each: str) -> None:
    rng, kernel = np.random.default_rng(6), built("ragged codes", each)
    k, v = (rng.standard_normal((2, 2, 40, 15)) * 10.0 ** rng.integers(-44, 38, (2, 2, 40, 1)) for _ in "kv")
    k, v = k.astype(np.float32), v.astype(np.float32)
    k[0, 0, 0] = 0
    k[0, 1, 1, 7], v[1, 0, 2, 3] = np.nan, -np.inf
    cache = kernel.cache(2, 45, token_major=True)
    kernel.append(cache, k, v, [2, 5], threads=TWO)
    assert cache.key_scale is not None
    assert cache.value_scale is not None
    for b, past in enumerate((2, 5)):
        for x, codes, scales in ((k, cache.key, cache.key_scale), (v, cache.value, cache.value_scale)):
            found, scale = codes[b, :, past : past + 40].astype(np.float64), scales[b, :, past : past + 40]
            finite = np.isfinite(x[b]).all(-1)
            assert (np.isfinite(scale) == finite).all()
            most = np.abs(x[b]).max(-1)
            np.testing.assert_allclose(
                scale[finite], np.maximum(most / np.float32(127), (most > 0) * 2.0**-126)[finite]
            )
            off = np.abs(found * scale[..., None] - x[b])[finite]
            assert (off <= 0.5001 * scale[finite][:, None]).all()
            assert np.abs(found).max() == 127


# Against others


def test_results_are_those_of_onnx_runtime() -> None:
    """The operator Attention of ONNX, with groups, masks and a softcap."""
    ort = pytest.importorskip("onnxruntime")
    kinds: dict[str, int] = {"bool": TensorProto.BOOL, "f32": TensorProto.FLOAT}
    for name in ("grouped", "encoder with padding", "bias"):
        kernel, spec = built(name), SPECS[name]
        case = case_of(kernel, (2, 33, 60))
        lengths, mask = [60, 60], case.mask
        names = ["q", "k", "v", *["m"] * (mask is not None)]
        node = helper.make_node(
            "Attention", names, ["y"], is_causal=0, scale=spec.factor, softcap=spec.softcap or 0.0
        )  # its causal order counts queries from the first key
        k, v = (np.ascontiguousarray(a[:, :, :60], np.float32) for a in (case.keys, case.values))
        feeds: dict[str, Any] = {"q": np.ascontiguousarray(case.q), "k": k, "v": v}
        order = np.arange(60) <= np.arange(27, 60)[:, None]
        if mask is not None and spec.causal:
            mask = np.where(order, mask[..., :60], -np.inf).astype(np.float32)
        elif spec.causal:
            mask, names[3:], node.input[:] = order, ["m"], [*names[:3], "m"]
        kind = kinds["bool" if mask is not None and mask.dtype == np.bool_ else "f32"]
        feeds["m"] = np.ascontiguousarray(np.broadcast_to(mask, (2, spec.heads, 33, 60)))  # pyright: ignore
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, feeds[n].shape) for n in "qkv"]
        ends.append(helper.make_tensor_value_info("m", kind, feeds["m"].shape))
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, case.q.shape)
        opset = [helper.make_opsetid("", 23)]
        model = helper.make_model(helper.make_graph([node], "one", ends, [out]), opset_imports=opset, ir_version=10)
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        cache = kernel.cache(2, 60)
        kernel.append(cache, k, v, 0)
        (theirs,) = session.run(None, feeds)
        np.testing.assert_allclose(kernel(case.q, cache, lengths, case.mask), theirs, rtol=0, atol=2e-5)


def test_results_are_those_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    kernel = built("ragged")  # its window is wider than what there is
    for n in (1, 60):
        case = case_of(kernel, (1, n, 60))
        q, k, v = (torch.tensor(np.ascontiguousarray(a, np.float32)) for a in (-case.q, case.keys, case.values))
        theirs = torch.nn.functional.scaled_dot_product_attention(
            q, k[:, :, :60], v[:, :, :60], is_causal=n > 1, enable_gqa=True, scale=0.7
        )
        np.testing.assert_allclose(kernel(case.q, case.cache, 60), theirs.numpy(), rtol=0, atol=5e-6)
