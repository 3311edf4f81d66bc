"""What real networks must reach when compiled: quality, size and speed, by the functions of `benchmarks/models.py`."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import models

pytestmark = [pytest.mark.models, pytest.mark.slow]


@pytest.fixture
def options() -> argparse.Namespace:
    return argparse.Namespace(lines=200, rounds=10)


def by_scheme(rows: list[models.Row]) -> dict[str, models.Row]:
    return {row.scheme: row for row in rows}


def test_digits(options: argparse.Namespace) -> None:
    rows = by_scheme(models.digits(options))
    assert float(rows["W8A8"].error["points_lost"]) <= 0.3
    assert float(rows["W4A16"].error["points_lost"]) <= 0.3


def test_text_recognizer(options: argparse.Namespace) -> None:
    row = by_scheme(models.rec(options))["W8A8"]
    assert float(row.error["cer"]) <= float(row.error["cer_float"]) + 0.3
    assert float(row.error["same_text_percent"]) >= 97
    assert row.size_ratio <= 0.30
    assert row.speedup >= 1.0
    assert row.compile_seconds <= 60, "30 s on a quiet machine"


def test_text_detector(options: argparse.Namespace) -> None:
    (row,) = models.det(options)
    assert float(row.error["mask_overlap"]) >= 0.95
    assert row.speedup >= 1.0


def test_direction_classifier(options: argparse.Namespace) -> None:
    (row,) = models.cls(options)
    assert float(row.error["same_answer_percent"]) >= 98


def test_sentence_encoder(options: argparse.Namespace) -> None:
    rows = by_scheme(models.sentence_encoder(options))
    assert float(rows["W8A8"].error["cosine_mean"]) >= 0.995
    assert float(rows["W4A16 gptq"].error["cosine_mean"]) >= 0.98
    assert rows["W8A8"].speedup >= 1.0
