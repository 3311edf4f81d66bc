"""ggml's matrix product through its C interface: the PyPI wheel of xllamacpp (AVX2) and a build for this processor.

A weight lies either in ggml's own rows or in a buffer type that repacks it (`repack`, and `amx` on a processor that has
it), which not every type has. K is padded to the block of the type; N, where repacked, to the rows of a tile.
"""

from __future__ import annotations

import ctypes
import importlib.util
import time
import weakref
from ctypes import POINTER, Structure, c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from functools import lru_cache
from pathlib import Path

import gguf
import numpy as np

from qcc.ir.errors import MissingExtra, NotSupported

from . import REST_SECONDS, Peer, Problem
from .build_ggml import PACKAGE, library

TYPES = ("Q4_0", "Q4_K", "Q8_0", "Q6_K", "Q5_0", "Q5_K", "Q3_K", "Q2_K", "TQ2_0", "IQ4_NL")
PLACES = {"": ("CPU", 1), "repack": ("CPU_REPACK", 8), "amx": ("AMX", 32)}
"""The last word of a name, ggml's name of the buffer type, and the rows of its tile."""
NAMES = tuple(f"{lib} {type_} {place}".strip() for lib in ("ggml", PACKAGE) for type_ in TYPES for place in PLACES)


def make(name: str, problem: Problem) -> Peer:
    """Quantize, copy and pack the weight, and build a graph of `products` independent products for each run."""
    family, type_name, *place = name.split()
    buffer_type, tile = PLACES[place[0] if place else ""]
    type_ = gguf.GGMLQuantizationType[type_name]
    block, block_bytes = gguf.GGML_QUANT_SIZES[type_]
    N, K = _round_up(problem.N, tile), _round_up(problem.K, block)
    copies, products = problem.copies(N * (K // block) * block_bytes)
    packed = _quantize(type_, problem, K)
    product = _Product(_load(family), name, (problem.M, N, K), type_, buffer_type, copies, products, problem.threads)
    product.fill(packed, problem.x())
    return Peer(
        name,
        problem,
        N * (K // block) * block_bytes,
        copies,
        products,
        product.run,
        lambda: product.result()[:, : problem.N],
        lambda: gguf.quants.dequantize(packed, type_)[:, : problem.K],
        product.rest,
    )


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


class _Product:
    """Weights, one x, the graphs over them and a thread pool; freed when nothing refers to it any more."""

    def __init__(
        self,
        g: ctypes.CDLL,
        name: str,
        shape: tuple[int, int, int],
        type_: int,
        buffer_type: str,
        copies: int,
        products: int,
        threads: int,
    ) -> None:
        M, self.N, self.K = shape
        self.g, self.y = g, np.empty((M, self.N), np.float32)
        cpu, wanted = g.ggml_backend_cpu_buffer_type(), _buffer_type(g, buffer_type)
        if not wanted:
            raise NotSupported(f"{name}: this build of ggml has no {buffer_type} buffers for this processor")
        free = weakref.finalize(self, _free, freed := [])

        def context(size: int) -> int:
            made = g.ggml_init(_InitParams(size, None, True))
            freed.append((g.ggml_free, made))
            return made

        # A buffer takes all the tensors of a context, so the repacked weights have one of their own.
        one = g.ggml_tensor_overhead()
        weights_context = context(one * (copies + 1))
        self.weights = [g.ggml_new_tensor_2d(weights_context, type_, self.K, self.N) for _ in range(copies)]
        nodes = products + 8
        others = context(one * (copies + 3) + copies // products * (g.ggml_graph_overhead_custom(nodes, False) + 64))
        self.x = g.ggml_new_tensor_2d(others, gguf.GGMLQuantizationType.F32, self.K, M)
        if wanted != cpu and not _is_supported(
            g, wanted, self.weights[0], g.ggml_mul_mat(others, self.weights[0], self.x)
        ):
            free()
            raise NotSupported(f"{name}: ggml does not repack this type on this processor")
        self.graphs = []
        for first in range(0, copies, products):
            graph = g.ggml_new_graph_custom(others, nodes, False)
            for weight in self.weights[first : first + products]:
                last = g.ggml_mul_mat(others, weight, self.x)
                g.ggml_build_forward_expand(graph, last)
            self.graphs.append((graph, last))
        for ctx, kind in ((weights_context, wanted), (others, cpu)):
            buffer = g.ggml_backend_alloc_ctx_tensors_from_buft(ctx, kind)
            if not buffer:
                free()
                raise NotSupported(f"{name}: {copies} copies do not fit into memory")
            freed.append((g.ggml_backend_buffer_free, buffer))
        self.last = self.graphs[0][1]
        self.pool = g.ggml_threadpool_new(ctypes.byref(g.ggml_threadpool_params_default(threads)))
        self.backend = g.ggml_backend_cpu_init()
        g.ggml_backend_cpu_set_n_threads(self.backend, threads)
        g.ggml_backend_cpu_set_threadpool(self.backend, self.pool)
        freed += [(g.ggml_threadpool_free, self.pool), (g.ggml_backend_free, self.backend)]

    def fill(self, packed: np.ndarray, x: np.ndarray) -> None:
        """Pack u8 [rows, bytes] into every copy and set x, f32 [M, columns]; what is missing is zero."""
        rows = np.zeros((self.N, packed.shape[1]), np.uint8)
        rows[: len(packed)] = packed
        for weight in self.weights:
            self.g.ggml_backend_tensor_set(weight, rows.ctypes.data, 0, rows.nbytes)
        values = np.zeros((len(x), self.K), np.float32)
        values[:, : x.shape[1]] = x
        self.g.ggml_backend_tensor_set(self.x, values.ctypes.data, 0, values.nbytes)

    def run(self, i: int) -> None:
        graph, self.last = self.graphs[i % len(self.graphs)]
        self.g.ggml_backend_graph_compute(self.backend, graph)

    def result(self) -> np.ndarray:
        self.g.ggml_backend_tensor_get(self.last, self.y.ctypes.data, 0, self.y.nbytes)
        return self.y

    def rest(self) -> None:
        self.g.ggml_threadpool_pause(self.pool)  # the next graph wakes it
        time.sleep(REST_SECONDS)  # OpenMP's threads, in the wheel, are not paused


def _free(resources: list[tuple[ctypes._NamedFuncPointer, int]]) -> None:
    for free, resource in reversed(resources):
        free(resource)
    resources.clear()


def _buffer_type(g: ctypes.CDLL, name: str) -> int | None:
    """The buffer type of a name, or None: the plain one, else one of those the CPU device adds."""
    if name == "CPU":
        return g.ggml_backend_cpu_buffer_type()
    registry = g.ggml_backend_cpu_reg()
    found = g.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    kinds = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(found)(g.ggml_backend_reg_dev_get(registry, 0))
    for kind in kinds:
        if not kind:
            return None
        if g.ggml_backend_buft_name(kind).decode() == name:
            return kind
    return None


def _is_supported(g: ctypes.CDLL, buffer_type: int, weight: int, product: int) -> bool:
    """Asks as llama.cpp does when it loads a model: with the weight in an empty buffer of that type."""
    head = _TensorHead.from_address(weight)
    head.buffer = buffer = g.ggml_backend_buft_alloc_buffer(buffer_type, 0)
    answer = g.ggml_backend_dev_supports_op(g.ggml_backend_reg_dev_get(g.ggml_backend_cpu_reg(), 0), product)
    head.buffer = None
    g.ggml_backend_buffer_free(buffer)
    return answer


@lru_cache(maxsize=2)
def _quantize(type_: gguf.GGMLQuantizationType, problem: Problem, K: int) -> np.ndarray:
    """The weight in ggml's own rows, u8 [N, bytes of K], by ggml's own quantizer."""
    g = _load(PACKAGE)
    block, block_bytes = gguf.GGML_QUANT_SIZES[type_]
    values = np.zeros((problem.N, K), np.float32)
    values[:, : problem.K] = problem.w()
    packed = np.empty((problem.N, K // block * block_bytes), np.uint8)
    g.ggml_quantize_chunk(type_, values.ctypes.data, packed.ctypes.data, 0, problem.N, K, None)
    return packed


class _InitParams(Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class _PoolParams(Structure):
    _fields_ = (
        ("cpumask", c_bool * 512),
        ("n_threads", c_int),
        ("prio", c_int),
        ("poll", c_uint32),
        ("strict_cpu", c_bool),
        ("paused", c_bool),
    )


class _TensorHead(Structure):
    """How `struct ggml_tensor` begins."""

    _fields_ = (("type", c_int), ("buffer", c_void_p))


_P = c_void_p
_LOG = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
_silent = _LOG(lambda level, text, data: None)  # else a line for every weight it repacks
_FUNCTIONS = {
    "ggml_log_set": (None, _LOG, _P),
    "ggml_init": (_P, _InitParams),
    "ggml_free": (None, _P),
    "ggml_tensor_overhead": (c_size_t,),
    "ggml_graph_overhead_custom": (c_size_t, c_size_t, c_bool),
    "ggml_new_tensor_2d": (_P, _P, c_int, c_int64, c_int64),
    "ggml_mul_mat": (_P, _P, _P, _P),
    "ggml_new_graph_custom": (_P, _P, c_size_t, c_bool),
    "ggml_build_forward_expand": (None, _P, _P),
    "ggml_quantize_chunk": (c_size_t, c_int, _P, _P, c_int64, c_int64, c_int64, _P),
    "ggml_threadpool_params_default": (_PoolParams, c_int),
    "ggml_threadpool_new": (_P, _P),
    "ggml_threadpool_pause": (None, _P),
    "ggml_threadpool_free": (None, _P),
    "ggml_backend_cpu_init": (_P,),
    "ggml_backend_cpu_reg": (_P,),
    "ggml_backend_cpu_buffer_type": (_P,),
    "ggml_backend_cpu_set_n_threads": (None, _P, c_int),
    "ggml_backend_cpu_set_threadpool": (None, _P, _P),
    "ggml_backend_graph_compute": (c_int, _P, _P),
    "ggml_backend_free": (None, _P),
    "ggml_backend_reg_get_proc_address": (_P, _P, c_char_p),
    "ggml_backend_reg_dev_get": (_P, _P, c_size_t),
    "ggml_backend_dev_supports_op": (c_bool, _P, _P),
    "ggml_backend_buft_name": (c_char_p, _P),
    "ggml_backend_buft_alloc_buffer": (_P, _P, c_size_t),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_P, _P, _P),
    "ggml_backend_buffer_free": (None, _P),
    "ggml_backend_tensor_set": (None, _P, _P, c_size_t, c_size_t),
    "ggml_backend_tensor_get": (None, _P, _P, c_size_t, c_size_t),
}
"""Result and arguments of the functions used, as ggml 0.26 declares them."""


@lru_cache
def _load(family: str) -> ctypes.CDLL:
    """The wheel's library or the native one. Each keeps to its own symbols, so both live in one process."""
    if family == PACKAGE:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise MissingExtra(f"{PACKAGE} is not installed", hint=f"pip install {PACKAGE}")
        path = next(Path(spec.origin).parent.glob("*.so"))
    else:
        path = library()
    g = ctypes.CDLL(str(path))
    for name, (result, *arguments) in _FUNCTIONS.items():
        function = getattr(g, name)
        function.restype, function.argtypes = result, arguments
    g.ggml_log_set(_silent, None)
    return g
