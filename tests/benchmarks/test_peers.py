"""The peers compute what their own weights say, every copy of them, and no copy stands for another."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import onnx
import pytest

from benchmarks import peers
from benchmarks.peers import Problem, make, time_peers
from benchmarks.peers.onnxruntime_matmul import FORMS, NAMES, _model, _pack, _quantize
from qcc.ir.errors import BadInput, MissingExtra, NotSupported

RAGGED = Problem(M=3, N=65, K=300)


@pytest.fixture(autouse=True)
def few_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough bytes for several copies, and little enough work in a run that there are several runs."""
    monkeypatch.setattr(peers, "COLD_BYTES", 100_000)
    monkeypatch.setattr(peers, "RUN_SECONDS", 1e-6)


@pytest.mark.parametrize(
    ("family", "needs"), [("ort", ()), ("ggml", ("gguf",)), ("xllamacpp", ("gguf",)), ("torch", ("torch",))]
)
def test_every_run_of_every_peer_is_right(family: str, needs: tuple[str, ...]) -> None:
    for module in needs:
        pytest.importorskip(module)
    seen = 0
    for name in peers.family(family):
        try:
            peer = make(name, RAGGED)
        except MissingExtra as error:
            pytest.skip(str(error))
        except NotSupported:
            continue
        assert peer.copies % peer.products == 0
        for i in range(peer.copies // peer.products + 1):
            peer.run(i)
            assert peer.error() < 0.02, (name, i)
        seen += 1
    assert seen >= 5


def test_an_error_is_seen() -> None:
    peer = make("ort int8 b32 level 4", RAGGED)
    peer.run(0)
    rows_swapped = replace(peer, result=lambda: np.roll(peer.result(), 1, axis=1))
    assert rows_swapped.error() > 1


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_the_copies_of_a_session_differ(form: object) -> None:
    codes, scales = _quantize(form, 64, 256, 0)
    model = onnx.load_from_string(_model(form, Problem(1, 64, 256), _pack(form, codes), scales, range(2, 7)))
    weights = [w.raw_data for w in model.graph.initializer]
    assert len(weights) == 10
    assert len(set(weights)) == 10


def test_times_are_of_one_product() -> None:
    def run(i: int) -> None:
        time.sleep(0.004)

    peer = replace(make("ort int8 b32 level 4", RAGGED), run=run, products=4, copies=8)
    times = time_peers([peer], rounds=3, round_seconds=0.01)[peer.name]
    assert len(times) == 3
    assert 0.001 <= min(times) < 0.004  # not the 4 ms of a run


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(BadInput, match="no peer is called"):
        make("ggml Q9", RAGGED)
    with pytest.raises(BadInput, match="no peer is called"):
        make("", RAGGED)
