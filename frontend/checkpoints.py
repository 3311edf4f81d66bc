"""A checkpoint tensor by tensor: safetensors whose linear weights may be codes of GPTQ, AWQ or compressed-tensors.

Weights go by the names that the float model has: `p.qweight` with its scales is read as `p.weight`. Nothing is loaded
before it is asked for; files are mapped. The tensors tell which layers are quantized, `quantization_config` how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.program import StoredCodes
from qcc.ir.weights import WeightStore

from .language import read_json
from .quantization_config import Activations, Reader, reader_of

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
_BESIDE = (
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "output_scale",
    "k_scale",
    "v_scale",
    "rotary_emb.inv_freq",
)
"""Tensors beside the weights that a network without quantized activations has no place for."""

Weight = np.ndarray | StoredCodes


@dataclass(frozen=True)
class Checkpoint:
    """A model's configuration and its weights, read one at a time."""

    path: Path
    config: dict[str, Any]
    """config.json without what it says of quantization. Any: parsed JSON."""
    names: tuple[str, ...]
    """Weights as the float model calls them."""
    read: Callable[[str], Weight] = field(repr=False)
    """A float tensor as it is stored, or the codes of one."""
    save_tokenizer: Callable[[Path], None] = field(repr=False)
    """Writes the files of the tokenizer into a folder."""
    method: str = ""
    """What the weights are quantized by; empty where they are float."""
    activations: Activations = Activations.FLOAT
    beside: tuple[str, ...] = ()
    """Tensors that belong to quantized activations and are read by nobody."""


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a Hugging Face folder.

    Raises `BadInput` where files are missing or damaged or the configuration lies, `NotSupported` for methods of
    quantization that are not known and for checkpoints in pickles.
    """
    config = read_json(path / "config.json") if (path / "config.json").is_file() else None
    if config is None:
        raise BadInput(f"{path}: no config.json", hint="a Hugging Face folder has a config.json")
    store = open_weights(path)
    told = config.get("quantization_config")
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    reader = reader_of(told, path) if told is not None else None
    layers = reader.layers(list(store)) if reader else {}
    owned = {name for tensors in layers.values() for name in tensors.values()}
    rest = [name for name in store if name not in owned]
    beside = tuple(name for name in rest if name.endswith(_BESIDE))
    names = [name for name in rest if name not in beside] + [f"{layer}.weight" for layer in layers]

    def read(name: str) -> Weight:
        layer = name.removesuffix(".weight")
        if layer in layers and name.endswith(".weight"):
            assert reader is not None
            return _codes(reader, layer, layers[layer], store)
        array = store[name]
        if array.dtype.kind in "iu" or array.dtype.itemsize == 1:
            raise BadInput(
                f"{path}: tensor {name!r} is {array.dtype}, and nothing says what its codes mean",
                hint="its scales are missing, or quantization_config is: copy every file of the model",
            )
        return array

    return Checkpoint(
        path,
        plain,
        tuple(sorted(names)),
        read,
        lambda folder: _copy_tokenizer(path, folder),
        reader.method if reader else "",
        reader.activations if reader else Activations.FLOAT,
        beside,
    )


def _codes(reader: Reader, layer: str, tensors: Mapping[str, str], store: WeightStore) -> StoredCodes:
    value = reader.decode(layer, {name: store[key] for name, key in tensors.items()})
    return StoredCodes(value, reader.method)


def open_weights(path: Path) -> WeightStore:
    """All tensors of a folder's safetensors files, mapped; `BadInput` where a file is missing or damaged."""
    if (path / INDEX).is_file():
        store = WeightStore()
        for shard in shards(path):
            part = WeightStore.open(path / shard)
            for name in part:
                store[name] = part[name]
        return store
    if (path / WHOLE).is_file():
        return WeightStore.open(path / WHOLE)
    if (path / "pytorch_model.bin").is_file():
        raise NotSupported(
            f"{path}: its weights are a pickle (pytorch_model.bin), which is not read tensor by tensor",
            hint="save the model as safetensors first",
        )
    raise BadInput(f"{path}: no weights: neither {WHOLE} nor {INDEX}", hint="copy every file of the model")


def shards(path: Path) -> list[str]:
    """The files that the index of a folder names; `BadInput` where it names none, or others than files beside it."""
    mapped: Any = read_json(path / INDEX).get("weight_map")
    if not isinstance(mapped, dict) or not all(isinstance(v, str) for v in cast("dict[str, Any]", mapped).values()):
        raise BadInput(f"{path / INDEX}: no weight_map", hint="copy the model again")
    found = sorted(set(cast("dict[str, str]", mapped).values()))
    for shard in found:
        if Path(shard).name != shard:
            raise BadInput(f"{path / INDEX}: {shard!r} is not the name of a file in the folder", hint="refuse it")
        if not (path / shard).is_file():
            raise BadInput(f"{path}: shard {shard} of {len(found)} is missing", hint="copy every file of the model")
    return found


_TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def _copy_tokenizer(path: Path, folder: Path) -> None:
    for name in _TOKENIZER:
        if (path / name).is_file():
            (folder / name).write_bytes((path / name).read_bytes())
