"""GPTQ checkpoints, as gptqmodel, transformers and vLLM read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qcc.frontend.checkpoints import Checkpoint
from qcc.ir.codecs import gptq as codec
from qcc.ir.program import StoredCodes
from qcc.ir.quantized import Quantized

from . import Choices, Record
from ._folder import Method, common, write_folder
from ._stream import HEAD, Container, is_linear


def write(checkpoint: Checkpoint, place: Path, choices: Choices) -> list[Record]:
    """Write the folder. Zero points are stored less one as ever, or as they are (gptq_v2) where one of them is 0."""
    return write_folder(checkpoint, place, choices, _Gptq(_version(checkpoint, choices)))


class _Gptq(Method):
    name = "gptq"
    container = Container(codec.accepted, "f16")

    def __init__(self, version: int) -> None:
        self.version = version
        self.bits: set[int] = set()
        self.groups: set[int] = set()
        self.symmetric, self.permuted = True, False

    def tensors(self, layer: str, value: Quantized) -> dict[str, np.ndarray]:
        settings = codec.settings_for(value, self.version)
        self.bits.add(settings.bits)
        self.groups.add(settings.group)
        self.symmetric &= settings.symmetric
        self.permuted |= value.format.permuted
        return codec.encode(value, settings, f"{layer}.weight")

    def config(self, layers: list[str], left: list[str]) -> dict[str, Any]:
        skipped = [name for name in left if f"{name}.weight" != HEAD]
        return {
            "quant_method": "gptq",
            "bits": common(self.bits, "bits", "GPTQ"),
            "group_size": common(self.groups, "group size", "GPTQ") or -1,
            "desc_act": self.permuted,
            "sym": self.symmetric,
            "lm_head": False,
            "checkpoint_format": "gptq" if self.version == 1 else "gptq_v2",
            "pack_dtype": "int32",
        } | ({"dynamic": {f"-:^{name.replace('.', chr(92) + '.')}$": {} for name in skipped}} if skipped else {})


def _version(checkpoint: Checkpoint, choices: Choices) -> int:
    """2 where a zero point is 0, which version 1 cannot store; asymmetric codes yet to be chosen may have one."""
    if choices.scheme is not None and choices.scheme.linear_format(choices.group_size).zero is not None:
        return 2
    for name in checkpoint.names if checkpoint.method else ():
        weight = checkpoint.read(name)
        if isinstance(weight, StoredCodes) and is_linear(name, weight.value.shape) and _has_zero(weight.value, name):
            return 2
    return 1


def _has_zero(value: Quantized, name: str) -> bool:
    from qcc.ir.convert import convert

    if value.format.zero_level is None and value.format.offset is None:
        return False
    zero = convert(value, codec.accepted(value, name), name).zero
    return zero is not None and bool((zero == 0).any())
