"""`--target cuda`: float16 networks for ONNX Runtime's CUDA provider, their numbers checked on the CPU provider."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from xdsl.dialects import builtin
from xdsl.ir import Attribute

from qcc import api
from qcc.api.language import capture_language
from qcc.backends import runtime, select
from qcc.backends.onnxruntime import cuda_kernels, half_range, traffic
from qcc.backends.onnxruntime.run import MODEL, SessionRunner, read_session
from qcc.backends.runtime import Artifact
from qcc.frontend import onnx_file
from qcc.ir import target
from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.execute import run
from qcc.ir.verify import compare
from qcc.passes import schemes
from tests.networks import model, normal, program

Array = NDArray[Any]
Samples = Sequence[Mapping[str, Array]]
HALF: dict[Attribute, Attribute] = {builtin.f32: builtin.f16}
IMAGES: Samples = [{"images": np.abs(normal(2, 1, 8, 8)).clip(0, 1)}]


def compiled(
    network: ModelProto | Path, samples: Samples, folder: Path, scheme: str = "float", **options: Any
) -> Artifact:
    return api.compile(
        network, target="cuda", scheme=scheme, calibration=samples, output=folder / f"{scheme}.qcc", **options
    )


def graph(artifact: Artifact) -> ModelProto:
    return onnx.load(artifact.folder / MODEL)


def operators(artifact: Artifact) -> Counter[str]:
    return Counter(node.op_type for node in graph(artifact).graph.node)


def reasons(artifact: Artifact, action: str) -> dict[str, str]:
    return {d.node: d.reason for d in artifact.manifest.decisions if d.action == action}


# --- targets ---


@pytest.mark.parametrize("name", ["cuda", "cuda-sm80", "cuda-sm89", "cuda-sm90"])
def test_a_target_says_what_its_gpu_has(name: str) -> None:
    loaded = target.load(name)
    assert loaded.gpu is not None
    assert loaded.device == "cuda"
    assert loaded.gpu.multiplies("f16")
    assert loaded.gpu.arch.removeprefix("sm_") in name or name == "cuda"
    assert loaded.gpu.arch in loaded.details
    assert select.choose(loaded, "auto") == "onnxruntime"


def test_cuda_is_hopper_where_nothing_else_is_said() -> None:
    assert target.load("cuda").gpu == target.load("cuda-sm90").gpu
    assert target.load("cpu").gpu is None


@pytest.mark.parametrize("scheme", schemes.names())
def test_schemes_with_quantized_activations_are_refused(scheme: str) -> None:
    if schemes.load(scheme).activation:
        with pytest.raises(NotSupported, match="cuda does not take scheme"):
            select.check(target.load("cuda"), "auto", scheme)
    else:
        select.check(target.load("cuda"), "auto", scheme)


# --- costs ---


def test_stored_codes_are_preferred_to_decoded_ones() -> None:
    gpu = target.load("cuda").gpu
    assert gpu is not None
    cost = traffic.stated(gpu)
    assert cost.matmul_nbits(4, 1, 128) < cost.matmul_nbits(4, 1, 32) < cost.matmul_nbits(8, 1, 128)
    assert cost.matmul_nbits(8, 1, 128) < cost.float_matmul == cost.decoded_matmul
    assert cost.int8_matmul == cost.matmul_nbits(4, 4, 32) == cost.matmul_nbits(4, 1, 256) == float("inf")


@pytest.mark.parametrize(("scheme", "group", "kernel"), [
    ("W4A16", 128, "matmul_nbits"), ("W4A16", 256, "expansion"), ("W4A16_ASYM", 32, "matmul_nbits"),
    ("W2A16", 128, "matmul_nbits"), ("W8A16", 0, "matmul_nbits"),
])  # fmt: skip
def test_linear_layers_take_the_kernel_that_moves_the_fewest_bytes(
    scheme: str, group: int, kernel: str, tmp_path: Path
) -> None:
    network = model("(float[N,256] x) => (float[N,64] y) { [fc] y = MatMul(x, w) }", w=normal(256, 64, scale=0.1))
    samples = [{"x": normal(4, 256, seed=1)}]
    artifact = compiled(network, samples, tmp_path, scheme, group_size=group, include=["re:.*"])
    (layer,) = artifact.manifest.layers
    assert layer.kernel.split()[0] == kernel
    assert ", f16 per" in layer.format
    onn = api.compile(network, scheme=scheme, calibration=samples, group_size=group, include=["re:.*"])
    assert artifact.manifest.error.sqnr_db > onn.manifest.error.sqnr_db - 0.2


# --- what the provider computes ---


@pytest.mark.parametrize("call", [
    "y = Conv<kernel_shape=[1]>(x, w)", "y = Softmax(x)", "y = LayerNormalization<axis=-1>(x, g)", "y = Where(b, x, x)",
    "y = Cos(x)", "y = Gelu(x)", "y = HardSwish(x)", "y = Erf(x)", "y = MatMul(x, m)", "y = Cast<to=1>(x)",
    "y = RMSNormalization<axis=-1>(x, g)", "y = com.microsoft.FusedMatMul<transB=1>(x, m)",
])  # fmt: skip
def test_common_operators_have_kernels_of_both_types(call: str) -> None:
    weights = {"w": normal(3, 3, 1), "g": normal(4), "m": normal(4, 4)}
    found = program(f"(float[2,3,4] x, bool[2,3,4] b) => (float[2,3,4] y) {{ {call} }}", opset=23, **weights)
    (op,) = [op for op in found.body.ops if isinstance(op, OnnxOp) and op.op_type != "Constant"]
    assert cuda_kernels.has_kernel(op)
    assert cuda_kernels.has_kernel(op, HALF)


def test_operators_without_a_kernel_are_told_apart() -> None:
    text = """(float[1,1,4,4] x, float[1,4,4,2] g) => (float[1,1,4,4] y, float[1,1,4,4] s) {
        y = Acos(x) s = GridSample(x, g)
    }"""
    found = {op.op_type: op for op in program(text).body.ops if isinstance(op, OnnxOp)}
    assert not cuda_kernels.has_kernel(found["Acos"])
    assert not cuda_kernels.has_kernel(found["Acos"], HALF)
    assert cuda_kernels.has_kernel(found["GridSample"])
    assert not cuda_kernels.has_kernel(found["GridSample"], HALF)


def test_an_open_range_of_opsets_is_for_one_schema() -> None:
    kernel = cuda_kernels.Kernel(13, None, {"T": frozenset({"float"})})
    assert kernel.takes(13, {"T": "float"})
    assert not kernel.takes(18, {"T": "float"})
    assert not kernel.takes(13, {"T": "float16"})
    assert cuda_kernels.Kernel(13, 20, {}).takes(18, {"T": "float"})


def test_what_falls_back_to_the_cpu_is_recorded(tmp_path: Path) -> None:
    network = model("(float[N,4] x) => (float[N,4] y) { [up] a = Mul(x, x) [turn] y = Acos(a) }")
    artifact = compiled(network, [{"x": np.full((2, 4), 0.5, np.float32)}], tmp_path)
    assert reasons(artifact, "float32") == {"turn": "the provider has no float16 kernel of it"}
    assert "no kernel of Acos for tensor(float)" in reasons(artifact, "on the cpu")["turn"]


# --- other networks ---


@pytest.mark.parametrize(("scheme", "least"), [("float", 62.0), ("W8A16", 42.0), ("W4A16", 42.0)])
def test_digits(scheme: str, least: float, digits: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"scheme": scheme, "calibration": digits / "calibration.npz"}
    artifact = api.compile(digits / "digits.onnx", target="cuda", output=tmp_path / "digits.qcc", **options)
    manifest = artifact.manifest
    assert (manifest.target, manifest.ran_on, manifest.not_run) == ("cuda", ["cpu"], ["cuda"])
    assert manifest.error.sqnr_db > least
    if scheme != "float":
        cpu = api.compile(digits / "digits.onnx", **options)
        assert manifest.error.sqnr_db > cpu.manifest.error.sqnr_db - 1
    assert [(p.name, p.dtype) for p in (*artifact.inputs, *artifact.outputs)] == [
        ("images", "float32"),
        ("logits", "float32"),
    ]
    own = [n for n in graph(artifact).graph.node if n.op_type == "Cast" and not n.name.startswith("/")]
    assert _float_casts(graph(artifact)) == 2, own
    assert not reasons(artifact, "float32")
    assert not reasons(artifact, "on the cpu")
    report = api.verify(artifact)
    assert report.ok
    assert (report.ran_on, report.not_run) == (("cpu",), ("cuda",))


def _float_casts(proto: ModelProto) -> int:
    """Casts between float32 and float16 of values that are computed when the network runs."""
    fixed = {t.name for t in proto.graph.initializer}
    count = 0
    for node in proto.graph.node:
        if all(name in fixed for name in node.input):
            fixed.update(node.output)
        elif node.op_type == "Cast" and node.attribute[0].i in (TensorProto.FLOAT, TensorProto.FLOAT16):
            count += 1
    return count


def test_the_float16_model_is_well_typed(digits: Path, tmp_path: Path) -> None:
    artifact = compiled(digits / "digits.onnx", IMAGES, tmp_path, "float")
    proto = graph(artifact)
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, check_type=True)
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    assert set(kinds.values()) <= {TensorProto.FLOAT16, TensorProto.INT64}
    assert {t.data_type for t in proto.graph.initializer} <= {TensorProto.FLOAT16, TensorProto.INT64}
    assert proto.opset_import[0].version <= 26
    assert proto.ir_version <= 13


def test_branches_and_what_they_read_stay_float32(tmp_path: Path) -> None:
    text = """(float[N,8] x, bool c) => (float[N,8] y) {
        [one] a = Mul(x, x)
        [pick] b = If(c) <then_branch = t () => (float[N,8] u) { u = Add(a, a) },
                          else_branch = e () => (float[N,8] v) { v = Neg(a) }>
        [two] y = Sqrt(b)
    }"""
    samples = [{"x": normal(2, 8), "c": np.array(True)}]
    artifact = compiled(model(text), samples, tmp_path)
    assert reasons(artifact, "float32") == {"pick": "it has branches"}
    assert artifact.manifest.error.sqnr_db > 55


ENCODER = """(int64[N,S] ids, int64[N,S] mask) => (float[N,S,32] y) {
    h = Gather(table, ids)
    m = Cast<to=1>(mask)
    away = Sub(one, m)
    far = Mul(away, lowest)
    seen = Unsqueeze(far, axis)
    q = MatMul(h, wq) k = MatMul(h, wk)
    kt = Transpose<perm=[0,2,1]>(k)
    s = MatMul(q, kt)
    scores = Add(s, seen)
    p = Softmax<axis=-1>(scores)
    mixed = MatMul(p, h)
    r = Add(mixed, h)
    y = LayerNormalization<axis=-1, epsilon=1e-12>(r, g, b)
}"""


def test_an_encoder_with_masked_scores(tmp_path: Path) -> None:
    weights = {
        "table": normal(50, 32), "wq": normal(32, 32, seed=1, scale=0.2), "wk": normal(32, 32, seed=2, scale=0.2),
        "one": np.array(1, np.float32), "lowest": np.array(np.finfo(np.float32).min, np.float32),
        "axis": np.array([1], np.int64),
        "g": normal(32, seed=3), "b": normal(32, seed=4),
    }  # fmt: skip
    ids = np.random.default_rng(0).integers(0, 50, (2, 6))
    mask = np.array([[1] * 6, [1, 1, 1, 0, 0, 0]], np.int64)
    artifact = compiled(model(ENCODER, **weights), [{"ids": ids, "mask": mask}], tmp_path)
    assert artifact.manifest.error.sqnr_db > 55
    assert np.isfinite(artifact(ids=ids, mask=np.zeros_like(mask))["y"]).all()


# --- what float16 cannot hold ---


def test_what_fits_and_what_does_not() -> None:
    assert half_range.unfit(normal(100)) == ""
    assert half_range.unfit(np.zeros(3, np.float32)) == ""
    assert half_range.unfit(np.array([1.0, np.inf, -np.inf, np.nan], np.float32)) == ""
    assert "float16 ends at 65504" in half_range.unfit(np.array([20000.0, 1.0], np.float32))
    assert "near zero" in half_range.unfit(np.array(1e-12, np.float32))
    assert "near zero" in half_range.unfit(normal(1000, scale=1e-6))
    assert half_range.unfit(np.array([1.0, 1e-7], np.float32)) == ""  # nothing next to its neighbour


def test_angles_of_far_positions_stay_exact(tmp_path: Path) -> None:
    text = (
        "(int64[N,1] p) => (float[N,16] y) { [f] a = Cast<to=1>(p) [m] b = Mul(a, w) [c] d = Cos(b) y = Mul(d, two) }"
    )
    network = model(text, w=(10000.0 ** -(np.arange(16) / 16)).astype(np.float32), two=np.array(2, np.float32))
    artifact = compiled(network, [{"p": np.arange(8, dtype=np.int64)[:, None]}], tmp_path)
    positions = np.array([[4097], [30001], [131071]], np.int64)
    expected = 2 * np.cos(positions * 10000.0 ** -(np.arange(16) / 16))
    assert np.abs(artifact(positions)["y"] - expected).max() < 0.01  # the float32 angle itself is off by 2^-7 at 131071
    assert list(reasons(artifact, "float32")) == ["f", "m", "c"]


def test_images_of_whole_numbers_are_not_angles() -> None:
    text = "(uint8[1,3,8,8] x) => (float[1,4,8,8] y) { a = Cast<to=1>(x) b = Mul(a, s) c = Conv(b, w) y = Sin(c) }"
    found = program(text, s=np.array(1 / 255, np.float32), w=normal(4, 3, 1, 1))
    assert half_range.angles(found) == set()


@pytest.mark.parametrize("seed", range(8))
def test_networks_at_the_edges_of_float16_stay_finite(seed: int, tmp_path: Path) -> None:
    """Layers that grow and shrink by powers of ten, divided by norms with tiny epsilons."""
    rng = np.random.default_rng(seed)
    steps: list[str] = []
    weights: dict[str, Array] = {
        "e": np.array(10.0 ** rng.uniform(-12, -3), np.float32),
        "axis": np.array([-1], np.int64),
    }
    last = "x"
    for index in range(4):
        weights[f"w{index}"] = normal(16, 16, seed=100 * seed + index, scale=10 ** rng.uniform(-4, 5))
        steps.append(f"[l{index}] h{index} = MatMul({last}, w{index})")
        steps.append(f"[s{index}] s{index} = Mul(h{index}, h{index}) m{index} = ReduceMean<keepdims=1>(s{index}, axis)")
        steps.append(
            f"[v{index}] v{index} = Add(m{index}, e) r{index} = Sqrt(v{index}) n{index} = Div(h{index}, r{index})"
        )
        last = f"n{index}"
    network = model("(float[N,16] x) => (float[N,16] y) { " + " ".join(steps) + f" y = Identity({last}) }}", **weights)
    artifact = compiled(network, [{"x": normal(3, 16, seed=seed)}], tmp_path)
    assert artifact.manifest.error.sqnr_db > 50
    assert np.isfinite(artifact(normal(5, 16, seed=seed + 50))["y"]).all()


def test_overflow_at_run_time_is_an_error_not_infinity(tmp_path: Path) -> None:
    network = model("(float[N,64] x) => (float[N,8] y) { y = MatMul(x, w) }", w=normal(64, 8))
    artifact = compiled(network, [{"x": normal(2, 64)}], tmp_path, "W4A16", group_size=32, include=["re:.*"])
    assert read_session(artifact.folder).finite
    assert np.isfinite(artifact(normal(2, 64) * 100)["y"]).all()
    with pytest.raises(NotSupported, match="float16 overflowed"):
        artifact(np.full((1, 64), 1e6, np.float32))


def test_a_network_that_gives_infinity_by_itself_may(tmp_path: Path) -> None:
    network = model("(float[N,4] x) => (float[N,4] y) { y = Log(x) }")
    artifact = compiled(network, [{"x": np.array([[0, 1, 2, 3]], np.float32)}], tmp_path)
    assert not read_session(artifact.folder).finite
    assert artifact(np.zeros((1, 4), np.float32))["y"][0, 0] == -np.inf


# --- decoders ---


@dataclasses.dataclass(frozen=True)
class Captured:
    """The step of a random decoder as an ONNX model, samples of it, and the folder it came from."""

    source: Path
    network: ModelProto
    samples: Samples


@pytest.fixture(scope="module")
def captured(speaking: Path, tmp_path_factory: pytest.TempPathFactory) -> Captured:
    from qcc.api import capture_worker

    folder = tmp_path_factory.mktemp("captured")
    source = speaking.parent / "model"
    float_program, language = capture_language(source, folder)
    network = onnx.load(folder / capture_worker.MODEL)
    ids = np.random.default_rng(0).integers(2, 300, 24).tolist()
    past = run(float_program, language.record.step(ids[:8], keep=[0]))
    return Captured(source, network, [language.record.step(ids[8:], keep=range(16), past=past)])


@pytest.fixture(scope="module")
def decoder(captured: Captured, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The decoder for a GPU, without quantization: what float16 alone costs."""
    folder = tmp_path_factory.mktemp("half") / "decoder.qcc"
    return api.compile(captured.source, target="cuda", scheme="float", output=folder)


def planted(network: ModelProto, weight: str, factor: float) -> ModelProto:
    """The model with one row or column of a weight, by a part of its name, made large."""
    out = ModelProto()
    out.CopyFrom(network)
    (tensor,) = [t for t in out.graph.initializer if weight in t.name]
    array = numpy_helper.to_array(tensor).copy()
    array[..., 3] *= factor
    array[3] *= factor
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return out


def test_a_decoder_has_a_float16_cache_and_float32_logits(decoder: Artifact) -> None:
    manifest = decoder.manifest
    assert decoder.language.cache_dtype == "float16"
    kinds = {p.name: p.dtype for p in (*decoder.inputs, *decoder.outputs)}
    assert kinds["logits"] == "float32"
    assert {kinds[name] for pair in decoder.language.cache_names() for name in pair} == {"float16"}
    assert (manifest.ran_on, manifest.not_run) == (["cpu"], ["cuda"])
    assert manifest.error.sqnr_db > 60
    assert api.verify(decoder).ok


def test_casts_stand_at_the_ends_of_a_decoder_only(decoder: Artifact) -> None:
    """The position to float32, cosine and sine to float16, and the logits to float32."""
    assert _float_casts(graph(decoder)) == 4
    assert operators(decoder)["GroupQueryAttention"] == 2
    assert not reasons(decoder, "on the cpu")
    assert set(reasons(decoder, "float32").values()) == {"positions and angles: float16 counts to 2048"}


def test_decoding_in_place_follows_the_prefill(decoder: Artifact) -> None:
    ids = np.random.default_rng(1).integers(2, 300, 40).tolist()
    whole = decoder.decoder(48).step(ids, keep=range(40)).copy()
    step = decoder.decoder(48)
    rows = [step.step(ids[:8], keep=range(8)).copy(), *(step.step([token]).copy() for token in ids[8:])]
    difference = compare([{"y": whole}], [{"y": np.concatenate(rows)}])
    assert difference.sqnr_db > 55
    step.rewind(10)
    again = step.step(ids[10:20], keep=range(10))
    assert compare([{"y": whole[10:20]}], [{"y": again}]).sqnr_db > 55


def test_it_answers_as_the_float_model_does(decoder: Artifact, speaking: Path) -> None:
    ids = np.random.default_rng(2).integers(2, 300, 30).tolist()
    half = decoder.decoder(32).step(ids, keep=range(30)).copy()
    exact = runtime.load(speaking).decoder(32).step(ids, keep=range(30))
    assert compare([{"y": exact}], [{"y": half}]).sqnr_db > 55
    assert (half.argmax(axis=1) == exact.argmax(axis=1)).mean() > 0.95


@pytest.mark.parametrize("scheme", ["W4A16", "W8A16", "W2A16"])
def test_quantized_decoders_lose_what_their_codes_lose(scheme: str, captured: Captured, tmp_path: Path) -> None:
    options: dict[str, Any] = {"include": ["re:.*"], "group_size": 0 if scheme == "W8A16" else 32}
    artifact = compiled(captured.network, captured.samples, tmp_path, scheme, **options)
    cpu = api.compile(captured.network, scheme=scheme, calibration=captured.samples, **options)
    assert abs(artifact.manifest.error.sqnr_db - cpu.manifest.error.sqnr_db) < 0.3
    kinds = operators(artifact)
    if scheme != "W8A16":
        assert kinds["MatMulNBits"] >= 14
        assert kinds["GatherBlockQuantized"] == (scheme == "W4A16")  # asymmetric tables are decoded when loaded
    assert _float_casts(graph(artifact)) == 4
    assert not reasons(artifact, "on the cpu")
    scales = {t.data_type for t in graph(artifact).graph.initializer if t.dims and t.data_type != TensorProto.INT64}
    assert TensorProto.FLOAT16 in scales


def test_a_residual_stream_that_overflows_stays_float32(captured: Captured, tmp_path: Path) -> None:
    network = planted(captured.network, "layers.0.mlp.down_proj", 3e3)
    artifact = compiled(network, captured.samples, tmp_path)
    kept = reasons(artifact, "float32")
    assert any("float16 ends at 65504" in reason for reason in kept.values())
    assert artifact.manifest.error.sqnr_db > 50
    outputs = artifact(captured.samples[0])
    assert all(np.isfinite(outputs[name]).all() for name in ("logits", "present_key_1", "present_value_1"))
    assert operators(artifact)["GroupQueryAttention"] == 2


def test_values_that_attention_would_overflow_on_are_refused(captured: Captured, tmp_path: Path) -> None:
    network = planted(captured.network, "layers.1.self_attn.v_proj", 1e4)
    with pytest.raises(NotSupported, match="attention has no float32 kernel") as caught:
        compiled(network, captured.samples, tmp_path)
    assert "bfloat16" in caught.value.hint


# --- running ---


def test_a_damaged_note_is_bad_input(tmp_path: Path, digits: Path) -> None:
    artifact = compiled(digits / "digits.onnx", IMAGES, tmp_path)
    (artifact.folder / "session.json").write_text('{"device": "cuda", "colour": "red"}')
    with pytest.raises(BadInput, match=r"session\.json"):
        SessionRunner(str(artifact.folder / MODEL), artifact.folder, 1)


def test_the_runner_says_where_it_runs(decoder: Artifact, speaking: Path) -> None:
    assert (decoder.runner.device, decoder.runner.wanted) == ("cpu", "cuda")
    runner = runtime.load(speaking).runner
    assert (runner.device, runner.wanted) == ("cpu", "cpu")


def test_programs_are_left_in_float16(digits: Path) -> None:
    """`module.mlir` tells of the network that runs, types included."""
    from qcc.backends.onnxruntime.half import to_half

    found = onnx_file.read(digits / "digits.onnx")
    to_half(found, {})
    text = str(found.module)
    assert "xf16>" in text
    found.module.verify()
