"""`tokenizer.json` as entries of a GGUF file: byte-level BPE (`gpt2`), or SentencePiece pieces with scores (`llama`).

What splits text before BPE has a name in llama.cpp (`tokenizer.ggml.pre`); a rule without a known name is refused,
because another one would find other tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from qcc.frontend.language import read_json
from qcc.ir.errors import BadInput, NotSupported

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_RULES = {_LLAMA3: "llama-bpe", _QWEN2: "qwen2"}
"""Patterns of `Split`, and what llama.cpp calls them."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Tokens:
    """What GGUF says of a vocabulary."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    space_prefix: bool
    add_bos: bool


def read_tokens(path: Path, size: int) -> Tokens:
    """The vocabulary of `path/tokenizer.json`, filled up to `size` tokens; `NotSupported` for what GGUF cannot say."""
    file = path / "tokenizer.json"
    if not file.is_file():
        raise NotSupported(f"{path}: no tokenizer.json to make a GGUF vocabulary from", hint="save the fast tokenizer")
    try:
        return _tokens(read_json(file), size, file)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise BadInput(
            f"{file}: not as the tokenizers library writes it: {type(error).__name__} {error}",
            hint="copy the tokenizer again",
        ) from error


def _tokens(data: Mapping[str, Any], size: int, file: Path) -> Tokens:
    model = _table(data, "model", file)
    if model.get("type") != "BPE":
        raise NotSupported(f"{file}: a tokenizer of type {model.get('type')!r}: BPE is known")
    vocabulary = cast("dict[str, int]", _table(model, "vocab", file))
    added = [cast("dict[str, Any]", t) for t in cast("list[Any]", data.get("added_tokens") or [])]
    tokens, types = _listed(vocabulary, added, size, file)
    merges = [m if isinstance(m, str) else " ".join(m) for m in cast("list[Any]", model.get("merges") or [])]
    steps = _steps(data)
    if model.get("byte_fallback"):
        types = [BYTE if _is_byte(t) else kind for t, kind in zip(tokens, types, strict=True)]
        normalizers = [n.get("type") for n in _flat(data.get("normalizer"), "normalizers")]
        prefix = "Prepend" in normalizers or any(s.get("prepend_scheme") in ("first", "always") for s in steps)
        return Tokens("llama", "default", tokens, types, [], _scores(tokens, merges), prefix, _adds_bos(data))
    if model.get("unk_token") in vocabulary:
        types[vocabulary[model["unk_token"]]] = UNKNOWN
    return Tokens("gpt2", _rule(steps, file), tokens, types, merges, [], False, _adds_bos(data))


def _listed(
    vocabulary: Mapping[str, int], added: list[dict[str, Any]], size: int, file: Path
) -> tuple[list[str], list[int]]:
    """Tokens in the order of their numbers, and their kinds; numbers that nothing has are unused.

    Added tokens beyond the model's table are left out: no text of the model holds them.
    """
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [UNUSED] * size
    numbered = [(i, t, NORMAL) for t, i in vocabulary.items()]
    numbered += [
        (t["id"], t["content"], CONTROL if t.get("special") else USER_DEFINED) for t in added if t["id"] < size
    ]
    for number, token, kind in numbered:
        if not 0 <= number < size:
            raise BadInput(f"{file}: token {token!r} has number {number}, the model has {size}")
        tokens[number], types[number] = token, kind
    return tokens, types


def _steps(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    return _flat(data.get("pre_tokenizer"), "pretokenizers")


def _flat(step: object, inner: str) -> list[dict[str, Any]]:
    """A step of the tokenizer, or those that it is a sequence of. Any: parsed JSON."""
    if not isinstance(step, dict):
        return []
    told = cast("dict[str, Any]", step)
    return cast("list[dict[str, Any]]", told[inner]) if told.get("type") == "Sequence" else [told]


def _rule(steps: list[dict[str, Any]], file: Path) -> str:
    """The name of the rule by which text is split before BPE."""
    match steps:
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return "gpt-2"
        case [{"type": "Split", "pattern": {"Regex": str(pattern)}}, {"type": "ByteLevel", "use_regex": False}]:
            if pattern in _RULES:
                return _RULES[pattern]
        case _:
            pass
    raise NotSupported(f"{file}: it splits text by a rule that has no known name in llama.cpp", hint="convert it there")


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Scores that give the order of merges: SentencePiece joins the pair whose piece has the highest score."""
    rank: dict[str, int] = {}
    for i, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", "", 1), i)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _adds_bos(data: Mapping[str, Any]) -> bool:
    """Whether a text begins with a special token."""
    for step in _flat(data.get("post_processor"), "processors"):
        single = cast("list[dict[str, Any]]", step.get("single") or [])
        if step.get("type") == "TemplateProcessing" and single and "SpecialToken" in single[0]:
            return True
    return False


def _table(data: Mapping[str, Any], name: str, file: Path) -> dict[str, Any]:
    value = data.get(name)
    if not isinstance(value, dict):
        raise BadInput(f"{file}: no {name}", hint="copy the tokenizer again")
    return cast("dict[str, Any]", value)
