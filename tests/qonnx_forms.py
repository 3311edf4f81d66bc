"""The two files of an FPGA artifact in tests: the QDQ model on ONNX Runtime, the QONNX model on qonnx's executor."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from qcc.backends.fpga.build import QONNX
from qcc.backends.onnxruntime.run import MODEL, SessionRunner
from tests.networks import Array


def qdq(folder: Path) -> ModelProto:
    """The QDQ model."""
    return onnx.load(folder / MODEL)


def qonnx(folder: Path) -> ModelProto:
    """The QONNX model."""
    return onnx.load(folder / QONNX)


def run_qdq(model: ModelProto, feeds: dict[str, Array]) -> list[Array]:
    """The outputs by ONNX Runtime."""
    return list(SessionRunner(model.SerializeToString(), Path(), 1).run(feeds).values())


def run_qonnx(model: ModelProto, arrays: list[Array]) -> list[Array]:
    """The outputs by qonnx, node by node, for inputs in the order of the model."""
    executor: Any = _executor()
    from qonnx.core.modelwrapper import ModelWrapper  # type: ignore[import-untyped]

    feeds = dict(zip([i.name for i in model.graph.input], arrays, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = executor.execute_onnx(ModelWrapper(model), feeds)
    return [found[o.name] for o in model.graph.output]


def _executor() -> Any:
    """Any: qonnx has no types."""
    from qonnx.core import onnx_exec  # type: ignore[import-untyped]

    return onnx_exec


def scales(model: ModelProto) -> dict[str, float]:
    """The scale of every quantizing node of either form, by the node's output."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {n.output[0]: float(constants[n.input[1]]) for n in quantizers(model)}


def zero_points(model: ModelProto) -> list[float]:
    """The zero point of every quantizing node of either form."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return [float(constants[n.input[2]]) for n in quantizers(model)]


def quantizers(model: ModelProto) -> list[NodeProto]:
    """The nodes that have a scale."""
    return [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear", "Quant")]


def shifted(model: ModelProto, node: NodeProto) -> ModelProto:
    """A copy in which the scale of one node is off by one exponent."""
    other = ModelProto()
    other.CopyFrom(model)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    wrong = numpy_helper.from_array(np.asarray(constants[node.input[1]] * np.float32(2)), "wrong")
    other.graph.initializer.append(wrong)
    (same,) = [n for n in other.graph.node if n.output[0] == node.output[0]]
    same.input[1] = "wrong"
    return other
