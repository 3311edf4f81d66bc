"""Values at which rounding may go wrong: the values of a table, the middles between them, and their neighbours."""

from __future__ import annotations

import numpy as np


def telling_points(values: np.ndarray, seed: int = 0, count: int = 2000) -> np.ndarray:
    """float32: finite `values`, their midpoints, both float32 neighbours of each, zeros, denormals, random ones."""
    values = np.unique(np.asarray(values, np.float64)[np.isfinite(values)])
    exact = np.concatenate([values, (values[1:] + values[:-1]) / 2]).astype(np.float32)
    near = [np.nextafter(exact, np.float32(side)) for side in (-np.inf, np.inf)]
    rng = np.random.default_rng(seed)
    reach = max(abs(values[0]), abs(values[-1]))
    spread = rng.uniform(-1.5 * reach, 1.5 * reach, count)
    by_octave = np.exp2(rng.uniform(np.log2(reach) - 30, np.log2(reach) + 1, count)) * rng.choice([-1, 1], count)
    rest = np.array([0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-38, 3.4e38, -3.4e38])
    with np.errstate(over="ignore"):
        return np.concatenate([exact, *near, spread.astype(np.float32), by_octave, rest]).astype(np.float32)
