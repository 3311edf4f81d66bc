"""AWQ checkpoints (version gemm), as AutoAWQ, transformers and vLLM read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qcc.frontend.checkpoints import Checkpoint
from qcc.ir.codecs import awq as codec
from qcc.ir.codecs.gptq import settings_for
from qcc.ir.quantized import Quantized

from . import Choices, Record
from ._folder import Method, common, write_folder
from ._stream import Container


def write(checkpoint: Checkpoint, place: Path, choices: Choices) -> list[Record]:
    """Write the folder."""
    return write_folder(checkpoint, place, choices, _Awq())


class _Awq(Method):
    name = "awq"
    container = Container(codec.accepted, "f16")

    def __init__(self) -> None:
        self.groups: set[int] = set()

    def tensors(self, layer: str, value: Quantized) -> dict[str, np.ndarray]:
        self.groups.add(settings_for(value, 2).group)
        return codec.encode(value)

    def config(self, layers: list[str], left: list[str]) -> dict[str, Any]:
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": common(self.groups, "group size", "AWQ") or -1,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": sorted(left),
        }
