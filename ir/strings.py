"""String literals of IR text in any script: xDSL prints what is not ASCII as bytes, which it lexes as another token."""

from __future__ import annotations

from xdsl.parser import AttrParser


def parse_string(parser: AttrParser) -> str:
    """The string that `print_string_literal` printed."""
    text = parse_optional_string(parser)
    return parser.parse_str_literal() if text is None else text


def parse_optional_string(parser: AttrParser) -> str | None:
    """The string at this place; None where something else stands here."""
    raw = parser.parse_optional_bytes_literal()
    if raw is None:
        return parser.parse_optional_str_literal()
    try:
        return raw.decode()
    except UnicodeDecodeError:
        parser.raise_error("the string is not UTF-8")
