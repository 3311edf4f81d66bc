"""`--backend auto`: of the backends that compiled a network, the fastest that agrees with the float model is kept.

They are timed in turn on this machine. A turn begins with a rest, in which the idle threads of the other stop spinning
(those of ONNX Runtime do after 40 ms), and is a burst of calls, as in use.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Protocol, cast

import numpy as np

from qcc.backends.artifact import ContestRecord, LatencyRecord
from qcc.backends.generate import Decoder, prefill
from qcc.backends.language import LanguageRecord
from qcc.backends.runtime import Runner
from qcc.backends.select import Candidate
from qcc.ir.errors import NotSupported, QccError
from qcc.ir.program import Decision
from qcc.ir.verify import Difference

from .bench import Latency, summarize
from .options import Options

ROUNDS, LEAST_ROUNDS = 12, 3
BUDGET = 5.0
"""Seconds after which no round begins, once there were `LEAST_ROUNDS`."""
REST, BURST = 0.06, 0.03
"""Seconds of quiet before a burst, and of calls in a row; a call that takes longer is a burst of its own."""
TOLERANCE_DB = 1.0
"""How far behind the most exact one a backend may be."""
EXACT_DB = 90.0
"""Where two backends both reach this, their differences are those of rounding float32."""
PROMPT, TOKENS = 64, 16
"""What is timed of a language model: a prompt of so many tokens, and as many single ones behind it."""

COMPETES, LEFT_OUT = "competes", "left out"
"""The actions of a plan's decisions about backends."""
_ALONE = "no other is left"

Call = Callable[[], object]


@dataclass(frozen=True)
class Entrant:
    """A backend that has compiled the network, how far it is from the float model, and a way to open it to be timed."""

    backend: str
    error: Difference
    open: Callable[[], Call]
    """Loads what it wrote; gives the call that is timed. `QccError` where that does not run."""


@dataclass(frozen=True)
class Clock:
    """Where time comes from."""

    now: Callable[[], float] = time.perf_counter
    rest: Callable[[float], None] = time.sleep


CLOCK = Clock()


class Measured(Protocol):
    """A measured error, in the artifact or before it is written there."""

    @property
    def sqnr_db(self) -> float: ...
    @property
    def max_abs_error(self) -> float: ...


def decide(
    entrants: Sequence[Entrant], left_out: Mapping[str, str], options: Options, clock: Clock = CLOCK
) -> list[ContestRecord]:
    """One record for each of `entrants`, of which one is kept, and for each backend left out before, with its reason.

    All that run are timed, so that the record says what exactness costs. Where none holds the gates of `options`, the
    most exact is kept: the gates fail then, and say by how much. Raises the `QccError` of one where none runs.
    """
    failed: dict[str, QccError] = {}
    times = _time(entrants, failed, clock) if len(entrants) > 1 else {}
    running = [e for e in entrants if e.backend not in failed]
    if not running:
        raise next(iter(failed.values()))
    inexact = _inexact(running, options)
    fit = [e for e in running if e.backend not in inexact] or [max(running, key=lambda e: e.error.sqnr_db)]
    kept = min((e.backend for e in fit), key=lambda name: times[name].median if name in times else 0.0)
    reasons = {name: f"does not run: {error.message}" for name, error in failed.items()}
    reasons |= {**{name: _compared(times, name, kept) for name in times}, **inexact, kept: _why(times, kept)}
    return [
        *(_record(e, e.backend == kept, reasons[e.backend], times.get(e.backend)) for e in entrants),
        *(ContestRecord(backend=name, kept=False, reason=reason) for name, reason in left_out.items()),
    ]


def competing(candidates: Sequence[Candidate]) -> list[Decision]:
    """Of several backends: which would be measured, and what keeps the others from it; empty for a single one."""
    if len(candidates) < 2:
        return []
    able = [c.backend for c in candidates if not c.obstacle]
    fate = "would compile it, be checked and be timed" if len(able) > 1 else _ALONE
    return [Decision(c.backend, LEFT_OUT if c.obstacle else COMPETES, c.obstacle or fate) for c in candidates]


def missed_gate(error: Measured, options: Options) -> str:
    """What a result misses of the gates that the user set; empty where it holds them."""
    if options.min_sqnr is not None and error.sqnr_db < options.min_sqnr:
        return f"reaches {error.sqnr_db:.2f} dB, less than --min-sqnr {options.min_sqnr}"
    if options.max_error is not None and error.max_abs_error > options.max_error:
        return f"is off by {error.max_abs_error:.4g}, more than --max-error {options.max_error}"
    return ""


def decoding(runner: Runner, backend: str, record: LanguageRecord) -> Call:
    """Prefill and decode with what a backend opened, over a cache of its own; random tokens, always the same."""
    if find_spec(f"qcc.backends.{backend}.decode") is None:
        raise NotSupported(f"the backend {backend} has no decoder for language models", hint="use another --backend")
    module = importlib.import_module(f"qcc.backends.{backend}.decode")
    count = min(TOKENS, record.context // 2)
    ids = np.random.default_rng(0).integers(0, record.vocabulary, min(PROMPT, record.context - count)).tolist()
    decoder = cast("Decoder", module.open_decoder(runner, record, len(ids) + count))

    def call() -> None:
        decoder.rewind(0)
        logits = prefill(decoder, ids)
        for _ in range(count):
            logits = decoder.step([int(np.argmax(logits))])[-1]

    return call


def race(sides: Mapping[str, Call], clock: Clock = CLOCK) -> dict[str, list[float]]:
    """Seconds of a call in each round, by side; the order alternates."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    end = clock.now() + BUDGET
    for index in range(ROUNDS):
        if index >= LEAST_ROUNDS and clock.now() > end:
            break
        for name in list(sides) if index % 2 == 0 else list(sides)[::-1]:
            clock.rest(REST)
            found[name].append(_burst(sides[name], clock))
    return found


def _burst(call: Call, clock: Clock) -> float:
    """The median of calls in a row, but for the first, which wakes threads; of a slow call this is the only one."""
    times: list[float] = []
    end = clock.now() + BURST
    while not times or clock.now() < end:
        begin = clock.now()
        call()
        times.append(clock.now() - begin)
    return float(np.median(times[1:] or times))


def _inexact(entrants: Sequence[Entrant], options: Options) -> dict[str, str]:
    """The backends that are not exact enough, and why."""
    found = {e.backend: missed for e in entrants if (missed := missed_gate(e.error, options))}
    others = [e for e in entrants if e.backend not in found]
    best = max(others, key=lambda e: e.error.sqnr_db, default=None)
    for each in others:
        if best is not None and each.error.sqnr_db < min(best.error.sqnr_db, EXACT_DB) - TOLERANCE_DB:
            theirs = f"{TOLERANCE_DB:g} dB below the {best.error.sqnr_db:.2f} of {best.backend}"
            found[each.backend] = f"reaches {each.error.sqnr_db:.2f} dB, more than {theirs}"
    return found


def _time(entrants: Sequence[Entrant], failed: dict[str, QccError], clock: Clock) -> dict[str, Latency]:
    """The latency of each where at least two run; `failed` takes those that do not."""
    sides: dict[str, Call] = {}
    for each in entrants:
        try:
            call = each.open()
            call()
        except QccError as error:
            failed[each.backend] = error
        else:
            sides[each.backend] = call
    return {name: summarize(seconds) for name, seconds in race(sides, clock).items()} if len(sides) > 1 else {}


def _compared(times: Mapping[str, Latency], name: str, other: str) -> str:
    """How fast one is beside another: `1.31x faster than onnxruntime`."""
    ratio = times[other].median / times[name].median
    factor, word = (ratio, "faster") if ratio > 1 else (1 / ratio, "slower")
    return f"{factor:.2f}x {word} than {other}" if f"{factor:.2f}" != "1.00" else f"as fast as {other}"


def _why(times: Mapping[str, Latency], kept: str) -> str:
    """The one that is kept beside the fastest of the others, which may be faster where it is not exact enough."""
    others = [name for name in times if name != kept]
    if not others:
        return _ALONE
    second = min(others, key=lambda name: times[name].median)
    more_exact = ", but exact enough" if times[second].median < times[kept].median else ""
    return _compared(times, kept, second) + more_exact


def _record(entrant: Entrant, kept: bool, reason: str, latency: Latency | None) -> ContestRecord:
    return ContestRecord(
        backend=entrant.backend,
        kept=kept,
        reason=reason,
        sqnr_db=entrant.error.sqnr_db,
        max_abs_error=entrant.error.max_abs_error,
        latency_ms=None if latency is None else LatencyRecord(**asdict(latency)),
    )
