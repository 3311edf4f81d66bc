"""A language model on the command line: compile, talk, judge, verify, time, report; and what is refused on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qcc.cli import run

Command = Callable[..., Any]
MODEL = Path("examples/tiny_lm/model")
TEXT = Path("examples/tiny_lm/heldout.txt")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny language model as the README compiles it."""
    folder = tmp_path_factory.mktemp("cli") / "tiny.qcc"
    assert run(["compile", str(MODEL), "--target", "cpu", "--scheme", "W4A16", "-o", str(folder), "--quiet"]) == 0
    return folder


def test_the_artifact_says_what_it_is(tiny: Path) -> None:
    manifest = json.loads((tiny / "manifest.json").read_text())
    language = manifest["language"]
    assert (language["architecture"], language["vocabulary"], language["context"]) == ("llama", 2048, 512)
    assert (language["layers"], language["kv_heads"], language["head_size"]) == (6, 2, 32)
    assert set(language["programs"]) == {"prefill", "decode"}
    assert "tokenizer.json" in manifest["files"]
    nodes = {layer["node"] for layer in manifest["layers"]}
    assert "model.layers.0.self_attn.q_proj" in nodes
    skipped = {d["node"]: d["reason"] for d in manifest["decisions"] if d["action"] == "skipped"}
    assert set(skipped) == {"lm_head", "model.embed_tokens"}


def test_it_talks(qcc: Command, tiny: Path) -> None:
    done = qcc("run", tiny, "--prompt", "def read(self, ", "--max-new-tokens", 12)
    assert done.code == 0
    assert "12 tokens" in done.err
    again = qcc("run", tiny, "--prompt", "def read(self, ", "--max-new-tokens", 12, "--json").json
    assert done.out == again["text"] + "\n"
    assert again["tokens"] == 12
    assert again["decode_tokens_per_s"] > 0
    assert set(again) == {"text", "tokens", "first_token_s", "decode_tokens_per_s"}


def test_it_draws_the_same_for_a_seed_and_other_text_for_another(qcc: Command, tiny: Path) -> None:
    def text(seed: int) -> str:
        drawn = ("--temperature", 1.0, "--top-k", 50, "--top-p", 0.95, "--seed", seed)
        return qcc("run", tiny, "--prompt", "import ", "--max-new-tokens", 16, *drawn, "--json").json["text"]

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_it_is_judged(qcc: Command, tiny: Path) -> None:
    done = qcc("eval", tiny, "--text", TEXT, "--tokens", 600, "--window", 256, "--json")
    assert done.code == 0
    assert (done.json["tokens"], done.json["windows"]) == (597, 3)
    assert 10 < done.json["perplexity"] < 120
    compared = qcc("eval", tiny, "--text", TEXT, "--tokens", 300, "--window", 256, "--against", tiny, "--json")
    assert compared.json["top1"] == 1.0


def test_it_verifies_with_its_worst_layers(qcc: Command, tiny: Path) -> None:
    done = qcc("verify", tiny, "--json")
    assert (done.code, done.json["ok"]) == (0, True)
    assert done.json["worst"][0]["node"].startswith("model.layers.")
    assert 10 < done.json["worst"][0]["sqnr_db"] < 60
    assert qcc("verify", tiny, "--against", MODEL, "--min-sqnr", 10, "--json").json["ok"]


def test_it_is_timed(qcc: Command, tiny: Path) -> None:
    done = qcc("bench", tiny, "--rounds", 2, "--prompt-tokens", 16, "--new-tokens", 4, "--json")
    assert done.code == 0
    assert set(done.json["decode_tokens_per_s"]) == {"median", "p10", "p90"}
    assert done.json["prefill_tokens_per_s"]["median"] > 0


def test_calibration_is_text(qcc: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the file is called: samples from memory are told apart by their type."""
    model = MODEL.resolve()
    shutil.copy("examples/tiny_lm/calibration.txt", tmp_path / "samples")
    monkeypatch.chdir(tmp_path)
    arguments = ("--scheme", "W8A8", "--calibration", "samples", "--calibration-limit", 4, "-o", "w8a8.qcc")
    done = qcc("compile", model, *arguments, "--json")
    assert done.code == 0
    assert done.json["sqnr_db"] > 25
    assert done.json["quantized"] == 42


def test_an_artifact_runs_without_torch_and_transformers(tiny: Path) -> None:
    script = (
        "import sys, qcc\n"
        f"print(''.join(qcc.load({str(tiny)!r}).generate('import ', max_new_tokens=4)))\n"
        "assert not {'torch', 'transformers', 'onnx'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "a", "--max-new-tokens", "600"], "do not fit the model's 512 positions"),
        (["--prompt", "a " * 700], "do not fit the model's 512 positions"),
        (["--prompt", "a", "--max-new-tokens", "0"], "0 new tokens"),
        (["--prompt", "a", "--temperature", "-1"], "temperature -1"),
        (["--prompt", "a", "--top-p", "0"], "top-p 0"),
        (["--prompt", "a", "--top-k", "-3"], "top-k -3"),
        (["--prompt", "\udcff"], "not valid UTF-8"),
        (["--prompt", "a", "--input", "x.npz", "--output", "y.npz"], "both a prompt and arrays"),
        (["--input", "x.npz"], "nothing to run on"),
    ],
)
def test_prompts_that_cannot_be(qcc: Command, tiny: Path, arguments: list[str], message: str) -> None:
    done = qcc("run", tiny, *arguments)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_prompt_for_another_network_is_refused(qcc: Command, compiled: Path) -> None:
    done = qcc("run", compiled, "--prompt", "hello")
    assert (done.code, "not a language model" in done.err) == (2, True)


def test_a_damaged_tokenizer_is_found(qcc: Command, tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy.qcc"))
    (copy / "tokenizer.json").write_text("{}")
    done = qcc("run", copy, "--prompt", "hello")
    assert (done.code, "tokenizer.json" in done.err) == (2, True)


def test_unknown_architectures_name_the_known(qcc: Command, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "mamba"}
    (folder / "config.json").write_text(json.dumps(config))
    before = sorted(os.listdir(tmp_path))
    done = qcc("compile", folder, "-o", tmp_path / "out.qcc")
    assert done.code == 3
    assert "'mamba'" in done.err
    assert "gemma3_text" in done.err
    assert sorted(os.listdir(tmp_path)) == before, "nothing is written"


def test_a_large_checkpoint_is_captured_in_a_process_of_its_own(
    qcc: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcc.api.capture_worker._LARGE", 0)
    done = qcc("compile", MODEL, "--scheme", "W4A16", "-o", tmp_path / "own.qcc", "--json")
    assert (done.code, done.json["quantized"]) == (0, 42)
    broken = tmp_path / "model"
    shutil.copytree(MODEL, broken)
    (broken / "tokenizer.json").unlink()
    refused = qcc("compile", broken, "-o", tmp_path / "broken.qcc", "--json")
    assert (refused.code, refused.json["code"]) == (2, 2)
    assert "no tokenizer" in refused.json["error"]
    assert refused.json["hint"]


def test_a_folder_is_inspected_as_a_model(qcc: Command) -> None:
    done = qcc("inspect", MODEL, "--json")
    assert done.code == 0
    assert done.json["operators"]["GroupQueryAttention"] == 6
    weights = {row["node"]: row["weights"] for row in done.json["nodes"]}
    assert weights["model.layers.0.mlp.up_proj"] == [[192, 512]]


def test_a_dry_run_writes_nothing(qcc: Command, tmp_path: Path) -> None:
    done = qcc("compile", MODEL, "--scheme", "W4A16", "-o", tmp_path / "out.qcc", "--dry-run", "--json")
    assert (done.code, len(done.json["quantized"])) == (0, 42)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["f16", "i8"])
def test_caches_are_rounded_as_asked(form: str, qcc: Command, tmp_path: Path) -> None:
    flags = ("--scheme", "W8A16", "--backend", "onnxruntime", "--kv-cache", form)
    made = qcc("compile", MODEL, *flags, "-o", tmp_path / "a.qcc", "--json")
    manifest = json.loads((tmp_path / "a.qcc" / "manifest.json").read_text())
    kept = [d for d in manifest["decisions"] if d["action"] == "cache"]
    assert made.code == 0
    assert len(kept) == 6 and all(d["reason"] == f"entries are kept in {form}" for d in kept)
    assert manifest["options"]["kv_cache"] == form
    assert f'cache = "{form}"' in (tmp_path / "a.qcc" / "module.mlir").read_text()


@pytest.mark.parametrize(
    ("model", "form", "reason"),
    [(MODEL, "f8", "a cache of 'f8'"), (Path("examples/digits/digits.onnx"), "f16", "digits has no caches")],
)
def test_caches_that_cannot_be_are_refused(model: Path, form: str, reason: str, qcc: Command, tmp_path: Path) -> None:
    made = qcc("compile", model, "--scheme", "W8A16", "--kv-cache", form, "-o", tmp_path / "a.qcc")
    assert made.code == 2
    assert reason in made.err
    assert not (tmp_path / "a.qcc").exists()
