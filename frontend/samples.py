"""Calibration and verification data: samples from files, or random ones, as `{input name: array}` ready to run."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from qcc.ir.errors import BadInput, NotSupported

from .images import SUFFIXES, ImageOptions, read_images

Sample = dict[str, NDArray[Any]]

_NONE_GIVEN: Mapping[str, int] = MappingProxyType({})
_OPEN_SIZE = 16
_SAVE = "save plain numeric arrays with numpy.savez"
_DEFAULT_IMAGES = ImageOptions()


@dataclass(frozen=True)
class InputSpec:
    """What a model takes for one input; a dimension is a size, a symbol shared between inputs, or None when unknown."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"'{self.name}' {self.dtype.name}[{dims}]"

    def is_float(self) -> bool:
        """Whether the dtype is floating-point, bfloat16 and the 8-bit floats of ml_dtypes included."""
        return self.dtype.kind == "f" or self.dtype.name.startswith(("bfloat", "float"))


def load_samples(
    path: str | Path, inputs: Sequence[InputSpec], *, limit: int = 128, image: ImageOptions = _DEFAULT_IMAGES
) -> list[Sample]:
    """At most `limit` samples from `path`, each with every input of the model in its shape and dtype.

    - An `.npz` file has one key an input; other keys are not read. An array with one axis more than the input is a
      stack of samples along that axis. An array of the input's rank is cut along its first axis: into runs of the
      model's batch when that is fixed, else into single rows. An array that cuts into one piece, of a fixed batch, is
      given to every sample.
    - A folder of `.npz` files is one sample a file, whole, in the order of their names. So are sequences given whose
      first axis is no batch.
    - A folder of images (png, jpg, bmp, webp; in the order of their names, subfolders not read) feeds a model with one
      image input, as `read_images` says; a fixed batch takes as many images to a sample.

    Values are cast where none is lost, and float64 to a narrower float; pickled objects are never loaded. Raises
    BadInput, naming file, key and what was expected, for everything else, NaN included; MissingExtra for images
    without Pillow; NotSupported for string inputs.
    """
    path = Path(path)
    if limit < 1:
        raise BadInput(f"a limit of {limit} samples was given", hint="ask for at least one sample")
    _refuse_strings(inputs)
    if not inputs:
        raise BadInput(f"{path}: the model has no inputs to feed", hint="leave out the data")
    if path.is_dir():
        return _from_folder(path, inputs, limit, image)
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder", hint="give an .npz file, or a folder of .npz files or images")
    return _from_archive(path, inputs, limit)


def random_samples(
    inputs: Sequence[InputSpec],
    *,
    count: int,
    seed: int,
    bounds: Mapping[str, int] = _NONE_GIVEN,
    sizes: Mapping[str, int] = _NONE_GIVEN,
) -> list[Sample]:
    """`count` random samples, the same for the same seed.

    Floats are standard normal, integers uniform in `[0, bounds[name])` or all one where the input has no bound (a token
    id or a mask of ones is valid for any model), booleans true. An open dimension takes `sizes[symbol]`, else 1 where
    its symbol is the first axis of an input and 16 elsewhere, the same in all inputs. Raises BadInput for a count,
    bound or size that cannot be, NotSupported for inputs that are not real numbers.
    """
    _refuse_strings(inputs)
    limits = {"count": count, **{f"size of '{key}'": n for key, n in sizes.items()}}
    limits |= {f"bound of input '{key}'": n for key, n in bounds.items()}
    for what, number in limits.items():
        if number < 1:
            raise BadInput(f"random samples: the {what} is {number}", hint="give at least 1")
    batches = {spec.shape[0]: 1 for spec in inputs if spec.shape and isinstance(spec.shape[0], str)}
    known = {**batches, **sizes}
    rng = np.random.default_rng(seed)
    return [{spec.name: _random(spec, rng, known, bounds.get(spec.name)) for spec in inputs} for _ in range(count)]


def hash_samples(samples: Iterable[Mapping[str, NDArray[Any]]]) -> str:
    """SHA-256, in hex, over the names, dtypes, shapes and little-endian bytes of the samples.

    The order of samples counts; the order of inputs within one does not, nor how an array lies in memory.
    """
    digest = hashlib.sha256()
    for sample in samples:
        header = [[name, array.dtype.name, list(array.shape)] for name, array in sorted(sample.items())]
        digest.update(json.dumps(header).encode() + b"\n")
        for _, array in sorted(sample.items()):
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _from_folder(path: Path, inputs: Sequence[InputSpec], limit: int, options: ImageOptions) -> list[Sample]:
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    archives = [file for file in files if file.suffix.lower() == ".npz"]
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    if bool(archives) == bool(images):
        found = "both .npz files and images" if archives else "neither .npz files nor images"
        raise BadInput(f"{path}: the folder holds {found}", hint="give a folder of .npz files or a folder of images")
    if images:
        return _from_images(path, images, inputs, limit, options)
    samples: list[Sample] = []
    for file in archives[:limit]:
        arrays = _read_archive(file, inputs)
        sample = {spec.name: _fitted(_at(file, spec), spec, arrays[spec.name]) for spec in inputs}
        samples.append(_consistent(file, inputs, sample))
    return samples


def _from_images(
    path: Path, files: Sequence[Path], inputs: Sequence[InputSpec], limit: int, options: ImageOptions
) -> list[Sample]:
    if len(inputs) != 1:
        listed = ", ".join(str(spec) for spec in inputs)
        raise BadInput(f"{path}: images feed a model with one input, this has {listed}", hint="give .npz files")
    spec = inputs[0]
    batch = spec.shape[0] if spec.shape and isinstance(spec.shape[0], int) else 1
    files = files[: limit * batch]
    _require_whole_batches(str(path), len(files), batch, spec)
    pictures = list(read_images(files, spec, options))
    groups = [np.stack(pictures[at : at + batch]) for at in range(0, len(pictures), batch)]
    return [_consistent(path, inputs, {spec.name: group}) for group in groups]


def _from_archive(path: Path, inputs: Sequence[InputSpec], limit: int) -> list[Sample]:
    arrays = _read_archive(path, inputs)
    pieces = {spec.name: _pieces(_at(path, spec), spec, arrays[spec.name]) for spec in inputs}
    count = max(len(piece) for piece in pieces.values())
    for spec in inputs:
        if len(pieces[spec.name]) == 1 and (not spec.shape or isinstance(spec.shape[0], int)):
            pieces[spec.name] = pieces[spec.name] * count
        elif len(pieces[spec.name]) != count:
            raise BadInput(
                f"{_at(path, spec)} gives {len(pieces[spec.name])} samples where another input gives {count}",
                hint="give every input the same number of samples",
            )
    samples: list[Sample] = []
    for index in range(min(count, limit)):
        sample = {spec.name: _fitted(_at(path, spec), spec, pieces[spec.name][index].copy()) for spec in inputs}
        samples.append(_consistent(path, inputs, sample))
    return samples


def _read_archive(path: Path, inputs: Sequence[InputSpec]) -> dict[str, NDArray[Any]]:
    """The arrays of the inputs as they lie in the file, none of them empty."""
    arrays: dict[str, NDArray[Any]] = {}
    key = ""
    try:
        if not zipfile.is_zipfile(path):
            raise BadInput(f"{path}: empty, truncated or not an .npz file", hint=_SAVE)
        with np.load(path, allow_pickle=False) as archive:
            missing = [spec.name for spec in inputs if spec.name not in archive.files]
            if missing:
                raise BadInput(
                    f"{path}: no key {_quoted(missing)}; the file holds {_quoted(archive.files) or 'no keys'}",
                    hint="save one array an input, under the input's name",
                )
            for spec in inputs:
                key = f" key '{spec.name}'"
                arrays[spec.name] = _numeric(path, spec, archive[spec.name])
    except (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(f"{path}:{key} cannot be read: {error}", hint=_SAVE) from error
    return arrays


def _numeric(path: Path, spec: InputSpec, member: object) -> NDArray[Any]:
    """The member of an archive, which numpy hands out as bytes when it is no array."""
    if not isinstance(member, np.ndarray):
        raise BadInput(f"{_at(path, spec)} is not an array", hint=_SAVE)
    array = cast("NDArray[Any]", member)
    if array.size == 0:
        raise BadInput(f"{_at(path, spec)} is empty: shape {array.shape}", hint="give at least one sample")
    return array


def _pieces(where: str, spec: InputSpec, array: NDArray[Any]) -> list[NDArray[Any]]:
    """The samples in one array of an archive, as views: along an axis of their own, or along the input's first axis."""
    rank = len(spec.shape)
    if array.ndim == rank + 1:
        return [array[index, ...] for index in range(array.shape[0])]
    if array.ndim != rank:
        raise _misfit(where, spec, array)
    if rank == 0:
        return [array]
    first = spec.shape[0]
    batch = first if isinstance(first, int) else 1
    _require_whole_batches(where, array.shape[0], batch, spec)
    return [array[at : at + batch] for at in range(0, array.shape[0], batch)]


def _require_whole_batches(where: str, count: int, batch: int, spec: InputSpec) -> None:
    if batch < 1 or count % batch:
        raise BadInput(
            f"{where}: {count} along the first axis do not fill batches of {batch}, which input {spec} takes",
            hint=f"give a multiple of {batch}",
        )


def _fitted(where: str, spec: InputSpec, array: NDArray[Any]) -> NDArray[Any]:
    """The array in the dtype of the input, its shape checked and its values kept."""
    fixed = [not isinstance(dim, int) or dim == size for dim, size in zip(spec.shape, array.shape, strict=False)]
    if array.ndim != len(spec.shape) or not all(fixed):
        raise _misfit(where, spec, array)
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise BadInput(f"{where} holds {int(np.isnan(array).sum())} NaN", hint="leave that sample out")
    if np.can_cast(array.dtype, spec.dtype, "safe"):
        return array.astype(spec.dtype, copy=False)
    if array.dtype.kind == "f" and spec.is_float():
        with np.errstate(over="ignore"):
            cast = array.astype(spec.dtype)
        kept = bool((np.isinf(cast) == np.isinf(array)).all())
    elif array.dtype.kind in "iu" and spec.dtype.kind in "iu":
        cast = array.astype(spec.dtype)
        kept = bool((cast == array).all())
    else:
        raise _misfit(where, spec, array)
    if not kept:
        raise BadInput(
            f"{where} holds values that {spec.dtype.name} cannot: {array.min()} to {array.max()}",
            hint=f"give values within the range of {spec.dtype.name}",
        )
    return cast


def _consistent(path: Path, inputs: Sequence[InputSpec], sample: Sample) -> Sample:
    """The sample itself, when each symbol has one size in all its inputs."""
    seen: dict[str, tuple[int, InputSpec]] = {}
    for spec in inputs:
        for dim, size in zip(spec.shape, sample[spec.name].shape, strict=True):
            if not isinstance(dim, str):
                continue
            first, where = seen.setdefault(dim, (size, spec))
            if first != size:
                raise BadInput(
                    f"{path}: dimension '{dim}' is {first} in input {where} and {size} in input {spec}",
                    hint=f"give arrays that agree on '{dim}'",
                )
    return sample


def _random(spec: InputSpec, rng: np.random.Generator, known: Mapping[str, int], bound: int | None) -> NDArray[Any]:
    shape = tuple(
        dim if isinstance(dim, int) else known.get(dim or "", _OPEN_SIZE if axis or dim else 1)
        for axis, dim in enumerate(spec.shape)
    )
    if spec.is_float():
        return rng.standard_normal(shape).astype(spec.dtype)
    if spec.dtype.kind == "b" or (spec.dtype.kind in "iu" and bound is None):
        return np.ones(shape, spec.dtype)
    if spec.dtype.kind not in "iu" or bound is None:
        raise NotSupported(f"random samples cannot feed input {spec}", hint="give samples as .npz files")
    if bound - 1 > np.iinfo(spec.dtype).max:
        raise BadInput(f"input {spec} cannot hold the bound {bound}", hint="give a bound within its dtype")
    return rng.integers(0, bound, shape).astype(spec.dtype)


def _refuse_strings(inputs: Sequence[InputSpec]) -> None:
    for spec in inputs:
        if spec.dtype.kind in "OSUT":
            raise NotSupported(f"input {spec} takes strings", hint="cut the model behind its text processing")


def _misfit(where: str, spec: InputSpec, array: NDArray[Any]) -> BadInput:
    got = f"{array.dtype.name}[{', '.join(map(str, array.shape))}]"
    return BadInput(f"{where}: expected {spec}, got {got}", hint="give the shape and dtype that the model takes")


def _at(path: Path, spec: InputSpec) -> str:
    return f"{path}: key '{spec.name}'"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
