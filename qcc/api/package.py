"""Write the folder of an artifact: the backend's model, the IR, the samples, the manifest with its measured error."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

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
from qcc.backends.select import Built, choose, load
from qcc.frontend.samples import hash_samples
from qcc.ir import target as targets
from qcc.ir import types
from qcc.ir.dialects.graph_op import GraphOp
from qcc.ir.dialects.q import Weight
from qcc.ir.execute import Reference
from qcc.ir.kernel_task import Assignment, Picker
from qcc.ir.program import Port, Program
from qcc.ir.rewrite import array_of
from qcc.ir.text import show
from qcc.ir.verify import compare
from qcc.passes import schemes

from .options import Options
from .state import State, weight_bytes

_LARGE = 1 << 28
"""Bytes of float weights from which the check of an artifact takes less memory rather than less time."""
_TOOLS = ("qcc", "numpy", "onnx", "onnxruntime", "xdsl")


def package(state: State, options: Options, folder: Path, name: str, pick: Picker) -> Manifest:
    """Write everything into `folder` and give the manifest."""
    program, target = state.program, targets.load(options.target)
    backend = choose(target, options.backend)
    built = load(backend).build(program, target, folder, WEIGHTS, pick, state.data.verification)
    samples = [_typed(sample, program) for sample in state.data.verification]
    (folder / MODULE).write_text(show(program.module))
    if state.language is not None:
        state.language.save(folder)
    spots = _spots(state, built.assignments)
    inputs, outputs = ([p.name for p in ports] for ports in (program.inputs(), program.results()))
    StoredSamples(samples, state.references, spots).save(folder / SAMPLES, inputs, outputs)
    layers = [_layer(a, program, built) for a in built.assignments]
    state.release_weights()
    runner = open_runner(backend, folder, 0, frugal=state.float_bytes > _LARGE)
    found = compare(state.references, [runner.run(s) for s in samples])
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        target=target.name,
        machine=target.machine,
        requires=list(built.requires),
        backend=backend,
        scheme=schemes.load(options.scheme).name,
        options=_recorded(options),
        inputs=[_port(p) for p in program.inputs()],
        outputs=[_port(p) for p in program.results()],
        bytes=sum((folder / f).stat().st_size for f in built.files),
        float_bytes=state.float_bytes,
        bits_per_weight=_bits_per_weight(layers),
        layers=layers,
        decisions=[DecisionRecord(node=d.node, action=d.action, reason=d.reason) for d in program.decisions],
        error=ErrorRecord(sqnr_db=found.sqnr_db, max_abs_error=found.max_abs_error),
        samples=state.data.source,
        samples_sha256=hash_samples(samples),
        seed=options.seed,
        versions={**{tool: version(tool) for tool in _TOOLS}, "python": platform.python_version()},
        ran_on=[runner.device],
        not_run=[device for device in built.not_run if device != runner.device],
        language=_language(state),
    )
    return write_manifest(folder, manifest)


def _typed(sample: Mapping[str, np.ndarray], program: Program) -> dict[str, np.ndarray]:
    """A sample in the types that the backend has given the inputs: caches may have become float16."""
    kinds = {p.name: types.element_of(types.element_type(p.type)).numpy for p in program.inputs()}
    return {name: array.astype(kinds[name], copy=False) for name, array in sample.items()}


def _language(state: State) -> LanguageRecord | None:
    """The page of a language model, with the type that its cache has now."""
    if state.language is None:
        return None
    record = state.language.record
    kinds = {p.name: _port(p).dtype for p in state.program.inputs()}
    return record.model_copy(update={"cache_dtype": kinds[record.cache_names()[0][0]]})


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


def _spots(state: State, assignments: Sequence[Assignment]) -> list[np.ndarray]:
    """Float results of the quantized layers on the first sample, at a few places each."""
    layers = {op.node: op for op in state.simplified.body.ops if isinstance(op, GraphOp) and op.results}
    wanted = [layers.get(a.op.node) for a in assignments]
    reference = Reference(state.simplified, [op.results[0] for op in wanted if op is not None])
    fetched = iter(reference.fetch(state.data.verification[0]))
    spots: list[np.ndarray] = []
    for index, (assignment, layer) in enumerate(zip(assignments, wanted, strict=True)):
        array = next(fetched) if layer is not None else np.zeros(0, np.float32)
        if layer is not None and layer.name == "onnx.MatMul" and assignment.op.slot(2) is not None:
            bias = array_of(assignment.op.slot(2), state.program)
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
        "input_shapes": {k: list(v) for k, v in options.input_shapes.items()},
        "dynamic": {k: {str(a): s for a, s in v.items()} for k, v in options.dynamic.items()},
    }
