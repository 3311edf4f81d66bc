"""The examples of docs/layouts.md run, and the record it shows is one."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

from qcc.ir.layout import Record

PAGE = Path(__file__).resolve().parents[2] / "docs" / "layouts.md"


def test_examples_print_what_the_page_says():
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.failed == 0
    assert result.attempted > 20


def test_the_record_of_several_lines_parses():
    text = re.search(r"^    n\(n0\) k\(k1 j3:2.*?\}\n?$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert text
    record = Record.parse(text[0])
    assert record.bytes({"codes": 4, "scale": 6, "minus": 6, "scale1": 16, "minus1": 16}, (1, 256)) == 144
