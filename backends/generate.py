"""Text from a language model: prefill the prompt, then decode token by token, and give text as soon as it is whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from qcc.ir.errors import BadInput, MissingExtra
from qcc.ir.memory import give_back_memory

from .language import TOKENIZER, LanguageRecord
from .sampling import Sampling

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNK = 512
"""Tokens of a prompt that one step takes: bounds the memory of attention scores."""


class Decoder(Protocol):
    """A model with a cache of `capacity` positions, of which `length` are taken."""

    capacity: int
    length: int

    def step(self, ids: Sequence[int], *, keep: Sequence[int] | None = None) -> np.ndarray:
        """Append tokens; logits float32 [len(keep), V] at the positions of `ids` in `keep` (default: the last)."""
        ...

    def rewind(self, length: int) -> None:
        """Forget the positions from `length` on."""
        ...


@dataclass(frozen=True)
class Piece:
    """A new token, and the text that has become whole with it (often empty within a character)."""

    token: int
    text: str


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of an artifact; `BadInput` where its file is damaged, `MissingExtra` without the library."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra("text needs the package tokenizers", hint='pip install "qcc[text]"') from error
    try:
        made = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:
        raise BadInput(f"{folder / TOKENIZER}: cannot be read: {error}", hint="compile the model again") from error
    give_back_memory()  # of 320 MB that 262144 words take while they are read, 120 are needed
    return made


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a text, with those that the model begins with; `BadInput` for text that is empty or not Unicode."""
    if not text:
        raise BadInput("the prompt is empty", hint="give some text to go on from")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(f"the prompt is not valid UTF-8 at character {error.start}", hint="give Unicode text") from error
    ids = list(tokenizer.encode(text).ids)
    if not ids:
        raise BadInput(f"the tokenizer makes no token of the prompt {text[:40]!r}", hint="give text that it knows")
    return ids


def capacity_for(record: LanguageRecord, prompt: int, new: int) -> int:
    """Positions that a prompt and `new` tokens take; `BadInput` where the model was made for fewer."""
    if new < 1:
        raise BadInput(f"{new} new tokens were asked for", hint="ask for at least 1")
    if prompt + new > record.context:
        raise BadInput(
            f"a prompt of {prompt} tokens and {new} new ones do not fit the model's {record.context} positions",
            hint="shorten the prompt, or lower --max-new-tokens",
        )
    return prompt + new


def prefill(decoder: Decoder, ids: Sequence[int]) -> np.ndarray:
    """Append a prompt in chunks; logits [V] behind its last token."""
    *before, last = (ids[begin : begin + CHUNK] for begin in range(0, len(ids), CHUNK))
    for chunk in before:
        decoder.step(chunk)
    return decoder.step(last)[-1]


def generate(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    count: int,
    *,
    stop: Sequence[int],
    sampling: Sampling,
    seed: int,
) -> Iterator[Piece]:
    """At most `count` tokens behind `prompt`, up to one of `stop`, which is not given."""
    rng = np.random.default_rng(seed)
    logits = prefill(decoder, prompt)
    text = _Text(tokenizer)
    for index in range(count):
        token = sampling.draw(logits, rng)
        if token in stop:
            break
        yield Piece(token, text.add(token))
        if index + 1 < count:
            logits = decoder.step([token])[-1]
    rest = text.rest()
    if rest:
        yield Piece(-1, rest)


class _Text:
    """Text of tokens as they come: a character whose bytes are spread over tokens appears with its last one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._begin = 0
        self._shown = ""

    def add(self, token: int) -> str:
        self._tokens.append(token)
        whole = self._tokenizer.decode(self._tokens[self._begin :])
        if whole.endswith("\ufffd"):
            return ""
        new = whole[len(self._shown) :]
        self._shown = whole
        if len(self._tokens) - self._begin > _WINDOW and new:
            last = self._tokenizer.decode([token])
            if "\ufffd" not in last:  # within a character there is no place to begin anew
                self._begin, self._shown = len(self._tokens) - 1, last  # one token stays, for the space behind it
        return new

    def rest(self) -> str:
        """What was held back and never became whole."""
        return self._tokenizer.decode(self._tokens[self._begin :])[len(self._shown) :]


_WINDOW = 64
"""Tokens that are decoded again for each new one; more only where characters are spread over tokens."""
