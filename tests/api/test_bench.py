"""`bench` times both sides in turn, on the same inputs and threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qcc import api
from qcc.api import Artifact
from qcc.api.bench import interleave, summarize
from qcc.ir.errors import BadInput
from tests.networks import normal

InScheme = Callable[..., Artifact]


def test_sides_take_turns_and_the_order_alternates() -> None:
    calls: list[str] = []
    sides = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    times = interleave(sides, 3, warmup=2)
    assert "".join(calls) == "aabb" + "ab" + "ba" + "ab"
    assert [len(t) for t in times.values()] == [3, 3]


def test_latencies_are_percentiles_in_milliseconds() -> None:
    found = summarize([i / 1000 for i in range(1, 102)])
    assert (found.p10, found.median, found.p90) == pytest.approx((11, 51, 91))


def test_an_artifact_beside_its_float_model(in_scheme: InScheme, digits: Path) -> None:
    report = api.bench(in_scheme("W8A8"), model=digits / "digits.onnx", against=("onnxruntime",), rounds=3)
    assert set(report.baselines) == {"onnxruntime"}
    for latency in (report.latency_ms, *report.baselines.values()):
        assert 0 < latency.p10 <= latency.median <= latency.p90
    assert (report.rounds, report.threads) == (3, 1)
    assert report.machine
    own = api.bench(in_scheme("W8A8").folder, rounds=1, inputs={"images": normal(2, 1, 8, 8)})
    assert own.baselines == {}


def test_what_cannot_be_timed_is_refused(in_scheme: InScheme, digits: Path) -> None:
    artifact = in_scheme("W8A8")
    for options, message in (
        ({"against": ("llama",)}, "no baseline is called 'llama'"),
        ({"against": ("onnxruntime",)}, "a baseline needs a model"),
        ({"against": ("onnxruntime",), "model": "nowhere.onnx"}, "no such file"),
        ({"against": ("onnxruntime",), "model": digits / "test.npz"}, "does not load the model"),
        ({"rounds": 0}, "rounds"),
        ({"threads": -1}, "threads"),
        ({"inputs": {"pictures": normal(2, 1, 8, 8)}}, "images"),
        ({"inputs": {"images": normal(2, 1, 8, 9)}}, "images"),
    ):
        with pytest.raises(BadInput, match=message):
            api.bench(artifact, **{"rounds": 1, **options})
