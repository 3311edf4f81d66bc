"""A target is data: what a machine can do, from `ir/targets/NAME.toml`. Code asks for a capability, not for a name."""

from __future__ import annotations

import os
import platform
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from .errors import BadInput

_FOLDER = Path(__file__).parent / "targets"


@dataclass(frozen=True)
class Fabric:
    """What a programmable chip has to build with, and how fast its board's memory is."""

    part: str
    luts: int
    dsps: int
    bram_kib: int
    """Block RAM, without parity bits counted as storage apart: 36-Kbit blocks hold 4.5 KiB."""
    uram_kib: int
    bandwidth_gb_s: float
    """Peak of the memory outside the chip, in 10^9 bytes a second."""


@dataclass(frozen=True)
class Gpu:
    """What kernels of a GPU have to work with, and how fast the memory of a typical board is."""

    arch: str
    board: str
    tensor_types: tuple[str, ...]
    """Element types that its matrix units multiply."""
    shared_kib: int
    """Shared memory that one block can take."""
    bandwidth_gb_s: float
    """Peak of the board's memory, in 10^9 bytes a second."""

    def multiplies(self, element: str) -> bool:
        """Whether the matrix units take an element type, as in `multiplies("f16")`."""
        return element in self.tensor_types


@dataclass(frozen=True)
class Target:
    """A kind of machine. `isa` holds the instruction sets that kernels may use; empty fields are unknown."""

    name: str
    device: str
    summary: str
    isa: tuple[str, ...] = ()
    cores: int = 0
    machine: str = ""
    scheme: str = "W4A16"
    """The scheme that is taken where none is asked for."""
    keeping_scheme: str = ""
    """The same for a model whose weights are codes already: it keeps those of 8 bits and less. Empty: `scheme`."""
    fabric: Fabric | None = None
    """None for processors, and for a chip that is not known."""
    gpu: Gpu | None = None
    """None for everything that is no GPU."""

    @property
    def details(self) -> str:
        """What is known of the machine, in one phrase; empty where nothing is."""
        if self.fabric is not None:
            f = self.fabric
            memory = f"{f.bram_kib} KiB of block RAM, {f.uram_kib} KiB of URAM, {f.bandwidth_gb_s:g} GB/s"
            return f"{f.part}, {f.luts} LUTs, {f.dsps} DSPs, {memory}"
        if self.gpu is not None:
            g = self.gpu
            return f"{g.arch} as on {g.board}, {g.bandwidth_gb_s:g} GB/s, multiplies {' '.join(g.tensor_types)}"
        known = [self.machine, f"{self.cores} cores" if self.cores else "", " ".join(self.isa)]
        return ", ".join(part for part in known if part)

    def has(self, feature: str) -> bool:
        """Whether the machine has an instruction set, as in `has("avx512_vnni")`."""
        return feature in self.isa


def names() -> list[str]:
    """The targets that can be named."""
    return sorted(p.stem for p in _FOLDER.glob("*.toml"))


@cache
def load(name: str) -> Target:
    """The target called `name`; `cpu` is filled in from this host."""
    path = _FOLDER / f"{name}.toml"
    if name not in names():
        raise BadInput(f"no target is called {name!r}", hint=f"known targets: {', '.join(names())}")
    data = tomllib.loads(path.read_text())
    fabric = Fabric(**data["fabric"]) if "fabric" in data else None
    target = Target(
        name,
        data["device"],
        data["summary"],
        tuple(data.get("isa", ())),
        data.get("cores", 0),
        scheme=data["scheme"],
        keeping_scheme=data.get("keeping_scheme", ""),
        fabric=fabric,
        gpu=_gpu(data["gpu"]) if "gpu" in data else None,
    )
    return _probe(target) if data.get("host") else target


def _gpu(data: dict[str, Any]) -> Gpu:
    """Any: a table of TOML."""
    types = tuple(str(name) for name in data["tensor_types"])
    return Gpu(data["arch"], data["board"], types, data["shared_kib"], data["bandwidth_gb_s"])


def _probe(target: Target) -> Target:
    flags, machine = _cpu_info()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return replace(target, isa=flags, cores=cores, machine=machine)


def _cpu_info() -> tuple[tuple[str, ...], str]:
    """Instruction sets and model name of this host, from /proc/cpuinfo where there is one."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return (), platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    wanted = (
        "avx2",
        "fma",
        "f16c",
        "avx_vnni",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512dq",
        "avx512_vnni",
        "avx512vbmi",
        "avx512_bf16",
        "avx512_fp16",
        "amx_tile",
        "amx_int8",
        "amx_bf16",
        "asimddp",
        "i8mm",
    )
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return tuple(f for f in wanted if f in flags), fields.get("model name", platform.machine())
