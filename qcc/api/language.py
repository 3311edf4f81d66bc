"""Language models in `compile`: capture, calibration from text, samples to verify with, their page in the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from xdsl.ir import SSAValue

from qcc.backends.language import TOKENIZER, LanguageRecord
from qcc.frontend import onnx_file
from qcc.frontend.language import LanguageSpec
from qcc.ir.dialects.graph_op import rename
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.dialects.q import Weight
from qcc.ir.errors import BadInput
from qcc.ir.execute import run
from qcc.ir.program import Program
from qcc.ir.rewrite import producer

from . import capture_worker

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WINDOW = 256
"""Tokens of a calibration sample."""
_VERIFY_TOKENS = 64
_VERIFY_LOGITS = 1 << 20
"""Most logits that a stored sample holds."""
_MODEL = "model.onnx"

Samples = list[Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Language:
    """What a language model brings beside its network."""

    spec: LanguageSpec
    tokenizer: str
    """The text of its `tokenizer.json`."""

    @property
    def record(self) -> LanguageRecord:
        """The page of the manifest."""
        s = self.spec
        return LanguageRecord(
            architecture=s.architecture,
            vocabulary=s.vocabulary,
            context=s.context,
            layers=s.cache.layers,
            kv_heads=s.cache.kv_heads,
            head_size=s.cache.head_size,
            cache_dtype="float32",
            bos=s.bos,
            eos=list(s.eos),
            temperature=s.temperature,
            top_k=s.top_k,
            top_p=s.top_p,
            source=s.source,
            programs={"prefill": _MODEL, "decode": _MODEL},
        )

    def save(self, folder: Path) -> None:
        """Write the tokenizer into an artifact."""
        (folder / TOKENIZER).write_text(quick_to_read(self.tokenizer), encoding="utf-8")

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer itself."""
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.tokenizer)


def quick_to_read(tokenizer: str) -> str:
    """The same tokenizer, whose pairs to merge are written as one text each: the library reads half a million in 0.5 s
    less than as lists. Pairs that hold a space, which parts them, stay lists.
    """
    told: Any = json.loads(tokenizer)  # Any: whatever a tokenizer.json holds
    match told:
        case {"model": {"merges": [*pairs]} as model} if pairs and all(
            _is_pair(p) for p in cast("list[object]", pairs)
        ):
            model["merges"] = [" ".join(pair) for pair in cast("list[list[str]]", pairs)]
            return json.dumps(told, ensure_ascii=False)
        case _:
            return tokenizer


def _is_pair(pair: object) -> bool:
    match pair:
        case [str(first), str(second)]:
            return " " not in first + second
        case _:
            return False


def capture_language(path: Path, folder: Path) -> tuple[Program, Language]:
    """The step of the decoder in a Hugging Face folder or GGUF file; `folder` takes what torch writes."""
    captured = capture_worker.capture(path, folder)
    program = onnx_file.read(folder / capture_worker.MODEL)
    program.stored = captured.stored
    _name_layers(program)
    for name, reason in captured.decoded.items():
        program.decide(name.removesuffix(".weight"), "decoded", reason)
    return program, Language(captured.spec, captured.tokenizer)


def _name_layers(program: Program) -> None:
    """Call layers what the checkpoint calls them: `model.layers.0.mlp.up_proj`."""
    taken = {op.node for op in program.body.ops if isinstance(op, OnnxOp)}
    for op in program.body.ops:
        weight = _weight_of(op) if isinstance(op, OnnxOp) else None
        if weight is None or not weight.endswith(".weight"):
            continue
        assert isinstance(op, OnnxOp)
        name = weight.removesuffix(".weight") if op.op_type == "MatMul" else "model.embed_tokens"
        if name not in taken:
            taken.add(name)
            rename(op, name)


def _weight_of(op: OnnxOp) -> str | None:
    """The name of the constant that a MatMul multiplies with, or a Gather reads."""
    if op.op_type not in ("MatMul", "Gather"):
        return None
    value: SSAValue = op.operands[1 if op.op_type == "MatMul" else 0]
    turned = producer(value, "onnx.Transpose")
    owner = (turned.operands[0] if turned is not None else value).owner
    return owner.weight if isinstance(owner, Weight) else None


def text_samples(path: Path, language: Language, limit: int) -> Samples:
    """Windows of a text as calibration samples; `BadInput` where it is no UTF-8 text or has too few tokens."""
    ids = list(language.load_tokenizer().encode(read_text(path)).ids)
    if len(ids) < 2:
        raise BadInput(f"{path}: {len(ids)} tokens are too few", hint="give a longer text")
    length = min(WINDOW, language.spec.context)
    windows = [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)] or [ids]
    return [language.record.step(w, keep=[len(w) - 1]) for w in windows[:limit]]


def read_text(path: Path) -> str:
    """A text file; `BadInput` where it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text at byte {error.start}", hint="give a text file in UTF-8") from error
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}", hint="give the path of a text file") from error


def random_windows(language: Language, seed: int, count: int) -> Samples:
    """Samples of random tokens: to try speed only."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, language.spec.vocabulary, (count, min(WINDOW, language.spec.context)))
    return [language.record.step([int(i) for i in row], keep=[len(row) - 1]) for row in ids]


def first_sample(ids: Sequence[int], language: Language) -> Mapping[str, np.ndarray]:
    """A prefill to verify with: the first tokens of a text, with the last logits that the artifact can well store."""
    ids = ids[: min(_VERIFY_TOKENS, language.spec.context - 1)]
    kept = max(1, min(16, len(ids), _VERIFY_LOGITS // language.spec.vocabulary))
    return language.record.step(ids, keep=range(len(ids) - kept, len(ids)))


def default_text() -> str:
    """English prose that comes with Python, for where no text was given."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics)[:20])


def decode_sample(program: Program, language: Language, prefill: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """A decoding step behind a prefill: the token that the float model finds likeliest, and the cache that it gives."""
    outputs = run(program, prefill)
    token = int(np.argmax(outputs["logits"][0, -1]))
    return language.record.step([token], keep=[0], past=outputs)


def step_samples(program: Program, language: Language, count: int, seed: int) -> Samples:
    """Steps over other places of the default text: prefills, each followed by a decoding step behind it."""
    if count < 1:
        raise BadInput(f"the count is {count}", hint="ask for at least one sample")
    ids = language.load_tokenizer().encode(default_text()).ids
    places = np.random.default_rng(seed).integers(0, max(1, len(ids) - _VERIFY_TOKENS), -(-count // 2))
    samples: Samples = []
    for at in places:
        first = first_sample(ids[int(at) :], language)
        samples += [first, decode_sample(program, language, first)]
    return samples[:count]
