"""ONNX Runtime's MatMulNBits computes on bytes of ours; an identity matrix gives the weights back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qcc.ir.layouts import named

from .helpers import mistakes, random_codes, store

Floats = NDArray[np.float32]


def decoded(
    data: NDArray[np.uint8], bits: int, shape: Sequence[int], block: int, scale: Floats, zeros: NDArray[np.uint8] | None
) -> Floats:
    """The weights [N, K] that ONNX Runtime finds in the bytes."""
    N, K = shape
    inputs = {"B": data.reshape(N, -1, block * bits // 8), "scales": scale.reshape(-1)}
    if zeros is not None:
        inputs["zeros"] = zeros
    node = helper.make_node(
        "MatMulNBits", ["A", *inputs], ["Y"], domain="com.microsoft", K=K, N=N, bits=bits, block_size=block
    )
    types = {"B": TensorProto.UINT8, "scales": TensorProto.FLOAT, "zeros": TensorProto.UINT8}
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, [K, K])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [K, N])],
        [helper.make_tensor(n, types[n], v.shape, v.tobytes(), raw=True) for n, v in inputs.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"A": np.eye(K, dtype=np.float32)})[0].T


def expand(values: NDArray[np.generic], block: int, K: int) -> NDArray[np.generic]:
    return np.repeat(values, block, axis=1)[:, :K]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("shape", "block"), [((8, 64), 16), ((5, 96), 32), ((3, 128), 64)])
def test_weights_without_zero_points(bits: int, shape: tuple[int, int], block: int) -> None:
    layout = named("onnxruntime_matmul_nbits", f"i{bits}", block=block)
    codes, scale = random_codes(layout.element, shape), scales(shape, block)
    expected = codes * expand(scale, block, shape[1])
    stored = store(layout, {"codes": codes}, shape)
    np.testing.assert_array_equal(decoded(stored, bits, shape, block, scale, None), expected)
    mistaken = [store(mistake, {"codes": codes}, shape) for mistake in mistakes(layout, shape)]
    assert mistaken
    for wrong in (*mistaken, (stored << 4) | (stored >> 4)):
        assert not np.array_equal(decoded(wrong, bits, shape, block, scale, None), expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("shape", "block"), [((8, 96), 16), ((5, 192), 32), ((3, 320), 64)])
def test_weights_with_zero_points(bits: int, shape: tuple[int, int], block: int) -> None:
    layout = named("onnxruntime_matmul_nbits", f"u{bits}", block=block)
    placed = named("onnxruntime_matmul_nbits_zeros", f"u{bits}")
    codes, scale = random_codes(layout.element, shape), scales(shape, block)
    zero = random_codes(layout.element, scale.shape, seed=1)
    stored = store(layout, {"codes": codes}, shape)
    zeros = store(placed, {"codes": zero}, zero.shape)
    expected = (codes.astype(np.float32) - expand(zero, block, shape[1])) * expand(scale, block, shape[1])
    np.testing.assert_array_equal(decoded(stored, bits, shape, block, scale, zeros), expected)
    mistaken = [store(mistake, {"codes": zero}, zero.shape) for mistake in mistakes(placed, zero.shape)]
    assert mistaken
    for wrong in (*mistaken, (zeros << 4) | (zeros >> 4)):
        assert not np.array_equal(decoded(stored, bits, shape, block, scale, wrong), expected)


def scales(shape: tuple[int, int], block: int) -> Floats:
    """Powers of two, so that products are exact in any order."""
    rng = np.random.default_rng(2)
    return np.exp2(rng.integers(-3, 4, (shape[0], -(-shape[1] // block)))).astype(np.float32)
