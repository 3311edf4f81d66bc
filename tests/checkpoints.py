"""Tiny Hugging Face folders whose linear layers are random codes, written by models of other programs' packers."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ir.codecs.models import Layer
from tests.language import decoder, tokenizer

Array = NDArray[Any]
GROUP = 32


def layers(*, bits: int = 4, symmetric: bool = False, act_order: bool = False, group: int = GROUP) -> dict[str, Layer]:
    """A random layer for each linear weight of a small Llama, by the name of its module."""
    return {
        name.removesuffix(".weight"): Layer(
            *parameter.shape,
            bits,
            group or parameter.shape[1],
            seed=zlib.crc32(name.encode()),
            symmetric=symmetric,
            act_order=act_order,
        )
        for name, parameter in decoder("llama").named_parameters()
        if name.endswith("_proj.weight")
    }


def gptq(folder: Path, made: dict[str, Layer], *, version: int = 1, **more: Any) -> Path:
    """As AutoGPTQ or gptqmodel writes them."""
    first = next(iter(made.values()))
    config = {
        "quant_method": "gptq",
        "bits": first.bits,
        "group_size": first.group,
        "desc_act": any((np.diff(layer.g_idx) < 0).any() for layer in made.values()),
        "sym": all((layer.zero == 1 << (layer.bits - 1)).all() for layer in made.values()),
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
        **more,
    }
    tensors = {f"{name}.{t}": a for name, layer in made.items() for t, a in layer.gptq(version).items()}
    return write(folder, tensors, config)


def awq(folder: Path, made: dict[str, Layer], **more: Any) -> Path:
    """As AutoAWQ writes them."""
    first = next(iter(made.values()))
    config = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": first.group,
        "zero_point": True,
        "version": "gemm",
        **more,
    }
    return write(folder, {f"{name}.{t}": a for name, layer in made.items() for t, a in layer.awq().items()}, config)


def compressed(folder: Path, made: dict[str, Layer], *, symmetric: bool, **more: Any) -> Path:
    """As compressed-tensors writes pack-quantized weights."""
    first = next(iter(made.values()))
    weights = {"num_bits": first.bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": GROUP}
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
        **more,
    }
    tensors = {
        f"{name}.{t}": a for name, layer in made.items() for t, a in layer.compressed(symmetric=symmetric).items()
    }
    return write(folder, tensors, config)


def write(folder: Path, tensors: dict[str, Array], quantization: dict[str, Any] | None) -> Path:
    """Config, tokenizer and weights: the tensors, and the float ones that they leave out, in float16."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    model = decoder("llama")
    held = {name.rsplit(".", 1)[0] for name in tensors}
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight") not in held:
            tensors[name] = parameter.detach().numpy().astype(np.float16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"], "dtype": "float16"}
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1}))
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def edit(folder: Path, **changes: Any) -> Path:
    """Change entries of quantization_config; None takes one away."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    config["quantization_config"] = {k: v for k, v in config["quantization_config"].items() if v is not None}
    path.write_text(json.dumps(config))
    return folder


def weights(folder: Path) -> dict[str, Array]:
    """Every tensor of a folder."""
    from safetensors.numpy import load_file

    found: dict[str, Array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found
