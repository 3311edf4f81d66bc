"""Load and run an artifact: no compiler, no torch, only the runtime of its backend."""

from __future__ import annotations

import importlib
import os
import shutil
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from qcc.ir.errors import BadInput

from .artifact import Manifest, PortRecord, read_manifest, require_unchanged, writing
from .language import LanguageRecord
from .sampling import Sampling

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from .generate import Decoder, Piece


class Runner(Protocol):
    """What a backend opens on an artifact folder. `run` may be called from several threads at once."""

    device: str
    """What it runs on."""
    wanted: str
    """What the artifact was compiled for, as far as the runtime could know it."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name."""
        ...


class Artifact:
    """A compiled network. Call it with arrays; it may be called from several threads at once.

    artifact = qcc.load("model.qcc")
    logits = artifact(images)["logits"]
    """

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int = 0, temporary: Path | None = None) -> None:
        """`temporary` is a folder to delete with this object."""
        self.folder = folder
        self.manifest = manifest
        self.threads = threads
        self._runner: Runner | None = None
        self._lock = threading.Lock()
        if temporary is not None:
            weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)

    def __repr__(self) -> str:
        m = self.manifest
        size = f"{m.bytes:,} bytes, {m.error.sqnr_db:.1f} dB"
        return f"<Artifact {m.name}: {m.scheme} for {m.target} by {m.backend}, {size}>"

    @property
    def inputs(self) -> list[PortRecord]:
        """Names, dtypes and shapes of the inputs."""
        return self.manifest.inputs

    @property
    def outputs(self) -> list[PortRecord]:
        """Names, dtypes and shapes of the outputs."""
        return self.manifest.outputs

    def __call__(self, *args: np.ndarray | Mapping[str, np.ndarray], **named: np.ndarray) -> dict[str, np.ndarray]:
        """Run on arrays given in the order of the inputs, by name, or as one mapping; gives the outputs by name.

        Raises `BadInput` where an input is missing, unknown, or of a rank, extent or dtype that the network refuses.
        """
        feeds = _bind(self.inputs, args, named)
        for port in self.inputs:
            feeds[port.name] = _fit(port, feeds[port.name])
        return self.runner.run(feeds)

    @property
    def runner(self) -> Runner:
        """The backend's session, opened when first needed."""
        with self._lock:
            if self._runner is None:
                self._runner = _open(self.folder, self.manifest, self.threads)
            return self._runner

    @property
    def language(self) -> LanguageRecord:
        """What the artifact says of its language model; `BadInput` where it is another network."""
        if self.manifest.language is None:
            raise BadInput(
                f"{self.folder}: not a language model", hint="run it on arrays: --input X.npz --output Y.npz"
            )
        return self.manifest.language

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that travels in the artifact; `BadInput` for other networks and damaged files."""
        from .generate import load_tokenizer

        _ = self.language
        return load_tokenizer(self.folder)

    def decoder(self, capacity: int) -> Decoder:
        """Prefill and decode over a new cache of `capacity` positions; weights are shared with other decoders."""
        record = self.language
        module = importlib.import_module(f"qcc.backends.{self.manifest.backend}.decode")
        return cast("Decoder", module.open_decoder(self.runner, record, capacity))

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Iterator[str]:
        """Go on from `prompt`: pieces of text as they become whole, up to the model's end token.

        Temperature 0 is greedy; `top_k` and `top_p` are the model's own settings where they are not given. Raises
        `BadInput` for an empty prompt, one that does not fit the model's positions, or a network that is no decoder.
        """
        return (
            piece.text for piece in self.pieces(prompt, max_new_tokens, self.sampling(temperature, top_k, top_p), seed)
        )

    def sampling(self, temperature: float, top_k: int | None, top_p: float | None) -> Sampling:
        """Sampling with the model's own settings where none are given."""
        own = self.language
        k, p = (own.top_k or 0) if top_k is None else top_k, (own.top_p or 1.0) if top_p is None else top_p
        return Sampling(temperature, k, p)

    def pieces(self, prompt: str, max_new_tokens: int, sampling: Sampling, seed: int) -> Iterator[Piece]:
        """`generate` with tokens: each new one, and the text that has become whole with it."""
        from .generate import capacity_for, encode, generate

        record = self.language
        tokenizer = self.tokenizer()
        ids = encode(tokenizer, prompt)
        decoder = self.decoder(capacity_for(record, len(ids), max_new_tokens))
        return generate(decoder, tokenizer, ids, max_new_tokens, stop=record.eos, sampling=sampling, seed=seed)

    def save(self, folder: str | os.PathLike[str], *, force: bool = False) -> Artifact:
        """Write the artifact to `folder`, whole or not at all, and give the artifact there."""
        destination = Path(folder)
        with writing(destination, force=force) as temporary:
            shutil.copytree(self.folder, temporary, dirs_exist_ok=True)
        return Artifact(destination, self.manifest, threads=self.threads)


def load(folder: str | os.PathLike[str], *, threads: int = 0) -> Artifact:
    """The artifact in `folder`, after checking its files against their hashes. `threads=0` uses every core.

    Raises `BadInput` where the folder is no artifact, or was changed after it was written.
    """
    if threads < 0:
        raise BadInput(f"{threads} threads were asked for", hint="give a number of threads; 0 uses every core")
    path = Path(folder)
    manifest = read_manifest(path)
    require_unchanged(path, manifest)
    return Artifact(path, manifest, threads=threads)


def _open(folder: Path, manifest: Manifest, threads: int) -> Runner:
    if manifest.backend not in {p.parent.name for p in Path(__file__).parent.glob("*/run.py")}:
        raise BadInput(
            f"{folder}: made by the backend {manifest.backend!r}, which this qcc does not have", hint="update qcc"
        )
    return open_runner(manifest.backend, folder, threads)


def open_runner(backend: str, folder: Path, threads: int, *, frugal: bool = False) -> Runner:
    """What runs the files that a backend wrote into `folder`; `frugal` takes less memory rather than less time."""
    module = importlib.import_module(f"qcc.backends.{backend}.run")
    return cast("Runner", module.open_folder(folder, threads, frugal=frugal))


def _bind(
    ports: list[PortRecord], args: tuple[np.ndarray | Mapping[str, np.ndarray], ...], named: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    names = [p.name for p in ports]
    if len(args) == 1 and isinstance(args[0], Mapping):
        feeds = {**args[0], **named}
    elif len(args) > len(names):
        raise BadInput(f"{len(args)} arrays were given, the network takes {len(names)}: {', '.join(names)}")
    else:
        feeds = {**dict(zip(names, args, strict=False)), **named}
    unknown, missing = sorted(set(feeds) - set(names)), [n for n in names if n not in feeds]
    if unknown or missing:
        wrong = f"unknown input {unknown[0]!r}" if unknown else f"input {missing[0]!r} is missing"
        raise BadInput(wrong, hint=f"the network takes: {', '.join(map(describe, ports))}")
    return {name: np.asarray(value) for name, value in feeds.items()}


def _fit(port: PortRecord, array: np.ndarray) -> np.ndarray:
    """The array as the input takes it: float64 becomes float32 and integers widen; everything else must match."""
    shape = port.shape
    if shape is not None:
        matches = len(shape) == array.ndim and all(
            not isinstance(d, int) or d == e for d, e in zip(shape, array.shape, strict=True)
        )
        if not matches:
            raise BadInput(
                f"input {port.name!r} has shape {list(array.shape)}", hint=f"the network takes {describe(port)}"
            )
    if (array.dtype.name == port.dtype and array.dtype.isnative) or port.dtype == "object":
        return array
    wanted = np.dtype(port.dtype)
    both_float = array.dtype.kind == "f" and wanted.kind == "f"
    both_integer = array.dtype.kind in "iu" and wanted.kind in "iu" and np.can_cast(array.dtype, wanted, "safe")
    if not both_float and not both_integer:
        raise BadInput(f"input {port.name!r} has dtype {array.dtype.name}", hint=f"the network takes {describe(port)}")
    return array.astype(wanted)


def describe(port: PortRecord) -> str:
    """A port for people: `images: float32 [batch, 1, 8, 8]`."""
    shape = "?" if port.shape is None else ", ".join("?" if d is None else str(d) for d in port.shape)
    return f"{port.name}: {port.dtype} [{shape}]"
