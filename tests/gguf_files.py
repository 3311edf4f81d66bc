"""Small GGUF files of random decoders, with tensors stored in many kinds of block."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.language import decoder, tokenizer

Array = NDArray[Any]
KINDS = {"Q8_0": (32, 34), "Q5_0": (32, 22), "Q4_0": (32, 18), "Q6_K": (256, 210), "Q4_K": (256, 144)}
"""Values and bytes of a block."""
HALVES = {"Q8_0": (0,), "Q5_0": (0,), "Q4_0": (0,), "Q6_K": (208,), "Q4_K": (0, 2)}
"""Where a block has its float16 scales."""
SPREAD = {"Q8_0": 3e-4, "Q5_0": 3e-3, "Q4_0": 6e-3, "Q6_K": 2e-5, "Q4_K": 1e-4}
SHAPE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "tie_word_embeddings": False}


def blocks(kind: str, rows: int, columns: int, seed: int = 0, scales: Array | None = None) -> Array:
    """Random blocks of a kind: uint8 [rows, bytes], with values of some hundredths."""
    values, size = KINDS[kind]
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (rows, columns // values, size), np.uint8)
    for at in HALVES[kind]:
        drawn = rng.uniform(-1, 1, data.shape[:2]) * SPREAD[kind]
        scale = drawn.astype(np.float16) if scales is None else scales
        data[..., at : at + 2] = np.broadcast_to(scale, data.shape[:2])[..., None].copy().view(np.uint8)
    return data.reshape(rows, -1)


TENSORS = {
    "embed_tokens": "token_embd",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.norm": "output_norm",
    "lm_head": "output",
}
MIXED = {
    "token_embd": "Q8_0",
    "blk.0.attn_q": "Q8_0",
    "blk.0.attn_k": "Q4_0",
    "blk.0.attn_v": "Q5_0",
    "blk.0.attn_output": "Q6_K",
    "blk.0.ffn_gate": "Q4_K",
    "blk.0.ffn_up": "F16",
    "blk.0.ffn_down": "BF16",
    "blk.1.attn_q": "Q4_0",
    "blk.1.attn_k": "Q6_K",
    "blk.1.ffn_gate": "Q4_1",
    "output": "Q6_K",
}
"""How each tensor is stored; the others are F32."""


def file_name(name: str) -> str:
    """What GGUF calls a weight of Llama: `model.layers.0.mlp.up_proj.weight` is `blk.0.ffn_up.weight`."""
    layer = name.split(".")[2] if ".layers." in name else ""
    theirs = next(g for ours, g in TENSORS.items() if f"{ours}.weight" in name)
    return f"blk.{layer}.{theirs}" if layer else theirs


def interleaved(weight: Array, heads: int) -> Array:
    """The order of rows that llama.cpp's converter gives query and key projections."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write(
    path: Path,
    kinds: Mapping[str, str],
    *,
    tied: bool = False,
    without: str = "",
    arch: str = "llama",
    more: Mapping[str, Array] | None = None,
) -> Path:
    """A file of the random Llama with its tokenizer. `without` leaves out what begins so, `more` adds tensors."""
    import gguf

    model = decoder("llama", **{**SHAPE, "tie_word_embeddings": tied})
    out = gguf.GGUFWriter(path, arch)
    add_shape(out)
    if without != "tokenizer":
        add_tokenizer(out)
    for name, parameter in model.named_parameters():
        theirs = file_name(name)
        if without and theirs.startswith(without):
            continue
        weight = parameter.detach().numpy()
        if theirs.endswith(("attn_q", "attn_k")):
            weight = interleaved(weight, 4 if theirs.endswith("_q") else 2)
        add_tensor(out, f"{theirs}.weight", weight, kinds.get(theirs, "F32"))
    for name, array in (more or {}).items():
        out.add_tensor(name, array)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def add_shape(out: Any) -> None:
    out.add_context_length(128)
    out.add_embedding_length(256)
    out.add_block_count(2)
    out.add_feed_forward_length(256)
    out.add_head_count(4)
    out.add_head_count_kv(2)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_rope_dimension_count(64)
    out.add_rope_freq_base(10000.0)
    out.add_vocab_size(300)


def add_tokenizer(out: Any) -> None:
    made = json.loads(tokenizer().to_str())["model"]
    tokens = sorted(made["vocab"], key=made["vocab"].get)
    tokens += [f"unused{i}" for i in range(300 - len(tokens))]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("default")
    out.add_token_list(tokens)
    out.add_token_types([3, 3] + [1] * 298)
    out.add_token_merges([" ".join(m) for m in made["merges"]])
    out.add_bos_token_id(0)
    out.add_eos_token_id(1)


def add_tensor(out: Any, name: str, weight: Array, kind: str) -> None:
    import gguf

    type_ = gguf.GGMLQuantizationType[kind]
    if kind in ("F32", "F16"):
        out.add_tensor(name, weight.astype(np.float32 if kind == "F32" else np.float16))
    elif kind in ("Q6_K", "Q4_K"):
        out.add_tensor(name, blocks(kind, *weight.shape, seed=len(name)), raw_dtype=type_)
    else:
        out.add_tensor(name, gguf.quants.quantize(weight, type_), raw_dtype=type_)


def write_any(path: Path, arch: str, options: dict[str, Any]) -> Path:
    """A file of another architecture, its tensors named by gguf's own table; Gemma's norms hold 1 + w there."""
    import gguf

    model = decoder("gemma3_text" if arch == "gemma3" else arch, **{**SHAPE, **options})
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    table = gguf.get_tensor_name_map(kind, 2)
    out = gguf.GGUFWriter(path, arch)
    add_shape(out)
    size = getattr(model.config, "head_dim", 64)
    out.add_key_length(size)
    out.add_value_length(size)
    out.add_pad_token_id(0)
    out.add_sliding_window(8)
    add_tokenizer(out)
    for name, parameter in model.named_parameters():
        base, _, suffix = name.rpartition(".")
        weight = parameter.detach().numpy() + np.float32(arch.startswith("gemma") and name.endswith("norm.weight"))
        out.add_tensor(f"{table.get_name(base)}.{suffix}", weight.astype(np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path
