"""Kernels by table lookup: against the oracle, bit for bit as dot products, and faults that must show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from qcc.backends.native import isa, linear, lut
from qcc.backends.native.emit_lut import LookupText
from qcc.backends.native.linear import LinearKernel
from qcc.backends.native.linear_spec import Activation, LinearSpec, Schedule, default_schedule, space
from qcc.ir import target
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.format import Format
from qcc.ir.layout import Record
from tests.backends.native_oracle import FACTORS, KINDS, Case, Oracle, check, covering, host_isas, weights

A8, A16 = Activation(8), Activation(16)
ABLE = [name for name in host_isas() if isa.named(name).header in lut.HEADERS and not isa.named(name).has("amx_tile")]
HEADERS = list({isa.named(name).header: name for name in reversed(ABLE)}.values())
"""The best instruction set of this host for each vocabulary of vectors that looks up bytes."""

LOOKUP = Schedule(lut.VECTORS, unpack="lookup", tile=1)

pytestmark = pytest.mark.skipif(not ABLE, reason="no lookup of bytes")
each_header = pytest.mark.parametrize("name", HEADERS)


def built(case: Case) -> LinearKernel:
    """The kernel of a case."""
    assert case.schedule is not None and case.schedule.unpack == "lookup"
    return case.build()


def lookup(streams: int, ahead: int) -> Schedule:
    """A schedule of lookups."""
    return replace(LOOKUP, streams=streams, prefetch=ahead)


def lookup_cases(count: int, seed: int) -> Iterator[Case]:
    """Formats of 1 to 4 bits, shapes and schedules, mixed so that pairs of them meet."""
    shape = {"g": ["8", "16", "24", "32", "128", "*"], "b": [1, 2, 3, 4], "n": [1, 63, 64, 65, 200], "isa": HEADERS}
    for f in covering({**FACTORS, **shape}, count, seed):
        span = "*" if f["g"] == "*" else 4 * int(f["g"])
        fmt = KINDS[f["kind"]].format(**f, span=span, middle=1 << (f["b"] - 1))
        activation = Activation(f["bits"], f["grouped"], f["dtype"])
        yield Case(fmt, f["n"], f["k"], activation, f["isa"], lookup(f["streams"], f["prefetch"]))


@pytest.mark.parametrize("case", list(lookup_cases(24, seed=5)) if ABLE else [], ids=str)
def test_integers(case: Case) -> None:
    exactly = check(case, built(case), rows=(1, 2, 3))
    if case.activation.bits == 8:
        assert exactly == 12, "4 patterns for 3 numbers of rows are chosen to be exact"


@pytest.mark.slow
@pytest.mark.parametrize("case", list(lookup_cases(150, seed=6)) if ABLE else [], ids=str)
def test_more_integers(case: Case) -> None:
    check(case, built(case), rows=(1, 2, 3))


@each_header
@pytest.mark.parametrize(
    "fmt",
    ["ternary, f16 per 32", "ternary, f32 per *", "binary, f16 per 128", "binary, bf16 per 8", "i1, f32 per tensor"],
)
def test_other_elements(name: str, fmt: str) -> None:
    for activation in (A8, A16):
        case = Case(fmt, 83, 300, activation, name, LOOKUP)
        check(case, built(case), rows=(1, 3))


@each_header
@pytest.mark.parametrize("fmt", ["i1, f16 per 32", "i2, f16 per 128", "u3, f16 per 32, zero u3", "i4, f32 per *"])
def test_the_bits_of_dot_products(name: str, fmt: str) -> None:
    """Not only close: the same sums are made in the same order, whatever the numbers are."""
    rng = np.random.default_rng(11)
    for activation in (A8, A16, Activation(8, True)):
        spec = LinearSpec(150, 1000, Format.parse(fmt), activation)
        weight = weights(spec.weight, (spec.n, spec.k), "random", False, rng)
        x = (rng.standard_normal((3, spec.k)) * np.exp(3 * rng.standard_normal((3, spec.k)))).astype(np.float32)
        by_dot, by_lookup = (linear.build(spec, isa.named(name), how) for how in (Schedule(tile=1), LOOKUP))
        wanted = by_dot(x, by_dot.pack(weight))
        np.testing.assert_array_equal(by_lookup(x, by_lookup.pack(weight)), wanted)


@each_header
@pytest.mark.parametrize(
    "fmt", ["u1, f32 per *", "u2, f32 per *", "u3, f32 per *", "u4, f32 per *", "u1, f32 per 2048"]
)
@pytest.mark.parametrize("low", [-128, 127], ids=["lowest", "highest"])
def test_sums_at_the_limit(name: str, fmt: str, low: int) -> None:
    """Low bytes of 16-bit activations at -128 or 127 under codes of all ones: no table and no sum is further out."""
    spec = LinearSpec(70, 2052, Format.parse(fmt), A16)
    kernel = linear.build(spec, isa.named(name), LOOKUP)
    for pattern in ("highest", "lowest", "alternating"):
        oracle = Oracle.of(spec, weights(spec.weight, (spec.n, spec.k), pattern, True, np.random.default_rng(2)))
        x = np.full((1, spec.k), 256 * 3 + low, np.float32)
        x[0, -1] = 127 * 256 + 127
        y = kernel(x, kernel.pack(oracle.weight))
        oracle.compare(x, None, y, f"{fmt}, {low}, {pattern}")
        np.testing.assert_allclose(y, x.astype(np.float64) @ oracle.values.T, rtol=1e-6)


def test_a_byte_is_two_choices() -> None:
    """Bit k of a byte is column k of 8; the planes of a cell lie behind each other, 64 rows in each."""
    spec = LinearSpec(64, 32, Format.parse("u2, f16 per 32"), A8)
    codes = np.zeros((64, 32), np.uint8)
    codes[9, 13] = 2  # row 16 * 0 + 4 * 2 + 1, column 8 * 1 + 5
    packed = spec.storage(LOOKUP).layout.pack(
        {"codes": codes, "scale": np.zeros((64, 1), np.float16)}, {"codes": 2}, (64, 32)
    )
    data = packed.reshape(-1)
    assert data.nonzero()[0].tolist() == [1 * 2 * 64 + 1 * 64 + 2 * 16 + 0 * 4 + 1]
    assert data.max() == 1 << 5


@pytest.mark.parametrize("fmt", ["i1, f16 per 32", "i3, f16 per 128", "u2, u6 per 16, f16 per 256"])
def test_no_bytes_are_wasted(fmt: str) -> None:
    spec = LinearSpec(128, 1024, Format.parse(fmt), A8)
    levels = sum(int(np.prod(v.shape_of((128, 1024)))) * (1 if v.dtype == "u6" else 2) for v in spec.levels.values())
    assert spec.storage(LOOKUP).bytes == 128 * 1024 * spec.weight.bits // 8 + levels


@pytest.mark.parametrize(
    ("fmt", "name", "reason"),
    [
        ("i5, f16 per 32", "avx2", "5 planes"),
        ("nf4, f16 per 32", "avx2", "no multiples"),
        ("i2, f16 per 4", "avx2", "multiple of 8"),
        ("i2, f16 per 32", "portable", "no bytes"),
        ("i1, f16 per 32", "amx", "avx512_vbmi"),
    ],
)
def test_what_lookups_do_not_do(fmt: str, name: str, reason: str) -> None:
    spec = LinearSpec(512, 64, Format.parse(fmt), A8)
    with pytest.raises(NotSupported, match=reason):
        linear.generate(spec, isa.named(name), LOOKUP)
    assert "lookup" not in {
        default_schedule(spec, isa.named(name)).unpack,
        *(s.unpack for s in space(spec, isa.named(name))),
    }


@pytest.mark.parametrize("other", [{"vectors": 2}, {"tile": 4}])
def test_parameters_that_lookups_do_not_have(other: dict[str, int]) -> None:
    with pytest.raises(BadInput, match="lookups with"):
        linear.generate(
            LinearSpec(64, 64, Format.parse("i1, f16 per 32"), A8), isa.named("avx2"), replace(LOOKUP, **other)
        )


@pytest.mark.parametrize(
    ("name", "of_bytes", "of_two"),
    [("avx2", [1, 2, 3], [1, 2, 3]), ("avx_vnni", [1, 3], [1]), ("avx512_vnni", [1], []), ("portable", [], [])],
)
def test_lookups_are_chosen_where_they_pay(name: str, of_bytes: list[int], of_two: list[int]) -> None:
    """Where they were faster for one row of activations, and for no weight of few rows; the space has them anyway."""
    for activation, wanted in ((A8, of_bytes), (A16, of_two)):
        for bits in range(1, 9):
            spec = LinearSpec(256, 64, Format.parse(f"i{bits}, f16 per 32"), activation)
            text = linear.generate(spec, isa.named(name))
            assert isinstance(text, LookupText) == (text.schedule.unpack == "lookup") == (bits in wanted), bits
            offered = "lookup" in {schedule.unpack for schedule in space(spec, isa.named(name))}
            assert offered == (bits <= lut.MOST_BITS and name != "portable")
            fewer = default_schedule(replace(spec, n=255), isa.named(name))
            assert fewer.unpack != "lookup"


@each_header
def test_the_default_serves_any_number_of_rows(name: str) -> None:
    """1 bit is looked up by default: one row of activations, several, more than a tile of dot products, many."""
    for n in (300, 1100):
        case = Case("i1, f16 per 32", n, 200, A8, name)
        kernel = case.build()
        assert kernel.schedule.unpack == "lookup"
        assert check(case, kernel, rows=(1, 2, 9, 40)) == 16


@each_header
def test_threads_do_not_change_a_bit(name: str) -> None:
    rng = np.random.default_rng(4)
    kernel = built(Case("i3, f16 per 32", 400, 128, A8, name, lookup(4, 0)))
    packed = kernel.pack(weights(kernel.spec.weight, (400, 128), "random", False, rng))
    for m in (0, 1, 9, 33):
        x = rng.standard_normal((m, 128)).astype(np.float32)
        np.testing.assert_array_equal(kernel(x, packed), kernel(x, packed, threads=min(2, target.load("cpu").cores)))


FAULTS: dict[str, Callable[[str], str]] = {
    "the two choices of a byte change places": lambda text: _swap(text, ", 0, 15)", ", 4, 15)"),
    "halves of a table change places": lambda text: text.replace("sums, 5)", "sums, 4)").replace(
        "sums.a, 5)", "sums.a, 4)"
    ),
    "a plane counts half": lambda text: text.replace("add_halves(sum, low, high, 1)", "add_halves(sum, low, high, 0)"),
    "tables are off by one": lambda text: text.replace("#define TABLE_BIAS 512", "#define TABLE_BIAS 511"),
    "rows change places": lambda text: _swap(text, "widen(sum, 1)", "widen(sum, 2)"),
    "a table is read for its neighbour": lambda text: text.replace(
        "lookup(field(v1, 0, 15), t + 64", "lookup(field(v1, 0, 15), t + 96"
    ),
}


def _swap(text: str, one: str, other: str) -> str:
    return text.replace(one, "\0").replace(other, one).replace("\0", other)


@each_header
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(name: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, right = Case("i2, f16 per 32", 70, 96, A8, name, LOOKUP), LookupText.text

    def wrong(text: LookupText) -> str:
        changed = FAULTS[fault](right(text))
        assert changed != right(text), "there is nothing of this kind in the text"
        return changed

    monkeypatch.setattr(LookupText, "text", wrong)
    with pytest.raises(AssertionError, match="codes"):
        check(case, built(case), rows=(1,))


def test_a_wrong_layout_is_found() -> None:
    case = Case("i2, f16 per 32", 70, 96, A8, ABLE[-1], LOOKUP)
    text = linear.generate(case.spec, isa.named(case.isa), LOOKUP)
    order = str(text.storage.layout).replace("n1 n2 n0 q0 k0", "n2 n1 n0 q0 k0")
    with pytest.raises(AssertionError, match="codes"):
        check(case, LinearKernel(replace(text, storage=replace(text.storage, layout=Record.parse(order)))), rows=(1,))
