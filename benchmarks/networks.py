"""Whole networks by both backends for processors, interleaved, with the time that each kind of operation takes.

    python -m benchmarks.networks [--rounds 20] [--threads 1,2] [--json FILE]

PP-OCRv4 rec and MiniLM-L6 in W8A8. ONNX Runtime runs the artifact of its own backend: QDQ with calibrated scales, and
for MiniLM also W8A8_DYNAMIC, whichever is faster. Both backends compile the same quantized IR; how far their results
are from each other is printed beside the times. A side runs once before it is timed, so that its threads are awake, and
rests behind it. The breakdown is of one thread: TVM's virtual machine tells the time before and after every call, which
adds about a microsecond to each.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import qcc
from benchmarks.peers import REST_SECONDS
from benchmarks.workloads import minilm, ocr
from qcc.backends.native import isa
from qcc.backends.runtime import Artifact
from qcc.ir import target
from qcc.ir.verify import compare

RESULTS = Path(__file__).parent / "results"
REACH = {"PP-OCRv4 rec": 1.0, "MiniLM-L6": 1.2}
Feeds = Mapping[str, np.ndarray]


def recognizer(folder: Path) -> tuple[dict[str, Path], dict[str, Feeds]]:
    """The artifacts by side, and a line of 320 pixels."""
    calibration = [{"x": ocr.rec_input(image)} for _, image in ocr.lines(32, seed=1)]
    sides = {
        side: _compile(
            ocr.model_path("rec"), folder / f"rec.{side}", backend=backend, scheme="W8A8", calibration=calibration
        )
        for side, backend in (("qcc tvm", "tvm"), ("ort W8A8", "onnxruntime"))
    }
    line = np.random.default_rng(0).uniform(-1, 1, (1, 3, 48, 320)).astype(np.float32)
    return sides, {"1 x 3 x 48 x 320": {"x": line}}


def encoder(folder: Path) -> tuple[dict[str, Path], dict[str, Feeds]]:
    """The artifacts by side, and 1 and 8 sentences of 128 tokens."""
    import torch

    from qcc.frontend.torch_export import to_onnx

    example = {name: torch.from_numpy(array) for name, array in minilm.encode(minilm.sentences(2, seed=1)).items()}
    dynamic = {"ids": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}}
    model = to_onnx(minilm.load(), example, folder=folder, dynamic=dynamic)
    calibration = [minilm.encode(minilm.sentences(8, seed=s)) for s in range(3, 7)]
    fixed: dict[str, Any] = {"scheme": "W8A8", "calibration": calibration}
    sides = {
        "qcc tvm": _compile(model, folder / "minilm.tvm", backend="tvm", **fixed),
        "ort W8A8": _compile(model, folder / "minilm.ort", backend="onnxruntime", **fixed),
        "ort W8A8_DYNAMIC": _compile(model, folder / "minilm.dynamic", backend="onnxruntime", scheme="W8A8_DYNAMIC"),
    }
    texts = minilm.sentences(8, seed=2)
    return sides, {f"{n} x 128": minilm.encode(texts[:n], length=128) for n in (1, 8)}


def _compile(model: Path, output: Path, **options: Any) -> Path:
    """Any: keyword arguments of `qcc.compile`."""
    qcc.compile(model, output=output, **options)
    return output


NETWORKS: dict[str, Callable[[Path], tuple[dict[str, Path], dict[str, Feeds]]]] = {
    "PP-OCRv4 rec": recognizer,
    "MiniLM-L6": encoder,
}


def measure(sides: Mapping[str, Path], feeds: Feeds, threads: int, rounds: int) -> dict[str, Any]:
    """Milliseconds by side, and the agreement of the first two. Any: JSON."""
    artifacts: dict[str, Artifact] = {name: qcc.load(path, threads=threads) for name, path in sides.items()}
    results = {name: artifact(feeds) for name, artifact in artifacts.items()}
    first, second = list(results.values())[:2]
    times: dict[str, list[float]] = {name: [] for name in artifacts}
    for index in range(rounds):
        for name in list(artifacts)[:: 1 if index % 2 else -1]:
            artifacts[name](feeds)
            begin = time.perf_counter()
            artifacts[name](feeds)
            times[name].append(1e3 * (time.perf_counter() - begin))
            time.sleep(REST_SECONDS)
    ms = {name: [float(t) for t in np.percentile(each, [10, 50, 90])] for name, each in times.items()}
    rivals = [each[1] for name, each in ms.items() if name != "qcc tvm"]
    return {"ms": ms, "ratio": min(rivals) / ms["qcc tvm"][1], "agreement_db": compare([first], [second]).sqnr_db}


def breakdown(path: Path, feeds: Feeds) -> dict[str, float]:
    """Milliseconds of each kind of call on one thread."""
    artifact = qcc.load(path, threads=1)
    return breakdown_of(artifact, lambda: artifact(feeds))


def breakdown_of(artifact: Artifact, run: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of each kind of call that `run` makes, of the fastest of five runs."""
    found: list[dict[str, float]] = []
    for _ in range(5):
        calls: dict[str, float] = {}
        run()
        artifact.runner.timed(calls)  # pyright: ignore[reportAttributeAccessIssue]
        run()
        artifact.runner.timed(None)  # pyright: ignore[reportAttributeAccessIssue]
        kinds: dict[str, float] = {}
        for name, seconds in calls.items():
            kinds[_kind(name)] = kinds.get(_kind(name), 0.0) + 1e3 * seconds
        found.append(kinds)
    best = min(found, key=lambda kinds: sum(kinds.values()))
    return dict(sorted(best.items(), key=lambda item: -item[1]))


def _kind(name: str) -> str:
    """What a function of the virtual machine does, from its name."""
    if name.startswith("call_qcc_"):
        kind = name.split("_")[2]
        named = {"conv": "convolutions", "linear": "linear layers", "attention": "attention"}
        return named.get(kind, {"embedding": "embedding", "gather": "embedding"}.get(kind, "rows"))
    return "memory and shapes" if name.startswith("vm.") else "TVM's loops"


def main() -> None:
    """Measure, print a line each, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--json", type=Path, default=RESULTS / "networks.json", help="write the result here")
    options = parser.parse_args()
    host = target.load("cpu")
    rows: list[dict[str, Any]] = []
    for network, make in NETWORKS.items():
        with tempfile.TemporaryDirectory() as scratch:
            sides, inputs = make(Path(scratch))
            for shape, feeds in inputs.items():
                for threads in [int(t) for t in options.threads.split(",") if int(t) <= host.cores]:
                    row = {"network": network, "shape": shape, "threads": threads}
                    row |= measure(sides, feeds, threads, options.rounds)
                    row["breakdown"] = breakdown(sides["qcc tvm"], feeds) if threads == 1 else {}
                    rows.append(row)
                    print(show(row), flush=True)
    result = {
        "machine": f"{host.machine}, {host.cores} cores, {isa.best(host).summary}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("numpy", "onnxruntime", "apache-tvm")},
        "rounds": options.rounds,
        "reach": REACH,
        "rows": rows,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")


def show(row: Mapping[str, Any]) -> str:
    """A row as a person reads it. Any: JSON."""
    sides = ", ".join(f"{name} {m:.2f} ({low:.2f} to {high:.2f})" for name, (low, m, high) in row["ms"].items())
    parts: Sequence[str] = [f"{kind} {ms:.2f}" for kind, ms in row["breakdown"].items()]
    missed = "" if row["ratio"] >= REACH[row["network"]] else "  MISS"
    head = f"{row['network']} {row['shape']}, {row['threads']} threads: {sides} ms: {row['ratio']:.2f}x{missed}; "
    return head + f"{row['agreement_db']:.1f} dB between the backends" + (f"; {', '.join(parts)}" if parts else "")


if __name__ == "__main__":
    main()
