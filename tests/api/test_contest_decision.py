"""`--backend auto`: what is measured and who is kept, by a clock that the tests turn."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from qcc.api import contest
from qcc.api.options import Options
from qcc.backends.artifact import ContestRecord
from qcc.backends.language import LanguageRecord
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.verify import Difference

# The decision


class Bench:
    """A clock that moves only when something takes time, and what was done, in order."""

    def __init__(self) -> None:
        self.time, self.done = 0.0, list[str]()

    def clock(self) -> contest.Clock:
        return contest.Clock(lambda: self.time, self._rest)

    def _rest(self, seconds: float) -> None:
        self.time += seconds
        self.done.append("rest")

    def call(self, name: str, *seconds: float) -> contest.Call:
        """A call that takes so many seconds, in turn; the last from then on."""
        waiting = list(seconds)

        def made() -> None:
            self.done.append(name)
            self.time += waiting.pop(0) if len(waiting) > 1 else waiting[0]

        return made

    def entrant(self, name: str, seconds: float, sqnr_db: float = 40, largest: float = 0.1) -> contest.Entrant:
        return contest.Entrant(name, Difference(sqnr_db, largest), lambda: self.call(name, seconds))


def kept(found: Sequence[ContestRecord]) -> str:
    (one,) = (record.backend for record in found if record.kept)
    return one


def decided(
    bench: Bench, *entrants: contest.Entrant, left_out: Mapping[str, str] | None = None, **gates: float
) -> list[ContestRecord]:
    return contest.decide(entrants, left_out or {}, Options(**gates), bench.clock())  # type: ignore[arg-type]


def test_the_fastest_of_three() -> None:
    bench = Bench()
    found = decided(bench, bench.entrant("a", 0.03), bench.entrant("b", 0.01), bench.entrant("c", 0.02))
    assert [(r.backend, r.kept, r.reason) for r in found] == [
        ("a", False, "3.00x slower than b"),
        ("b", True, "2.00x faster than c"),
        ("c", False, "2.00x slower than b"),
    ]
    assert [round(r.latency_ms.median, 6) for r in found if r.latency_ms] == [30, 10, 20]


def test_a_draw_is_called_one() -> None:
    bench = Bench()
    found = decided(bench, bench.entrant("a", 0.01), bench.entrant("b", 0.01001))
    assert [(r.kept, r.reason) for r in found] == [(True, "as fast as b"), (False, "as fast as a")]


@pytest.mark.parametrize(
    ("exact", "fast", "winner"),
    [(40.0, 39.1, "fast"), (40.0, 38.9, "exact"), (140.0, 95.0, "fast"), (140.0, 88.9, "exact"), (-5.0, -5.5, "fast")],
)
def test_how_much_less_exact_the_faster_may_be(exact: float, fast: float, winner: str) -> None:
    """Within 1 dB; beyond 90 dB only rounding is compared."""
    bench = Bench()
    found = decided(bench, bench.entrant("exact", 0.02, exact), bench.entrant("fast", 0.01, fast))
    assert kept(found) == winner
    assert found[0].reason == ("2.00x slower than fast" + ("" if winner == "fast" else ", but exact enough"))
    assert found[1].reason.startswith("2.00x faster" if winner == "fast" else f"reaches {fast:.2f} dB")


def test_gates_come_before_speed() -> None:
    bench = Bench()
    sides = bench.entrant("slow", 0.02, 40, 0.1), bench.entrant("fast", 0.01, 39.5, 0.3)
    assert kept(decided(bench, *sides)) == "fast"
    for gate, missed in (
        ({"max_error": 0.2}, "is off by 0.3, more than --max-error 0.2"),
        ({"min_sqnr": 39.9}, "reaches 39.50 dB, less than --min-sqnr 39.9"),
    ):
        slow, fast = decided(bench, *sides, **gate)
        assert slow.kept and slow.reason == "2.00x slower than fast, but exact enough"
        assert fast.reason == missed


def test_one_that_misses_a_gate_is_no_measure_for_others() -> None:
    bench = Bench()
    found = decided(bench, bench.entrant("a", 0.01, 60, 9.0), bench.entrant("b", 0.01, 40, 0.1), max_error=1.0)
    assert kept(found) == "b"


def test_where_none_holds_the_gates_the_most_exact_is_kept() -> None:
    bench = Bench()
    found = decided(bench, bench.entrant("a", 0.01, 30), bench.entrant("b", 0.02, 40), min_sqnr=50)
    assert kept(found) == "b"


def test_those_left_out_before_are_recorded_last() -> None:
    bench = Bench()
    found = decided(bench, bench.entrant("a", 0.01), left_out={"b": "no form for onnx.CumSum"})
    assert found[0] == ContestRecord(backend="a", kept=True, reason="no other is left", sqnr_db=40, max_abs_error=0.1)
    assert found[1] == ContestRecord(backend="b", kept=False, reason="no form for onnx.CumSum")


def unwilling(name: str) -> contest.Entrant:
    def fail() -> contest.Call:
        raise BadInput(f"{name} does not load")

    return contest.Entrant(name, Difference(40, 0.1), fail)


def test_one_that_cannot_be_timed_is_left_out() -> None:
    bench = Bench()
    first, second = decided(bench, unwilling("a"), bench.entrant("b", 0.01))
    assert (first.kept, first.reason) == (False, "does not run: a does not load")
    assert (second.kept, second.reason, second.latency_ms) == (True, "no other is left", None)
    with pytest.raises(BadInput, match="a does not load"):
        decided(bench, unwilling("a"), unwilling("b"))


# The clock


def test_rounds_alternate_and_each_turn_begins_with_a_rest() -> None:
    bench = Bench()
    found = contest.race({"a": bench.call("a", 0.05), "b": bench.call("b", 0.04)}, bench.clock())
    assert bench.done[:12] == ["rest", "a", "rest", "b", "rest", "b", "rest", "a", "rest", "a", "rest", "b"]
    assert {name: len(times) for name, times in found.items()} == {"a": 12, "b": 12}
    assert found["a"] == pytest.approx([0.05] * 12)


def test_a_short_call_is_a_burst_whose_first_does_not_count() -> None:
    bench = Bench()
    found = contest.race({"a": bench.call("a", 9.0, 0.001)}, bench.clock())
    assert found["a"][0] == 9.0, "a slow call is a burst of its own"
    bench = Bench()
    found = contest.race({"a": bench.call("a", 0.02, 0.001)}, bench.clock())
    assert found["a"] == pytest.approx([0.001] * 12)
    assert 12 + 12 * 25 <= len(bench.done) <= 12 + 12 * 32


@pytest.mark.parametrize(("seconds", "rounds"), [(0.1, 12), (0.4, 6), (2.0, 3)])
def test_slow_networks_get_fewer_rounds_but_three(seconds: float, rounds: int) -> None:
    bench = Bench()
    found = contest.race({"a": bench.call("a", seconds), "b": bench.call("b", seconds)}, bench.clock())
    assert (len(found["a"]), len(found["b"])) == (rounds, rounds)
    assert bench.time < max(contest.BUDGET + 2 * seconds + 1, 6 * seconds + 1)


# Language models


def record(context: int) -> LanguageRecord:
    return LanguageRecord(
        architecture="tiny", vocabulary=11, context=context, layers=1, kv_heads=1, head_size=8, cache_dtype="float32",
        bos=None, eos=[], temperature=None, top_k=None, top_p=None, source="", programs={},
    )  # fmt: skip


@dataclass
class Steps:
    """A decoder that writes down what it is asked for."""

    capacity: int
    length: int = 0
    taken: list[list[int]] = field(default_factory=list[list[int]])

    def step(self, ids: Sequence[int], *, keep: Sequence[int] | None = None) -> np.ndarray:
        self.length += len(ids)
        assert self.length <= self.capacity and all(0 <= i < 11 for i in ids)
        self.taken.append(list(ids))
        return np.eye(11, dtype=np.float32)[[(ids[-1] + 1) % 11]]

    def rewind(self, length: int) -> None:
        self.length = length


@pytest.mark.parametrize(("context", "sizes"), [(2048, [64] + [1] * 16), (40, [24] + [1] * 16), (6, [3, 1, 1, 1])])
def test_a_language_model_is_timed_over_a_prompt_and_tokens_behind_it(
    context: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Steps] = []
    decode: Any = ModuleType("decode")
    decode.__spec__ = ModuleSpec("qcc.backends.second.decode", None)
    decode.open_decoder = lambda runner, record, capacity: made.append(Steps(capacity)) or made[-1]
    monkeypatch.setitem(sys.modules, "qcc.backends.second.decode", decode)
    call = contest.decoding(object(), "second", record(context))  # type: ignore[arg-type]
    call()
    call()
    (steps,) = made
    assert [len(ids) for ids in steps.taken] == sizes * 2
    assert steps.taken[: len(sizes)] == steps.taken[len(sizes) :], "the same tokens every time"
    assert all(b == [(a[-1] + 1) % 11] for a, b in zip(steps.taken[: len(sizes) - 1], steps.taken[1:], strict=False))


def test_a_backend_without_a_decoder_does_not_compete_for_language_models() -> None:
    with pytest.raises(NotSupported, match="fpga has no decoder"):
        contest.decoding(object(), "fpga", record(64))  # type: ignore[arg-type]
