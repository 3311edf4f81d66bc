"""Time a language model: tokens a second in prefill and in decode, in turn with llama.cpp on a GGUF file.

Every round runs a prompt of the same length through each side, from an empty cache, and then as many single tokens;
what is timed is the network alone, not tokenizing or sampling. llama.cpp is `xllamacpp`, its server in this process,
which tells its own times of the same two phases.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcc.backends.generate import Decoder, prefill
from qcc.backends.runtime import Artifact
from qcc.ir.errors import BadInput, MissingExtra


@dataclass(frozen=True)
class Rate:
    """Tokens a second: median, 10th and 90th percentile over the rounds."""

    median: float
    p10: float
    p90: float


@dataclass(frozen=True)
class Rates:
    """Both phases of a side."""

    prefill_tokens_per_s: Rate
    decode_tokens_per_s: Rate


_Phases = tuple[float, float]
"""Seconds of prefill and of decode."""


def bench_language(
    artifact: Artifact, gguf: Path | None, *, threads: int, rounds: int, prompt_tokens: int, new_tokens: int
) -> dict[str, Rates]:
    """The rates of `artifact`, and of `llama.cpp` where a GGUF file is given, over `rounds` rounds in turn."""
    record = artifact.language
    if prompt_tokens < 1 or new_tokens < 1 or prompt_tokens + new_tokens > record.context:
        raise BadInput(
            f"{prompt_tokens} and {new_tokens} tokens do not fit the model's {record.context} positions",
            hint="lower --prompt-tokens or --new-tokens",
        )
    ids = [int(i) for i in np.random.default_rng(0).integers(0, record.vocabulary, prompt_tokens)]
    decoder = artifact.decoder(prompt_tokens + new_tokens)
    sides: dict[str, Callable[[], _Phases]] = {"artifact": lambda: ours(decoder, ids, new_tokens)}
    if gguf is not None:
        server = llama_cpp(gguf, threads, prompt_tokens + new_tokens)
        sides["llama.cpp"] = lambda: theirs(server, ids, new_tokens)
    found: dict[str, list[_Phases]] = {name: [] for name in sides}
    for index in range(rounds + 1):
        for name in list(sides) if index % 2 == 0 else list(sides)[::-1]:
            phases = sides[name]()
            if index:  # the first round warms up
                found[name].append(phases)
    return {
        name: Rates(_rate(prompt_tokens, [p for p, _ in times]), _rate(new_tokens, [d for _, d in times]))
        for name, times in found.items()
    }


def _rate(tokens: int, seconds: list[float]) -> Rate:
    low, median, high = (float(v) for v in np.percentile([tokens / s for s in seconds], [10, 50, 90]))
    return Rate(median, low, high)


def ours(decoder: Decoder, ids: list[int], count: int) -> _Phases:
    decoder.rewind(0)
    begin = time.perf_counter()
    logits = prefill(decoder, ids)
    middle = time.perf_counter()
    for _ in range(count):
        logits = decoder.step([int(np.argmax(logits))])[-1]
    return middle - begin, time.perf_counter() - middle


def llama_cpp(gguf: Path, threads: int, context: int) -> Any:
    """llama.cpp's server. Any: xllamacpp has no stubs."""
    try:
        xllamacpp: Any = importlib.import_module("xllamacpp")
    except ImportError as error:
        raise MissingExtra("timing llama.cpp needs the package xllamacpp", hint="pip install xllamacpp") from error
    if not gguf.is_file():
        raise BadInput(f"{gguf}: no such file", hint="give the .gguf file that llama.cpp is to run with --model")
    options = xllamacpp.CommonParams()
    options.model.path = str(gguf)
    options.n_ctx, options.n_parallel, options.verbosity = context + 8, 1, -1  # and no log
    if threads:
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(options)


def theirs(server: Any, ids: list[int], count: int) -> _Phases:
    """Any: parsed JSON."""
    request = {"prompt": ids, "n_predict": count, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
    timings: dict[str, Any] = server.handle_completions(request)["timings"]
    if (timings["prompt_n"], timings["predicted_n"]) != (len(ids), count):
        raise BadInput(
            f"llama.cpp ran {timings['prompt_n']} and {timings['predicted_n']} tokens, not {len(ids)} and {count}",
            hint="give another --prompt-tokens",
        )
    return timings["prompt_ms"] / 1e3, timings["predicted_ms"] / 1e3
