"""Linear operations that run as one: the same bits as each alone, whatever their formats, on any number of threads."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from qcc.backends.native import isa, linear
from qcc.backends.native.calls import runtime
from qcc.backends.native.compile import compiler
from qcc.backends.native.linear import Fixed, LinearKernel, Packed
from qcc.backends.native.linear_group import Member, group_function
from qcc.backends.native.linear_spec import Activation, LinearSpec
from qcc.ir import target
from qcc.ir.format import Format
from tests.backends.native_oracle import host_isas, weights

BEST = isa.named(host_isas()[0])
TWO = min(2, target.load("cpu").cores)
GROUPED, ROWS, FIXED, HALF = Activation(8, grouped=True), Activation(8), Activation(8, fixed=True), Activation(16)
SCALE = Fixed(0.03, 7)

GROUPS: dict[str, tuple[Activation, int, list[tuple[int, str, bool]]]] = {
    "as a layer of a GGUF file": (
        GROUPED, 128, [(96, "i5, f16 per 32", False), (33, "i5, f16 per 32", True), (17, "i8, f16 per 32", False)]
    ),
    "groups of two sizes": (GROUPED, 128, [(40, "i4, f32 per 32", True), (40, "i6, i8 per 16, f16 per 64", False)]),
    "one scale a row": (ROWS, 65, [(20, "i8, f32 per *", True), (300, "i4, f32 per *", False)]),
    "calibrated": (FIXED, 64, [(48, "i8, f32 per *", True), (48, "i8, f32 per *", False)]),
    "16 bits": (
        HALF, 96, [(31, "i4, f16 per 32", False), (64, "e2m1, e4m3 per 16", True), (5, "i2, f32 per 32", True)]
    ),
    "alone": (GROUPED, 64, [(70, "i4, f32 per 32", True)]),
}  # fmt: skip


class Group:
    """Members in a library of their own, and each as a kernel of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        activation, k, members = GROUPS[name]
        rng = np.random.default_rng(5)
        self.k, self.fixed = k, SCALE if activation.fixed else None
        self.kernels: list[LinearKernel] = []
        self.packed: list[Packed] = []
        self.biases: list[np.ndarray | None] = []
        texts: list[Member] = []
        for n, fmt, biased in members:
            spec = LinearSpec(n, k, Format.parse(fmt), activation)
            self.kernels.append(linear.build(spec, BEST))
            value = weights(spec.weight, (n, k), "random", False, rng)
            self.packed.append(self.kernels[-1].pack(value, self.fixed))
            own = rng.standard_normal(n).astype(np.float32) if biased else None
            offset = self.packed[-1].offset
            self.biases.append(own if offset is None else offset if own is None else own + offset)
            texts.append(Member(linear.generate(spec, BEST), self.biases[-1] is not None))
        function, kernels = group_function(texts, BEST)
        path = folder / "group.so"
        objects = [f.compile() for f in {f.symbol: f for f in [function, *kernels]}.values()]
        subprocess.run([compiler(), "-shared", "-o", path, *objects, runtime(), "-lm"], check=True)
        self.library = ctypes.CDLL(str(path))
        self.call = self.library[function.symbol]

    def run(self, x: np.ndarray, threads: int) -> list[np.ndarray]:
        """The results of the group; what is around them is not touched."""
        self.library.qcc_set_threads(threads)
        m = len(x)
        held = [np.full((m + 1, kernel.spec.n), np.nan, np.float32) for kernel in self.kernels]
        pointers = [x, *[p.data for p in self.packed], *[b for b in self.biases if b is not None], *held]
        numbers = [ctypes.c_float(p.alpha) for p in self.packed]
        scale, zero = (SCALE.scale, SCALE.stored) if self.fixed else (0.0, 0)
        self.call(
            *[ctypes.c_void_p(a.ctypes.data) for a in pointers],
            ctypes.c_int64(m),
            *numbers,
            ctypes.c_float(scale),
            zero,
        )
        assert all(np.isnan(y[m:]).all() for y in held)
        return [y[:m] for y in held]

    def alone(self, x: np.ndarray) -> list[np.ndarray]:
        """Each kernel by itself."""
        biases: Sequence[np.ndarray | None] = self.biases
        results: list[np.ndarray] = []
        for kernel, packed, bias in zip(self.kernels, self.packed, biases, strict=True):
            bare = Packed(packed.data, packed.alpha, packed.fixed)  # the offset is part of the bias here
            results.append(kernel(x, bare, bias))
        return results


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_gives_what_its_members_give(name: str, tmp_path: Path) -> None:
    group, rng = Group(name, tmp_path), np.random.default_rng(1)
    for m in (0, 1, 2, 7, 8, 9, 70):
        x = rng.standard_normal((m, group.k)).astype(np.float32)
        wanted = group.alone(x)
        for threads in (1, TWO):
            for found, expected in zip(group.run(x, threads), wanted, strict=True):
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["as a layer of a GGUF file", "calibrated"])
def test_extreme_activations(name: str, tmp_path: Path) -> None:
    group = Group(name, tmp_path)
    x = np.zeros((4, group.k), np.float32)
    x[1], x[2, 3], x[3] = 3e38, np.nan, np.linspace(-1e-38, 1e-38, group.k)
    for found, expected in zip(group.run(x, TWO), group.alone(x), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_activations_are_rounded_once_for_members_that_round_them_alike() -> None:
    activation, k, members = GROUPS["as a layer of a GGUF file"]
    made = [Member(linear.generate(LinearSpec(n, k, Format.parse(f), activation), BEST)) for n, f, _ in members]
    forms = [member.form for member in made]
    assert forms[0] == forms[1] != forms[2], "codes of 5 bits are too high by 16, those of 8 by 128"
    text = group_function(made, BEST)[0].text
    assert text.count("    {qcc_prepare_own_") == 2
