"""`evaluate`: how well a language model predicts a text, and how far it is from another one.

    perplexity = exp(mean of -log p(token | tokens before it in its window))

The protocol: the text is tokenized once and cut into windows of `window` tokens every `stride` tokens, each beginning
with the begin token where the model's tokenizer puts one. A window's first `window - stride` tokens are context only,
except in the first window; the others are scored, but for a first token that nothing precedes. Beside another model,
on the same windows: `KL = mean sum p log(p / q)` with p the other's distribution, and how often both find the same
token likeliest.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qcc.backends.artifact import MANIFEST
from qcc.backends.generate import Decoder
from qcc.backends.runtime import Artifact, load
from qcc.ir.errors import BadInput

from .compile import compile
from .language import read_text
from .progress import Progress, Silent

_CHUNK_LOGITS = 1 << 24
"""Logits that are held at a time for each model."""


@dataclass(frozen=True)
class EvalReport:
    """What was measured, on `tokens` scored tokens in `windows` windows.

    `kl` (nats) and `top1` are against the other.
    """

    perplexity: float
    tokens: int
    windows: int
    window: int
    stride: int
    seconds: float
    against_perplexity: float | None = None
    kl: float | None = None
    top1: float | None = None


def evaluate(
    model: Artifact | str | os.PathLike[str],
    text: str | os.PathLike[str],
    *,
    against: Artifact | str | os.PathLike[str] | None = None,
    tokens: int = 0,
    window: int = 512,
    stride: int = 0,
    threads: int = 0,
    progress: Progress | None = None,
) -> EvalReport:
    """Perplexity of an artifact or model on the file `text`, and its distance from `against`.

    A model that is no artifact is compiled without quantization first. At most `tokens` of the text are read (0:
    all). `stride=0` is `window`: no overlap. Raises `BadInput` where the text is too short, no UTF-8, or the two
    models do not share a vocabulary.
    """
    progress = progress or Silent()
    if window < 2 or not 0 <= stride <= window or tokens < 0:
        raise BadInput(
            f"a window of {window} tokens every {stride or window} cannot be", hint="window >= 2, stride <= window"
        )
    subject = _opened(model, threads, progress)
    other = None if against is None else _opened(against, threads, progress)
    record = subject.language
    if window > record.context:
        raise BadInput(f"a window of {window} tokens exceeds the model's {record.context}", hint="lower --window")
    if other is not None and other.language.vocabulary != record.vocabulary:
        raise BadInput(
            f"vocabularies of {record.vocabulary} and {other.language.vocabulary} tokens cannot be compared",
            hint="give the model that was compiled",
        )
    progress.stage("evaluate")
    tokenizer = subject.tokenizer()
    ids = tokenizer.encode(read_text(Path(text)), add_special_tokens=False).ids
    ids = ids[:tokens] if tokens else ids
    lead = [record.bos] if record.bos is not None and tokenizer.encode("a").ids[0] == record.bos else []
    begin = time.perf_counter()
    windows = list(_windows(ids, window - len(lead), stride, lead))
    totals = _Totals()
    sides = [side.decoder(window) for side in (subject, other) if side is not None]
    chunk = max(1, _CHUNK_LOGITS // record.vocabulary)
    for index, (tokens_, scored) in enumerate(windows):
        for decoder in sides:
            decoder.rewind(0)
        _score(sides, tokens_, scored, chunk, totals)
        progress.step(index + 1, len(windows))
    if not totals.count:
        raise BadInput(f"{text}: {len(ids)} tokens leave nothing to score", hint="give a longer text")
    return totals.report(len(windows), window, stride or window, time.perf_counter() - begin, paired=other is not None)


def _opened(model: Artifact | str | os.PathLike[str], threads: int, progress: Progress) -> Artifact:
    if isinstance(model, Artifact):
        return model
    path = Path(model)
    if (path / MANIFEST).is_file():
        return load(path, threads=threads)
    made = compile(path, scheme="float", backend="onnxruntime", progress=progress)
    made.threads = threads
    return made


def _windows(ids: Sequence[int], window: int, stride: int, lead: list[int]) -> Iterator[tuple[list[int], int]]:
    """Each window behind `lead`, and the place of the first token that is scored in it."""
    stride = min(stride, window) or window
    for at in range(0, len(ids), stride):
        tokens = ids[at : at + window]
        fresh = 0 if at == 0 else window - stride
        if len(tokens) > fresh:
            yield [*lead, *tokens], max(1, len(lead) + fresh)
        if at + window >= len(ids):
            return


def _score(sides: Sequence[Decoder], tokens: list[int], scored: int, chunk: int, totals: _Totals) -> None:
    """Run a window through each model, a chunk of positions at a time; position i predicts token i + 1."""
    for begin in range(0, len(tokens) - 1, chunk):
        part = tokens[begin : min(begin + chunk, len(tokens) - 1)]
        keep = [i for i in range(len(part)) if begin + i + 1 >= scored]
        logits = [side.step(part, keep=keep or [len(part) - 1]) for side in sides]
        if keep:
            totals.add([tokens[begin + i + 1] for i in keep], *logits)


class _Totals:
    """Sums over scored tokens."""

    def __init__(self) -> None:
        self.count = 0
        self.loss = 0.0
        self.other_loss = 0.0
        self.kl = 0.0
        self.same = 0

    def add(self, targets: Sequence[int], logits: np.ndarray, other: np.ndarray | None = None) -> None:
        """`logits` [L, V] of the model and of the other one, and the tokens that came."""
        rows = np.arange(len(targets))
        scores = _log_softmax(logits)
        self.count += len(targets)
        self.loss -= float(scores[rows, targets].sum(dtype=np.float64))
        if other is None:
            return
        theirs = _log_softmax(other)
        self.other_loss -= float(theirs[rows, targets].sum(dtype=np.float64))
        self.same += int((scores.argmax(axis=1) == theirs.argmax(axis=1)).sum())
        self.kl += float(np.einsum("ij,ij->", np.exp(theirs), theirs - scores, dtype=np.float64))

    def report(self, windows: int, window: int, stride: int, seconds: float, *, paired: bool) -> EvalReport:
        """The means."""
        report = EvalReport(_perplexity(self.loss, self.count), self.count, windows, window, stride, seconds)
        if not paired:
            return report
        return replace(
            report,
            against_perplexity=_perplexity(self.other_loss, self.count),
            kl=max(0.0, self.kl / self.count),
            top1=self.same / self.count,
        )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    peak = logits.max(axis=1, keepdims=True)
    shifted = logits - peak
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)


def _perplexity(loss: float, count: int) -> float:
    mean = loss / count
    return math.exp(mean) if mean < 700 else math.inf
