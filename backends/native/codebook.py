"""A linear operation with trained codebooks as a kernel: `build(spec, isa)`, `pack(weight)`, `kernel(x, packed)`.

`kernel.at(bits)` multiplies with the same packed weight at another precision of its nested codes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qcc.ir.errors import BadInput
from qcc.ir.formats.nested import Nested
from qcc.ir.quantized import Quantized, combined_scale

from .codebook_spec import (
    LIMIT,
    CodebookSchedule,
    CodebookSpec,
    default_schedule,
    storage,
)
from .emit_codebook import CodebookText
from .emit_linear import Workspace
from .isa import Isa
from .linear import Fixed, LinearKernel, Packed
from .memory import READ_AHEAD, aligned

SMALLEST_STEP = np.float32(2.0**-126)
"""Steps below float32's normal numbers would be rough: such rows are rounded to multiples of this."""


class CodebookKernel(LinearKernel):
    """`y[M, N] = x[M, K] w[N, K]^T + bias` for one shape, format and precision; each row of w has its own table."""

    def __init__(self, text: CodebookText) -> None:
        super().__init__(text)
        self._text = text

    def pack(self, weight: Quantized, fixed: Fixed | None = None) -> Packed:
        """The bits of a weight [N, K], for all precisions. `BadInput` for another format or shape, or damaged parts."""
        spec, stored = self._text.spec, self._text.storage
        if fixed is not None:
            raise BadInput(f"{spec}: a scale of activations is not taken")
        if weight.format != spec.weight or weight.shape != (spec.n, spec.k):
            raise BadInput(
                f"the kernel is for [{spec.n}, {spec.k}] in {str(spec.weight)!r}, the weight is {list(weight.shape)} "
                f"in {str(weight.format)!r}"
            )
        weight.check("the weight to pack")
        parts: dict[str, NDArray[np.generic]] = {"codes": weight.codes[..., None]}
        bits = {"codes": spec.weight.bits}
        for precision in spec.precisions:
            high, low, step = rounded_tables(weight, precision)
            parts |= {f"high{precision}": high, f"low{precision}": low, f"step{precision}": step}
            bits |= {f"high{precision}": 8, f"low{precision}": 8}
        records = stored.layout.pack(parts, bits, (spec.n, spec.k, 1 << spec.weight.bits))
        data = aligned(stored.bytes + READ_AHEAD)
        data[: records.size] = records.reshape(-1)
        return Packed(data[: stored.bytes], 1.0)

    def at(self, bits: int) -> CodebookKernel:
        """The kernel that reads the first `bits` bits of nested codes, of the weight as this one packed it."""
        text = self._text
        usual = text.schedule == default_schedule(text.spec, text.isa)  # that prefetches by the precision
        return build(replace(text.spec, precision=bits), text.isa, None if usual else text.schedule)

    @property
    def read_bytes(self) -> int:
        """Bytes of a packed weight that one product reads."""
        return self._text.storage.read_bytes


def build(spec: CodebookSpec, isa: Isa, schedule: CodebookSchedule | None = None) -> CodebookKernel:
    """The kernel, generated and compiled; `NotSupported` where this host lacks its instructions."""
    return CodebookKernel(generate(spec, isa, schedule))


def generate(spec: CodebookSpec, isa: Isa, schedule: CodebookSchedule | None = None) -> CodebookText:
    """The C text of the kernel. `BadInput` for a schedule outside its range."""
    schedule = schedule or default_schedule(spec, isa)
    if schedule.tile < 1:
        raise BadInput(f"tiles of {schedule.tile} rows of activations", hint="from 1 on")
    stored = storage(spec, schedule)
    return CodebookText(spec, isa, schedule, stored, Workspace(stored.columns, spec.activation.parts, 1, False))


def rounded_tables(weight: Quantized, bits: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """High and low bytes [N, 1, 2^bits] and steps [N, 1, 1] of the values for codes of `bits` bits, scales included.

    `value ~ step * (256 * (high - 128) + low)`, off by at most half a step, 1/65534 of the row's largest value.
    """
    book = weight.format.codebook
    chosen = weight.at(bits) if isinstance(book, Nested) else weight
    (n, _), fmt = weight.shape, chosen.format
    assert fmt.lookup is not None
    held = np.asarray(chosen.parts["table"], np.float32).astype(np.float64)
    of_row = np.arange(n) // fmt.lookup.block_of(weight.shape)[0]
    values = np.zeros((n, 1 << bits))
    values[:, : held.shape[-1]] = held.reshape(-1, held.shape[-1])[of_row]
    if fmt.scales:
        values *= np.asarray(chosen.arranged(combined_scale(chosen), fmt.scale), np.float64)
    most = np.abs(values).max(axis=1, initial=0, keepdims=True)
    step = np.maximum((most / LIMIT).astype(np.float32), SMALLEST_STEP)
    whole = np.clip(np.rint(values / step), -LIMIT, LIMIT).astype(np.int64) + (128 << 8)
    high, low = (whole >> 8).astype(np.uint8), (whole & 255).astype(np.uint8)
    return high[:, None, :], low[:, None, :], step[:, None, :]
