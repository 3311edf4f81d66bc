"""ONNX Runtime's quantized products: MatMulNBits by bits, block and accuracy level, and DynamicQuantizeMatMul.

The copies of one run are independent nodes on one x in one model, so entering the session is paid once a run; each node
quantizes x for itself. Every session prepacks its weights and binds its inputs and outputs once.

The copies must differ: a session keeps one packed weight for all that are equal, and would read it from the cache (4096
x 4096, 4 bits by 128: 197 us instead of 468). Copy i is the weight with its rows turned by i, and y is turned back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from onnx import TensorProto, helper
from onnxruntime import InferenceSession, OrtValue, SessionOptions

from . import Peer, Problem

SPIN_MICROSECONDS = 2000
"""Threads spin for the next run this long and then sleep: longer than between two runs, shorter than `REST_SECONDS`."""


@dataclass(frozen=True)
class Form:
    """What one name stands for: `MatMulNBits`, or `DynamicQuantizeMatMul` where there is no block."""

    bits: int
    block: int = 0
    level: int = 0
    lut: bool = False
    """Look partial sums up in a table, as T-MAC does: an option of the session, for 2 bits."""

    def __str__(self) -> str:
        if not self.block:
            return "ort int8 channel dynamic"
        return f"ort int{self.bits} b{self.block} level {self.level}" + " lut" * self.lut


FORMS = (
    *(Form(bits, block, 4) for bits in (2, 4, 8) for block in (32, 128)),
    *(Form(2, block, 4, lut=True) for block in (32, 128)),
    Form(8),
    # Float activations. There is a kernel at 4 bits only; at 2 and 8 the weight is decoded at every call.
    *(Form(bits, block, 0) for bits, block in ((4, 32), (4, 128), (2, 32), (8, 32))),
)
NAMES = tuple(map(str, FORMS))


def make(name: str, problem: Problem) -> Peer:
    """Quantize the weight symmetrically and build one session for each run of copies."""
    form = FORMS[NAMES.index(name)]
    codes, scales = _quantize(form, problem.N, problem.K, problem.seed)
    packed = _pack(form, codes)
    bytes_per_copy = packed.nbytes + scales.nbytes
    copies, products = problem.copies(bytes_per_copy)
    x = OrtValue.ortvalue_from_numpy(problem.x())
    ys = [np.empty((problem.M, problem.N), np.float32) for _ in range(products)]
    outputs = [OrtValue.ortvalue_from_numpy(y) for y in ys]
    bound = []
    for first in range(0, copies, products):
        model = _model(form, problem, packed, scales, range(first, first + products))
        session = InferenceSession(model, options_for(problem.threads, form.lut), providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", x)
        for i, output in enumerate(outputs):
            binding.bind_ortvalue_output(f"y{i}", output)
        bound.append((session, binding, x))  # x and the outputs own the memory a binding points to
    last = [0]

    def run(i: int) -> None:
        last[0] = i % len(bound)
        session, binding, _ = bound[last[0]]
        session.run_with_iobinding(binding)

    def result() -> np.ndarray:
        return np.roll(outputs[-1].numpy(), -((last[0] + 1) * products - 1), axis=1)

    def decode() -> np.ndarray:
        block = form.block or problem.K
        return codes.astype(np.float32) * np.repeat(scales.reshape(problem.N, -1), block, axis=1)[:, : problem.K]

    return Peer(name, problem, bytes_per_copy, copies, products, run, result, decode)


def options_for(threads: int, lut: bool = False) -> SessionOptions:
    """Threads that spin as long as it pays and then sleep."""
    options = SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    if lut:
        options.add_session_config_entry("mlas.use_lut_gemm", "1")
    return options


@lru_cache(maxsize=1)
def _quantize(form: Form, N: int, K: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [N, K] and scales f32 [N, blocks], of one block a row for `DynamicQuantizeMatMul`."""
    block = form.block or K
    w = np.pad(Problem(1, N, K, seed=seed).w(), ((0, 0), (0, -K % block))).reshape(N, -1, block)
    top = 2 ** (form.bits - 1) - 1
    scales = np.abs(w).max(2, keepdims=True) / (top if form.bits > 2 else 1.5)
    codes = np.clip(np.rint(w / scales), -top - 1, top).astype(np.int8)
    return codes.reshape(N, -1)[:, :K], scales[:, :, 0].astype(np.float32)


def _pack(form: Form, codes: np.ndarray) -> np.ndarray:
    """As the operators want it: int8 [K, N]; or u8 [N, blocks, block * bits / 8] around the middle, low bits first."""
    if not form.block:
        return np.ascontiguousarray(codes.T)
    N, K = codes.shape
    middle = 1 << (form.bits - 1)
    shifted = np.pad(codes + np.int16(middle), ((0, 0), (0, -K % form.block)), constant_values=middle).astype(np.uint8)
    per_byte = 8 // form.bits
    parts = shifted.reshape(N, -1, form.block // per_byte, per_byte)
    return np.bitwise_or.reduce(parts << (np.arange(per_byte, dtype=np.uint8) * form.bits), axis=3)


def _model(form: Form, problem: Problem, packed: np.ndarray, scales: np.ndarray, copies: range) -> bytes:
    """A node for each copy, from one x [M, K] to y0, y1 ... [M, N]."""
    M, N, K = problem.M, problem.N, problem.K
    kind = TensorProto.UINT8 if form.block else TensorProto.INT8
    scales = scales if form.block else scales.reshape(N)
    nodes, weights = [], []
    for i, turn in enumerate(copies):
        inputs, outputs = ["x", f"w{i}", f"s{i}"], [f"y{i}"]
        if form.block:
            attributes = {"K": K, "N": N, "bits": form.bits, "block_size": form.block, "accuracy_level": form.level}
            nodes.append(helper.make_node("MatMulNBits", inputs, outputs, domain="com.microsoft", **attributes))
        else:
            nodes.append(helper.make_node("DynamicQuantizeMatMul", inputs, outputs, domain="com.microsoft"))
        codes = np.roll(packed, turn, axis=0 if form.block else 1).tobytes()
        weights.append(helper.make_tensor(f"w{i}", kind, packed.shape, codes, raw=True))
        turned = np.roll(scales, turn, axis=0).tobytes()
        weights.append(helper.make_tensor(f"s{i}", TensorProto.FLOAT, scales.shape, turned, raw=True))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [M, K])
    ys = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [M, N]) for i in range(len(copies))]
    graph = helper.make_graph(nodes, "products", [x], ys, weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
