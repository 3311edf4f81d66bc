"""n:m sparsity in storage: of m neighbours along the last axis, n codes and where each stood.

    codes [..., K]  <->  kept [..., ceil(K / m) n] and index [..., ceil(K / m) n], index < m, ascending in a group

Groups with fewer than n nonzeros keep zeros at the first free places, so that every group has n. This is the form that
2:4 tensor cores read (NVIDIA PTX ISA, mma.sp: sparse matrix storage), whose metadata packs the index of each in 2 bits.
"""

from __future__ import annotations

import numpy as np

from .errors import BadInput


def compress(codes: np.ndarray, n: int, m: int, zero: int, where: str = "codes") -> tuple[np.ndarray, np.ndarray]:
    """The kept codes and their uint8 places in their groups; `zero` is the code of 0.

    `BadInput` names a group with more than n other codes. A last axis that m does not divide ends in zeros.
    """
    groups = _groups(codes, m, zero)
    busy = groups != zero
    counts = busy.sum(axis=-1)
    if counts.size and counts.max() > n:
        place = tuple(map(int, np.argwhere(counts > n)[0]))
        raise BadInput(f"{where}: group {place} has {counts[place]} codes other than 0, and {n}:{m} keeps {n}")
    index = np.sort(np.argsort(~busy, axis=-1, kind="stable")[..., :n], axis=-1).astype(np.uint8)
    kept = np.take_along_axis(groups, index.astype(np.int64), axis=-1)
    shape = (*codes.shape[:-1], groups.shape[-2] * n)
    return kept.reshape(shape), index.reshape(shape)


def restore(kept: np.ndarray, index: np.ndarray, n: int, m: int, zero: int, extent: int) -> np.ndarray:
    """The codes [..., extent] that `compress` took apart. `BadInput` for places beyond a group or not ascending."""
    count = -(-extent // m)
    places = index.reshape(*index.shape[:-1], count, n)
    if places.size and (places.max() >= m or (np.diff(places.astype(np.int16), axis=-1) <= 0).any()):
        raise BadInput(f"the index of a {n}:{m} sparse tensor has places that are not ascending below {m}")
    groups = np.full((*index.shape[:-1], count, m), zero, kept.dtype)
    np.put_along_axis(groups, places.astype(np.int64), kept.reshape(places.shape), axis=-1)
    return groups.reshape(*index.shape[:-1], count * m)[..., :extent]


def _groups(codes: np.ndarray, m: int, zero: int) -> np.ndarray:
    """[..., groups, m], padded with the code of 0."""
    missing = -codes.shape[-1] % m
    if missing:
        codes = np.concatenate([codes, np.full((*codes.shape[:-1], missing), zero, codes.dtype)], axis=-1)
    return codes.reshape(*codes.shape[:-1], codes.shape[-1] // m, m)
