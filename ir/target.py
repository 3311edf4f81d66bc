"""A target is data: what a machine can do, from `ir/targets/NAME.toml`. Code asks for a capability, not for a name."""

from __future__ import annotations

import os
import platform
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .errors import BadInput

_FOLDER = Path(__file__).parent / "targets"


@dataclass(frozen=True)
class Target:
    """A kind of machine. `isa` holds the instruction sets that kernels may use; empty fields are unknown."""

    name: str
    device: str
    summary: str
    isa: tuple[str, ...] = ()
    cores: int = 0
    machine: str = ""

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
    target = Target(name, data["device"], data["summary"], tuple(data.get("isa", ())), data.get("cores", 0))
    return _probe(target) if data.get("host") else target


def _probe(target: Target) -> Target:
    flags, machine = _cpu_info()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Target(target.name, target.device, target.summary, flags, cores, machine)


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
        "avx512f",
        "avx512_vnni",
        "avx_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_int8",
        "amx_bf16",
        "asimddp",
        "i8mm",
    )
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return tuple(f for f in wanted if f in flags), fields.get("model name", platform.machine())
