"""Schemes are data: the formats that each gives weights and activations, whatever the shape."""

from __future__ import annotations

import pytest

from qcc.ir.errors import BadInput
from qcc.ir.format import Format
from qcc.passes import schemes

LINEAR = {
    "W8A8": "i8, f32 per *",
    "W8A8_DYNAMIC": "i8, f32 per *",
    "W8A16": "i8, f32 per 128",
    "W4A16": "i4, f32 per 128",
    "W4A16_ASYM": "u4, f32 per 128, zero u4",
    "W4A8": "i4, f32 per 32",
    "W2A16": "u2, f32 per 32, zero u2",
    "W3A16": "i3, f32 per 128",
    "W8A8_GROUP": "i8, f32 per 32",
}
ACTIVATION = {
    "W8A8": "u8, f32 per tensor, zero u8",
    "W8A8_DYNAMIC": "u8, f32 per tensor, zero u8",
    "W4A8": "i8, f32 per 32",
    "W8A8_GROUP": "i8, f32 per 32",
}
SHAPES = [(64, 64, 3, 3), (64, 1, 3, 3), (7, 5, 1), (16, 300, 1, 1), (8, 13, 2, 2, 2), (1, 1, 1, 1), (4, 257, 1, 1)]


def test_every_scheme_is_listed_here() -> None:
    elements = {name for name in schemes.names() if schemes.load(name).is_element}
    assert elements == {*LINEAR, "XINT8"}
    assert schemes.load("float").linear_format is not None
    assert not schemes.load("float").weight


@pytest.mark.parametrize("name", LINEAR)
def test_linear_and_activation_formats(name: str) -> None:
    scheme = schemes.load(name)
    assert str(scheme.linear_format()) == LINEAR[name]
    activation = scheme.activation_format()
    assert (None if activation is None else str(activation)) == ACTIVATION.get(name)
    assert scheme.needs_calibration == (name == "W8A8")
    assert scheme.bits == int(name[1])
    assert scheme.summary


def test_a_group_size_of_the_user_reaches_weights_and_activations_alike() -> None:
    scheme = schemes.load("W4A8")
    assert str(scheme.linear_format(64)) == "i4, f32 per 64"
    assert str(scheme.activation_format(64)) == "i8, f32 per 64"
    assert str(schemes.load("W2A16").linear_format(16)) == "u2, f32 per 16, zero u2"


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", [0, 16, 128])
def test_convolution_formats_fit_any_shape(name: str, shape: tuple[int, ...], group: int) -> None:
    scheme = schemes.load(name)
    fmt = scheme.conv_format(shape, group_size=group)
    counts = fmt.scale_shape(shape)
    assert counts[0] == shape[0], "each output channel has scales of its own"
    assert all(count == 1 for count in counts[2:]), "a kernel window is never cut"
    channels = fmt.block_of(shape)[1]
    assert shape[1] % channels == 0, "blocks are whole"
    if scheme.activation:
        assert counts[1] == 1, "integer kernels take one scale an output channel"
    elif channels < shape[1]:
        window = 1
        for extent in shape[2:]:
            window *= extent
        assert channels * window <= (group or scheme.group)
    assert Format.parse(str(fmt)) == fmt


@pytest.mark.parametrize("name", LINEAR)
def test_transposed_convolutions_have_scales_along_their_second_axis(name: str) -> None:
    shape = (6, 5, 3, 3)
    assert schemes.load(name).conv_format(shape, transposed=True).scale_shape(shape) == (1, 5, 1, 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_fixed_point_has_one_power_of_two_a_tensor(shape: tuple[int, ...]) -> None:
    scheme = schemes.load("XINT8")
    formats = [scheme.linear_format(), scheme.conv_format(shape), scheme.conv_format(shape, transposed=True)]
    formats += [scheme.bias_format, *filter(None, [scheme.activation_format()])]
    assert {str(fmt) for fmt in formats} == {"i8, e8m0 per tensor"}
    assert len(formats) == 5
    assert scheme.conv_format(shape).scale_shape(shape) == (1,) * len(shape)


def test_only_xint8_is_fixed_point() -> None:
    assert [name for name in schemes.names() if schemes.load(name).is_fixed_point] == ["XINT8"]
    assert schemes.load("XINT8").needs_calibration


def test_the_eight_bit_form_of_a_scheme_keeps_its_activations() -> None:
    scheme = schemes.load("W2A16").at_eight_bits
    assert str(scheme.linear_format()) == "i8, f32 per *"
    assert schemes.load("W4A8").at_eight_bits.activation == "i8"


def test_names_are_found_in_any_case_and_others_are_refused_with_the_known_ones() -> None:
    assert schemes.load("w4a16_asym") == schemes.load("W4A16_ASYM")
    assert schemes.load("FLOAT").name == "float"
    for name in ("W5A5", "", "../W8A8", "W8A8.toml"):
        with pytest.raises(BadInput) as caught:
            schemes.load(name)
        assert "W4A16_ASYM" in caught.value.hint
