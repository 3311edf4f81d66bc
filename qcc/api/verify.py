"""`verify`: is an artifact whole, does it still compute what it computed, and which layer is worst."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcc.backends.artifact import SAMPLES, changed_files, read_manifest
from qcc.backends.onnxruntime.run import open_with_values
from qcc.backends.runtime import Artifact
from qcc.backends.samples import StoredSamples, spot_values
from qcc.frontend.samples import hash_samples, random_samples
from qcc.ir.errors import BadInput
from qcc.ir.execute import run_all
from qcc.ir.rewrite import ProgramContext
from qcc.ir.verify import Comparison, Difference, compare
from qcc.passes import pipeline

from .capture import capture, input_specs
from .data import index_bounds
from .language import step_samples
from .options import Options, check_gates


@dataclass(frozen=True)
class LayerError:
    """A quantized layer and the error of its result against the float model."""

    node: str
    sqnr_db: float


@dataclass(frozen=True)
class VerifyReport:
    """`ok` says whether the files are unchanged and the gates hold.

    `layers` has the error of each layer in the manifest's order, None where nothing is stored to compare with.
    """

    ok: bool
    sqnr_db: float
    max_abs_error: float
    worst: tuple[LayerError, ...]
    files_ok: bool
    changed: tuple[str, ...]
    failures: tuple[str, ...]
    ran_on: tuple[str, ...]
    not_run: tuple[str, ...]
    layers: tuple[LayerError | None, ...] = ()


def verify(
    artifact: Artifact | str | os.PathLike[str],
    against: object = None,
    *,
    samples: int = 4,
    min_sqnr: float | None = None,
    max_error: float | None = None,
    seed: int = 1,
) -> VerifyReport:
    """Recompute the error of an artifact.

    Without `against` on the samples and float outputs stored in it; with `against` (a model, as `compile` takes it) on
    `samples` new random inputs that both run. `min_sqnr` in dB; without it the artifact must be within 1 dB of the
    figure in its manifest. Raises `BadInput` where the folder is no artifact; a failed check is a report with
    `ok=False`.
    """
    check_gates(min_sqnr, max_error)
    folder = artifact.folder if isinstance(artifact, Artifact) else Path(artifact)
    manifest = read_manifest(folder)
    changed = tuple(changed_files(folder, manifest))
    ran_on, not_run = tuple(manifest.ran_on), tuple(manifest.not_run)
    if changed:
        failures = (f"files changed since the artifact was written: {', '.join(changed)}",)
        return VerifyReport(False, 0.0, 0.0, (), False, changed, failures, ran_on, not_run)
    loaded = Artifact(folder, manifest)
    stored = StoredSamples.open(folder / SAMPLES, [p.name for p in loaded.inputs], [p.name for p in loaded.outputs])
    if hash_samples(stored.inputs) != manifest.samples_sha256:
        raise BadInput(f"{folder}: the stored samples are not those that were measured", hint="compile the model again")
    if against is None:
        found = compare(stored.outputs, [_outputs(loaded, s) for s in stored.inputs])
    else:
        found = _against(loaded, against, samples, seed)
    failures = _failures(found, manifest.error.sqnr_db if against is None else None, min_sqnr, max_error)
    device = loaded.runner.device
    ran_on, not_run = (device,), tuple(d for d in (*ran_on, *not_run) if d != device)
    layers = _layer_errors(loaded, stored)
    worst = tuple(sorted((e for e in layers if e is not None), key=lambda e: e.sqnr_db)[:5])
    return VerifyReport(
        not failures, found.sqnr_db, found.max_abs_error, worst, True, (), failures, ran_on, not_run, layers
    )


def _outputs(artifact: Artifact, sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    outputs = artifact(dict(sample))
    for port in artifact.outputs:
        if port.name not in outputs:
            raise BadInput(
                f"{artifact.folder}: the manifest names an output {port.name!r} that the model does not have",
                hint="compile the model again",
            )
    return outputs


def _failures(
    found: Difference, promised: float | None, min_sqnr: float | None, max_error: float | None
) -> tuple[str, ...]:
    failures: list[str] = []
    if promised is not None and found.sqnr_db < promised - 1:
        failures.append(f"{found.sqnr_db:.2f} dB, but the manifest says {promised:.2f} dB")
    if min_sqnr is not None and found.sqnr_db < min_sqnr:
        failures.append(f"{found.sqnr_db:.2f} dB is less than {min_sqnr} dB")
    if max_error is not None and found.max_abs_error > max_error:
        failures.append(f"an output is off by {found.max_abs_error:.4g}, more than {max_error}")
    return tuple(failures)


def _against(artifact: Artifact, model: object, count: int, seed: int) -> Difference:
    recorded = artifact.manifest.options
    shapes: Any = recorded.get("input_shapes") or {}
    options = Options(scheme="float", input_shapes=shapes)
    with tempfile.TemporaryDirectory(prefix="qcc-") as work:
        captured = capture(model, None, options, Path(work))
        program = captured.program
        pipeline.run(pipeline.legalize(), program, ProgramContext(program=program))
        theirs = {p.name for p in program.inputs()}
        ours = {p.name for p in artifact.inputs}
        if theirs != ours:
            raise BadInput(
                f"the model takes {sorted(theirs)}, the artifact {sorted(ours)}",
                hint="give the model that was compiled",
            )
        if captured.language is not None:
            feeds = step_samples(program, captured.language, count, seed)
        else:
            feeds = random_samples(input_specs(program), count=count, seed=seed, bounds=index_bounds(program))
        return compare(run_all(program, feeds), [artifact(f) for f in feeds])


def _layer_errors(artifact: Artifact, stored: StoredSamples) -> tuple[LayerError | None, ...]:
    """The error of each layer's result on the first sample, at the stored places."""
    layers = artifact.manifest.layers
    if len(stored.spots) != len(layers):
        raise BadInput(
            f"{artifact.folder}: {len(layers)} layers, but stored values of {len(stored.spots)}",
            hint="compile the model again",
        )
    values = [layer.value for layer in layers if layer.value]
    if not values or not stored.inputs:
        return (None,) * len(layers)
    runner = open_with_values(artifact.folder, values, artifact.threads)
    outputs = runner.run(_feeds(artifact, stored.inputs[0]))
    errors: list[LayerError | None] = []
    for index, (layer, spots) in enumerate(zip(layers, stored.spots, strict=True)):
        if layer.value not in outputs or not spots.size:
            errors.append(None)
            continue
        comparison = Comparison()
        comparison.add(spots, spot_values(outputs[layer.value], index))
        errors.append(LayerError(layer.node, round(comparison.result.sqnr_db, 2)))
    return tuple(errors)


def _feeds(artifact: Artifact, sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {p.name: sample[p.name] for p in artifact.inputs}
