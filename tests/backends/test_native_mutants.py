"""A kernel that is wrong in one place is found out: the oracle fails for each of these faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qcc.backends.native import emit_direct, emit_linear
from qcc.backends.native.emit_group import GroupEnd
from qcc.backends.native.linear_spec import Activation, LinearSpec, Schedule
from qcc.backends.native.storage import Storage
from qcc.ir.layout import Record
from tests.backends.native_oracle import Case, Oracle, check, host_isas, weights

A8 = Activation(8)
BEST = host_isas()[0]


def other_layout(old: str, new: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Weights are packed in another layout than the kernel reads."""

    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        right = LinearSpec.storage

        def wrong(spec: LinearSpec, schedule: Schedule) -> Storage:
            made = right(spec, schedule)
            assert old in str(made.layout), f"{made.layout} has no {old!r}"
            return replace(made, layout=Record.parse(str(made.layout).replace(old, new)))

        monkeypatch.setattr(LinearSpec, "storage", wrong)

    return apply


def other_number(owner: type, name: str, value: Callable[[object], object]) -> Callable[[pytest.MonkeyPatch], None]:
    """A number of a kernel is another one: `value` of what it was for."""

    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(owner, name, property(value))

    return apply


def other_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scales of one register of rows are taken for those of its neighbour."""
    right = emit_direct.read_number
    monkeypatch.setattr(emit_direct, "read_number", lambda place, record, r, whole: right(place, record, r ^ 1, whole))


def other_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minima are added where they are taken away."""
    right = GroupEnd.__init__

    def wrong(ends: GroupEnd, *arguments: Any) -> None:
        right(ends, *arguments)
        ends.sign = "" if ends.sign else "-"

    monkeypatch.setattr(GroupEnd, "__init__", wrong)


NIBBLES = Case("i4, f32 per 32", 33, 64, A8, BEST, Schedule(2, tile=1))
MUTANTS = {
    "nibbles swapped": (NIBBLES, other_layout("n0 k0 q0", "n0 q0 k0")),
    "rows of scales transposed": (NIBBLES, other_layout("scale n1 n0", "scale n0 n1")),
    "sign bit kept": (NIBBLES, other_layout("codes[0:4]^8", "codes[0:4]")),
    "scales of the neighbour": (NIBBLES, other_scales),
    "offset by one": (NIBBLES, other_number(LinearSpec, "offset", lambda spec: 9)),
    "activations to 126": (NIBBLES, other_number(Activation, "limit", lambda activation: 126)),
    "planes swapped": (
        Case("u2, f32 per 16", 16, 64, A8, BEST, Schedule(unpack="planes", tile=1)),
        other_layout("codes[0:1] n0 k0; codes[1:2] n0 k0", "codes[1:2] n0 k0; codes[0:1] n0 k0"),
    ),
    "levels swapped": (
        Case("u4, f16 per 32, minus f16 per 32", 16, 64, A8, BEST, Schedule(tile=1)),
        other_layout("scale n0; minus n0", "minus n0; scale n0"),
    ),
    "minima added": (Case("u4, f16 per 32, minus f16 per 32", 16, 64, A8, BEST, Schedule(tile=1)), other_signs),
    "zero points off by one": (
        Case("u4, f32 per 32, zero u4 per 32", 16, 64, A8, BEST, Schedule(tile=1)),
        other_number(LinearSpec, "offset", lambda spec: 1),
    ),
    "narrow products of wide bytes": (
        Case("u8, f32 per *", 16, 64, A8, "avx2", Schedule(tile=1)),
        other_number(emit_linear.LinearText, "dot", lambda text: "dot"),
    ),
}


@pytest.mark.parametrize("fault", [name for name, (case, _) in MUTANTS.items() if case.isa in host_isas()])
def test_the_oracle_finds(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, apply = MUTANTS[fault]
    check(case, rows=(1, 2))
    apply(monkeypatch)
    with pytest.raises(AssertionError):
        check(case, rows=(1, 2))


def test_the_oracle_finds_two_codes_swapped_in_memory() -> None:
    kernel, rng = Case("i4, f32 per 32", 17, 100, A8, BEST, Schedule(tile=1)).build(), np.random.default_rng(20)
    oracle = Oracle.of(kernel.spec, weights(kernel.spec.weight, (17, 100), "random", True, rng))
    x = rng.integers(-9, 10, (2, 100)).astype(np.float32)
    x[:, 0] = 127
    packed = kernel.pack(oracle.weight)
    assert oracle.compare(x, None, kernel(x, packed), "as it is")
    byte = int(np.flatnonzero(packed.data[: kernel.storage.code_bytes] % 17)[0])
    packed.data[byte] = packed.data[byte] >> 4 | packed.data[byte] << 4 & 0xF0
    with pytest.raises(AssertionError):
        oracle.compare(x, None, kernel(x, packed), "two codes swapped")
