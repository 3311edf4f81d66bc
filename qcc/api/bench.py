"""`bench`: how long one call takes, beside ONNX Runtime on the float model where it is given, in turn every round."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qcc.backends.artifact import SAMPLES
from qcc.backends.onnxruntime.run import SessionRunner
from qcc.backends.runtime import Artifact, load
from qcc.backends.samples import StoredSamples
from qcc.ir.errors import BadInput

from .bench_language import Rate, Rates, bench_language

BASELINES = ("onnxruntime", "llama.cpp")


@dataclass(frozen=True)
class Latency:
    """Milliseconds a call: median, 10th and 90th percentile over the rounds."""

    median: float
    p10: float
    p90: float


@dataclass(frozen=True)
class BenchReport:
    """The artifact's latency and that of each baseline, on the same inputs and threads."""

    latency_ms: Latency
    """Of a language model: of one decoding step."""
    baselines: dict[str, Latency]
    rounds: int
    threads: int
    machine: str
    rates: dict[str, Rates] = field(default_factory=dict[str, Rates])
    """Tokens a second of a language model, by side: `artifact` and the baselines."""


def bench(
    artifact: Artifact | str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    against: Sequence[str] = (),
    threads: int = 1,
    rounds: int = 30,
    inputs: Mapping[str, np.ndarray] | None = None,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
) -> BenchReport:
    """Time an artifact. `against=("onnxruntime",)` also times the float ONNX file `model`, in turn with it.

    Inputs are the first stored sample unless given. Both sides are warmed up; each round times every side once. A
    language model is timed in prefill and decode, and `against=("llama.cpp",)` times the GGUF file `model` beside it.
    """
    unknown = [name for name in against if name not in BASELINES]
    if unknown:
        raise BadInput(f"no baseline is called {unknown[0]!r}", hint=f"known baselines: {', '.join(BASELINES)}")
    if against and model is None:
        raise BadInput("a baseline needs a model", hint="pass --model MODEL.onnx, or --model MODEL.gguf for llama.cpp")
    if rounds < 1 or threads < 0:
        raise BadInput("rounds must be at least 1 and threads not negative")
    folder = artifact.folder if isinstance(artifact, Artifact) else Path(artifact)
    ours = load(folder, threads=threads)
    if (ours.manifest.language is not None) != ("llama.cpp" in against) and against:
        raise BadInput(
            f"{against[0]} is no baseline for this artifact",
            hint="llama.cpp for language models, onnxruntime for others",
        )
    if ours.manifest.language is not None and inputs is None:
        path = Path(model) if model is not None and against else None
        rates = bench_language(
            ours, path, threads=threads, rounds=rounds, prompt_tokens=prompt_tokens, new_tokens=new_tokens
        )
        steps = {name: _step_time(rate.decode_tokens_per_s) for name, rate in rates.items()}
        return BenchReport(steps.pop("artifact"), steps, rounds, threads, ours.manifest.machine, rates)
    feeds = dict(inputs) if inputs is not None else _stored(ours)
    run = ours.runner.run  # what `ours(...)` calls after checking its arguments; the baseline is called in the same way
    sides: dict[str, Callable[[], object]] = {"artifact": lambda: run(feeds)}
    if model is not None and against:
        path = Path(model)
        if not path.is_file():
            raise BadInput(f"{path}: no such file", hint="give the float .onnx file")
        runner = SessionRunner(str(path), path.parent, threads)
        sides["onnxruntime"] = lambda: runner.run(feeds)
    times = interleave(sides, rounds)
    latencies = {name: summarize(values) for name, values in times.items()}
    return BenchReport(latencies.pop("artifact"), latencies, rounds, threads, ours.manifest.machine)


def _step_time(rate: Rate) -> Latency:
    return Latency(1e3 / rate.median, 1e3 / rate.p90, 1e3 / rate.p10)


def interleave(sides: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 3) -> dict[str, list[float]]:
    """Seconds of each call, side by side in every round, in alternating order."""
    for call in sides.values():
        for _ in range(warmup):
            call()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds):
        order = list(sides) if index % 2 == 0 else list(sides)[::-1]
        for name in order:
            begin = time.perf_counter()
            sides[name]()
            times[name].append(time.perf_counter() - begin)
    return times


def summarize(seconds: Sequence[float]) -> Latency:
    """Median and spread in milliseconds."""
    p10, median, p90 = (float(v) * 1e3 for v in np.percentile(seconds, [10, 50, 90]))
    return Latency(median, p10, p90)


def _stored(artifact: Artifact) -> dict[str, np.ndarray]:
    stored = StoredSamples.open(
        artifact.folder / SAMPLES, [p.name for p in artifact.inputs], [p.name for p in artifact.outputs]
    )
    return dict(stored.inputs[0])
