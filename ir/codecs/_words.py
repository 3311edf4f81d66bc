"""What checkpoint codecs share: rows of 32-bit words, dtypes of scales, the shape of groups, and how to refuse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import BadInput, NotSupported
from ..format import Format
from ..layout import Layout, pack, unpack
from ..level import Block, Level
from ..levels import level_dtype
from ..quantized import Quantized

ROWS = Layout.parse("n(n0) k(k1 k0:32) -> n0 k1 k0")
"""Codes of a row follow each other from the lowest bit of the first word on; a row begins with a word."""

_SCALES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def to_words(codes: np.ndarray, bits: int, fill: int = 0, layout: Layout = ROWS) -> np.ndarray:
    """int32 [R, ceil(C * bits / 32)] of codes [R, C]."""
    rows, columns = codes.shape
    words = pack(codes, bits, layout, fill).view("<i4").reshape(rows, -1)
    return np.ascontiguousarray(words[:, : math.ceil(columns * bits / 32)])


def from_words(
    words: np.ndarray, bits: int, columns: int, *, signed: bool = False, layout: Layout = ROWS
) -> np.ndarray:
    """Codes [R, C] of int32 words [R, ceil(C * bits / 32)], whose shape the caller has checked."""
    whole = -(-columns // 32) * bits
    if words.shape[1] < whole:
        words = np.pad(words, ((0, 0), (0, whole - words.shape[1])))
    data = np.ascontiguousarray(words).view(np.uint8)
    return unpack(data, bits, (words.shape[0], columns), layout, signed)


def require(tensors: Mapping[str, np.ndarray], names: Sequence[str], where: str, container: str) -> None:
    """`BadInput` for a tensor of the container that is missing."""
    for name in names:
        if name not in tensors:
            raise BadInput(
                f"{where}: {container} needs {name!r}, which is missing", hint="copy every file of the model"
            )


def require_shape(array: np.ndarray, shape: Sequence[int], name: str, where: str, dtype: str = "") -> None:
    """`BadInput` where a tensor has another shape or dtype than the metadata say."""
    if array.shape != tuple(shape) or (dtype and array.dtype.name != dtype):
        found, wanted = f"{array.dtype} {list(array.shape)}", f"{dtype or array.dtype} {list(shape)}"
        raise BadInput(
            f"{where}: {name} is {found}, its metadata want {wanted}",
            hint="the tensors and quantization_config do not belong together: copy the model again",
        )


def scale_level(array: np.ndarray, block: Block | None, name: str, where: str) -> Level:
    """The level of scales that are held as float32, float16 or bfloat16; `BadInput` for another dtype."""
    if array.dtype.name not in _SCALES:
        raise BadInput(f"{where}: {name} is {array.dtype}", hint=f"scales are {', '.join(_SCALES)}")
    return Level(_SCALES[array.dtype.name], block)


def group_block(group: int) -> Block:
    """The block of groups along the last axis; the whole axis where `group` is not positive."""
    return (group,) if group > 0 else (None,)


def groups_of(value: Quantized) -> int:
    """Values of a row that share all numbers, 0 where that is the whole row."""
    columns = value.shape[-1]
    sizes = [level.block_of(value.shape)[-1] for level in value.format.levels().values()]
    size = math.gcd(*sizes) if sizes else columns
    return 0 if size >= columns else size


def is_symmetric(value: Quantized) -> bool:
    """Whether the middle code stands for 0 in every block: then no zero points need be held."""
    fmt = value.format
    if isinstance(fmt.zero, float):
        return fmt.zero == float(1 << fmt.bits - 1) and not fmt.family.signed
    return fmt.zero is None and fmt.offset is None and fmt.family.low < 0


def integer_bits(fmt: Format, where: str, container: str) -> int:
    """Bits of the integers that hold the codes of a format; `NotSupported` where they are no whole numbers."""
    if fmt.is_integer:
        return fmt.bits
    table = None if fmt.family.trained or len(fmt.choices) > 1 else fmt.family.table
    held = np.zeros(0) if table is None else table[np.isfinite(table)]
    if not held.size or (held != np.rint(held)).any() or np.abs(held).max() > 128:
        raise NotSupported(f"{where}: codes of {fmt.element} are no integers, which is what {container} holds")
    return next(b for b in range(2, 9) if -(1 << b - 1) <= held.min() and held.max() < 1 << b - 1)


def refuse_extras(value: Quantized, where: str, container: str, *, permuted: bool = False) -> None:
    """`NotSupported` for what a container has no place for."""
    fmt = value.format
    if len(value.shape) != 2:
        raise NotSupported(f"{where}: {container} holds matrices, this tensor has shape {list(value.shape)}")
    if fmt.permuted and not permuted:
        raise NotSupported(f"{where}: an act-order permutation cannot be expressed in {container}")
    if fmt.outliers:
        raise NotSupported(f"{where}: {container} has no place for outliers")
    if fmt.mean:
        raise NotSupported(f"{where}: {container} has no place for a mean of scales")


def scale_dtype(fmt: Format, allowed: Sequence[str]) -> str:
    """The dtype of scales that a container takes: the one they have, else the first."""
    return fmt.scales[0].dtype if len(fmt.scales) == 1 and fmt.scales[0].dtype in allowed else allowed[0]


def held_as(array: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers, contiguous, in the numpy dtype of a level that holds them exactly."""
    return np.ascontiguousarray(array.astype(level_dtype(dtype).numpy))


def order_of(g_idx: np.ndarray | None, k: int, group: int, where: str) -> np.ndarray | None:
    """Columns sorted by their group, None where they are sorted; `BadInput` where groups have not `group` columns."""
    if g_idx is None or not g_idx.size:
        return None
    require_shape(g_idx, (k,), "g_idx", where)
    groups = -(-k // group)
    wrong = (g_idx < 0) | (g_idx >= groups)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise BadInput(f"{where}: g_idx holds {g_idx[at]} at {at}, but there are {groups} groups", hint="copy it again")
    if np.array_equal(g_idx, np.arange(k) // group):
        return None
    counts = np.bincount(g_idx, minlength=groups)
    if (counts[:-1] != group).any() or counts[-1] != k - group * (groups - 1):
        odd = int(np.argmax(counts != group))
        raise BadInput(f"{where}: group {odd} of g_idx has {counts[odd]} columns, not {group}", hint="copy it again")
    return np.argsort(g_idx, kind="stable").astype(np.int32)
