"""The folder in which qcc keeps what it measured: `QCC_CACHE`, else `~/.cache/qcc`."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The cache folder; it may not exist yet."""
    named = os.environ.get("QCC_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "qcc"
