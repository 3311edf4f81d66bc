"""Everything the page tells, gathered once: the manifest, a fresh verification, and times where they were asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qcc.backends.artifact import DecisionRecord, LayerRecord, Manifest, read_manifest, require_unchanged
from qcc.backends.runtime import Artifact
from qcc.ir import target as targets
from qcc.ir.errors import BadInput

from ..bench import BenchReport, bench
from ..verify import VerifyReport, verify


@dataclass(frozen=True)
class Layer:
    """A quantized layer: its place in the network, and its error, None where nothing was stored to compare with."""

    index: int
    record: LayerRecord
    sqnr_db: float | None
    decisions: Sequence[DecisionRecord]

    @property
    def anchor(self) -> str:
        """The id of its row in the table of layers."""
        return f"layer-{self.index}"


@dataclass(frozen=True)
class Facts:
    """What every section reads."""

    folder: str
    manifest: Manifest
    verified: VerifyReport
    times: BenchReport | None
    machine: str
    """The processor that verified and timed."""

    @cached_property
    def layers(self) -> list[Layer]:
        """The quantized layers in the order of the network."""
        decided: dict[str, list[DecisionRecord]] = {}
        for decision in self.manifest.decisions:
            decided.setdefault(decision.node, []).append(decision)
        return [
            Layer(index, record, error.sqnr_db if error else None, decided.get(record.node, ()))
            for index, (record, error) in enumerate(zip(self.manifest.layers, self.verified.layers, strict=True))
        ]

    def decided(self, action: str) -> list[DecisionRecord]:
        """The decisions of one kind."""
        return [d for d in self.manifest.decisions if d.action == action]


def gather(
    artifact: Artifact | str | os.PathLike[str],
    *,
    measure: bool,
    model: str | os.PathLike[str] | None,
    threads: int,
    rounds: int,
) -> Facts:
    """Check the files, verify on the stored samples, and time where `measure` is set."""
    if model is not None and not measure:
        raise BadInput("the float model is only used to time it beside the artifact", hint="pass --bench with --model")
    folder = artifact.folder if isinstance(artifact, Artifact) else Path(artifact)
    manifest = read_manifest(folder)
    require_unchanged(folder, manifest)
    _require_sizes(folder, manifest)
    verified = verify(folder)
    baseline = "onnxruntime" if manifest.language is None else "llama.cpp"
    against = () if model is None else (baseline,)
    times = bench(folder, model=model, against=against, threads=threads, rounds=rounds) if measure else None
    return Facts(folder.name, manifest, verified, times, targets.load("cpu").machine)


def _require_sizes(folder: Path, manifest: Manifest) -> None:
    sizes = [manifest.bytes, manifest.float_bytes]
    sizes += [size for layer in manifest.layers for size in (layer.bytes, layer.float_bytes, *layer.shape)]
    if any(not 0 <= size < 1 << 63 for size in sizes):
        raise BadInput(f"{folder}: the manifest is damaged: a size is out of range", hint="compile the model again")
