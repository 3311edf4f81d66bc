"""Texts of layouts: whatever stands in one, it is read or refused in words, and what is read prints back."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qcc.ir.errors import BadInput
from qcc.ir.layout import Layout, Ragged, Record, Stages, parse_layout

WORDS = ["n(n0)", "k(k1 k0:4)", "->", "n0", "k1", "k0", "k1^n0", "@a", "xor", "8", "+", "along", "k", "{", "}", ";"]
MORE = ["codes", "[0:4]", "^8", "k0=1", "[", "]", "(", ":", "-", "\x00", "é", "9" * 5000, "k0:2"]


@settings(deadline=None, max_examples=500)
@given(st.lists(st.sampled_from(WORDS + MORE), max_size=14).map(" ".join) | st.text(max_size=30))
@example("n(n0) -> n0 " + "{" * 2000)
@example("n(n0) -> n0 {" + "n0 {" * 100 + "codes" + "}" * 101)
@example("[" * 2000 + "n(n0) -> n0")
@example("n(n0:" + "9" * 5000 + ") -> n0")
@example("n(n0) -> n0 xor " + "9" * 5000)
@example("n(n0) j(j0:1000000000) -> n0 {codes j0=0}")
@example("n(n0) j(j0:1000000000) i(i0:1000000000) -> n0 {codes j0=0 i0=0}")
def test_any_text_is_read_or_refused(text: str):
    try:
        layout = parse_layout(text)
    except BadInput as error:
        assert error.message
        return
    assert parse_layout(str(layout)) == layout
    assert hash(parse_layout(str(layout))) == hash(layout)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("n(n0) -> n0", Layout),
        ("n(n0) -> @bank n0 xor 8", Layout),
        ("n(n0:4) -> n0; s(s0:4) -> s0", Stages),
        ("n(n1 n0:4) -> n1 n0 + n(n0) -> n0 along n", Ragged),
        ("n(n0) -> n0 {a; b[0:4]; b[4:8]}", Record),
    ],
)
def test_the_marks_tell_the_kind(text: str, kind: type):
    layout = parse_layout(text)
    assert isinstance(layout, kind)
    assert str(layout) == text
