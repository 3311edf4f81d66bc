"""Attention kernels under faults: in their text, in their memory, and in what they are called with."""

from __future__ import annotations

import ctypes
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qcc.backends.native import attention, compile, isa
from qcc.backends.native.attention import AttentionKernel, Cache
from qcc.backends.native.attention_spec import AttentionSchedule, AttentionSpec
from qcc.ir.errors import BadInput, NotSupported
from tests.backends.attention_oracle import BEST, CORES, SPECS, built, check
from tests.backends.native_oracle import host_isas

MUTANTS = {
    "a query sees later keys": ("keys.high = position + 1 > 0 ? position + 1 : 0", "keys.high = length"),
    "a window is one wider": ("keys.low = position + 1 - WINDOW", "keys.low = position - WINDOW"),
    "older sums are not scaled": ("floats factor = exp_of(subtract(old, least))", "floats factor = set_floats(1.0f)"),
    "splits are not scaled": ("less = part[WIDE] - subtracted(most)", "less = 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_in_the_text_is_found(name: str) -> None:
    kernel, (old, new) = built("ragged"), MUTANTS[name]
    assert old in kernel.source
    wrong = AttentionKernel.__new__(AttentionKernel)
    text = attention.generate(kernel.spec, kernel.isa)
    source = kernel.source.replace(old, new)
    object.__setattr__(text, "text", lambda: source)
    wrong.__init__(text)
    found = 0
    for shape in ((1, 1, 300), (1, 33, 200)):
        try:
            check(wrong, shape)
        except AssertionError:
            found += 1
    assert found


MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include <sanitizer/asan_interface.h>
enum { CAPACITY = 150 };
/* Aligned to 64 bytes, with nothing behind it that the sanitizer lets be touched. */
static void *taken(size_t size) {
    uint8_t *p = 0;
    if (posix_memalign((void **)&p, 64, size + 1)) abort();
    __asan_poison_memory_region(p + size, 1);
    for (size_t i = 0; i < size; i++) p[i] = (uint8_t)(i * 7 % 61); /* small numbers, whatever they are read as */
    return p;
}
int main(void) {
    static const int cases[][3] = {{2, 1, 150}, {1, 3, 129}, {1, 50, 77}, {2, 13, 150}, {1, 1, 0}, {1, 20, 5}};
    for (int c = 0; c < 6; c++) {
        const int64_t batch = cases[c][0], n = cases[c][1], length = cases[c][2], all = batch * KV_HEADS * CAPACITY;
        int64_t *lengths = taken(8 * batch), *past = taken(8 * batch);
        for (int b = 0; b < batch; b++) lengths[b] = length - (length ? b : 0), past[b] = CAPACITY - n;
        const int64_t rows = batch * n * SIZE, wide = HEADS * SIZE, narrow = KV_HEADS * SIZE;
        const strides token = {n * wide, SIZE, wide}, few = {n * narrow, SIZE, narrow};
        const strides kv_by = {narrow * CAPACITY, CAPACITY * SIZE, SIZE}, scale_by = {KV_HEADS * CAPACITY, CAPACITY, 1};
        const strides mask_by = {HEADS * n * length, n * length, length};
        element *k = taken(all * SIZE * sizeof(element)), *v = taken(all * SIZE * sizeof(element));
        float *k_scale = CODES ? taken(4 * all) : 0, *v_scale = CODES ? taken(4 * all) : 0;
        void *mask = MASK ? taken(MASK_BYTES * batch * mask_by.batch) : 0;
        void *scratch = taken(qcc_attention_scratch(batch, n, length, 1));
        attention_call call = {taken(4 * rows * HEADS), taken(4 * rows * HEADS), k, v, k_scale, v_scale, mask, lengths,
            token, token, kv_by, scale_by, mask_by, batch, n, scratch, 1, 0};
        qcc_attention(&call);
        append_call more = {taken(4 * rows * KV_HEADS), taken(4 * rows * KV_HEADS), k, v, k_scale, v_scale,
            past, few, kv_by, scale_by, batch, n, 1, 0};
        qcc_attention_append(&more);
    }
    return 0;
}
"""


@pytest.mark.parametrize("name", ["ragged codes", "codes", "bias"])
def test_kernels_stay_in_their_buffers(name: str, tmp_path: Path) -> None:
    """With the address and undefined-behaviour sanitizers, and buffers with no slack."""
    kernel, source, program = built(name), tmp_path / "kernel.c", tmp_path / "kernel"
    source.write_text(kernel.source + MAIN)
    flags = ["-std=gnu11", "-O0", "-g1", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = [compile.compiler(), *flags, *kernel.isa.flags, "-o", str(program), str(source), "-lm"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode and "cannot find" in made.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert made.returncode == 0, made.stderr[:3000]
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    run = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert run.returncode == 0, run.stderr[:3000]


REFUSED = {
    "3 heads cannot share 2": lambda: AttentionSpec(3, 8, 2),
    "an attention of 0 heads": lambda: AttentionSpec(0, 8),
    "heads of 0": lambda: AttentionSpec(1, 0),
    "a cache of f8": lambda: AttentionSpec(1, 8, cache="f8"),
    "a mask of int": lambda: AttentionSpec(1, 8, mask="int"),
    "a window of 0": lambda: AttentionSpec(1, 8, causal=True, window=0),
    "a window of 4": lambda: AttentionSpec(1, 8, window=4),
    "a softcap of -1": lambda: AttentionSpec(1, 8, softcap=-1),
    "a scale of inf": lambda: AttentionSpec(1, 8, scale=np.inf),
    "is not for": lambda: attention.generate(SPECS["encoder"], isa.named(BEST), AttentionSchedule(9)),
}


@pytest.mark.parametrize("words", REFUSED)
def test_impossible_attentions_are_refused(words: str) -> None:
    with pytest.raises(BadInput, match=words):
        REFUSED[words]()


def test_large_heads_are_refused() -> None:
    with pytest.raises(NotSupported, match="heads of 513"):
        AttentionSpec(1, 513)


def test_arrays_that_do_not_fit_are_refused() -> None:
    kernel, coded, masked = built("encoder"), built("ragged codes"), built("encoder with padding")
    q, c = np.zeros((2, 3, 4, 32), np.float32), kernel.cache(2, 8)
    locked, codes, small = q.copy(), coded.cache(1, 8), np.zeros(64, np.uint8)
    locked.flags.writeable = False
    x, few = np.zeros((1, 4, 1, 15), np.float32), np.zeros((2, 2, 4, 16), np.float32)
    new = np.zeros((2, 3, 4, 32), np.float32)
    for words, call in {
        r"q is \[2, 3, 4, 31\]": lambda: kernel(q[..., :31], c, 8),
        "q is .* float64": lambda: kernel(q.astype(np.float64), c, 8),
        r"q is \[3, 4, 32\]": lambda: kernel(q[0], c, 8),
        "the last dimension of q": lambda: kernel(np.zeros((2, 3, 4, 64), np.float32)[..., ::2], c, 8),
        r"key is \[1, 3, 8, 32\]": lambda: kernel(q, kernel.cache(1, 8), 8),
        "key is .* int8": lambda: kernel(q, Cache(c.key.astype(np.int8), c.value), 8),
        r"value is \[2, 3, 7, 32\]": lambda: kernel(q, Cache(c.key, c.value[:, :, 1:]), 8),
        "keys and values lie": lambda: kernel(q, Cache(c.key, c.value.swapaxes(1, 2).copy().swapaxes(1, 2)), 8),
        "lengths of 9, where there is room for 0 to 8": lambda: kernel(q, c, 9),
        "lengths of -1": lambda: kernel(q, c, [8, -1]),
        r"lengths are \[3\]": lambda: kernel(q, c, [1, 2, 3]),
        "lengths are .* float64": lambda: kernel(q, c, 2.0),  # pyright: ignore[reportArgumentType]
        "out is read-only": lambda: kernel(q, c, 8, out=locked),
        r"out is \[1,": lambda: kernel(q, c, 8, out=q[:1]),
        "a mask for a kernel with none": lambda: kernel(q, c, 8, np.ones((4, 8), bool)),
        "no mask for a kernel with bool": lambda: masked(few, masked.cache(2, 8), 8),
        "mask is .* float32": lambda: masked(few, masked.cache(2, 8), 8, np.ones((4, 8), np.float32)),
        r"the mask is \[3, 8\]": lambda: masked(few, masked.cache(2, 8), 8, np.ones((3, 8), bool)),
        "room for 0 to 7": lambda: masked(few, masked.cache(2, 8), 8, np.ones((4, 7), bool)),
        "a cache of i8 without scales": lambda: coded(x, Cache(codes.key, codes.value), 1),
        "key_scale is": lambda: coded(x, replace(codes, key_scale=np.ones((1, 2, 7), np.float32)), 1),
        f"{CORES + 1} threads": lambda: kernel(q, c, 8, threads=CORES + 1),
        "scratch memory of 64 bytes": lambda: kernel.prepared(q, c, 8, scratch=small),
        "past of 5, where there is room for 0 to 4": lambda: kernel.append(c, new, new, 5),
        r"v is \[2, 3, 3, 32\]": lambda: kernel.append(c, new, new[:, :, 1:], 0),
        "the cache is read-only": lambda: kernel.append(Cache(locked, locked), new, new, 0),
        "a cache of -1 sequences": lambda: kernel.cache(-1, 3),
    }.items():
        with pytest.raises(BadInput, match=words):
            call()


EXP = """
void evaluate(const float *x, float *exponential, float *tangent, long count) {
    for (long i = 0; i < count; i += 16) {
        store_floats(exponential + i, exp_of(load_f32(x + i)), 16);
        store_floats(tangent + i, tanh_of(load_f32(x + i)), 16);
    }
}
"""


@pytest.mark.parametrize("name", list({isa.named(n).header: n for n in reversed(host_isas())}.values()))
def test_the_exponential_is_within_its_bound(name: str) -> None:
    """What `c/softmax.h` states: 3e-7, relative of e^x and absolute of tanh."""
    each = isa.named(name)
    headers = [(isa.C_FOLDER / file).read_text() for file in (f"attention_{each.header}", "softmax.h")]
    text = "\n".join(["typedef float element;", "#include <math.h>", "#include <stddef.h>", each.text(), *headers, EXP])
    evaluate = compile.load(compile.compile_c(text, each.flags)).evaluate
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.uniform(-87, 44, 1 << 18), rng.uniform(-1, 1, 1 << 18)]).astype(np.float32)
    y, z = np.empty_like(x), np.empty_like(x)
    evaluate(*(ctypes.c_void_p(a.ctypes.data) for a in (x, y, z)), ctypes.c_long(x.size))
    exact = x.astype(np.float64)
    assert np.abs(y / np.exp(exact) - 1).max() <= 3e-7
    assert np.abs(z - np.tanh(exact)).max() <= 3e-7
