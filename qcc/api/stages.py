"""The first stages of `compile` and of `simulate`: from a model to a float program that is ready to be quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qcc.ir.dialects.graph_op import GraphOp
from qcc.ir.dialects.q_attention import Attention
from qcc.ir.errors import BadInput
from qcc.ir.execute import run_all
from qcc.ir.program import Program
from qcc.ir.rewrite import ProgramContext
from qcc.passes import algorithms, observers, pipeline, schemes
from qcc.passes.calibrate import calibrate, channel_peaks, hessians
from qcc.passes.pipeline import Observe
from qcc.passes.selection import check_patterns

from .capture import capture, input_specs, refuse_collections
from .data import load_data
from .options import Options
from .progress import Progress
from .state import State


def read(model: object, inputs: Any, options: Options, calibration: Any, work: Path, progress: Progress) -> State:
    """Import a model, load its samples, and run it in float on those that verify it. The scheme plays no part.

    Any: example inputs and calibration data are whatever `compile` takes.
    """
    progress.stage("import")
    captured = capture(model, inputs, options, work)
    program = captured.program
    if options.max_ram:
        program.weights.spill_to(work, options.max_ram // 4)
    names = _names(program)
    check_patterns(options.ignore, names, "--ignore")
    check_patterns(options.include, names, "--include")
    refuse_collections(program)
    pipeline.run(pipeline.legalize(), program, ProgramContext(program=program))
    if options.kv_cache and not any(isinstance(op, Attention) for op in program.module.walk()):
        raise BadInput(f"{captured.name} has no caches", hint="leave out --kv-cache: it is for decoders")
    data = load_data(captured, input_specs(program), calibration, options)
    state = State(captured.name, program, data, program.weights.bytes, program, captured.language)
    progress.stage("run the float model")
    state.references = run_all(program, data.verification)
    return state


def smooth(state: State, options: Options, ctx: ProgramContext, progress: Progress, after: Observe | None) -> None:
    """Make activations easier to quantize where the scheme quantizes them and samples tell how."""
    if not schemes.load(options.scheme).activation or not state.data.calibration:
        return
    progress.stage("smooth activations")
    state.program.peaks = channel_peaks(state.program, state.data.calibration, progress=progress.step)
    pipeline.run(pipeline.smooth(options.scheme, options.ignore), state.program, ctx, after=after)


def measure(state: State, options: Options, ctx: ProgramContext, progress: Progress) -> None:
    """Take the statistics that the algorithm and the scheme need, where they are not there yet."""
    program, samples = state.program, state.data.calibration
    if algorithms.needs_hessian(options.algorithm) and not program.hessians:
        progress.stage("take second moments")
        program.hessians = hessians(program, samples, progress=progress.step)
    if schemes.load(options.scheme).needs_calibration and not ctx.statistics:
        progress.stage("calibrate")
        binned = observers.reads_bins(options.observer)
        ctx.statistics = calibrate(program, samples, binned=binned, progress=progress.step)


def choices(options: Options) -> pipeline.QuantizeOptions:
    """What the quantizing passes take of the options."""
    return pipeline.QuantizeOptions(
        options.scheme,
        options.group_size,
        options.algorithm,
        options.observer,
        options.ignore,
        options.include,
        options.kv_cache,
    )


def _names(program: Program) -> list[str]:
    names = [op.weight for op in program.weight_ops()]
    return names + [op.node for op in program.module.walk() if isinstance(op, GraphOp)]
