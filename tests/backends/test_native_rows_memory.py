"""Row kernels as text and memory: what prints parses back, bad input is refused, and kernels stay in their arrays."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcc.backends.native import byte_table, compile, isa, rows
from qcc.backends.native.emit_rows import RowsText
from qcc.backends.native.rows import RowsKernel
from qcc.backends.native.rows_expression import OPS, Node, call, column, parse, row, single, tensor
from qcc.backends.native.rows_spec import Output, RowsSpec, codes
from qcc.ir import target
from qcc.ir.errors import BadInput
from tests.backends.native_oracle import host_isas
from tests.backends.rows_oracle import random_inputs

BEST = host_isas()[0]
CORES = target.load("cpu").cores


LEAVES = st.one_of(
    st.sampled_from(["x", "y"]).map(tensor),
    st.sampled_from(["w", "b"]).map(column),
    st.just(row("t")), st.just(single("s")),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda v: Node("number", value=v)),
)  # fmt: skip


@given(
    st.recursive(
        LEAVES,
        lambda inner: st.one_of(
            *(
                st.builds(lambda *args, op=op: call(op, *args), *[inner] * count)
                for op, (count, _) in OPS.items()
                if not op.startswith("row_")
            )
        ),
        max_leaves=12,
    ),
    st.integers(1, 99),
)
@settings(max_examples=60, deadline=None)
def test_kernels_print_and_parse(value: Node, k: int) -> None:
    assert parse(str(value)) == value
    outputs = [Output(tensor("x") * value), codes(call("row_sum", tensor("x") + value), "s8", single("s"), -7)]
    spec = RowsSpec.of(k, *outputs)
    assert RowsSpec.parse(str(spec)) == spec


REFUSED = {
    "rows: f32(x)": "is no row kernel", "rows 0: f32(x)": "rows of 0 columns", "rows 4:": "is no result",
    "rows 4: f32(x": "is no result", "rows 4: f16(x)": "is no result", "rows 4: f32(x, y)": "is no result",
    "rows 4: f32(cosh(x))": "'cosh'", "rows 4: f32(add(x))": "add takes 2", "rows 4: f32(x[j])": "no expression",
    "rows 4: f32(power(x, 2.5))": "power", "rows 4: f32(power(x, y))": "power", "rows 4: f32(x + 1e60)": "no finite",
    "rows 4: f32(row_sum(t[m]) + x)": "the same in all columns", "rows 4: f32(x + x[k])": "two kinds",
    "rows 4: f32(w[k])": "number of rows", "rows 4: u8(x, 0, 1)": "a scale of 0",
    "rows 4: u8(x, 1, 256)": "no zero point", "rows 4: s8(x, 1, -129)": "no zero point",
    "rows 4: f32(softmax())": "is no result",
    "rows 4: f32(__import__('os').x)": "no expression",
    "rows 4: f32(" + "-(" * 300 + "x" + ")" * 300 + ")": "rows 4|deep|no result",
    "rows 4: f32(" + "+".join("x" * 3000) + ")": "deep|no result",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_impossible_kernels_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match=REFUSED[text]):
        RowsSpec.parse(text)


def test_arrays_that_do_not_fit_are_refused() -> None:
    kernel = rows.build(RowsSpec.parse("rows 8: f32(x * w[k] + t[m]); u8(x, s[1], 0)"), isa.named(BEST))
    good = random_inputs(kernel.spec, 4)
    x, codes_ = good["x"], np.zeros((4, 8), np.uint8)
    locked, wide = np.zeros((4, 8), np.float32), np.zeros((4, 16), np.float32)
    locked.flags.writeable = False
    for words, change, out in [
        ("the inputs are", {"other": x}, ()),
        (r"x is \[4, 7\]", {"x": x[:, :7]}, ()),
        (r"w is \[8\] float64", {"w": good["w"].astype(np.float64)}, ()),
        (r"t is \[3\]", {"t": good["t"][:3]}, ()),
        (r"s is \[\]", {"s": np.float32(1).reshape(())}, ()),
        ("x has rows that are not contiguous", {"x": wide[:, ::2]}, ()),
        ("w has rows that are not contiguous", {"w": wide.reshape(-1)[:16:2]}, ()),
        ("1 arrays for 2 results", {}, [None]),
        (r"a result is \[4, 8\] uint8", {}, [codes_, None]),
        ("a result is read-only", {}, [locked, None]),
        ("the rows of a result overlap", {}, [np.lib.stride_tricks.as_strided(wide, (4, 8), (16, 4)), None]),
        ("result 0 lies over another array", {"x": wide[:, :8]}, [wide[:, 4:12], None]),
        ("result 1 lies over another array", {"x": wide[:, :8]}, [None, wide.view(np.uint8)[:, :8]]),
    ]:
        with pytest.raises(BadInput, match=words):
            kernel(good | change, out=out)
    for threads in (0, CORES + 1):
        with pytest.raises(BadInput, match=f"{threads} threads"):
            kernel(good, threads=threads)
    table, x8 = np.zeros(256, np.uint8), np.zeros(100, np.uint8)
    kernel8 = byte_table.build(isa.named(BEST))
    for words, refused in {
        "the table is": lambda: kernel8(x8, table[:255]),
        "x is .* int8": lambda: kernel8(x8.view(np.int8), table),
        "out is": lambda: kernel8(x8, table, out=table),
        "out lies over x": lambda: kernel8(x8[1:], table, out=x8[:-1]),
    }.items():
        with pytest.raises(BadInput, match=words):
            refused()


def test_a_kernel_is_a_function_of_plain_arguments() -> None:
    """As a compiled network calls it: pointers, the number of rows, and steps, of rows that lie apart too."""
    spec = RowsSpec.parse("rows 21: f32(x * w[k] - t[m]); s8(y, s[1], 3)")
    text = RowsText(spec, isa.named(BEST))
    linked = "int qcc_threads = 1;\nvoid qcc_launch(task_fn t, void *d, long n, long c, int k) { t(d, 0, n, 0); }\n"
    library = compile.load(
        compile.compile_c(f"{text.text()}{text.function('multiply_rows')}\n{linked}", text.isa.flags)
    )
    inputs = random_inputs(spec, 4)
    inputs["y"] = np.random.default_rng(1).standard_normal((4, 50)).astype(np.float32)[:, 7:28]
    y, z = np.zeros((4, 30), np.float32), np.zeros((4, 21), np.int8)
    pointers = [inputs[node.name].ctypes.data for node in spec.inputs] + [y.ctypes.data, z.ctypes.data]
    assert [node.name for node in spec.inputs] == ["x", "w", "t", "y", "s"]
    library.multiply_rows(*map(ctypes.c_void_p, pointers), *map(ctypes.c_int64, (4, 21, 50, 30, 21)))
    wanted = rows.build(spec, text.isa)(inputs)
    np.testing.assert_array_equal(y[:, :21], wanted[0])
    np.testing.assert_array_equal(z, wanted[1])
    assert not y[:, 21:].any()


# Memory

MAIN = """
#include <stdlib.h>
#include <sanitizer/asan_interface.h>
static void *taken(size_t size) {
    void *p = malloc(size); /* behind which the sanitizer lets nothing be touched */
    for (size_t i = 0; i < size / 4; i++) ((float *)p)[i] = (float)(i % 13) - 6.0f;
    return p;
}
int main(int count, char **names) {
    const float *inputs[INPUTS];
    void *outputs[OUTPUTS];
    long steps[INPUTS + OUTPUTS];
    for (int i = 0; i < INPUTS; i++) inputs[i] = taken(INPUT_BYTES[i] - 4 * (count - 1)), steps[i] = STEP[i];
    for (int i = 0; i < OUTPUTS; i++) outputs[i] = taken(4 * ROWS * K), steps[INPUTS + i] = K;
    qcc_rows(inputs, steps, outputs, steps + INPUTS, ROWS, 1, 0);
    return 0;
}
"""


def sanitized(kernel: RowsKernel, folder: Path) -> Path:
    """The kernel as a program under the sanitizers; inputs end as many bytes too early as it has arguments."""
    source, program, spec = folder / "kernel.c", folder / "kernel", kernel.spec
    sizes = {"tensor": 3 * spec.k, "column": spec.k, "row": 3, "single": 1}
    steps = {"tensor": spec.k, "row": 1}
    constants = f"enum {{ ROWS = 3, INPUTS = {len(spec.inputs)}, OUTPUTS = {len(spec.outputs)} }};\n"
    constants += f"const long INPUT_BYTES[] = {{{', '.join(str(4 * sizes[n.op]) for n in spec.inputs)}}};\n"
    constants += f"const long STEP[] = {{{', '.join(str(steps.get(n.op, 0)) for n in spec.inputs)}}};\n"
    source.write_text(kernel.source + constants + MAIN)
    flags = ["-std=gnu11", "-O1", "-g1", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = [compile.compiler(), *flags, *kernel.isa.flags, "-o", str(program), str(source), "-lm"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode and "cannot find" in made.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert made.returncode == 0, made.stderr[:3000]
    return program


def ran(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    """What became of the program."""
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


@pytest.mark.parametrize("each", ["avx2", "portable"])
def test_kernels_stay_in_their_arrays(each: str, tmp_path: Path) -> None:
    """With the address and undefined-behaviour sanitizers. AVX-512 masks its loads, which they do not watch."""
    if each not in host_isas():
        pytest.skip(f"no {each}")
    outputs = "f32(x * s[1] * row_sum(sqrt(abs(x))) + b[k]); s8(x - t[m], 0.1, 3)"
    kernel = rows.build(RowsSpec.parse(f"rows 67: {outputs}"), isa.named(each))
    program = sanitized(kernel, tmp_path)
    run = ran([program])
    assert run.returncode == 0, run.stderr[:3000]
    assert "AddressSanitizer" in ran([program, "shorter"]).stderr, "a number too few was not noticed"
