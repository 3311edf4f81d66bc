"""Which values an attribute may take, where the schema says it only in prose: read from `attribute_values.toml`."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdsl.utils.exceptions import VerifyException

from .. import attributes as attr

if TYPE_CHECKING:
    from .onnx import OnnxOp


def check_values(op: OnnxOp) -> None:
    """Raise `VerifyException` where an attribute holds a word that the operator lacks, or a count is not positive."""
    for name, value in op.parameters.items():
        allowed = _words().get(f"{op.op_type}.{name}") or _words().get(name)
        held = attr.to_python(value)
        words = held if isinstance(held, list) else [held]
        if allowed and any(isinstance(w, str) and w not in allowed for w in words):
            raise VerifyException(f"{op.where()}: attribute {name!r} is {held!r}, expected one of {allowed}")
        if name in _positive() and any(isinstance(w, int) and w < 1 for w in words):
            raise VerifyException(f"{op.where()}: attribute {name!r} is {held!r}, expected positive integers")


@cache
def _table() -> dict[str, Any]:
    """Any: what TOML holds; the two functions below say it."""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text())


def _words() -> dict[str, list[str]]:
    return _table()["words"]


def _positive() -> list[str]:
    return _table()["positive"]
