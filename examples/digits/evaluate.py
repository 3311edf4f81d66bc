"""Compare a compiled digit classifier with its float model on the 500 test images: `evaluate.py ARTIFACT`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime

import qcc

HERE = Path(__file__).parent


def main(artifact: Path) -> None:
    """Print the accuracy of both and how often they agree."""
    with np.load(HERE / "test.npz") as test, np.load(HERE / "labels.npz") as answers:
        images, labels = test["images"], answers["labels"]
    session = onnxruntime.InferenceSession(HERE / "digits.onnx", providers=["CPUExecutionProvider"])
    float_guess = session.run(["logits"], {"images": images})[0].argmax(1)
    compiled_guess = qcc.load(artifact)({"images": images})["logits"].argmax(1)
    print(f"float      {(float_guess == labels).mean():7.2%}")
    print(f"{artifact.name:10} {(compiled_guess == labels).mean():7.2%}")
    print(f"agreement  {(float_guess == compiled_guess).mean():7.2%}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/digits/evaluate.py ARTIFACT")
    main(Path(sys.argv[1]))
