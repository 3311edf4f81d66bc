"""The benchmark of formats and layouts: every side of every row runs, its checks can fail, its report has all rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import formats
from benchmarks.report import formats_section
from benchmarks.workloads import packing
from qcc.ir.quantized import Quantized

SHAPE = (64, 512)


def values() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE, np.float32) * np.float32(0.02)


def all_rows() -> Iterator[formats.Row]:
    yield from formats.formats(values())
    yield from formats.layouts(SHAPE)
    yield from formats.records(values())
    yield from formats.peers(values())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    packing.write_model(folder, packing.shapes(layers=1, vocabulary=5000))
    return folder


def test_the_report_has_a_line_for_every_row(model: Path, tmp_path: Path) -> None:
    rows = [formats.measure(row, values(), rounds=1) for row in all_rows()]
    packed = packing.pack_model(model, tmp_path / "spill", 1 << 20)
    packed |= {"keep_bytes": 1 << 20, "limit_bytes": 1 << 29, "peak_anonymous_bytes": 1, "peak_rss_bytes": 1}
    result = {"machine": "this", "packages": {"numpy": "2"}, "rounds": 1, "shape": SHAPE, "copy": [1.0, 2.0, 3.0]}
    result |= {"reach": {**formats.REACH, "pack_seconds": 20.0}, "rows": rows, "model": packed}
    text = formats_section(result)
    for row in rows:
        assert row["name"] in text
        assert all(0 < low <= median <= high for low, median, high in row["rates"].values())
    rows[0]["misses"] = ["quantize"]
    assert f"Missed: {rows[0]['name']} (quantize)" in formats_section(result)


def test_a_slow_side_misses_the_reach() -> None:
    row = formats.Row("layout", "slow", {"pack": lambda: time.sleep(0.02), "unpack": lambda: None})
    assert formats.measure(row, np.zeros(1 << 20, np.float32), rounds=3)["misses"] == ["pack"]


def test_values_that_are_off_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    decode: Callable[[Quantized], np.ndarray] = Quantized.decode
    monkeypatch.setattr(Quantized, "decode", lambda self: decode(self) + 0.01)
    with pytest.raises(SystemExit, match="further off than half a step"):
        next(formats.formats(values()))


def test_the_whole_model_has_its_parameters() -> None:
    assert sum(rows * columns for rows, columns in packing.shapes().values()) == 268042240


def test_a_wrong_byte_in_the_model_is_found(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(packing.PackWeights):
        def run(self, program: packing.Program, ctx: packing.ProgramContext) -> None:
            super().run(program, ctx)
            wrong = np.array(program.weights["embedding.codes"])
            wrong[-1] ^= 0x10
            program.weights["embedding.codes"] = wrong

    monkeypatch.setattr(packing, "PackWeights", Broken)
    with pytest.raises(AssertionError, match="Arrays are not equal"):
        packing.pack_model(model, tmp_path / "spill", 1 << 20)
