"""The data of a compilation: samples for calibration, and a few to verify with, which travel in the artifact."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from xdsl.ir import SSAValue

from qcc.frontend.samples import InputSpec, Sample, load_samples, random_samples
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.errors import BadInput
from qcc.ir.program import Program
from qcc.ir.types import dims_of

from .capture import Captured, input_specs, is_path
from .language import Language, decode_sample, default_text, first_sample, random_windows, text_samples
from .options import Options

_VERIFY = 4
_VERIFY_BYTES = 8 << 20
RANDOM = "random"


@dataclass(frozen=True)
class Data:
    """Samples, and where the verification samples come from, in words for the manifest."""

    calibration: Sequence[Mapping[str, np.ndarray]]
    verification: Sequence[Mapping[str, np.ndarray]]
    source: str


def load_data(captured: Captured, specs: Sequence[InputSpec], calibration: Any, options: Options) -> Data:
    """Calibration samples as the user gave them; verification samples from them, else the example, else random."""
    if captured.language is not None:
        return _language_data(captured, captured.language, calibration, options)
    bounds = index_bounds(captured.program)
    samples: Sequence[Mapping[str, np.ndarray]] = []
    source = ""
    if options.calibration == RANDOM:
        samples = random_samples(specs, count=min(8, options.calibration_limit), seed=options.seed, bounds=bounds)
        source = f"random, seed {options.seed}"
    elif isinstance(calibration, Sequence) and not isinstance(calibration, str):
        given = cast(Sequence[Mapping[str, np.ndarray]], calibration)
        samples = [_checked(dict(s), specs) for s in given][: options.calibration_limit]
        if not samples:
            raise BadInput("the calibration data is empty", hint="give at least one sample")
        source = "calibration samples"
    elif options.calibration:
        samples = load_samples(Path(options.calibration), specs, limit=options.calibration_limit, image=options.image)
        source = f"first calibration samples of {Path(options.calibration).name}"
    if samples:
        return Data(samples, _few(samples), source)
    if captured.example is not None:
        return Data([], [_checked(dict(captured.example), specs)], "example inputs")
    verification = random_samples(specs, count=2, seed=options.seed, bounds=bounds)
    return Data([], verification, f"random, seed {options.seed}: errors on real data may differ")


def described(calibration: object) -> str:
    """Calibration data in options: a path or word as it is, `samples` for samples in memory, empty for none."""
    if calibration is None:
        return ""
    if is_path(calibration):
        return os.fspath(calibration)
    samples = cast(Sequence[object], calibration) if isinstance(calibration, Sequence) else None
    if samples is None or not all(isinstance(s, Mapping) for s in samples):
        raise BadInput(
            "the calibration data is neither a path nor a list of samples",
            hint='pass a path, or samples by input name: [{"x": array}, ...]',
        )
    return "samples" if samples else ""


def _language_data(captured: Captured, language: Language, calibration: Any, options: Options) -> Data:
    """Calibration windows from a text; a prefill and a decoding step behind it to verify with."""
    limit = options.calibration_limit
    samples: Sequence[Mapping[str, np.ndarray]] = []
    if options.calibration == RANDOM:
        samples = random_windows(language, options.seed, min(8, limit))
        source = f"random tokens, seed {options.seed}"
    elif isinstance(calibration, Sequence) and not isinstance(calibration, str):
        given = cast(Sequence[Mapping[str, np.ndarray]], calibration)
        samples = [_checked(dict(s), input_specs(captured.program)) for s in given][:limit]
        source = "calibration samples"
    elif options.calibration:
        samples = text_samples(Path(options.calibration), language, limit)
        source = f"the beginning of {Path(options.calibration).name}"
    else:
        source = "topics of Python's documentation"
    own = language.load_tokenizer().encode(default_text()).ids
    ids = [int(i) for i in samples[0]["input_ids"][0]] if samples else own
    first = first_sample(ids, language)
    decode = decode_sample(captured.program, language, first)
    return Data(samples, [first, decode], f"prefill and decode over {source}")


def _few(samples: Sequence[Mapping[str, np.ndarray]]) -> Sequence[Mapping[str, np.ndarray]]:
    """The first samples, within a few megabytes."""
    kept: list[Mapping[str, np.ndarray]] = []
    size = 0
    for sample in samples[:_VERIFY]:
        size += sum(a.nbytes for a in sample.values())
        if kept and size > _VERIFY_BYTES:
            break
        kept.append(sample)
    return kept


def _checked(sample: Sample, specs: Sequence[InputSpec]) -> Sample:
    for spec in specs:
        if spec.name not in sample:
            raise BadInput(
                f"a sample has no input {spec.name!r}", hint=f"the network takes {', '.join(map(str, specs))}"
            )
        array = np.asarray(sample[spec.name])
        fits = array.ndim == len(spec.shape) and all(
            not isinstance(d, int) or d == e for d, e in zip(spec.shape, array.shape, strict=False)
        )
        if not fits or array.size == 0:
            raise BadInput(
                f"a sample of input {spec.name!r} has shape {list(array.shape)}", hint=f"the network takes {spec}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BadInput(f"a sample of input {spec.name!r} holds NaN or infinity")
        sample[spec.name] = array.astype(spec.dtype, copy=False)
    return {spec.name: sample[spec.name] for spec in specs}


def index_bounds(program: Program) -> dict[str, int]:
    """For integer inputs that index a table: how many rows it has, so that random samples stay inside."""
    bounds: dict[str, int] = {}
    for port, argument in zip(program.inputs(), program.body.args, strict=True):
        rows = [n for value in _through_casts(argument) for n in _table_rows(value)]
        if rows:
            bounds[port.name] = min(rows)
    return bounds


def _through_casts(value: SSAValue) -> list[SSAValue]:
    found = [value]
    for use in value.uses:
        op = use.operation
        if isinstance(op, OnnxOp) and op.op_type in ("Cast", "Reshape", "Unsqueeze", "Squeeze") and use.index == 0:
            found.extend(_through_casts(op.results[0]))
    return found


def _table_rows(value: SSAValue) -> list[int]:
    rows: list[int] = []
    for use in value.uses:
        op = use.operation
        if isinstance(op, OnnxOp) and op.op_type == "Gather" and use.index == 1:
            dims = dims_of(op.operands[0].type)
            extent = dims[op.integer("axis")] if dims else None
            rows.extend([extent] if isinstance(extent, int) else [])
    return rows
