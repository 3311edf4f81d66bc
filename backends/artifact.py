"""An artifact is a folder: `manifest.json`, `module.mlir`, `weights.safetensors`, `samples.npz`, the backend's files.

The manifest names every other file with its SHA-256. The folder is written beside its place and renamed: it is whole or
absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Generator
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from qcc.ir.errors import BadInput

from .language import LanguageRecord
from .places import whole_or_absent

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
MODULE = "module.mlir"
WEIGHTS = "weights.safetensors"
SAMPLES = "samples.npz"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PortRecord(_Record):
    """An input or output: `shape` holds extents, symbols, or null where nothing is known."""

    name: str
    dtype: str
    shape: list[int | str | None] | None


class LayerRecord(_Record):
    """One quantized operation, as chosen and as measured."""

    node: str
    op: str
    weight: str
    shape: list[int]
    format: str
    layout: str
    kernel: str
    reason: str
    bytes: int
    float_bytes: int
    activation: str
    value: str
    """The name of its result inside the backend's model."""


class DecisionRecord(_Record):
    """What was decided about a node, and why."""

    node: str
    action: str
    reason: str


class ErrorRecord(_Record):
    """Error of the artifact against the float model on the stored samples."""

    sqnr_db: float
    max_abs_error: float


class LatencyRecord(_Record):
    """Milliseconds: median, 10th and 90th percentile over the rounds."""

    median: float
    p10: float
    p90: float


class ContestRecord(_Record):
    """What became of a backend under `--backend auto`. None stands where it did not come to that."""

    backend: str
    kept: bool
    reason: str
    sqnr_db: float | None = None
    max_abs_error: float | None = None
    latency_ms: LatencyRecord | None = None
    """Of a call on the first stored sample; of a language model, of a short prompt and some tokens behind it."""


class Manifest(_Record):
    """Everything a reader needs to know about an artifact."""

    schema_version: int
    name: str
    target: str
    machine: str
    requires: list[str]
    backend: str
    scheme: str
    options: dict[str, object]
    inputs: list[PortRecord]
    outputs: list[PortRecord]
    bytes: int
    float_bytes: int
    bits_per_weight: float
    layers: list[LayerRecord]
    decisions: list[DecisionRecord]
    error: ErrorRecord
    samples: str
    samples_sha256: str
    seed: int
    versions: dict[str, str]
    ran_on: list[str]
    not_run: list[str]
    language: LanguageRecord | None = None
    """What a language model is beside its network; None for other networks."""
    contest: list[ContestRecord] = []
    """How the backend was chosen; empty where it was asked for, or is the only one for the target's device."""
    files: dict[str, str] = {}


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact; `BadInput` where the folder is none."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BadInput(f"{folder} is not an artifact folder", hint="give the folder that `qcc compile` wrote")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{folder} is not an artifact: {MANIFEST} cannot be read ({error})",
            hint="give the folder that `qcc compile` wrote",
        ) from error
    try:
        data = json.loads(text)
        match data:
            case {"schema_version": int(version)} if version > SCHEMA_VERSION:
                raise BadInput(
                    f"{folder}: written by a newer qcc (schema {version}, this one reads {SCHEMA_VERSION})",
                    hint="update qcc",
                )
            case _:
                return Manifest.model_validate(data)
    except (ValueError, RecursionError, ValidationError) as error:
        raise BadInput(f"{path} is damaged: {str(error).splitlines()[0]}", hint="compile the model again") from error


def changed_files(folder: Path, manifest: Manifest) -> list[str]:
    """The files that are missing, differ from their hash in the manifest, or are not named there."""
    changed = sorted(p.name for p in folder.iterdir() if p.name != MANIFEST and p.name not in manifest.files)
    for name, digest in manifest.files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file() or sha256(path) != digest:
            changed.append(name)
    return changed


def require_unchanged(folder: Path, manifest: Manifest) -> None:
    """`BadInput` where a file of the artifact was changed after it was written."""
    changed = changed_files(folder, manifest)
    if changed:
        raise BadInput(
            f"{folder}: changed since it was compiled: {', '.join(changed)}",
            hint="compile the model again, or restore the files",
        )


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Hash every file of the folder into the manifest and write it; gives it with the hashes."""
    files = {p.name: sha256(p) for p in sorted(folder.iterdir()) if p.name != MANIFEST}
    complete = manifest.model_copy(update={"files": files})
    (folder / MANIFEST).write_text(complete.model_dump_json(indent=1) + "\n")
    return complete


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def writing(destination: Path, *, force: bool) -> Generator[Path]:
    """A temporary folder beside `destination` that takes its place when the block ends well, and vanishes otherwise.

    `BadInput` where the destination exists and `force` is off, or cannot be written.
    """
    with whole_or_absent(destination, partial(require_free, destination, force=force), is_file=False) as temporary:
        yield temporary


def require_free(destination: Path, *, force: bool) -> None:
    """`BadInput` where a folder that must not be replaced stands there, or something that is no artifact."""
    if not os.path.lexists(destination):
        return
    if not force:
        raise BadInput(f"{destination} exists", hint="pass --force to replace it, or choose another place with -o")
    is_artifact = destination.is_dir() and ((destination / MANIFEST).exists() or not any(destination.iterdir()))
    if not is_artifact:
        raise BadInput(
            f"{destination} exists and is not an artifact: qcc does not replace it", hint="choose another place with -o"
        )
