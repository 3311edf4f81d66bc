"""What a host can do at most, as measured: `HostLimits`, a value that a cache file holds whole or not at all.

Rates are in 10^9 a second: bytes read (GB/s), int8 operations (GOPS), float operations (GFLOPS). A product and its
addition are two operations.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from qcc.ir.errors import BadInput

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class ReadForm:
    """A way to read memory: streams side by side, how many bytes ahead it prefetches, and into which cache."""

    streams: Literal[1, 2, 4, 8]
    prefetch: Annotated[int, Field(ge=0, le=1 << 20)]
    """0: no prefetch instruction; the processor may still prefetch by itself."""
    level: Literal[0, 1, 2]
    """The level of the cache; 0 without prefetch."""

    def __str__(self) -> str:
        ahead = f"{self.prefetch} bytes ahead into L{self.level}" if self.prefetch else "no prefetch"
        return f"{self.streams} stream{'s' if self.streams > 1 else ''}, {ahead}"


@dataclass(frozen=True)
class ReadLimit:
    """The most that some threads read from memory together, and how."""

    threads: Count
    gb_s: Rate
    form: ReadForm


@dataclass(frozen=True)
class CacheLimit:
    """A cache, and how fast data that fills half of it is read."""

    name: str
    bytes: Count
    line_bytes: Count
    shared_by: Count
    """Processors of the host that use one such cache."""
    gb_s: Rate
    """One thread."""
    gb_s_all: Rate
    """A thread on every core."""


@dataclass(frozen=True)
class DotLimit:
    """The most operations of dot products, by the instructions of one instruction set."""

    name: str
    unit: Literal["GOPS", "GFLOPS"]
    rate: Rate
    """One thread."""
    rate_all: Rate
    """A thread on every core."""
    summary: str


@dataclass(frozen=True)
class HostLimits:
    """The limits of one host. `buffer_bytes` is the memory that was read, far more than its caches hold.

    `quiet`: no other process took the cores meanwhile, or the rates of many threads would be too low.
    """

    machine: str
    cores: Count
    compiler: str
    buffer_bytes: Count
    quiet: bool
    reads: tuple[ReadLimit, ...]
    caches: tuple[CacheLimit, ...]
    dots: tuple[DotLimit, ...]

    def read(self, threads: int) -> ReadLimit:
        """The limit of reading with so many threads; of a count that was not measured, that of the next larger one."""
        for limit in self.reads:
            if 0 < threads <= limit.threads:
                return limit
        raise BadInput(f"{threads} threads were asked for", hint=f"1 to {self.cores}, the cores of this host")

    def dot(self, name: str) -> DotLimit:
        """The limit of one kind of dot product, as in `dot("avx512_vnni")`."""
        for limit in self.dots:
            if limit.name == name:
                return limit
        raise BadInput(f"no {name!r} dot product was measured here", hint=", ".join(d.name for d in self.dots))


def load(path: Path) -> HostLimits | None:
    """The limits in a cache file; None where it is missing, damaged or holds anything but positive numbers."""
    try:
        return TypeAdapter(HostLimits).validate_json(path.read_bytes(), strict=True)
    except (OSError, ValidationError):
        return None


def save(path: Path, limits: HostLimits) -> None:
    """Write whole or not at all; a cache that cannot be written costs time only."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(TypeAdapter(HostLimits).dump_json(limits, indent=1))
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


@dataclass(frozen=True)
class Cache:
    """A cache of the host, as its system describes it."""

    name: str
    bytes: int
    line_bytes: int
    shared_by: int


def caches(folder: Path = Path("/sys/devices/system/cpu")) -> tuple[Cache, ...]:
    """The data caches of the first processor this process may run on, the nearest first; none where nothing is said."""
    first = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    found: dict[int, Cache] = {}
    for index in sorted(folder.glob(f"cpu{first}/cache/index*")):
        try:
            level, kind, size, line, shared = (
                (index / name).read_text().strip()
                for name in ("level", "type", "size", "coherency_line_size", "shared_cpu_list")
            )
            if kind in ("Data", "Unified"):
                found[int(level)] = Cache(f"L{int(level)}", _size(size), int(line), _processors(shared))
        except (OSError, ValueError):
            continue
    return tuple(cache for _, cache in sorted(found.items()) if min(cache.bytes, cache.line_bytes, cache.shared_by) > 0)


def _size(text: str) -> int:
    """`32K` in bytes."""
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:])
    return int(text[:-1]) * unit if unit else int(text)


def _processors(text: str) -> int:
    """How many processors a list such as `0-3,8` names."""
    ranges = (part.partition("-") for part in text.split(","))
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)
