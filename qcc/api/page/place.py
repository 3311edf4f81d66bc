"""Put the page where it belongs: whole or not at all, and never over a file that is no report."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from qcc.ir.errors import BadInput

from .shell import MARK


def require_place(path: Path, *, force: bool) -> None:
    """`BadInput` where something other than a report stands at `path`; `force` gives up a file, but never a folder."""
    if not os.path.lexists(path):
        return
    if path.exists() and not path.is_file():
        raise BadInput(f"{path} is not a file", hint="choose another place with -o")
    if not force and not _is_report(path):
        raise BadInput(
            f"{path} exists and is not a qcc report", hint="pass --force to replace it, or choose another place with -o"
        )


def write(path: Path, page: str, *, force: bool) -> None:
    """Write beside `path` and rename."""
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8", newline="\n")
        require_place(path, force=force)  # another process may have been quicker
        os.replace(temporary, path)
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be written: {error.strerror or error}", hint="choose another place with -o"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _is_report(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return MARK.encode() in file.read(512)
    except OSError:
        return False
