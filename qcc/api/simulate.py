"""`simulate`: any set of schemes on a network; for each its size, the error it makes, and what it does to each layer.

A scheme is tried by its definition: the network is quantized as `compile` would, every operation is expanded into
standard operators, and these run in floating point. So a format needs no kernel to be judged, and none is timed. (Nair
et al. 2023, "INT-FP-QSim: Mixed Precision and Formats For Large Language Models and Vision Transformers".)
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from xdsl.ir import Operation

from qcc.frontend.images import ImageOptions
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Conv, Embedding, Linear, QuantizedOp, Weight
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.execute import run_all
from qcc.ir.program import Program, stored_value
from qcc.ir.quantized import Quantized
from qcc.ir.rewrite import Pass, ProgramContext, Rewrite
from qcc.ir.types import QuantizedType
from qcc.ir.verify import Comparison, compare
from qcc.passes import pipeline, schemes
from qcc.passes.quantize_conv import QuantizeConv
from qcc.passes.quantize_embedding import QuantizeEmbedding
from qcc.passes.quantize_linear import QuantizeLinear

from . import stages
from .data import described
from .options import Options
from .page.place import write
from .progress import Progress, Silent
from .simulation import SimulatedLayer, SimulatedScheme, Simulation, listed
from .simulation_float import FloatLayers
from .simulation_layer import output_sqnr
from .simulation_plot import draw
from .state import State


def simulate(
    model: object,
    inputs: Any = None,
    *,
    schemes: str | Sequence[str],
    group_size: int = 0,
    algorithm: str = "rtn",
    observer: str = "mse",
    calibration: str | os.PathLike[str] | Sequence[Mapping[str, np.ndarray]] | None = None,
    calibration_limit: int = 128,
    image: ImageOptions | None = None,
    ignore: Sequence[str] = (),
    include: Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Simulation:
    """Try schemes on a network, side by side, without compiling it.

    `schemes` are names of schemes or texts of formats, such as `("W4A16", "nf4, f32 per 64")`, or one text with all of
    them (`simulation.listed`). The other arguments are those of `compile`. With `output` the plot is written there, as
    SVG; an existing file only with `force`. A layer that a format cannot hold stays float, and the reason is among the
    scheme's `skipped`.

    Raises `BadInput` or `NotSupported` where `compile` would, for any of the schemes; nothing is written then.
    """
    if output is not None:
        _require_free(Path(output), force=force)
    common = Options(
        group_size=group_size,
        algorithm=algorithm,
        observer=observer,
        calibration=described(calibration),
        calibration_limit=calibration_limit,
        image=image or ImageOptions(),
        ignore=_patterns(ignore),
        include=_patterns(include),
        input_shapes=input_shapes or {},
        dynamic=dynamic or {},
        seed=seed,
    )
    each = [_for_scheme(common, name) for name in listed(schemes)]
    for options in each:
        options.check()
    with tempfile.TemporaryDirectory(prefix="qcc-") as work:
        found = _simulate(model, inputs, each, calibration, Path(work), progress or Silent())
    if output is None:
        return found
    write(Path(output), draw(found), force=force)
    return replace(found, file=Path(output))


def _require_free(path: Path, *, force: bool) -> None:
    """`BadInput` where the plot cannot go: before the work, not after it."""
    if not path.resolve().parent.is_dir():
        raise BadInput(f"{path}: there is no such folder", hint="make it, or choose another place with -o")
    if path.exists() and not path.is_file():
        raise BadInput(f"{path} is not a file", hint="choose another place with -o")
    if os.path.lexists(path) and not force:
        raise BadInput(f"{path} exists", hint="pass --force to replace it, or choose another place with -o")


def _patterns(given: Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _for_scheme(common: Options, name: str) -> Options:
    """The options that one scheme is compiled with, on a target that takes it: nothing is built for one here."""
    return replace(common, scheme=name, target="fpga" if schemes.load(name).is_fixed_point else "cpu")


def _simulate(
    model: object, inputs: Any, each: Sequence[Options], calibration: Any, work: Path, progress: Progress
) -> Simulation:
    state = stages.read(model, inputs, each[0], calibration, work, progress)
    progress.stage("simplify")
    pipeline.run(pipeline.simplify(), state.program, ProgramContext(program=state.program))
    grounds: dict[tuple[bool, bool], _Ground] = {}
    rows: list[SimulatedScheme] = []
    for options in each:
        scheme = schemes.load(options.scheme)
        key = (bool(scheme.activation and state.data.calibration), scheme.is_fixed_point)
        if key not in grounds:
            grounds[key] = _Ground.of(state, options, work / f"ground{len(grounds)}", progress)
        progress.stage(f"simulate {scheme.name}")
        stages.measure(grounds[key].state, options, grounds[key].ctx, progress)
        rows.append(_in_scheme(grounds[key], options, progress))
    order = [op.node for op in state.program.module.walk() if isinstance(op, OnnxOp)]
    found = {layer.node for row in rows for layer in row.layers}
    return Simulation(state.name, state.data.source, tuple(rows), tuple(dict.fromkeys(n for n in order if n in found)))


@dataclass(frozen=True)
class _Ground:
    """The float network from which some schemes start: smoothed for calibrated activations, or as it is."""

    state: State
    ctx: ProgramContext
    floats: FloatLayers

    @staticmethod
    def of(simplified: State, options: Options, folder: Path, progress: Progress) -> _Ground:
        """A copy of the simplified network, made ready for a scheme and those like it."""
        state = replace(simplified, program=simplified.program.clone())
        ctx = ProgramContext(program=state.program)
        stages.smooth(state, options, ctx, progress, None)
        folder.mkdir()
        return _Ground(state, ctx, FloatLayers(state.program, state.data.verification, folder))


def _in_scheme(ground: _Ground, options: Options, progress: Progress) -> SimulatedScheme:
    program = ground.state.program.clone()
    ctx = ProgramContext(program=program, statistics=ground.ctx.statistics)
    pipeline.run([_tolerant(p) for p in pipeline.quantize(stages.choices(options))], program, ctx)
    layers = [op for op in program.module.walk() if isinstance(op, Linear | Conv | Embedding)]
    ground.floats.take([op.node for op in layers if ground.floats.reaches(op.node)])
    rows: list[SimulatedLayer] = []
    for index, op in enumerate(layers):
        rows.append(_layer(op, program, ground.floats))
        progress.step(index + 1, len(layers))
    samples = ground.state.data.verification
    error = compare(ground.state.references, run_all(program, samples))
    count = sum(row.weights for row in rows)
    return SimulatedScheme(
        scheme=schemes.load(options.scheme).name,
        bits_per_weight=8 * sum(row.bytes for row in rows) / count if count else 32.0,
        bytes=sum(_bytes(op, program) for op in program.weight_ops()),
        float_bytes=ground.state.float_bytes,
        sqnr_db=error.sqnr_db,
        max_abs_error=error.max_abs_error,
        layers=tuple(rows),
        decisions=tuple(program.decisions),
    )


def _layer(op: QuantizedOp, program: Program, floats: FloatLayers) -> SimulatedLayer:
    owner = op.operands[1].owner
    assert isinstance(owner, Weight)
    value, comparison = stored_value(owner, program), Comparison()
    weight = floats.weight(op.node)
    for place, some in value.chunks():
        comparison.add(weight[place], some.decode())
    return SimulatedLayer(
        node=op.node,
        format=str(value.format),
        weight_sqnr_db=comparison.result.sqnr_db,
        output_sqnr_db=output_sqnr(op, program, floats),
        bytes=_quantized_bytes(value),
        weights=value.codes.size,
    )


def _bytes(op: Weight, program: Program) -> int:
    if isinstance(op.result.type, QuantizedType):
        return _quantized_bytes(stored_value(op, program))
    return program.weights[op.weight].nbytes


def _quantized_bytes(value: Quantized) -> int:
    return -(-round(value.bits_per_weight * value.codes.size) // 8)


def _tolerant(each: Pass) -> Pass:
    return _Tolerant(each) if isinstance(each, QuantizeLinear | QuantizeConv | QuantizeEmbedding) else each


@dataclass(frozen=True)
class _Tolerant(Rewrite):
    """A quantizing pass that leaves a layer float, and says why, where the scheme's format cannot hold its weight."""

    name = "quantize_or_skip"
    roots = (*QuantizeLinear.roots, *QuantizeConv.roots, *QuantizeEmbedding.roots)

    inner: Rewrite

    def rewrite(self, op: Operation, program: Program) -> bool | str:
        """As the pass does; what it raises becomes the reason."""
        assert isinstance(op, OnnxOp)
        if op.name not in self.inner.roots:
            return False
        try:
            return self.inner.rewrite(op, program)
        except (BadInput, NotSupported) as error:
            program.decide(op.node, "skipped", f"the format does not hold it: {error.message}")
            return False
