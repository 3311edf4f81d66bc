"""Where an export goes: written under another name beside its place and renamed, so that it is whole or absent."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Generator
from pathlib import Path

from qcc.ir.errors import BadInput

from .artifact import replace_folder


@contextlib.contextmanager
def writing_export(destination: Path, source: Path, *, is_file: bool, force: bool) -> Generator[Path]:
    """A temporary file or folder that takes the place of `destination` when the block ends well, else it vanishes.

    `BadInput` where the destination exists and `force` is off, is the source, or is a folder of something else.
    """
    check_free(destination, source, is_file=is_file, force=force)
    destination = destination.resolve()
    temporary = destination.parent / f".{destination.name}.{secrets.token_hex(4)}.tmp"
    missing = [parent for parent in destination.parents if not parent.exists()]
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        if not is_file:
            temporary.mkdir()
        yield temporary
        check_free(destination, source, is_file=is_file, force=force)  # another process may have been quicker
        if is_file:
            os.replace(temporary, destination)
        else:
            replace_folder(temporary, destination)
    except OSError as error:
        raise BadInput(
            f"{destination}: cannot be written: {error.strerror or error}",
            hint="free some space, or choose another place with -o",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)
        for parent in missing:
            with contextlib.suppress(OSError):  # it is not empty: the export is there
                parent.rmdir()


def check_free(destination: Path, source: Path, *, is_file: bool, force: bool) -> None:
    """`BadInput` where something stands there that must not be replaced."""
    if not os.path.lexists(destination):
        return
    if source.resolve() == destination.resolve() or destination.resolve() in source.resolve().parents:
        raise BadInput(f"{destination} is what is to be exported, or holds it", hint="choose another place with -o")
    if not force:
        raise BadInput(f"{destination} exists", hint="pass --force to replace it, or choose another place with -o")
    known = destination.is_file() if is_file else (destination / "config.json").is_file()
    if not known:
        raise BadInput(
            f"{destination} exists and is no {'file' if is_file else 'model folder'}: qcc does not replace it",
            hint="choose another place with -o",
        )
