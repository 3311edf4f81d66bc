"""GGUF files: codes are ggml's bit by bit, an opened model computes what transformers does, damaged files say why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcc.api import compile
from qcc.api.language import capture_language
from qcc.frontend.gguf_file import open_gguf
from qcc.ir.dialects.q import part
from qcc.ir.errors import BadInput, NotSupported, QccError
from qcc.ir.execute import Reference
from qcc.ir.program import Program
from qcc.passes import pipeline
from qcc.passes.pipeline import QuantizeOptions
from tests.gguf_files import MIXED, SHAPE, file_name, write, write_any
from tests.language import decoder, tokenizer
from tests.networks import rewritten

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

Array = NDArray[Any]
IDS = [int(i) for i in np.random.default_rng(0).integers(2, 290, 12)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with tensors of many kinds."""
    return write(tmp_path_factory.mktemp("gguf") / "mixed.gguf", MIXED)


@pytest.fixture(scope="module")
def captured(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Its program."""
    return capture_language(mixed, tmp_path_factory.mktemp("scratch"))[0]


def test_opened_model_computes_what_transformers_does(mixed: Path, captured: Program) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(mixed.parent, gguf_file=mixed.name, dtype="float32")
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor([IDS])).logits.numpy()
    assert np.abs(expected).max() > 0.1
    caches = {f"past_{k}_{i}": np.zeros((1, 2, 0, 64), np.float32) for i in (0, 1) for k in ("key", "value")}
    step = {"input_ids": np.array([IDS]), "past_length": np.array([0]), "logits_at": np.arange(len(IDS)), **caches}
    np.testing.assert_allclose(Reference(captured).run(step)["logits"], expected, rtol=0, atol=2e-4)


def test_stored_and_decoded_tensors(mixed: Path) -> None:
    model = open_gguf(mixed)
    ours = {file_name(name): name for name, _ in model.module.named_parameters()}
    kept = {ours[n] for n, kind in MIXED.items() if kind not in ("F16", "BF16")}
    assert set(model.stored) == kept
    assert not model.decoded
    assert {model.stored[ours[n]].source for n in ("blk.0.ffn_gate", "blk.1.ffn_gate")} == {"Q4_K", "Q4_1"}
    for name, codes in model.stored.items():
        weight = model.module.get_parameter(name).detach().numpy()
        np.testing.assert_array_equal(codes.value.decode(), weight)
    assert (model.spec.bos, model.spec.eos, model.spec.context) == (0, (1,), 128)
    assert model.spec.source == "GGUF file"


def test_rows_of_queries_and_keys_come_back_in_their_order(tmp_path: Path) -> None:
    found = open_gguf(write(tmp_path / "plain.gguf", {})).module.state_dict()
    for name, parameter in decoder("llama", **SHAPE).state_dict().items():
        assert torch.equal(found[name], parameter), name


OTHERS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 128},  # transformers reads no other from the file
    "phi3": {},
    "gemma2": {"tie_word_embeddings": True},
    "gemma3": {"tie_word_embeddings": True},
}


@pytest.mark.parametrize("arch", [pytest.param(a, marks=() if a == "gemma3" else pytest.mark.slow) for a in OTHERS])
def test_other_architectures_are_opened_as_transformers_opens_them(arch: str, tmp_path: Path) -> None:
    file = write_any(tmp_path / f"{arch}.gguf", arch, OTHERS[arch])
    ours = open_gguf(file).module
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype="float32")
    found, expected = ours.state_dict(), theirs.state_dict()
    assert found.keys() == expected.keys()
    for name, parameter in expected.items():
        assert torch.equal(found[name], parameter), name
    assert type(ours) is type(theirs)
    kept = ("hidden_act", "rope_parameters", "sliding_window", "layer_types", "attn_logit_softcapping", "head_dim")
    for name in kept:
        assert getattr(ours.config, name, None) == getattr(theirs.config, name, None), name


def test_rotary_factors_of_the_file_are_those_of_llama_3(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    scaled = decoder("llama", **SHAPE, rope_parameters=rope).model.rotary_emb.inv_freq
    plain = decoder("llama", **SHAPE).model.rotary_emb.inv_freq
    factors = (plain / scaled).numpy()
    assert factors.max() > 7 and factors.min() == 1
    found = open_gguf(write(tmp_path / "scaled.gguf", {}, more={"rope_freqs.weight": factors}))
    torch.testing.assert_close(found.module.model.rotary_emb.inv_freq, scaled)


def test_tensor_that_the_network_has_no_place_for_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match=r"no place for tensor 'blk\.0\.attn_q\.bias'"):
        open_gguf(write(tmp_path / "more.gguf", {}, more={"blk.0.attn_q.bias": np.ones(256, np.float32)}))


def test_tied_table_is_one_tensor_and_its_codes_serve_both(tmp_path: Path) -> None:
    model = open_gguf(write(tmp_path / "tied.gguf", {"token_embd": "Q8_0"}, tied=True))
    assert model.module.lm_head.weight is model.module.model.embed_tokens.weight
    assert set(model.stored) == {"model.embed_tokens.weight", "lm_head.weight"}


def test_tokenizer_of_the_file_is_taken(mixed: Path) -> None:
    from tokenizers import Tokenizer

    text = "the lazy dog, naïve 世界"
    assert Tokenizer.from_str(open_gguf(mixed).tokenizer).encode(text).ids == tokenizer().encode(text).ids


def quantized(program: Program, scheme: str, **options: Any) -> Program:
    passes = [*pipeline.legalize(), *pipeline.simplify(), *pipeline.quantize(QuantizeOptions(scheme, **options))]
    return rewritten(program, *passes)


def formats(program: Program) -> dict[str, str]:
    """The format of each quantized weight by the name of its node."""
    found: dict[str, str] = {}
    for op in program.weight_ops():
        for use in op.result.uses:
            if part(op.weight, "codes") in program.weights:
                found[getattr(use.operation, "node", "")] = str(op.result.type.format)  # type: ignore[attr-defined]
    return found


def test_codes_of_the_file_are_kept_where_they_are_no_wider_than_asked(captured: Program) -> None:
    found = formats(quantized(captured, "W8A16"))
    layer = "model.layers.0.self_attn."
    assert found[f"{layer}q_proj"] == "i8, f16 per 32"
    assert found[f"{layer}k_proj"] == "i4, f16 per 32"
    assert found[f"{layer}v_proj"] == "i5, f16 per 32"
    assert found[f"{layer}o_proj"] == "i6, i8 per 16, f16 per 256"
    assert found["model.embed_tokens"] == "i8, f16 per 32"
    assert found["lm_head"] == "i6, i8 per 16, f16 per 256"
    assert found["model.layers.0.mlp.gate_proj"].startswith("u4, u6 per 32, f16 per 256, minus")
    assert found["model.layers.1.mlp.gate_proj"] == "u4, f16 per 32, plus f16 per 32"


def test_wider_codes_of_the_file_are_quantized_again(captured: Program) -> None:
    found = formats(quantized(captured, "W4A16"))
    layer = "model.layers.0.self_attn."
    assert found[f"{layer}q_proj"] == found[f"{layer}v_proj"]
    assert found["model.layers.0.mlp.gate_proj"].startswith("u4, u6 per 32, f16 per 256, minus")
    assert found[f"{layer}q_proj"][1] == "4" and found[f"{layer}q_proj"] != "i4, f16 per 32"
    assert found[f"{layer}k_proj"] == "i4, f16 per 32"
    assert found["model.embed_tokens"] == "i8, f16 per 32"  # left alone unless asked for


def test_kept_codes_are_those_of_the_file(mixed: Path, captured: Program) -> None:
    stored = open_gguf(mixed).stored
    after = quantized(captured, "W8A16")
    for op in after.weight_ops():
        name = op.weight.removesuffix(".q")
        if op.weight.endswith(".q") and name in stored:
            for which, array in stored[name].value.parts.items():
                np.testing.assert_array_equal(after.weights[part(op.weight, which)], array)


def test_codes_that_are_ignored_or_asked_for_narrower(captured: Program) -> None:
    name = "model.layers.0.self_attn.q_proj"
    assert name not in formats(quantized(captured, "W8A16", ignore=(name,)))
    assert formats(quantized(captured, "W4A16", include=("model.embed_tokens",)))["model.embed_tokens"][1] == "4"


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.0001, 0.001, 0.005, 0.05, 0.5, 0.9, 0.999])
def test_truncated_file_is_one_clear_error(share: float, mixed: Path, tmp_path: Path) -> None:
    data = mixed.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadInput) as raised:
        open_gguf(cut)
    assert "cut.gguf" in str(raised.value)


@pytest.mark.parametrize("text", [b"GGML", b"PK\3\4", b"", b"GGUF", b"GGUF\3\0\0\0"])
def test_what_is_no_gguf_is_one_clear_error(text: bytes, tmp_path: Path) -> None:
    file = tmp_path / "other.gguf"
    file.write_bytes(text + bytes(20 if text == b"GGML" else 0))
    with pytest.raises(BadInput, match=r"other\.gguf"):
        open_gguf(file)


def test_other_versions_are_not_supported(header: bytes, tmp_path: Path) -> None:
    for version in (1, 4, 3 << 24):
        file = tmp_path / "old.gguf"
        file.write_bytes(header[:4] + version.to_bytes(4, "little") + header[8:])
        with pytest.raises(NotSupported, match=f"version {version}"):
            open_gguf(file)


def test_special_tokens_that_are_no_numbers_are_left_out(header: bytes, tmp_path: Path) -> None:
    name = b"tokenizer.ggml.eos_token_id"
    at = header.index(name) + len(name)
    file = tmp_path / "float.gguf"
    file.write_bytes(header[:at] + b"\6" + header[at + 1 :])  # a float32
    try:
        assert open_gguf(file).spec.eos == ()
    except QccError as error:
        assert error.code == 2


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.gguf"):
        open_gguf(tmp_path / "none.gguf")


def test_unknown_architecture_is_not_supported(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match=r"'mamba' is not known[^$]*llama"):
        open_gguf(write(tmp_path / "mamba.gguf", {}, arch="mamba"))


def test_known_architecture_that_gguf_lacks_is_not_supported(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="gemma"):
        open_gguf(write(tmp_path / "gemma.gguf", {}, arch="gemma"))


def test_file_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no tokenizer"):
        open_gguf(write(tmp_path / "bare.gguf", {}, without="tokenizer"))


def test_file_that_lacks_a_weight(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"lacks 1 weights.*layers\.1\.mlp\.up_proj"):
        open_gguf(write(tmp_path / "lacking.gguf", {}, without="blk.1.ffn_up"))


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("gguf") / "plain.gguf", {}).read_bytes()


@pytest.mark.parametrize("what", ["tensors", "entries", "array", "string", "extent", "offset"])
def test_count_out_of_range_is_one_clear_error_at_once(what: str, header: bytes, tmp_path: Path) -> None:
    """A count of 2^60 in the file makes nobody wait, and takes no memory."""
    merges, tensor = header.index(b"tokenizer.ggml.token_type"), header.index(b"blk.0.attn_q.weight")
    places = {
        "tensors": 8,
        "entries": 16,
        "array": merges + len("tokenizer.ggml.token_type") + 8,
        "string": header.index(b"general.architecture") + len("general.architecture") + 4,
        "extent": tensor + len("blk.0.attn_q.weight") + 4,
        "offset": tensor + len("blk.0.attn_q.weight") + 4 + 16 + 4,
    }
    at = places[what]
    file = tmp_path / "wild.gguf"
    file.write_bytes(header[:at] + (1 << 60).to_bytes(8, "little") + header[at + 8 :])
    with pytest.raises(BadInput, match=r"wild\.gguf"):
        open_gguf(file)


@pytest.mark.slow
@settings(max_examples=40)
@given(at=st.integers(0, 7000), value=st.integers(0, 255))
def test_any_byte_of_the_header_may_be_wrong(
    at: int, value: int, header: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "byte.gguf"
    file.write_bytes(header[:at] + bytes([value]) + header[at + 1 :])
    try:
        open_gguf(file)
    except QccError as error:
        assert error.code in (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["W8A16", "W4A16"])
def test_compiled_file_speaks_and_keeps_its_codes(scheme: str, mixed: Path, tmp_path: Path) -> None:
    made = compile(mixed, scheme=scheme, output=tmp_path / "spoken.qcc", calibration="random")
    decided = {d.node: d.reason for d in made.manifest.decisions if d.action == "quantized"}
    assert "kept as i4, f16 per 32, the Q4_0 of its file" in decided["model.layers.0.self_attn.k_proj"]
    assert ("kept" in decided["model.layers.0.self_attn.q_proj"]) == (scheme == "W8A16")
    assert made.manifest.error.sqnr_db > (35 if scheme == "W8A16" else 8)
    assert len("".join(made.generate("the dog", max_new_tokens=20))) > 0
