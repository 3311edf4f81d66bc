"""A real classifier in fixed point: PP-OCR's direction classifier answers as the float model does."""

from __future__ import annotations

import numpy as np
import pytest

import qcc
from benchmarks import fpga
from tests import qonnx_forms as forms

pytestmark = [pytest.mark.models, pytest.mark.slow]


def test_direction_classifier_keeps_its_answers() -> None:
    row = fpga.compare(fpga.cls(500))
    assert row.same_answer_percent >= 98
    assert row.right_percent >= row.right_float_percent - 1
    assert row.nodes_skipped <= 2, "the Softmax and its Reshape"
    assert row.bytes < 0.4 * row.float_bytes


def test_both_forms_of_the_direction_classifier_give_the_same_scores() -> None:
    network = fpga.cls(4)
    made = qcc.compile(
        network.path, target="fpga", calibration=network.calibration, input_shapes={"x": (1, 3, 48, 192)}
    )
    qonnx = forms.qonnx(made.folder)
    for feeds in network.inputs:
        (found,) = made(feeds).values()
        np.testing.assert_array_equal(found, forms.run_qonnx(qonnx, [feeds["x"]])[0])
