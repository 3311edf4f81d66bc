"""Tiny decoders of any architecture with a tokenizer, written to a folder as Hugging Face writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCABULARY = 300
TEXT = "the quick brown fox jumps over the lazy dog, and the dog does not mind; naïve café 世界 "


def tokenizer() -> Any:
    """A small byte-level BPE tokenizer: any text can be told in it. Any: the tokenizers library has no full stubs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([TEXT * 3], trainer)
    return made


def decoder(kind: str, *, seed: int = 0, **settings: Any) -> Any:
    """A random decoder in torch: two layers of four heads, two of keys, that see eight positions where they slide."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "head_dim": 16,
        "sliding_window": 8,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "initializer_range": 0.1,
    }
    config = AutoConfig.for_model(kind, **{**shape, **settings})
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def save(model: Any, folder: Path, **options: Any) -> Path:
    """Write config, weights and tokenizer."""
    model.save_pretrained(folder, **options)
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder
