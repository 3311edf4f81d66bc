"""Flags that `compile` and `simulate` share, and how their texts become the arguments of `qcc.api`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ._frame import pairs

GroupSize = Annotated[
    int, typer.Option(help="Weights that share a scale, in schemes with groups. 0: as the scheme says.")
]
Algorithm = Annotated[str, typer.Option(help="How codes are chosen: `qcc list algorithms`.")]
Observer = Annotated[str, typer.Option(help="How ranges of activations are chosen: mse, minmax, percentile, entropy.")]
Calibration = Annotated[
    str | None, typer.Option(help="An .npz file, a folder of .npz files or images, or `random` (only to try speed).")
]
CalibrationLimit = Annotated[int, typer.Option(help="At most so many samples.")]
ImageSize = Annotated[
    str | None, typer.Option(help="HEIGHTxWIDTH of calibration images where the model leaves them open.")
]
ImageMean = Annotated[str, typer.Option(help="Mean of pixels scaled to 0..1, one number or one a channel.")]
ImageStd = Annotated[str, typer.Option(help="Standard deviation of pixels scaled to 0..1.")]
ImageOrder = Annotated[str, typer.Option(help="rgb or bgr.")]
Ignore = Annotated[
    list[str] | None, typer.Option(help="A node or weight to leave float: NAME or re:PATTERN. Repeatable.")
]
Include = Annotated[
    list[str] | None,
    typer.Option(help="A node or weight to quantize although it is left alone by default. Repeatable."),
]
InputShape = Annotated[list[str] | None, typer.Option(help="NAME=1,3,48,320. Repeatable.")]
Dynamic = Annotated[list[str] | None, typer.Option(help="NAME=0:batch,1:length. Repeatable.")]
Seed = Annotated[int, typer.Option(help="Seed of random samples.")]


def image_options(size: str | None, mean: str, std: str, order: str) -> Any:
    """`ImageOptions` of the four flags. Any: the class loads numpy, which `--help` does not."""
    from qcc.frontend.images import ImageOptions

    height, width = _size(size)
    return ImageOptions(height, width, _numbers(mean, "--image-mean"), _numbers(std, "--image-std"), _order(order))


def input_shapes(values: list[str] | None) -> dict[str, list[int]]:
    """The extents of inputs by name."""
    return {name: _integers(value, "--input-shape") for name, value in pairs(values or [], "--input-shape")}


def dynamic_axes(values: list[str] | None) -> dict[str, dict[int, str]]:
    """The names of axes by input and axis."""
    return {name: _axes(value) for name, value in pairs(values or [], "--dynamic")}


def _integers(text: str, flag: str) -> list[int]:
    from qcc.ir.errors import BadInput

    try:
        values = [int(v) for v in text.replace("x", ",").split(",")]
    except ValueError as error:
        raise BadInput(f"{flag}: {text!r} is not a list of integers", hint="write it like 1,3,48,320") from error
    if any(v < 1 for v in values):
        raise BadInput(f"{flag}: {text!r} has an extent below 1", hint="write it like 1,3,48,320")
    return values


def _size(text: str | None) -> tuple[int | None, int | None]:
    from qcc.ir.errors import BadInput

    if text is None:
        return None, None
    values = _integers(text, "--image-size")
    if len(values) != 2:
        raise BadInput(f"--image-size {text!r} is not HEIGHTxWIDTH", hint="write it like 48x320")
    return values[0], values[1]


def _numbers(text: str, flag: str) -> tuple[float, ...]:
    from qcc.ir.errors import BadInput

    try:
        return tuple(float(v) for v in text.split(","))
    except ValueError as error:
        raise BadInput(
            f"{flag}: {text!r} is not a list of numbers", hint="write it like 0.5 or 0.485,0.456,0.406"
        ) from error


def _order(text: str) -> Any:
    """Any: the literal type of `ImageOptions.order`."""
    from qcc.ir.errors import BadInput

    if text not in ("rgb", "bgr"):
        raise BadInput(f"--image-order {text!r} is neither rgb nor bgr")
    return text


def _axes(text: str) -> dict[int, str]:
    from qcc.ir.errors import BadInput

    axes: dict[int, str] = {}
    for piece in text.split(","):
        axis, colon, symbol = piece.partition(":")
        if not colon or not axis.strip().isdigit() or not symbol:
            raise BadInput(
                f"--dynamic {text!r} is not AXIS:NAME,...", hint="write it like --dynamic input_ids=0:batch,1:length"
            )
        axes[int(axis)] = symbol
    return axes
