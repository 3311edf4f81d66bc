"""Networks in fixed point for FPGAs beside the float model: size, nodes of the form, how often the answer is the same.

    python -m benchmarks.fpga [--only digits|cls] [--lines 500] [--json FILE]

What is run is the QDQ form on ONNX Runtime, the arithmetic that hardware is to match, on data that calibration did not
see. Each network stands there three times: as the scheme makes it, with scales that clip nothing (`--observer minmax`:
powers of two rounded up), and without the equalization of layers.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import numpy as np

import qcc
from benchmarks.models import DIGITS, RESULTS, turned
from benchmarks.workloads import ocr
from qcc.backends.onnxruntime.run import SessionRunner
from qcc.backends.runtime import Artifact
from qcc.ir import target
from qcc.passes.equalize_layers import EqualizeLayers

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Network:
    """A float model, samples to calibrate with, inputs to test with and their labels."""

    name: str
    path: Path
    calibration: Sequence[Feeds]
    inputs: Sequence[Feeds]
    labels: np.ndarray


@dataclass(frozen=True)
class Row:
    """One network as it was compiled."""

    model: str
    variant: str
    float_bytes: int
    bytes: int
    nodes_held: int
    nodes_skipped: int
    sqnr_db: float
    samples: int
    same_answer_percent: float
    right_float_percent: float
    right_percent: float


def digits() -> Network:
    """The digit classifier of the examples on its whole test set."""
    calibration, test = (np.load(DIGITS / f"{name}.npz")["images"] for name in ("calibration", "test"))
    labels = np.load(DIGITS / "labels.npz")["labels"]
    return Network("digits", DIGITS / "digits.onnx", _single(calibration), _single(test), labels)


def cls(lines: int = 500) -> Network:
    """The PP-OCR direction classifier on rendered lines of text, every second one upside down."""
    calibration, inputs = (
        [{"x": ocr.cls_input(turned(image, i))} for i, (_, image) in enumerate(ocr.lines(count, seed=seed))]
        for count, seed in ((32, 1), (lines, 2))
    )
    return Network("PP-OCR cls", ocr.model_path("cls"), calibration, inputs, np.arange(lines) % 2)


def compare(network: Network, variant: str = "XINT8", **options: str) -> Row:
    """Compile for an FPGA and run both models on every input."""
    artifact = qcc.compile(network.path, target="fpga", calibration=network.calibration, **options)  # type: ignore[arg-type]
    original = SessionRunner(str(network.path), network.path.parent, 1)
    expected = _answers(original.run, network.inputs)
    found = _answers(artifact, network.inputs)
    manifest = artifact.manifest
    actions = [d.action for d in manifest.decisions]
    return Row(
        network.name,
        variant,
        manifest.float_bytes,
        manifest.bytes,
        actions.count("fixed point"),
        actions.count("skipped"),
        round(manifest.error.sqnr_db, 1),
        len(expected),
        _percent(expected == found),
        _percent(expected == network.labels),
        _percent(found == network.labels),
    )


@contextmanager
def unequalized() -> Iterator[None]:
    """Layers keep their ranges."""
    with mock.patch.object(EqualizeLayers, "run"):
        yield


def _single(images: np.ndarray) -> list[Feeds]:
    return [{"images": images[i : i + 1]} for i in range(len(images))]


def _answers(run: Artifact | Callable[[Feeds], Feeds], inputs: Sequence[Feeds]) -> np.ndarray:
    return np.array([next(iter(run(feeds).values())).argmax() for feeds in inputs])


def _percent(same: np.ndarray) -> float:
    return round(100 * float(np.mean(same)), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=("digits", "cls"))
    parser.add_argument("--lines", type=int, default=500, help="pictures for the direction classifier")
    parser.add_argument("--json", type=Path, default=RESULTS / "fpga.json")
    options = parser.parse_args()
    makers = {"digits": digits, "cls": lambda: cls(options.lines)}
    rows: list[Row] = []
    print("network     variant                               size  held  float     dB    same   right  of float")
    for name, make in makers.items():
        if options.only not in (None, name):
            continue
        network = make()
        for variant, observer, context in (
            ("XINT8", "mse", nullcontext()),
            ("scales rounded up", "minmax", nullcontext()),
            ("layers not equalized", "mse", unequalized()),
        ):
            with context:
                row = compare(network, variant, observer=observer)
            rows.append(row)
            size = f"{row.bytes / 1e3:.1f} kB {row.bytes / row.float_bytes:.2f}x"
            print(
                f"{row.model:12}{row.variant:26}{size:>16}{row.nodes_held:6}{row.nodes_skipped:7}{row.sqnr_db:7.1f}"
                f"{row.same_answer_percent:7.1f}%{row.right_percent:7.1f}%{row.right_float_percent:9.1f}%"
            )
    machine = {
        "machine": target.load("cpu").machine,
        "python": platform.python_version(),
        "ran_on": "ONNX Runtime, CPU",
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({**machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
