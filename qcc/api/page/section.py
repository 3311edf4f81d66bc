"""A section of the page: a place to link to, a title, and what stands under it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .facts import Facts
from .markup import Html, element


@dataclass(frozen=True)
class Section:
    """`anchor` is its id, `nav` its short title in the row of links; `half`: half a wide page is enough."""

    anchor: str
    nav: str
    title: str
    body: Html
    half: bool = False

    def html(self) -> Html:
        """The section as markup."""
        heading = f"{self.anchor}-title"
        return element(
            "section",
            element("h2", self.title, id=heading),
            self.body,
            id=self.anchor,
            aria_labelledby=heading,
            class_="half" if self.half else None,
        )


Writer = Callable[[Facts], Section | None]
"""Writes a section, or None where the artifact has nothing to tell there."""


def note(*text: Html | str) -> Html:
    """A paragraph of explanation."""
    return element("p", *text, class_="note")
