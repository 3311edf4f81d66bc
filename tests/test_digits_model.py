"""The model that ships with qcc is accurate, small, and still has the structure its compilation is meant to show."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime


def test_float_model_reaches_98_percent_in_onnxruntime(digits: Path) -> None:
    session = onnxruntime.InferenceSession(digits / "digits.onnx", providers=["CPUExecutionProvider"])
    with np.load(digits / "test.npz") as test, np.load(digits / "labels.npz") as answers:
        (logits,) = session.run(["logits"], {"images": test["images"]})
        labels = answers["labels"]
    assert logits.shape == (500, 10)
    assert (logits.argmax(1) == labels).mean() >= 0.98


def test_data_files_hold_exactly_the_inputs_of_the_model(digits: Path) -> None:
    model = onnx.load(digits / "digits.onnx")
    (declared,) = model.graph.input
    for name, count in (("test.npz", 500), ("calibration.npz", 128)):
        with np.load(digits / name) as data:
            assert data.files == [declared.name]
            images = data[declared.name]
        assert images.shape == (count, 1, 8, 8)
        assert images.dtype == np.float32
        assert images.min() == 0
        assert images.max() == 1


def test_calibration_and_test_images_are_disjoint(digits: Path) -> None:
    with np.load(digits / "test.npz") as test, np.load(digits / "calibration.npz") as calibration:
        seen = {image.tobytes() for image in calibration["images"]}
        assert not seen & {image.tobytes() for image in test["images"]}


def test_graph_keeps_what_the_passes_fold(digits: Path) -> None:
    model = onnx.load(digits / "digits.onnx")
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["Conv"] == counts["BatchNormalization"] == 5
    assert counts["Add"] == counts["GlobalAveragePool"] == counts["Gemm"] == 1
    (depthwise,) = [n for n in model.graph.node if any(a.name == "group" and a.i == 24 for a in n.attribute)]
    assert depthwise.op_type == "Conv"
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_folder_stays_below_300_kb(digits: Path) -> None:
    assert sum(path.stat().st_size for path in digits.iterdir() if path.is_file()) < 300_000
