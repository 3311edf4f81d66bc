"""Perplexity by the stated protocol, against numpy on the same logits; distance from the unquantized model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qcc
from qcc.api.evaluate import evaluate
from qcc.backends.runtime import Artifact
from qcc.ir.errors import BadInput

TEXT = Path("examples/tiny_lm/heldout.txt")
MODEL = Path("examples/tiny_lm/model")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first part of the held-out text: about 1,500 tokens."""
    file = tmp_path_factory.mktemp("text") / "part.txt"
    file.write_text(TEXT.read_text()[:5000])
    return file


@pytest.fixture(scope="session")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return qcc.compile(MODEL, scheme="float", output=tmp_path_factory.mktemp("tiny") / "float.qcc")


@pytest.fixture(scope="session")
def int4_model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return qcc.compile(MODEL, scheme="W4A16", output=tmp_path_factory.mktemp("tiny") / "int4.qcc")


def by_hand(artifact: Artifact, ids: list[int], window: int, stride: int) -> tuple[float, int]:
    """Perplexity and scored tokens, window by window in one call each, in float64."""
    loss, count = 0.0, 0
    for begin in range(0, len(ids), stride):
        tokens = ids[begin : begin + window]
        first = 1 if begin == 0 else max(1, window - stride)
        if len(tokens) > (0 if begin == 0 else window - stride):
            outputs = artifact(artifact.language.step(tokens, keep=range(len(tokens))))
            logits = outputs["logits"][0].astype(np.float64)
            logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
            for position in range(first, len(tokens)):
                loss -= logits[position - 1, tokens[position]]
                count += 1
        if begin + window >= len(ids):
            break
    return float(np.exp(loss / count)), count


@pytest.mark.parametrize(("window", "stride"), [(64, 0), (100, 40), (64, 64)])
def test_perplexity_is_that_of_the_protocol(float_model: Artifact, text: Path, window: int, stride: int) -> None:
    report = evaluate(float_model, text, window=window, stride=stride, tokens=500)
    ids = float_model.tokenizer().encode(text.read_text()).ids[:500]
    expected, count = by_hand(float_model, ids, window, stride or window)
    assert report.tokens == count
    assert report.perplexity == pytest.approx(expected, rel=1e-4)
    assert (report.kl, report.top1, report.against_perplexity) == (None, None, None)


def test_a_model_is_no_distance_from_itself(float_model: Artifact, text: Path) -> None:
    report = evaluate(float_model, text, against=float_model, window=64, tokens=256)
    assert report.kl == pytest.approx(0, abs=1e-6)
    assert report.top1 == 1.0
    assert report.against_perplexity == report.perplexity


def test_four_bits_cost_a_little_and_less_than_shuffled_weights(
    float_model: Artifact, int4_model: Artifact, text: Path
) -> None:
    report = evaluate(int4_model, text, against=float_model, window=256)
    assert report.against_perplexity is not None
    assert report.kl is not None and report.top1 is not None
    assert 1.0 < report.perplexity / report.against_perplexity < 1.06
    assert 1e-4 < report.kl < 0.05
    assert 0.8 < report.top1 < 1.0


def test_the_tiny_model_is_as_good_as_torch_finds_it(float_model: Artifact) -> None:
    """transformers' own forward, float32, on the same eight windows: perplexity 36.71092."""
    report = evaluate(float_model, TEXT, window=256, tokens=2048)
    assert (report.tokens, report.windows) == (2040, 8)
    assert report.perplexity == pytest.approx(36.71092, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "a window of 1 tokens"),
        ({"window": 4096}, "exceeds the model's 512"),
        ({"window": 64, "stride": 65}, "every 65 cannot be"),
        ({"tokens": 1}, "leave nothing to score"),
    ],
)
def test_what_cannot_be_evaluated_is_said(
    float_model: Artifact, text: Path, options: dict[str, int], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        evaluate(float_model, text, **options)


def test_text_must_be_text(float_model: Artifact, tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(BadInput, match="not UTF-8 text at byte 2"):
        evaluate(float_model, tmp_path / "latin1.txt")
    with pytest.raises(BadInput, match=r"none\.txt"):
        evaluate(float_model, tmp_path / "none.txt")


def test_other_networks_have_no_perplexity(compiled_digits: Path, text: Path) -> None:
    with pytest.raises(BadInput, match="not a language model"):
        evaluate(compiled_digits, text)


@pytest.fixture(scope="session")
def compiled_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "digits.qcc"
    qcc.compile("examples/digits/digits.onnx", scheme="float", output=folder)
    return folder
