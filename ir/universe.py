"""qcc's dialects and passes, offered to xDSL's own tools through the entry point `xdsl.universe`."""

from __future__ import annotations

from collections.abc import Callable

from xdsl.ir import Dialect
from xdsl.universe import Universe


def _generated(name: str) -> Callable[[], Dialect]:
    def load() -> Dialect:
        from .dialects.onnx import dialect

        return dialect(name)

    return load


def _q() -> Dialect:
    from .dialects.q import DIALECT

    return DIALECT


DIALECTS: dict[str, Callable[[], Dialect]] = {
    **{name: _generated(name) for name in ("onnx", "onnx_ml", "onnx_preview", "onnx_training", "msft")},
    "q": _q,
}

UNIVERSE = Universe(all_dialects=DIALECTS)
