"""The node tests of ONNX through import, text, parse, export and ONNX Runtime; broken copies of them are refused."""

from __future__ import annotations

import pytest

from benchmarks.conformance import node_tests, survey

EXCEPTIONS = {
    "test_not_2d": "opset 1: older than qcc reads",
    "test_not_3d": "opset 1: older than qcc reads",
    "test_not_4d": "opset 1: older than qcc reads",
    "test_scan_sum": "opset 8, whose Scan has another meaning",
}
"""Node tests that ONNX Runtime runs and qcc refuses, each with its reason."""
SLICE = 12
"""Every twelfth test is about 150."""
ALWAYS = ("test_constant", "test_if", "test_loop11", "test_sequence_insert_at_back")


def test_a_slice_of_the_node_tests_is_identical_and_its_mutants_are_refused() -> None:
    tests = list(node_tests())
    found = survey([*tests[::SLICE], *(t for t in tests if t.name in ALWAYS)])
    assert set(found.failures) <= set(EXCEPTIONS), found.failures
    assert found.tests > 100
    assert not found.accepted
    assert set(found.tried) == {"operand missing", "attribute unknown", "attribute type", "operand type"}
    assert sum(found.tried.values()) > 200


@pytest.mark.slow
def test_the_node_tests_are_identical_and_their_mutants_are_refused() -> None:
    found = survey(node_tests())
    assert found.failures.keys() == EXCEPTIONS.keys(), found.failures
    assert all("NotSupported" in reason for reason in found.failures.values())
    assert found.passed >= 0.99 * found.tests
    assert found.tests > 1400
    assert sum(found.refused.values()) >= 0.995 * sum(found.tried.values()), found.accepted
