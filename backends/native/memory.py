"""Memory as kernels read it: aligned to cache lines, with room behind a weight for the last vector."""

from __future__ import annotations

import numpy as np

ALIGNMENT = 64
READ_AHEAD = 64
"""Bytes behind a packed weight or an image that a kernel may read."""


def aligned(size: int) -> np.ndarray:
    """uint8 [size], zeros, at a multiple of 64 bytes."""
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    return raw[-raw.ctypes.data % ALIGNMENT :][:size]
