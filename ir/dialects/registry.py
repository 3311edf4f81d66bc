"""Every dialect of qcc by name, each built when it is first used."""

from __future__ import annotations

from collections.abc import Callable

from xdsl.ir import Dialect


def _generated(name: str) -> Callable[[], Dialect]:
    def load() -> Dialect:
        from .onnx import dialect

        return dialect(name)

    return load


def _q() -> Dialect:
    from .q import DIALECT

    return DIALECT


DIALECTS: dict[str, Callable[[], Dialect]] = {
    **{name: _generated(name) for name in ("onnx", "onnx_ml", "onnx_preview", "onnx_training", "msft")},
    "q": _q,
}
