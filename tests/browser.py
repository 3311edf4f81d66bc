"""A headless browser for the tests of `qcc report`: the Chromium or Chrome that is installed, driven by Playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
APPLICATIONS = ("Google Chrome", "Chromium")

MISSING = (
    "no Chromium or Chrome was found: run tests/install_browser.sh, or install one so that it is on PATH, "
    "or set QCC_NO_BROWSER=1 to skip the browser tests"
)


def unwanted() -> bool:
    """Whether the browser tests are to be skipped."""
    return os.environ.get("QCC_NO_BROWSER") == "1"


def find() -> str | None:
    """The path of an installed browser."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    places = [Path("/Applications", f"{name}.app", "Contents", "MacOS", name) for name in APPLICATIONS]
    return next((str(place) for place in places if place.is_file()), None)


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    """A running browser; `FileNotFoundError` says what to install."""
    from playwright.sync_api import sync_playwright

    path = find()
    if path is None:
        raise FileNotFoundError(MISSING)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        try:
            yield browser
        finally:
            browser.close()
