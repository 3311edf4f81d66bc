"""Text from a decoder: sampling, pieces that are whole characters, a cache that is filled, rewound and not shared."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcc.backends import generate as text
from qcc.backends.generate import Piece, encode, load_tokenizer
from qcc.backends.runtime import Artifact, load
from qcc.backends.sampling import Sampling
from qcc.ir.errors import BadInput
from tests.language import TEXT, tokenizer

pytest.importorskip("tokenizers")

Array = NDArray[Any]
GREEDY = Sampling()
PROMPT = "the quick brown fox"


def logits(seed: int, count: int = 50, spread: float = 3.0) -> Array:
    return (np.random.default_rng(seed).standard_normal(count) * spread).astype(np.float32)


def drawn(sampling: Sampling, values: Array, count: int = 400, seed: int = 0) -> Array:
    """How often each token is drawn."""
    rng = np.random.default_rng(seed)
    return np.bincount([sampling.draw(values, rng) for _ in range(count)], minlength=len(values))


@given(seed=st.integers(0, 999))
def test_temperature_zero_takes_the_likeliest(seed: int) -> None:
    values = logits(seed)
    assert GREEDY.draw(values, np.random.default_rng(seed)) == int(values.argmax())
    assert Sampling(0.0, 3, 0.5).draw(values, np.random.default_rng(seed)) == int(values.argmax())


def test_equal_logits_go_to_the_lowest_token() -> None:
    assert GREEDY.draw(np.zeros(9, np.float32), np.random.default_rng(0)) == 0
    assert Sampling(1.0, top_k=1).draw(np.zeros(9, np.float32), np.random.default_rng(0)) == 0


@settings(max_examples=25)
@given(seed=st.integers(0, 999), k=st.integers(1, 60), temperature=st.sampled_from([0.3, 1.0, 5.0]))
def test_top_k_draws_from_the_k_likeliest(seed: int, k: int, temperature: float) -> None:
    values = logits(seed)
    taken = np.flatnonzero(drawn(Sampling(temperature, top_k=k), values, 50, seed))
    assert set(taken) <= set(np.argsort(-values)[:k])


@settings(max_examples=25)
@given(seed=st.integers(0, 999), p=st.floats(0.01, 1.0), temperature=st.sampled_from([0.5, 1.0, 2.0]))
def test_top_p_draws_from_the_fewest_that_sum_to_p(seed: int, p: float, temperature: float) -> None:
    values = logits(seed)
    chances = np.exp((values.astype(np.float64) - values.max()) / temperature)
    chances /= chances.sum()
    order = np.argsort(-chances)
    sums = np.cumsum(chances[order])
    fewest = next((i + 1 for i, s in enumerate(sums) if s >= p - 1e-12), len(sums))
    taken = np.flatnonzero(drawn(Sampling(temperature, top_p=p), values, 50, seed))
    assert set(taken) <= set(order[:fewest])


def test_tokens_come_as_often_as_their_probabilities_say() -> None:
    values = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    found = drawn(Sampling(1.0), values, 6000) / 6000
    np.testing.assert_allclose(found, [0.5, 0.3, 0.15, 0.05], atol=0.03)
    cut = drawn(Sampling(1.0, top_k=2), values, 6000) / 6000
    np.testing.assert_allclose(cut, [0.625, 0.375, 0, 0], atol=0.03)
    nucleus = drawn(Sampling(1.0, top_p=0.8), values, 6000) / 6000
    np.testing.assert_allclose(nucleus, [0.625, 0.375, 0, 0], atol=0.03)
    hot = drawn(Sampling(2.0), values, 6000) / 6000
    expected = np.sqrt([0.5, 0.3, 0.15, 0.05])
    np.testing.assert_allclose(hot, expected / expected.sum(), atol=0.03)


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e-6, 1e6, 1e300])
@pytest.mark.parametrize("values", [logits(1), logits(1, spread=1e30), np.array([1, -np.inf, 2], np.float32)])
def test_extreme_temperatures_and_logits_still_draw(temperature: float, values: Array) -> None:
    token = Sampling(temperature).draw(values, np.random.default_rng(0))
    assert 0 <= token < len(values) and np.isfinite(values[token])
    if temperature <= 1e-30:
        assert token == values.argmax()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((-0.1,), "temperature"),
        ((float("nan"),), "temperature"),
        ((float("inf"),), "temperature"),
        ((1.0, -1), "top-k"),
        ((1.0, 0, 0.0), "top-p"),
        ((1.0, 0, 1.01), "top-p"),
        ((1.0, 0, float("nan")), "top-p"),
    ],
)
def test_sampling_refuses(arguments: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        Sampling(*arguments)


class Scripted:
    """A decoder that gives certain tokens, one after the other."""

    def __init__(self, tokens: Sequence[int], vocabulary: int) -> None:
        self.capacity, self.length = 10**6, 0
        self.tokens = list(tokens)
        self.vocabulary = vocabulary

    def step(self, ids: Sequence[int], *, keep: Sequence[int] | None = None) -> Array:
        assert keep is None
        self.length += len(ids)
        values = np.zeros((1, self.vocabulary), np.float32)
        values[0, self.tokens.pop(0)] = 1
        return values

    def rewind(self, length: int) -> None:
        self.length = length


def pieces(made: Any, tokens: Sequence[int], stop: Sequence[int] = ()) -> list[Piece]:
    script = Scripted(tokens, made.get_vocab_size() + 1)
    return list(text.generate(script, made, [2], len(tokens), stop=stop, sampling=GREEDY, seed=0))


@cache
def byte_fallback() -> Any:
    """A tokenizer as SentencePiece makes them: unknown characters are spelled in bytes, a token for each."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {"<unk>": 0, **{f"<0x{i:02X}>": i + 1 for i in range(256)}}
    for letter in "▁abcdefghijklmnopqrstuvwxyz":
        vocabulary[letter] = len(vocabulary)
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


TOKENIZERS = {"bytes": tokenizer, "fallback": byte_fallback}
LONG = "🎉🎉 naïve 世界 ".join("abcdefghijklmnop") + "世" * 100 + "é" * 100 + " the end"


@pytest.mark.parametrize("kind", list(TOKENIZERS))
@pytest.mark.parametrize("said", ["a b", TEXT, "🎉", "世界" * 50, "🎉" * 60 + " x", LONG], ids=len)
def test_pieces_joined_are_the_text(kind: str, said: str) -> None:
    made = TOKENIZERS[kind]()
    tokens = made.encode(said).ids
    found = pieces(made, tokens)
    assert "".join(p.text for p in found) == made.decode(tokens) == said
    assert [p.token for p in found] == tokens
    assert not any("\ufffd" in p.text for p in found)


def test_character_of_several_tokens_appears_with_its_last() -> None:
    made = byte_fallback()
    found = pieces(made, made.encode("a🎉b").ids)
    assert [p.text for p in found] == ["a", "", "", "", "🎉", "b"]


@settings(max_examples=50)
@given(tokens=st.lists(st.integers(2, 260), min_size=1, max_size=150))
def test_any_bytes_joined_are_what_the_whole_decodes_to(tokens: list[int]) -> None:
    made = tokenizer_once()
    assert "".join(p.text for p in pieces(made, tokens)) == made.decode(tokens)


tokenizer_once = cache(tokenizer)


def test_unfinished_character_is_given_at_the_end() -> None:
    made = tokenizer_once()
    tokens = made.encode("a🎉").ids[:-1]
    found = pieces(made, tokens)
    assert "".join(p.text for p in found) == made.decode(tokens) and found[-1].text.endswith("\ufffd")


def test_stop_token_ends_the_text_and_is_not_given() -> None:
    made = tokenizer_once()
    tokens = made.encode("the dog does").ids
    found = pieces(made, [*tokens, 1, *tokens], stop=[0, 1])
    assert [p.token for p in found] == tokens
    assert pieces(made, [1], stop=[1]) == []


def test_prompt_is_encoded_with_what_the_model_begins_with() -> None:
    from tokenizers.processors import TemplateProcessing

    made = tokenizer()
    made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert encode(made, "the dog") == [0, *tokenizer_once().encode("the dog").ids]


@pytest.mark.parametrize(("prompt", "reason"), [("", "is empty"), ("ab\ud800", "not valid UTF-8 at character 2")])
def test_prompt_that_is_no_text_is_refused(prompt: str, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        encode(tokenizer_once(), prompt)


def test_prompt_without_tokens_is_refused() -> None:
    from tokenizers import Tokenizer, models

    with pytest.raises(BadInput, match="no token of the prompt '!'"):
        encode(Tokenizer(models.BPE(vocab={"a": 0}, merges=[])), "!")


@pytest.fixture(scope="module")
def artifact(speaking: Path) -> Artifact:
    """The compiled decoder."""
    return load(speaking, threads=1)


@pytest.fixture
def ids(artifact: Artifact) -> list[int]:
    """Tokens of a text of some length."""
    return encode(load_tokenizer(artifact.folder), TEXT)


def spoken(artifact: Artifact, prompt: str = PROMPT, **options: Any) -> str:
    return "".join(artifact.generate(prompt, **{"max_new_tokens": 12, **options}))


def test_greedy_text_is_always_the_same_whatever_the_seed(artifact: Artifact) -> None:
    assert spoken(artifact) == spoken(artifact, seed=7) == spoken(artifact, temperature=0.0, top_k=3)
    assert spoken(artifact) == spoken(artifact, temperature=3.0, top_k=1)


def test_same_seed_is_the_same_text_and_another_seed_another(artifact: Artifact) -> None:
    hot = {"temperature": 2.0, "top_k": 0, "top_p": 1.0}
    assert spoken(artifact, seed=1, **hot) == spoken(artifact, seed=1, **hot)
    assert len({spoken(artifact, seed=s, **hot) for s in range(5)}) > 1


def test_pieces_of_a_model_joined_are_what_its_tokens_decode_to(artifact: Artifact) -> None:
    made = load_tokenizer(artifact.folder)
    for seed in range(3):
        found = list(artifact.pieces(PROMPT, 90, Sampling(1.5), seed))
        tokens = [p.token for p in found if p.token >= 0]
        assert "".join(p.text for p in found) == made.decode(tokens)
        assert len(tokens) <= 90


def test_greedy_text_is_the_likeliest_token_each_time(artifact: Artifact) -> None:
    made = load_tokenizer(artifact.folder)
    ids = encode(made, PROMPT)
    found = [p.token for p in artifact.pieces(PROMPT, 6, GREEDY, 0) if p.token >= 0]
    record = artifact.language
    for token in found:
        whole = artifact(record.step(ids, keep=[len(ids) - 1]))["logits"][0, -1]
        assert token == int(whole.argmax())
        ids.append(token)


@pytest.mark.parametrize("chunk", [1, 3, 7, 512])
def test_prefill_in_chunks_is_the_whole_prefill(
    chunk: int, artifact: Artifact, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = artifact.decoder(100).step(ids)[-1].copy()
    monkeypatch.setattr(text, "CHUNK", chunk)
    decoder = artifact.decoder(100)
    np.testing.assert_allclose(text.prefill(decoder, ids), expected, rtol=0, atol=1e-4)
    assert decoder.length == len(ids)


def test_wanted_logits_are_those_of_their_positions(artifact: Artifact, ids: list[int]) -> None:
    every = artifact.decoder(64).step(ids[:20], keep=range(20)).copy()
    some = artifact.decoder(64).step(ids[:20], keep=[4, 19])
    np.testing.assert_allclose(some, every[[4, 19]], rtol=0, atol=1e-5)
    assert every.shape == (20, 300)
    whole = artifact(artifact.language.step(ids[:20], keep=range(20)))["logits"][0]
    np.testing.assert_allclose(every, whole, rtol=0, atol=1e-4)


def test_rewound_decoder_goes_on_from_there(artifact: Artifact, ids: list[int]) -> None:
    decoder = artifact.decoder(64)
    decoder.step(ids[:10])
    expected = decoder.step(ids[10:14]).copy()
    decoder.step(ids[14:30])
    decoder.rewind(10)
    assert decoder.length == 10
    np.testing.assert_allclose(decoder.step(ids[10:14]), expected, rtol=0, atol=1e-5)
    decoder.rewind(99)
    assert decoder.length == 14
    decoder.rewind(-3)
    assert decoder.length == 0
    fresh = artifact.decoder(64).step(ids[:10]).copy()
    np.testing.assert_allclose(decoder.step(ids[:10]), fresh, rtol=0, atol=1e-5)


def test_two_decoders_do_not_disturb_each_other(artifact: Artifact, ids: list[int]) -> None:
    def alone(part: list[int]) -> list[Array]:
        decoder = artifact.decoder(48)
        return [decoder.step(part[:5]).copy(), *(decoder.step([t]).copy() for t in part[5:9])]

    left, right = ids[:9], ids[9:18]
    expected = [alone(left), alone(right)]
    decoders = [artifact.decoder(48), artifact.decoder(48)]
    for index, span in enumerate([slice(0, 5), *(slice(i, i + 1) for i in range(5, 9))]):
        for decoder, part, wanted in zip(decoders, (left, right), expected, strict=True):
            np.testing.assert_array_equal(decoder.step(part[span]), wanted[index])


def test_full_cache_takes_no_more_and_stays_as_it_was(artifact: Artifact, ids: list[int]) -> None:
    decoder = artifact.decoder(10)
    decoder.step(ids[:8])
    with pytest.raises(ValueError, match=r"8 \+ 3 positions do not fit a cache of 10"):
        decoder.step(ids[8:11])
    with pytest.raises(ValueError, match="at least one"):
        decoder.step([])
    assert decoder.length == 8
    expected = artifact.decoder(64)
    expected.step(ids[:8])
    np.testing.assert_allclose(decoder.step(ids[8:10]), expected.step(ids[8:10]), rtol=0, atol=1e-5)


def test_token_that_the_model_does_not_know_leaves_the_decoder_whole(artifact: Artifact, ids: list[int]) -> None:
    decoder = artifact.decoder(16)
    expected = decoder.step(ids[:4]).copy()
    decoder.rewind(0)
    with pytest.raises(BadInput, match="does not run"):
        decoder.step([ids[0], 300])
    assert decoder.length == 0
    np.testing.assert_array_equal(decoder.step(ids[:4]), expected)


@pytest.mark.parametrize(
    ("prompt", "options", "reason"),
    [
        ("", {}, "the prompt is empty"),
        ("a\udcff", {}, "not valid UTF-8 at character 1"),
        (PROMPT, {"max_new_tokens": 0}, "0 new tokens"),
        (PROMPT, {"max_new_tokens": -1}, "-1 new tokens"),
        (PROMPT, {"max_new_tokens": 128}, "do not fit the model's 128 positions"),
        (TEXT * 9, {"max_new_tokens": 1}, "do not fit the model's 128 positions"),
        (PROMPT, {"temperature": -1.0}, "temperature"),
        (PROMPT, {"top_p": 2.0}, "top-p"),
        (PROMPT, {"top_k": -2}, "top-k"),
    ],
)
def test_what_cannot_be_generated_is_refused_at_once(
    prompt: str, options: dict[str, Any], reason: str, artifact: Artifact
) -> None:
    with pytest.raises(BadInput, match=reason):
        artifact.generate(prompt, **options)


def test_all_positions_of_the_model_may_be_used(artifact: Artifact) -> None:
    count = 128 - len(encode(load_tokenizer(artifact.folder), PROMPT))
    found = [p for p in artifact.pieces(PROMPT, count, Sampling(2.0), 3) if p.token >= 0]
    assert 0 < len(found) <= count


def test_network_that_is_no_decoder_speaks_not(compiled: Path) -> None:
    with pytest.raises(BadInput, match="not a language model"):
        load(compiled).generate("hello")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"[1]"])
def test_damaged_tokenizer_is_one_clear_error(content: bytes, speaking: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(speaking, tmp_path / "copy"))
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"tokenizer\.json"):
        load_tokenizer(folder)
    with pytest.raises(BadInput, match=r"tokenizer\.json"):
        load(folder)
