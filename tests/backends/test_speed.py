"""Speeds are measured once and kept whole in the cache; where that is damaged or unusable, they are measured again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcc.backends.onnxruntime import speed
from qcc.ir.cache import cache_folder


@pytest.fixture
def timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The models that were timed; each takes no time, and the cache is an empty folder."""
    models: list[bytes] = []

    def fake(model: bytes) -> float:
        models.append(model)
        return 1e-9 * len(models)

    monkeypatch.setenv("QCC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(speed, "_time", fake)
    monkeypatch.setattr(speed, "_N", 128)
    monkeypatch.setattr(speed, "_K", 128)
    speed.measured.cache_clear()
    yield models
    speed.measured.cache_clear()


def again(machine: str = "machine") -> speed.Speed:
    speed.measured.cache_clear()
    return speed.measured(machine)


def cache_file() -> Path:
    (path,) = cache_folder().iterdir()
    return path


def test_forms_are_measured_once_a_machine(timed: list[bytes]) -> None:
    first = again()
    count = len(timed)
    assert count == len(first.forms) == 14
    assert again() == first
    assert len(timed) == count
    again("another machine")
    assert len(timed) == 2 * count
    assert len(list(cache_folder().iterdir())) == 2, "no temporary file stays"


DAMAGE = {
    "empty": "",
    "cut": '{"float": 1e-9',
    "a list": "[]",
    "deep": "[" * 100_000,
    "one form": '{"float": 1e-9}',
    "text": None,
    "zero": None,
    "NaN": None,
    "infinite": None,
    "null": None,
}
VALUES = {"text": "fast", "zero": 0.0, "NaN": float("nan"), "infinite": float("inf"), "null": None}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_measured_again_and_mended(damage: str, timed: list[bytes]) -> None:
    again()
    count = len(timed)
    whole = json.loads(cache_file().read_text())
    text = DAMAGE[damage]
    cache_file().write_text(json.dumps({**whole, "float": VALUES[damage]}) if text is None else text)
    again()
    assert len(timed) == 2 * count
    again()
    assert len(timed) == 2 * count
    assert set(json.loads(cache_file().read_text())) == set(whole)


def test_bytes_that_are_no_text_are_measured_again(timed: list[bytes]) -> None:
    again()
    cache_file().write_bytes(b"\xff\xfe\x00")
    again()
    assert len(timed) == 28


@pytest.mark.parametrize("place", ["a file", "below a file", "read only", "a folder in the place of the file"])
def test_a_cache_that_cannot_be_written_costs_time_only(
    place: str, timed: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    match place:
        case "a file":
            blocked.write_text("")
        case "below a file":
            blocked.write_text("")
            blocked = blocked / "cache"
        case "read only":

            def refuse(*args: object) -> None:
                raise PermissionError(13, "Permission denied")

            monkeypatch.setattr(os, "replace", refuse)
        case _:
            again()
            name = cache_file().name
            (blocked / name).mkdir(parents=True)
    monkeypatch.setenv("QCC_CACHE", str(blocked))
    assert len(again().forms) == 14
    assert len(again().forms) == 14
    if blocked.is_dir():
        assert not list(blocked.glob("*.tmp"))


def test_blocks_count_as_the_nearer_measured_one() -> None:
    found = speed.Speed({"matmul_nbits 4 level 1 block 32": 1.0, "matmul_nbits 4 level 1 block 128": 2.0})
    assert [found.matmul_nbits(4, 1, block) for block in (16, 32, 64, 128, 256)] == [1, 1, 1, 2, 2]


def test_every_form_runs_on_the_installed_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_ROUNDS", 1)
    monkeypatch.setattr(speed, "_N", 128)
    monkeypatch.setattr(speed, "_K", 128)
    for name, form in speed._forms().items():  # pyright: ignore[reportPrivateUsage]
        cost = speed._time(form())  # pyright: ignore[reportPrivateUsage]
        assert 0 < cost < 1, name


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QCC_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("QCC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "qcc"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "qcc"
