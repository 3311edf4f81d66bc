"""Instruction sets that kernels are generated for: what a host must have, and the C header that speaks it.

Every header of `c/` offers one vocabulary on vectors of 64 bytes or 16 lanes of 32 bits, so that a generator writes a
kernel once. An instruction set is asked for by what a target can do, never by the target's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.target import Target

C_FOLDER = Path(__file__).parent / "c"

_FLAGS = {
    "avx2": "-mavx2",
    "fma": "-mfma",
    "f16c": "-mf16c",
    "avx_vnni": "-mavxvnni",
    "avx512f": "-mavx512f",
    "avx512bw": "-mavx512bw",
    "avx512vl": "-mavx512vl",
    "avx512dq": "-mavx512dq",
    "avx512_vnni": "-mavx512vnni",
    "avx512vbmi": "-mavx512vbmi",
    "amx_tile": "-mamx-tile",
    "amx_int8": "-mamx-int8",
}
"""Capabilities as /proc/cpuinfo spells them, and what tells gcc and clang to use them."""


@dataclass(frozen=True)
class Isa:
    """An instruction set: every capability in `needs`, used through `header`."""

    name: str
    header: str
    needs: tuple[str, ...]
    wide: bool
    """Whether its four-way dot product takes unsigned bytes up to 255; else weights beyond 127 cost more."""
    summary: str

    @property
    def sums(self) -> int:
        """Vectors of sums that its registers hold beside what is multiplied: of 32 registers, or of 16 halves."""
        return 26 if self.header == "avx512.h" else 6

    @property
    def flags(self) -> tuple[str, ...]:
        """What the compiler is told."""
        return tuple(_FLAGS[need] for need in self.needs)

    def missing(self, target: Target) -> tuple[str, ...]:
        """The capabilities that a target lacks."""
        return tuple(need for need in self.needs if not target.has(need))

    def has(self, capability: str) -> bool:
        """Whether kernels for it may use a capability."""
        return capability in self.needs

    def text(self) -> str:
        """The header."""
        return (C_FOLDER / self.header).read_text()


_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni")

ISAS = (
    Isa("amx", "avx512.h", (*_AVX512, "avx512vbmi", "amx_tile", "amx_int8"), True, "int8 tiles, AVX-512 for the rest"),
    Isa("avx512_vbmi", "avx512.h", (*_AVX512, "avx512vbmi"), True, "512-bit vectors, VNNI, permutations of bytes"),
    Isa("avx512_vnni", "avx512.h", _AVX512, True, "512-bit vectors and VNNI"),
    Isa("avx_vnni", "avx2.h", (*_AVX2, "avx_vnni"), True, "256-bit vectors and VNNI"),
    Isa("avx2", "avx2.h", _AVX2, False, "256-bit vectors"),
    Isa("portable", "portable.h", (), True, "C without intrinsics, for every processor"),
)
"""The best first."""


def named(name: str) -> Isa:
    """The instruction set called `name`."""
    for isa in ISAS:
        if isa.name == name:
            return isa
    raise BadInput(f"no instruction set is called {name!r}", hint=f"one of: {', '.join(i.name for i in ISAS)}")


def best(target: Target) -> Isa:
    """The best one that a target has; of a processor that nothing is known of, `portable`."""
    return next(isa for isa in ISAS if not isa.missing(target))


def check(isa: Isa, host: Target) -> None:
    """`NotSupported` where a host lacks what kernels for `isa` use."""
    if missing := isa.missing(host):
        raise NotSupported(
            f"a kernel for {isa.name} needs {', '.join(missing)}, which {host.machine or 'this processor'} lacks",
            hint=f"compile it for {best(host).name}",
        )
