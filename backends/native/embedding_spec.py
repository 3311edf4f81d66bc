"""What an embedding kernel computes: `y[..., D] = factor * table[indices]`, of a table as a linear kernel packed it.

    EmbeddingSpec(linear, storage, factor)      EmbeddingSpec.of(kernel's text, factor)

The table of a language model is often the weight of its last linear operation: one packed copy then serves both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qcc.ir.errors import BadInput
from qcc.ir.levels import level_dtype

from .codebook_spec import CodebookSpec
from .emit_linear import LinearText
from .linear_spec import LinearSpec
from .storage import Storage


@dataclass(frozen=True)
class EmbeddingSpec:
    """Rows of a packed weight [V, D]. `BadInput` for a storage of another weight."""

    linear: LinearSpec
    """V rows, D columns and the format; of activations nothing is used."""
    storage: Storage
    """Where the linear kernel packed the bits."""
    factor: float = 1.0
    """What every result is multiplied by."""

    def __post_init__(self) -> None:
        spec, stored = self.linear, self.storage
        if (spec.n, spec.k) != (stored.n, stored.k):
            raise BadInput(f"a table [{spec.n}, {spec.k}] in the storage of one [{stored.n}, {stored.k}]")
        if (held := set(stored.layout.parts())) != set(self.widths):
            raise BadInput(f"the storage holds {', '.join(sorted(held))}", hint="use that of the table's own kernel")
        if not math.isfinite(self.factor):
            raise BadInput(f"a factor of {self.factor}", hint="a number")

    def __str__(self) -> str:
        by = f", times {self.factor:g}" if self.factor != 1 else ""
        return f"embedding {self.linear.n}x{self.linear.k} [{self.linear.weight}]{by}"

    @property
    def shape(self) -> tuple[int, ...]:
        """What the layout lays out: rows and columns, and entries of the tables of a codebook."""
        spec = self.linear
        return (spec.n, spec.k, 1 << spec.weight.bits) if isinstance(spec, CodebookSpec) else (spec.n, spec.k)

    @property
    def widths(self) -> dict[str, int]:
        """The parts that are stored, and the bits of a number of each."""
        spec, widths = self.linear, {"codes": self.linear.weight.bits}
        if not isinstance(spec, CodebookSpec):
            return widths | {name: max(8, level_dtype(level.dtype).bits) for name, level in spec.levels.items()}
        for bits in spec.precisions:
            widths |= {f"high{bits}": 8, f"low{bits}": 8, f"step{bits}": 32}
        return widths

    @staticmethod
    def of(text: LinearText, factor: float = 1.0) -> EmbeddingSpec:
        """The embedding whose table a linear kernel reads too, or would read: `linear.generate(...)`, not compiled."""
        return EmbeddingSpec(text.spec, text.storage, factor)
