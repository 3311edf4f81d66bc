"""Language models through TVM: caches that grow in place, tables shared with the head, one step and many.

What needs TVM runs with the other tests of large downloads.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import qcc
from qcc.backends.runtime import Artifact
from qcc.ir import target
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.execute import Reference
from qcc.ir.program import Program
from tests.backends.test_native_cached_attention import meets_roughly, of
from tests.backends.test_tvm_network import built
from tests.ir.attention import Case, assert_meets, attention
from tests.ir.helpers import program

pytestmark = [
    pytest.mark.models,
    pytest.mark.skipif(find_spec("tvm") is None, reason="make test-models installs it"),
]
TWO = min(2, target.load("cpu").cores)
IDS = [int(i) for i in np.random.default_rng(0).integers(2, 300, 40)]


@pytest.mark.parametrize("cache", ["f32", "f16", "i8"])
@pytest.mark.parametrize(
    "case", [Case(), Case(window=3, softcap=2.0, length=5, past=6), Case(batch=2, length=1, past=6, size=40)], ids=repr
)
def test_attention_is_what_the_operation_says(case: Case, cache: str, tmp_path: Path) -> None:
    case = replace(case, cache=cache)
    feeds = of(case)
    found = built(attention(case), tmp_path, TWO).run(feeds)
    meets_roughly(found, case, feeds) if cache == "i8" else assert_meets(found, case, feeds)


NORMS = """
%shape = onnx.Constant() {value = #onnx.tensor<tensor<4xi64>, "0 0 4 8">} : tensor<4xi64>
%flat = onnx.Constant() {value = #onnx.tensor<tensor<3xi64>, "0 0 32">} : tensor<3xi64>
%split = onnx.Reshape(%q, %shape) : tensor<1x?x4x8xf32, #onnx.dims<",s,,">>
%normed = onnx.RMSNormalization(%split, %w) {epsilon = 1.0e-3 : f32} : tensor<1x?x4x8xf32, #onnx.dims<",s,,">>
%joined = onnx.Reshape(%normed, %flat) : Q
%turned = onnx.RotaryEmbedding(%joined, %cos, %sin) {num_heads = 4 : i64OPTIONS} : Q
%k2 = onnx.RotaryEmbedding(%k, %OTHER, %sin) {num_heads = 2 : i64OPTIONS} : K
%y, %key, %value = q.attention "layer"(%turned, %k2, %v, %past_key, %past_value, %total) {heads = 4 : i64,
    kv_heads = 2 : i64, scale = 0.25 : f32, cache = "f32"} : Q, tensor<1x2x?x8xf32>, tensor<1x2x?x8xf32>
"""


def decorated(options: str = "", other: str = "cos", half: int = 4) -> Program:
    """An attention behind a norm of q and rotations of both; `other` are the cosines of k."""
    tokens, cache = '#onnx.dims<",s,">', "tensor<1x2x?x8xf32>"
    inputs = {name: f"tensor<1x?x{size}xf32, {tokens}>" for name, size in (("q", 32), ("k", 16), ("v", 16))}
    inputs |= dict.fromkeys(("cos", "sin", "cos2"), f"tensor<1x?x{half}xf32, {tokens}>")
    inputs |= {"w": "tensor<8xf32>", "past_key": cache, "past_value": cache, "total": "tensor<i32>"}
    outputs = {"y": inputs["q"], "key": cache, "value": cache}
    text = NORMS.replace("OPTIONS", options).replace("OTHER", other)
    return program(
        inputs, text.replace(": Q", f": {inputs['q']}").replace(": K", f": {inputs['k']}"), outputs, opset=23
    )


@pytest.mark.parametrize(
    ("options", "half", "other"),
    [
        ("", 4, "cos"),
        (", rotary_embedding_dim = 4 : i64", 2, "cos"),
        (", interleaved = 1 : i64", 4, "cos"),
        ("", 4, "cos2"),
        (", interleaved = 1 : i64, rotary_embedding_dim = 6 : i64", 3, "cos2"),
    ],
)
def test_norms_and_rotations_before_attention(options: str, half: int, other: str, tmp_path: Path) -> None:
    """They become part of the attention; rotations by different angles are computed before it."""
    from qcc.backends.tvm.attention import prologue
    from qcc.ir.dialects.q_attention import Attention

    subject, rng = decorated(options, other, half), np.random.default_rng(1)
    (op,) = [op for op in subject.body.ops if isinstance(op, Attention)]
    assert bool(prologue(op).covered) == (other == "cos")
    length, past = 5, 3
    sizes = {"q": 32, "k": 16, "v": 16, "cos": half, "sin": half, "cos2": half}
    feeds = {n: rng.standard_normal((1, length, s)).astype(np.float32) for n, s in sizes.items()}
    feeds |= {n: rng.standard_normal((1, 2, past, 8)).astype(np.float32) for n in ("past_key", "past_value")}
    feeds |= {"w": rng.standard_normal(8).astype(np.float32), "total": np.array(length + past, np.int32)}
    found, wanted = built(subject, tmp_path).run(feeds), Reference(subject).run(feeds)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, atol=2e-6, err_msg=name)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny decoders."""
    from tests.language import decoder, save

    folder = tmp_path_factory.mktemp("decoders")
    return {kind: save(decoder(kind), folder / kind) for kind in ("llama", "gemma3_text")}


@pytest.fixture(scope="module")
def gemma(models: dict[str, Path]) -> Artifact:
    return qcc.compile(models["gemma3_text"], scheme="W4A8", group_size=32, backend="tvm", include=("re:.*",))


def logits(artifact: Artifact, prefill: int) -> np.ndarray:
    """Of all positions of `IDS`: some at once, the others one by one."""
    decoder = artifact.decoder(len(IDS))
    first = decoder.step(IDS[:prefill], keep=range(prefill)).copy()
    return np.concatenate([first, *[decoder.step([i]).copy() for i in IDS[prefill:]]])


@pytest.mark.parametrize(
    ("kind", "scheme", "group"), [("llama", "W8A16", 0), ("gemma3_text", "float", 0), ("gemma3_text", "W4A8", 32)]
)
def test_decoders_agree_with_the_other_backend(kind: str, scheme: str, group: int, models: dict[str, Path]) -> None:
    sides = [
        qcc.compile(models[kind], scheme=scheme, group_size=group, backend=backend)
        for backend in ("onnxruntime", "tvm")
    ]
    theirs, ours = (logits(side, 20) for side in sides)
    assert sides[1].language.cache_dtype == "float16"
    noise = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    assert noise < (1e-3 if scheme == "float" else 0.05), noise


@pytest.mark.parametrize(("form", "dtype"), [("f32", "float32"), ("i8", "int8")])
def test_caches_of_other_types(form: str, dtype: str, models: dict[str, Path], gemma: Artifact) -> None:
    made = qcc.compile(models["llama"], scheme="float", backend="tvm", kv_cache=form)
    exact = qcc.compile(models["llama"], scheme="float", backend="onnxruntime")
    assert made.language.cache_dtype == dtype
    ours, theirs = logits(made, 20), logits(exact, 20)
    noise = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    assert noise < (1e-5 if form == "f32" else 0.1), noise
    assert qcc.verify(made).ok
    a_position = made.language.cache_bytes(1)
    assert a_position == 2 * 2 * 2 * (16 * 4 if form == "f32" else 16 + 4)


def test_steps_of_any_size_give_the_same(gemma: Artifact) -> None:
    whole = logits(gemma, len(IDS))
    for prefill in (1, 7, 20):
        np.testing.assert_allclose(logits(gemma, prefill), whole, atol=0.05 * np.abs(whole).max())


def test_threads_change_no_bit(gemma: Artifact) -> None:
    one, two = (qcc.load(gemma.folder, threads=n) for n in (1, TWO))
    np.testing.assert_array_equal(logits(one, 20), logits(two, 20))


def test_what_is_forgotten_leaves_no_trace(gemma: Artifact) -> None:
    decoder = gemma.decoder(30)
    first = decoder.step(IDS[:10]).copy()
    decoder.step(IDS[20:30])
    decoder.rewind(0)
    np.testing.assert_array_equal(decoder.step(IDS[:10]), first)


def test_the_table_is_stored_once(gemma: Artifact) -> None:
    layers = {layer.op: layer for layer in gemma.manifest.layers if layer.weight.startswith("lm_head")}
    assert layers["q.embedding"].layout == layers["q.linear"].layout
    assert {layer.kernel for layer in layers.values()} == {"generated C"}


def test_a_full_cache_and_strange_tokens_are_refused(gemma: Artifact) -> None:
    decoder = gemma.decoder(8)
    with pytest.raises(ValueError, match="do not fit a cache of 8"):
        decoder.step(IDS[:9])
    with pytest.raises(ValueError, match="at least one token"):
        decoder.step([])
    with pytest.raises(BadInput, match="an index is not in the table of 300"):
        decoder.step([300])
    with pytest.raises(BadInput, match="an index is not in its table"):
        decoder.step(IDS[:4], keep=[4])
    assert decoder.length == 0
    decoder.step(IDS[:8])


def test_inputs_that_do_not_fit_the_cache(gemma: Artifact) -> None:
    """Called with arrays: a past that is said to be longer than it is, and a batch that there is no room for."""
    feeds = gemma.language.step(IDS[:4], keep=[3])
    with pytest.raises(BadInput, match="a cache does not hold the new positions"):
        gemma({**feeds, "past_length": np.array([1])})
    with pytest.raises(BadInput, match="has shape"):
        gemma({**feeds, "input_ids": np.zeros((2, 4), np.int64)})


@pytest.mark.parametrize("name", ["k", "v", "past_value"])
def test_operands_of_other_lengths_are_refused(name: str, tmp_path: Path) -> None:
    """Nothing is read behind what there is."""
    case = Case()
    feeds, runner = case.feeds(), built(attention(case), tmp_path)
    shorter = feeds[name][:, :-1] if name in "kv" else feeds[name][:, :, :-1]
    with pytest.raises(BadInput, match=r"does not run on these inputs|caches of one length"):
        runner.run({**feeds, name: np.ascontiguousarray(shorter)})
    runner.run(feeds)


def test_a_cache_that_others_read_is_refused(tmp_path: Path) -> None:
    subject = attention(Case())
    returned = subject.body.last_op
    assert returned is not None
    returned.operands[2] = returned.operands[1]
    with pytest.raises(NotSupported, match="the longer cache is no output of the network, or others read it"):
        built(subject, tmp_path)


SCALED = """
%w = q.weight "table" : !q.tensor<tensor<30x64xf32>, "i8, f32 per 32">
%e = q.embedding "look up"(%i, %w) : tensor<?x64xf32, #onnx.dims<"n,">>
%f = onnx.Constant() {value = #onnx.tensor<tensor<f32>, "7.5">} : tensor<f32>
%y = onnx.Mul "scale"(%e, OTHER) : tensor<?x64xf32, #onnx.dims<"n,">>
"""


@pytest.mark.parametrize(
    ("other", "outputs", "taken"), [("%f", ("y",), True), ("%f", ("y", "e"), False), ("%e", ("y",), False)]
)
def test_an_embedding_and_its_scale(other: str, outputs: tuple[str, ...], taken: bool, tmp_path: Path) -> None:
    """A number that nothing but the table is multiplied with is part of the look-up; what is read twice is not."""
    from qcc.backends.tvm.quantized import scaling
    from qcc.ir.dialects.q import Embedding
    from qcc.ir.format import Format
    from qcc.ir.quantize import quantize

    rows = '#onnx.dims<"n,">'
    subject = program(
        {"i": 'tensor<?xi64, #onnx.dims<"n">>'},
        SCALED.replace("OTHER", other),
        dict.fromkeys(outputs, f"tensor<?x64xf32, {rows}>"),
    )
    value = quantize(
        np.random.default_rng(0).standard_normal((30, 64)).astype(np.float32), Format.parse("i8, f32 per 32")
    )
    for name, array in value.parts.items():
        subject.weights[f"table.{name}"] = array
    (op,) = [op for op in subject.body.ops if isinstance(op, Embedding)]
    assert (scaling(op, subject) is not None) == taken
    feeds = {"i": np.array([0, 29, -1, 7])}
    found, wanted = built(subject, tmp_path).run(feeds), Reference(subject).run(feeds)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
