"""What a language model is beside its network: vocabulary, context, cache, tokenizer, preferred sampling."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.program import StoredCodes

from .causal_lm import CacheShape

KNOWN = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3")
"""Values of `model_type` in a configuration that are captured and tested."""


@dataclass(frozen=True)
class LanguageSpec:
    """A decoder as its artifact describes it."""

    architecture: str
    vocabulary: int
    context: int
    """Positions that the model was made for."""
    cache: CacheShape
    bos: int | None
    eos: tuple[int, ...]
    temperature: float | None
    top_k: int | None
    top_p: float | None
    source: str
    """`Hugging Face folder` or `GGUF file`."""


@dataclass(frozen=True)
class LanguageModel:
    """A decoder in torch with everything that the artifact takes along. Any: transformers' classes are untyped."""

    module: Any
    config: Any
    spec: LanguageSpec
    tokenizer: str
    """`tokenizer.json` of the tokenizers library."""
    stored: dict[str, StoredCodes] = field(default_factory=dict[str, StoredCodes])
    """Codes of the weights that the file holds in a format of ours, by checkpoint name."""
    decoded: dict[str, str] = field(default_factory=dict[str, str])
    """Why other quantized weights were decoded to float, by checkpoint name."""


def check_architecture(kind: object, path: Path) -> str:
    """The `model_type` itself; `NotSupported` with the known ones where it is not among them."""
    if kind not in KNOWN:
        hint = f"known architectures: {', '.join(KNOWN)}; others through torch.export or ONNX"
        raise NotSupported(f"{path}: architecture {kind!r} is not known", hint=hint)
    return str(kind)


def describe(config: Any, generation: Mapping[str, Any], cache: CacheShape, source: str) -> LanguageSpec:
    """The spec from a configuration and the generation settings beside it. Any: parsed JSON and transformers."""
    eos: Any = generation.get("eos_token_id", getattr(config, "eos_token_id", None))
    bos = generation.get("bos_token_id", getattr(config, "bos_token_id", None))
    return LanguageSpec(
        architecture=config.model_type,
        vocabulary=int(config.vocab_size),
        context=int(getattr(config, "max_position_embeddings", None) or 2048),
        cache=cache,
        bos=bos if isinstance(bos, int) else None,
        eos=tuple(int(e) for e in _listed(eos) if e is not None),
        temperature=_number(generation.get("temperature")),
        top_k=int(generation["top_k"]) if isinstance(generation.get("top_k"), int) else None,
        top_p=_number(generation.get("top_p")),
        source=source,
    )


def _listed(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def read_json(path: Path, *, limit: int = 1 << 26) -> dict[str, Any]:
    """A JSON object from a file; `BadInput` where it is none. Any: parsed JSON."""
    try:
        if path.stat().st_size > limit:
            raise BadInput(f"{path}: {path.stat().st_size} bytes are too many for this file", hint="copy it again")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read: {error}", hint="copy the model again") from error
    if not isinstance(data, dict):
        raise BadInput(f"{path}: not a JSON object", hint="copy the model again")
    return cast("dict[str, Any]", data)
