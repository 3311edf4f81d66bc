"""Blocks that ggml itself repacks: xllamacpp's library fills a buffer of its repacking kind, and its bytes are read."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.layouts import named

from .helpers import agree, random_values, store

pytestmark = pytest.mark.models  # it needs xllamacpp, which `make test-models` installs

Q4_0 = 2  # enum ggml_type


class Parameters(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def repack(data: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """The bytes of a Q4_0 tensor in ggml's buffer for repacked weights (ggml-cpu/repack.cpp)."""
    import xllamacpp

    library = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))
    pointer = ctypes.c_void_p
    signatures = {
        "ggml_init": ([Parameters], pointer),
        "ggml_free": ([pointer], None),
        "ggml_new_tensor_2d": ([pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64], pointer),
        "ggml_backend_alloc_ctx_tensors_from_buft": ([pointer, pointer], pointer),
        "ggml_backend_tensor_set": ([pointer, pointer, ctypes.c_size_t, ctypes.c_size_t], None),
        "ggml_backend_buffer_free": ([pointer], None),
        "ggml_get_data": ([pointer], pointer),
        "_Z35ggml_backend_cpu_repack_buffer_typev": ([], pointer),
    }
    for name, (arguments, result) in signatures.items():
        getattr(library, name).argtypes, getattr(library, name).restype = arguments, result
    context = library.ggml_init(Parameters(1 << 16, None, True))
    tensor = library.ggml_new_tensor_2d(context, Q4_0, columns, rows)
    kind = library._Z35ggml_backend_cpu_repack_buffer_typev()
    buffer = library.ggml_backend_alloc_ctx_tensors_from_buft(context, kind)
    library.ggml_backend_tensor_set(tensor, data.ctypes.data, 0, data.nbytes)
    found = np.ctypeslib.as_array((ctypes.c_uint8 * data.nbytes).from_address(library.ggml_get_data(tensor))).copy()
    library.ggml_backend_buffer_free(buffer)
    library.ggml_free(context)
    return found


@pytest.mark.parametrize("shape", [(8, 32), (24, 96), (64, 256)])
def test_ggml_repacks_q4_0_as_the_record_says(shape: tuple[int, int]) -> None:
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("ggml repacks to eight rows where there is AVX2")
    parts = {"codes": random_values("i4", shape), "scale": random_values("f16", (shape[0], shape[1] // 32))}
    plain = store(named("llama_cpp_q4_0"), parts, shape)
    agree(named("llama_cpp_q4_0_8x8"), parts, shape, repack(plain, *shape))
