"""Layouts are bijections: their inverses are exact, their bytes are the ones ONNX Runtime and VNNI loops read."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qcc.ir.errors import BadInput
from qcc.ir.layout import Digit, Dimension, Layout, lowering, pack, parse_layout, unpack
from qcc.ir.layout.steps import load, store
from tests.ir.chains import chains, random_codes

MATMUL_NBITS = "n(n0) k(k1 k0:32) -> n0 k1 k0 xor 8"
VNNI = "k(k2 k1:16 k0:4) n(n1 n0:16) -> n1 k2 k1 n0 k0"
FIELD = [
    MATMUL_NBITS,
    VNNI,
    "n(n1 n0:8) k(k3 k2:2 k1:2 k0:8) -> n1 k3 k1 n0 k0 k2",
    "k(k3 k2:2 k1:4 k0:2) n(n3 n2:4 n1:2 n0:8) -> k3 n3 n0 k1 n2 k0 n1 k2",
    "m(m4 m3:8 m2:2 m0:8) k(k2 k1:16 k0:4) bit(b:2) -> m4 k2 m3 k1 b m0 m2 k0",
    "m(m3 m2:2 m1:2 m0:8) c(c1 c0:2) -> c1 m3 m0 m2 c0 m1",
]


@settings(deadline=None)
@given(chains())
def test_parse_inverts_print(case: tuple[Layout, tuple[int, ...]]):
    layout, _ = case
    assert Layout.parse(str(layout)) == parse_layout(str(layout)) == layout
    assert eval(repr(layout)) == layout
    assert hash(Layout.parse(str(layout))) == hash(layout)


@pytest.mark.parametrize("text", FIELD)
def test_layouts_of_the_field_print_as_written(text: str):
    assert str(Layout.parse(text)) == text


def test_parse_is_free_about_spaces():
    assert Layout.parse(" n( n0 )k(k1   k0:32)->n0\nk1 k0 xor  8 ") == Layout.parse(MATMUL_NBITS)
    assert Layout.parse("n(xor) -> xor xor 3") == Layout((Dimension("n", (Digit("xor"),)),), ("xor",), 3)


def test_extents_padding_and_size_are_rounded_up_to_whole_digits():
    layout = Layout.parse(MATMUL_NBITS)
    assert layout.extents((5, 70)) == {"n0": 5, "k1": 3, "k0": 32}
    assert layout.padded_shape((5, 70)) == (5, 96)
    assert layout.size((5, 70)) == 480
    assert layout.size((5, 0)) == 0


@settings(deadline=None)
@given(chains())
def test_slots_and_padded_coordinates_are_one_to_one(case: tuple[Layout, tuple[int, ...]]):
    layout, shape = case
    slots = np.arange(layout.size(shape))
    coords = layout.inverse(slots, shape)
    np.testing.assert_array_equal(np.broadcast_to(layout.index(coords, shape), slots.shape), slots)
    grid = np.indices(layout.padded_shape(shape))
    visited = np.broadcast_to(layout.index(tuple(grid), shape), grid.shape[1:])
    np.testing.assert_array_equal(np.sort(visited.ravel()), slots)


@settings(deadline=None)
@given(chains())
def test_arrange_puts_every_code_at_its_index_and_fill_elsewhere(case: tuple[Layout, tuple[int, ...]]):
    layout, shape = case
    codes = np.arange(1, math.prod(shape) + 1).reshape(shape)
    slots = layout.arrange(codes, fill=-7)
    expected = np.full(layout.size(shape), -7)
    expected[layout.index(tuple(np.indices(shape)), shape)] = codes
    np.testing.assert_array_equal(slots, expected ^ layout.xor)
    np.testing.assert_array_equal(layout.restore(slots, shape), codes)
    np.testing.assert_array_equal(store(lowering(layout, shape), codes, -7), slots)
    np.testing.assert_array_equal(load(lowering(layout, shape), slots), codes)


def test_index_of_integers_agrees_with_index_of_arrays():
    layout = Layout.parse(VNNI)
    whole = layout.index(tuple(np.indices((70, 21))), (70, 21))
    for k, n in [(0, 0), (3, 20), (4, 16), (69, 20)]:
        assert layout.index((k, n), (70, 21)) == whole[k, n]
        assert layout.inverse(int(whole[k, n]), (70, 21)) == (k, n)


class Symbol:
    """An expression that only knows + * // %, as the expressions of a kernel compiler do."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __add__(self, other: object) -> Symbol:
        return Symbol(f"({self} + {other})")

    def __radd__(self, other: object) -> Symbol:
        return Symbol(f"({other} + {self})")

    def __mul__(self, other: int) -> Symbol:
        return Symbol(f"({self} * {other})")

    def __floordiv__(self, other: int) -> Symbol:
        return Symbol(f"({self} // {other})")

    def __mod__(self, other: int) -> Symbol:
        return Symbol(f"({self} % {other})")

    def __str__(self) -> str:
        return self.text


def test_index_and_inverse_build_symbolic_expressions():
    layout, shape = Layout.parse(VNNI), (70, 21)
    slot = str(layout.index((Symbol("k"), Symbol("n")), shape))
    k, n = map(str, layout.inverse(Symbol("slot"), shape))
    assert eval(slot, {"k": 69, "n": 20}) == layout.index((69, 20), shape)
    assert (eval(k, {"slot": 777}), eval(n, {"slot": 777})) == layout.inverse(777, shape)


@settings(deadline=None)
@given(chains(), st.integers(1, 8), st.booleans(), st.integers(0, 99))
def test_unpack_inverts_pack(case: tuple[Layout, tuple[int, ...]], bits: int, signed: bool, seed: int):
    layout, shape = case
    codes = random_codes(shape, bits, signed, seed)
    data = pack(codes, bits, layout)
    assert data.dtype == np.uint8
    assert data.size == math.ceil(layout.size(shape) * bits / 8)
    restored = unpack(data, bits, shape, layout, signed)
    assert isinstance(restored, np.ndarray)
    assert restored.dtype == codes.dtype
    assert restored.shape == shape
    assert restored.flags.c_contiguous
    np.testing.assert_array_equal(restored, codes)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_bits_lie_least_significant_first(bits: int, signed: bool):
    codes = random_codes((101,), bits, signed, seed=bits)
    stream = sum((int(code) & (1 << bits) - 1) << bits * slot for slot, code in enumerate(codes))
    data = pack(codes, bits, Layout.parse("n(n0) -> n0"))
    assert data.tobytes() == stream.to_bytes(math.ceil(101 * bits / 8), "little")


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_pack_beyond_one_chunk(bits: int):
    codes = random_codes((1009, 613), bits, True, seed=0)
    layout = Layout.parse("n(n0) k(k1 k0:32) -> k1 n0 k0")
    data = pack(codes, bits, layout)
    np.testing.assert_array_equal(unpack(data, bits, codes.shape, layout, True), codes)
    stream = np.unpackbits(data, bitorder="little").reshape(-1, bits) @ (1 << np.arange(bits))
    np.testing.assert_array_equal(stream, layout.arrange(codes).view(np.uint8) & (1 << bits) - 1)


def test_pack_reads_strided_codes_and_keeps_its_input():
    codes = random_codes((64, 10), 4, True, seed=1)
    for text, bits in [("n(n0) -> n0 xor 8", 4), ("n(n0) -> n0", 4), ("n(n0) -> n0", 8)]:
        layout, column, before = Layout.parse(text), codes[::3, 2], codes.copy()
        data = pack(column, bits, layout)
        np.testing.assert_array_equal(data, pack(column.copy(), bits, layout))
        stored = data.copy()
        unpack(data, bits, column.shape, layout, True)[:] = 0
        np.testing.assert_array_equal(data, stored)
        data[:] = 0
        np.testing.assert_array_equal(codes, before)


def test_xor_stores_signed_codes_with_an_offset_and_padding_decodes_to_fill():
    layout = Layout.parse("n(n1 n0:4) -> n1 n0 xor 8")
    codes = np.array([-8, 7, 0, -1, 3], np.int8)
    np.testing.assert_array_equal(pack(codes, 4, layout), [0xF0, 0x78, 0x8B, 0x88])
    np.testing.assert_array_equal(pack(codes, 4, layout, fill=-8), [0xF0, 0x78, 0x0B, 0x00])
    padded = unpack(pack(codes, 4, layout, fill=-8), 4, (8,), layout, True)
    np.testing.assert_array_equal(padded, [*codes, -8, -8, -8])


def test_arrange_moves_scales_too():
    scales = np.arange(15, dtype=np.float32).reshape(5, 3)
    layout = Layout.parse("n(n1 n0:4) b(b0) -> n1 b0 n0")
    np.testing.assert_array_equal(layout.arrange(scales, fill=1)[:5], [0, 3, 6, 9, 1])
    np.testing.assert_array_equal(layout.restore(layout.arrange(scales), (5, 3)), scales)


def test_vnni_matches_a_loop():
    codes = random_codes((70, 21), 8, True, seed=2)
    panels = np.zeros((2, 2, 16, 16, 4), np.int8)
    for k in range(70):
        for n in range(21):
            panels[n // 16, k // 64, k // 4 % 16, n % 16, k % 4] = codes[k, n]
    data = pack(codes, 8, Layout.parse(VNNI))
    np.testing.assert_array_equal(data, panels.view(np.uint8).ravel())
    swapped = pack(codes, 8, Layout.parse("k(k2 k1:16 k0:4) n(n1 n0:16) -> n1 k2 k1 k0 n0"))
    assert not np.array_equal(data, swapped)


class MatMulNBits:
    """ONNX Runtime's own reading of packed codes: y = x @ ((codes - zero points) * scales).T for 5 rows of 70."""

    n, k, block, blocks = 5, 70, 32, 3

    def __init__(self, bits: int) -> None:
        rng = np.random.default_rng(bits)
        self.bits = bits
        self.x = rng.standard_normal((3, self.k)).astype(np.float32)
        self.scales = rng.uniform(0.5, 2, (self.n, self.blocks)).astype(np.float32)

    def run(self, data: NDArray[np.uint8], zeros: NDArray[np.uint8] | None = None) -> NDArray[np.float32]:
        blob = data.reshape(self.n, self.blocks, self.block * self.bits // 8)
        initializers: dict[str, NDArray[np.generic]] = {"data": blob, "scales": self.scales}
        if zeros is not None:
            initializers["zeros"] = zeros.reshape(self.n, -1)
        node = helper.make_node(
            "MatMulNBits",
            ["x", *initializers],
            ["y"],
            domain="com.microsoft",
            N=self.n,
            K=self.k,
            bits=self.bits,
            block_size=self.block,
        )
        graph = helper.make_graph(
            [node],
            "oracle",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, self.k])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, self.n])],
            [onnx.numpy_helper.from_array(value, name) for name, value in initializers.items()],
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"x": self.x})[0])

    def expect(self, codes: NDArray[np.integer]) -> NDArray[np.float64]:
        """The same product in float64 for codes of [n, k] whose zero points are already subtracted."""
        weights = codes * np.repeat(self.scales.astype(np.float64), self.block, axis=1)[:, : self.k]
        return self.x.astype(np.float64) @ weights.T

    def agrees(self, y: NDArray[np.float32], codes: NDArray[np.integer]) -> bool:
        return np.allclose(y, self.expect(codes), rtol=1e-4, atol=1e-3 * (1 << self.bits))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_onnxruntime_reads_signed_codes_through_xor(bits: int):
    oracle = MatMulNBits(bits)
    codes = random_codes((oracle.n, oracle.k), bits, True, seed=3)
    layout = Layout.parse(f"n(n0) k(k1 k0:32) -> n0 k1 k0 xor {1 << bits - 1}")
    assert oracle.agrees(oracle.run(pack(codes, bits, layout)), codes)
    assert oracle.agrees(oracle.run(pack(codes, bits, layout, fill=1)), codes)


def test_onnxruntime_reads_unsigned_codes_and_packed_zero_points():
    oracle = MatMulNBits(4)
    codes = random_codes((oracle.n, oracle.k), 4, False, seed=4)
    zeros = random_codes((oracle.n, oracle.blocks), 4, False, seed=5)
    data = pack(codes, 4, Layout.parse("n(n0) k(k1 k0:32) -> n0 k1 k0"))
    y = oracle.run(data, pack(zeros, 4, Layout.parse("n(n0) b(b1 b0:2) -> n0 b1 b0")))
    assert oracle.agrees(y, codes - np.repeat(zeros.astype(int), oracle.block, axis=1)[:, : oracle.k])


@pytest.mark.parametrize(
    "mutant",
    [
        "n(n0) k(k1 k0:32) -> k1 n0 k0 xor 8",
        "n(n0) k(k1 k0:32) -> n0 k0 k1 xor 8",
        "n(n0) k(k2 k1:16 k0:2) -> n0 k2 k0 k1 xor 8",
        "n(n0) k(k1 k0:32) -> n0 k1 k0",
    ],
)
def test_onnxruntime_refutes_a_mutated_layout(mutant: str):
    oracle = MatMulNBits(4)
    codes = random_codes((oracle.n, oracle.k), 4, True, seed=6)
    assert not oracle.agrees(oracle.run(pack(codes, 4, Layout.parse(mutant))), codes)


def test_onnxruntime_refutes_exchanged_nibbles():
    oracle = MatMulNBits(4)
    codes = random_codes((oracle.n, oracle.k), 4, True, seed=7)
    data = pack(codes, 4, Layout.parse(MATMUL_NBITS))
    assert not oracle.agrees(oracle.run((data >> 4 | data << 4).astype(np.uint8)), codes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n(n0)", r"cannot read 'n\(n0\)'"),
        ("n(n0) k[k0] -> n0 k0", r"cannot read 'k\[k0\]'"),
        ("n(n0) k(k1 k0:x) -> n0 k1 k0", r"cannot read 'k\(k1 k0:x\)'"),
        ("n(n0) k(k1 k0:-2) -> n0 k1 k0", r"cannot read 'k\(k1 k0:-2\)'"),
        ("n(n1 n0:4 n0:2) -> n1 n0", "digit n0 stands 2 times"),
        ("n(n0) -> n0 n0", "on the right, digit n0 stands 2 times"),
        ("n(n0) n(k0) -> n0 k0", "dimension n stands 2 times"),
        ("n(n0) k(k1 k0:32) -> n0 k1", "digit k0 is missing on the right"),
        ("n(n0) -> n0 k7", "digit k7 on the right"),
        ("n(n1 n0:0) -> n1 n0", "digit n0 has radix 0"),
        ("n(n1 n0) -> n1 n0", "digit n0 has no radix"),
        ("n() -> ", "dimension n has no digits"),
        ("n(0n) -> 0n", "digit '0n' is not a name"),
        ("n(n0) -> n0 xor 256", "xor 256"),
    ],
)
def test_a_layout_that_is_no_bijection_is_refused(text: str, message: str):
    with pytest.raises(BadInput, match=message):
        Layout.parse(text)


def test_shapes_that_do_not_fit_are_refused():
    layout = Layout.parse("n(n1:2 n0:8) k(k0) -> n1 n0 k0")
    assert layout.extents((16, 3)) == {"n1": 2, "n0": 8, "k0": 3}
    with pytest.raises(BadInput, match=r"dimension n has extent 15, but `n\(n1:2 n0:8\)` holds exactly 16"):
        layout.extents((15, 3))
    with pytest.raises(BadInput, match=r"shape \(16,\) has rank 1"):
        layout.size((16,))
    with pytest.raises(BadInput, match=r"dimension k .* extent -1"):
        layout.size((16, -1))
    with pytest.raises(BadInput, match="47 slots"):
        layout.restore(np.zeros(47, np.uint8), (16, 3))


def test_codes_that_do_not_fit_the_bits_are_refused_by_place():
    layout = Layout.parse(MATMUL_NBITS)
    codes = np.zeros((5, 70), np.int8)
    codes[3, 2] = 8
    with pytest.raises(BadInput, match=r"code 8 at \(3, 2\) does not fit 4 signed bits \(-8\.\.7\)"):
        pack(codes, 4, layout)
    codes[3, 2], codes[4, 69] = 0, -9
    with pytest.raises(BadInput, match=r"code -9 at \(4, 69\)"):
        pack(codes, 4, layout)
    with pytest.raises(BadInput, match=r"code 16 at \(0, 0\) does not fit 4 unsigned bits \(0\.\.15\)"):
        pack(np.full((1, 1), 16, np.uint8), 4, layout)
    with pytest.raises(BadInput, match="fill 16"):
        pack(np.zeros((1, 1), np.uint8), 4, layout, fill=16)
    with pytest.raises(BadInput, match=r"xor 8 .* 2 bits"):
        pack(np.zeros((1, 1), np.uint8), 2, layout)
    with pytest.raises(BadInput, match="9 bits"):
        pack(np.zeros((1, 1), np.uint8), 9, layout)
    with pytest.raises(BadInput, match="int8 or uint8, not int64"):
        pack(np.zeros((1, 1), np.int64), 4, layout)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match="takes 16 bytes"):
        unpack(np.zeros(15, np.uint8), 4, (1, 32), layout, True)
    with pytest.raises(BadInput, match="integer codes"):
        layout.arrange(np.zeros((1, 1), np.float32))
