"""A safetensors file that is written one tensor at a time: room for the header is left, and filled at the end."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qcc.ir.errors import NotSupported
from qcc.ir.types import element_of

_ENTRY = 200
"""Bytes that the entry of a tensor takes in the header at most, beside its name."""
_CHUNK = 1 << 24


class TensorFile:
    """Tensors in the order in which they are added."""

    def __init__(self, file: BinaryIO, room: int) -> None:
        self._file, self._room = file, room
        self._header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._offset = 0
        file.write(bytes(8 + room))

    def add(self, name: str, array: np.ndarray) -> None:
        """Append a tensor; `NotSupported` for a dtype that safetensors lacks."""
        kind = element_of(array.dtype).safetensors
        if not kind:
            raise NotSupported(f"{name}: safetensors has no {array.dtype}")
        ends = [self._offset, self._offset + array.nbytes]
        self._header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": ends}
        self._offset = ends[1]
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for begin in range(0, flat.size, _CHUNK):
            self._file.write(flat[begin : begin + _CHUNK].data)

    def finish(self) -> None:
        """Write the header, padded with the spaces that safetensors allows."""
        text = json.dumps(self._header, separators=(",", ":")).encode()
        assert len(text) <= self._room
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little"))
        self._file.write(text.ljust(self._room))


@contextmanager
def writing_tensors(path: Path, names: Iterable[str]) -> Generator[TensorFile]:
    """A file for the tensors of some weights, each of which may become up to six."""
    room = sum(6 * (len(name) + _ENTRY) for name in names) + _ENTRY
    with path.open("w+b") as file:
        tensors = TensorFile(file, room + -(room + 8) % 64)
        yield tensors
        tensors.finish()
