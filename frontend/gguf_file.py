"""The GGUF door: one file with network, weights and tokenizer. Codes that a format of ours expresses stay codes.

transformers rebuilds the network with float32 weights, the *dequantized reference*; beside it the codes are read from
the file, and each is kept only where decoding it gives that very weight.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
from pathlib import Path
from typing import Any

import numpy as np

from qcc.ir.errors import BadInput, MissingExtra, NotSupported
from qcc.ir.program import StoredCodes

from . import causal_lm, gguf_guard
from .gguf_codes import codes_of
from .huggingface import finish, import_transformers, loading, require_all
from .language import LanguageModel, check_architecture
from .torch_to_onnx import first_reason, import_torch

_NAMES = {"gemma3": "gemma3_text"}
"""Architectures that GGUF calls otherwise than transformers; the others have one name."""
_ELSEWHERE = ("gemma", "phi")
"""Architectures that transformers does not read from GGUF."""
_FILE = {"mistral": "llama"}
"""Architectures of transformers whose tensors GGUF names as another's."""
_INTERLEAVED = {"llama", "mistral"}
_FREQUENCIES = "rope_freqs.weight"
_FLOATS = {"F32", "F16", "BF16", "F64"}


def open_gguf(path: str | Path) -> LanguageModel:
    """Load a decoder from a `.gguf` file, weights as float32, with the codes of the tensors that are kept.

    Raises `BadInput` where the file is no GGUF, is truncated or damaged, `NotSupported` for unknown architectures,
    `MissingExtra` without gguf or transformers.
    """
    path = Path(path)
    reader = _read(path)
    kind = reader.fields.get("general.architecture")
    name = str(kind.contents()) if kind is not None else ""
    check_architecture(_NAMES.get(name, name), path)
    if name in _ELSEWHERE:
        raise NotSupported(f"{path}: {name!r} is not read from GGUF", hint="give its Hugging Face folder")
    if "tokenizer.ggml.tokens" not in reader.fields:
        raise BadInput(f"{path}: no tokenizer in the file", hint="convert the model again, with its tokenizer")
    settings = _generation(reader)
    reader.fields.clear()  # the vocabulary, string by string: more memory than a small network
    config, tokenizer = _described(path)
    _give_back_memory()
    with loading(path):
        module = _empty(config)
    weights = _Weights(reader, module, _NAMES.get(name, name))
    with loading(path):
        module.load_state_dict(weights.values(), strict=False, assign=True)
        module.tie_weights()
        weights.scale_rotary_frequencies()
    if weights.tensors:
        left, kind = next(iter(weights.tensors)), module.config.model_type
        raise NotSupported(
            f"{path}: {kind} of transformers has no place for tensor {left!r}",
            hint="give its Hugging Face folder",
        )
    require_all((n for n, p in module.named_parameters() if p.is_meta), path)
    model = finish(module, tokenizer, settings, "GGUF file", path)
    return dataclasses.replace(model, stored=weights.stored, decoded=weights.decoded)


def _give_back_memory() -> None:
    """Let the allocator return what it holds free, where it can: glibc keeps hundreds of megabytes of small pieces."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _described(path: Path) -> tuple[Any, Any]:
    """Configuration and tokenizer, as transformers reads them from the file. Any: its classes are untyped."""
    transformers = import_transformers()
    with loading(path):
        named: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
        config = transformers.AutoConfig.from_pretrained(path.parent, **named)
        return config, transformers.AutoTokenizer.from_pretrained(path.parent, **named)


def _empty(config: Any) -> Any:
    """The module without memory for its weights. Any: torch is not imported here."""
    transformers = import_transformers()
    causal_lm.register()
    try:
        from accelerate import init_empty_weights  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise MissingExtra("GGUF files need the package accelerate", hint='pip install "qcc[hf]"') from error
    with init_empty_weights(include_buffers=False):
        return transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation=causal_lm.IMPLEMENTATION, dtype="float32"
        )


def _read(path: Path) -> Any:
    """A reader whose tensors all lie within the file. Any: gguf has no stubs that hold."""
    try:
        import gguf
    except ImportError as error:
        raise MissingExtra("GGUF files need the package gguf", hint='pip install "qcc[hf]"') from error
    gguf_guard.check(path)
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, OSError) as error:
        raise BadInput(
            f"{path}: damaged, or truncated at {path.stat().st_size} bytes ({first_reason(error)})",
            hint="download the file again",
        ) from error


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


class _Weights:
    """The weights of a module from the tensors of a file, each decoded when it is asked for. Any: torch and gguf."""

    def __init__(self, reader: Any, module: Any, architecture: str) -> None:
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        """Those that were not read yet."""
        self.module = module
        self.architecture = architecture
        self.stored: dict[str, StoredCodes] = {}
        self.decoded: dict[str, str] = {}

    def values(self) -> dict[str, Any]:
        """Every parameter that the file holds, by checkpoint name, as float32; notes the codes that are kept."""
        import gguf

        torch = import_torch()
        kind = next(
            k
            for k, v in gguf.MODEL_ARCH_NAMES.items()
            if _NAMES.get(v, v) == _FILE.get(self.architecture, self.architecture)
        )
        config = self.module.config
        names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
        tied = bool(config.tie_word_embeddings)
        values: dict[str, Any] = {}
        read: list[str] = []
        for name, parameter in self.module.state_dict(keep_vars=True).items():
            base, _, suffix = name.rpartition(".")
            found = names.get_name("model.embed_tokens" if tied and name == "lm_head.weight" else base)
            tensor = self.tensors.get(f"{found}.{suffix}")
            if tensor is None:
                continue
            if tied and name == "lm_head.weight":  # the table is the output head
                if "model.embed_tokens.weight" in self.stored:
                    self.stored[name] = self.stored["model.embed_tokens.weight"]
                continue
            if tuple(int(n) for n in reversed(tensor.shape)) != tuple(parameter.shape):
                shape = [int(n) for n in reversed(tensor.shape)]
                raise BadInput(
                    f"tensor {tensor.name!r} has shape {shape}, the network wants {list(parameter.shape)}",
                    hint="the file's metadata and tensors do not belong together: convert the model again",
                )
            values[name] = torch.from_numpy(self._decode(name, tensor, config))
            read.append(tensor.name)
        for name in read:
            del self.tensors[name]
        return values

    def scale_rotary_frequencies(self) -> None:
        """Divide the frequencies of rotary positions by those of the file: how llama.cpp keeps Llama 3's scaling."""
        import gguf

        torch = import_torch()
        tensor = self.tensors.pop(_FREQUENCIES, None)
        if tensor is not None:
            factors = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
            self.module.model.rotary_emb.inv_freq /= torch.from_numpy(factors)

    def _decode(self, name: str, tensor: Any, config: Any) -> np.ndarray:
        import gguf

        weight = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        if self.architecture.startswith("gemma") and name.endswith("norm.weight"):
            return weight - np.float32(1)  # the file holds 1 + w
        rows = _rotary_order(name, weight.shape[0], self.architecture, config)
        weight = weight if rows is None else weight[rows]
        if tensor.tensor_type.name in _FLOATS or weight.ndim != 2:
            return weight
        codes = codes_of(tensor.tensor_type.name, tensor.data, weight.shape)
        if codes is None:
            self.decoded[name] = f"{tensor.tensor_type.name} is not codes times one scale: decoded to float"
            return weight
        if rows is not None:
            codes = dataclasses.replace(codes, codes=codes.codes[rows], scale=codes.scale[rows])
        if codes.decodes_to(weight):
            self.stored[name] = codes
        else:
            self.decoded[name] = f"codes of {tensor.tensor_type.name} do not decode to gguf's values: decoded to float"
        return weight


def _rotary_order(name: str, rows: int, architecture: str, config: Any) -> np.ndarray | None:
    """Where each row of a query or key projection lies in the file: llama.cpp interleaves the halves of a head."""
    if architecture not in _INTERLEAVED or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return None
    heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
