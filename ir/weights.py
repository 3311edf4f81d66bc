"""Weights live outside the IR text, by name, memory-mapped where they come from a file.

A store maps names to numpy arrays. It is saved as one safetensors file; `locate` tells where each tensor lies in such a
file, so that an ONNX model can refer to the same bytes as its external data. A store that is told to `spill_to` a
folder keeps a bounded number of bytes in memory and maps the rest from files there.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakSet

import numpy as np

from .errors import BadInput, NotSupported
from .types import ELEMENTS, element_of

_ALIGNMENT = 64
_RAW = "qcc.raw"
"""Metadata key under which dtypes that safetensors lacks are listed: such tensors are stored as raw bytes."""
_SMALL = 1 << 20
"""Bytes below which a tensor stays in memory: a file of its own would not pay."""


@dataclass(frozen=True)
class Extent:
    """Where a tensor lies in a file, in bytes."""

    offset: int
    length: int


class WeightStore:
    """Named tensors. Reading one gives an array that may be a read-only view of a mapped file: copy before writing."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}
        self._spill: _Spill | None = None

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._arrays[name]
        except KeyError:
            raise BadInput(
                f"weight {name!r} is not in the weight store", hint="the IR and its weights file do not belong together"
            ) from None

    def __setitem__(self, name: str, array: np.ndarray) -> None:
        self._arrays[name] = array if self._spill is None else self._spill.place(self, name, array)

    def __delitem__(self, name: str) -> None:
        del self._arrays[name]

    def add(self, name: str, array: np.ndarray) -> str:
        """Store `array` under `name`, or under `name.1`, `name.2` ... where that is taken; gives the name used."""
        unique, count = name, 0
        while unique in self._arrays:
            count += 1
            unique = f"{name}.{count}"
        self[unique] = array
        return unique

    def copy(self) -> WeightStore:
        """Another store of the same arrays; both spill to the same folder, beyond one limit for the two of them."""
        other = WeightStore()
        other._arrays, other._spill = dict(self._arrays), self._spill
        if self._spill is not None:
            self._spill.stores.add(other)
        return other

    def spill_to(self, folder: Path, limit: int) -> None:
        """Keep at most `limit` bytes of tensors in memory, from now on; copies of the store count with it.

        A tensor that does not fit, and has at least 1 MiB, is written to a file in `folder` and mapped read-only. The
        file has no name any more once it is mapped, where the system allows: nothing is left behind, whatever happens.
        Mapped tensors do not count. Raises `BadInput` where the folder cannot be written.
        """
        self._spill = _Spill(folder, limit)
        self._spill.stores.add(self)
        for name in sorted(self._arrays, key=lambda name: -self._arrays[name].nbytes):
            self[name] = self._arrays[name]

    def release_pages(self) -> None:
        """Give back the memory that mapped tensors took when they were read; they are read from their files again.

        Does nothing on systems without `madvise`, and nothing to what is mapped for writing.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        files = {id(file): file for array in self._arrays.values() if (file := _mapped_file(array)) is not None}
        for file in files.values():
            if file.mode == "r" and isinstance(file.base, mmap.mmap):
                file.base.madvise(mmap.MADV_DONTNEED)

    def keep(self, names: set[str]) -> None:
        """Forget every tensor whose name is not in `names`."""
        self._arrays = {name: array for name, array in self._arrays.items() if name in names}

    @property
    def bytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(array.nbytes for array in self._arrays.values())

    @property
    def bytes_in_memory(self) -> int:
        """Bytes of the tensors that are not mapped from a file."""
        return _in_memory(self._arrays.values())

    def save(self, path: Path) -> None:
        """Write all tensors to a safetensors file, one at a time.

        Those that fill whole cache lines come first and begin at one; then wide dtypes: all are aligned to their items.
        """

        def place(name: str) -> tuple[bool, int, str]:
            array = self._arrays[name]
            return array.nbytes % _ALIGNMENT != 0, -array.dtype.itemsize, name

        order = sorted(self._arrays, key=place)
        header: dict[str, object] = {}
        raw: dict[str, list[object]] = {}
        offset = 0
        for name in order:
            array = self._arrays[name]
            element = element_of(array.dtype)
            entry_type, shape = element.safetensors, list(array.shape)
            if not entry_type:
                raw[name] = [element.schema, shape]
                entry_type, shape = "U8", [array.nbytes]
            header[name] = {"dtype": entry_type, "shape": shape, "data_offsets": [offset, offset + array.nbytes]}
            offset += array.nbytes
        header["__metadata__"] = {_RAW: json.dumps(raw)}
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % _ALIGNMENT)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for name in order:
                _write(file, self._arrays[name])

    @staticmethod
    def open(path: Path) -> WeightStore:
        """Map the tensors of a safetensors file; `BadInput` where its header does not fit its bytes."""
        store = WeightStore()
        entries = _entries(path)
        data = np.memmap(path, np.uint8, "r")
        for name, (dtype, shape, extent) in entries.items():
            store[name] = data[extent.offset : extent.offset + extent.length].view(dtype).reshape(shape)
        return store


@dataclass(frozen=True)
class _Spill:
    """Where tensors go that do not fit into `limit` bytes of all `stores` together."""

    folder: Path
    limit: int
    stores: WeakSet[WeightStore] = field(default_factory=lambda: WeakSet[WeightStore]())

    def place(self, owner: WeightStore, name: str, array: np.ndarray) -> np.ndarray:
        """What `owner` is to hold under `name` in place of what is there: `array`, or what its file maps to."""
        if array.nbytes < _SMALL or array.dtype.hasobject or _mapped_file(array) is not None:
            return array
        others = (store[key] for store in self.stores for key in store if store is not owner or key != name)
        held = _in_memory(each for each in others if each is not array)
        if held + array.nbytes <= self.limit:
            return array
        try:
            return self._written(array)
        except OSError as error:
            raise BadInput(
                f"weight {name!r}: its {array.nbytes} bytes cannot be written to {self.folder}: {error.strerror}",
                hint="give a folder with room, or a higher limit of memory",
            ) from error

    def _written(self, array: np.ndarray) -> np.ndarray:
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(suffix=".tensor", dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as file:
                _write(file, array)
            return np.memmap(path, np.uint8, "r").view(array.dtype).reshape(array.shape)
        finally:
            with contextlib.suppress(PermissionError):  # a mapped file keeps its name on Windows
                os.unlink(path)


def _in_memory(arrays: Iterable[np.ndarray]) -> int:
    """Bytes of arrays that are not mapped, each counted once."""
    return sum(array.nbytes for array in {id(each): each for each in arrays}.values() if _mapped_file(array) is None)


def _mapped_file(array: np.ndarray) -> np.memmap | None:
    """The mapped file that an array looks at, None where it is in memory."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array if isinstance(array, np.memmap) and array.base is not None else None


def locate(path: Path) -> dict[str, Extent]:
    """Where each tensor of a safetensors file lies, in bytes from the start of the file; `BadInput` as for `open`."""
    return {name: extent for name, (_, _, extent) in _entries(path).items()}


_Entry = tuple[np.dtype[np.generic], tuple[int, ...], Extent]


def _entries(path: Path) -> dict[str, _Entry]:
    """The tensors of a safetensors file: dtype, shape and place, each checked against the size of the file."""
    size = path.stat().st_size if path.is_file() else 0
    header, start = _read_header(path, size)
    entries: dict[str, _Entry] = {}
    name = "__metadata__"
    try:
        raw = json.loads(header.pop(name, {}).get(_RAW, "{}"))
        for name, entry in header.items():
            schema, shape = raw.get(name, (_SCHEMAS.get(entry["dtype"], ""), entry["shape"]))
            dtype, shape = element_of(schema).numpy, tuple(map(index, shape))
            begin, end = map(index, entry["data_offsets"])
            fits = 0 <= begin <= end <= size - start and end - begin == math.prod(shape) * dtype.itemsize
            if not fits or any(d < 0 for d in shape):
                raise ValueError(f"{shape} of {dtype} at {begin} to {end}")
            entries[name] = (dtype, shape, Extent(start + begin, end - begin))
    except (AttributeError, KeyError, NotSupported, TypeError, ValueError) as error:
        hint = "the file is damaged: make it again"
        raise BadInput(f"{path}: tensor {name!r} does not fit the file", hint=hint) from error
    return entries


_SCHEMAS = {row.safetensors: row.schema for row in ELEMENTS if row.safetensors}


def _read_header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The header, whose values may be anything, and the number of bytes before the data."""
    damaged = BadInput(f"{path}: not a safetensors file", hint="the file is missing, damaged or of another kind")
    if size < 8:
        raise damaged
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise damaged
        try:
            header: dict[str, Any] | list[Any] = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise damaged from error
    if not isinstance(header, dict):
        raise damaged
    return header, 8 + length


def _write(file: BinaryIO, array: np.ndarray, chunk: int = 1 << 24) -> None:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for begin in range(0, flat.size, chunk):
        file.write(flat[begin : begin + chunk].data)
