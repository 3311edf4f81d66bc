"""`qcc list formats`: the families with examples, and the schemes with the text of their formats, brackets and all."""

from __future__ import annotations

import pytest

from qcc.ir import formats
from qcc.ir.format import Format
from qcc.passes import schemes

from .conftest import Command


def test_every_family_has_examples_and_every_scheme_its_format(qcc: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    done = qcc("list", "formats", "--json")
    assert done.code == 0
    assert [row["name"] for row in done.json["formats"]] == formats.names()
    assert "For example e4m3, " in done.err
    written = {row["name"]: row for row in done.json["written"]}
    assert set(written) == set(schemes.names()) - {"float"}
    for name, row in written.items():
        fmt = Format.parse(row["format"])
        assert fmt == schemes.load(name).linear_format()
        assert row["bits_per_weight"] == pytest.approx(fmt.bits_per_weight((4096, 4096)), abs=6e-4)
        assert row["format"] in done.err
    assert "[e2m1z5|e2m1z-5|e2m1z8|e2m1z-8] per 128" in done.err
