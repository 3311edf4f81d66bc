"""The torch doors: an `nn.Module` or an `ExportedProgram` becomes an ONNX file, and a `.pt2` file a program, safely."""

from __future__ import annotations

import inspect
import re
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qcc.ir.errors import BadInput, NotSupported

from . import pt2_archive
from .torch_to_onnx import FAILURES, first_reason, import_torch, quiet, write

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

Dynamic = Mapping[str, Mapping[int, str]]


def to_onnx(
    model: torch.nn.Module | ExportedProgram,
    inputs: Any = None,
    *,
    folder: str | Path,
    dynamic: Dynamic | None = None,
    opset: int = 23,
) -> Path:
    """Write `model` as `folder/model.onnx` with its weights beside it, and return the path of the ONNX file.

    A module is captured in eval mode from `inputs`: a tensor, a tuple of arguments or a dict of keyword arguments,
    tensors at any depth. `dynamic` names axes whose size may change, `{"input_ids": {0: "batch", 1: "length"}}`; one
    name is one size, and the captured program is held against the module at some others. A program is taken as it is.
    At opset 23 attention stays `Attention` and RMS norm becomes `RMSNormalization`; 24 decomposes the latter.

    Weights of a kilobyte and more go to `model.onnx.data`, so a model may exceed the 2 GB that protobuf allows. They
    bear their torch names, also where the export has transposed them. Inputs are named after the parameters of
    `forward`, with the path inside nested ones (`past_0_1`); outputs are `output`, `output_0 ...` or the keys of a
    returned dict, with `_out` added where that name is taken.

    Raises `BadInput` where the inputs do not fit the module or an axis cannot change, `NotSupported` where torch cannot
    capture or translate it, `MissingExtra` without torch; each with torch's reason in one line.
    """
    torch = import_torch()
    if isinstance(model, torch.export.ExportedProgram):
        if inputs is not None or dynamic is not None:
            raise BadInput(
                "an ExportedProgram is captured already: it takes neither example inputs nor dynamic axes",
                hint="give dynamic_shapes to torch.export.export, or pass the module instead",
            )
        return write(model, Path(folder), {}, opset)
    call = _bind(model, inputs)
    axes = _axes(call, dynamic or {})
    return write(_capture(model, call, axes), Path(folder), axes, opset)


def open_pt2(path: str | Path) -> ExportedProgram:
    """Load the exported program of a `.pt2` file that nobody vouches for: checked first, and nothing in it is run.

    Its example inputs are not loaded, being a pickle. Raises as `pt2_archive.inspect` does, and `NotSupported` where
    this torch cannot rebuild the program.
    """
    with tempfile.TemporaryDirectory(prefix="qcc-") as folder:
        checked = Path(folder) / "checked.pt2"
        pt2_archive.write_checked_copy(path, checked)
        torch = import_torch()
        from torch.export.pt2_archive._package import load_pt2  # torch.export.load swallows the reason of a failure

        try:
            with quiet():
                return load_pt2(str(checked)).exported_programs["model"]
        except FAILURES as error:
            raise NotSupported(
                f"{path}: torch {torch.__version__} cannot rebuild the program: {first_reason(error)}",
                hint="save it again with this version of torch",
            ) from error


def write_step(
    step: Any, inputs: Mapping[str, Any], axes: Mapping[str, dict[int, str]], folder: Path, *, opset: int, prefix: str
) -> Path:
    """Capture a module that holds operators which only ONNX can run, and write it as `to_onnx` does.

    No other sizes are tried, for the module does not compute. `prefix` is dropped from the names of weights.
    """
    call = inspect.signature(step.forward).bind(**inputs)
    program = _export(step, call, dict(axes))
    return write(program, folder, dict(axes), opset, prefix)


def _bind(model: Any, inputs: Any) -> inspect.BoundArguments:
    """The call `forward(*inputs)` in the order of its signature."""
    torch = import_torch()
    if not isinstance(model, torch.nn.Module):
        raise BadInput(f"expected a torch.nn.Module or an ExportedProgram, not {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise NotSupported("a TorchScript module cannot be captured", hint="pass the module it was made from")
    signature = inspect.signature(model.forward)
    expected = f"{type(model).__name__}.forward({', '.join(signature.parameters)})"
    if inputs is None:
        raise BadInput(f"{expected} needs example inputs", hint="inputs=(tensor, ...) or {'name': tensor, ...}")
    inputs = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, inputs)  # each an object of its own
    args = cast("tuple[Any, ...]", inputs) if isinstance(inputs, tuple) else (inputs,)
    try:
        call = signature.bind(**inputs) if isinstance(inputs, Mapping) else signature.bind(*args)
    except TypeError as error:
        raise BadInput(f"the example inputs do not fit {expected}: {error}", hint="one for each parameter") from error
    if not _tensors(call):
        raise BadInput(f"the example inputs of {expected} hold no tensor", hint="inputs=torch.randn(...)")
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        if weight.is_meta:
            raise BadInput(f"the weight {name!r} has no data (it is on the meta device)", hint="load the weights first")
    return call


def _tensors(call: inspect.BoundArguments) -> dict[str, torch.Tensor]:
    """The tensors among the arguments by the names that torch gives them: `x`, `past_0_1`, `cache_key`."""
    torch = import_torch()
    pytree = torch.utils._pytree
    leaves = pytree.tree_flatten_with_path(dict(call.arguments))[0]
    named = (("_".join(re.findall(r"\w+", pytree.keystr(path))), leaf) for path, leaf in leaves)
    return {name: leaf for name, leaf in named if isinstance(leaf, torch.Tensor)}


def _axes(call: inspect.BoundArguments, dynamic: Dynamic) -> dict[str, dict[int, str]]:
    """`dynamic` with axes counted from the front, held against the example tensors."""
    gathered = [
        parameter for parameter in call.signature.parameters.values() if parameter.kind is parameter.VAR_KEYWORD
    ]
    if dynamic and any(parameter.name in call.arguments for parameter in gathered):
        raise NotSupported(f"torch takes no dynamic axes beside {gathered[0]}", hint="name it in forward()")
    tensors = _tensors(call)
    axes: dict[str, dict[int, str]] = {}
    for name, named in dynamic.items():
        if name not in tensors:
            raise BadInput(f"no input {name!r} to make dynamic", hint=f"the inputs are {', '.join(tensors)}")
        shape = tuple(tensors[name].shape)
        axes[name] = {}
        for axis, dim in named.items():
            if not -len(shape) <= axis < len(shape):
                raise BadInput(f"the input {name!r} of shape {shape} has no axis {axis}")
            if not dim.isidentifier():
                raise BadInput(f"the dynamic axis name {dim!r} is not a word", hint='such as "batch" or "length"')
            axes[name][axis % len(shape)] = dim
    return axes


def _capture(model: Any, call: inspect.BoundArguments, axes: dict[str, dict[int, str]]) -> ExportedProgram:
    program = _export(model, call, axes)
    with quiet(), _evaluating(model), import_torch().no_grad():
        _try_other_sizes(model, program, call, axes)
    return program


def _export(model: Any, call: inspect.BoundArguments, axes: dict[str, dict[int, str]]) -> ExportedProgram:
    torch = import_torch()
    tensors = _tensors(call)
    shapes = torch.export.ShapesCollection()
    for name, named in axes.items():
        shapes[tensors[name]] = dict.fromkeys(named, torch.export.Dim.DYNAMIC)
    # By default torch takes an example size of 1 for a constant; its own ONNX exporter sets this too.
    free = torch.fx.experimental._config.patch(backed_size_oblivious=True)
    with quiet(), _evaluating(model), torch.no_grad(), free:
        try:
            return torch.export.export(model, call.args, call.kwargs, dynamic_shapes=shapes if axes else None)
        except FAILURES as error:
            raise _explained(error, model, call) from error


def _try_other_sizes(model: Any, program: Any, call: inspect.BoundArguments, axes: dict[str, dict[int, str]]) -> None:
    """Raise where forward() runs at another size of a dynamic axis and does not give what the captured program gives.

    What torch assumes of a size, such as not to be 1, ONNX cannot state: the graph would be wrong without a word.
    """
    torch = import_torch()
    pytree = torch.utils._pytree
    captured = program.module(check_guards=False)
    captured.validate_inputs = False
    tensors, values = _tensors(call), {node.name: node.meta.get("val") for node in program.graph.nodes}
    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    for dim in {dim: None for named in axes.values() for dim in named.values()}:
        places = [(name, axis) for name, named in axes.items() for axis in named if named[axis] == dim]
        name, axis = places[0]
        example = tensors[name].shape[axis]
        bounds = program.range_constraints.get(values[name].shape[axis].node.expr)
        limits = {bounds.lower - 1, bounds.upper + 1} if bounds else set[int]()
        for size in sorted(size for size in {1, 2, example + 1, *limits} - {example} if 1 <= size <= _LONGEST):
            index = torch.arange(int(size)) % example
            other: dict[int, Any] = {id(tensors[name]): tensors[name] for name, _ in places}
            for name, axis in places:
                other[id(tensors[name])] = other[id(tensors[name])].index_select(axis, index)
            args, kwargs = spec.unflatten([other.get(id(leaf), leaf) for leaf in leaves])
            try:
                expected = pytree.tree_leaves(model(*args, **kwargs))
            except FAILURES:
                continue
            try:
                result = pytree.tree_leaves(captured(*args, **kwargs))
                torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4, equal_nan=True)
            except FAILURES as error:
                raise BadInput(
                    f"forward() takes another path where {dim!r} is {size} than at {example}, its size in the example",
                    hint="leave that axis out, treat its sizes alike in forward(), or take another example",
                ) from error


_LONGEST = 8192


def _explained(error: Exception, model: Any, call: inspect.BoundArguments) -> BadInput | NotSupported:
    """Whose fault a failed capture is: of the inputs, of the dynamic axes, or of the module's code."""
    name, text = type(model).__name__, str(error)
    try:
        model(*call.args, **call.kwargs)
    except FAILURES as failure:
        return BadInput(
            f"{name} does not run on the example inputs: {first_reason(failure)}", hint="check their shapes and dtypes"
        )
    if "Constraints violated" in text:
        violated = re.findall(r"^\s+- (.+)", text, re.MULTILINE) or [text]
        return BadInput(
            f"the dynamic axes do not hold for {name}: {first_reason(ValueError(violated[0]))}",
            hint="take an example size of 2 or more there, leave the axis out, or remove what fixes it in forward()",
        )
    place = re.search(r'call raised this error:\s+File "(.+)", line (\d+)', text)
    return NotSupported(
        f"torch.export cannot capture {name}{f' ({place[1]}:{place[2]})' if place else ''}: {first_reason(error)}",
        hint="use torch operators only; control flow on tensor values becomes torch.where or torch.cond",
    )


@contextmanager
def _evaluating(model: Any) -> Generator[None]:
    """Eval mode for a while; each submodule gets its own flag back."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
