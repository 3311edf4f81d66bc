"""GGUF files, as llama.cpp reads them: each weight in the narrowest kind of block that holds its very values."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from qcc.frontend.checkpoints import Checkpoint
from qcc.frontend.gguf_names import (
    FREQUENCIES,
    architecture,
    holds_one_more,
    import_gguf,
    rotary_rows,
    tensor_names,
)
from qcc.frontend.language import read_json
from qcc.ir.codecs import gguf as codec
from qcc.ir.errors import NotSupported
from qcc.ir.quantized import Quantized

from . import Choices, Record
from ._gguf_metadata import Metadata
from ._gguf_tokenizer import Tokens, read_tokens
from ._stream import Container, refuse_activation_scales, stream

_SPECIAL = ("bos", "eos", "unk", "pad")


def write(checkpoint: Checkpoint, place: Path, choices: Choices) -> list[Record]:
    """Write the file. `NotSupported` names what llama.cpp has no entry, kind of block or name for."""
    refuse_activation_scales(checkpoint, "GGUF")
    gguf = import_gguf()
    about = Metadata(checkpoint.config, checkpoint.path)
    tokens = read_tokens(checkpoint.path, about.integer("vocab_size"))
    name_of = tensor_names(about.kind, about.integer("num_hidden_layers"))
    writer = gguf.GGUFWriter(place, architecture(about.kind), use_temp_file=True)
    _describe(writer, about)
    _add_tokens(writer, tokens, checkpoint)
    records: list[Record] = []
    sizes: Counter[str] = Counter()
    with tempfile.TemporaryFile(dir=place.parent) as writer.temp_file:  # the header comes first, and counts all tensors
        for item in stream(checkpoint, choices, Container(codec.accepted, "f16", tables=True, heads=True)):
            theirs = name_of(item.name)
            if theirs is None:
                raise NotSupported(f"{item.name}: GGUF has no name for such a tensor of a {about.kind}")
            kind, data, count = _stored(item.name, item.weight, about)
            writer.add_tensor(theirs, data, raw_dtype=gguf.GGMLQuantizationType[kind])
            sizes[kind] += count
            records.append(item.record)
        if about.frequencies is not None:
            writer.add_tensor(FREQUENCIES, about.frequencies)
        writer.add_file_type(_file_type(sizes, gguf))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return records


def _stored(name: str, weight: np.ndarray | Quantized, about: Metadata) -> tuple[str, np.ndarray, int]:
    """The kind, the array and the count of a weight as the file keeps it, rows in its order."""
    c = about.config
    count = weight.shape[0] if weight.shape else 0
    rows = rotary_rows(name, count, about.kind, c["num_attention_heads"], c.get("num_key_value_heads") or 0)
    back = None if rows is None else np.argsort(rows)
    if isinstance(weight, Quantized):
        value = weight if back is None else weight.take_rows(back)
        kind = next(kind for kind, fmt in codec.candidates(value, name) if fmt == value.format)
        return kind, codec.encode(kind, value, name), value.codes.size
    if name.endswith(("q_proj.bias", "k_proj.bias")) and architecture(about.kind) == "llama":
        raise NotSupported(f"{name}: biases of interleaved rows are not written as GGUF")
    if holds_one_more(name, about.kind):
        weight = _one_more(name, weight.astype(np.float32))
    weight = weight.astype(np.float32) if weight.ndim < 2 else weight  # llama.cpp multiplies norms in float32
    weight = np.ascontiguousarray(weight if back is None else weight[back])
    match weight.dtype.name:
        case "float32":
            return "F32", weight, weight.size
        case "float16":
            return "F16", weight, weight.size
        case "bfloat16":
            return "BF16", weight.view(np.uint8), weight.size
        case other:
            raise NotSupported(f"{name}: GGUF has no {other}")


def _one_more(name: str, weight: np.ndarray) -> np.ndarray:
    """1 + w, where taking 1 away gives the very w."""
    more = weight + np.float32(1)
    if not np.array_equal(more - np.float32(1), weight):
        raise NotSupported(f"{name}: GGUF keeps 1 + w, which rounds these values")
    return more


def _describe(writer: Any, about: Metadata) -> None:
    """Sizes and settings of the network. Any: gguf has no stubs that hold."""
    arch = architecture(about.kind)
    writer.add_name(about.path.resolve().name)
    writer.add_quantization_version(2)
    for key, number in about.integers.items():
        writer.add_uint32(f"{arch}.{key}", number)
    for key, value in about.floats.items():
        writer.add_float32(f"{arch}.{key}", value)
    for key, text in about.texts.items():
        writer.add_string(f"{arch}.{key}", text)


def _add_tokens(writer: Any, tokens: Tokens, checkpoint: Checkpoint) -> None:
    """The vocabulary, special tokens and the template of chats. Any: gguf has no stubs that hold."""
    writer.add_tokenizer_model(tokens.model)
    writer.add_tokenizer_pre(tokens.pre)
    writer.add_token_list(tokens.tokens)
    writer.add_token_types(tokens.types)
    if tokens.scores:
        writer.add_token_scores(tokens.scores)
    if tokens.merges:
        writer.add_token_merges(tokens.merges)
    writer.add_add_space_prefix(tokens.space_prefix)
    writer.add_add_bos_token(tokens.add_bos)
    for which in _SPECIAL:
        told: Any = checkpoint.config.get(f"{which}_token_id")
        ids = [i for i in (told if isinstance(told, list) else [told]) if isinstance(i, int) and i >= 0]  # pyright: ignore
        if ids:
            getattr(writer, f"add_{which}_token_id")(ids[0])
        if which == "eos" and len(ids) > 1:
            writer.add_eot_token_id(ids[1])
    template = _chat_template(checkpoint.path)
    if template:
        writer.add_chat_template(template)


def _chat_template(path: Path) -> str:
    if (path / "chat_template.jinja").is_file():
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    file = path / "tokenizer_config.json"
    found = read_json(file).get("chat_template") if file.is_file() else None
    return found if isinstance(found, str) else ""


def _file_type(sizes: Counter[str], gguf: Any) -> int:
    """What llama.cpp calls a file most of whose weights are of one kind. Any: gguf has no stubs that hold."""
    most = sizes.most_common(1)[0][0] if sizes else "F32"
    names = {"F32": "ALL_F32", **{k: f"MOSTLY_{k}_M" for k in ("Q3_K", "Q4_K", "Q5_K")}}
    return int(gguf.LlamaFileType[names.get(most, f"MOSTLY_{most}")])
