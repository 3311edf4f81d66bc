"""Write the folder of an artifact: the backend's model, the IR, the samples, the manifest with its measured error."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from qcc.backends import select
from qcc.backends.artifact import (
    MODULE,
    SAMPLES,
    SCHEMA_VERSION,
    WEIGHTS,
    DecisionRecord,
    ErrorRecord,
    LayerRecord,
    Manifest,
    PortRecord,
    write_manifest,
)
from qcc.backends.language import LanguageRecord
from qcc.backends.runtime import open_runner
from qcc.backends.samples import StoredSamples, spot_values
from qcc.backends.select import Built
from qcc.frontend.samples import hash_samples
from qcc.ir import target as targets
from qcc.ir import types
from qcc.ir.dialects.graph_op import GraphOp
from qcc.ir.dialects.q import Weight
from qcc.ir.errors import MissingExtra, NotSupported, QccError
from qcc.ir.execute import Reference
from qcc.ir.kernel_task import Assignment, Picker
from qcc.ir.program import Port, Program
from qcc.ir.rewrite import array_of
from qcc.ir.target import Target
from qcc.ir.text import show
from qcc.ir.verify import Difference, compare
from qcc.passes import schemes

from .contest import Entrant, decide, decoding
from .options import Options
from .progress import Progress
from .state import State, weight_bytes

_LARGE = 1 << 28
"""Bytes of float weights from which the check of an artifact takes less memory rather than less time."""
_TOOLS = ("qcc", "numpy", "onnx", "onnxruntime", "xdsl")


@dataclass(frozen=True)
class _Made:
    """What a backend has built into `folder`; the weights of `program` are gone."""

    backend: str
    folder: Path
    built: Built
    program: Program
    layers: list[LayerRecord]
    spots: list[np.ndarray]


@dataclass(frozen=True)
class _Checked:
    """The samples in the types of its inputs, how far it is from the float model on them, and on what it ran."""

    made: _Made
    samples: list[dict[str, np.ndarray]]
    error: Difference
    device: str


def package(state: State, options: Options, folder: Path, name: str, pick: Picker, progress: Progress) -> Manifest:
    """Write everything into `folder` and give the manifest: with each backend that can, of which one is kept."""
    target, scheme = targets.load(options.target), schemes.load(options.scheme).name
    candidates = select.candidates(target, options.backend, scheme)
    left_out = {c.backend: c.obstacle for c in candidates if c.obstacle}
    names = [c.backend for c in candidates if not c.obstacle]
    made = _build(names, left_out, state, target, folder, pick)
    state.release_weights()
    checked = _check(made, left_out, state)
    if len(checked) > 1:
        progress.stage(f"compare {' and '.join(c.made.backend for c in checked)}")
    contest = decide([_entrant(c, state) for c in checked], left_out, options)
    kept = next(c for c in checked for record in contest if record.kept and record.backend == c.made.backend)
    program, built, layers = kept.made.program, kept.made.built, kept.made.layers
    _settle(kept.made, made, folder)
    (folder / MODULE).write_text(show(program.module))
    if state.language is not None:
        state.language.save(folder)
    inputs, outputs = ([p.name for p in ports] for ports in (program.inputs(), program.results()))
    StoredSamples(kept.samples, state.references, kept.made.spots).save(folder / SAMPLES, inputs, outputs)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        target=target.name,
        machine=target.machine,
        requires=list(built.requires),
        backend=kept.made.backend,
        scheme=scheme,
        options=_recorded(options),
        inputs=[_port(p) for p in program.inputs()],
        outputs=[_port(p) for p in program.results()],
        bytes=sum((folder / f).stat().st_size for f in built.files),
        float_bytes=state.float_bytes,
        bits_per_weight=_bits_per_weight(layers),
        layers=layers,
        decisions=[DecisionRecord(node=d.node, action=d.action, reason=d.reason) for d in program.decisions],
        error=ErrorRecord(sqnr_db=kept.error.sqnr_db, max_abs_error=kept.error.max_abs_error),
        samples=state.data.source,
        samples_sha256=hash_samples(kept.samples),
        seed=options.seed,
        versions={**{tool: version(tool) for tool in _TOOLS}, "python": platform.python_version()},
        ran_on=[kept.device],
        not_run=[device for device in built.not_run if device != kept.device],
        language=_language(state, kept.made),
        contest=contest if len(candidates) > 1 else [],
    )
    return write_manifest(folder, manifest)


def _build(
    names: Sequence[str], left_out: dict[str, str], state: State, target: Target, folder: Path, pick: Picker
) -> list[_Made]:
    """What each backend writes, in a folder of its own; one that refuses is left out, where another does not."""
    found: list[_Made] = []
    refused: QccError | None = None
    for name in names:
        last = name == names[-1]
        program = state.program if last else replace(state.program.clone(), stored={})
        place = folder / f".{name}"
        place.mkdir()
        try:
            built = select.load(name).build(program, target, place, WEIGHTS, pick, state.data.verification)
        except (NotSupported, MissingExtra) as error:
            left_out[name], refused = select.reason_of(error), refused or error
            shutil.rmtree(place)
            continue
        layers = [_layer(a, program, built) for a in built.assignments]
        nodes = [layer.node for layer in layers]
        same = [made for made in found if [layer.node for layer in made.layers] == nodes]
        spots = same[0].spots if same else _spots(state, program, built.assignments)
        found.append(_Made(name, place, built, program, layers, spots))
        if not last:
            program.weights.keep(set())  # the next one needs the memory
    if not found and refused is not None:
        raise refused
    return found


def _check(made: Sequence[_Made], left_out: dict[str, str], state: State) -> list[_Checked]:
    """Those that run on the samples, one open at a time; one that does not is left out, where another does."""
    found: list[_Checked] = []
    failed: QccError | None = None
    for each in made:
        try:
            found.append(_run(each, state))
        except QccError as error:
            left_out[each.backend], failed = f"does not run: {error.message}", failed or error
    if not found and failed is not None:
        raise failed
    return found


def _run(made: _Made, state: State) -> _Checked:
    samples = [_typed(sample, made.program) for sample in state.data.verification]
    runner = open_runner(made.backend, made.folder, 0, frugal=state.float_bytes > _LARGE)
    error = compare(state.references, [runner.run(s) for s in samples])
    return _Checked(made, samples, error, runner.device)


def _entrant(checked: _Checked, state: State) -> Entrant:
    made, sample = checked.made, checked.samples[0]
    record = _language(state, made)

    def opened() -> Callable[[], object]:
        runner = open_runner(made.backend, made.folder, 0)
        return (lambda: runner.run(sample)) if record is None else decoding(runner, made.backend, record)

    return Entrant(made.backend, checked.error, opened)


def _settle(kept: _Made, made: Sequence[_Made], folder: Path) -> None:
    """The files of the one that is kept lie in `folder`; those of the others are gone."""
    for path in kept.folder.iterdir():
        path.rename(folder / path.name)
    for each in made:
        shutil.rmtree(each.folder)


def _typed(sample: Mapping[str, np.ndarray], program: Program) -> dict[str, np.ndarray]:
    """A sample in the types that the backend has given the inputs: caches may have become float16."""
    kinds = {p.name: types.element_of(types.element_type(p.type)).numpy for p in program.inputs()}
    return {name: array.astype(kinds[name], copy=False) for name, array in sample.items()}


def _language(state: State, made: _Made) -> LanguageRecord | None:
    """The page of a language model, with the type that its cache has now."""
    if state.language is None:
        return None
    record = state.language.record
    kinds = {p.name: _port(p).dtype for p in made.program.inputs()}
    return record.model_copy(update={"cache_dtype": made.built.cache_dtype or kinds[record.cache_names()[0][0]]})


def _layer(assignment: Assignment, program: Program, built: Built) -> LayerRecord:
    op, task = assignment.op, assignment.task
    weight = op.operands[1].owner
    assert isinstance(weight, Weight)
    return LayerRecord(
        node=op.node,
        op=op.name,
        weight=weight.weight,
        shape=list(task.weight),
        format=str(task.weight_format),
        layout=str(assignment.choice.layout),
        kernel=str(op.get("kernel")),
        reason=assignment.choice.reason,
        bytes=weight_bytes(weight, program),
        float_bytes=4 * int(np.prod(task.weight, dtype=np.int64)),
        activation="float"
        if task.activation_format is None
        else f"{task.activation_format}{' at run time' if task.dynamic else ''}",
        value=built.values.get(op.node, ""),
    )


def _bits_per_weight(layers: Sequence[LayerRecord]) -> float:
    count = sum(layer.float_bytes // 4 for layer in layers)
    return 8 * sum(layer.bytes for layer in layers) / count if count else 32.0


def _spots(state: State, program: Program, assignments: Sequence[Assignment]) -> list[np.ndarray]:
    """Float results of the quantized layers on the first sample, at a few places each."""
    layers = {op.node: op for op in state.simplified.body.ops if isinstance(op, GraphOp) and op.results}
    wanted = [layers.get(a.op.node) for a in assignments]
    reference = Reference(state.simplified, [op.results[0] for op in wanted if op is not None])
    fetched = iter(reference.fetch(state.data.verification[0]))
    spots: list[np.ndarray] = []
    for index, (assignment, layer) in enumerate(zip(assignments, wanted, strict=True)):
        array = next(fetched) if layer is not None else np.zeros(0, np.float32)
        if layer is not None and layer.name == "onnx.MatMul" and assignment.op.slot(2) is not None:
            bias = array_of(assignment.op.slot(2), program)
            array = array if bias is None else array + bias  # the layer took the bias behind the product in
        spots.append(spot_values(array, index))
    return spots


def _port(port: Port) -> PortRecord:
    element = types.element_type(port.type)
    dtype = "object" if isinstance(element, types.UnknownType) else types.element_of(element).numpy.name
    dims = types.dims_of(port.type)
    return PortRecord(name=port.name, dtype=dtype, shape=None if dims is None else list(dims))


def _recorded(options: Options) -> dict[str, object]:
    """The options that shaped the result; paths by their last name only."""
    return {
        "scheme": options.scheme,
        "group_size": options.group_size,
        "algorithm": options.algorithm,
        "observer": options.observer,
        "calibration": Path(options.calibration).name,
        "calibration_limit": options.calibration_limit,
        "ignore": list(options.ignore),
        "include": list(options.include),
        "kv_cache": options.kv_cache,
        "input_shapes": {k: list(v) for k, v in options.input_shapes.items()},
        "dynamic": {k: {str(a): s for a, s in v.items()} for k, v in options.dynamic.items()},
    }
