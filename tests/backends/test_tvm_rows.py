"""Operators along rows become few kernels: what is taken together, what is not, and that both compute the same.

What needs TVM runs with the other tests of large downloads.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from qcc.backends.native import isa
from qcc.ir import target
from qcc.ir.execute import Reference
from qcc.ir.program import Program
from tests.backends.test_tvm_network import built
from tests.networks import normal, program

pytestmark = [
    pytest.mark.models,
    pytest.mark.skipif(find_spec("tvm") is None, reason="make test-models installs it"),
]
Arrays = dict[str, np.ndarray]


def kernels(subject: Program) -> tuple[int, int]:
    """How many row kernels a program calls, and how many calls there are of anything else."""
    from qcc.backends.tvm.build import lower

    module = lower(subject.clone(), isa.best(target.load("cpu")), {}).module
    called = re.findall(r"= (R\.\w+\((?:call_qcc_rows)?)", module["main"].script())
    rows = [call for call in called if call.endswith("call_qcc_rows")]
    return len(rows), len([call for call in called if call not in rows and call != "R.reshape("])


def agrees(subject: Program, feeds: Arrays, folder: Path) -> None:
    found, wanted = built(subject, folder, min(2, target.load("cpu").cores)).run(feeds), Reference(subject).run(feeds)
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, atol=2e-5, rtol=1e-5, err_msg=name)


DECOMPOSED = """(float[n,5,48] x) => (float[n,5,48] y) {
    m = ReduceMean<axes=[-1]>(x)
    c = Sub(x, m)
    two = Constant<value_float=2.0>()
    s = Pow(c, two)
    v = ReduceMean<axes=[-1]>(s)
    e = Constant<value_float=0.00001>()
    p = Add(v, e)
    d = Sqrt(p)
    q = Div(c, d)
    w = Mul(q, weight)
    y = Add(w, bias) }"""


def decomposed(text: str = DECOMPOSED) -> Program:
    return program(text, opset=13, weight=normal(48), bias=normal(48, seed=1))


def test_a_layer_norm_in_pieces_is_one_kernel(tmp_path: Path) -> None:
    subject = decomposed()
    assert kernels(subject) == (1, 0)
    agrees(subject, {"x": normal(3, 5, 48, seed=2)}, tmp_path)


def test_a_mean_that_is_read_elsewhere_is_computed_for_itself(tmp_path: Path) -> None:
    subject = decomposed(DECOMPOSED.replace("(float[n,5,48] y)", "(float[n,5,48] y, float[n,5,1] m)"))
    assert kernels(subject)[0] == 1
    agrees(subject, {"x": normal(2, 5, 48, seed=2)}, tmp_path)


@pytest.mark.parametrize("change", [("axes=[-1]>(x)", "axes=[1]>(x)"), ("axes=[-1]>(s)", "axes=[0]>(s)")])
def test_means_along_other_axes_are_no_part_of_it(change: tuple[str, str], tmp_path: Path) -> None:
    subject = decomposed(DECOMPOSED.replace(*change))
    assert kernels(subject)[1] > 0
    agrees(subject, {"x": normal(3, 5, 48, seed=2)}, tmp_path)


def test_a_residual_sum_and_its_norm_are_one_kernel_of_two_results(tmp_path: Path) -> None:
    subject = program(
        """(float[n,64] x, float[n,64] r) => (float[n,64] z, float[n,64] y) {
            h = Add(x, r)
            a = LayerNormalization(h, w0, b0)
            g = Gelu(a)
            y = Mul(g, h)
            z = LayerNormalization(y, w0, b0) }""",
        opset=20, w0=normal(64), b0=normal(64, seed=1),
    )  # fmt: skip
    assert kernels(subject) == (1, 0)
    agrees(subject, {"x": normal(7, 64), "r": normal(7, 64, seed=3)}, tmp_path)


@pytest.mark.parametrize("other", ["float[n,1,64] r", "float[1,6,64] r", "float[n,6,1] r", "float[6,64] r"])
def test_what_is_spread_otherwise_stays(other: str, tmp_path: Path) -> None:
    """Only what has the extents of the rows, one number, or one for each column, is read by a row kernel."""
    subject = program(f"(float[n,6,64] x, {other}) => (float[n,6,64] y) {{ a = Tanh(x) y = Add(a, r) }}")
    assert kernels(subject)[1] > 0
    shape = [int(d) if d.isdigit() else 3 for d in other.split("[")[1].split("]")[0].split(",")]
    agrees(subject, {"x": normal(3, 6, 64), "r": normal(*shape, seed=3)}, tmp_path)


def test_large_expressions_are_cut(tmp_path: Path) -> None:
    body, last = "", "x"
    for i in range(90):
        body += f"t{i} = Tanh({last})\n u{i} = Add(t{i}, x)\n"
        last = f"u{i}"
    subject = program(f"(float[n,32] x) => (float[n,32] y) {{ {body} y = Relu({last}) }}")
    assert 1 < kernels(subject)[0] < 10
    agrees(subject, {"x": normal(4, 32)}, tmp_path)
