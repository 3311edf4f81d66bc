"""The samples that travel in an artifact: inputs, the float model's outputs, and spot values of every layer.

Spot values are the float results of a quantized layer at some fixed random places of the first sample: a few hundred
bytes a layer let anyone find the worst layer without the float model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcc.ir.errors import BadInput

from .arrays import read_arrays, write_arrays

SPOTS = 64

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class StoredSamples:
    """Inputs and float outputs, one mapping a sample, and the spot values of each layer in the manifest's order."""

    inputs: Sequence[Arrays]
    outputs: Sequence[Arrays]
    spots: Sequence[np.ndarray]

    def save(self, path: Path, input_names: Sequence[str], output_names: Sequence[str]) -> None:
        """Write a compressed `.npz` whose keys are `in.SAMPLE.PORT`, `out.SAMPLE.PORT`, `spot.LAYER`."""
        arrays: dict[str, np.ndarray] = {}
        for index, (feeds, outputs) in enumerate(zip(self.inputs, self.outputs, strict=True)):
            arrays |= {f"in.{index}.{p}": feeds[name] for p, name in enumerate(input_names)}
            arrays |= {f"out.{index}.{p}": outputs[name] for p, name in enumerate(output_names)}
        arrays |= {f"spot.{k}": values for k, values in enumerate(self.spots)}
        write_arrays(path, arrays, compress=True)

    @staticmethod
    def open(path: Path, input_names: Sequence[str], output_names: Sequence[str]) -> StoredSamples:
        """Read what `save` wrote; `BadInput` where the file is damaged."""
        data = read_arrays(path, hint="compile the model again")
        count = len({key.split(".")[1] for key in data if key.startswith(("in.", "out."))})
        try:
            inputs = [{name: data[f"in.{i}.{p}"] for p, name in enumerate(input_names)} for i in range(count)]
            outputs = [{name: data[f"out.{i}.{p}"] for p, name in enumerate(output_names)} for i in range(count)]
            spots = [data[f"spot.{k}"] for k in range(sum(key.startswith("spot.") for key in data))]
        except KeyError as error:
            raise BadInput(f"{path}: the stored sample {error} is missing", hint="compile the model again") from error
        return StoredSamples(inputs, outputs, spots)


def spot_values(array: np.ndarray, layer: int) -> np.ndarray:
    """The values of `array` at the places that belong to a layer."""
    flat = array.reshape(-1)
    places = np.random.default_rng(layer).integers(0, max(1, flat.size), SPOTS)
    return flat[places].astype(np.float32) if flat.size else np.zeros(0, np.float32)
