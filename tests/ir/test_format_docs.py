"""The page docs/formats.md: its examples run, its tables are true, its files exist, every scheme is in it."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import numpy as np
import pytest

from qcc.ir.errors import NotSupported
from qcc.ir.format import Format
from qcc.ir.formats import load_element, names
from qcc.passes import schemes

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "formats.md"


def section(title: str) -> str:
    return PAGE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """The cells of a section's table."""
    lines = [line for line in section(title).splitlines() if line.startswith("| `")]
    return [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_examples_print_what_the_page_says() -> None:
    result = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert result.failed == 0
    assert result.attempted > 15


def test_formats_of_the_grammar_parse_and_print() -> None:
    texts = [row[0].strip("`") for row in rows("Grammar")]
    assert len(texts) > 14
    assert [str(Format.parse(text)) for text in texts] == texts


def test_elements_have_the_values_of_the_table() -> None:
    found = rows("Elements")
    for name, bits, _, low, high, gap in found:
        element = load_element(name.strip("`"))
        assert element.bits == int(bits)
        if not low:
            with pytest.raises(NotSupported):
                _ = element.half_gap
            continue
        assert (element.low, element.high) == (float(low), float(high))
        np.testing.assert_allclose(element.half_gap, float(gap), rtol=1e-6)
    assert len(found) > len(names())


def test_every_scheme_is_told_with_its_format_and_its_bits() -> None:
    told: dict[str, str] = {}
    for cells in rows("Formats with names"):
        fmt = Format.parse(cells[2].strip("`"))
        assert f"{fmt.bits_per_weight((4096, 4096)):.3f}" == cells[1]
        told |= dict.fromkeys(re.findall(r"`(\w+)`", cells[0]), str(fmt))
    assert told == {n: str(schemes.load(n).linear_format()) for n in schemes.names() if n != "float"}


def test_files_of_the_comparisons_exist() -> None:
    table = [line for line in section("What each was compared with").splitlines() if line.startswith("| ")][2:]
    assert len(table) > 15
    for line in table:
        for name in re.split(r",\s*", line.rstrip("| ").rpartition("|")[2].strip()):
            folder, _, last = name.rpartition("/")
            assert (ROOT / "tests" / folder / f"test_{last}.py").is_file(), name
