"""Any layout from its text: the marks in it tell which kind it is."""

from __future__ import annotations

from typing import TypeAlias

from .chain import Layout
from .ragged import Ragged
from .record import Record
from .stages import Stages

AnyLayout: TypeAlias = Layout | Ragged | Stages
"""What `pack` and `unpack` take: the codes of one tensor alone."""


def parse_layout(text: str) -> AnyLayout | Record:
    """The value that prints as `text`. Raises `BadInput` with the part that cannot be read."""
    if "{" in text:
        return Record.parse(text)
    if ";" in text:
        return Stages.parse(text)
    return Ragged.parse(text) if "+" in text else Layout.parse(text)
