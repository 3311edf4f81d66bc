"""Quantized Hugging Face folders: weights are what the codes decode to, codes survive compilation, lies are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcc.api.language import capture_language
from qcc.frontend.checkpoints import open_checkpoint
from qcc.frontend.huggingface import open_folder
from qcc.ir.dialects.q import part
from qcc.ir.errors import BadInput, NotSupported, QccError
from qcc.ir.execute import Reference
from qcc.ir.program import Program
from qcc.passes import pipeline
from qcc.passes.pipeline import QuantizeOptions
from tests import checkpoints
from tests.checkpoints import edit, layers, weights, write
from tests.ir.codecs.models import Layer
from tests.networks import rewritten

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

IDS = [int(i) for i in np.random.default_rng(0).integers(2, 290, 12)]
FORMS: dict[str, dict[str, Any]] = {
    "gptq": {},
    "gptq 3 bits": {"bits": 3},
    "gptq v2": {"version": 2},
    "gptq act-order": {"act_order": True},
    "gptq symmetric": {"symmetric": True},
    "awq": {},
    "compressed": {"symmetric": False},
    "compressed symmetric": {"symmetric": True},
}


def folder_of(form: str, place: Path) -> tuple[Path, dict[str, Layer]]:
    """A folder in one of the forms, and its layers."""
    options = dict(FORMS[form])
    made = layers(**{k: v for k, v in options.items() if k != "version"})
    if form.startswith("awq"):
        return checkpoints.awq(place, made), made
    if form.startswith("compressed"):
        return checkpoints.compressed(place, made, symmetric=options["symmetric"]), made
    return checkpoints.gptq(place, made, version=options.get("version", 1)), made


@pytest.mark.parametrize("form", FORMS)
def test_float_weights_are_what_the_codes_decode_to(form: str, tmp_path: Path) -> None:
    folder, made = folder_of(form, tmp_path / "model")
    model = open_folder(folder)
    state = model.module.state_dict()
    for name, layer in made.items():
        np.testing.assert_array_equal(state[f"{name}.weight"].numpy(), layer.values())
    assert set(model.stored) == {f"{name}.weight" for name in made}
    float_names = set(state) - set(model.stored)
    held = weights(folder)
    for name in float_names:
        np.testing.assert_array_equal(state[name].numpy(), held[name].astype(np.float32))


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, dict[str, Layer], Path]:
    """The program of a GPTQ folder with act-order."""
    place = tmp_path_factory.mktemp("gptq")
    folder, made = folder_of("gptq act-order", place / "model")
    return capture_language(folder, tmp_path_factory.mktemp("scratch"))[0], made, folder


def test_captured_program_computes_what_the_float_model_does(
    captured: tuple[Program, dict[str, Layer], Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    program, made, folder = captured
    plain = {f"{name}.weight": layer.values() for name, layer in made.items()}
    held = {name: a for name, a in weights(folder).items() if name.rsplit(".", 1)[0] not in made}
    theirs = AutoModelForCausalLM.from_pretrained(write(tmp_path / "float", plain | held, None), dtype="float32")
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor([IDS])).logits.numpy()
    caches = {f"past_{k}_{i}": np.zeros((1, 2, 0, 16), np.float32) for i in (0, 1) for k in ("key", "value")}
    step = {"input_ids": np.array([IDS]), "past_length": np.array([0]), "logits_at": np.arange(len(IDS)), **caches}
    np.testing.assert_allclose(Reference(program).run(step)["logits"], expected, rtol=0, atol=2e-4)


def test_passes_keep_the_codes(captured: tuple[Program, dict[str, Layer], Path]) -> None:
    program, made, _ = captured
    after = rewritten(program, *pipeline.legalize(), *pipeline.simplify(), *pipeline.quantize(QuantizeOptions("W4A16")))
    found = {op.weight: op for op in after.weight_ops() if part(op.weight, "codes") in after.weights}
    for name, layer in made.items():
        op = found[f"{name}.weight.q"]
        assert str(op.result.type.format) == "u4, f16 per 32, zero u4"  # type: ignore[attr-defined]
        order = program.stored[f"{name}.weight"].value.parts["order"]
        np.testing.assert_array_equal(after.weights[part(op.weight, "codes")], layer.q[:, order])


def test_sharded_folder(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder, made = folder_of("awq", tmp_path / "model")
    held = weights(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(held)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part_names in parts.items():
        save_file({n: held[n] for n in part_names}, folder / file)
    index = {"weight_map": {n: file for file, ns in parts.items() for n in ns}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    state = open_folder(folder).module.state_dict()
    for name, layer in made.items():
        np.testing.assert_array_equal(state[f"{name}.weight"].numpy(), layer.values())


def test_several_config_groups_and_plain_int8(tmp_path: Path) -> None:
    """The group that names a layer wins over a pattern, and that over the class."""
    made = {name: Layer(layer.n, layer.k, 4, 32, symmetric=True) for name, layer in layers().items()}
    tensors = {f"{name}.{t}": a for name, layer in made.items() for t, a in layer.compressed(symmetric=True).items()}
    rng, first = np.random.default_rng(0), "model.layers.0.self_attn.q_proj"
    expected: dict[str, Any] = {name: layer.values() for name, layer in made.items()}
    for name in made:
        if "mlp" in name or name == first:
            for t in made[name].compressed(symmetric=True):
                del tensors[f"{name}.{t}"]
    for name in [n for n in made if "mlp" in n]:
        weight = rng.integers(-128, 128, (made[name].n, made[name].k)).astype(np.int8)
        scale = rng.uniform(0.001, 0.002, (made[name].n, 1)).astype(np.float32)
        tensors |= {f"{name}.weight": weight, f"{name}.weight_scale": scale}
        expected[name] = weight * scale
    special = Layer(made[first].n, made[first].k, 8, 32, symmetric=True)
    tensors |= {f"{first}.{t}": a for t, a in special.compressed(symmetric=True).items()}
    expected[first] = special.values()
    packed = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    groups = {
        "group_0": {"targets": ["Linear"], "weights": packed},
        "group_1": {
            "targets": [r"re:.*\.mlp\..*"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
            "input_activations": {"num_bits": 8, "dynamic": True, "strategy": "token"},
            "format": "int-quantized",
        },
        "group_2": {"targets": [first], "weights": {**packed, "num_bits": 8}},
    }
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups, "ignore": None}
    state = open_folder(write(tmp_path / "model", tensors, config)).module.state_dict()
    for name, weight in expected.items():
        np.testing.assert_array_equal(state[f"{name}.weight"].numpy(), weight)


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("form", "changes", "message"),
    [
        ("gptq", {"bits": 8}, rf"{Q}|\.weight: scales is"),
        ("gptq", {"group_size": 64}, "weight: scales is"),
        ("gptq", {"bits": "four"}, "bits = 'four'"),
        ("gptq", {"bits": None}, "bits = None"),
        ("gptq", {"group_size": 0}, "group_size = 0"),
        ("awq", {"group_size": 48}, "the group size 48 does not divide 64"),
        ("compressed", {"config_groups": None}, "no config_groups"),
        ("compressed", {"config_groups": {"g": {"targets": ["LayerNorm"]}}}, "no config group has it as a target"),
        ("compressed", {"config_groups": {"g": {"targets": ["Linear"]}}}, "says nothing of weights"),
        ("compressed", {"ignore": ["re:.*up_proj"]}, r"up_proj\.weight: quantization_config ignores it"),
        ("compressed", {"ignore": "lm_head"}, "ignore of quantization_config is no list"),
        ("compressed", {"format": "int-quantized"}, "int-quantized weights of 4 bits|weights of 4 bits"),
    ],
)
def test_settings_that_do_not_fit_the_tensors(form: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = edit(folder_of(form, tmp_path / "model")[0], **changes)
    with pytest.raises(QccError, match=message) as raised:
        open_folder(folder)
    assert raised.value.code in (2, 3)


JUNK: list[Any] = [None, -1, 0, 1 << 70, 1.5, "text", [], [1], {}, {"a": None}, True]
KEYS = {
    "gptq": ("bits", "group_size", "sym", "checkpoint_format", "dynamic"),
    "awq": ("bits", "group_size", "version", "zero_point"),
    "compressed": ("config_groups", "format", "ignore"),
}


@pytest.mark.parametrize(("form", "key"), [(form, key) for form, keys in KEYS.items() for key in keys])
def test_anything_may_stand_in_the_settings(form: str, key: str, tmp_path: Path) -> None:
    folder = folder_of(form, tmp_path / "model")[0]
    for junk in JUNK:
        edit(folder, **{key: junk})
        told = {"quantization_config": json.loads((folder / "config.json").read_text())["quantization_config"]}
        read_some(folder, str(told))


@pytest.mark.parametrize(
    "key", ["num_bits", "type", "symmetric", "strategy", "group_size", "block_structure", "targets"]
)
def test_anything_may_stand_in_a_config_group(key: str, tmp_path: Path) -> None:
    folder = folder_of("compressed", tmp_path / "model")[0]
    for strategy in ("group", "block", None):
        for junk in JUNK:
            weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": strategy, "group_size": 32}
            group = {"targets": ["Linear"], "weights": {**weights, key: junk}} | (
                {key: junk} if key == "targets" else {}
            )
            read_some(edit(folder, config_groups={"g": group}), f"{strategy} {key} {junk}")


def read_some(folder: Path, told: str) -> None:
    """Read a quantized weight and a float one: it works, or is one clear error."""
    try:
        checkpoint = open_checkpoint(folder)
        for name in (f"{Q}.weight", "model.norm.weight"):
            assert name in checkpoint.names
            checkpoint.read(name)
    except QccError as error:
        assert error.code in (2, 3), told


@pytest.mark.parametrize(
    ("form", "changes", "message"),
    [
        ("gptq", {"dynamic": {"+:.*": {"bits": 8}}}, "GPTQ with settings of single layers"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ("gptq", {"bits": 5}, "5 bits"),
        ("awq", {"version": "gemv"}, "'gemv'"),
        ("awq", {"zero_point": False}, "zero_point False"),
        ("compressed", {"format": "marlin-24"}, "'marlin-24'"),
        ("compressed", {"quant_method": "fp8"}, r"quantized already \(fp8\)"),
    ],
)
def test_what_is_not_known_says_so(form: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = edit(folder_of(form, tmp_path / "model")[0], **changes)
    with pytest.raises(NotSupported, match=message):
        open_folder(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("scales", rf"{Q}\.weight: GPTQ needs 'scales', which is missing"),
        ("g_idx", rf"{Q}\.weight: g_idx holds 9 at 3"),
        ("bare", r"lm_head\.weight' is int8, and nothing says what its codes mean"),
        ("extra", r"no place for the weight 'model\.layers\.9\.mlp\.up_proj\.weight'"),
        ("lacks", r"the checkpoint lacks 1 weights, 'model\.norm\.weight' first"),
        ("shape", rf"{Q}\.weight' has shape \[32, 64\], the network wants \[64, 64\]"),
        ("nan", rf"{Q}\.weight: scale at block \(0, 0\) is nan"),
    ],
)
def test_tensors_that_lie(change: str, message: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder, _ = folder_of("gptq", tmp_path / "model")
    held = weights(folder)
    match change:
        case "scales":
            del held[f"{Q}.scales"]
        case "g_idx":
            held[f"{Q}.g_idx"][3] = 9
        case "bare":
            held["lm_head.weight"] = np.zeros((300, 64), np.int8)
        case "extra":
            held["model.layers.9.mlp.up_proj.weight"] = np.zeros((4, 4), np.float16)
        case "lacks":
            del held["model.norm.weight"]
        case "shape":
            held |= {f"{Q}.{t}": a for t, a in Layer(32, 64, 4, 32).gptq().items()}
        case _:
            held[f"{Q}.scales"][0, 0] = np.nan
    save_file(held, folder / "model.safetensors")
    with pytest.raises(BadInput, match=message):
        open_folder(folder)
