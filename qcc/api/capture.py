"""Whatever the user has, as a program: a path, an `onnx.ModelProto`, an `ExportedProgram`, or an `nn.Module`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, cast

import numpy as np
from onnx import ModelProto

from qcc.frontend import onnx_file
from qcc.frontend.language import read_json
from qcc.frontend.samples import InputSpec, Sample
from qcc.ir import target as targets
from qcc.ir import types
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.program import Program

from .language import Language
from .options import Options


@dataclass(frozen=True)
class Captured:
    """The program, the name of the model, and the example inputs where the user gave some."""

    program: Program
    name: str
    example: Sample | None
    language: Language | None = None
    """What a language model brings beside its network."""


def capture(model: object, inputs: Any, options: Options, folder: Path) -> Captured:
    """Import a model; `folder` takes what torch writes. Any: example inputs are whatever `forward` takes."""
    if is_path(model):
        return _from_path(Path(model), inputs, options, folder)
    if isinstance(model, ModelProto):
        proto = ModelProto()
        proto.CopyFrom(model)
        return Captured(onnx_file.from_model(proto, shapes=_shapes(options)), "model", _example(inputs, None))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module | torch.export.ExportedProgram):
        name = type(model).__name__ if isinstance(model, torch.nn.Module) else "program"
        return _from_torch(model, inputs, options, folder, name)
    raise BadInput(
        f"{type(model).__name__} is no model that qcc reads",
        hint="give the path of an .onnx, .pt2 or .gguf file or of a Hugging Face folder, an onnx.ModelProto, "
        "an ExportedProgram, or an nn.Module with example inputs",
    )


def default_scheme(model: object, target: str) -> str:
    """The scheme of a model that the user named none for: the target's, or the one that keeps codes it has already."""
    found = targets.load(target)
    keeps = found.keeping_scheme and is_path(model) and _holds_codes(Path(model))
    return found.keeping_scheme if keeps else found.scheme


def _holds_codes(path: Path) -> bool:
    """Whether a path is a GGUF file, or a Hugging Face folder whose configuration tells of quantization."""
    config = path / "config.json"
    if not config.is_file():
        return path.suffix == ".gguf"
    return "quantization_config" in read_json(config)


def is_path(model: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a model is given by its place."""
    return isinstance(model, str | os.PathLike)


def _from_path(path: Path, inputs: Any, options: Options, folder: Path) -> Captured:
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder", hint="give an .onnx, .pt2 or .gguf file, or a folder")
    if path.is_dir() or path.suffix == ".gguf":
        from .language import capture_language

        program, language = capture_language(path, folder)
        return Captured(program, path.stem, None, language)
    if path.suffix == ".pt2":
        from qcc.frontend.torch_export import open_pt2

        return _from_torch(open_pt2(path), None, options, folder, path.stem)
    return Captured(onnx_file.read(path, shapes=_shapes(options)), path.stem, _example(inputs, None))


def _from_torch(model: Any, inputs: Any, options: Options, folder: Path, name: str) -> Captured:
    """Any: torch is not imported here."""
    from qcc.frontend import torch_export

    path = torch_export.to_onnx(model, inputs, folder=folder, dynamic=options.dynamic or None)
    shapes = onnx_file.Shapes(dict(options.input_shapes), {})
    program = onnx_file.read(path, shapes=shapes)
    return Captured(program, name, _example(inputs, program))


def _shapes(options: Options) -> onnx_file.Shapes:
    return onnx_file.Shapes(dict(options.input_shapes), {n: dict(a) for n, a in options.dynamic.items()})


def _example(inputs: Any, program: Program | None) -> Sample | None:
    """Example inputs as arrays by name, where they are arrays or tensors."""
    if inputs is None:
        return None
    if isinstance(inputs, Mapping):
        arrays = {str(k): _array(v) for k, v in cast(Mapping[object, object], inputs).items()}
    elif program is not None:
        values = cast(Sequence[object], inputs if isinstance(inputs, tuple | list) else (inputs,))
        arrays = dict(zip((p.name for p in program.inputs()), map(_array, values), strict=False))
    else:
        raise BadInput("example inputs of an ONNX model are given by name", hint='pass inputs={"x": array}')
    return None if any(a is None for a in arrays.values()) else {k: v for k, v in arrays.items() if v is not None}


def _array(value: Any) -> np.ndarray | None:
    if isinstance(value, np.ndarray):
        return cast(np.ndarray, value)
    return value.detach().cpu().numpy() if hasattr(value, "detach") else None


def input_specs(program: Program) -> list[InputSpec]:
    """What samples of a program must look like; `NotSupported` for inputs that are not tensors."""
    specs: list[InputSpec] = []
    for port in program.inputs():
        dims = types.dims_of(port.type)
        if dims is None:
            raise NotSupported(
                f"input {port.name!r} is {port.type}: only tensors of known rank can be fed",
                hint="give it a shape with --input-shape",
            )
        specs.append(InputSpec(port.name, dims, types.element_of(types.element_type(port.type)).numpy))
    return specs


def refuse_collections(program: Program) -> None:
    """`NotSupported` for outputs that are not tensors: an artifact gives arrays."""
    for port in program.results():
        if types.schema_string(port.type).startswith(("seq", "map", "optional")):
            raise NotSupported(
                f"output {port.name!r} is of type {types.schema_string(port.type)}, not a tensor",
                hint="cut the model before the operator that gives it",
            )
