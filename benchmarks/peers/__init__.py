"""What others have for `y[M, N] = x[M, K] @ W[N, K]^T` with a quantized W on a CPU, all behind one interface.

    python -m benchmarks.peers [WORD ...] [--shape 4096x4096] [--m 1 16 128] [--threads 1] [--rounds 20]

`peers_of` builds all of them at a shape and `make` one; `time_peers` times several in turn. x and y are f32 and
whatever a peer does to x, quantization included, is in its time. A peer owns as many copies of its weight as the
caches cannot hold and walks through them. Its numbers are checked against a float64 product with its own weights,
decoded by someone else's code where there is one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from types import ModuleType

import numpy as np

from qcc.ir.errors import BadInput, CheckFailed, MissingExtra, NotSupported, QccError

LARGEST_ERROR = 0.02
"""Of a norm; int8 activations by row are off by half a percent, by tensor by one."""
COLD_BYTES = 96 << 20
"""What all copies of a weight take at least: three times the largest cache of a desktop or a slice of a server."""
MAX_COPIES = 512
"""Tiny weights stay in the caches instead of making graphs of thousands of nodes."""
RUN_SECONDS = 4e-3
"""What one run takes at least, where there are copies enough: waking a thread or entering a library is then < 1%."""
REST_SECONDS = 5e-3
"""How long a library's threads may go on spinning after its last run."""
FAST_BYTES_PER_S, FAST_OPS_PER_S = 25e9, 400e9
"""A core at its best, from which the length of a run is guessed."""


@dataclass(frozen=True)
class Problem:
    """The shape of a product, the threads, and the seed of its numbers, which are normal."""

    M: int
    N: int
    K: int
    threads: int = 1
    seed: int = 0

    def x(self) -> np.ndarray:
        """Activations, f32 [M, K]."""
        return np.random.default_rng(self.seed + 1).standard_normal((self.M, self.K), np.float32)

    def w(self) -> np.ndarray:
        """The weight before its quantization, f32 [N, K]; read only, as it is kept for the next peer."""
        return _normal(self.N, self.K, self.seed)

    def copies(self, bytes_per_copy: int) -> tuple[int, int]:
        """The copies of the weight to hold, and the products one run computes, which divide them."""
        copies = min(MAX_COPIES, math.ceil(COLD_BYTES / bytes_per_copy))
        seconds = max(bytes_per_copy / FAST_BYTES_PER_S, 2 * self.M * self.N * self.K / FAST_OPS_PER_S) / self.threads
        products = min(copies, max(1, math.ceil(RUN_SECONDS / seconds)))
        return math.ceil(copies / products) * products, products


@dataclass(frozen=True)
class Peer:
    """One way of computing a product, ready to run."""

    name: str
    problem: Problem
    bytes_per_copy: int
    """Packed bytes of one weight, scales and zero points included."""
    copies: int
    products: int
    """How many products one `run` computes, with as many copies: divide its time by it."""
    run: Callable[[int], object]
    """`run(i)` computes y for the i-th run of copies, counted round and round."""
    result: Callable[[], np.ndarray]
    """The last y of the last run, f32 [M, N]."""
    decode: Callable[[], np.ndarray]
    """The weight as the peer holds it, in floats [N, K]."""
    rest: Callable[[], None] = lambda: time.sleep(REST_SECONDS)
    """To be called after the last of several runs: its idle threads no longer spin when it returns."""

    @property
    def threads(self) -> int:
        """The threads a run takes."""
        return self.problem.threads

    def error(self) -> float:
        """The norm of what the last result is off by, relative to the exact product's."""
        exact = self.problem.x().astype(np.float64) @ self.decode().astype(np.float64).T
        return float(np.linalg.norm(self.result() - exact) / np.linalg.norm(exact))


@lru_cache(maxsize=1)
def _normal(N: int, K: int, seed: int) -> np.ndarray:
    w = np.random.default_rng(seed).standard_normal((N, K), np.float32)
    w.flags.writeable = False
    return w


_FAMILIES = {"ort": "onnxruntime_matmul", "ggml": "ggml", "xllamacpp": "ggml", "torch": "torch_matmul"}
"""The first word of a name, and the module that builds it: each imports its library by itself."""


def names() -> tuple[str, ...]:
    """Every peer's name."""
    return tuple(name for word in _FAMILIES for name in family(word))


def family(word: str) -> tuple[str, ...]:
    """The names that begin with one of `ort`, `ggml` (the native build), `xllamacpp` (the wheel) and `torch`."""
    return tuple(name for name in _module(_FAMILIES[word]).NAMES if name.split()[0] == word)


def peers_of(
    problem: Problem, words: Sequence[str] = (), skipped: Callable[[str, QccError], object] = lambda name, why: None
) -> list[Peer]:
    """Every peer there is at a shape, whose name holds one of `words` if any are given; each has run and been checked.

    `skipped` hears of those that are not there. CheckFailed where a peer computes something else.
    """
    found: list[Peer] = []
    for name in names():
        if words and not any(word in name for word in words):
            continue
        try:
            peer = make(name, problem)
        except (NotSupported, MissingExtra) as error:
            skipped(name, error)
            continue
        peer.run(0)
        if (off := peer.error()) > LARGEST_ERROR:
            raise CheckFailed(f"{name} is {off:.1%} off at {problem}")
        found.append(peer)
    return found


def make(name: str, problem: Problem) -> Peer:
    """Build a peer, its weights quantized and packed.

    MissingExtra where its library is missing, NotSupported where it has no such form at this shape.
    """
    word = name.partition(" ")[0]
    if word not in _FAMILIES or name not in family(word):
        raise BadInput(f"no peer is called {name!r}", hint="python -m benchmarks.peers lists them")
    peer: Peer = _module(_FAMILIES[word]).make(name, problem)
    return peer


def _module(name: str) -> ModuleType:
    return import_module(f".{name}", __name__)


def time_peers(peers: Sequence[Peer], rounds: int, round_seconds: float = 0.02) -> Mapping[str, list[float]]:
    """Seconds a product of each, one figure a round, the peers in turn and the order reversed every other round.

    A round of a peer is as many runs as fill `round_seconds`, at least one.
    """
    runs = {peer.name: 1 for peer in peers}
    for peer in peers:
        begin = time.perf_counter()
        peer.run(0)
        first = time.perf_counter() - begin
        begin = time.perf_counter()
        for i in range(1, 2 if first > round_seconds else 4):
            peer.run(i)
        runs[peer.name] = max(1, round(round_seconds / ((time.perf_counter() - begin) / i)))
        peer.rest()
    times: dict[str, list[float]] = {peer.name: [] for peer in peers}
    at = dict.fromkeys(times, 0)
    for index in range(rounds):
        for peer in peers if index % 2 == 0 else peers[::-1]:
            count, first_run = runs[peer.name], at[peer.name]
            begin = time.perf_counter()
            for i in range(first_run, first_run + count):
                peer.run(i)
            seconds = time.perf_counter() - begin
            peer.rest()
            at[peer.name] += count
            times[peer.name].append(seconds / count / peer.products)
    return times
