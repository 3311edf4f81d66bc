"""Blocks of GGUF as true formats, both ways: `encode(kind, decode(kind, data, shape)) = data`.

    Q4_0     i4, f16 per 32                          Q2_K   u2, u4 per 16, f16 per 256, minus u4 per 16 by f16 per 256
    Q4_1     u4, f16 per 32, plus f16 per 32         Q3_K   i3, i6 per 16, f16 per 256
    Q5_0     i5, f16 per 32                          Q4_K   u4, u6 per 32, f16 per 256, minus u6 per 32 by f16 per 256
    Q5_1     u5, f16 per 32, plus f16 per 32         Q5_K   u5, u6 per 32, f16 per 256, minus u6 per 32 by f16 per 256
    Q8_0     i8, f16 per 32                          Q6_K   i6, i8 per 16, f16 per 256
    IQ4_NL   iq4nl, f16 per 32                       TQ1_0, TQ2_0   ternary, f16 per 256

(ggml's `ggml-common.h`; the float32 products are taken in the order of `ggml-quants.c`.) Where the bits lie is data:
`ir/layouts/llama_cpp_*.toml`. TQ1_0 packs five ternary digits into a byte, which no chain of bits says, and is here.
Zero, negative and denormal scales are numbers like others; NaN and infinite ones are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..convert import convert
from ..errors import BadInput, NotSupported
from ..format import Format
from ..layout import Record
from ..layouts import NamedLayout, named
from ..levels import level_dtype
from ..quantized import Quantized, part_names

_K = "minus {0} by f16 per 256"
_FORMATS = {
    "Q4_0": "i4, f16 per 32",
    "Q4_1": "u4, f16 per 32, plus f16 per 32",
    "Q5_0": "i5, f16 per 32",
    "Q5_1": "u5, f16 per 32, plus f16 per 32",
    "Q8_0": "i8, f16 per 32",
    "IQ4_NL": "iq4nl, f16 per 32",
    "Q2_K": "u2, u4 per 16, f16 per 256, " + _K.format("u4 per 16"),
    "Q3_K": "i3, i6 per 16, f16 per 256",
    "Q4_K": "u4, u6 per 32, f16 per 256, " + _K.format("u6 per 32"),
    "Q5_K": "u5, u6 per 32, f16 per 256, " + _K.format("u6 per 32"),
    "Q6_K": "i6, i8 per 16, f16 per 256",
    "TQ1_0": "ternary, f16 per 256",
    "TQ2_0": "ternary, f16 per 256",
}


@dataclass(frozen=True)
class Kind:
    """A kind of block: its format, how many values it holds, in how many bytes."""

    name: str
    format: Format
    values: int
    bytes: int


def kinds() -> list[str]:
    """The kinds of block that are codes: `Q4_0`, `Q4_1` ..."""
    return list(_FORMATS)


@cache
def kind_of(name: str) -> Kind:
    """A kind by its name; `NotSupported` for the others of ggml."""
    if name not in _FORMATS:
        raise NotSupported(f"GGUF blocks of kind {name} have no codec", hint=f"known kinds: {', '.join(_FORMATS)}")
    fmt = Format.parse(_FORMATS[name])
    values = 256 if "256" in _FORMATS[name] else 32
    if name == "TQ1_0":
        return Kind(name, fmt, values, 54)
    layout = _layout(name)
    return Kind(name, fmt, values, _record(layout).bytes(layout.part_bits, (1, values)))


def decode(kind: str, data: np.ndarray, shape: Sequence[int], where: str = "tensor") -> Quantized:
    """The codes of a tensor of `shape` [..., K] in blocks of `kind`; `data` are its bytes, in any shape.

    Raises `BadInput` where the bytes do not fit the shape, for NaN and infinite scales, and for code 3 of TQ2_0, which
    stands for no value; `NotSupported` for kinds that are no codes.
    """
    found = kind_of(kind)
    rows, columns = int(np.prod(shape[:-1], dtype=np.int64)), int(shape[-1])
    data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    if columns % found.values or data.size != rows * columns // found.values * found.bytes:
        raise BadInput(
            f"{where}: {data.size} bytes of {kind} do not hold a tensor of shape {list(shape)}",
            hint=f"a block has {found.values} values of the last axis in {found.bytes} bytes: the file is damaged",
        )
    flat = (rows, columns)
    parts = _decode_tq1_0(data, flat) if kind == "TQ1_0" else _unpack(kind, data, flat)
    parts = {name: array.reshape(*shape[:-1], array.shape[-1]) for name, array in parts.items()}
    value = Quantized(found.format, parts)
    value.check(where)
    return value


def encode(kind: str, value: Quantized, where: str = "tensor") -> np.ndarray:
    """The bytes of `value`, uint8 [..., bytes of a row]. `NotSupported` where its format is not the one of `kind`."""
    found = kind_of(kind)
    if value.format != found.format:
        raise NotSupported(f"{where}: {kind} holds `{found.format}`, not `{value.format}`")
    *outer, columns = value.shape
    if columns % found.values:
        raise NotSupported(f"{where}: {kind} has blocks of {found.values}, which rows of {columns} do not fill")
    value.check(where)
    rows = int(np.prod(outer, dtype=np.int64))
    parts = {name: np.ascontiguousarray(array).reshape(rows, -1) for name, array in value.parts.items()}
    data = _encode_tq1_0(parts) if kind == "TQ1_0" else _pack(kind, parts, (rows, columns))
    return data.reshape(*outer, -1)


def accepted(value: Quantized, where: str) -> Format:
    """The format of the first kind among `candidates` that holds every value; `NotSupported` where none does."""
    reason = ""
    for kind, fmt in candidates(value, where):
        try:
            convert(value, fmt, where)
        except NotSupported as error:
            reason = f"{kind}: {error.message.removeprefix(f'{where}: ')}"
            continue
        return fmt
    raise NotSupported(f"{where}: no kind of GGUF block holds {value.format}; the last that was tried, {reason}")


def candidates(value: Quantized, where: str) -> list[tuple[str, Format]]:
    """Kinds that may hold the values, the one of the very format first, then the narrower ones first.

    `NotSupported` for columns that GGUF has no place for: an act-order permutation, outliers.
    """
    fmt = value.format
    if fmt.permuted:
        raise NotSupported(f"{where}: an act-order permutation cannot be expressed in GGUF")
    if fmt.outliers:
        raise NotSupported(f"{where}: GGUF has no place for outliers")
    fits = [kind for kind in _FORMATS if value.shape[-1] % kind_of(kind).values == 0]
    if not fits:
        raise NotSupported(f"{where}: GGUF has blocks of 32 values, which rows of {value.shape[-1]} do not fill")
    same = [kind for kind in fits if kind_of(kind).format == fmt]
    plain = [k for k in ("TQ2_0", "Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1", "Q8_0") if k in fits and k not in same]
    return [(kind, kind_of(kind).format) for kind in same + plain]


@cache
def _layout(kind: str) -> NamedLayout:
    return named(f"llama_cpp_{kind.lower()}")


def _record(layout: NamedLayout) -> Record:
    assert isinstance(layout.layout, Record)
    return layout.layout


def _unpack(kind: str, data: np.ndarray, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    layout, fmt = _layout(kind), kind_of(kind).format
    levels = fmt.levels()
    dtypes = {name: level_dtype(level.dtype).numpy for name, level in levels.items()}
    dtypes["codes"] = np.dtype(np.int8 if fmt.family.signed else np.uint8)
    return dict(_record(layout).unpack(data, layout.part_bits, dtypes, shape))


def _pack(kind: str, parts: dict[str, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    layout, fmt = _layout(kind), kind_of(kind).format
    dtypes = {name: level_dtype(level.dtype).numpy for name, level in fmt.levels().items()}
    held = {name: parts[name].astype(dtypes.get(name, parts[name].dtype)) for name in part_names(fmt)}
    return _record(layout).pack(held, layout.part_bits, shape)


_POWERS = np.array([81, 27, 9, 3, 1], np.uint16)
"""Weights of five digits in a byte of TQ1_0, the first digit highest; four digits leave the last weight out."""
_RUNS = ((0, 32, 5), (32, 48, 5), (48, 52, 4))
"""Bytes of a block and how many digits each holds: digit n of all bytes of a run comes before digit n + 1 of any."""


def _decode_tq1_0(data: np.ndarray, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """A byte b stands for the digits of ceil(256 q / 243): digit n is (b * 3^n mod 256) * 3 // 256."""
    blocks = data.reshape(shape[0], -1, 54)
    digits: list[np.ndarray] = []
    for begin, end, count in _RUNS:
        run = blocks[..., None, begin:end] * np.array([1, 3, 9, 27, 81][:count], np.uint8)[:, None]
        digits.append((run.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(*blocks.shape[:2], -1))
    codes = np.concatenate(digits, axis=-1).reshape(shape)
    scale = np.ascontiguousarray(blocks[..., 52:]).view(np.float16).reshape(shape[0], -1)
    return {"codes": codes, "scale": scale}


def _encode_tq1_0(parts: dict[str, np.ndarray]) -> np.ndarray:
    """ggml's own byte for five digits q: ceil(256 q / 243). A file may hold another byte of the same digits."""
    rows = len(parts["codes"])
    codes = parts["codes"].reshape(rows, -1, 256).astype(np.uint16)
    out = np.empty((rows, codes.shape[1], 54), np.uint8)
    place = 0
    for begin, end, count in _RUNS:
        size = (end - begin) * count
        run = codes[..., place : place + size].reshape(rows, -1, count, end - begin)
        number = np.einsum("rbnk,n->rbk", run, _POWERS[:count])
        out[..., begin:end] = (number.astype(np.uint32) * 256 + 242) // 243
        place += size
    scale = np.ascontiguousarray(parts["scale"].astype(np.float16))
    out[..., 52:] = scale.reshape(rows, -1, 1).view(np.uint8)
    return out
