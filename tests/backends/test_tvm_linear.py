"""The portable TIR form of linear kernels against the oracle of the C form, and which form is taken when.

What needs TVM runs with the other tests of large downloads.
"""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from qcc.backends.native import compile, isa, linear
from qcc.backends.native.linear import Packed
from qcc.backends.native.linear_spec import Activation, LinearSpec, Schedule, unpacks
from qcc.backends.tvm import emit_activations, toolchain
from qcc.backends.tvm import linear as tir
from qcc.backends.tvm.emit_linear import Places
from qcc.backends.tvm.linear import TirKernel
from qcc.backends.tvm.vectors import Vectors
from qcc.ir import target
from qcc.ir.errors import BadInput, MissingExtra, NotSupported
from qcc.ir.format import Format
from tests.backends.native_oracle import Case, Oracle, check, integer_cases, read_as, weights

A8, A16, A8G, A16G = Activation(8), Activation(16), Activation(8, True), Activation(16, True)
CORES = target.load("cpu").cores
SCHEDULE = Schedule(tile=2)

each_activation = pytest.mark.parametrize("activation", [A8, A16, A8G, A16G], ids=str)


def needs_tvm(test: Callable[..., None]) -> Callable[..., None]:
    """With the tests that `make test-models` runs, where TVM is installed."""
    missing = find_spec("tvm") is None
    return pytest.mark.models(pytest.mark.skipif(missing, reason="make test-models installs it")(test))


def spec_of(fmt: str, n: int, k: int, activation: Activation) -> LinearSpec:
    return LinearSpec(n, k, Format.parse(fmt), activation)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# Numbers


@needs_tvm
@pytest.mark.parametrize("case", list(integer_cases(24, seed=11)), ids=str)
def test_integers(case: Case) -> None:
    exactly = check(case, tir.build(case.spec, case.schedule))
    if case.activation.bits == 8:
        assert exactly == 24, "4 patterns for 6 numbers of rows are chosen to be exact"


@needs_tvm
@pytest.mark.slow
@pytest.mark.parametrize("case", list(integer_cases(80, seed=12)), ids=str)
def test_more_integers_on_every_processor(case: Case) -> None:
    check(case, tir.build(case.spec, case.schedule, "generic"))


OTHERS = [
    Case("ternary, f32 per *", 33, 100, A8, "portable", SCHEDULE),
    Case("ternary, f16 per 64", 83, 520, A16, "portable", Schedule(2, tile=3)),
    Case("binary, f16 per 128", 17, 300, A8, "portable", SCHEDULE),
    Case("nf4, f16 per 64", 33, 200, A16, "portable", SCHEDULE),
    Case("nf4, f32 per 32", 17, 100, A8G, "portable", Schedule(4)),
    Case("fp4, bf16 per 64", 15, 100, A16, "portable", Schedule(unpack="planes", tile=2)),
    Case("iq4nl, f16 per 32", 83, 200, A8, "portable", Schedule(4, tile=2)),
    Case("e2m1, e8m0 per 32", 33, 100, A8, "portable", SCHEDULE),
    Case("e2m1, e4m3 per 16, f32 per tensor", 33, 100, A16G, "portable", SCHEDULE),
    Case("e4m3, f32 per *", 17, 100, A16, "portable", Schedule(2, tile=2)),
    Case("e5m2, f16 per 32", 15, 70, A8, "portable", SCHEDULE),
    Case("e3m2, e8m0 per 32", 15, 70, A8, "portable", Schedule(unpack="dense")),
    Case("e2m3, e8m0 per 32", 15, 70, A16, "portable", SCHEDULE),
    Case("i8q6, f32 per *", 17, 70, A8, "portable", SCHEDULE),
    Case("i5q2, f16 per 16", 17, 70, A16, "portable", Schedule(2)),
]


@needs_tvm
@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_other_elements(case: Case) -> None:
    schedule = case.schedule or SCHEDULE
    if schedule.unpack == "split":
        schedule = replace(schedule, unpack=unpacks(case.spec, isa.named("portable"))[0])
    check(case, tir.build(case.spec, schedule))


@needs_tvm
@pytest.mark.parametrize("fmt", ["u8, f32 per *", "i8, f32 per *", "u7, f32 per *", "u4, f32 per *"])
def test_the_largest_sums(fmt: str) -> None:
    """Every product is the largest there is, of one sign: neither 16 bits nor 32 overflow on the way."""
    spec = spec_of(fmt, 3, (1 << 16) - 1, A8)
    kernel = tir.build(spec)
    for pattern in ("lowest", "highest"):
        oracle = Oracle.of(spec, weights(spec.weight, (spec.n, spec.k), pattern, True, rng()))
        x = np.full((2, spec.k), 127, np.float32) * np.float32([[1], [-1]])
        y = kernel(x, kernel.pack(oracle.weight))
        np.testing.assert_array_equal(y, (x.astype(np.float64) @ oracle.values.T).astype(np.float32))


@needs_tvm
@pytest.mark.parametrize("fmt", ["u8, f32 per *", "u7, f32 per 32", "nf4, f32 per 32"])
def test_low_bytes_of_minus_128(fmt: str) -> None:
    """128 is 256 - 128: of 16-bit activations the low byte alone reaches -128."""
    spec = spec_of(fmt, 17, 96, A16)
    kernel = tir.build(spec)
    oracle = Oracle.of(spec, weights(spec.weight, (spec.n, spec.k), "highest", True, rng()))
    for size in (128, -128, 32384, -32384):
        x = np.full((1, spec.k), size, np.float32)
        x[0, 0] = 32639
        oracle.compare(x, None, kernel(x, kernel.pack(oracle.weight)), f"{fmt} {size}")


@needs_tvm
@each_activation
def test_activations_of_every_size(activation: Activation) -> None:
    kernel = tir.build(spec_of("i4, f32 per 32", 17, 100, activation), SCHEDULE)
    oracle = Oracle.of(kernel.spec, weights(kernel.spec.weight, (17, 100), "random", False, rng()))
    packed, base = kernel.pack(oracle.weight), rng().standard_normal((3, 100)).astype(np.float32)
    base[1, 40:] = 0
    for size in (1e-45, 1e-40, 1e-38, 1e-36, 1e-34, 1e-30, 1.0, 1e30, 1e36):
        x = base * np.float32(size)
        step = np.abs(x).max(axis=1, keepdims=True) / activation.limit + 2.0**-126
        error = np.abs(kernel(x, packed) - x.astype(np.float64) @ oracle.values.T)
        assert (error <= step * np.abs(oracle.values).sum(axis=1)).all(), size


@needs_tvm
@each_activation
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_rows_that_are_not_finite(odd: float, activation: Activation, dtype: str) -> None:
    kernel = tir.build(spec_of("i4, f32 per 32", 17, 100, replace(activation, dtype=dtype)), SCHEDULE)
    packed = kernel.pack(weights(kernel.spec.weight, (17, 100), "random", False, rng()))
    for m in (1, 2, 5):
        for k in (0, 15, 16, 50, 99):
            x = read_as(rng().standard_normal((m, 100)), dtype)
            wanted = kernel(x, packed)
            x[m // 2, k] = odd
            y = kernel(x, packed)
            assert not np.isfinite(y[m // 2]).any()
            others = np.arange(m) != m // 2
            np.testing.assert_array_equal(y[others], wanted[others])


@needs_tvm
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "e8m0", "e4m3"])
def test_every_scale_is_read_as_it_is(dtype: str) -> None:
    """Zeros, denormal numbers, the smallest and the largest: a scale for each row, times a product of 1."""
    held = {"f32": np.uint32, "f16": np.uint16, "bf16": np.uint16, "e8m0": np.uint8, "e4m3": np.uint8}[dtype]
    count = 256 if held == np.uint8 else 65536 if held == np.uint16 else 1024
    spec = spec_of(f"i8, {dtype} per *", count, 4, A8)
    kernel = tir.build(spec)
    weight = weights(spec.weight, (count, 4), "random", True, rng())
    everything = np.linspace(0, np.iinfo(held).max, count).astype(held)
    scale = everything.view(weight.scale.dtype).reshape(count, 1)
    scale[~np.isfinite(scale.astype(np.float32))] = 0 if dtype != "e8m0" else 1
    codes = np.broadcast_to(np.int8([[1, 0, 0, 0]]), (count, 4))
    y = kernel(np.full((1, 4), 127, np.float32), kernel.pack(replace(weight, parts={"codes": codes, "scale": scale})))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y[0], scale[:, 0].astype(np.float32) * np.float32(127))


@needs_tvm
@pytest.mark.parametrize("broken", ["order", "offset", "nibbles"])
def test_the_oracle_sees_what_goes_wrong(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken == "order":
        monkeypatch.setattr(emit_activations, "_FOURS", (0, 1, 2, 3))
    if broken == "offset":
        monkeypatch.setattr(LinearSpec, "offset", 7)
    if broken == "nibbles":
        right = Vectors.field
        monkeypatch.setattr(Vectors, "field", lambda v, word, shift, low, width: right(v, word, 4 - shift, low, width))
    case = Case("i4, f16 per 32", 33, 100, A8, "portable", SCHEDULE)
    with pytest.raises(AssertionError):
        check(case, tir.build(case.spec, case.schedule), rows=(1,))


# Packed weights and calls


@needs_tvm
@pytest.mark.parametrize("schedule", [Schedule(1), Schedule(2), Schedule(4, unpack="dense"), Schedule(unpack="planes")])
def test_both_forms_read_the_same_bytes(schedule: Schedule) -> None:
    case = Case("u4, u6 per 32, f16 per 128, minus u6 per 32 by f16 per 128", 83, 520, A16, "portable", schedule)
    oracle = Oracle.of(case.spec, weights(case.spec.weight, (83, 520), "random", True, rng()))
    kernel = tir.build(case.spec, schedule)
    packed = kernel.pack(oracle.weight)
    x = rng().standard_normal((5, 520)).astype(np.float32)
    oracle.compare(x, None, kernel(x, packed), str(case))
    if schedule.unpack != "dense":
        c = linear.build(case.spec, isa.named("portable"), schedule)
        np.testing.assert_array_equal(c.pack(oracle.weight).data, packed.data)
        oracle.compare(x, None, c(x, packed), str(case))


@pytest.mark.parametrize("unpack", ["split", "planes", "dense"])
@pytest.mark.parametrize("bits", range(1, 8))
def test_places_are_those_of_the_storage(bits: int, unpack: str) -> None:
    """The layout and the sizes of the storage tell the same: neither is derived from the other."""
    spec = spec_of(f"u{bits}, u6 per 32, f16 per 128, minus u6 per 32 by f16 per 128", 83, 520, A8)
    s = spec.storage(Schedule(2, unpack=unpack))
    places = Places(spec, s)
    assert places.block == s.block_bytes
    assert places.stride(0, s.group) == s.group_bytes
    assert places.stride(0, s.group * s.groups) == s.super_bytes
    assert places.stride(0, s.cell.columns) == s.vectors * s.cell.bytes
    assert places.stride(16, 0) == s.cell.bytes
    assert [places.level(place, 0) for place in (*s.inner, *s.outer)] == [p.offset for p in (*s.inner, *s.outer)]


@needs_tvm
def test_threads_do_not_change_a_bit() -> None:
    kernel = tir.build(spec_of("i4, f32 per 32", 260, 100, A16G))
    packed = kernel.pack(weights(kernel.spec.weight, (260, 100), "random", False, rng()))
    for m in (0, 1, 4, 33):
        x = rng().standard_normal((m, 100)).astype(np.float32)
        y = kernel(x, packed)
        assert y.shape == (m, 260)
        np.testing.assert_array_equal(y, kernel(x, packed, threads=CORES))


@needs_tvm
def test_buffers_of_the_caller() -> None:
    kernel = tir.build(spec_of("i4, f32 per 32", 17, 100, A8), SCHEDULE)
    packed = kernel.pack(weights(kernel.spec.weight, (17, 100), "random", False, rng()))
    x, wide = rng().standard_normal((5, 100)).astype(np.float32), np.full((7, 17), np.float32(5))
    x.flags.writeable = False
    assert kernel(x, packed, out=wide[1:6]).base is wide
    np.testing.assert_array_equal(wide[1:6], kernel(x, packed))
    assert (wide[[0, 6]] == 5).all()
    for arguments in ({"threads": 0}, {"threads": CORES + 1}, {"bias": np.zeros(16, np.float32)}, {"out": wide[:5].T}):
        with pytest.raises(BadInput) as refused:
            kernel(x, packed, **arguments)  # pyright: ignore[reportArgumentType]
        assert refused.value.hint


def before_a_wall(array: np.ndarray, alignment: int) -> np.ndarray:
    """The same numbers in memory that ends where reading is forbidden, or up to an alignment before."""
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    memory = np.frombuffer(mmap.mmap(-1, size + page), np.uint8)
    address = memory.ctypes.data
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + size), ctypes.c_size_t(page), 0) == 0
    first = (size - array.nbytes) // alignment * alignment
    found = memory[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    found[...] = array
    return found


@needs_tvm
@pytest.mark.skipif(sys.platform != "linux", reason="mprotect")
@pytest.mark.parametrize("unpack", ["split", "dense", "planes"])
@pytest.mark.parametrize("bits", [1, 3, 4, 5, 7])
def test_nothing_is_read_behind_a_buffer(bits: int, unpack: str) -> None:
    """A process that does so ends here. Codes alone are last in a record without levels."""
    fmt = "u5, f32 per tensor" if bits == 5 else f"u{bits}, f16 per 32"
    spec = spec_of(fmt, 35, 96, A8)
    kernel = tir.build(spec, Schedule(2 if bits == 3 else 1, unpack=unpack, tile=2))
    oracle = Oracle.of(spec, weights(spec.weight, (35, 96), "random", True, rng()))
    packed = kernel.pack(oracle.weight)
    walled = Packed(before_a_wall(packed.data, 64), packed.alpha)
    x, bias = before_a_wall(np.ones((3, 96), np.float32), 4), before_a_wall(np.ones(35, np.float32), 4)
    y = before_a_wall(np.zeros((3, 35), np.float32), 4)
    kernel(x, walled, bias, out=y)
    oracle.compare(x, bias, y, fmt)


# Which form is taken


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCC_CC", "a-compiler-that-nobody-has")
    monkeypatch.setattr(compile, "compiler", compile.compiler.__wrapped__)
    monkeypatch.setattr(compile, "compiler_version", compile.compiler_version.__wrapped__)


@pytest.mark.filterwarnings("error")
def test_c_is_taken_where_there_is_a_compiler() -> None:
    kernel = tir.kernel_for(spec_of("i4, f32 per 32", 17, 100, A8), isa.named("portable"), Schedule(tile=1))
    assert not isinstance(kernel, TirKernel)


@needs_tvm
@pytest.mark.usefixtures("no_compiler")
def test_tir_is_taken_where_there_is_no_compiler() -> None:
    spec = spec_of("i4, f32 per 32", 17, 100, A8)
    with pytest.warns(UserWarning, match="portable TIR form: no C compiler was found"):
        kernel = tir.kernel_for(spec)
    assert isinstance(kernel, TirKernel) and kernel.form == "portable TIR" and "product" in kernel.source
    check(Case("i4, f32 per 32", 17, 100, A8, "portable"), kernel)


@pytest.mark.usefixtures("no_compiler")
def test_neither_a_compiler_nor_tvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "tvm", toolchain.tvm.__wrapped__)
    monkeypatch.setattr(tir, "tvm", toolchain.tvm)
    monkeypatch.setitem(sys.modules, "tvm", None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(MissingExtra, match="no C compiler called 'a-compiler-that-nobody-has'") as missing:
        tir.kernel_for(spec_of("i4, f32 per 32", 17, 100, A8))
    assert "apt install gcc" in missing.value.hint and "pip install 'qcc[tvm]'" in missing.value.hint
    with pytest.raises(MissingExtra, match="needs TVM"):
        tir.build(spec_of("i4, f32 per 32", 17, 100, A8))


@needs_tvm
def test_processors_by_name() -> None:
    spec = spec_of("i4, f32 per 32", 17, 100, A8)
    with pytest.raises(BadInput, match="LLVM knows no processor 'z80'") as refused:
        tir.build(spec, cpu="z80")
    assert "generic" in refused.value.hint
    check(Case("i4, f32 per 32", 17, 100, A8, "portable"), tir.build(spec, cpu="x86-64"), rows=(1, 3))


@needs_tvm
def test_what_has_no_c_form_has_no_tir_form() -> None:
    with pytest.raises(NotSupported, match="multiples of 4"):
        tir.build(spec_of("i4, f16 per 6", 16, 96, A8))


@needs_tvm
def test_torch_stays_out() -> None:
    """It would take longer to import than TVM itself; afterwards it can be imported as ever."""
    code = (
        "import sys; from qcc.backends.tvm.toolchain import tvm; tvm(); assert 'torch' not in sys.modules; "
        "import importlib.util; importlib.util.find_spec('torch')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
