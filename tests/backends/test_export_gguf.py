"""GGUF as a target: architectures that are written read back as they were; llama.cpp says what transformers says."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from qcc.api import export
from qcc.frontend.gguf_file import open_gguf
from qcc.frontend.huggingface import open_folder
from qcc.ir.errors import NotSupported
from tests.language import TEXT, VOCABULARY, decoder, save, tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

SHAPE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "tie_word_embeddings": False}
GEMMA = {"tie_word_embeddings": True, "query_pre_attn_scalar": 64}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "phi3": {"original_max_position_embeddings": 128, "sliding_window": None},  # llama.cpp has switched it off
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def written(folder: Path, kind: str, **options: Any) -> tuple[Path, Path]:
    """A random decoder as a folder, and the file that is exported from it."""
    source = save(decoder(kind, **{**SHAPE, **options}), folder / "model")
    export(source, folder / "out.gguf", format="gguf")
    return source, folder / "out.gguf"


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_architectures_read_back_as_they_were(kind: str, tmp_path: Path) -> None:
    source, file = written(tmp_path, kind, **ARCHITECTURES[kind])
    ours, theirs = open_gguf(file), open_folder(source)
    found, expected = ours.module.state_dict(), theirs.module.state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
    for name in ("num_key_value_heads", "rope_parameters", "attn_logit_softcapping", "max_position_embeddings"):
        assert getattr(ours.config, name, None) == getattr(theirs.config, name, None), name
    assert (ours.spec.bos, ours.spec.eos, ours.spec.vocabulary) == (0, (1,), VOCABULARY)


@pytest.mark.models
@pytest.mark.parametrize("kind", [*ARCHITECTURES, "llama 3"])
def test_llama_cpp_says_what_transformers_says(kind: str, tmp_path: Path) -> None:
    import xllamacpp
    from tokenizers import Tokenizer

    options = {"rope_parameters": LLAMA3} if kind == "llama 3" else ARCHITECTURES[kind]
    source, file = written(tmp_path, kind.partition(" ")[0], **options)
    parameters: Any = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.cpuparams.n_threads = str(file), 128, 1
    request = {"prompt": TEXT, "n_predict": 8, "temperature": 0.0}
    answer = xllamacpp.Server(parameters).handle_completions(request)
    found = json.loads(answer) if isinstance(answer, str) else answer
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype="float32")
    tokens = Tokenizer.from_str(open_folder(source).tokenizer)
    ids = tokens.encode(TEXT).ids
    start = len(ids)
    with torch.no_grad():
        for _ in range(8):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert found["choices"][0]["text"] == tokens.decode(ids[start:])
    assert found["usage"]["prompt_tokens"] == start


def test_frequencies_of_llama_3_are_a_tensor(tmp_path: Path) -> None:
    source, file = written(tmp_path, "llama", rope_parameters=LLAMA3)
    ours, theirs = open_gguf(file).module, open_folder(source).module
    torch.testing.assert_close(ours.model.rotary_emb.inv_freq, theirs.model.rotary_emb.inv_freq)


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("gemma", {}, "architecture 'gemma' is not written as GGUF"),
        ("phi", {}, "architecture 'phi' is not written as GGUF"),
        ("llama", {"hidden_act": "relu"}, "the activation 'relu' of this llama"),
        ("mistral", {"sliding_window": 8}, "a sliding window of this mistral"),
        ("qwen2", {"use_sliding_window": True}, "a sliding window of this qwen2"),
        ("gemma2", {"query_pre_attn_scalar": 144}, "query_pre_attn_scalar 144"),
        ("gemma2", {**GEMMA, "layer_types": ["full_attention"] * 2}, "its pattern of layers"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
            "rotary positions 'yarn'",
        ),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    kind: str, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(NotSupported, match=reason):
        written(tmp_path, kind, **options)
    assert not (tmp_path / "out.gguf").exists()


def pieces() -> Any:
    """A tokenizer as SentencePiece's are converted: pieces with a mark for spaces, bytes as a last resort."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    made.train_from_iterator(
        [TEXT * 3], trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False)
    )
    data = json.loads(made.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(data))


def test_pieces_keep_the_order_of_their_merges(tmp_path: Path) -> None:
    source = save(decoder("llama", **SHAPE, vocab_size=340), tmp_path / "model")
    made = pieces()
    made.save(str(source / "tokenizer.json"))
    export(source, tmp_path / "out.gguf", format="gguf")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    assert (kinds[0], kinds[1], kinds[3], kinds[258]) == (3, 3, 6, 6)
    assert reader.fields["tokenizer.ggml.model"].contents() == "llama"
    scores = reader.fields["tokenizer.ggml.scores"].contents()
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [" ".join(m) if isinstance(m, list) else m for m in json.loads(made.to_str())["model"]["merges"]]
    joined = [m.replace(" ", "") for m in merges]
    order = [scores[tokens.index(t)] for t in joined]
    assert order == sorted(order, reverse=True)
    for text in (TEXT, "the fox", "dogs jump; naïve 世界", "  two  spaces"):
        assert by_scores(text, tokens, scores) == made.encode(text).tokens


def by_scores(text: str, tokens: list[str], scores: list[float]) -> list[str]:
    """SentencePiece's algorithm, as llama.cpp has it: join the neighbours whose piece has the highest score."""
    parts = list("▁" + text.replace(" ", "▁"))
    known = dict(zip(tokens, scores, strict=True))
    while True:
        pairs = [(known[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in known]
        if not pairs:
            break
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    found: list[str] = []
    for each in parts:
        found += [each] if each in known else [f"<0x{byte:02X}>" for byte in each.encode()]
    return found


def test_a_rule_for_splitting_text_that_has_no_name_is_refused(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    source = save(decoder("llama", **SHAPE), tmp_path / "model")
    made = tokenizer()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(source / "tokenizer.json"))
    with pytest.raises(NotSupported, match="splits text by a rule"):
        export(source, tmp_path / "out.gguf", format="gguf")


def test_norms_of_gemma_that_would_round_are_refused(tmp_path: Path) -> None:
    model = decoder("gemma2", **{**SHAPE, **GEMMA})
    with torch.no_grad():
        model.model.norm.weight[0] = 1e-9
    source = save(model, tmp_path / "model")
    with pytest.raises(NotSupported, match=r"model\.norm\.weight: GGUF keeps 1 \+ w, which rounds"):
        export(source, tmp_path / "out.gguf", format="gguf")
