"""Prints what every peer takes at a shape, in turn on the same threads, and how far it is from the exact product.

    python -m benchmarks.peers [WORD ...] [--shape 4096x4096] [--m 1 16 128] [--threads 1] [--rounds 20] [--overhead]

WORD keeps the peers whose name holds it, such as `ggml` or `int4`. `--overhead` times one product of 64 x 256 a run
instead, which is little more than entering the library.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from qcc.ir import target
from qcc.ir.errors import QccError

from . import Peer, Problem, names, peers_of, time_peers


def main() -> None:
    """Build, check, time and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", help="keep the peers whose name holds one of these")
    parser.add_argument("--shape", default="4096x4096", help="N x K")
    parser.add_argument("--m", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--overhead", action="store_true")
    options = parser.parse_args()
    N, K = (64, 256) if options.overhead else map(int, options.shape.split("x"))
    cpu = target.load("cpu")
    print(f"{cpu.machine}, {options.threads} of {cpu.cores} cores, {N} x {K}, median of {options.rounds} rounds")
    for m in [1] if options.overhead else options.m:
        # What entering a library costs shows where one product is all a run does.
        problem = (_OneProduct if options.overhead else Problem)(m, N, K, options.threads)
        peers = peers_of(problem, options.words, _tell)
        if not peers:
            sys.exit("error: no peer is called that way; known are " + ", ".join(names()))
        _print(peers, options.rounds)


class _OneProduct(Problem):
    def copies(self, bytes_per_copy: int) -> tuple[int, int]:
        return 1, 1


def _tell(name: str, why: QccError) -> None:
    if "amx" not in name and "repack" not in name:  # ggml has those of few types, which says enough
        print(f"{name}: {why}")


def _print(peers: Sequence[Peer], rounds: int) -> None:
    times = time_peers(peers, rounds)
    print(f"\nM = {peers[0].problem.M}")
    print(f"{'':34} {'us':>9} {'best':>9} {'p90':>9}  {'GB/s':>5} {'GOPS':>6} {'MB':>6} {'error':>8}")
    for peer in peers:
        best, median, p90 = np.percentile(times[peer.name], [0, 50, 90])
        ops = 2 * peer.problem.M * peer.problem.N * peer.problem.K
        print(
            f"{peer.name:34} {median * 1e6:9.1f} {best * 1e6:9.1f} {p90 * 1e6:9.1f}  "
            f"{peer.bytes_per_copy / median / 1e9:5.1f} {ops / median / 1e9:6.1f} "
            f"{peer.bytes_per_copy / 1e6:6.2f} {peer.error():8.5f}"
        )


if __name__ == "__main__":
    main()
