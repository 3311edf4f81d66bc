"""Hugging Face folders: a decoder of every known family computes what transformers does, and bad folders say why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.api.language import Language, capture_language
from qcc.frontend import language
from qcc.frontend.huggingface import open_folder
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.execute import Reference
from qcc.ir.program import Program
from qcc.passes import pipeline
from tests.language import decoder, save
from tests.networks import names, rewritten

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

Arrays = dict[str, NDArray[Any]]
IDS = [int(i) for i in np.random.default_rng(0).integers(2, 290, 24)]
"""Three times as many as a sliding window holds."""
QUICK = ("llama", "gemma3_text")
VARIANTS: dict[str, dict[str, Any]] = {
    "llama, rope of Llama 3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "llama, one head and biases": {
        "num_key_value_heads": 1,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "qwen2, sliding": {"use_sliding_window": True, "max_window_layers": 1},
    "gemma3_text, both kinds of layers": {"layer_types": ["sliding_attention", "full_attention"]},
}


class Captured:
    """A decoder in torch, and the program that was captured from its folder."""

    def __init__(self, model: Any, folder: Path, scratch: Path) -> None:
        self.model = model
        self.folder = folder
        scratch.mkdir()
        self.program, self.language = capture_language(folder, scratch)
        self.simplified = rewritten(self.program, *pipeline.legalize(), *pipeline.simplify())

    def expected(self, ids: list[int] = IDS) -> NDArray[Any]:
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits.numpy()


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Captured]:
    """`captured("llama")`, `captured("qwen2, sliding")`: made once."""

    @cache
    def make(name: str) -> Captured:
        folder = tmp_path_factory.mktemp("decoder")
        model = decoder(name.split(",")[0], **VARIANTS.get(name, {}))
        return Captured(model, save(model, folder / "model"), folder / "scratch")

    return make


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole model. Copy it before changing it."""
    return save(decoder("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


def in_chunks(program: Program, about: Language, chunks: list[int]) -> NDArray[Any]:
    """Logits of all positions, computed a chunk after the other over the growing cache."""
    reference = Reference(program, threads=1)
    past: Arrays | None = None
    logits: list[NDArray[Any]] = []
    for begin, end in zip(np.cumsum([0, *chunks[:-1]]), np.cumsum(chunks), strict=True):
        past = reference.run(about.record.step(IDS[begin:end], keep=range(end - begin), past=past))
        logits.append(past["logits"])
    return np.concatenate(logits, axis=1)


FAMILIES = [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in (*language.KNOWN, *VARIANTS)]


@pytest.mark.parametrize("family", FAMILIES)
def test_family_computes_what_transformers_does(family: str, captured: Callable[[str], Captured]) -> None:
    made = captured(family)
    expected = made.expected()
    assert np.abs(expected).max() > 0.1
    for program in (made.program, made.simplified):
        for chunks in ([24], [7, 5, 12], [10, *[1] * 14]):
            found = in_chunks(program, made.language, chunks)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4, err_msg=f"{family} in chunks {chunks}")
    kinds = names(made.simplified)
    assert kinds.count("q.attention") == 2 and "msft.GroupQueryAttention" not in kinds
    assert kinds.count("RotaryEmbedding") == 4


def test_wanted_logits_only(captured: Callable[[str], Captured]) -> None:
    made = captured("llama")
    step = made.language.record.step(IDS, keep=[3, 23, 0])
    found = Reference(made.program).run(step)["logits"]
    np.testing.assert_allclose(found, made.expected()[:, [3, 23, 0]], rtol=0, atol=1e-4)


def test_tied_embeddings_stay_one_tensor(captured: Callable[[str], Captured]) -> None:
    weights = captured("gemma3_text").program.weights
    tables = [name for name in weights if weights[name].shape in ((300, 64), (64, 300))]
    assert len(tables) == 1
    assert len([n for n in captured("llama").program.weights if "embed" in n or "lm_head" in n]) == 2


def test_layers_bear_the_names_of_the_checkpoint(captured: Callable[[str], Captured]) -> None:
    made = captured("llama")
    nodes = {getattr(op, "node", "") for op in made.program.body.ops}
    parameters = {n.removesuffix(".weight") for n, p in made.model.named_parameters() if p.dim() == 2}
    assert parameters <= nodes
    assert {n for n, p in made.model.named_parameters() if p.dim() == 2} <= set(made.program.weights)


def test_description(captured: Callable[[str], Captured]) -> None:
    record = captured("llama").language.record
    assert (record.architecture, record.vocabulary, record.context) == ("llama", 300, 128)
    assert (record.layers, record.kv_heads, record.head_size) == (2, 2, 16)
    assert (record.bos, record.eos, record.source) == (0, [1], "Hugging Face folder")
    assert captured("llama").language.load_tokenizer().decode([2]) is not None


def edit(folder: Path, **changes: Any) -> None:
    """Change entries of the configuration; None removes one."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def sharded(folder: Path) -> list[Path]:
    """Weights in several files, as large models have them."""
    (folder / "model.safetensors").unlink()
    decoder("llama").save_pretrained(folder, max_shard_size="100KB")
    return sorted(folder.glob("model-*.safetensors"))


def test_sharded_checkpoint_is_opened(folder: Path) -> None:
    assert len(sharded(folder)) > 2
    same(open_folder(folder).module)


def test_restricted_pickle_is_opened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(decoder("llama").state_dict(), folder / "pytorch_model.bin")
    same(open_folder(folder).module)


def same(module: Any) -> None:
    wanted = decoder("llama").state_dict()
    found = module.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_half_precision_is_opened_as_float32(folder: Path) -> None:
    decoder("llama").half().save_pretrained(folder)
    module = open_folder(folder).module
    assert {p.dtype for p in module.parameters()} == {torch.float32}


class Hostile:
    """Unpickled, it would write a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.place,))


def test_hostile_pickle_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Hostile(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(BadInput) as raised:
        open_folder(folder)
    assert not (tmp_path / "ran").exists()
    assert str(folder) in str(raised.value)


def test_code_beside_the_model_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\n")
    for name in ("config.json", "tokenizer_config.json"):
        kept = (folder / name).read_text()
        auto = {"AutoModelForCausalLM": "modeling.Model", "AutoTokenizer": ["modeling.Model", "modeling.Model"]}
        (folder / name).write_text(json.dumps(json.loads(kept) | {"auto_map": auto, "tokenizer_class": None}))
        try:
            open_folder(folder)
        except (NotSupported, BadInput) as error:
            assert "code" in str(error) or name != "config.json"
        else:
            assert name != "config.json", "custom code of the model is refused"
        assert not (tmp_path / "ran").exists()
        (folder / name).write_text(kept)


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def lacking(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def misshapen(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = np.zeros((3, 64), np.float32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def index(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)


Damage = Callable[[Path], object]
BAD: dict[str, tuple[Damage, str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{hidden"), "config.json: cannot be read"),
    "config is a list": (lambda f: (f / "config.json").write_text("[1]"), "not a JSON object"),
    "config is no text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "config.json: cannot be read"),
    "config is deep": (lambda f: (f / "config.json").write_text("[" * 100000), "cannot be read"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
    "tokenizer is no JSON": (lambda f: (f / "tokenizer.json").write_text("{"), "does not load it"),
    "tokenizer is empty": (lambda f: (f / "tokenizer.json").write_text("{}"), "does not load it"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "weights cut at the header": (lambda f: cut(f / "model.safetensors", 50), "model.safetensors"),
    "weights cut at the end": (lambda f: cut(f / "model.safetensors", 200_000), "model.safetensors"),
    "weights of no bytes": (lambda f: cut(f / "model.safetensors", 0), "model.safetensors"),
    "a weight is lacking": (lacking, "lacks 1 weights, 'model.layers.1.mlp.up_proj.weight'"),
    "a weight of another shape": (misshapen, "up_proj.weight' has shape [3, 64], the network wants [128, 64]"),
    "more layers than weights": (lambda f: edit(f, num_hidden_layers=3), "lacks 9 weights"),
    "a missing shard": (lambda f: sharded(f)[1].unlink(), "shard model-00002-of-"),
    "a shard cut short": (lambda f: cut(sharded(f)[1], 1000), "model-00002-of-"),
    "a shard elsewhere": (lambda f: index(f, '{"weight_map": {"a": "../a.safetensors"}}'), "not the name of a file"),
    "an index without a map": (lambda f: index(f, "{}"), "no weight_map"),
    "an index that is no JSON": (lambda f: index(f, "{"), "cannot be read"),
    "negative sizes": (lambda f: edit(f, hidden_size=-64), "does not load it"),
    "sizes that are words": (lambda f: edit(f, hidden_size="many"), "does not load it"),
    "a generation config of no JSON": (lambda f: (f / "generation_config.json").write_text("{"), "generation_config"),
}  # fmt: skip


@pytest.mark.parametrize("damage", list(BAD))
def test_bad_folder_is_one_clear_error(damage: str, folder: Path) -> None:
    spoil, reason = BAD[damage]
    spoil(folder)
    with pytest.raises(BadInput) as raised:
        open_folder(folder)
    assert reason in raised.value.message
    assert "\n" not in raised.value.message and len(raised.value.message) < 800


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"config\.json"):
        open_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"model_type": "mamba"}, ["'mamba' is not known", "llama", "qwen3", "gemma3_text"]),
        ({"model_type": None}, ["is not known"]),
        ({"model_type": ["llama"]}, ["is not known"]),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}, ["code of its own (auto_map)"]),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, ["quantized already (bitsandbytes)", "gptq, awq"]),
        ({"quantization_config": "awq"}, ["quantized already"]),
    ],
)
def test_what_is_not_supported_says_so(changes: dict[str, Any], reasons: list[str], folder: Path) -> None:
    edit(folder, **changes)
    with pytest.raises(NotSupported) as raised:
        open_folder(folder)
    assert all(reason in str(raised.value) for reason in reasons)


def test_position_scaling_that_depends_on_the_length_is_refused(folder: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    edit(folder, rope_parameters=rope)
    with pytest.raises(NotSupported, match="'dynamic' depend on the length"):
        open_folder(folder)


@pytest.mark.slow
def test_weight_that_is_not_finite_is_named(folder: Path, tmp_path: Path) -> None:
    model = decoder("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    model.save_pretrained(folder)
    with pytest.raises(BadInput, match=r"layers\.1\.mlp\.up_proj"):
        capture_language(folder, tmp_path)
