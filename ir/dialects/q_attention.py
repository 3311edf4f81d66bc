"""`q.attention`: causal attention of new positions over a cache of earlier ones, for decoders of any head grouping.

    %y, %k1, %v1 = q.attention "layers.0"(%q, %k, %v, %k0, %v0, %total) {heads = 4, kv_heads = 1, scale = 0.0625}

`y = softmax(mask(softcap(scale * q K^T))) V` where K and V are the first `total - S` entries of the cache followed by
the S new ones. A query sees the entries up to its own; with `window = w > 0` only the last w of them, itself included.

`cache` says what entries are rounded to when they are appended: "f16", or "i8" with the scale max |x| / 127 for each
entry of a head; with "f32", and without it, they are not. The types of the caches stay: they hold the rounded numbers.
"""

from __future__ import annotations

from xdsl.dialects import builtin
from xdsl.ir import SSAValue
from xdsl.utils.exceptions import VerifyException

from .. import types
from .graph_op import GraphOp


class Attention(GraphOp):
    """Operands q [B, S, heads*D], k and v [B, S, kv_heads*D], caches [B, kv_heads, C, D], total: an int32 scalar.

    Results y [B, S, heads*D] and both caches [B, kv_heads, max(C, total), D], whose entries from `total` on mean
    nothing. `softcap = c > 0` passes the scores through `c tanh(x / c)` (Gemma 2, arXiv 2408.00118).
    """

    name = "q.attention"
    formals = ("q", "k", "v", "past_key", "past_value", "total")
    allowed = ("heads", "kv_heads", "scale", "window", "softcap", "cache")

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.integer("heads")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; each serves `heads / kv_heads` query heads."""
        return self.integer("kv_heads")

    @property
    def head_size(self) -> int | None:
        """Values of a head, from the first operand that tells."""
        counts = (self.heads, self.kv_heads, self.kv_heads, 1, 1)
        for value, heads in zip(self.operands[:5], counts, strict=True):
            dims = types.dims_of(value.type)
            if dims is not None and isinstance(dims[-1], int):
                return dims[-1] // heads
        return None

    @property
    def window(self) -> int:
        """How many entries a query sees, itself included; 0: all."""
        return self.integer("window", 0)

    @property
    def scale(self) -> float:
        """What the scores are multiplied by."""
        return self._number("scale")

    @property
    def softcap(self) -> float:
        """The bound of the scores; 0: none."""
        return self._number("softcap")

    @property
    def cache(self) -> str:
        """What entries are rounded to, one of `CACHES`; empty: nothing, and a backend may choose."""
        value = self.get("cache", "")
        assert isinstance(value, str)
        return value

    def _number(self, name: str) -> float:
        value = self.get(name, 0.0)
        assert isinstance(value, float)
        return value

    def verify_(self) -> None:
        """Six operands, three results, attributes of their kinds, heads that divide, and extents that agree."""
        if len(self.slots) != 6 or None in self.slots or len(self.results) != 3:
            raise VerifyException(f"{self.where()}: expected six operands and three results")
        self._verify_attributes()
        total = self.operands[5].type
        if types.element_type(total) not in (_I32, types.UnknownType()) or types.dims_of(total) not in (None, ()):
            raise VerifyException(f"{self.where()}: total is {total}, not an int32 scalar")
        *new, key, value = self.operands[:5]
        sizes = [_head_size(self.where(), cache, self.kv_heads) for cache in (key, value)]
        for operand, heads in zip(new, (self.heads, self.kv_heads, self.kv_heads), strict=True):
            dims = types.dims_of(operand.type)
            if dims is None:
                continue
            if len(dims) != 3 or (isinstance(dims[2], int) and dims[2] % heads):
                raise VerifyException(
                    f"{self.where()}: {operand.type} is not [batch, length, {heads} heads of one size]"
                )
            own = dims[2] // heads if isinstance(dims[2], int) else None
            for size in sizes:
                if None not in (own, size) and own != size:
                    raise VerifyException(f"{self.where()}: heads of {size} in the cache, {own} in {operand.type}")

    def _verify_attributes(self) -> None:
        for name in self.parameters:
            if name not in self.allowed:
                raise VerifyException(f"{self.where()}: no attribute is called {name!r}; known: {list(self.allowed)}")
            wanted = _WANTED.get(name, int)
            if not isinstance(self.get(name), wanted):
                raise VerifyException(f"{self.where()}: {name} is {self.get(name)!r}, not {_KINDS[wanted]}")
        if self.kv_heads < 1 or self.heads < 1 or self.heads % self.kv_heads:
            raise VerifyException(
                f"{self.where()}: {self.heads} query heads do not share {self.kv_heads} heads of keys and values"
            )
        if self.cache and self.cache not in CACHES:
            raise VerifyException(f"{self.where()}: a cache of {self.cache!r}; known: {list(CACHES)}")
        if "scale" not in self.properties or self.window < 0 or self.softcap < 0:
            raise VerifyException(f"{self.where()}: it needs a scale, a window and a softcap of at least 0")


def _head_size(where: str, cache: SSAValue, kv_heads: int) -> int | None:
    """The last extent of a cache, where it is known."""
    dims = types.dims_of(cache.type)
    if dims is None:
        return None
    if len(dims) != 4 or (isinstance(dims[1], int) and dims[1] != kv_heads):
        raise VerifyException(f"{where}: {cache.type} is not [batch, {kv_heads} heads, capacity, size]")
    return dims[3] if isinstance(dims[3], int) else None


CACHES = ("f32", "f16", "i8")
_WANTED: dict[str, type] = {"scale": float, "softcap": float, "cache": str}
_KINDS: dict[type, str] = {int: "an integer", float: "a float", str: "a text"}
_I32 = builtin.IntegerType(32)
