"""The GGUF door: one file with network, weights and tokenizer. Codes that a format of ours expresses stay codes.

transformers rebuilds the network with float32 weights, the *dequantized reference*: what the codes of the file decode
to. Kinds of block without a codec are decoded by the gguf package, and that is said.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from qcc.ir.codecs import gguf as codec
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.memory import give_back_memory
from qcc.ir.program import StoredCodes

from . import gguf_guard
from .checkpoints import Checkpoint
from .decoders import empty_decoder, fill
from .gguf_names import FREQUENCIES, holds_one_more, import_gguf, model_type, rotary_rows, tensor_names
from .huggingface import finish, import_transformers, loading, require_all
from .language import LanguageModel, check_architecture
from .torch_to_onnx import first_reason, import_torch, quiet

_ELSEWHERE = ("gemma", "phi")
"""Architectures that transformers does not read from GGUF."""


def open_gguf(path: str | Path) -> LanguageModel:
    """Load a decoder from a `.gguf` file, weights as float32, with the codes of the tensors that are kept.

    Raises `BadInput` where the file is no GGUF, is truncated or damaged, `NotSupported` for unknown architectures,
    `MissingExtra` without gguf or transformers.
    """
    path = Path(path)
    reader, kind = _reader(path)
    settings = _generation(reader)
    config, tokenizer = _described(path, reader)
    reader.fields.clear()  # the vocabulary, string by string: more memory than a small network
    give_back_memory()
    with loading(path):
        module = empty_decoder(config)
    tensors = GgufTensors(reader, module, kind)
    with loading(path):
        stored = fill(module, tensors.by_name, tensors.read, path)
        tensors.scale_rotary_frequencies(module)
    if tensors.left:
        raise NotSupported(
            f"{path}: {module.config.model_type} of transformers has no place for tensor {tensors.left[0]!r}",
            hint="give its Hugging Face folder",
        )
    require_all((n for n, p in module.named_parameters() if p.is_meta), path)
    model = finish(module, tokenizer, settings, "GGUF file", path)
    return dataclasses.replace(model, stored=stored, decoded=tensors.decoded)


def open_gguf_checkpoint(path: Path) -> Checkpoint:
    """The same file as weights that are read one at a time, with the configuration that transformers finds in it.

    Raises as `open_gguf` does, and `NotSupported` for frequencies of rotary positions that lie in a tensor.
    """
    reader, kind = _reader(path)
    settings = _generation(reader)
    config, tokenizer = _described(path, reader)
    with loading(path):
        module = empty_decoder(config)
    tensors = GgufTensors(reader, module, kind)
    if tensors.frequencies is not None or tensors.left:
        name = FREQUENCIES if tensors.frequencies is not None else tensors.left[0]
        raise NotSupported(f"{path}: no entry of a configuration, and no weight, says what tensor {name!r} says")
    told: dict[str, Any] = {**config.to_diff_dict(), "architectures": [type(module).__name__], "dtype": tensors.dtype}

    def save_tokenizer(folder: Path) -> None:
        with quiet():
            tokenizer.save_pretrained(folder)
        (folder / "generation_config.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")

    plain = {name: value for name, value in told.items() if name != "quantization_config" and name[0] != "_"}
    return Checkpoint(path, plain, tuple(tensors.by_name), tensors.read, save_tokenizer, "gguf")


def _reader(path: Path) -> tuple[Any, str]:
    """A reader whose tensors all lie within the file, and the `model_type` of the network. Any: gguf is untyped."""
    reader = _read(path)
    entry = reader.fields.get("general.architecture")
    name = str(entry.contents()) if entry is not None else ""
    check_architecture(model_type(name), path)
    if name in _ELSEWHERE:
        raise NotSupported(f"{path}: {name!r} is not read from GGUF", hint="give its Hugging Face folder")
    if "tokenizer.ggml.tokens" not in reader.fields:
        raise BadInput(f"{path}: no tokenizer in the file", hint="convert the model again, with its tokenizer")
    return reader, model_type(name)


def _described(path: Path, reader: Any) -> tuple[Any, Any]:
    """Configuration and tokenizer, as transformers makes them of what `reader` found. Any: its classes are untyped."""
    transformers = import_transformers()
    with loading(path), _lent(reader):
        named: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
        config = transformers.AutoConfig.from_pretrained(path.parent, **named)
        return config, transformers.AutoTokenizer.from_pretrained(path.parent, **named)


@contextlib.contextmanager
def _lent(reader: Any) -> Generator[None]:
    """Let transformers use a reader instead of reading the file twice more. Any: untyped."""
    gguf = import_gguf()
    own = gguf.GGUFReader

    def lend(path: object, mode: str = "r") -> Any:
        return reader

    gguf.GGUFReader = lend
    try:
        yield
    finally:
        gguf.GGUFReader = own


def _read(path: Path) -> Any:
    """A reader whose tensors all lie within the file. Any: gguf has no stubs that hold."""
    gguf = import_gguf()
    gguf_guard.check(path)
    try:
        return _plain(gguf.GGUFReader)(path)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, OSError) as error:
        raise BadInput(
            f"{path}: damaged, or truncated at {path.stat().st_size} bytes ({first_reason(error)})",
            hint="download the file again",
        ) from error


def _plain(reader: Any) -> Any:
    """The class of readers whose bytes are a plain array: a vocabulary is a million slices, slow of a memory map."""

    class Plain(reader):
        @property
        def data(self) -> np.ndarray:
            return self._bytes

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            self._bytes = mapped.view(np.ndarray)

    return Plain


def _generation(reader: Any) -> dict[str, Any]:
    """Token ids as generation_config.json names them. Any: parsed metadata."""
    ids: dict[str, int] = {}
    for name in ("bos_token_id", "eos_token_id", "eot_token_id"):
        entry = reader.fields.get(f"tokenizer.ggml.{name}")
        value: object = None if entry is None else entry.contents()
        if isinstance(value, int):
            ids[name] = value
    found: dict[str, Any] = {name: ids[name] for name in ("bos_token_id", "eos_token_id") if name in ids}
    if "eot_token_id" in ids and "eos_token_id" in ids:  # the end of a turn ends the text too
        found["eos_token_id"] = sorted({ids["eos_token_id"], ids["eot_token_id"]})
    return found


class GgufTensors:
    """The tensors of a file by the names that transformers gives them, each read when it is asked for.

    Any: gguf has no stubs that hold, and the module is one of torch.
    """

    def __init__(self, reader: Any, module: Any, kind: str) -> None:
        self.config, self.kind = module.config, kind
        self.decoded: dict[str, str] = {}
        """Why quantized tensors were decoded to float."""
        name_of = tensor_names(kind, self.config.num_hidden_layers)
        tied = bool(self.config.tie_word_embeddings)
        held = {tensor.name: tensor for tensor in reader.tensors}
        self.frequencies = held.pop(FREQUENCIES, None)
        """What llama.cpp divides the frequencies of rotary positions by."""
        self.by_name: dict[str, Any] = {}
        for name in module.state_dict():
            found = name_of(name)
            if found in held and not (tied and name == "lm_head.weight"):
                self.by_name[name] = held[found]
        read = {tensor.name for tensor in self.by_name.values()}
        self.left = [name for name in held if name not in read]
        """Tensors that the module has no place for."""

    @property
    def dtype(self) -> str:
        """What a configuration calls the dtype of the network: that of its table, float32 where that is codes."""
        table = self.by_name.get("model.embed_tokens.weight")
        return {"F16": "float16", "BF16": "bfloat16"}.get("" if table is None else table.tensor_type.name, "float32")

    def read(self, name: str) -> np.ndarray | StoredCodes:
        """A float tensor as it is stored, or the codes of one; kinds without a codec are decoded."""
        import gguf

        tensor = self.by_name[name]
        block, shape = tensor.tensor_type.name, tuple(int(n) for n in reversed(tensor.shape))
        c = self.config
        rows = rotary_rows(name, shape[0], self.kind, c.num_attention_heads, getattr(c, "num_key_value_heads", 0))
        if block in codec.kinds() and len(shape) == 2:
            value = codec.decode(block, tensor.data, shape, tensor.name)
            return StoredCodes(value if rows is None else value.take_rows(rows), block)
        weight = _floats(tensor, shape)
        if weight is None:
            weight = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
            self.decoded[name] = f"{block} has no codec: decoded to float"
        if holds_one_more(name, self.kind):
            return weight.astype(np.float32) - np.float32(1)
        return weight if rows is None else weight[rows]

    def scale_rotary_frequencies(self, module: Any) -> None:
        """Divide the frequencies of rotary positions by those of the file: how llama.cpp keeps Llama 3's scaling."""
        import gguf

        torch = import_torch()
        if self.frequencies is not None:
            factors = np.array(gguf.dequantize(self.frequencies.data, self.frequencies.tensor_type), np.float32)
            module.model.rotary_emb.inv_freq /= torch.from_numpy(factors)


def _floats(tensor: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """A tensor that is no codes, in its own dtype; None for others. Any: gguf has no stubs that hold."""
    dtypes = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
    dtype = dtypes.get(tensor.tensor_type.name)
    return None if dtype is None else np.ascontiguousarray(tensor.data).view(dtype).reshape(shape)
