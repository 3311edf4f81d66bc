"""Walk the header of a GGUF file before any reader does: every count, length and offset lies within the file.

Readers take counts on trust: an array that claims 2^60 entries keeps them busy until memory ends. (The layout is that
of ggml's specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.)
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from qcc.ir.errors import BadInput, NotSupported

MAGIC = b"GGUF"
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a metadata value by the number of its type."""
_STRING, _ARRAY = 8, 9
_DEEPEST = 4
_MOST_AXES = 4


def check(path: Path) -> None:
    """`BadInput` with the place where the header leaves the file, `NotSupported` for other versions and byte orders."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            if magic != MAGIC:
                raise BadInput(f"{path}: not a GGUF file: it begins with {magic!r}", hint=_GIVE)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _Header(path, data).walk()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}", hint=_GIVE) from error


_GIVE = "give the path of a .gguf file"


class _Header:
    """A place in the file that moves forward; each read is checked against the end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = len(MAGIC)

    def walk(self) -> None:
        version = self._number("<I")
        if version not in (2, 3):
            raise NotSupported(f"{self.path}: GGUF of version {version}", hint="convert it: little-endian, version 3")
        tensors, entries = self._number("<Q"), self._number("<Q")
        for _ in range(entries):
            self._string()
            self._value(self._number("<I"), 0)
        for _ in range(tensors):
            self._string()
            axes = self._number("<I")
            if axes > _MOST_AXES:
                raise self._damage(f"a tensor of {axes} axes")
            self._skip(8 * axes + 4)
            offset = self._number("<Q")
            if offset > len(self.data):
                raise self._damage(f"a tensor {offset} bytes behind the header")

    def _value(self, kind: int, depth: int) -> None:
        if kind in _WIDTHS:
            self._skip(_WIDTHS[kind])
        elif kind == _STRING:
            self._string()
        elif kind == _ARRAY and depth < _DEEPEST:
            inner, count = self._number("<I"), self._number("<Q")
            if inner in _WIDTHS:
                self._skip(_WIDTHS[inner] * count)
            else:
                for _ in range(count):
                    self._value(inner, depth + 1)
        else:
            raise self._damage(f"a value of type {kind}")

    def _string(self) -> None:
        self._skip(self._number("<Q"))

    def _number(self, layout: str) -> int:
        begin = self.at
        self._skip(struct.calcsize(layout))
        return int(struct.unpack_from(layout, self.data, begin)[0])

    def _skip(self, count: int) -> None:
        if count > len(self.data) - self.at:
            raise self._damage(f"{count} bytes are announced")
        self.at += count

    def _damage(self, what: str) -> BadInput:
        return BadInput(
            f"{self.path}: damaged, or truncated: {what} at byte {self.at} of {len(self.data)}",
            hint="download the file again",
        )
