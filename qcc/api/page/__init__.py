"""`report`: one HTML page that tells everything about an artifact. It loads nothing, and reads without scripts.

A section is a function from `Facts` to a `Section`, or to None where the artifact has nothing to tell; `SECTIONS` is
their order on the page. Text of an artifact becomes markup only through `markup.element`, which escapes it.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

from qcc.backends.runtime import Artifact

from . import layers, pictures, record, speaking
from .facts import Facts, gather
from .overview import overview
from .place import require_place, write
from .section import Writer
from .shell import document

SECTIONS: tuple[Writer, ...] = (
    pictures.size,
    pictures.error,
    pictures.speed,
    speaking.language,
    layers.kinds,
    layers.layers,
    record.decisions,
    record.places,
    record.interface,
    record.recipe,
    record.made_with,
)


def report(
    artifact: Artifact | str | os.PathLike[str],
    *,
    bench: bool = False,
    model: str | os.PathLike[str] | None = None,
    threads: int = 1,
    rounds: int = 20,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> str:
    """The page of an artifact as HTML; with `output` it is also written there.

    The artifact is verified for it on its stored samples. `bench` times it now, on `threads` threads over `rounds`
    rounds, and `model`, its float ONNX file, adds ONNX Runtime as a baseline. `output` may replace an older report;
    `force` replaces any file. Raises `BadInput` where the folder is no artifact, was changed or is damaged, and where
    the place is taken.
    """
    if output is not None:
        require_place(Path(output), force=force)
    facts = gather(artifact, measure=bench, model=model, threads=threads, rounds=rounds)
    page = render(facts)
    if output is not None:
        write(Path(output), page, force=force)
    return page


def render(facts: Facts) -> str:
    """The page that tells these facts."""
    sections = [section for write_section in SECTIONS if (section := write_section(facts)) is not None]
    return document(facts.manifest.name or facts.folder, overview(facts), sections, version("qcc"))
