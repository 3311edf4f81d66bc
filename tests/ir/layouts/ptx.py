"""Which lane and register of a warp hold which element: tensor-core fragments, after the PTX ISA documentation.

Lanes are numbered 0 to 31. A group is four lanes; `group` is the lane over 4, `place` the lane within its group.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LANES = np.arange(32)
Index = NDArray[np.int64]


def mma_m16n8k16_b(lane: Index, i: Index) -> tuple[Index, Index]:
    """Row (k) and column (n) of element `i` (0..3, two a register) of the 16 x 8 operand B of 16-bit floats.

    PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type", multiplicand B.
    """
    group, place = lane // 4, lane % 4
    return place * 2 + i % 2 + np.where(i < 2, 0, 8), group + 0 * i


def mma_m16n8k32_b(lane: Index, i: Index) -> tuple[Index, Index]:
    """Row (k) and column (n) of element `i` (0..7, four a register) of the 32 x 8 operand B of bytes.

    PTX ISA, "Matrix Fragments for mma.m16n8k32", multiplicand B.
    """
    group, place = lane // 4, lane % 4
    return place * 4 + i % 4 + np.where(i < 4, 0, 16), group + 0 * i


def ldmatrix(lane: Index, half: Index) -> tuple[Index, Index]:
    """Row and column of the 16-bit element that `lane` gets in `half` (0 low, 1 high) of a register: 8 x 8 matrices.

    PTX ISA, "ldmatrix": thread t holds elements 2 (t mod 4) and the next of row t / 4; register j is of matrix j.
    """
    return lane // 4 + 0 * half, lane % 4 * 2 + half
