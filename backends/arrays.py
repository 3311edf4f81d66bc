"""Arrays by name in an `.npz` file: read without trusting the file, written under any name, text included."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qcc.ir.errors import BadInput


def read_arrays(path: Path, *, hint: str) -> dict[str, np.ndarray]:
    """Every array of a file; `BadInput` where it is no `.npz` file, is damaged, or holds anything but plain arrays."""
    try:
        if not zipfile.is_zipfile(path):
            reason = "not an .npz file, or truncated" if path.exists() else "no such file"
            raise BadInput(f"{path}: {reason}", hint=hint)
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(f"{path}: cannot be read: {error}", hint=hint) from error
    strange = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if strange:
        raise BadInput(f"{path}: {strange[0]!r} is not an array", hint=hint)
    return arrays


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compress: bool = False) -> None:
    """What `numpy.savez` writes, also for names that are parameters of it; strings become fixed-width text."""
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                plain = array.astype(np.str_) if array.dtype == np.object_ else array
                np.lib.format.write_array(file, plain, allow_pickle=False)
