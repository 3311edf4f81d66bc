"""Run `network.so` of an artifact folder on TVM's runtime alone: no compiler and no torch; weights are mapped.

The runtime is `libtvm_runtime.so` of the package apache-tvm, reached through apache-tvm-ffi: importing the package
itself would load its compiler.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from qcc.backends.native import isa
from qcc.backends.native.memory import ALIGNMENT, aligned
from qcc.ir import target
from qcc.ir.errors import BadInput, MissingExtra
from qcc.ir.weights import WeightStore

from .caches import Cache, Held
from .toolchain import without_torch

LIBRARY, NETWORK = "network.so", "network.json"
_KEYS = (
    "inputs", "dtypes", "outputs", "weights", "parameters", "caches", "grows", "step", "isa", "tvm", "tvm_ffi"
)  # fmt: skip
SLACK, SLACK_BYTES = "~slack", 65
"""The last tensor of the weights file: kernels read up to 64 bytes behind a weight."""
EXTRA = "pip install 'qcc[tvm]'"
_CPU, _POOLED = 1, 2
"""Of TVM: the number of the device, and of the allocator that keeps memory for the next call."""


class NetworkRunner:
    """A network in TVM's virtual machine. `run` may be called from several threads; one call runs at a time."""

    device = wanted = "cpu"

    def __init__(self, folder: Path, threads: int) -> None:
        record = _record(folder)
        ffi = _runtime(record, folder)
        isa.check(isa.named(record["isa"]), target.load("cpu"))
        self.caches = [Cache(**cache) for cache in record["caches"]]
        self._step: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in record["step"].items()}
        self._grows: tuple[str, int] | int = record["grows"]
        past, present = ({getattr(c, side) for c in self.caches} for side in ("past", "present"))
        dtypes = dict(zip(record["inputs"], map(np.dtype, record["dtypes"]), strict=True))
        self._inputs = {name: dtype for name, dtype in dtypes.items() if name not in past}
        self._outputs = [name for name in record["outputs"] if name not in present]
        self._lock = threading.Lock()
        self._ffi = ffi
        try:
            # a copy: the system would give back what it loaded before under the same path
            with tempfile.TemporaryDirectory(prefix="qcc-") as scratch:
                library = shutil.copy(folder / LIBRARY, Path(scratch, LIBRARY))
                self._machine = ffi.load_module(str(library))["vm_load_executable"]()
                ctypes.CDLL(str(library)).qcc_set_threads(threads or target.load("cpu").cores)
            self._machine["vm_initialization"](_CPU, 0, _POOLED)
            self._main = self._machine["main"]
            self._short = self._machine["step"] if record["step"] else self._main
        except (RuntimeError, OSError, AttributeError) as error:
            raise BadInput(
                f"{folder / LIBRARY}: TVM's runtime does not load it: {_line(error)}", hint="compile the model again"
            ) from error
        self._store = WeightStore.open(folder / record["weights"])
        self._weights = [ffi.from_dlpack(_writable(self._store[name])) for name in record["parameters"]]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name; `BadInput` where the network fails on these inputs.

        Caches are given and come back in float32, longer by the positions that were added.
        """
        if not self.caches:
            return {name: array.copy() for name, array in self.step(feeds, ()).items()}
        grows = self._grows
        more = grows if isinstance(grows, int) else feeds[grows[0]].shape[grows[1]]
        held = Held.of(self.caches, feeds, more)
        results = {name: array.copy() for name, array in self.step(feeds, self.held(held)).items()}
        return {**results, **held.outputs()}

    def held(self, caches: Held) -> Sequence[object]:
        """The memory of caches as `step` takes it."""
        return [self._ffi.from_dlpack(array) for array in caches.arrays()]

    def step(self, feeds: Mapping[str, np.ndarray], held: Sequence[object]) -> dict[str, np.ndarray]:
        """The outputs beside caches, which are written to in place; `BadInput` where the network fails.

        The arrays are the network's own memory, which is used again when they are gone.
        """
        arrays = [_placed(feeds[name], dtype) for name, dtype in self._inputs.items()]
        short = self._step == {name: a.shape for name, a in zip(self._inputs, arrays, strict=True)}
        function = self._short if short else self._main
        try:
            with self._lock:
                results = function(*map(self._ffi.from_dlpack, arrays), *held, *self._weights)
                return {n: np.from_dlpack(r) for n, r in zip(self._outputs, results, strict=True)}
        except (RuntimeError, ValueError, TypeError) as error:
            raise BadInput(
                f"the network does not run on these inputs: {_line(error)}", hint="check their shapes and values"
            ) from error

    def timed(self, calls: dict[str, float] | None) -> None:
        """Add the seconds of every call of the virtual machine to `calls`, by its name; None ends that."""
        began = [0.0]

        def note(function: object, name: str, before: int, result: object, *arguments: object) -> int:
            if before:
                began[0] = time.perf_counter()
            elif calls is not None:
                calls[name] = calls.get(name, 0.0) + time.perf_counter() - began[0]
            return 0

        self._machine["set_instrument"](self._ffi.convert(note) if calls is not None else None)


def open_folder(folder: Path, threads: int, *, frugal: bool = False) -> NetworkRunner:
    """A runner on an artifact folder; its weights are mapped in any case."""
    del frugal
    return NetworkRunner(folder, threads)


def open_with_values(folder: Path, values: Sequence[str], threads: int) -> NetworkRunner:
    """A runner; inner values are not kept, so that it gives the outputs alone."""
    del values
    return NetworkRunner(folder, threads)


def _record(folder: Path) -> dict[str, Any]:
    """What `build.py` noted. Any: JSON."""
    try:
        record: dict[str, Any] = json.loads((folder / NETWORK).read_text())
        _ = [record[key] for key in _KEYS]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / NETWORK}: cannot be read: {error}", hint="compile the model again") from error
    return record


def _runtime(record: Mapping[str, Any], folder: Path) -> Any:
    """The module `tvm_ffi` with TVM's runtime loaded. Any: it has no types."""
    place = importlib.util.find_spec("tvm")
    if place is None or place.origin is None:
        raise MissingExtra(f"{folder} runs on TVM's runtime", hint=EXTRA)
    for package, key in (("apache-tvm", "tvm"), ("apache-tvm-ffi", "tvm_ffi")):
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "none"
        if found != record[key]:
            raise BadInput(
                f"{folder} was compiled with {package} {record[key]}, installed is {found}",
                hint=f"pip install {package}=={record[key]}, or compile the model again",
            )
    with without_torch():
        ffi = importlib.import_module("tvm_ffi")
    ctypes.CDLL(str(Path(place.origin).parent / "lib" / "libtvm_runtime.so"), ctypes.RTLD_GLOBAL)
    return ffi


def _placed(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """The input where TVM's functions expect it: contiguous, at a multiple of 64 bytes, and writable as DLPack asks."""
    whole = np.asarray(array, dtype, order="C")  # `ascontiguousarray` would make a vector of a scalar
    if whole.ctypes.data % ALIGNMENT == 0 and whole.flags.writeable and whole.size:
        return whole
    held = aligned(whole.nbytes).view(dtype).reshape(whole.shape)
    held[...] = whole
    return held


def _writable(array: np.ndarray) -> np.ndarray:
    """A mapped array as one that DLPack hands on: nothing writes to it. Copied only where it lies askew."""
    if array.flags.writeable and array.ctypes.data % ALIGNMENT == 0:
        return array
    if array.ctypes.data % ALIGNMENT:
        return _placed(array, array.dtype)
    memory = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
    return np.frombuffer(memoryview(memory), np.uint8).view(array.dtype).reshape(array.shape)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
