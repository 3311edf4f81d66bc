"""The pool of threads: every task runs once, callers wait their turn, and a child of fork starts its own threads."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qcc.backends.native import isa, pool
from qcc.backends.native.compile import compiler
from qcc.ir import target
from tests.backends.native_oracle import Activation, Case, Schedule, host_isas, weights

TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_long, ctypes.c_long, ctypes.c_int)
POOL = isa.C_FOLDER / "pool.c"

threaded = pytest.mark.skipif(target.load("cpu").cores < 2, reason="one core")


def launch(task: Callable[..., None], count: int, chunk: int, threads: int) -> None:
    """`qcc_launch` with a task in Python, which takes its turn at the interpreter."""
    run = ctypes.CFUNCTYPE(None, TASK, ctypes.c_void_p, *[ctypes.c_long] * 2, ctypes.c_int)(pool.launcher())
    run(TASK(task), None, count, chunk, threads)


@pytest.mark.parametrize("threads", [-1, 0, 1, 2, 3, 8])
@pytest.mark.parametrize(("count", "chunk"), [(0, 1), (1, 1), (7, 1), (7, 3), (7, 7), (7, 100), (1000, 13)])
def test_every_task_runs_once(count: int, chunk: int, threads: int) -> None:
    times, seen = np.zeros(count, np.int64), set[int]()

    def task(data: int, first: int, last: int, thread: int) -> None:
        assert 0 <= first < last <= count
        times[first:last] += 1
        seen.add(thread)

    launch(task, count, chunk, threads)
    assert (times == 1).all()
    assert seen <= set(range(max(1, threads)))


@threaded
def test_threads_work_at_the_same_time() -> None:
    """Two tasks that wait for each other: one thread alone would never finish them."""
    meeting = threading.Barrier(2, timeout=30)
    launch(lambda *_: meeting.wait() and None, 2, 1, 2)
    assert not meeting.broken


def test_threads_that_slept_wake_up() -> None:
    for _ in range(3):
        time.sleep(0.05)  # far longer than they spin
        test_every_task_runs_once(100, 1, 2)


def test_callers_wait_their_turn() -> None:
    """Many launches from many threads of Python, each with a result of its own."""
    kernel = Case("i4, f32 per 32", 130, 64, Activation(), host_isas()[0], Schedule(tile=1)).build()
    rng = np.random.default_rng(1)
    packed = kernel.pack(weights(kernel.spec.weight, (130, 64), "random", False, rng))
    inputs = [rng.standard_normal((m, 64)).astype(np.float32) for m in (1, 1, 2, 9, 9, 17)]
    wanted = [kernel(x, packed) for x in inputs]
    threads = min(2, target.load("cpu").cores)
    wrong: list[str] = []

    def call(x: np.ndarray, y: np.ndarray) -> None:
        try:
            for _ in range(50):
                np.testing.assert_array_equal(kernel(x, packed, threads=threads), y)
        except BaseException as error:  # noqa: BLE001 - of a thread, to be seen by the test
            wrong.append(repr(error))

    callers = [threading.Thread(target=call, args=pair) for pair in zip(inputs, wanted, strict=True)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not wrong and not any(caller.is_alive() for caller in callers)


FORKS = 40


@threaded
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_of_fork_starts_its_own_threads() -> None:
    """Threads of the parent are not there, awake or asleep; nor is what they were told."""
    test_every_task_runs_once(100, 1, 2)
    for turn in range(FORKS):
        if turn % 2:
            time.sleep(0.002)  # the parent's threads sleep
        child = os.fork()
        if not child:
            signal.alarm(20)
            os._exit(child_fails())
        _, status = os.waitpid(child, 0)
        assert status == 0, f"turn {turn}: {'signal' if os.WIFSIGNALED(status) else 'exit'} {status}"
        test_every_task_runs_once(100, 1, 2)


def child_fails() -> int:
    try:
        for _ in range(5):
            test_every_task_runs_once(100, 1, 2)
            test_every_task_runs_once(100, 1, 3)
    except BaseException:  # noqa: BLE001 - the child must not run on as a second pytest
        return 1
    return 0


ADDING = """
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
static void add(void *data, long first, long last, int thread) {
    (void)thread;
    for (long i = first; i < last; i++) ((int *)data)[i]++;
}
"""

TWO_CALLERS = """
static void *caller(void *rounds) {
    int *times = calloc(64, sizeof(int));
    for (long r = 0; r < (long)rounds; r++) {
        qcc_launch(add, times, 1 + r % 64, 1 + r % 3, 1 + r % 4);
        for (long i = 0; i < 64; i++) {
            if (times[i] != (i < 1 + r % 64)) abort();
            times[i] = 0;
        }
    }
    free(times);
    return 0;
}
int main(void) {
    pthread_t other;
    pthread_create(&other, 0, caller, (void *)500l);
    caller((void *)500l);
    pthread_join(other, 0);
    puts("done");
    return 0;
}
"""


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_the_pool_under_a_sanitizer(sanitizer: str, tmp_path: Path) -> None:
    """Two callers with one to four threads: what one call wrote, its caller reads without a lock of its own."""
    program = compiled(POOL.read_text() + ADDING + TWO_CALLERS, tmp_path, sanitizer)
    run = sanitized([program])
    if "unexpected memory mapping" in run.stderr:
        run = sanitized(["setarch", "-R", program])
    assert run.returncode == 0 and run.stdout == "done\n", run.stderr[-3000:]


FORKS_WHILE_SLOW = """
static void add_slowly(void *data, long first, long last, int thread) {
    if (thread) usleep(random() % 2000);
    add(data, first, last, thread);
}
int main(void) {
    int wrong = 0;
    for (int r = 0; r < 30 && !wrong; r++) {
        int times[64] = {0};
        qcc_launch(add, times, 64, 1, 4);
        const pid_t child = fork();
        if (!child) {
            alarm(5);
            slow = 1;
            srandom(r);
            for (int i = 1; i < 6; i++) {
                qcc_launch(add_slowly, times, 64, 1, 4);
                for (int j = 0; j < 64; j++) wrong += times[j] != 1 + i;
            }
            _exit(wrong != 0);
        }
        int status;
        waitpid(child, &status, 0);
        wrong = status;
    }
    puts(wrong ? "wrong" : "done");
    return wrong != 0;
}
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_threads_of_a_child_take_no_part_in_what_its_parent_called(tmp_path: Path) -> None:
    """What a thread sees when it starts may be the last call of the parent: pauses make it see that, and be late.

    So does a thread that has taken a part of a call, and one that comes when another call has begun.
    """
    text = POOL.read_text()
    for place, pause in (
        (
            "        seen = work(thread);\n",
            "        if (slow) usleep(random() % 3000);\n        seen = work(thread);\n",
        ),
        (
            "        const long first = (long)NEXT",
            "        if (slow && thread) usleep(300);\n        const long first = (long)NEXT",
        ),
        ("        if (failed) break;\n", "        if (failed) break;\n        if (slow) usleep(1000);\n"),
        ("#include <stdint.h>\n", "#include <stdint.h>\n#include <stdlib.h>\n#include <unistd.h>\nstatic int slow;\n"),
    ):
        assert text.count(place) == 1
        text = text.replace(place, pause)
    run = sanitized([compiled(text + ADDING + FORKS_WHILE_SLOW, tmp_path)])
    assert run.stdout == "done\n"


def compiled(text: str, folder: Path, sanitizer: str = "") -> Path:
    """A program, with a sanitizer if one is named."""
    source, program = folder / "program.c", folder / "program"
    source.write_text(text)
    flags = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"] if sanitizer else []
    command = [compiler(), "-std=gnu11", "-O1", "-g", "-pthread", *flags, "-o", program, source]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode and "cannot find" in made.stderr:
        pytest.skip(f"this compiler has no {sanitizer} sanitizer")
    assert made.returncode == 0, made.stderr
    return program


def sanitized(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    """A run of a program with a sanitizer, which stops at the first finding."""
    options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **options}
    )


def test_processes_end_with_threads_asleep() -> None:
    """Threads that wait for work keep nobody from leaving."""
    code = "from tests.backends import test_native_pool as t; t.test_every_task_runs_once(100, 1, 2)"
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, timeout=60, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
