"""`qcc export`: codes arrive as they left, round trips give the same bytes, refusals name the weight and the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qcc.ir.attributes import from_array
from tests import checkpoints
from tests.checkpoints import layers, weights
from tests.cli.conftest import Command
from tests.gguf_files import write as write_gguf

torch: Any = pytest.importorskip("torch")
pytest.importorskip("transformers")

Array = NDArray[Any]


def export(qcc: Command, source: Path, form: str, output: Path, *more: str) -> dict[str, Any]:
    done = qcc("export", source, "--format", form, "-o", output, "--json", "--quiet", *more)
    assert done.code == 0, done.err
    return done.json


def assert_same(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def quantization(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize(
    ("bits", "symmetric"), [(4, True), (4, False), (8, False), (3, False), (2, True)], ids=lambda v: str(v)
)
def test_gptq_to_compressed_tensors_and_back(bits: int, symmetric: bool, qcc: Command, tmp_path: Path) -> None:
    made = layers(bits=bits, symmetric=symmetric)
    source = checkpoints.gptq(tmp_path / "source", made)
    export(qcc, source, "compressed-tensors", tmp_path / "there")
    expected = {f"{n}.{t}": a for n, layer in made.items() for t, a in layer.compressed(symmetric=symmetric).items()}
    found = weights(tmp_path / "there")
    assert_same({n: a for n, a in found.items() if n in expected}, expected)
    told = quantization(tmp_path / "there")
    assert told["config_groups"]["group_0"]["targets"] == ["Linear"] and told["ignore"] == ["lm_head"]
    export(qcc, tmp_path / "there", "gptq", tmp_path / "back")
    assert_same(weights(tmp_path / "back"), weights(source))
    ours, theirs = quantization(tmp_path / "back"), quantization(source)
    assert {k: ours[k] for k in theirs} == theirs
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_awq_to_gptq_and_back(qcc: Command, tmp_path: Path) -> None:
    made = layers()
    next(iter(made.values())).zero[0, 0] = 0  # what version 1 of GPTQ cannot store
    source = checkpoints.awq(tmp_path / "source", made)
    export(qcc, source, "gptq", tmp_path / "there")
    assert quantization(tmp_path / "there")["checkpoint_format"] == "gptq_v2"
    expected = {f"{n}.{t}": a for n, layer in made.items() for t, a in layer.gptq(2).items()}
    assert_same({n: a for n, a in weights(tmp_path / "there").items() if n in expected}, expected)
    export(qcc, tmp_path / "there", "awq", tmp_path / "back")
    assert_same(weights(tmp_path / "back"), weights(source))
    assert quantization(tmp_path / "back")["modules_to_not_convert"] == ["lm_head"]


def test_symmetric_gptq_to_awq_has_zero_points_of_8(qcc: Command, tmp_path: Path) -> None:
    made = layers(symmetric=True)
    export(qcc, checkpoints.gptq(tmp_path / "source", made), "awq", tmp_path / "there")
    expected = {f"{n}.{t}": a for n, layer in made.items() for t, a in layer.awq().items()}
    assert_same({n: a for n, a in weights(tmp_path / "there").items() if n in expected}, expected)


def test_act_order_is_kept_or_refused_by_name(qcc: Command, tmp_path: Path) -> None:
    source = checkpoints.gptq(tmp_path / "source", layers(act_order=True))
    export(qcc, source, "gptq", tmp_path / "copy")
    assert_same(weights(tmp_path / "copy"), weights(source))
    assert quantization(tmp_path / "copy")["desc_act"] is True
    for form in ("awq", "compressed-tensors", "gguf"):
        done = qcc("export", source, "--format", form, "-o", tmp_path / "out", "--json")
        assert done.code == 3
        assert "an act-order permutation cannot be expressed in" in done.json["error"]
        assert "model.layers.0.mlp.down_proj.weight" in done.json["error"]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "source"]
    report = export(qcc, source, "awq", tmp_path / "floats", "--ignore", "re:.*_proj")
    assert all("decoded exactly" in w["note"] for w in report["weights"] if "_proj" in w["name"])


Q4 = {
    f"blk.{i}.{n}": "Q4_0" for i in (0, 1) for n in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up")
}


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in Q4_0 with float16 table and head."""
    kinds = Q4 | {"blk.0.ffn_down": "Q4_0", "blk.1.ffn_down": "Q8_0", "token_embd": "F16", "output": "F16"}
    return write_gguf(tmp_path_factory.mktemp("gguf") / "source.gguf", kinds)


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    """Kind and bytes of every tensor, by the gguf package."""
    import gguf

    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("form", ["compressed-tensors"])
def test_gguf_to_checkpoint_and_back(form: str, gguf_file: Path, qcc: Command, tmp_path: Path) -> None:
    report = export(qcc, gguf_file, form, tmp_path / "there")
    assert report["formats"]["i4, f16 per 32"] == 13 and report["formats"]["i8, f16 per 32"] == 1
    told = quantization(tmp_path / "there")
    assert sorted(len(group["targets"]) for group in told["config_groups"].values()) == [1, 13]
    export(qcc, tmp_path / "there", "gguf", tmp_path / "back.gguf")
    assert tensors_of(tmp_path / "back.gguf") == tensors_of(gguf_file)


def test_written_gguf_is_read_by_the_gguf_package_and_by_our_door(qcc: Command, tmp_path: Path) -> None:
    import gguf

    from qcc.frontend.gguf_file import open_gguf
    from qcc.frontend.huggingface import open_folder

    made = layers()
    source = checkpoints.gptq(tmp_path / "source", made)
    report = export(qcc, source, "gguf", tmp_path / "out.gguf")
    assert {w["written"] for w in report["weights"] if "_proj" in w["name"]} == {"i5, f16 per 32"}
    ours, theirs = open_gguf(tmp_path / "out.gguf"), open_folder(source)
    assert ours.spec.vocabulary == theirs.spec.vocabulary and ours.spec.eos == theirs.spec.eos
    for name, weight in theirs.module.state_dict().items():
        np.testing.assert_array_equal(ours.module.state_dict()[name].numpy(), weight.numpy(), err_msg=name)
    centred = {n: layer.q.astype(np.int8) - layer.zero[:, layer.g_idx].astype(np.int8) for n, layer in made.items()}
    for name, codes in centred.items():
        np.testing.assert_array_equal(ours.stored[f"{name}.weight"].value.codes, codes)
    read = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    up = "model.layers.0.mlp.up_proj"
    np.testing.assert_array_equal(read["blk.0.ffn_up.weight"], made[up].values())
    text = "the lazy dog, naïve 世界"
    from tokenizers import Tokenizer

    tokens = [Tokenizer.from_str(m.tokenizer).encode(text).ids for m in (ours, theirs)]
    assert tokens[0] == tokens[1]


@pytest.mark.models
def test_llama_cpp_speaks_as_transformers_does(qcc: Command, repository: Path, tmp_path: Path) -> None:
    """The tiny language model, quantized on the way: the same tokens from llama.cpp and from the float arithmetic."""
    import torch
    import xllamacpp
    from transformers import AutoTokenizer

    from qcc.frontend.huggingface import open_folder

    source = repository / "examples" / "tiny_lm" / "model"
    export(qcc, source, "gptq", tmp_path / "gptq", "--scheme", "W4A16", "--group-size", "32")
    export(qcc, tmp_path / "gptq", "gguf", tmp_path / "out.gguf")
    prompt = "the value of the expression is"
    parameters: Any = xllamacpp.CommonParams()
    parameters.model.path = str(tmp_path / "out.gguf")
    parameters.n_ctx, parameters.cpuparams.n_threads = 128, 1
    answer = xllamacpp.Server(parameters).handle_completions({"prompt": prompt, "n_predict": 12, "temperature": 0.0})
    found = json.loads(answer) if isinstance(answer, str) else answer
    tokenizer = AutoTokenizer.from_pretrained(source)
    module = open_folder(tmp_path / "gptq").module
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(source, dtype="float32")
    plain.load_state_dict(module.state_dict(), strict=False)
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(plain(torch.tensor([ids])).logits[0, -1].argmax()))
    assert found["choices"][0]["text"] == tokenizer.decode(ids[start:])


def test_compressed_tensors_and_transformers_read_what_is_written(qcc: Command, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    made = layers()
    export(qcc, checkpoints.gptq(tmp_path / "source", made), "compressed-tensors", tmp_path / "there")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "there", dtype="float32", quantization_config=CompressedTensorsConfig(run_compressed=False)
    )
    state = model.state_dict()
    for name, layer in made.items():
        found = state[f"{name}.weight"].float().numpy()
        np.testing.assert_array_equal(found, layer.values().astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("scheme", ["W3A16", "W4A16_ASYM", "FP8A16", "NVFP4A16"])
def test_schemes_in_compressed_tensors_are_read_by_its_package(
    scheme: str, repository: Path, qcc: Command, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    from qcc.frontend.huggingface import open_folder

    source = repository / "examples" / "tiny_lm" / "model"
    more = ["--group-size", "32"] if scheme[0] == "W" else []
    export(qcc, source, "compressed-tensors", tmp_path / "out", "--scheme", scheme, *more)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype="float32", quantization_config=CompressedTensorsConfig(run_compressed=False)
    ).state_dict()
    ours = open_folder(tmp_path / "out")
    assert len(ours.stored) == 6 * 7
    for name, codes in ours.stored.items():
        expected, found = codes.value.decode(), theirs[name].float().numpy()
        np.testing.assert_allclose(found, expected, rtol=2**-7, atol=1e-7)  # products are rounded there


@pytest.mark.parametrize("form", ["gptq", "awq", "compressed-tensors", "gguf"])
def test_float_model_is_quantized_on_the_way(form: str, repository: Path, qcc: Command, tmp_path: Path) -> None:
    source = repository / "examples" / "tiny_lm" / "model"
    place = tmp_path / ("out.gguf" if form == "gguf" else "out")
    more = ["--scheme", "W4A16", "--group-size", "32", "--ignore", "model.layers.0.mlp.up_proj"]
    report = export(qcc, source, form, place, *more)
    quantized = [w for w in report["weights"] if w["note"] == "quantized by rtn"]
    assert len(quantized) == 6 * 7 - 1
    assert not any("embed" in w["name"] or "norm" in w["name"] for w in quantized)
    left = next(w for w in report["weights"] if w["name"] == "model.layers.0.mlp.up_proj.weight")
    assert (left["written"], left["note"]) == ("f16", "ignored")
    assert report["bytes"] < sum(f.stat().st_size for f in source.iterdir())
    if form != "gguf":
        from qcc.frontend.huggingface import open_folder

        model = open_folder(place)
        assert len(model.stored) == len(quantized)
        assert "model.layers.0.mlp.up_proj.weight" not in model.stored


def test_float_model_stays_float_without_a_scheme(repository: Path, qcc: Command, tmp_path: Path) -> None:
    source = repository / "examples" / "tiny_lm" / "model"
    export(qcc, source, "gguf", tmp_path / "out.gguf")
    assert {kind for kind, _ in tensors_of(tmp_path / "out.gguf").values()} == {"F16", "F32"}
    export(qcc, source, "compressed-tensors", tmp_path / "copy")
    assert_same(weights(tmp_path / "copy"), weights(source))
    assert "quantization_config" not in json.loads((tmp_path / "copy" / "config.json").read_text())


def nbits_model(path: Path) -> Path:
    """x [N, 64] through two layers of codes: 4 bits by 32 with zero points, 8 bits by 16 without, and a bias."""
    rng = np.random.default_rng(0)
    weights = {
        "b1": rng.integers(0, 256, (96, 2, 16), np.uint8),
        "s1": rng.uniform(0.01, 0.02, (96, 2)).astype(np.float32),
        "z1": rng.integers(0, 256, (96, 1), np.uint8),
        "b2": rng.integers(0, 256, (8, 6, 16), np.uint8),
        "s2": rng.uniform(0.01, 0.02, (8, 6)).astype(np.float32),
        "bias": rng.standard_normal(8).astype(np.float32),
    }
    first = {"N": 96, "K": 64, "bits": 4, "block_size": 32}
    second = {"N": 8, "K": 96, "bits": 8, "block_size": 16}
    nodes = [
        helper.make_node("MatMulNBits", ["x", "b1", "s1", "z1"], ["h"], "first", domain="com.microsoft", **first),
        helper.make_node("Relu", ["h"], ["r"], "act"),
        helper.make_node("MatMulNBits", ["r", "b2", "s2"], ["p"], "second", domain="com.microsoft", **second),
        helper.make_node("Add", ["p", "bias"], ["y"], "add"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["n", 64])],
        [value("y", TensorProto.FLOAT, ["n", 8])],
        [from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def run_onnx(path: Path, x: Array) -> Array:
    model = onnx.load(path)
    onnx.checker.check_model(model)
    name = model.graph.input[0].name
    options = onnxruntime.SessionOptions()  # optimized, DequantizeLinear of 4 bits becomes an int8 product
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, {name: x})[0]


def initializers(path: Path, op: str) -> list[list[bytes]]:
    """The bytes of the constants that each operator of a kind reads."""
    model = onnx.load(path)
    held = {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in model.graph.initializer}
    constants = {n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant"}
    held |= {name: onnx.numpy_helper.to_array(t).tobytes() for name, t in constants.items()}
    return [[held[i] for i in n.input if i in held] for n in model.graph.node if n.op_type == op]


def test_matmul_nbits_to_dequantize_linear_and_back(qcc: Command, tmp_path: Path) -> None:
    source = nbits_model(tmp_path / "source.onnx")
    export(qcc, source, "qdq", tmp_path / "qdq.onnx")
    assert {n.op_type for n in onnx.load(tmp_path / "qdq.onnx").graph.node} >= {"DequantizeLinear", "MatMul"}
    export(qcc, tmp_path / "qdq.onnx", "onnx", tmp_path / "back.onnx")
    assert initializers(tmp_path / "back.onnx", "MatMulNBits") == initializers(source, "MatMulNBits")
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    expected = run_onnx(source, x)
    for name in ("qdq.onnx", "back.onnx"):
        np.testing.assert_allclose(run_onnx(tmp_path / name, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", ["float", "W8A16", "W4A16"])
def test_quantized_onnx_compiles_with_its_codes(scheme: str, qcc: Command, tmp_path: Path) -> None:
    source = nbits_model(tmp_path / "source.onnx")
    assert qcc("compile", source, "--scheme", scheme, "-o", tmp_path / "out.qcc", "--quiet").code == 0
    manifest = json.loads((tmp_path / "out.qcc" / "manifest.json").read_text())
    found = {layer["node"]: layer["format"] for layer in manifest["layers"]}
    assert found == {"first": "u4, f32 per 32, zero u4", "second": "i8, f32 per 16"}
    export(qcc, tmp_path / "out.qcc", "onnx", tmp_path / "back.onnx")
    assert initializers(tmp_path / "back.onnx", "MatMulNBits") == initializers(source, "MatMulNBits")
    assert qcc("verify", tmp_path / "out.qcc", "--quiet").code == 0


@pytest.mark.parametrize("form", ["onnx", "qdq"])
def test_artifact_becomes_a_standard_model(form: str, compiled: Path, qcc: Command, tmp_path: Path) -> None:
    import qcc as package

    export(qcc, compiled, form, tmp_path / "out.onnx")
    images = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    expected = package.load(compiled)({"images": images})["logits"]
    np.testing.assert_allclose(run_onnx(tmp_path / "out.onnx", images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("form", "more", "code", "message"),
    [
        ("onnx", [], 3, "a Hugging Face folder holds weights, onnx is a graph"),
        ("nonsense", [], 2, "no format is called 'nonsense'"),
        ("gptq", ["--scheme", "W8A8"], 3, "quantizes activations"),
        ("gptq", ["--scheme", "nonsense"], 2, "no scheme is called"),
        ("gptq", ["--algorithm", "gptq"], 3, "needs samples"),
        ("gptq", ["--ignore", "nothing"], 2, "--ignore 'nothing' matches no node"),
        ("gptq", ["--group-size", "32"], 2, "group size 32 without a scheme"),
        ("awq", ["--scheme", "W8A16"], 3, "AWQ holds codes of 4 bits, these have 8"),
        ("gguf", ["--scheme", "i4, f16 per 24"], 3, "no kind of GGUF block holds i4, f16 per 24"),
    ],
)
def test_usage(
    form: str, more: list[str], code: int, message: str, repository: Path, qcc: Command, tmp_path: Path
) -> None:
    source = repository / "examples" / "tiny_lm" / "model"
    done = qcc("export", source, "--format", form, "-o", tmp_path / "out", "--json", *more)
    assert (done.code, done.json["code"]) == (code, code)
    assert message in done.json["error"]
    assert not list(tmp_path.iterdir())


def test_sources_that_have_no_configuration_are_refused(compiled: Path, qcc: Command, tmp_path: Path) -> None:
    done = qcc("export", compiled, "--format", "gptq", "-o", tmp_path / "out")
    assert done.code == 3 and "does not keep the configuration" in done.err
    done = qcc("export", nbits_model(tmp_path / "m.onnx"), "--format", "gguf", "-o", tmp_path / "out")
    assert done.code == 3
    assert qcc("export", tmp_path / "none", "--format", "gptq", "-o", tmp_path / "out").code == 2


def test_what_stands_there_is_replaced_only_on_request(repository: Path, qcc: Command, tmp_path: Path) -> None:
    source = repository / "examples" / "tiny_lm" / "model"
    place = tmp_path / "out"
    place.mkdir()
    (place / "letter.txt").write_text("keep me")
    for more in ([], ["--force"]):
        done = qcc("export", source, "--format", "gptq", "-o", place, *more)
        assert done.code == 2 and (place / "letter.txt").exists()
    (place / "letter.txt").unlink()
    (place / "config.json").write_text("{}")
    assert qcc("export", source, "--format", "gptq", "-o", place).code == 2
    export(qcc, source, "gptq", place, "--force", "--scheme", "W4A16", "--group-size", "32")
    before = weights(place)
    done = qcc("export", source, "--format", "awq", "-o", place, "--force", "--scheme", "W8A16")
    assert done.code == 3
    assert_same(weights(place), before)
    assert qcc("export", place, "--format", "awq", "-o", place, "--force").code == 2


def test_layers_that_one_configuration_cannot_tell_apart(gguf_file: Path, qcc: Command, tmp_path: Path) -> None:
    done = qcc("export", gguf_file, "--format", "gptq", "-o", tmp_path / "out", "--json")
    assert (
        done.code == 3
        and "layers differ in bits (4, 8): the configuration of GPTQ has one for all" in done.json["error"]
    )
    done = qcc("export", gguf_file, "--format", "awq", "-o", tmp_path / "out", "--json")
    assert done.code == 3 and "model.layers.1.mlp.down_proj.weight: AWQ holds codes of 4 bits" in done.json["error"]
    assert "--ignore model.layers.1.mlp.down_proj" in done.json["hint"]
    export(qcc, gguf_file, "awq", tmp_path / "out", "--ignore", "model.layers.1.mlp.down_proj")


@pytest.mark.parametrize("form", ["gguf", "gptq", "compressed-tensors"])
def test_scales_of_activations_are_not_lost_in_silence(form: str, qcc: Command, tmp_path: Path) -> None:
    source = checkpoints.gptq(tmp_path / "source", layers(symmetric=True))
    export(qcc, source, "compressed-tensors", tmp_path / "there")
    config = json.loads((tmp_path / "there" / "config.json").read_text())
    group = config["quantization_config"]["config_groups"]["group_0"]
    group["input_activations"] = {
        "num_bits": 8,
        "type": "int",
        "strategy": "tensor",
        "symmetric": True,
        "dynamic": False,
    }
    (tmp_path / "there" / "config.json").write_text(json.dumps(config))
    done = qcc("export", tmp_path / "there", "--format", form, "-o", tmp_path / "out", "--json", "--quiet")
    assert done.code == 3
    assert "activations are quantized with scales of their own" in done.json["error"]
    assert not (tmp_path / "out").exists()


def test_sparse_codes_of_an_artifact_are_dense_again(qcc: Command, tmp_path: Path) -> None:
    import qcc as package

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(130, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
    artifact = package.compile(module, torch.ones(2, 130), scheme="W4A16_24", output=tmp_path / "sparse.qcc")
    export(qcc, tmp_path / "sparse.qcc", "qdq", tmp_path / "out.onnx")
    x = np.random.default_rng(0).standard_normal((2, 130)).astype(np.float32)
    (expected,) = artifact(x).values()
    np.testing.assert_allclose(run_onnx(tmp_path / "out.onnx", x), expected, rtol=1e-4, atol=1e-4)
