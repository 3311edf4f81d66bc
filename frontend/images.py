"""Images as model inputs: `(pixel / 255 - mean) / std`, in the height, width and axis order that the model takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from qcc.ir.errors import BadInput, MissingExtra

if TYPE_CHECKING:
    from .samples import InputSpec

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")


@dataclass(frozen=True)
class ImageOptions:
    """How pixels become numbers; the defaults give RGB from 0 to 1.

    `height` and `width` serve a model that leaves them open. `mean` and `std` are for pixels scaled to 0..1, one value
    for all channels or one a channel, in the order of the model's channels (so after `order` has been applied).
    """

    height: int | None = None
    width: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    order: Literal["rgb", "bgr"] = "rgb"


def read_images(files: Sequence[Path], spec: InputSpec, options: ImageOptions) -> Iterator[NDArray[Any]]:
    """The images as arrays of the shape of `spec` without its first axis, stretched to size (bilinear, antialiased).

    One channel reads as grayscale, three in `options.order`. A floating-point input gets normalized values, a uint8
    input the pixels as they are. Raises BadInput for an unreadable or 16-bit image, an input that is not an image, and
    options that contradict it; MissingExtra without Pillow.
    """
    form = _form(spec, options)
    mean, std = (_per_channel(name, getattr(options, name), form.channels) for name in ("mean", "std"))
    if (std == 0).any():
        raise BadInput("a std of 0 was given for images", hint="give the standard deviation of pixels scaled to 0..1")
    if options.order not in ("rgb", "bgr"):
        raise BadInput(f"channel order '{options.order}' is unknown", hint="use rgb or bgr")
    whole_numbers = spec.dtype == np.uint8
    if whole_numbers and (mean.any() or (std != 1).any()):
        raise BadInput(f"input {spec} takes raw pixels, and mean or std was given", hint="leave out mean and std")
    pillow = _pillow()
    for file in files:
        pixels = _pixels(pillow, file, form)
        if form.channels == 3 and options.order == "bgr":
            pixels = pixels[..., ::-1]
        values = pixels if whole_numbers else (pixels / np.float32(255) - mean) / std
        ordered = values.transpose(2, 0, 1) if form.channels_first else values
        yield np.ascontiguousarray(ordered, dtype=spec.dtype)


@dataclass(frozen=True)
class _Form:
    """What the model's input asks of an image."""

    height: int
    width: int
    channels: int
    channels_first: bool


def _form(spec: InputSpec, options: ImageOptions) -> _Form:
    """Read the input as NCHW, or else as NHWC; sizes that the model leaves open come from the options."""
    if not (spec.is_float() or spec.dtype == np.uint8) or len(spec.shape) != 4:
        raise BadInput(
            f"images cannot feed input {spec}", hint="give samples as .npz files with the input's name as key"
        )
    channels_first = spec.shape[1] in (1, 3)
    channels = spec.shape[1 if channels_first else 3]
    if channels not in (1, 3):
        raise BadInput(
            f"input {spec} has neither 1 nor 3 channels as its second or last axis", hint="give samples as .npz files"
        )
    height, width = spec.shape[2:4] if channels_first else spec.shape[1:3]
    return _Form(
        _size("height", height, options.height, spec),
        _size("width", width, options.width, spec),
        int(channels),
        channels_first,
    )


def _size(name: str, fixed: int | str | None, given: int | None, spec: InputSpec) -> int:
    if given is not None and (given < 1 or (isinstance(fixed, int) and fixed != given)):
        raise BadInput(f"input {spec} cannot take an image {name} of {given}", hint=f"leave out the image {name}")
    if given is not None:
        return given
    if isinstance(fixed, int):
        return fixed
    raise BadInput(f"input {spec} leaves the {name} of images open", hint=f"give an image {name}")


def _per_channel(name: str, values: tuple[float, ...], channels: int) -> NDArray[np.float32]:
    if len(values) not in (1, channels):
        raise BadInput(
            f"{name} has {len(values)} values for {channels} channels", hint="give one value, or one a channel"
        )
    return np.asarray(values, np.float32)


def _pillow() -> ModuleType:
    """The one module of Pillow used here, imported when the first image is read."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("reading images needs Pillow", hint='pip install "qcc[images]"') from error
    return Image


def _pixels(pillow: ModuleType, file: Path, form: _Form) -> NDArray[np.uint8]:
    """The resized pixels, uint8 [height, width, channels]."""
    try:
        with pillow.open(file, formats=_FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise BadInput(f"{file}: more than 8 bits a channel (mode {image.mode})", hint="convert it to 8 bits")
            resized = image.convert("L" if form.channels == 1 else "RGB").resize(
                (form.width, form.height), pillow.Resampling.BILINEAR
            )
    except (OSError, ValueError, SyntaxError, EOFError, pillow.DecompressionBombError) as error:
        raise BadInput(f"{file}: the image cannot be read: {error}", hint="remove the file or save it again") from error
    return np.asarray(resized, np.uint8).reshape(form.height, form.width, form.channels)
