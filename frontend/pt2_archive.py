"""Look into a `.pt2` archive before torch does, and copy out only what cannot run: numbers, names, known operators.

`torch.export.load` trusts its file (read in torch 2.13). On loading, it runs code out of
  - pickles: tensors marked `use_pickle`, `opaque_obj_*` constants, and every `.pt` record, because a load that fails
    with `weights_only=True` is repeated with `weights_only=False`; each archive holds its example inputs that way;
  - TorchScript objects (`custom_obj_*`) and AOTInductor libraries (`data/aotinductor/`);
  - the JSON itself: symbolic expressions go to `sympy.sympify`, which evaluates them; names of values are pasted into
    generated Python; tree specs name modules to import; `guards_code` runs in `ExportedProgram.module()`; and an
    operator may be any attribute path below `torch`, `torch.os.system` among them, called when a graph is traced.
So every record and every string has to be on a list of what is allowed, and torch is given a fresh archive written
from the checked parts: it never sees the original bytes, and no second reading of the ZIP structure can differ from
ours. Left out of the copy: example inputs, guards, extra files, and node metadata other than the module path.

Loading and translating a checked program is safe; running it in torch may still allocate without bound.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import struct
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

from qcc.ir.errors import BadInput, NotSupported

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


def inspect(path: str | Path) -> None:
    """Check the archive at `path` without loading anything from it.

    Raises `BadInput` where the file is no intact `.pt2` archive, and `NotSupported` where it holds something that
    could run code when loaded, or a form that qcc does not read; the message names the record and the reason.
    """
    with _opened(Path(path)) as archive:
        _check(archive)


def write_checked_copy(path: str | Path, destination: str | Path) -> None:
    """Check the archive at `path` as `inspect` does and write its checked parts to `destination`, safe to load."""
    with _opened(Path(path)) as archive:
        texts, tensors = _check(archive)
        with zipfile.ZipFile(destination, "w", zipfile.ZIP_STORED) as copy:
            for name, text in texts.items():
                copy.writestr(f"checked/{name}", text)
            for name in tensors:
                with _record(archive, name) as source, copy.open(f"checked/{name}", "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target, 1 << 20)


@dataclass(frozen=True)
class _Archive:
    path: Path
    zip: zipfile.ZipFile
    entries: dict[str, zipfile.ZipInfo]


_DAMAGE = (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, struct.error)
_OTHER_FILES = (
    (re.compile(rb"\Z"), "the file is empty"),
    (re.compile(rb"\x80[\x02-\x05]"), "this is a bare pickle, which runs code when loaded"),
    (re.compile(rb"\x08[\x01-\x20]"), "this looks like an ONNX file: name it .onnx"),
    (re.compile(rb"GGUF"), "this is a GGUF file: name it .gguf"),
)


@contextmanager
def _opened(path: Path) -> Generator[_Archive]:
    """The records of the archive by name, without its root folder; their sizes add up to no more than the file's."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})", hint="check the path") from error
    with file:
        head = file.read(8)
        if not head.startswith(b"PK\x03\x04"):
            what = next((text for magic, text in _OTHER_FILES if magic.match(head)), "it does not begin as a ZIP does")
            raise BadInput(f"{path}: not a .pt2 archive: {what}", hint=_SAVE_AGAIN)
        try:
            archive = zipfile.ZipFile(file)
        except (*_DAMAGE, OSError) as error:
            raise _damaged(path, error) from error
        with archive:
            yield _Archive(path, archive, _entries(path, archive.infolist(), path.stat().st_size))


@contextmanager
def _record(archive: _Archive, name: str) -> Generator[zipfile.ZipExtFile]:
    """The bytes of one record as a stream, its checksum compared at the end."""
    try:
        with archive.zip.open(archive.entries[name]) as stream:
            yield cast("zipfile.ZipExtFile", stream)
    except _DAMAGE as error:
        raise _damaged(archive.path, error) from error


def _damaged(path: Path, error: Exception) -> BadInput:
    return BadInput(f"{path}: the archive is damaged or cut short ({error})", hint="copy it or save it again")


def _entries(path: Path, infos: list[zipfile.ZipInfo], length: int) -> dict[str, zipfile.ZipInfo]:
    """Records keyed by name below the one root folder. torch stores them uncompressed, so a bomb has no place."""
    entries = {info.filename.partition("/")[2] or info.filename: info for info in infos}
    for sign, what in _OTHER_ARCHIVES.items():
        if sign in entries:
            raise NotSupported(f"{path}: {what}", hint=_SAVE_AGAIN)
    if "archive_format" not in entries:
        raise BadInput(f"{path}: a ZIP file, but not one that torch.export.save wrote", hint=_SAVE_AGAIN)
    if len(entries) != len(infos) or len({info.filename.partition("/")[0] for info in infos}) != 1:
        raise BadInput(f"{path}: a record is there twice, or outside the root folder", hint=_SAVE_AGAIN)
    for info in infos:
        if info.flag_bits & 1 or info.file_size != info.compress_size:
            raise BadInput(f"{path}: {info.filename!r} is compressed or encrypted", hint=_SAVE_AGAIN)
    if sum(info.file_size for info in infos) > length:
        raise BadInput(f"{path}: its records claim more bytes than the file has", hint=_SAVE_AGAIN)
    return entries


_SAVE_AGAIN = "write it with torch.export.save(program, path) of a current torch"
_PASS_A_MODULE = "give qcc the torch.nn.Module with example inputs, or save a program of plain tensors and operators"
_OTHER_ARCHIVES = {
    "serialized_exported_program.json": "the layout of torch 2.7 and older, whose tensors are pickles",
    "constants.pkl": "a TorchScript archive, not an exported program",
    "data.pkl": "a torch.save file (pickled objects), not an exported program",
}

_PROGRAM = "models/model.json"
_WEIGHTS = "data/weights/model_weights_config.json"
_CONSTANTS = "data/constants/model_constants_config.json"
_EXACT = {"archive_format": "pt2", "archive_version": "0", "byteorder": "little"}
_KEPT = (*_EXACT, ".data/version", _PROGRAM, _WEIGHTS, _CONSTANTS)
_TENSOR = re.compile(r"data/weights/weight_\d+|data/constants/tensor_\d+", re.ASCII)
_LEFT_OUT = re.compile(
    r"data/sample_inputs/model\.pt|extra/.*|\.data/serialization_id|\.format_version|\.storage_alignment", re.DOTALL
)
_REFUSED = (
    (re.compile(r"data/aotinductor/"), "compiled code (AOTInductor)"),
    (re.compile(r"data/executorch/"), "an ExecuTorch program"),
    (re.compile(r"data/constants/custom_obj_"), "a TorchScript object"),
    (re.compile(r"data/constants/opaque_obj_"), "a pickled Python object"),
    (re.compile(r"data/.*\.pt$"), "pickled tensors, a layout of torch before 2.9"),
    (re.compile(r"models/"), "more than one program, or one not named 'model'"),
)


def _check(archive: _Archive) -> tuple[dict[str, str], tuple[str, ...]]:
    """Hold every record against the lists: the texts to write, by name, and the names of the raw tensors to copy."""
    for name in archive.entries:
        if not (name in _KEPT or _TENSOR.fullmatch(name) or _LEFT_OUT.fullmatch(name)):
            what = next((text for sign, text in _REFUSED if sign.match(name)), "a record qcc does not know")
            raise NotSupported(f"{archive.path}: {name!r} is {what}, which qcc does not load", hint=_PASS_A_MODULE)
    if missing := [name for name in _KEPT if name not in archive.entries and name != "byteorder"]:
        raise BadInput(f"{archive.path}: {missing[0]!r} is missing from the archive", hint=_SAVE_AGAIN)
    texts = {name: _text(archive, name) for name in _KEPT if name in archive.entries}
    for name, expected in _EXACT.items():
        if texts.get(name, expected) != expected:
            raise NotSupported(f"{archive.path}: {name} is {_short(texts[name])}, not {expected!r}", hint=_SAVE_AGAIN)
    documents = {name: _document(archive.path, name, texts[name]) for name in (_PROGRAM, _WEIGHTS, _CONSTANTS)}
    tensors = [record for config in (_WEIGHTS, _CONSTANTS) for record in _tensors(archive, documents[config], config)]
    texts |= {name: json.dumps(document) for name, document in documents.items()}
    texts["data/sample_inputs/model.pt"] = ""
    return texts, tuple(dict.fromkeys(tensors))


def _text(archive: _Archive, name: str) -> str:
    with _record(archive, name) as stream:
        return stream.read().decode()


def _document(path: Path, name: str, text: str) -> dict[str, Json]:
    """The JSON object of one record with every string checked, and what is not needed emptied."""
    try:
        document = _checked(cast("Json", json.loads(text)), f"{path}: {name}")
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: {name} is not the JSON that torch writes ({error})", hint=_SAVE_AGAIN) from error
    if not isinstance(document, dict):
        raise BadInput(f"{path}: {name} is not a JSON object", hint=_SAVE_AGAIN)
    return document


def _tensors(archive: _Archive, document: dict[str, Json], config: str) -> Iterator[str]:
    """The records holding the tensors that a payload config lists; each is raw bytes and there."""
    folder = config.rpartition("/")[0]
    payloads = document.get("config")
    if not isinstance(payloads, dict):
        raise BadInput(f"{archive.path}: {config} lists no payloads", hint=_SAVE_AGAIN)
    for tensor, payload in payloads.items():
        where = f"{archive.path}: tensor {tensor!r}"
        if not isinstance(payload, dict) or payload.get("use_pickle") is not False:
            raise NotSupported(f"{where} is a pickle, which runs code when loaded", hint=_PASS_A_MODULE)
        record = f"{folder}/{payload.get('path_name')}"
        if not _TENSOR.fullmatch(record) or record not in archive.entries:
            raise BadInput(f"{where} names the record {record!r}, which is not in the archive", hint=_SAVE_AGAIN)
        meta = payload.get("tensor_meta")
        sizes = meta.get("sizes") if isinstance(meta, dict) else None
        if not isinstance(sizes, list):
            raise BadInput(f"{where} has no shape", hint=_SAVE_AGAIN)
        if archive.entries[record].file_size == 0 and {"as_int": 0} not in sizes:
            raise NotSupported(f"{where} has no data (it was exported as a fake tensor)", hint=_PASS_A_MODULE)
        yield record


_NAME = re.compile(r"[A-Za-z0-9_.\-]*")
_KEYED_BY_NAME = re.compile(
    r"(tensor|sym_int|sym_bool|sym_float|custom_obj)_values|range_constraints|opset_version|config"
    r"|as_string_to_argument|treespec_namedtuple_fields"
)


def _checked(value: Json, where: str, argument: str = "") -> Json:
    """`value` with every string a plain name, or passed by the rule for its key in torch's export schema.

    `argument` is the operator argument that `value` is given to.
    """
    if isinstance(value, str):
        if not _NAME.fullmatch(value):
            raise NotSupported(f"{where} is {_short(value)}, where qcc accepts a plain name", hint=_PASS_A_MODULE)
        return value
    if isinstance(value, list):
        return [_checked(item, f"{where}[{index}]", argument) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if "arg" in value:
        argument = str(value.get("name", ""))
    result: dict[str, Json] = {}
    for key, item in value.items():
        _checked(key, f"{where}: a key")
        inner = f"{where}.{key}"
        if _KEYED_BY_NAME.fullmatch(key) and isinstance(item, dict):
            _checked(list(item), inner)
            result[key] = {name: _checked(entry, f"{inner}.{name}") for name, entry in item.items()}
        elif key == "as_string":
            result[key] = _option(item, inner, argument)
        elif key in _RULES:
            result[key] = _RULES[key](item, inner)
        else:
            result[key] = _checked(item, inner, argument)
    return result


def _short(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_OPTION = re.compile(
    r"UPLO|activation|algorithm|approximate|assert_msg|driver|equation|indexing|interpolation|mode|norm|ord|p|pad_mode"
    r"|padding|padding_side|reduce|rounding_mode|side"
)


def _option(value: Json, where: str, argument: str) -> Json:
    """A string given to an operator: its way of rounding, padding ... never the name of a file."""
    if isinstance(value, str) and (_OPTION.fullmatch(argument) or value in ("cpu", "cuda")):
        return value
    raise NotSupported(f"{where} gives {_short(value)} to the argument {argument!r}", hint=_PASS_A_MODULE)


_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision)\.((?!__)\w+|__(and|or|xor|lshift|rshift)__)\.(?!__)\w+"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(eq|ne|le|ge|lt|gt|neg|pos|abs|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|lshift|rshift|getitem)"
    r"|math\.(trunc|ceil|floor)"
    r"|torch\.sym_(not|int|float|ite|max|min|sqrt|sum)"
    r"|torch\._functorch\.predispatch\._(add_batch_dim|remove_batch_dim|vmap_(in|de)crement_nesting)",
    re.ASCII,
)


def _operator(value: Json, where: str) -> Json:
    if isinstance(value, str) and _OPERATOR.fullmatch(value):
        return value
    raise NotSupported(f"{where} is {_short(value)}, not a tensor operator qcc knows", hint=_PASS_A_MODULE)


_EXPRESSION = re.compile(r"[A-Za-z0-9_(),=' .\-]+")
_FUNCTION = re.compile(
    r"Symbol|Integer|Rational|Float|Add|Mul|Pow|Mod|Max|Min|And|Or|Not|floor|ceiling|Identity|Where|ModularIndexing"
    r"|Equality|Unequality|GreaterThan|LessThan|StrictGreaterThan|StrictLessThan|PowByNatural|FloatPow|PythonMod"
    r"|LShift|RShift|(Ceil|Clean|Floor)Div|(Int|Float)TrueDiv|(Ceil|Floor|Trunc|Round)ToInt|(Trunc)?ToFloat|RoundDecimal"
)
_CONSTANT = re.compile(r"true|false|oo|int_oo")


def _expression(value: Json, where: str) -> Json:
    """A size as sympy's `srepr` prints it, such as `Mul(Integer(2), Symbol('s77', integer=True))`."""

    def is_plain(node: ast.AST) -> bool:
        match node:
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
                inner = [*args, *(keyword.value for keyword in keywords)]
                return _FUNCTION.fullmatch(name) is not None and all(map(is_plain, inner))
            case ast.Name(id=name):
                return _CONSTANT.fullmatch(name) is not None
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
                return True
            case ast.Constant(value=str() as text):
                return _NAME.fullmatch(text) is not None
            case ast.Constant(value=int() | float()):
                return True
            case _:
                return False

    if isinstance(value, str) and _EXPRESSION.fullmatch(value):
        try:
            if is_plain(ast.parse(value, mode="eval").body):
                return value
        except SyntaxError:
            pass
    raise NotSupported(f"{where} is {_short(value)}, not a symbolic size", hint=_PASS_A_MODULE)


_CONTAINER = re.compile(
    r"builtins\.(tuple|list|dict)|collections\.OrderedDict|torch\.fx\.immutable_collections\.immutable_(list|dict)"
)
_MODEL_OUTPUT = re.compile(r"transformers\.modeling_outputs\.\w+", re.ASCII)


def _tree_spec(value: Json, where: str) -> Json:
    """How inputs and outputs nest: JSON within a string. Other containers name modules that torch would import.

    A model output of transformers is a dict here, so that the program loads where that package is not imported.
    """

    def check(spec: Json) -> Json:
        match spec:
            case {"type": None, "context": None, "children_spec": []}:
                return spec
            case {"type": str(kind), "context": str(context), "children_spec": [*children]}:
                kind = "builtins.dict" if _MODEL_OUTPUT.fullmatch(kind) else kind
                keys = cast("Json", json.loads(context))
                plain = keys is None or (isinstance(keys, list) and all(isinstance(key, (str, int)) for key in keys))
                if not _CONTAINER.fullmatch(kind) or not plain:
                    raise NotSupported(f"{where} has a container {kind!r} of {_short(keys)}", hint=_PASS_A_MODULE)
                _checked(keys, where)
                return {"type": kind, "context": context, "children_spec": [check(child) for child in children]}
            case _:
                raise NotSupported(f"{where} has {_short(spec)}", hint=_PASS_A_MODULE)

    match cast("Json", json.loads(value)) if isinstance(value, str) else None:
        case [1, spec]:
            return json.dumps([1, check(spec)])
        case _:
            raise NotSupported(f"{where} is {_short(value)}, not a tree spec of version 1", hint=_SAVE_AGAIN)


def _device(value: Json, where: str) -> Json:
    if isinstance(value, dict) and value.get("type") == "cpu":
        return {"type": "cpu", "index": None}
    raise NotSupported(
        f"{where} is {_short(value)}: the program was exported on another device than the CPU",
        hint='save torch.export.passes.move_to_device_pass(program, "cpu")',
    )


def _module_path(value: Json, where: str) -> Json:
    """Of the metadata of a node only the path of its module, which torch keeps as text and names nodes by."""
    path = value.get("nn_module_stack") if isinstance(value, dict) else None
    return {"nn_module_stack": path} if isinstance(path, str) and path.isprintable() else {}


def _refused(value: Json, where: str) -> Json:
    raise NotSupported(f"{where} is a script or custom object", hint=_PASS_A_MODULE)


def _version(value: Json, where: str) -> Json:
    return value if isinstance(value, str) and re.fullmatch(r"[\w.+<= -]{1,64}", value, re.ASCII) else "unknown"


_RULES: dict[str, Callable[[Json, str], Json]] = {
    "target": _operator,
    "as_operator": _operator,
    "expr_str": _expression,
    "in_spec": _tree_spec,
    "out_spec": _tree_spec,
    "device": _device,
    "as_device": _device,
    "metadata": _module_path,
    "guards_code": lambda value, where: [],
    "as_custom_obj": _refused,
    "custom_obj": _refused,
    "torch_version": _version,
}
