"""Where results go: written under another name beside their place and renamed, so that they are whole or absent."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

from qcc.ir.errors import BadInput


@contextlib.contextmanager
def whole_or_absent(destination: Path, require_free: Callable[[], None], *, is_file: bool) -> Generator[Path]:
    """A temporary file or folder that takes the place of `destination` when the block ends well, else it vanishes.

    `require_free` raises where something stands there that must stay; it is asked before and after. `BadInput` where
    the place cannot be written.
    """
    require_free()
    destination = destination.resolve()
    temporary = destination.parent / f".{destination.name}.{secrets.token_hex(4)}.tmp"
    missing = [parent for parent in destination.parents if not os.path.exists(parent)]
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        if not is_file:
            temporary.mkdir()
        yield temporary
        require_free()  # another process may have been quicker
        if is_file:
            os.replace(temporary, destination)
        else:
            _replace_folder(temporary, destination)
    except OSError as error:
        raise BadInput(
            f"{destination}: cannot be written: {error.strerror or error}",
            hint="free some space, or choose another place with -o",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # it is not there, or was a folder
            temporary.unlink()
        for parent in missing:
            with contextlib.suppress(OSError):  # it is not empty: the result is there
                parent.rmdir()


@contextlib.contextmanager
def writing_export(destination: Path, source: Path, *, is_file: bool, force: bool) -> Generator[Path]:
    """`whole_or_absent` for an export of `source`.

    `BadInput` where the destination exists and `force` is off, is the source, or is a folder of something else.
    """
    free = partial(check_free, destination, source, is_file=is_file, force=force)
    with whole_or_absent(destination, free, is_file=is_file) as temporary:
        yield temporary


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


def _replace_folder(new: Path, destination: Path) -> None:
    """Rename `new` to `destination`; an old folder there is moved aside first and back if the rename fails."""
    if not destination.exists():
        os.rename(new, destination)
        return
    aside = destination.parent / f".{destination.name}.{secrets.token_hex(4)}.old"
    try:
        os.rename(destination, aside)
        os.rename(new, destination)
    except BaseException:
        if aside.exists():
            os.rename(aside, destination)
        raise
    shutil.rmtree(aside, ignore_errors=True)
