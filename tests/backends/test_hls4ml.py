"""hls4ml turns the QONNX form into C++ of fixed-point types, which computes the same numbers, bit by bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qcc
from tests import qonnx_forms as forms
from tests.networks import Array, model, normal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="hls4ml compiles its C++ with g++"),
]

NETWORKS: dict[str, tuple[str, tuple[int, ...], dict[str, Array]]] = {
    "layers": (
        "(float[1,16] x) => (float[1,5] y) "
        "{ h = MatMul(x, w) s = Add(h, b) r = Relu(s) t = MatMul(r, v) y = Add(t, c) }",
        (1, 16),
        {"w": normal(16, 8, scale=0.3), "b": normal(8), "v": normal(8, 5, scale=0.3), "c": normal(5)},
    ),
    "convolutions": (
        "(float[1,3,8,8] x) => (float[1,5] y) { a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) "
        "p = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r) d = Conv<pads=[1,1,1,1]>(p, v, e) q = Relu(d) "
        "f = Flatten(q) y = Gemm<transB=1>(f, g, h) }",
        (1, 3, 8, 8),
        {
            "w": normal(4, 3, 3, 3, scale=0.3),
            "b": normal(4),
            "v": normal(4, 4, 3, 3, scale=0.3),
            "e": normal(4),
            "g": normal(5, 64, scale=0.2),
            "h": normal(5),
        },
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_hls4ml_computes_the_same_numbers(name: str, tmp_path: Path) -> None:
    text, shape, weights = NETWORKS[name]
    samples = [{"x": normal(*shape, seed=i)} for i in range(16)]
    qcc.compile(model(text, **weights), target="fpga", calibration=samples, output=tmp_path / "a.qcc")
    made = forms.qdq(tmp_path / "a.qcc")
    step = forms.scales(made)[made.graph.node[0].output[0]]
    inputs = [np.clip(np.rint(s["x"] / step), -127, 127).astype(np.float32) * np.float32(step) for s in samples]
    expected = np.concatenate([forms.run_qdq(made, {"x": x})[0] for x in inputs])
    network = converted(tmp_path / "a.qcc", tmp_path / "hls", len(shape) == 4)
    np.testing.assert_array_equal(network.predict(np.concatenate(inputs)).reshape(expected.shape), expected)


def converted(artifact: Path, place: Path, images: bool) -> Any:
    """The network as hls4ml compiles it, by the steps of its documentation. Any: hls4ml has no types."""
    import hls4ml  # type: ignore[import-not-found]
    from qonnx.core.modelwrapper import ModelWrapper  # type: ignore[import-untyped]
    from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean  # type: ignore[import-untyped]
    from qonnx.transformation.gemm_to_matmul import GemmToMatMul  # type: ignore[import-untyped]
    from qonnx.util.cleanup import cleanup_model  # type: ignore[import-untyped]

    wrapped = cleanup_model(ModelWrapper(forms.qonnx(artifact)))
    if images:
        wrapped = wrapped.transform(ConvertToChannelsLastAndClean())
    wrapped = cleanup_model(wrapped.transform(GemmToMatMul()))
    wide = "fixed<32,16>"
    config = hls4ml.utils.config.config_from_onnx_model(
        wrapped, granularity="name", backend="Vitis", default_precision=wide
    )
    network = hls4ml.converters.convert_from_onnx_model(
        wrapped, output_dir=str(place), io_type="io_parallel", backend="Vitis", hls_config=config
    )
    network.compile()
    return network
