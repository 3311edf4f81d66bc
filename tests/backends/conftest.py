"""One small compiled network for the tests of artifacts and of the runtime."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qcc import api
from tests.language import decoder, save
from tests.networks import model, normal

NETWORK = """(float[N,32] x, int64[N,K] i) => (float[N,8] y, float[N,K] z) {
    [fc1] a = MatMul(x, w1) b = Relu(a) [fc2] y = Gemm(b, w2, c) z = Cast<to=1>(i)
}"""


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an artifact. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("compiled") / "small.qcc"
    network = model(NETWORK, w1=normal(32, 48), w2=normal(48, 8, seed=1), c=normal(8))
    samples = [{"x": normal(3, 32, seed=s), "i": normal(3, 2, seed=s).astype("int64")} for s in range(2)]
    api.compile(network, scheme="W8A16", calibration=samples, output=folder)
    return folder


@pytest.fixture
def artifact(compiled: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(compiled, tmp_path / "small.qcc"))


@pytest.fixture(scope="session")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a compiled random decoder of 128 positions, with the tokenizer of `tests.language`."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("speaking")
    model = save(decoder("llama", hidden_size=64, sliding_window=None), folder / "model")
    api.compile(model, scheme="float", output=folder / "speaking.qcc")
    return folder / "speaking.qcc"
