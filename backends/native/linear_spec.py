"""What a linear kernel computes, and the parameters that only change its speed: `y[M, N] = x[M, K] w[N, K]^T + bias`.

    LinearSpec(n, k, weight format, activations)      the numbers
    Schedule(vectors, streams, prefetch, ...)         the order in which they are read and multiplied

Activations are whole numbers as weights are: 8 bits, or 16 bits as two bytes, with a scale for each row or for each
group of a row. 16-bit fixed point is what "float activations" (A16) become: its error is at most 1/65278 of the largest
activation of the row or group, below that of bfloat16 for all but outliers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.format import Format
from qcc.ir.level import Level
from qcc.ir.levels import level_dtype

from . import lut
from .isa import Isa
from .lattice import Lattice, lattice_of
from .storage import ROWS, Storage, cell, storage

SCALE_TYPES = ("f32", "f16", "bf16", "e8m0", "e4m3", "i8", "u8", "u6")
"""Dtypes of levels that kernels read; those below a byte are held in a whole one."""
ACTIVATION_BITS = (8, 16)
LARGEST = 1 << 16
"""K at which 255 * 127 * K still fits an int32."""


@dataclass(frozen=True)
class Activation:
    """How activations are rounded: `bits` 8 or 16, a scale for each row, or for each group of weights in a row."""

    bits: int = 8
    grouped: bool = False
    dtype: str = "f32"
    """What they are before: `f32` or `bf16`."""
    fixed: bool = False
    """Whether one scale and zero point, known before, serve all rows: codes u8, or s8, of calibrated activations."""

    def __post_init__(self) -> None:
        if self.dtype not in ("f32", "bf16"):
            raise BadInput(f"activations of {self.dtype}", hint="f32 or bf16")
        if self.fixed and (self.bits != 8 or self.grouped):
            raise BadInput(
                "activations of a fixed scale that have 16 bits or scales of their own", hint="8 bits, one scale"
            )
        if self.bits not in ACTIVATION_BITS:
            raise BadInput(f"activations of {self.bits} bits", hint="8 or 16 bits")

    @property
    def parts(self) -> int:
        """Bytes of an activation."""
        return self.bits // 8

    @property
    def limit(self) -> int:
        """The largest whole number: 127, or 127 * 256 + 127."""
        return 127 if self.bits == 8 else 127 * 256 + 127

    def __str__(self) -> str:
        scales = "g" if self.grouped else " of a fixed scale" if self.fixed else ""
        return f"A{self.bits}{scales}{' of bf16' if self.dtype == 'bf16' else ''}"


@dataclass(frozen=True)
class LinearSpec:
    """A linear operation. Raises `NotSupported` with the reason for a format that no kernel is generated for."""

    n: int
    k: int
    weight: Format
    activation: Activation

    def __post_init__(self) -> None:
        if self.n < 1 or self.k < 1:
            raise BadInput(f"a linear kernel needs rows and columns: the weight is [{self.n}, {self.k}]")
        if self.k >= LARGEST:
            raise NotSupported(f"{self.k} columns: sums of products stay within 32 bits up to {LARGEST - 1}")
        if reason := self._obstacle():
            raise NotSupported(f"no kernel is generated for format {str(self.weight)!r}: {reason}")

    def __str__(self) -> str:
        return f"linear {self.n}x{self.k} {self.activation} [{self.weight}]"

    @cached_property
    def lattice(self) -> Lattice:
        """The values of the codes as whole numbers."""
        return lattice_of(self.weight.element)

    @cached_property
    def offset(self) -> int:
        """What the first byte of a code is above its value, the constant zero point of the format included."""
        zero = self.weight.zero
        return self.lattice.offset + (int(zero) if isinstance(zero, (int, float)) else 0)

    @property
    def zero_points(self) -> bool:
        """Whether groups have zero points of their own, in whole numbers."""
        return self.weight.zero_dtype[:1] in ("i", "u")

    @property
    def levels(self) -> dict[str, Level]:
        """The levels that lie along k; those of the whole tensor are one factor of the result."""
        return {name: level for name, level in self.weight.levels().items() if name not in self.tensor_levels}

    @property
    def tensor_levels(self) -> tuple[str, ...]:
        """Scale levels of the whole tensor."""
        if self.n == 1:
            return ()
        levels = self.weight.levels().items()
        return tuple(name for name, level in levels if level.shape_of((self.n, self.k)) == (1, 1))

    def storage(self, schedule: Schedule) -> Storage:
        """Where the packed bits lie."""
        if schedule.unpack == "lookup":
            return lut.storage(self)
        return storage(self.n, self.k, self.weight, self.lattice.flip, schedule.unpack, schedule.vectors)

    def _obstacle(self) -> str:
        fmt, shape = self.weight, (self.n, self.k)
        for what, present in {
            "it holds outliers": fmt.outliers,
            "it is sparse": fmt.sparsity,
            "its groups are of permuted columns": fmt.permuted,
            "its scales have a mean": fmt.mean,
            "its values lie beside the codes": fmt.codebook,
            "its blocks choose among elements": len(fmt.choices) > 1,
        }.items():
            if present:
                return what
        for name, level in fmt.levels().items():
            if level.block_of(shape)[0] != 1 and level.shape_of(shape) != (1, 1):
                return f"{name} spans rows"
            if name in self.tensor_levels and not name.startswith("scale"):
                return f"{name} is one for the whole tensor"
            zero = name == "zero"
            known = ("f32", "f16", "bf16", *(f"{s}{b}" for s in "iu" for b in range(1, 9))) if zero else SCALE_TYPES
            if level.dtype not in known:
                return f"{name} is {level.dtype}"
        widths = sorted({min(self.k, level.block_of(shape)[1]) for level in self.levels.values()})
        if len(widths) > 2 or (len(widths) == 2 and widths[1] < self.k and widths[1] % widths[0]):
            return (
                f"its levels span {', '.join(map(str, widths))} columns: at most two, the one a multiple of the other"
            )
        lattice = lattice_of(fmt.element)
        exact = lattice.parts == 1 and lattice.step == 1 and lattice.multiplier == 1 and not lattice.tables
        if (fmt.zero is not None or fmt.offset) and not exact:
            return f"{fmt.element} with a zero point or a minimum"
        if isinstance(fmt.zero, (int, float)) and not float(fmt.zero).is_integer():
            return "its zero point is no whole number"
        zero_level = fmt.zero_level
        if zero_level is not None and min(self.k, zero_level.block_of(shape)[1]) != widths[0]:
            return "its zero points span more columns than its scales"
        if fmt.offset and self.tensor_levels:
            return "it has a minimum beside a scale of the whole tensor"
        group = min(widths, default=self.k)
        if group * self._largest_product() >= 1 << 31:
            return f"sums of {group} products of up to {self._largest_product()} do not fit 32 bits"
        return ""

    def _largest_product(self) -> int:
        """What a column adds at most to one sum, which takes the products of bytes whose places add up to the same."""
        lattice = self.lattice
        zero = level_dtype(self.weight.zero_dtype) if self.zero_points else None
        low, high = (self.offset + int(end) for end in ((zero.low, zero.high) if zero else (0, 0)))
        first, *rest = [max(table) for table in lattice.tables] or [lattice.high]
        weights = [max(abs(byte - end) for byte in (0, first) for end in (low, high)), *rest]
        activations = [127, 128][: self.activation.parts]
        sums = [0] * (len(weights) + len(activations) - 1)
        for p, weight in enumerate(weights):
            for a, activation in enumerate(activations):
                sums[p + a] += weight * activation
        return max(sums)


@dataclass(frozen=True)
class Schedule:
    """The parameters of a generator: they change speed and where bits lie, never what is computed."""

    vectors: int = 1
    """Registers of 16 rows in a block: 1, 2 or 4."""
    streams: int = 1
    """Blocks that are read side by side where M = 1."""
    prefetch: int = 0
    """Bytes that a prefetch runs ahead of each stream; 0 leaves it to the processor."""
    unpack: str = "split"
    """How codes are stored and taken apart (`storage.UNPACKS`), or `lookup`: they choose sums from tables (`lut`)."""
    unroll: int = 4
    """Cells whose code is written out in the loop."""
    tile: int = 6
    """Rows of activations that are multiplied at once; many rows are split into tiles of equal size."""
    panel: int = 16384
    """Of int8 tiles: bytes that are unpacked at once, a third of a first cache of 48 KiB."""
    batch: int = 2
    """Of int8 tiles: groups whose sums are taken from memory together."""
    most_tiles: int = 16
    """Of int8 tiles: those of activations whose results are kept for a block; more take several passes."""

    def __str__(self) -> str:
        ahead = f" prefetch {self.prefetch}" if self.prefetch else ""
        shape = f"{self.vectors}x16 rows, {self.streams} streams{ahead}"
        tiles = f", panel {self.panel} x{self.batch}, {self.most_tiles} tiles" if self.of_tiles != _TILES else ""
        return f"{shape}, {self.unpack} x{self.unroll}, tile {self.tile}{tiles}"

    @property
    def of_tiles(self) -> tuple[int, int, int]:
        """What only int8 tiles have."""
        return self.panel, self.batch, self.most_tiles


_TILES = Schedule().of_tiles


def default_schedule(spec: LinearSpec, isa: Isa) -> Schedule:
    """The schedule that is taken where nothing was measured: what read memory fastest on AMD Zen 4.

    It is chosen for one row of activations. Table lookup, where that pays, serves any number of them one by one: eight
    and more take up to 1.5 times what they take by dot products, but for AVX2, where they take no longer.
    """
    if lut.pays(spec, isa):
        return Schedule(lut.VECTORS, 4 if spec.n >= 1024 else 1, unpack="lookup", tile=1)
    unpack = unpacks(spec, isa)[0]
    if isa.sums <= 8 or spec.n <= ROWS:
        return Schedule(1, unpack=unpack, tile=tile_of(spec, isa, 1))
    vectors, streams = (4, 2) if spec.weight.bits <= 3 and spec.n >= 1024 else (1 if spec.weight.bits == 8 else 2, 4)
    if spec.n < 256:
        streams = 1
    return Schedule(vectors, streams, prefetch=1024, unpack=unpack, tile=tile_of(spec, isa, vectors))


def unpacks(spec: LinearSpec, isa: Isa) -> list[str]:
    """How codes can be stored for the dot products of an instruction set, the preferred way first."""
    shape = (spec.n, spec.k)
    widths = [level.block_of(shape)[1] for level in spec.levels.values()]
    group = min(widths, default=spec.k)
    bits, fits = spec.weight.bits, list[str]()
    for unpack in ("split", *(["dense"] if isa.has("avx512vbmi") and bits not in (1, 8) else []), "planes"):
        if group >= spec.k or group % cell(bits, unpack).columns == 0:
            fits.append(unpack)
    if not fits:
        raise NotSupported(f"groups of {group} columns: kernels take multiples of 4")
    return fits


def check_schedule(spec: LinearSpec, isa: Isa, schedule: Schedule) -> None:
    """`NotSupported` for lookups where there are none; `BadInput` for parameters out of range or without effect."""
    for name in ("vectors", "streams", "unroll", "tile", "panel", "batch", "most_tiles"):
        if getattr(schedule, name) < 1:
            raise BadInput(f"a schedule with {name} = {getattr(schedule, name)}", hint="from 1 on")
    if schedule.unpack == "lookup":
        if reason := lut.obstacle(spec, isa):
            raise NotSupported(f"no kernel by table lookup for {spec} on {isa.name}: {reason}")
        if (schedule.vectors, schedule.tile) != (lut.VECTORS, 1):
            raise BadInput(f"lookups with {schedule}", hint=f"{lut.VECTORS} vectors, and tiles of 1 row")
    if not isa.has("amx_tile") and schedule.of_tiles != _TILES:
        raise BadInput(
            f"{isa.name} has no int8 tiles: {schedule}", hint="leave panel, batch and most_tiles as they are"
        )


def space(spec: LinearSpec, isa: Isa) -> Iterator[Schedule]:
    """Every schedule that is worth measuring for an operation.

    Streams and prefetches matter to one row of activations, what int8 tiles have to 16 and more: either varies alone.
    """
    most = 8 if isa.needs else 2  # without intrinsics, more vectors at once are slower, and compile for up to 9 s
    vectors = [v for v in (1, 2, 4) if v <= most and (v == 1 or ROWS * (v // 2) < spec.n)]
    for v, unpack in product(vectors, unpacks(spec, isa)):
        tile = tile_of(spec, isa, v)
        for streams, ahead in product((1, 2, 4), (0, 512, 1024, 2048)):
            if v * streams <= most:
                yield Schedule(v, streams, ahead, unpack, tile=tile)
        for panel, batch, tiles in product((8192, 16384, 32768), (1, 2, 4), (8, 16, 32)) if isa.has("amx_tile") else ():
            if (panel, batch, tiles) != _TILES:
                yield Schedule(
                    v, min(4, most // v), 1024, unpack, tile=tile, panel=panel, batch=batch, most_tiles=tiles
                )
    for streams, ahead in product((1, 2, 4), (0, 1024)) if not lut.obstacle(spec, isa) else ():
        yield Schedule(lut.VECTORS, streams, ahead, "lookup", tile=1)


def tile_of(spec: LinearSpec, isa: Isa, vectors: int) -> int:
    """As many rows of activations as leave the sums of a tile in registers: of whole numbers, and of floats."""
    each = (spec.lattice.parts + spec.activation.parts) * vectors
    return max(1, min(8, isa.sums // each))
