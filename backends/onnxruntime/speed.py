"""How fast the installed ONNX Runtime computes each form on this host: measured once, kept in the cache, to choose by.

Some pairs of bits and accuracy level have no kernel of their own and decode the whole weight at every call, 30 to 200
times slower; which ones differs between releases. Figures are milliseconds for one weight, at one row of activations on
one thread, over a chain of layers that is larger than the caches near a core, as networks are.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeGuard, cast

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from qcc.ir.cache import cache_folder

_N = _K = 1024
_LAYERS = 12
_ROUNDS = 7
_SECONDS = 0.25
"""A form that takes longer is not measured again: it will not be chosen."""


@dataclass(frozen=True)
class Speed:
    """Milliseconds a weight, by form. `forms` holds what was measured."""

    forms: dict[str, float]

    def matmul_nbits(self, bits: int, level: int, block: int) -> float:
        """MatMulNBits; blocks other than 32 and 128 count as the nearer one."""
        return self.forms[f"matmul_nbits {bits} level {level} block {32 if block <= 64 else 128}"]

    @property
    def int8_matmul(self) -> float:
        """Dynamic quantization and an integer product."""
        return self.forms["dynamic_quantize_matmul"]

    @property
    def float_matmul(self) -> float:
        """A float product."""
        return self.forms["float"]

    @property
    def decoded_matmul(self) -> float:
        """A float product with codes that were decoded when the model was loaded.

        It counts twice its time: the weight takes four to eight times the memory, and out of the caches as much more
        time, which a chain of a few layers does not show.
        """
        return 2 * self.float_matmul


@cache
def measured(machine: str) -> Speed:
    """The speeds of this host, from the cache where this release was measured on this `machine` before."""
    import onnxruntime

    path = cache_folder() / f"onnxruntime-{onnxruntime.__version__}-chain-{abs(_stable_hash(machine)):08x}.json"
    try:
        cached = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        cached = None
    if _is_whole(cached):
        return Speed(cached)
    forms = {name: _time(model()) for name, model in _forms().items()}
    _write(path, json.dumps(forms, indent=1))
    return Speed(forms)


def _is_whole(cached: object) -> TypeGuard[dict[str, float]]:
    if not isinstance(cached, dict):
        return False
    forms = cast(dict[object, object], cached)
    return set(forms) == set(_forms()) and all(isinstance(c, float) and 0 < c < math.inf for c in forms.values())


def _write(path: Path, text: str) -> None:
    """Write whole or not at all; a cache that cannot be written costs time only."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _stable_hash(text: str) -> int:
    import zlib

    return zlib.crc32(text.encode())


def _forms() -> dict[str, Callable[[], bytes]]:
    forms = {
        f"matmul_nbits {b} level {v} block {g}": partial(_nbits, b, v, g)
        for b in (2, 4, 8)
        for v in (1, 4)
        for g in (32, 128)
    }
    return {**forms, "dynamic_quantize_matmul": _dynamic, "float": _float}


def _nbits(bits: int, level: int, block: int) -> bytes:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (_N, _K // block, block * bits // 8)).astype(np.uint8)
    scale = np.full((_N, _K // block), 1e-3, np.float32)
    return _model(
        "MatMulNBits", {"b": codes, "s": scale}, K=_K, N=_N, bits=bits, block_size=block, accuracy_level=level
    )


def _dynamic() -> bytes:
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (_K, _N)).astype(np.int8)
    return _model("DynamicQuantizeMatMul", {"b": codes, "s": np.full(_N, 0.01, np.float32)})


def _float() -> bytes:
    return _model("MatMul", {"b": np.random.default_rng(0).normal(size=(_K, _N)).astype(np.float32)})


def _model(kind: str, weights: dict[str, np.ndarray], **attributes: int) -> bytes:
    domain = "" if kind == "MatMul" else "com.microsoft"
    nodes: list[NodeProto] = []
    tensors: list[TensorProto] = []
    for layer in range(_LAYERS):
        source, result = ("x" if layer == 0 else f"h{layer - 1}"), ("y" if layer == _LAYERS - 1 else f"h{layer}")
        node = helper.make_node(kind, [source, *(f"{n}{layer}" for n in weights)], [result], domain=domain)
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        nodes.append(node)
        tensors.extend(numpy_helper.from_array(w, f"{n}{layer}") for n, w in weights.items())
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, _K])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, _N])
    graph = helper.make_graph(nodes, "speed", [x], [y], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def _time(model: bytes) -> float:
    """The best of some runs, in milliseconds a weight, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {"x": np.random.default_rng(1).normal(size=(1, _K)).astype(np.float32)}
    session.run(None, feeds)
    best = float("inf")
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        session.run(None, feeds)
        best = min(best, time.perf_counter() - begin)
        if best > _SECONDS:
            break
    return best * 1e3 / (_LAYERS * _N * _K)
