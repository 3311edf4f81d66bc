"""Prepared rows of activations, byte for byte, against the documented formula in numpy."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.backends.native import compile, isa, linear
from qcc.backends.native.emit_linear import LinearText
from qcc.backends.native.linear_spec import Activation, LinearSpec, Schedule
from qcc.ir.format import Format
from tests.backends.native_oracle import host_isas, read_as

HEADERS = list({isa.named(name).header: name for name in reversed(host_isas())}.values())
"""The best instruction set of this host for each vocabulary of vectors."""
ALL = [Activation(bits, grouped, dtype) for bits in (8, 16) for grouped in (False, True) for dtype in ("f32", "bf16")]
FIXED = [(0.05, 3), (0.05, -128), (1e-3, 127), (2.0**-140, 0)]
SHAPES = [
    ("i8, f32 per *", (1, 17, 64, 100, 255, 640)),
    ("i8, f16 per 4", (3, 67, 130)),
    ("i8, f16 per 8", (8, 100, 136)),
    ("i8, f16 per 12", (10, 100, 240)),
    ("i4, f16 per 16", (47, 64, 255, 257, 640)),
    ("i8, f16 per 20", (20, 100, 333)),
    ("i5, f16 per 32", (31, 33, 65, 500, 544, 640)),
    ("i8, f16 per 48", (100, 480, 800)),
    ("i8, f16 per 64", (65, 1024, 1100)),
    ("u4, f16 per 96, minus f16 per 96", (100, 192, 1600)),
    ("i8, f16 per 128", (129, 640, 2048)),
    ("i6, i8 per 16, f16 per 256", (15, 250, 272, 640)),
    ("u4, u6 per 32, f16 per 256, minus u6 per 32 by f16 per 256", (100, 256, 800)),
]

each_header = pytest.mark.parametrize("name", HEADERS)


@dataclass(frozen=True)
class Rows:
    """What lies in prepared rows."""

    codes: NDArray[np.int8]
    """[M, parts, columns]"""
    starts: NDArray[np.int32]
    """[M, parts, groups]"""
    scales: NDArray[np.float32]
    """[M, groups or 1]"""
    totals: NDArray[np.float32]
    """[M, groups]"""

    def must_equal(self, wanted: Rows, what: str) -> None:
        """Bit for bit: of zeros the sign too, of what is no number only that it is none."""
        for name in ("codes", "starts"):
            np.testing.assert_array_equal(getattr(self, name), getattr(wanted, name), f"{name} of {what}")
        for name in ("scales", "totals"):
            a, b = getattr(self, name), getattr(wanted, name)
            np.testing.assert_array_equal(np.isnan(a), np.isnan(b), f"{name} of {what}")
            np.testing.assert_array_equal(np.where(np.isnan(a), 0, a.view(np.uint32)),
                                          np.where(np.isnan(b), 0, b.view(np.uint32)), f"{name} of {what}")  # fmt: skip


def generate(fmt: str, k: int, activation: Activation, name: str) -> LinearText:
    """A kernel of 16 rows: only how it prepares activations is looked at."""
    return linear.generate(LinearSpec(16, k, Format.parse(fmt), activation), isa.named(name), Schedule(tile=1))


def source_of(text: LinearText) -> str:
    """The part of a kernel that prepares rows, which compiles in a fraction of the time of all of it."""
    header = (isa.C_FOLDER / "activations.h").read_text()
    before, found, _ = text.text().partition(header)
    assert found, "kernels hold the header as it is"
    one = (
        "prepare_fixed(x + m * K, ROW(rows, m), scale, zero)"
        if text.spec.activation.fixed
        else "prepare_row(x + m * K, ROW(rows, m))"
    )
    return (
        f"{before}{header}\nvoid prepare(const input *x, long count, uint8_t *rows, float scale, int zero) {{\n"
        f"    for (long m = 0; m < count; m++) {one};\n}}\n"
    )


def prepare(text: LinearText, x: NDArray[Any], scale: float = 0.0, zero: int = 0, source: str = "") -> Rows:
    """Prepared rows of activations that end where memory that cannot be read begins; nothing is written beside them."""
    library = compile.load(compile.compile_c(source or source_of(text), text.isa.flags))
    library.prepare.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p, ctypes.c_float, ctypes.c_int]
    library.prepare.restype = None
    given = at_the_edge(x.nbytes)
    given[...] = np.frombuffer(x.tobytes(), np.uint8)
    w, m = text.workspace, len(x)
    memory = np.full(64 + (m + 1) * w.bytes, 0xA5, np.uint8)
    held = memory[-memory.ctypes.data % 64 :][: m * w.bytes]
    library.prepare(given.ctypes.data, m, held.ctypes.data, scale, zero)
    ends = held.ctypes.data - memory.ctypes.data, held.ctypes.data - memory.ctypes.data + held.size
    assert (memory[: ends[0]] == 0xA5).all() and (memory[ends[1] :] == 0xA5).all(), f"{text.spec}: beside its rows"
    rows = held.reshape(m, w.bytes)

    def at(first: int, count: int, dtype: type[np.generic]) -> NDArray[Any]:
        return np.ascontiguousarray(rows[:, first : first + count * np.dtype(dtype).itemsize]).view(dtype)

    return Rows(
        at(0, w.parts * w.columns, np.int8).reshape(m, w.parts, w.columns),
        at(w.starts, w.parts * w.groups, np.int32).reshape(m, w.parts, w.groups),
        at(w.scales, w.groups if w.grouped else 1, np.float32),
        at(w.totals, w.groups, np.float32),
    )


def at_the_edge(size: int) -> NDArray[np.uint8]:
    """Bytes behind which a page can be neither read nor written."""
    pages = -(-size // mmap.PAGESIZE)
    held = np.frombuffer(mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE), np.uint8)
    end = held.ctypes.data + pages * mmap.PAGESIZE
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    return held[pages * mmap.PAGESIZE - size : pages * mmap.PAGESIZE]


def expected(text: LinearText, x: NDArray[Any], scale: float = 0.0, zero: int = 0) -> Rows:
    """The same in single operations of numpy."""
    spec, w, group = text.spec, text.workspace, text.storage.group
    numbers, f32 = x.astype(np.float32), np.float32
    m, k = numbers.shape
    limit, q = f32(spec.activation.limit), np.zeros((m, w.columns), np.int64)
    edges = [*range(0, w.columns, group), w.columns]
    blocks = list(pairwise(edges)) if w.grouped else [(0, w.columns)]
    scales = np.full((m, len(blocks)), scale, np.float32)
    with np.errstate(all="ignore"):
        for b, (first, last) in enumerate(blocks):
            some = numbers[:, first:last]
            if spec.activation.fixed:
                codes = np.rint(some / f32(scale)).astype(np.float64) + zero
                q[:, first : min(k, last)] = np.clip(np.where(np.isnan(codes), 127, codes), -128, 127)
                continue
            finite = np.isfinite(some).all(axis=1)
            most = np.abs(some).max(axis=1, initial=0)
            own = np.where(most > 0, np.maximum(most / limit, f32(2.0**-126)), f32(0))
            own = np.where(finite, own, f32(np.nan)).astype(np.float32)
            inverse = np.where(own > 0, f32(1) / own, f32(0)).astype(np.float32)
            products = np.rint(some * inverse[:, None])
            q[:, first : min(k, last)] = np.clip(np.where(np.isnan(products), limit, products), -limit, limit)
            scales[:, b] = own
        parts = [q] if w.parts == 1 else [(q + 128) >> 8, q - 256 * ((q + 128) >> 8)]
        sums = np.stack([np.add.reduceat(part, edges[:-1], axis=1) for part in parts], 1)
        totals = np.zeros((m, w.groups), np.float32)
        for p in range(w.parts):
            totals = totals * f32(256) + sums[:, p].astype(np.float32)
        totals = totals * scales if spec.activation.grouped else totals
    starts = -(1 if spec.zero_points else spec.offset) * sums
    return Rows(np.stack(parts, 1).astype(np.int8), starts.astype(np.int32), scales, totals)


def extremes(k: int, limit: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Rows [M, k]: ordinary ones, ties, the smallest and largest numbers, single outliers, and what is not finite."""
    normal = rng.standard_normal((24, k))
    places = rng.integers(0, k, 24)
    x = normal.copy()
    x[1] *= np.exp(4 * rng.standard_normal(k))
    x[2] = 0
    x[3] = np.copysign(0, normal[3])
    ties = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, limit, -limit, limit - 0.5, 127.5, 128.5, -128.5, 383.5])
    x[4] = rng.choice(ties[np.abs(ties) <= limit], k)
    x[4, :: min(k, 4)] = limit
    x[5] = x[4] * 2.0**-3
    x[6] = -np.abs(x[6])
    x[7] = rng.choice([-3.4028234e38, 3.4028234e38], k)
    x[8] = normal[8] * 1e38 / 4
    x[9] = rng.choice([-1, 0, 1], k) * 2.0**-149  # the smallest number there is
    x[10] = normal[10] * 1e-40
    x[11] = normal[11] * limit * 2.0**-126  # whose scales lie about the smallest that has an inverse
    x[12] = normal[12] * 1e-37
    x[13] = 0
    x[13, places[13]] = -7
    x[14, places[14]] = 1e30
    x[15] = rng.choice([-1, 1], k)
    for i, value in enumerate((np.nan, -np.nan, np.inf, -np.inf), 16):
        x[i, places[i]] = value
    x[20] = np.inf
    x[21] = np.nan
    x[22] = np.where(rng.random(k) < 0.1, np.inf, normal[22])
    x[23, -1] = np.nan
    return np.concatenate([x.astype(np.float32), rng.standard_normal((16, k)).astype(np.float32)])


@each_header
@pytest.mark.parametrize(("fmt", "columns"), SHAPES, ids=[fmt for fmt, _ in SHAPES])
def test_every_byte_of_prepared_rows(fmt: str, columns: tuple[int, ...], name: str) -> None:
    """Every width of groups and number of columns with one way to round, which is another one for each vocabulary."""
    rng = np.random.default_rng(len(fmt))
    for i, k in enumerate(columns):
        activation = ALL[(3 * (i + len(fmt)) + 2 * HEADERS.index(name)) % len(ALL)]
        text = generate(fmt, k, activation, name)
        x = read_as(extremes(k, activation.limit, rng), activation.dtype)
        prepare(text, x).must_equal(expected(text, x), f"{text.spec} for {name}")


@each_header
@pytest.mark.parametrize(("fmt", "k"), [("i8, f32 per *", 77), ("i8, f32 per *", 640), ("i4, f16 per 16", 200),
                                        ("i5, f16 per 32", 100), ("i8, f16 per 12", 70)])  # fmt: skip
def test_codes_of_a_fixed_scale(fmt: str, k: int, name: str) -> None:
    """QuantizeLinear: also of numbers that lie between two codes, and beyond both ends."""
    rng = np.random.default_rng(k)
    for dtype in ("f32", "bf16"):
        text = generate(fmt, k, Activation(8, dtype=dtype, fixed=True), name)
        for scale, zero in FIXED:
            near = (rng.integers(-300, 300, (4, k)) * 0.5 * scale).astype(np.float32)
            x = read_as(np.concatenate([extremes(k, 127, rng), near]), dtype)
            scale = float(np.float32(scale))
            prepare(text, x, scale, zero).must_equal(expected(text, x, scale, zero), f"{text.spec}, {scale}, {zero}")


@each_header
def test_quotients_as_they_round(name: str) -> None:
    """Many scales, each with all its halves: a reciprocal that is off by a bit, or another rounding, shows."""
    rng = np.random.default_rng(0)
    for activation in (Activation(8, True), Activation(16, True)):
        text = generate("i8, f16 per 32", 512, activation, name)
        most = rng.uniform(0.5, 2, (2000, 512 // 32, 1))
        halves = rng.integers(-2 * activation.limit, 2 * activation.limit, (2000, 16, 32))
        x = halves * 0.5 * most
        x[:, :, :1] = most * activation.limit
        x = x.reshape(2000, 512).astype(np.float32)
        prepare(text, x).must_equal(expected(text, x), f"{text.spec} for {name}")


FAULTS = {
    "infinite scales": (Activation(8, True), ", mul(most, zero_floats()))", ", zero_floats())"),
    "scales without an inverse": (Activation(8, True), "set_floats(0x1p-126f)", "set_floats(0x1p-149f)"),
    "zeros have a scale": (Activation(8, True), "mul(most, set_floats(0x1p127f))", "set_floats(1)"),
    "the sign of starts": (Activation(8), "-(OFFSET)", "(OFFSET)"),
    "the weight of a high byte": (Activation(16), "set_floats(256)", "set_floats(255)"),
    "the scale of the neighbour": (Activation(8, True), "how->by[own]", "how->by[own ^ 1]"),
    "sums of the neighbour": (Activation(8, True), "how, i * (16 / GROUP_LANES), sums + i)",
                              "how, i * (16 / GROUP_LANES), sums + (i ^ 1))"),
    "codes in padding": (Activation(8, fixed=True), "set_floats((float)-zero)", "set_floats(0)"),
    "one code too few": (Activation(8, fixed=True), "-128 - zero", "-127 - zero"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_the_oracle_finds(fault: str) -> None:
    activation, right, wrong = FAULTS[fault]
    text = generate("i5, f16 per 32", 200, activation, HEADERS[-1])
    x, source = extremes(200, activation.limit, np.random.default_rng(5)), source_of(text)
    scale, zero = (0.05, 3) if activation.fixed else (0.0, 0)
    prepare(text, x, scale, zero).must_equal(expected(text, x, scale, zero), "as it is")
    assert source.count(right) == 1, f"{right!r} is not one place of the text"
    with pytest.raises(AssertionError):
        prepare(text, x, scale, zero, source=source.replace(right, wrong)).must_equal(
            expected(text, x, scale, zero), fault
        )
