"""The document around the sections: one file that loads nothing, and lets only our style and script in."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from .markup import Html, element, join
from .section import Section

MARK = '<meta name="generator" content="qcc report">'
"""By this a file is known as a report that may be replaced."""

_HERE = Path(__file__).parent


def document(title: str, head: Html, sections: Sequence[Section], version: str) -> str:
    """The whole page. It is valid UTF-8 even where a name in the artifact is not."""
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    links = [element("li", element("a", section.nav, href=f"#{section.anchor}")) for section in sections]
    body = join(
        (
            element(
                "header",
                element(
                    "div",
                    element("p", "qcc report", class_="brand"),
                    element("button", "Dark theme", id="theme", type="button", hidden=""),
                    class_="bar-top",
                ),
                head,
                element("nav", element("ul", *links), aria_label="Sections"),
            ),
            element("main", *(section.html() for section in sections)),
            element("footer", element("p", f"Written by qcc {version}. This page is whole: it loads nothing.")),
        )
    )
    page = (
        "<!doctype html>\n"
        '<html lang="en">\n'
        "<head>\n"
        '<meta charset="utf-8">\n'
        f"{MARK}\n"
        f"{element('meta', http_equiv='Content-Security-Policy', content=_policy(style, script))}\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"{element('title', f'{title}: qcc report')}\n"
        f"<style>{style}</style>\n"
        "</head>\n"
        f"<body>\n{body}\n<script>{script}</script>\n</body>\n"
        "</html>\n"
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing is loaded, and inline only the two texts with these hashes: a name that slipped through could not run."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
