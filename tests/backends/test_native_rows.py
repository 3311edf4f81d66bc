"""Row kernels against the same expressions in float64, on random and extreme numbers, and QuantizeLinear to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcc.backends.native import byte_table, compile, isa, linear, rows
from qcc.backends.native.emit_rows import RowsText
from qcc.backends.native.linear_spec import Activation, LinearSpec, Schedule
from qcc.backends.native.rows import RowsKernel
from qcc.backends.native.rows_expression import OPS, Node, call, column, parse, row, single, tensor
from qcc.backends.native.rows_spec import RowsSpec, codes, rows_for
from qcc.ir import target
from qcc.ir.format import Format
from tests.backends.native_oracle import host_isas
from tests.backends.rows_oracle import NUMPY, close, exact, random_inputs

BEST = host_isas()[0]
CORES = target.load("cpu").cores
HEADERS = list({isa.named(name).header: name for name in reversed(host_isas())}.values())
"""The best instruction set of this host for each vocabulary of vectors."""


def check(kernel: RowsKernel, m: int, seed: int = 0, scale: float = 1.0) -> None:
    """Every result within its tolerance, codes within one and mostly the same; the same bits with two threads."""
    inputs = random_inputs(kernel.spec, m, seed, scale)
    results = kernel(inputs)
    for output, found in zip(kernel.spec.outputs, results, strict=True):
        wanted = exact(output.value, inputs, (m, kernel.spec.k))
        if output.form == "f32":
            close(found, wanted, str(output))
            continue
        assert output.scale is not None
        low, high = (0, 255) if output.form == "u8" else (-128, 127)
        code = np.clip(np.rint(wanted / exact(output.scale, inputs, wanted.shape)) + output.zero, low, high)
        assert np.abs(found - code).max(initial=0) <= 1, output
        assert (found != code).sum() <= 1 + found.size // 100, output
    for one, two in zip(results, kernel(inputs, threads=min(2, CORES)), strict=True):
        np.testing.assert_array_equal(one, two)


MANY = (
    "f32(add(x, r)); f32(layer_norm(x + r, w[k], b[k], 1e-5)); f32(rms_norm(x, w[k], 1e-6));"
    "f32(softmax(x * s[1] + r));"
    "f32(silu(x) * r); f32(gelu(x + b[k])); f32(gelu_tanh(x) * r); u8(relu(x - t[m]), s[1] * 0.1, 7);"
    "s8(hard_swish(x), 0.02, -3)"
)
"""Kernels as networks have them, all in one: five passes that share what they read."""
OTHER = (
    "f32(power(x, 3) - power(x, -2) / r); f32(clip(tanh(x) - erf(r), -0.5, 0.75));"
    "f32(select_less(x, r, exp(x), log(abs(x)))); f32(sqrt(abs(x)) * sigmoid(r)); f32(max(x, r) - min(x, w[k]));"
    "f32(round(x * 3) + t[m] / s[1]); f32(-x * row_sum(abs(r)));"
    "f32(row_max(x) - row_mean(x * r)); f32(softmax(layer_norm(gelu(x), w[k], 0, 1e-5)) * row_max(gelu(x)))"
)
SIZES = (1, 15, 16, 17, 384, 640, 2048)


@pytest.mark.parametrize(("text", "k"), [*((MANY, k) for k in SIZES), *((OTHER, k) for k in SIZES[1::2])])
def test_results_are_those_of_the_expression(text: str, k: int) -> None:
    kernel = rows.build(RowsSpec.parse(f"rows {k}: {text}"), isa.named(BEST))
    for m in (0, 1, 3, 65):
        check(kernel, m, seed=m)


@pytest.mark.parametrize("each", [h for h in HEADERS if h != BEST])
def test_results_on_other_instruction_sets(each: str) -> None:
    """With a loop and a tail of 13; the portable one, which compiles slowly, with a tail of 3 and no loop."""
    text, k = (MANY, 19) if each == "portable" else (f"{MANY};{OTHER}", 77)
    check(rows.build(RowsSpec.parse(f"rows {k}: {text}"), isa.named(each)), 5)


def test_rows_that_are_too_long_to_keep_are_computed_again() -> None:
    spec = RowsSpec.parse("rows 40011: f32(softmax(gelu(x)))")
    assert not RowsText(spec, isa.named(BEST)).saved
    check(rows.build(spec, isa.named(BEST)), 3)


def test_what_is_kept_between_passes() -> None:
    """The exponentials of a softmax are; a difference of what is read is not."""
    text = RowsText(RowsSpec.parse("rows 64: f32(softmax(x - r))"), isa.named(BEST))
    assert [node.op for node in text.saved] == ["exp"]
    assert text.passes == 3
    assert not RowsText(RowsSpec.parse("rows 64: f32(layer_norm(x, w[k], b[k], 1e-5))"), isa.named(BEST)).saved


def random_tree(rng: np.random.Generator, depth: int) -> Node:
    """Operations that stay within a few units, so that errors do too."""
    leaves = [tensor("x"), tensor("y"), column("w"), row("t"), single("s")]
    if depth == 0:
        return leaves[rng.integers(len(leaves))]
    op = rng.choice(
        ["add", "sub", "mul", "min", "max", "tanh", "sigmoid", "gelu", "row_mean", "row_max", "select_less"]
    )
    args = [random_tree(rng, depth - 1) for _ in range(OPS[op][0])]
    if op.startswith("row_"):
        args = [args[0] + tensor("x")]
    made = call(op, *args)
    return call("tanh", made) if op in ("add", "sub", "mul") and depth % 2 else made


@pytest.mark.parametrize("seed", range(3))
def test_random_expressions(seed: int) -> None:
    """Passes, what is kept between them and fused products, in combinations that nobody thought of."""
    rng = np.random.default_rng(seed)
    trees = [random_tree(rng, 5) for _ in range(4)]
    spec = RowsSpec.of(
        int(rng.integers(1, 200)), *(tensor(n) * 0.5 + tree for n, tree in zip("xyxy", trees, strict=True))
    )
    kernel, inputs = rows.build(spec, isa.named(BEST)), random_inputs(spec, 7, seed)
    for output, found in zip(spec.outputs, kernel(inputs), strict=True):
        wanted = exact(output.value, inputs, (7, spec.k))
        if "select_less" in str(output):  # a comparison may go the other way for numbers that differ by a rounding
            assert (np.abs(found - wanted) > 1e-4).mean() < 0.01, output
        else:
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4, err_msg=str(output))


# Extreme numbers

FUNCTIONS = {"exp": 1.5e-7, "log": 1.5e-7, "erf": 1.5e-7, "tanh": 2e-7, "sigmoid": 3e-7}
"""Relative errors that `c/functions.h` promises, of results that are normal numbers."""
LEAST = 2.0**-126


@pytest.mark.parametrize("each", HEADERS)
def test_functions_are_as_exact_as_promised(each: str) -> None:
    spec = RowsSpec.of(4096, *(call(op, tensor("x")) for op in FUNCTIONS))
    every = np.arange(0, 1 << 32, 65519, dtype=np.uint64).astype(np.uint32).view(np.float32)
    dense = np.concatenate([np.linspace(-s, s, 1 << 16) for s in (0.1, 1.5, 5, 105)]).astype(np.float32)
    ends = np.array(
        [np.inf, -np.inf, np.nan, 0, -0.0, 1e-45, -1e-45, LEAST, 88.72284, 89, -87.4, -104, 3e38], np.float32
    )
    x = np.concatenate([every, dense, ends])
    x = np.pad(x, (0, -x.size % 4096)).reshape(-1, 4096)
    for (op, bound), found in zip(FUNCTIONS.items(), rows.build(spec, isa.named(each))({"x": x}), strict=True):
        with np.errstate(all="ignore"):
            wanted = NUMPY[op](x.astype(np.float64))
            narrow, size = wanted.astype(np.float32), np.maximum(np.abs(wanted), LEAST)
            error = np.abs(found - wanted) / size
        whole = np.isfinite(narrow)
        np.testing.assert_array_equal(found[~whole], narrow[~whole], op)
        normal = whole & (np.abs(wanted) >= LEAST)
        assert error[normal].max() <= bound, f"{op}: {error[normal].max()} at {x[normal][error[normal].argmax()]}"
        assert error[whole].max() <= (0.26 if op == "sigmoid" else bound), op
        if op in ("erf", "tanh"):
            assert np.abs(found - wanted)[whole].max() <= 1.2e-7


def test_normalizations_of_extreme_rows() -> None:
    """A large mean, a constant row, zeros, one number among zeros: within the conditioning of the problem."""
    k, rng = 384, np.random.default_rng(5)
    x = rng.standard_normal((6, k)).astype(np.float32)
    x[1] += 1e4
    x[2], x[3], x[4] = 3.25, 0, np.eye(1, k, 17) * 1e6
    x[5] *= 1e-18
    spec = RowsSpec.parse(f"rows {k}: f32(layer_norm(x, w[k], b[k], 1e-5)); f32(rms_norm(x, w[k], 1e-5))")
    inputs = {"x": x, "w": np.linspace(-2, 2, k, dtype=np.float32), "b": np.ones(k, np.float32)}
    for output, found in zip(spec.outputs, rows.build(spec, isa.named(BEST))(inputs), strict=True):
        wanted, deviation = exact(output.value, inputs, x.shape), np.sqrt(x.astype(float).var(1) + 1e-5)
        bound = 1e-6 + 2e-7 * 2 * np.abs(x).max(1) / deviation
        assert (np.abs(found - wanted) <= bound[:, None] * (1 + np.abs(wanted))).all()


def test_infinities_and_nan_go_where_the_formula_takes_them() -> None:
    k = 19
    x = np.random.default_rng(6).standard_normal((7, k)).astype(np.float32)
    x[0, 3], x[1, 5], x[2, 18], x[3] = np.nan, np.inf, -np.inf, -np.inf
    x[4], x[5, ::2] = 1e38, -3e38
    texts = [
        "softmax(x)", "layer_norm(x, 1, 0, 1e-5)", "relu(x)", "clip(x, -1, 2)", "max(x, y)", "min(y, x)", "silu(x)",
        "gelu(x)", "gelu_tanh(x)", "hard_sigmoid(x)", "x / y", "select_less(x, y, 1, 2)", "sqrt(x)",
    ]  # fmt: skip
    spec = RowsSpec.of(k, *(parse(t) for t in texts))
    inputs = {"x": x, "y": np.roll(x, 1, 1)}
    finite = np.abs(x).max(1) < 1e30
    for each in HEADERS:
        for text, found in zip(texts, rows.build(spec, isa.named(each))(inputs), strict=True):
            wanted = exact(parse(text), inputs, x.shape)
            if text.startswith("layer_norm"):  # squares beyond float32 are beyond what is promised
                found, wanted = found[finite | ~np.isfinite(x).all(1)], wanted[finite | ~np.isfinite(x).all(1)]
            close(found, wanted, f"{each}: {text}", 3e-6)


# Where results lie


def test_halves_of_a_row_are_inputs_and_results_may_lie_on_them() -> None:
    rng = np.random.default_rng(8)
    both = rng.standard_normal((9, 2 * 50)).astype(np.float32)
    kernel = rows.build(RowsSpec.parse("rows 50: f32(silu(a) * b)"), isa.named(BEST))
    a, b = both[:, :50], both[:, 50:]
    (wanted,) = kernel({"a": a, "b": b})
    close(wanted, exact(kernel.spec.outputs[0].value, {"a": a, "b": b}, a.shape), "swiglu")
    kernel({"a": a, "b": b}, out=[a])
    np.testing.assert_array_equal(both[:, :50], wanted)


def test_a_sum_lies_on_the_input_that_a_normalization_reads() -> None:
    """Results are stored when all that they and others are made of was read."""
    kernel = rows.build(RowsSpec.parse("rows 100: f32(x + r); f32(rms_norm(x + r, w[k], 1e-6))"), isa.named(BEST))
    inputs = random_inputs(kernel.spec, 5)
    apart = kernel(inputs)
    over = kernel(inputs, out=[inputs["r"], None], threads=min(2, CORES))
    assert over[0] is inputs["r"]
    for one, two in zip(apart, over, strict=True):
        np.testing.assert_array_equal(one, two)


# Codes


@pytest.mark.parametrize("form", ["u8", "s8"])
@pytest.mark.parametrize("each", HEADERS)
def test_codes_are_those_of_onnx_runtime(each: str, form: str) -> None:
    ort = pytest.importorskip("onnxruntime")
    rng, k = np.random.default_rng(9), 193
    scale, zero = np.float32(0.014), 131 if form == "u8" else -5
    x = (rng.standard_normal((40, k)) * 2).astype(np.float32)
    x[1] = (np.arange(k, dtype=np.float32) - 90 + np.float32(0.5)) * scale
    inverse = np.float32(1) / scale
    assert (np.rint(x[1] * inverse) != np.rint(x[1] / scale)).any(), "a product with 1 / scale would do as well"
    x[2] = np.nextafter(x[1], np.float32(np.inf))
    x[3] = np.nextafter(x[1], np.float32(-np.inf))
    x[4, :9] = [np.inf, -np.inf, 3e38, -3e38, 1e-45, -0.0, 0.0, 2.2, -2.3]
    kind, numpy = (TensorProto.UINT8, np.uint8) if form == "u8" else (TensorProto.INT8, np.int8)
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape),
        helper.make_tensor_value_info("y", kind, x.shape),
    ]
    held = [numpy_helper.from_array(np.asarray(scale), "s"), numpy_helper.from_array(np.asarray(numpy(zero)), "z")]
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])], "q", ends[:1], ends[1:], held
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"x": x})
    spec = RowsSpec.of(k, codes(tensor("x"), form, float(scale), zero))
    np.testing.assert_array_equal(rows.build(spec, isa.named(each))({"x": x})[0], theirs)


@pytest.mark.parametrize(
    ("text", "activation", "k"),
    [
        ("i4, f32 per 32", Activation(8), 100),
        ("i4, f32 per 32", Activation(8, True), 96),
        ("i8, f32 per *", Activation(16), 65),
    ],
    ids=["a row", "groups", "16 bits"],
)
def test_rows_are_those_that_a_linear_kernel_prepares(text: str, activation: Activation, k: int) -> None:
    made = linear.generate(LinearSpec(33, k, Format.parse(text), activation), isa.named(BEST), Schedule(tile=1))
    spec = RowsSpec.of(k, tensor("x"), rows_for(call("rms_norm", tensor("x"), column("w"), 1e-6), made))
    assert RowsSpec.parse(str(spec)) == spec
    plain = rows.build(RowsSpec.of(k, spec.outputs[1].value), isa.named(BEST))
    inputs = random_inputs(spec, 3)
    (normal,), (_, ours) = plain(inputs), rows.build(spec, isa.named(BEST))(inputs)
    library = compile.load(compile.compile_c(made.text(), made.isa.flags))
    theirs = np.zeros_like(ours)
    library.qcc_prepare(
        normal.ctypes.data_as(compile.ctypes.c_void_p),
        3,
        theirs.ctypes.data_as(compile.ctypes.c_void_p),
        compile.ctypes.c_float(0),
        0,
    )
    used = made.workspace.totals + 4 * made.workspace.groups
    np.testing.assert_array_equal(ours[:, :used], theirs[:, :used])


@pytest.mark.parametrize("each", host_isas())
def test_tables_of_bytes(each: str) -> None:
    kernel, rng = byte_table.build(isa.named(each)), np.random.default_rng(10)
    table = rng.integers(0, 256, 256).astype(np.uint8)
    for size in (0, 1, 63, 64, 65, 300, 50001):
        x = rng.integers(0, 256, size).astype(np.uint8)
        x[: min(size, 256)] = np.arange(min(size, 256))
        wanted = table[x]
        np.testing.assert_array_equal(kernel(x, table), wanted)
        np.testing.assert_array_equal(kernel(x, table, out=x, threads=min(2, CORES)), wanted)
