"""The float network around each layer: the value that a layer reads and the one it gives, on every sample.

They are taken a few layers at a time and kept in files, so that memory holds those of one layer, however large the
network is and however many schemes are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from xdsl.ir import SSAValue

from qcc.ir.dialects.onnx import OnnxOp
from qcc.ir.execute import Reference
from qcc.ir.program import Program
from qcc.ir.rewrite import array_of, producer
from qcc.passes.calibrate import key_of

_AT_ONCE = 32
"""Values that are fetched by one run of the network."""


class FloatLayers:
    """The layers of a float program, by node, and the values around them on `samples`, in files of `folder`."""

    def __init__(self, program: Program, samples: Sequence[Mapping[str, np.ndarray]], folder: Path) -> None:
        self.program = program
        self.samples = samples
        self.folder = folder
        layers = [op for op in program.module.walk() if isinstance(op, OnnxOp) and op.node and op.op_type in _DATA]
        self.layers = {op.node: op for op in layers}
        self._numbers: dict[str, int] = {}

    def reaches(self, node: str) -> bool:
        """Whether the values around a layer can be fetched: not those inside a branch or a loop."""
        return self.layers[node].parent is self.program.body

    def weight(self, node: str) -> np.ndarray:
        """The constant weight of a layer, turned as its codes are: float32, [N, K] for MatMul and Gemm."""
        op = self.layers[node]
        value = op.operands[0 if op.op_type == "Gather" else 1]
        if op.op_type == "MatMul":
            turned = producer(value, "onnx.Transpose")
            return self._array(value).T if turned is None else self._array(turned.operands[0])
        weight = self._array(value)
        if op.op_type != "Gemm":
            return weight
        alpha = op.get("alpha", 1.0)
        assert isinstance(alpha, float)
        weight = weight if op.integer("transB") else weight.T
        return weight if alpha == 1.0 else weight * np.float32(alpha)

    def take(self, nodes: Sequence[str]) -> None:
        """Fetch the values around some layers, unless they are there already."""
        wanted = {key: value for node in nodes for key, value in self._around(node) if key not in self._numbers}
        keys = list(wanted)
        for begin in range(0, len(keys), _AT_ONCE):
            some = keys[begin : begin + _AT_ONCE]
            reference = Reference(self.program, [wanted[key] for key in some])
            self._numbers |= {key: len(self._numbers) + i for i, key in enumerate(some)}
            for index, sample in enumerate(self.samples):
                for key, array in zip(some, reference.fetch(sample), strict=True):
                    np.save(self._file(key, index), array)

    def values(self, node: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What a layer reads and what it gives on each sample; `take` comes first."""
        (read, _), (given, _) = self._around(node)
        for index in range(len(self.samples)):
            yield np.load(self._file(read, index)), np.load(self._file(given, index))

    def _array(self, value: SSAValue) -> np.ndarray:
        array = array_of(value, self.program)
        assert array is not None
        return array

    def _file(self, key: str, sample: int) -> Path:
        return self.folder / f"{self._numbers[key]}-{sample}.npy"

    def _around(self, node: str) -> list[tuple[str, SSAValue]]:
        op = self.layers[node]
        data, result = op.operands[_DATA[op.op_type]], op.results[0]
        return [(key_of(data), data), (key_of(result), result)]


_DATA = {"MatMul": 0, "Gemm": 0, "Conv": 0, "ConvTranspose": 0, "Gather": 1}
"""The operators that become layers of codes, with the place of the operand that is no weight."""
