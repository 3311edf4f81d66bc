"""A captured torch program as an ONNX file: PyTorch's own translation, with the names of torch given back.

Beside it stands what both torch rooms share: the import, silence, and the reason of a failure in one line.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from qcc.ir.errors import MissingExtra, NotSupported


def write(program: Any, folder: Path, axes: dict[str, dict[int, str]], opset: int, prefix: str = "") -> Path:
    """Write an ExportedProgram as `folder/model.onnx`, weights beside it; `prefix` is dropped from their names.

    `axes` are the dynamic ones by input. Raises `NotSupported` where torch cannot translate it. Any: torch's programs.
    """
    torch = import_torch()
    given = [spec for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    inputs = [spec.arg.name for spec in given if not hasattr(spec.arg, "value")]
    outputs = _output_names(program, inputs)
    shapes = {name: axes.get(name) for name in inputs} if axes else None
    with quiet():
        try:
            exported = torch.onnx.export(
                program, dynamo=True, opset_version=opset, dynamic_shapes=shapes, optimize=True, verbose=False
            )
        except FAILURES as error:
            raise NotSupported(
                f"torch has no ONNX translation of this model: {first_reason(error)}",
                hint="replace what it names: an operator, or the opset",
            ) from error
        model, signature = exported.model, exported.exported_program.graph_signature
        if model.opset_imports[""] != opset:
            raise NotSupported(f"torch can write opset {model.opset_imports['']} of this model, but not {opset}")
        if changed := [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]:
            raise NotSupported(
                f"forward() changes {changed[0]!r} in place, and an ONNX graph keeps no state",
                hint="take the old value as an input and return the new one",
            )
        _give_rotary_a_batch(model)
        _name_weights(model, exported.exported_program)
        for value in list(model.graph.initializers.values()):
            value.name = value.name.removeprefix(prefix)
        _tidy(model, (*inputs, *outputs))
        folder.mkdir(parents=True, exist_ok=True)
        exported.save(folder / "model.onnx", external_data=True)
    return folder / "model.onnx"


def _output_names(program: Any, taken: Sequence[str]) -> list[str]:
    """One name an output, from where it stands in the returned structure; `None` is no output."""

    torch = import_torch()
    pytree = torch.utils._pytree
    spec = program.call_spec.out_spec
    paths = pytree.tree_flatten_with_path(spec.unflatten([torch.empty(0)] * spec.num_leaves))[0]
    names: list[str] = []
    specs = [spec for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    for (path, _), spec in zip(paths, specs, strict=True):
        words = re.findall(r"\w+", pytree.keystr(path))
        name = "_".join(words if words and not words[0].isdigit() else ["output", *words])
        if not hasattr(spec.arg, "value"):
            while name in (*taken, *names):
                name += "_out"
            names.append(name)
        elif spec.arg.value is not None:
            raise NotSupported(
                f"the output {name!r} is the constant {spec.arg.value!r}, not a tensor", hint="return tensors only"
            )
    return names


def _give_rotary_a_batch(model: Any) -> None:
    """Expand the angles of `RotaryEmbedding` to the batch of what they turn: torch's fusion leaves them at batch 1.

    The ONNX operator does not broadcast: its caches are (batch, length, head size / 2).
    """
    import onnx_ir

    for node in list(model.graph.all_nodes()):
        if (node.domain, node.op_type, len(node.inputs)) != ("", "RotaryEmbedding", 3):
            continue
        x, *caches = node.inputs
        if caches[0].shape is not None and caches[0].shape[0] == x.shape[0]:
            continue
        batch = onnx_ir.node("Shape", [x], attributes={"start": 0, "end": 1})
        ones = onnx_ir.node("Constant", [], attributes={"value_ints": [1, 1]})
        shape = onnx_ir.node("Concat", [batch.outputs[0], ones.outputs[0]], attributes={"axis": 0})
        expands = [onnx_ir.node("Expand", [cache, shape.outputs[0]]) for cache in caches]
        node.graph.insert_before(node, [batch, ones, shape, *expands])
        for index, expand in enumerate(expands, 1):
            node.replace_input_with(index, expand.outputs[0])


def _name_weights(model: Any, program: Any) -> None:
    """Give weights back the torch names that constant folding took: `val_8`, a transposed copy, is `head.weight`.

    A weight is known by the parameter that the torch operator it feeds was given, if only one has its sizes. Of the
    names of a shared parameter it bears the one in the module of that operator.
    """
    signature = program.graph_signature
    tensors: dict[str, Any] = {**program.state_dict, **program.constants}
    sources = signature.inputs_to_parameters | signature.inputs_to_buffers | signature.inputs_to_lifted_tensor_constants
    shared: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        shared.setdefault(tensor.data_ptr(), []).append(name)

    def torch_name(value: Any) -> str | None:
        names: set[str] = set()
        size = value.const_value.nbytes, sorted(value.const_value.shape)
        for node in value.consumers():
            module = "".join(re.findall(r"'([^']*)', '[^']*'\]$", node.metadata_props.get(_SCOPES, "")))
            for placeholder in re.findall(r"%(\w+)", node.metadata_props.get(_FX_NODE, "")):
                name = sources.get(placeholder, "")
                tensor = tensors.get(name)
                if tensor is not None and (tensor.nbytes, sorted(tensor.shape)) == size:
                    aliases = shared[tensor.data_ptr()]
                    names.add(next((alias for alias in aliases if alias.startswith(f"{module}.")), name))
        return names.pop() if len(names) == 1 else None

    initializers = model.graph.initializers
    wanted = {torch_name(value): value for value in reversed(list(initializers.values()))}
    wanted.pop(None, None)
    for position, value in enumerate(wanted.values()):
        value.name = f"//{position}"
    for name, value in reversed(wanted.items()):
        value.name = f"{name}.copy" if name in initializers else name


_SCOPES = "pkg.torch.onnx.name_scopes"
_FX_NODE = "pkg.torch.onnx.fx_node"


def _tidy(model: Any, names: Sequence[str]) -> None:
    """Name inputs and outputs (a value inside that has one of the names yields), and state the right IR version.

    What the exporter notes of the author's disk and of the torch graph is dropped.
    """
    from onnx.helper import OP_SET_ID_VERSION_MAP
    from onnx_ir.passes.common import NameFixPass

    for value, name in zip((*model.graph.inputs, *model.graph.outputs), names, strict=True):
        value.name = name
    NameFixPass()(model)
    model.ir_version = max(model.ir_version, OP_SET_ID_VERSION_MAP["ai.onnx", model.opset_imports[""]])
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
        node.metadata_props.pop(_FX_NODE, None)


FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)
"""What torch raises for a model that it cannot take."""


def import_torch() -> Any:
    """The torch module; `Any`, because its stubs leave the exporter unknown."""
    try:
        import onnxscript  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import torch
    except ImportError as error:
        raise MissingExtra(f"reading a torch model needs {error.name}", hint='pip install "qcc[torch]"') from error
    return torch


@contextmanager
def quiet() -> Generator[None]:
    """No warnings, log lines or dumped graphs: what matters of them is in the errors raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def first_reason(error: BaseException) -> str:
    """The first line of what torch says of the cause, which may run over pages, without advice to torch developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    line = re.split(r"\.? +(?:\(unhinted|\(Size-like|If you're using|For more information)", line)[0]
    return line if len(line) <= 300 else f"{line[:297]}..."
