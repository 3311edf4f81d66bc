"""GPTQ, AWQ and compressed-tensors against models of their packers and the real package; lies in metadata are named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.codecs import awq, compressed_tensors, gptq
from qcc.ir.convert import convert
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.format import Format
from qcc.ir.quantized import Quantized

from .models import Layer

Array = NDArray[Any]


def assert_values(value: Quantized, expected: Array) -> None:
    np.testing.assert_array_equal(value.decode().view(np.uint32), expected.astype(np.float32).view(np.uint32))


def assert_tensors(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq(bits: int, version: int, act_order: bool) -> None:
    layer = Layer(32, 96, bits, 32, seed=bits, act_order=act_order)
    settings = gptq.Settings(bits, 32, symmetric=False, version=version)
    value = gptq.decode(layer.gptq(version), settings, "w")
    assert value.format == Format.parse(f"u{bits}, f16 per 32, zero u{bits}" + ", permuted" * act_order)
    assert_values(value, layer.values())
    assert gptq.accepted(value, "w") == value.format
    assert_tensors(gptq.encode(value, gptq.settings_for(value, version), "w"), layer.gptq(version))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 0])
def test_symmetric_gptq_has_no_zero_points(bits: int, group: int) -> None:
    layer = Layer(32, 64, bits, group or 64, symmetric=True)
    value = gptq.decode(layer.gptq(), gptq.Settings(bits, group, symmetric=True), "w")
    assert value.format == Format.parse(f"i{bits}, f16 per {group or '*'}")
    assert_values(value, layer.values())
    assert_tensors(gptq.encode(value, gptq.settings_for(value, 1), "w"), layer.gptq())


def test_gptq_that_calls_itself_symmetric_and_is_not_keeps_its_zero_points() -> None:
    layer = Layer(32, 64, 4, 32)
    value = gptq.decode(layer.gptq(), gptq.Settings(4, 32, symmetric=True), "w")
    assert "zero" in value.parts
    assert_values(value, layer.values())


def test_a_zero_point_that_was_shifted_would_be_seen() -> None:
    layer = Layer(32, 64, 4, 32)
    layer.zero = np.clip(layer.zero, 2, 14)
    wrong = gptq.decode(layer.gptq(1), gptq.Settings(4, 32, symmetric=False, version=2), "w")
    assert not np.array_equal(wrong.decode(), layer.values())


@pytest.mark.parametrize("group", [32, 64, 0])
def test_awq(group: int) -> None:
    layer = Layer(24, 64, 4, group or 64)
    value = awq.decode(layer.awq(), awq.Settings(group), "w")
    assert value.format == Format.parse(f"u4, f16 per {group or '*'}, zero u4")
    assert_values(value, layer.values())
    assert_tensors(awq.encode(value), layer.awq())


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("n", "k", "group"), [(32, 96, 32), (5, 40, 8), (7, 64, 64)])
def test_compressed_tensors(bits: int, symmetric: bool, n: int, k: int, group: int) -> None:
    layer = Layer(n, k, bits, group, symmetric=symmetric)
    block = (None,) if group == k else (group,)
    settings = compressed_tensors.Settings("pack-quantized", bits, is_float=False, symmetric=symmetric, block=block)
    value = compressed_tensors.decode(layer.compressed(symmetric=symmetric), settings, "w")
    assert_values(value, layer.values())
    assert compressed_tensors.settings_for(value.format) == settings
    assert_tensors(compressed_tensors.encode(value, "w"), layer.compressed(symmetric=symmetric))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_package_reads_what_is_written(bits: int, symmetric: bool) -> None:
    package = pytest.importorskip("compressed_tensors.compressors.pack_quantized.base")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    torch = pytest.importorskip("torch")
    layer = Layer(32, 96, bits, 32, symmetric=symmetric)
    source = gptq.decode(layer.gptq(), gptq.Settings(bits, 32, symmetric=symmetric), "w")
    value = convert(source, compressed_tensors.accepted(source, "w"), "w")
    tensors = {name: torch.from_numpy(array) for name, array in compressed_tensors.encode(value, "w").items()}
    tensors["weight_scale"] = tensors["weight_scale"].to(torch.float32)  # the package multiplies in the dtype of scales
    weights = quantization.QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=32)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=weights)
    found = package.PackedQuantizationCompressor.decompress(tensors, scheme)["weight"].numpy()
    np.testing.assert_array_equal(found, layer.values())


@pytest.mark.parametrize(("name", "block"), [("int8", (None,)), ("int8", None), ("e4m3", (None,)), ("e4m3", (16, 32))])
def test_plain_weights_of_compressed_tensors(name: str, block: tuple[int | None, ...] | None) -> None:
    import ml_dtypes

    rng = np.random.default_rng(0)
    weight = rng.integers(-128, 128, (32, 64)).astype(np.int8)
    if name == "e4m3":
        weight = rng.standard_normal((32, 64)).astype(ml_dtypes.float8_e4m3fn)
    shape = {None: (1,), (None,): (32, 1), (16, 32): (2, 2)}[block]
    scale = rng.uniform(0.01, 0.02, shape).astype(np.float32)
    kind = "int-quantized" if name == "int8" else "float-quantized"
    settings = compressed_tensors.Settings(kind, 8, is_float=name == "e4m3", symmetric=True, block=block)
    value = compressed_tensors.decode({"weight": weight, "weight_scale": scale}, settings, "w")
    wide = scale if block != (16, 32) else np.kron(scale, np.ones((16, 32), np.float32))
    assert_values(value, weight.astype(np.float32) * wide)
    if name == "e4m3":
        found = compressed_tensors.encode(value, "w")
        np.testing.assert_array_equal(found["weight"].view(np.uint8), weight.view(np.uint8))


@pytest.mark.parametrize("divisor", [64.0, 1.0, 0.125])
def test_nvfp4(divisor: float) -> None:
    tensors, expected = nvfp4(divisor)
    value = compressed_tensors.decode(tensors, NVFP4, "w")
    assert value.format == Format.parse("e2m1, e4m3 per 16, f32 per tensor")
    assert_values(value, expected)
    assert_tensors(compressed_tensors.encode(value, "w"), tensors)


def test_nvfp4_whose_divisor_has_no_reciprocal_keeps_its_quotients() -> None:
    tensors, expected = nvfp4(2688.3)
    value = compressed_tensors.decode(tensors, NVFP4, "w")
    assert value.format == Format.parse("e2m1, f32 per 16")
    assert_values(value, expected)
    with pytest.raises(NotSupported, match="w: codes of e2m1 are no integers"):
        compressed_tensors.accepted(value, "w")


@pytest.mark.parametrize("seed", range(8))
def test_nvfp4_of_chosen_scales_finds_a_divisor(seed: int) -> None:
    from qcc.ir.quantize import quantize

    weight = np.random.default_rng(seed).standard_normal((32, 64)).astype(np.float32)
    chosen = quantize(weight, Format.parse("e2m1, e4m3 per 16, f32 per tensor"))
    value = compressed_tensors.with_divisor(chosen, weight)
    np.testing.assert_allclose(value.parts["scale1"], chosen.parts["scale1"], rtol=1e-3)
    error, before = (np.abs(v.decode() - weight).mean() for v in (value, chosen))
    assert error < before * 1.01
    back = compressed_tensors.decode(compressed_tensors.encode(value, "w"), NVFP4, "w")
    assert back.format == value.format
    assert_values(back, value.decode())


def test_nvfp4_package_reads_what_is_written() -> None:
    package = pytest.importorskip("compressed_tensors.compressors.nvfp4.helpers")
    torch = pytest.importorskip("torch")
    tensors, _ = nvfp4(64.0)
    value = compressed_tensors.decode(tensors, NVFP4, "w")
    packed = torch.from_numpy(compressed_tensors.encode(value, "w")["weight_packed"])
    found = package.unpack_fp4_from_uint8(packed, 8, 64, dtype=torch.float32).numpy()
    np.testing.assert_array_equal(found, value.format.family.decode(value.codes))


NVFP4 = compressed_tensors.Settings("nvfp4-pack-quantized", 4, is_float=True, symmetric=True, block=(16,))


def nvfp4(divisor: float) -> tuple[dict[str, Array], Array]:
    """Tensors of 8 x 64 and their values: e2m1 codes times (e4m3 scale / divisor)."""
    import ml_dtypes

    rng = np.random.default_rng(1)
    codes = rng.integers(0, 16, (8, 64)).astype(np.uint8)
    scale = rng.uniform(0.1, 400, (8, 4)).astype(ml_dtypes.float8_e4m3fn)
    tensors = {
        "weight_packed": codes[:, 0::2] | codes[:, 1::2] << 4,
        "weight_scale": scale,
        "weight_global_scale": np.array([divisor], np.float32),
    }
    numbers = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)[codes & 7] * np.where(codes & 8, -1, 1)
    return tensors, numbers.astype(np.float32) * np.repeat(scale.astype(np.float32) / np.float32(divisor), 16, axis=1)


def changed(name: str, array: Array | None) -> dict[str, Array]:
    tensors = Layer(32, 64, 4, 32).gptq()
    if array is None:
        del tensors[name]
    else:
        tensors[name] = array
    return tensors


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        (changed("qzeros", None), (4, 32), "w: GPTQ needs 'qzeros', which is missing"),
        (changed("scales", np.ones((3, 32), np.float16)), (4, 32), r"w: scales is float16 \[3, 32\]"),
        (changed("scales", np.ones((2, 32), np.int32)), (4, 32), "w: scales is int32"),
        (changed("qweight", np.zeros((8, 32), np.int64)), (4, 32), "w: qweight is int64"),
        (changed("g_idx", np.full(64, 2, np.int32)), (4, 32), "w: g_idx holds 2 at 0, but there are 2 groups"),
        (changed("g_idx", np.full(64, -1, np.int32)), (4, 32), "w: g_idx holds -1"),
        (changed("g_idx", np.zeros(64, np.int32)), (4, 32), "w: group 0 of g_idx has 64 columns, not 32"),
        (changed("g_idx", np.zeros(63, np.int32)), (4, 32), "w: g_idx is"),
        (Layer(32, 64, 4, 32).gptq(), (8, 32), "w: scales is"),
        (Layer(32, 64, 4, 32).gptq(), (4, 64), "w: scales is"),
        (Layer(32, 64, 4, 32).gptq(), (3, 32), "w: qweight has shape|w: scales is"),
        (changed("scales", np.full((2, 32), np.nan, np.float16)), (4, 32), r"w: scale at block \(0, 0\) is nan"),
    ],
)
def test_gptq_that_lies(tensors: dict[str, Array], settings: tuple[int, int], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        gptq.decode(tensors, gptq.Settings(*settings, symmetric=False), "w")


def test_zero_points_that_version_1_cannot_tell() -> None:
    layer = Layer(32, 64, 4, 32)
    layer.zero[0, 0] = 0
    value = gptq.decode(layer.gptq(2), gptq.Settings(4, 32, symmetric=False, version=2), "w")
    with pytest.raises(NotSupported, match="w: zero point 0 cannot be stored less one"):
        gptq.encode(value, gptq.settings_for(value, 1), "w")
    with pytest.raises(
        NotSupported, match="w: qzeros hold 15, which is zero point 0 to some programs and 16 to others"
    ):
        gptq.decode(layer.gptq(1), gptq.Settings(4, 32, symmetric=False), "w")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("weight_packed", np.zeros((32, 7), np.int32), r"w: weight_packed is int32 \[32, 7\]"),
        ("weight_shape", np.array([32, 640], np.int64), r"w: weight_packed is"),
        ("weight_shape", np.array([-1, 64], np.int64), r"w: weight_shape is \[-1, 64\]"),
        ("weight_scale", np.ones((32, 3), np.float16), r"w: weight_scale is float16 \[32, 3\]"),
        ("weight_zero_point", np.zeros((4, 3), np.int32), r"w: weight_zero_point is int32 \[4, 3\]"),
    ],
)
def test_compressed_tensors_that_lies(name: str, array: Array, message: str) -> None:
    settings = compressed_tensors.Settings("pack-quantized", 4, is_float=False, symmetric=False, block=(32,))
    tensors = {**Layer(32, 64, 4, 32).compressed(symmetric=False), name: array}
    with pytest.raises(BadInput, match=message):
        compressed_tensors.decode(tensors, settings, "w")


@pytest.mark.parametrize("name", ["qweight", "qzeros", "scales"])
def test_awq_that_lies(name: str) -> None:
    tensors = Layer(24, 64, 4, 32).awq()
    tensors[name] = tensors[name][:-1]
    with pytest.raises(BadInput, match="w: "):
        awq.decode(tensors, awq.Settings(32), "w")
