"""Weighted k-means in one dimension, for many blocks at once: clusters are runs of the sorted values."""

from __future__ import annotations

import numpy as np

from ..errors import BadInput
from ._rounding import count_cuts

_ROUNDS = 1000
"""More rounds than any block has been seen to need; a block that still moves then keeps its last clusters."""


class Moments:
    """The values of each block, sorted, and prefix sums: weight, first and second moment of every run in O(1).

    `rows` names the blocks asked about; `bounds` [len(rows), N + 1] where each of N runs begins, and the last ends.
    """

    def __init__(self, blocks: np.ndarray, weights: np.ndarray | None) -> None:
        if not blocks.shape[1]:
            raise BadInput("a codebook cannot be fitted to blocks without values")
        if not np.isfinite(blocks).all():
            raise BadInput(
                f"block {first_row(~np.isfinite(blocks))} holds NaN or infinite values", hint="mend the data"
            )
        if weights is None:
            self.sorted = np.sort(blocks.astype(np.float64), axis=1)
            weight = np.ones_like(self.sorted)
        else:
            if weights.shape != blocks.shape or not np.isfinite(weights).all() or (weights < 0).any():
                raise BadInput(f"weights of shape {list(weights.shape)} must be finite, >= 0, of {list(blocks.shape)}")
            order = np.argsort(blocks, axis=1, kind="stable")
            self.sorted = np.take_along_axis(blocks, order, axis=1).astype(np.float64)
            weight = np.take_along_axis(weights, order, axis=1).astype(np.float64)
            least = weight.max(axis=1, keepdims=True) * 1e-12  # so that runs without weight have a mean as well
            weight = np.maximum(weight, np.where(least > 0, least, 1.0))
        self.weight = _prefix(weight)
        self.first = _prefix(weight * self.sorted)
        self.second = _prefix(weight * self.sorted**2)

    def sums(self, bounds: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weight, first and second moment of the runs."""
        at = bounds + (rows * self.weight.shape[1])[:, None]
        found = [np.diff(sums.reshape(-1).take(at), axis=1) for sums in (self.weight, self.first, self.second)]
        return found[0], found[1], found[2]

    def means(self, bounds: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """float64 [B, N]: the mean of each run; of an empty one, the mean of the run before (or of the first)."""
        weight, first, _ = self.sums(bounds, rows)
        least, most = self.ends(bounds, rows)
        mean = np.clip(first / np.where(weight > 0, weight, 1.0), least, most)
        filled = bounds[:, 1:] > bounds[:, :-1]
        source = np.maximum.accumulate(np.where(filled, np.arange(filled.shape[1], dtype=np.intp), -1), axis=1)
        source = np.where(source < 0, filled.argmax(axis=1)[:, None], source)
        return np.take_along_axis(mean, source, axis=1)

    def error(self, bounds: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """float64 [B]: the squared error of each block with its runs at their means."""
        _, first, second = self.sums(bounds, rows)
        return (second - self.means(bounds, rows) * first).sum(axis=1)

    def ends(self, bounds: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and the largest value of each run (of an empty one, any value)."""
        n = self.sorted.shape[1]
        first, flat = (rows * n)[:, None], self.sorted.reshape(-1)
        least = flat[first + np.minimum(bounds[:, :-1], n - 1)]
        return least, np.maximum(least, flat[first + np.maximum(bounds[:, 1:] - 1, 0)])


def clusters(moments: Moments, entries: int) -> np.ndarray:
    """intp [B, entries + 1]: where each cluster begins among the sorted values of its block.

    Lloyd's iteration until nothing moves. Then, as long as that lowers the error: the two neighbours that differ least
    become one cluster, the one that gains most is cut at its mean, and the iteration goes on from there.
    """
    bounds = _start(moments, entries)
    rows = np.arange(len(bounds), dtype=np.intp)
    _settle(moments, bounds, rows)
    for _ in range(_ROUNDS):
        if not rows.size:
            break
        old = bounds[rows]
        trial, lower = _merge_and_cut(moments, old, rows)
        _settle(moments, trial, rows)
        lower |= moments.error(trial, rows) < moments.error(old, rows) - 1e-12 * moments.second[rows, -1]
        rows = rows[lower]
        bounds[rows] = trial[lower]
    return bounds


def _start(moments: Moments, entries: int) -> np.ndarray:
    """Quantiles, not of the values but of the entries that many of them would have: the cube root of the density.

    (Panter and Dite 1951.) A value of weight w in a gap g to its neighbours stands for w^(1/3) g^(2/3) of the entries.
    """
    blocks, n = moments.sorted.shape
    near = max(1, n // (4 * entries))
    at = np.arange(n, dtype=np.intp)
    gap = moments.sorted[:, np.minimum(at + near, n - 1)] - moments.sorted[:, np.maximum(at - near, 0)]
    gap = np.maximum(gap, gap.max(axis=1, keepdims=True, initial=1e-300) * 1e-9)
    share = np.cumsum(np.cbrt(np.diff(moments.weight, axis=1)) * np.cbrt(gap) ** 2, axis=1)
    bounds = np.zeros((blocks, entries + 1), np.intp)
    bounds[:, 1:] = count_cuts(share, share[:, -1:] * (np.arange(1, entries + 1, dtype=np.float64) / entries))
    bounds[:, -1] = n
    return bounds


def _settle(moments: Moments, bounds: np.ndarray, rows: np.ndarray) -> None:
    """Every value of the blocks `rows` to the nearest mean, again and again; `bounds` change in place."""
    moving = np.arange(len(rows), dtype=np.intp)
    for _ in range(_ROUNDS):
        means = moments.means(bounds[moving], rows[moving])
        inner = count_cuts(moments.sorted, (means[:, :-1] + means[:, 1:]) / 2, rows[moving])
        moved = (inner != bounds[moving, 1:-1]).any(axis=1)
        bounds[moving, 1:-1] = inner
        moving = moving[moved]
        if not moving.size:
            break


def _merge_and_cut(moments: Moments, bounds: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """New bounds, two clusters merged and another cut, and which blocks' error that lowers at once."""
    weight, _, _ = moments.sums(bounds, rows)
    least, most = moments.ends(bounds, rows)
    mean = moments.means(bounds, rows)
    # The cut is below the largest value, so it parts two values that differ, however the mean was rounded.
    cut = count_cuts(moments.sorted, np.minimum(mean, np.nextafter(most, -np.inf)), rows)
    cut = np.where(most > least, np.clip(cut, bounds[:, :-1], bounds[:, 1:]), bounds[:, 1:])
    halves = np.empty((len(rows), 2 * cut.shape[1] + 1), np.intp)
    halves[:, 0::2], halves[:, 1::2] = bounds, cut
    half_weight, _, _ = moments.sums(halves, rows)
    half_mean = moments.means(halves, rows)
    gain = _apart(half_weight[:, 0::2], half_mean[:, 0::2], half_weight[:, 1::2], half_mean[:, 1::2])
    loss = _apart(weight[:, :-1], mean[:, :-1], weight[:, 1:], mean[:, 1:])
    here, merged = np.arange(len(rows), dtype=np.intp), loss.argmin(axis=1)
    full = (weight[here, merged] > 0) & (weight[here, merged + 1] > 0)
    for side in (0, 1):  # what is merged cannot be cut, unless one of the two was empty
        gain[here[full], merged[full] + side] = 0.0
    best = gain.argmax(axis=1)
    new = bounds.copy()
    new[here, merged + 1] = cut[here, best]
    return np.sort(new, axis=1), gain[here, best] > loss[here, merged] * (1 + 1e-9)


def _apart(w: np.ndarray, mean: np.ndarray, other_w: np.ndarray, other_mean: np.ndarray) -> np.ndarray:
    """How much two clusters' squared error is less than that of both as one."""
    total = w + other_w
    return w * other_w / np.where(total > 0, total, 1.0) * (other_mean - mean) ** 2


def first_row(where: np.ndarray) -> int:
    """The first row of a 2-D mask that holds a True."""
    return int(where.any(axis=1).argmax())


def _prefix(values: np.ndarray) -> np.ndarray:
    sums = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums
