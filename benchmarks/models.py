"""Size, error and latency of real networks compiled by qcc, beside ONNX Runtime on the float model, in one run.

    python -m benchmarks.models [--only digits|rec|det|cls|minilm] [--lines 200] [--rounds 30]
                                [--json FILE]

Latencies are interleaved, on one thread, medians with the 10th and 90th percentile; the float side is the original ONNX
file in ONNX Runtime with all its optimizations on. What is called error is measured in the same run, on data that
calibration did not see.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import qcc
from benchmarks.workloads import minilm, ocr
from qcc.api.bench import interleave, summarize
from qcc.backends.onnxruntime.run import SessionRunner
from qcc.backends.runtime import Artifact
from qcc.ir import target

RESULTS = Path(__file__).parent / "results"

DIGITS = Path(__file__).parents[1] / "examples" / "digits"

Feeds = dict[str, np.ndarray]


@dataclass
class Row:
    """One network under one scheme."""

    model: str
    scheme: str
    float_bytes: int
    bytes: int
    float_ms: list[float]
    ms: list[float]
    compile_seconds: float
    sqnr_db: float
    error: dict[str, float | int | str] = field(default_factory=dict[str, float | int | str])

    @property
    def size_ratio(self) -> float:
        """Bytes of the artifact's model and weights over those of the float file."""
        return self.bytes / self.float_bytes

    @property
    def speedup(self) -> float:
        """Median latency of the float model over that of the artifact."""
        return self.float_ms[1] / self.ms[1]


def digits(options: argparse.Namespace) -> list[Row]:
    """The example network: accuracy on 500 test images."""
    path = DIGITS / "digits.onnx"
    with np.load(DIGITS / "test.npz") as data, np.load(DIGITS / "labels.npz") as truth:
        images, labels = data["images"], truth["labels"]
    rows: list[Row] = []
    everything = {"include": ["re:.*"], "group_size": 32, "algorithm": "gptq"}
    variants = (("W8A8", {}), ("W8A16", {}), ("W4A16", {}), ("W4A16_ASYM", everything))
    for scheme, options_ in variants:
        artifact, seconds = _compile(path, scheme, calibration=DIGITS / "calibration.npz", **options_)
        original = SessionRunner(str(path), path.parent, 1)
        truth_rate = _accuracy(original.run({"images": images})["logits"], labels)
        rate = _accuracy(artifact(images)["logits"], labels)
        error = {"accuracy_float": truth_rate, "accuracy": rate, "points_lost": round(100 * (truth_rate - rate), 2)}
        rows.append(_row("digits", scheme, path, artifact, original, {"images": images[:1]}, seconds, options, error))
    return rows


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(axis=1) == labels).mean())


def rec(options: argparse.Namespace) -> list[Row]:
    """PP-OCRv4 recognizer: character error rate and equal texts on rendered lines."""
    path = ocr.model_path("rec")
    characters = ocr.charset(path)
    calibration = [{"x": ocr.rec_input(image)} for _, image in ocr.lines(32, seed=1)]
    lines = [(text, ocr.rec_input(image)) for text, image in ocr.lines(options.lines, seed=2)]
    original = SessionRunner(str(path), path.parent, 1)
    output = original.outputs[0]
    theirs = [ocr.decode(original.run({"x": x})[output], characters) for _, x in lines]
    rows: list[Row] = []
    for scheme, algorithm in (("W8A8", "rtn"), ("W4A16", "gptq")):
        artifact, seconds = _compile(path, scheme, calibration=calibration, algorithm=algorithm)
        ours = [ocr.decode(artifact(x)[output], characters) for _, x in lines]
        error = {
            "cer_float": round(100 * ocr.cer([(t, o) for (t, _), o in zip(lines, theirs, strict=True)]), 3),
            "cer": round(100 * ocr.cer([(t, o) for (t, _), o in zip(lines, ours, strict=True)]), 3),
            "same_text_percent": round(100 * sum(a == b for a, b in zip(theirs, ours, strict=True)) / len(lines), 1),
            "lines": len(lines),
        }
        feeds = {"x": np.ascontiguousarray(np.resize(lines[0][1], (1, 3, 48, 320)))}
        rows.append(_row("PP-OCRv4 rec", scheme, path, artifact, original, feeds, seconds, options, error))
    return rows


def det(options: argparse.Namespace) -> list[Row]:
    """PP-OCRv4 detector: overlap of the text masks (probability > 0.3) on rendered pages."""
    path = ocr.model_path("det")
    calibration = [{"x": ocr.det_input(page)} for page in ocr.pages(8, seed=1)]
    pages = [ocr.det_input(page) for page in ocr.pages(8, seed=2)]
    original = SessionRunner(str(path), path.parent, 1)
    output = original.outputs[0]
    artifact, seconds = _compile(path, "W8A8", calibration=calibration)
    overlaps: list[float] = []
    for page in pages:
        a, b = original.run({"x": page})[output] > 0.3, artifact(page)[output] > 0.3
        overlaps.append(float((a & b).sum() / max(1, (a | b).sum())))
    error = {"mask_overlap": round(float(np.mean(overlaps)), 4), "pages": len(pages)}
    return [_row("PP-OCRv4 det", "W8A8", path, artifact, original, {"x": pages[0]}, seconds, options, error)]


def cls(options: argparse.Namespace) -> list[Row]:
    """PP-OCR direction classifier: the same answer as the float model."""
    path = ocr.model_path("cls")
    calibration = [{"x": ocr.cls_input(turned(image, i))} for i, (_, image) in enumerate(ocr.lines(32, seed=1))]
    inputs = [ocr.cls_input(turned(image, i)) for i, (_, image) in enumerate(ocr.lines(options.lines, seed=2))]
    original = SessionRunner(str(path), path.parent, 1)
    output = original.outputs[0]
    artifact, seconds = _compile(path, "W8A8", calibration=calibration)
    same = sum(original.run({"x": x})[output].argmax() == artifact(x)[output].argmax() for x in inputs)
    error = {"same_answer_percent": round(100 * float(same) / len(inputs), 1), "lines": len(inputs)}
    return [_row("PP-OCR cls", "W8A8", path, artifact, original, {"x": inputs[0]}, seconds, options, error)]


def turned(image: np.ndarray, index: int) -> np.ndarray:
    """Every second picture upside down."""
    return np.ascontiguousarray(image[::-1, ::-1]) if index % 2 else image


def sentence_encoder(options: argparse.Namespace) -> list[Row]:
    """MiniLM through torch.export with dynamic batch and length: cosine of sentence vectors to the float model's."""
    from qcc.frontend.torch_export import to_onnx

    encoder = minilm.load()
    dynamic = {"ids": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}}
    example = minilm.encode(minilm.sentences(2, seed=1))
    texts = minilm.sentences(options.lines, seed=2)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in example.items()}
        path = to_onnx(encoder, tensors, folder=folder, dynamic=dynamic)
        # ONNX Runtime 1.31 does not run Attention with a padding mask: its side gets an export at opset 20, without it.
        plain = to_onnx(encoder, tensors, folder=Path(folder) / "opset20", dynamic=dynamic, opset=20)
        original = SessionRunner(str(plain), plain.parent, 1)
        output = original.outputs[0]
        batches = [minilm.encode(texts[i : i + 8]) for i in range(0, len(texts), 8)]
        reference = np.concatenate([original.run(b)[output] for b in batches])
        calibration = [minilm.encode(minilm.sentences(8, seed=s)) for s in range(3, 7)]
        gptq = {"calibration": calibration, "algorithm": "gptq"}
        variants = (
            ("W8A8", {"calibration": calibration}),
            ("W8A8_DYNAMIC", {}),
            ("W4A16", {}),
            ("W4A16", gptq),
            ("W4A8", gptq),
        )
        for scheme, needs in variants:
            artifact, seconds = _compile(path, scheme, **needs)
            cosines = minilm.cosine(reference, np.concatenate([artifact(b)[output] for b in batches]))
            error = {"cosine_mean": round(float(cosines.mean()), 5), "cosine_least": round(float(cosines.min()), 5)}
            feeds = minilm.encode(texts[:1], length=128)
            rows.append(_row("MiniLM-L6", scheme, plain, artifact, original, feeds, seconds, options, error))
    return rows


def _compile(model: Path, scheme: str, **options: Any) -> tuple[Artifact, float]:
    """Any: keyword arguments of `qcc.compile`."""
    begin = time.perf_counter()
    artifact = qcc.compile(model, scheme=scheme, backend="onnxruntime", **options)
    return artifact, time.perf_counter() - begin


def _row(
    model: str,
    scheme: str,
    path: Path,
    artifact: Artifact,
    original: SessionRunner,
    feeds: Feeds,
    seconds: float,
    options: argparse.Namespace,
    error: dict[str, float | int | str],
) -> Row:
    ours = Artifact(artifact.folder, artifact.manifest, threads=1)
    runner = ours.runner
    times = interleave({"float": lambda: original.run(feeds), "ours": lambda: runner.run(feeds)}, options.rounds)
    float_ms, ms = ([s.p10, s.median, s.p90] for s in (summarize(times["float"]), summarize(times["ours"])))
    float_bytes = sum(p.stat().st_size for p in path.parent.glob(f"{path.name}*"))
    algorithm = artifact.manifest.options["algorithm"]
    row = Row(
        model,
        scheme if algorithm == "rtn" else f"{scheme} {algorithm}",
        float_bytes,
        artifact.manifest.bytes,
        float_ms,
        ms,
        seconds,
        artifact.manifest.error.sqnr_db,
        error,
    )
    print(_line(row), flush=True)
    return row


def _line(row: Row) -> str:
    error = ", ".join(f"{k} {v}" for k, v in row.error.items())
    sizes = f"{row.bytes / 1e6:8.2f} MB {row.size_ratio:5.2f}x"
    times = f"{row.float_ms[1]:8.2f} -> {row.ms[1]:8.2f} ms ({row.speedup:4.2f}x)"
    return f"{row.model:13} {row.scheme:13} {sizes}  {times}  {row.compile_seconds:5.1f} s  {error}"


_WORKLOADS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "digits": digits,
    "rec": rec,
    "det": det,
    "cls": cls,
    "minilm": sentence_encoder,
}


def main() -> None:
    """Run the workloads, print a line each, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=sorted(_WORKLOADS), action="append")
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, default=RESULTS / "models.json", help="write the result here")
    options = parser.parse_args()
    rows = [row for name in options.only or _WORKLOADS for row in _WORKLOADS[name](options)]
    cpu = target.load("cpu")
    machine = f"{cpu.machine}, {cpu.cores} cores, {' '.join(cpu.isa)}"
    if options.json:
        result = {
            "machine": machine,
            "python": platform.python_version(),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "rows": [{**asdict(r), "size_ratio": round(r.size_ratio, 4), "speedup": round(r.speedup, 3)} for r in rows],
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
