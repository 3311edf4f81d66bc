"""A layout's index map is TVM's as it is: the same places, and a kernel with a transformed buffer writes our bytes.

With the other tests of large downloads, for TVM's wheel is 100 MB.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcc.ir.layout import Layout, Ragged, Stages, index_map, parse_layout
from qcc.ir.layouts import named

pytestmark = [pytest.mark.models, pytest.mark.slow]

tvm: Any = pytest.importorskip("tvm", reason="make test-models installs it")
from tvm import s_tir  # noqa: E402  # pyright: ignore
from tvm.script import tirx as T  # noqa: E402, N812  # pyright: ignore
from tvm.tirx import IndexMap  # noqa: E402  # pyright: ignore

LAYOUTS = [
    (str(named("marlin", "u4").layout), (32, 64)),
    (str(named("vnni_int8").layout), (64, 32)),
    ("n(n1 n0:8) k(k3 k2:2 k1:2 k0:8) -> n1 k3 k1 n0 k0 k2", (16, 64)),
    (str(named("turbomind_sm80").layout), (32, 64)),
    ("n(n1 n0:8) k(k2 k1:8 k0:8) -> @bank k1^n0 @addr n1 k2 n0 k0", (16, 128)),
    ("n(n0) k(k1 k0:64) -> n0 k1 k0 + n(n0) k(k0) -> n0 k0 along k", (6, 70)),
    ("n(n0:6) k(k0:10) -> k0 n0; slot(a:4 b:15) -> b a", (6, 10)),
]


def parsed(text: str) -> Layout | Ragged | Stages:
    layout = parse_layout(text)
    assert isinstance(layout, Layout | Ragged | Stages)
    return layout


@pytest.mark.parametrize(("text", "shape"), LAYOUTS)
def test_index_maps_give_the_same_places(text: str, shape: tuple[int, int]) -> None:
    places = index_map(parsed(text), shape)
    theirs = IndexMap.from_func(places, ndim=2)
    grid = np.indices(shape).reshape(2, -1).T
    ours = np.stack([np.broadcast_to(place, len(grid)) for place in places(*grid.T)], axis=1)
    for i in range(0, len(grid), max(1, len(grid) // 200)):
        assert [int(place) for place in theirs.map_indices([int(c) for c in grid[i]])] == ours[i].tolist()


@pytest.mark.parametrize(("text", "shape"), LAYOUTS[:4])
def test_a_kernel_with_a_transformed_buffer_writes_our_bytes(text: str, shape: tuple[int, int]) -> None:
    rows, columns = shape

    @T.prim_func(s_tir=True)  # pyright: ignore
    def copy(A: T.Buffer((rows, columns), "int8"), B: T.Buffer((rows, columns), "int8")):  # pyright: ignore
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        for i, j in T.grid(rows, columns):
            with T.sblock("b"):
                vi, vj = T.axis.remap("SS", [i, j])
                B[vi, vj] = A[vi, vj]

    layout = parsed(text)
    schedule = s_tir.Schedule(copy)
    index = IndexMap.from_func(index_map(layout, shape), ndim=2, index_dtype="int32")
    schedule.transform_layout("b", ("write", 0), index)
    kernel = tvm.compile(schedule.mod["main"], target={"kind": "llvm"})
    codes = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    out = tvm.runtime.tensor(np.zeros(rows * columns, np.int8))
    kernel["main"](tvm.runtime.tensor(codes), out)
    np.testing.assert_array_equal(out.numpy(), layout.arrange(codes))
