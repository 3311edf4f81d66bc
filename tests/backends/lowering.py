"""What the tests of kernels share: a quantized program built with one kernel, beside the expansion that defines it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.backends.onnxruntime.build import build
from qcc.backends.onnxruntime.run import SessionRunner, open_folder
from qcc.ir import target
from qcc.ir.execute import Reference
from qcc.ir.kernel_task import Choice, KernelTask, Picker
from qcc.ir.program import Program
from qcc.ir.rewrite import ProgramContext
from qcc.ir.verify import compare
from qcc.passes.calibrate import calibrate
from qcc.passes.pipeline import QuantizeOptions, quantize
from tests.networks import rewritten

Feeds = Mapping[str, NDArray[Any]]


def quantized(program: Program, scheme: str, samples: Sequence[Feeds] = (), group_size: int = 0) -> Program:
    """The program in a scheme, every layer of it, activations calibrated on `samples`."""
    context = ProgramContext()
    if samples:
        context.statistics = calibrate(program, samples)
    options = QuantizeOptions(scheme, group_size, include=("re:.*",))
    return rewritten(program, *quantize(options), context=context)


def only(kernel: str) -> Picker:
    """A picker that takes one kernel and fails where it is not offered."""

    def pick(task: KernelTask, choices: Sequence[Choice]) -> Choice:
        return next(c for c in choices if c.kernel == kernel)

    return pick


def built(program: Program, kernel: str, folder: Path) -> SessionRunner:
    """The program lowered with one kernel for every layer, in ONNX Runtime."""
    folder.mkdir(parents=True, exist_ok=True)
    build(program.clone(), target.load("cpu"), folder, "weights.safetensors", only(kernel))
    return open_folder(folder, 1)


def decibels(program: Program, runner: SessionRunner, samples: Sequence[Feeds]) -> list[float]:
    """How well the lowered program computes what its expansion defines, sample by sample."""
    reference = Reference(program, threads=1)
    return [compare([reference.run(s)], [runner.run(s)]).sqnr_db for s in samples]


def inputs(*shape: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random and extreme inputs of one shape, by kind."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(shape).astype(np.float32)
    outlier = normal.copy()
    outlier.reshape(-1)[0] = 80
    return {
        "normal": normal,
        "zeros": np.zeros(shape, np.float32),
        "huge": normal * 1e4,
        "tiny": normal * 1e-6,
        "positive": np.abs(normal),
        "negative": -np.abs(normal),
        "outlier": outlier,
    }
