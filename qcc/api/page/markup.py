"""HTML that is escaped by construction: `element("b", text)` escapes text, and only `Html` goes in as it is."""

from __future__ import annotations

import html
from collections.abc import Iterable

_VOID = {"input", "meta"}


class Html(str):
    """Markup, already escaped. Made by this module and by reading a file of ours, never from what an artifact says."""

    __slots__ = ()


Child = Html | str | None
"""What stands inside an element: markup, text to escape, or nothing."""


def element(name: str, *children: Child, **attributes: str | float | None) -> Html:
    """`<name ...>children</name>`. In attribute names `_` is `-`, and one at the end is dropped: `class_`, `data_v`.

    An attribute that is None is left out; one that is the empty string stands alone, as in `hidden`.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Html:
    """Children one after another."""
    return Html("".join(_text(child) for child in children if child is not None))


def code(text: str) -> Html:
    """A name or other literal text; an empty one is shown as what it is."""
    return element("code", text) if text else element("i", "no name")


def table(
    head: Iterable[str], rows: Iterable[Iterable[Child]], *, caption: str, numbers: Iterable[int] = (), class_: str = ""
) -> Html:
    """A table whose first column heads its rows. `numbers` are the columns set flush right."""
    flush = set(numbers)
    titles = join(
        element("th", title, scope="col", class_="number" if column in flush else None)
        for column, title in enumerate(head)
    )
    body = join(
        element(
            "tr",
            *(
                element(
                    "td" if column else "th",
                    cell,
                    scope=None if column else "row",
                    class_="number" if column in flush else None,
                )
                for column, cell in enumerate(row)
            ),
        )
        for row in rows
    )
    return element(
        "table",
        element("caption", caption, class_="hide"),
        element("thead", element("tr", titles)),
        element("tbody", body),
        class_=class_ or None,
    )


def _text(child: Html | str) -> str:
    return child if isinstance(child, Html) else html.escape(child)


def _attribute(key: str, value: str | float) -> str:
    name = key.removesuffix("_").replace("_", "-")
    return f" {name}" if value == "" else f' {name}="{html.escape(str(value))}"'
