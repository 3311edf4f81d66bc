"""Attention over a cache as a compiled kernel: `build(spec, isa)`, `append(cache, k, v, past)`, `kernel(q, cache, n)`.

Arrays are [batch, heads, tokens, size], and only the values of a head need lie side by side: what a linear layer
gives, [batch, tokens, heads * size], is `x.reshape(b, n, heads, size).transpose(0, 2, 1, 3)`.

No sum depends on how many threads there are or on what else is in the batch: a sequence gets the same bits alone. It
does depend on how many queries are computed at once, and for few of them on where the first key lies that they see.

Sums are of float32, but where few queries meet a cache of codes: there q is rounded to 16 bits for each head, and
scores are whole numbers.

A key or value that is not finite reaches every query whose tile of keys it is in, seen or masked. Values behind
`lengths` are never read.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qcc.ir import target
from qcc.ir.errors import BadInput

from . import compile, isa
from .attention_spec import MOST_KEYS, AttentionSchedule, AttentionSpec, default_schedule, space
from .emit_attention import AttentionText
from .isa import Isa
from .memory import ALIGNMENT, aligned
from .pool import launcher

_DTYPES = {"f32": np.float32, "f16": np.float16, "i8": np.int8}
Lengths = int | Sequence[int] | np.ndarray
"""Of each sequence of a batch, or one for all."""


@dataclass(frozen=True)
class Cache:
    """Keys and values; of i8 with the number that each code of a token and head is multiplied by."""

    key: np.ndarray
    """float32, float16 or int8 [batch, kv heads, capacity, size]."""
    value: np.ndarray
    """As `key`, with the same strides."""
    key_scale: np.ndarray | None = None
    """float32 [batch, kv heads, capacity]."""
    value_scale: np.ndarray | None = None

    @property
    def capacity(self) -> int:
        """Positions of a sequence."""
        return self.key.shape[2]


class AttentionKernel:
    """`y = softmax(cap(scale q k^T) + mask) v` for any batch, number of queries and number of keys."""

    def __init__(self, text: AttentionText) -> None:
        self.spec, self.isa, self.schedule = text.spec, text.isa, text.schedule
        self.source = text.text()
        isa.check(text.isa, target.load("cpu"))
        library = compile.load(compile.compile_c(self.source, text.isa.flags))
        self._run, self._append, self._scratch = (
            library.qcc_attention, library.qcc_attention_append, library.qcc_attention_scratch
        )  # fmt: skip
        self._run.restype = self._append.restype = None
        self._run.argtypes = self._append.argtypes = [ctypes.c_void_p]
        self._scratch.restype, self._scratch.argtypes = ctypes.c_int64, [ctypes.c_int64] * 4

    def cache(self, batch: int, capacity: int, *, token_major: bool = False) -> Cache:
        """An empty cache; `token_major`: the heads of a token lie side by side, else the tokens of a head."""
        heads, token = self.spec.kv_heads, self.spec.size
        if batch < 0 or not 0 <= capacity <= MOST_KEYS:
            raise BadInput(f"a cache of {batch} sequences of {capacity} tokens", hint=f"up to {MOST_KEYS} tokens")
        dtype = np.dtype(_DTYPES[self.spec.cache])

        def empty(values: tuple[int, ...], item: np.dtype[Any]) -> np.ndarray:
            shape = (batch, capacity, heads) if token_major else (batch, heads, capacity)
            size = int(np.prod(shape + values))
            held = aligned(size * item.itemsize).view(item).reshape(shape + values)
            return held.swapaxes(1, 2) if token_major else held

        arrays = [empty((token,), dtype) for _ in range(2)]
        scales = [empty((), np.dtype(np.float32)) for _ in range(2)] if self.spec.cache == "i8" else [None, None]
        return Cache(arrays[0], arrays[1], scales[0], scales[1])

    def append(self, cache: Cache, k: np.ndarray, v: np.ndarray, past: Lengths, *, threads: int = 1) -> None:
        """Put float32 `k` and `v` [batch, kv heads, n, size] at positions `past` to `past + n` of a cache, in place.

        float16 is rounded half to even. i8 gets the scale max |x| / 127 for each token and head; where a number is not
        finite, neither is the scale. `BadInput` where they do not fit.
        """
        self.prepared_append(cache, k, v, past, threads=threads)()

    def prepared_append(
        self, cache: Cache, k: np.ndarray, v: np.ndarray, past: Lengths, *, threads: int = 1
    ) -> AppendCall:
        """The same call, checked once and made as often as one likes, at other positions if one likes."""
        self._check_cache(cache, len(cache.key))
        shape = (len(cache.key), self.spec.kv_heads, k.shape[2] if k.ndim == 4 else 0, self.spec.size)
        for name, x in (("k", k), ("v", v)):
            _check(name, x, np.dtype(np.float32), shape)
        written = (cache.key, cache.value, cache.key_scale, cache.value_scale)
        if not all(a is None or a.flags.writeable for a in written):
            raise BadInput("the cache is read-only")
        return AppendCall(self, cache, k, v, past, _threads(threads))

    def __call__(
        self,
        q: np.ndarray,
        cache: Cache,
        lengths: Lengths,
        mask: np.ndarray | None = None,
        *,
        out: np.ndarray | None = None,
        threads: int = 1,
    ) -> np.ndarray:
        """`y` of float32 `q` [batch, heads, n, size], the last n of `lengths` tokens; of the same shape.

        `mask` is broadcast to [batch, heads, n, keys] with `keys` at least the longest length: bool, true where a key
        is seen, or float32. `out` may be `q`, but nothing else that is read. `BadInput` names what does not fit.
        """
        call = self.prepared(q, cache, lengths, mask, out=out, threads=threads)
        call()
        return call.y

    def prepared(
        self,
        q: np.ndarray,
        cache: Cache,
        lengths: Lengths,
        mask: np.ndarray | None = None,
        *,
        out: np.ndarray | None = None,
        threads: int = 1,
        scratch: np.ndarray | None = None,
    ) -> AttentionCall:
        """The same call, checked once and made as often as one likes, with other lengths if one likes.

        Calls that are made one after the other may share `scratch`, uint8 of as many bytes as `scratch` says for the
        longest lengths that fit.
        """
        spec = self.spec
        batch, n = (q.shape[0], q.shape[2]) if q.ndim == 4 else (0, 0)
        _check("q", q, np.dtype(np.float32), (batch, spec.heads, n, spec.size))
        self._check_cache(cache, batch)
        y = np.empty((batch, n, spec.heads, spec.size), np.float32).swapaxes(1, 2) if out is None else out
        _check("out", y, np.dtype(np.float32), q.shape)
        if not y.flags.writeable:
            raise BadInput("out is read-only")
        return AttentionCall(self, q, cache, lengths, self._mask(mask, q), y, _threads(threads), scratch)

    def scratch(self, batch: int, queries: int, keys: int, threads: int) -> int:
        """Bytes of scratch memory of a call with up to `keys` keys."""
        return int(self._scratch(batch, queries, keys, threads))

    @property
    def run_append(self) -> ctypes._NamedFuncPointer:  # pyright: ignore[reportPrivateUsage]
        """The C function `qcc_attention_append`."""
        return self._append

    @property
    def run(self) -> ctypes._NamedFuncPointer:  # pyright: ignore[reportPrivateUsage]
        """The C function `qcc_attention`."""
        return self._run

    def _check_cache(self, cache: Cache, batch: int) -> None:
        spec, dtype = self.spec, np.dtype(_DTYPES[self.spec.cache])
        shape = (batch, spec.kv_heads, cache.capacity if cache.key.ndim == 4 else 0, spec.size)
        _check("key", cache.key, dtype, shape)
        _check("value", cache.value, dtype, shape)
        if cache.capacity > MOST_KEYS:
            raise BadInput(f"a cache of {cache.capacity} tokens", hint=f"up to {MOST_KEYS}")
        if cache.key.strides != cache.value.strides:
            raise BadInput("keys and values lie in memory in different orders", hint="one order for both")
        if spec.cache != "i8":
            return
        if cache.key_scale is None or cache.value_scale is None:
            raise BadInput("a cache of i8 without scales", hint="use what `cache` of this kernel returns")
        for name, scale in (("key_scale", cache.key_scale), ("value_scale", cache.value_scale)):
            _check(name, scale, np.dtype(np.float32), shape[:3], beside=False)
        if cache.key_scale.strides != cache.value_scale.strides:
            raise BadInput("scales of keys and values lie in memory in different orders", hint="one order for both")

    def _mask(self, mask: np.ndarray | None, q: np.ndarray) -> np.ndarray | None:
        """A mask [batch, heads, queries, keys]."""
        kind = self.spec.mask
        if (mask is None) != (kind == "none"):
            raise BadInput(f"{'no' if mask is None else 'a'} mask for a kernel with {kind} masks")
        if mask is None:
            return None
        dtype = np.dtype(np.bool_ if kind == "bool" else np.float32)
        keys = mask.shape[-1] if mask.ndim else 0
        shape = (*q.shape[:3], keys)
        try:
            wide = np.broadcast_to(mask, shape)
        except ValueError:
            raise BadInput(f"the mask is {list(mask.shape)}", hint=f"one that broadcasts to {list(shape)}") from None
        _check("mask", wide, dtype, shape)
        return wide


class AttentionCall:
    """A kernel with its buffers: calling it computes `y` again."""

    def __init__(
        self,
        kernel: AttentionKernel,
        q: np.ndarray,
        cache: Cache,
        lengths: Lengths,
        mask: np.ndarray | None,
        y: np.ndarray,
        threads: int,
        scratch: np.ndarray | None,
    ) -> None:
        self.y, self._run = y, kernel.run
        self._most = min(cache.capacity, MOST_KEYS if mask is None else mask.shape[-1])
        batch, n = q.shape[0], q.shape[2]
        self._lengths = _lengths("lengths", lengths, batch, self._most)
        needed = kernel.scratch(batch, n, self._most, threads)
        scratch = aligned(needed) if scratch is None else scratch
        fits = scratch.dtype == np.uint8 and scratch.nbytes >= needed and scratch.flags.c_contiguous
        if not fits or scratch.ctypes.data % ALIGNMENT or not scratch.flags.writeable:
            raise BadInput(
                f"scratch memory of {scratch.nbytes} bytes", hint=f"uint8 [{needed}] at a multiple of {ALIGNMENT} bytes"
            )
        self._held = (kernel, q, cache, mask, scratch)
        none = mask.ctypes.data if mask is not None else None
        self._call = _Call(
            q.ctypes.data, y.ctypes.data, cache.key.ctypes.data, cache.value.ctypes.data, *_scales(cache), none,
            self._lengths.ctypes.data, _Strides.of(q), _Strides.of(y), _Strides.of(cache.key),
            _Strides.of(cache.key_scale), _Strides.of(mask), batch, n, scratch.ctypes.data, threads,
            launcher() if threads > 1 else None,
        )  # fmt: skip
        self._argument = ctypes.byref(self._call)

    def __call__(self, lengths: Lengths | None = None) -> None:
        if lengths is not None:
            self._lengths[:] = _lengths("lengths", lengths, len(self._lengths), self._most)
        self._run(self._argument)


class AppendCall:
    """Appends the same arrays again, with what they hold then."""

    def __init__(
        self, kernel: AttentionKernel, cache: Cache, k: np.ndarray, v: np.ndarray, past: Lengths, threads: int
    ) -> None:
        batch, n = k.shape[0], k.shape[2]
        self._run, self._held, self._most = kernel.run_append, (kernel, cache, k, v), cache.capacity - n
        self._past = _lengths("past", past, batch, self._most)
        self._call = _Append(
            k.ctypes.data, v.ctypes.data, cache.key.ctypes.data, cache.value.ctypes.data, *_scales(cache),
            self._past.ctypes.data, _Strides.of(k), _Strides.of(v), _Strides.of(cache.key),
            _Strides.of(cache.key_scale), batch, n, threads, launcher() if threads > 1 else None,
        )  # fmt: skip
        self._argument = ctypes.byref(self._call)

    def __call__(self, past: Lengths | None = None) -> None:
        if past is not None:
            self._past[:] = _lengths("past", past, len(self._past), self._most)
        self._run(self._argument)


def build(spec: AttentionSpec, isa: Isa, schedule: AttentionSchedule | None = None) -> AttentionKernel:
    """The kernel, generated and compiled; `NotSupported` where this host lacks its instructions."""
    return AttentionKernel(generate(spec, isa, schedule))


def generate(spec: AttentionSpec, isa: Isa, schedule: AttentionSchedule | None = None) -> AttentionText:
    """The C text of the kernel. `BadInput` for a schedule whose sums the registers do not hold."""
    chosen = schedule or default_schedule(isa)
    if chosen not in (offered := set(space(isa))):
        raise BadInput(f"{chosen} is not for {isa.name}", hint=f"one of the {len(offered)} of `space`")
    return AttentionText(spec, isa, chosen)


class _Strides(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "head", "token")]

    @staticmethod
    def of(array: np.ndarray | None) -> _Strides:
        """In elements."""
        return _Strides() if array is None else _Strides(*(s // array.itemsize for s in array.strides[:3]))


_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


class _Call(ctypes.Structure):
    """`attention_call` of c/attention_job.h."""

    _fields_ = [
        *((name, _POINTER) for name in ("q", "y", "k", "v", "k_scale", "v_scale", "mask", "lengths")),
        *((name, _Strides) for name in ("q_by", "y_by", "kv_by", "scale_by", "mask_by")),
        ("batch", _INT), ("queries", _INT), ("scratch", _POINTER), ("threads", _INT), ("launch", _POINTER),
    ]  # fmt: skip


class _Append(ctypes.Structure):
    """`append_call` of c/attention_job.h."""

    _fields_ = [
        *((name, _POINTER) for name in ("k", "v", "to_k", "to_v", "k_scale", "v_scale", "past")),
        *((name, _Strides) for name in ("by", "v_by", "kv_by", "scale_by")),
        ("batch", _INT), ("count", _INT), ("threads", _INT), ("launch", _POINTER),
    ]  # fmt: skip


def _scales(cache: Cache) -> tuple[int | None, int | None]:
    if cache.key_scale is None or cache.value_scale is None:
        return None, None
    return cache.key_scale.ctypes.data, cache.value_scale.ctypes.data


def _threads(threads: int) -> int:
    cores = target.load("cpu").cores
    if not 1 <= threads <= cores:
        raise BadInput(f"{threads} threads on {cores} cores", hint=f"1 to {cores}")
    return threads


def _lengths(name: str, lengths: Lengths, batch: int, most: int) -> np.ndarray:
    """int64 [batch], each from 0 to `most`."""
    given = np.asarray(lengths)
    if given.shape not in ((), (batch,)) or (given.size and given.dtype.kind not in "iu"):
        raise BadInput(f"{name} are {list(given.shape)} {given.dtype}", hint=f"a whole number, or {batch} of them")
    found = np.ascontiguousarray(np.broadcast_to(given, (batch,)).astype(np.int64))
    if found.size and not 0 <= found.min() <= found.max() <= most:
        wrong = int(found.min() if found.min() < 0 else found.max())
        raise BadInput(f"{name} of {wrong}, where there is room for 0 to {most}", hint="a cache of more capacity")
    return found


def _check(name: str, x: np.ndarray, dtype: np.dtype[Any], shape: tuple[int, ...], *, beside: bool = True) -> None:
    """`BadInput` where an array is another, or the values of a head do not lie side by side."""
    if x.dtype != dtype or x.shape != shape:
        raise BadInput(f"{name} is {list(x.shape)} {x.dtype}", hint=f"pass {list(shape)} {dtype}")
    if any(s % x.itemsize for s in x.strides) or x.ctypes.data % x.itemsize:
        raise BadInput(f"{name} is not aligned to its numbers", hint="copy it")
    if beside and x.shape[-1] > 1 and x.size and x.strides[-1] != x.itemsize:
        raise BadInput(f"the last dimension of {name} does not lie side by side", hint="np.ascontiguousarray")
