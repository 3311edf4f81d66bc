"""`compile`: capture -> simplify -> calibrate -> quantize -> choose kernels -> pack -> emit -> check -> artifact."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from qcc.backends import select
from qcc.backends.artifact import Manifest, require_free, writing
from qcc.backends.runtime import Artifact
from qcc.frontend.images import ImageOptions
from qcc.ir import target as targets
from qcc.ir.errors import CheckFailed
from qcc.ir.execute import run_all
from qcc.ir.kernel_task import Picker, cheapest
from qcc.ir.program import Program
from qcc.ir.rewrite import Pass, ProgramContext
from qcc.ir.verify import compare
from qcc.passes import pipeline, schemes

from . import stages
from .capture import default_scheme, is_path
from .contest import competing, missed_gate
from .data import described
from .options import Options, bytes_of
from .package import package
from .progress import PassCheck, Plan, Progress, Silent
from .state import State


def compile(
    model: object,
    inputs: Any = None,
    *,
    target: str = "cpu",
    backend: str = "auto",
    scheme: str | None = None,
    group_size: int = 0,
    algorithm: str = "rtn",
    observer: str = "mse",
    calibration: str | os.PathLike[str] | Sequence[Mapping[str, np.ndarray]] | None = None,
    calibration_limit: int = 128,
    image: ImageOptions | None = None,
    ignore: Sequence[str] = (),
    include: Sequence[str] = (),
    kv_cache: str | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    seed: int = 0,
    min_sqnr: float | None = None,
    max_error: float | None = None,
    verify_passes: bool = False,
    max_ram: int | str | None = None,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
    pick: Picker = cheapest,
) -> Artifact:
    """Compile a network to an artifact.

    `model` is the path of an `.onnx` or `.pt2` file, an `onnx.ModelProto`, an `ExportedProgram`, or an `nn.Module` with
    example `inputs` (a tensor, a tuple, or a dict by name). `scheme` is the target's own by default: W4A16 on a CPU
    (W8A8_GROUP for weights that are codes already, which it keeps), XINT8 on an FPGA. `calibration` is the path of an
    `.npz` file or of a folder of `.npz` files or images, samples as dicts of arrays, or "random" (only to try speed).
    `kv_cache` is what the caches of a language model keep: f32, f16 or i8; by default what the backend prefers.
    `ignore` and `include` are names or `re:...` patterns of nodes or weights. `min_sqnr` (dB) and `max_error` gate the
    result on its samples. `max_ram` (bytes, or text like "4GiB") bounds the memory that weights take. With `output` the
    artifact is written there, else it lives in a temporary folder until `save`.

    With `backend="auto"` every backend that can compiles the network; each is checked, and on this machine's own target
    they are timed on the first sample, and the fastest is kept whose SQNR is within 1 dB of the best: the manifest's
    `contest` says by how much. Name a backend to save that time.

    Raises `BadInput`, `NotSupported`, `MissingExtra`, or `CheckFailed` where a gate does not hold; nothing is written
    then.
    """
    options = _options(locals())
    if output is not None:
        require_free(Path(output), force=force)
        with writing(Path(output), force=force) as folder:
            manifest = _compile(
                model, inputs, options, calibration, folder, _name_of(model, output), progress or Silent(), pick
            )
        return Artifact(Path(output), manifest)
    place = Path(tempfile.mkdtemp(prefix="qcc-"))
    try:
        with writing(place / "artifact.qcc", force=False) as folder:
            manifest = _compile(
                model, inputs, options, calibration, folder, _name_of(model, None), progress or Silent(), pick
            )
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return Artifact(place / "artifact.qcc", manifest, temporary=place)


def plan(model: object, inputs: Any = None, *, progress: Progress | None = None, **options_: Any) -> Plan:
    """What `compile` would do with the same arguments: decisions with reasons, kernels and sizes; nothing is written.

    Any: the keyword arguments are those of `compile`, and are checked as it checks them.
    """
    calibration = options_.pop("calibration", None)
    defaults = {
        name: value
        for name, value in (compile.__kwdefaults__ or {}).items()
        if name not in ("output", "force", "progress", "pick")
    }
    options = _options({**defaults, **options_, "model": model, "calibration": calibration})
    with tempfile.TemporaryDirectory(prefix="qcc-") as work:
        state = _quantize(model, inputs, options, calibration, Path(work), progress or Silent())
        target = targets.load(options.target)
        candidates = select.candidates(target, options.backend, schemes.load(options.scheme).name)
        backend = next(c.backend for c in candidates if not c.obstacle)
        assignments = select.load(backend).resolve(state.program, target, cheapest)
        made = Plan(
            schemes.load(options.scheme).name,
            options.target,
            backend,
            [*state.program.decisions, *competing(candidates)],
            passes=state.checks,
        )
        made.kernels = {a.op.node: a.choice.kernel for a in assignments}
        made.float_bytes = state.float_bytes
        made.bytes = state.quantized_bytes()
        return made


def _quantize(model: object, inputs: Any, options: Options, calibration: Any, work: Path, progress: Progress) -> State:
    options.check()
    state = stages.read(model, inputs, options, calibration, work, progress)
    program, ctx = state.program, ProgramContext(program=state.program)
    quantizing = {p.name for p in pipeline.quantize(stages.choices(options))}

    def check(each: Pass, program: Program) -> None:
        if options.verify_passes:
            found = compare(state.references[:1], run_all(program, state.data.verification[:1], optimize=False))
            state.checks.append(PassCheck(each.name, found.sqnr_db, sum(1 for _ in program.module.walk())))
            if each.name not in quantizing and found.sqnr_db < 60:
                raise CheckFailed(
                    f"pass {each.name} changed the result: {found.sqnr_db:.1f} dB against the float model",
                    hint="this is a bug of qcc: please report it",
                )

    progress.stage("simplify")
    pipeline.run(pipeline.simplify(), program, ctx, after=check)
    stages.smooth(state, options, ctx, progress, check)
    state.simplified = program.clone()
    stages.measure(state, options, ctx, progress)
    progress.stage("quantize")
    pipeline.run(pipeline.quantize(stages.choices(options)), program, ctx, after=check)
    if options.max_ram:
        program.weights.release_pages()
    return state


def _compile(
    model: object,
    inputs: Any,
    options: Options,
    calibration: Any,
    folder: Path,
    name: str,
    progress: Progress,
    pick: Picker,
) -> Manifest:
    with tempfile.TemporaryDirectory(prefix="qcc-") as work:
        state = _quantize(model, inputs, options, calibration, Path(work), progress)
        progress.stage("pack and write")
        manifest = package(state, options, folder, name or state.name, pick, progress)
    missed = missed_gate(manifest.error, options)
    if missed:
        raise CheckFailed(f"the artifact {missed}", hint="use more bits, a smaller group, or --ignore sensitive layers")
    return manifest


def _options(given: Mapping[str, Any]) -> Options:
    """Any: the arguments of `compile` as they came."""
    known = {f.name for f in fields(Options)}
    strange = [
        k for k in given if k not in known and k not in ("model", "inputs", "output", "force", "progress", "pick")
    ]
    if strange:
        raise TypeError(f"compile() got an unexpected keyword argument {strange[0]!r}")
    values = {k: v for k, v in given.items() if k in known and v is not None}
    values["scheme"] = given.get("scheme") or default_scheme(given.get("model"), given["target"])
    values["max_ram"] = bytes_of(given.get("max_ram"))
    values["calibration"] = described(given.get("calibration"))
    for name in ("ignore", "include"):
        patterns = given.get(name) or ()
        values[name] = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    return Options(**values)


def _name_of(model: object, output: str | os.PathLike[str] | None) -> str:
    if is_path(model):
        return Path(model).stem
    return Path(output).stem if output is not None else ""
