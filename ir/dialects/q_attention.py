"""`q.attention`: causal attention of new positions over a cache of earlier ones, for decoders of any head grouping.

    %y, %k1, %v1 = q.attention "layers.0"(%q, %k, %v, %k0, %v0, %total) {heads = 4, kv_heads = 1, scale = 0.0625}

`y = softmax(mask(softcap(scale * q K^T))) V` where K and V are the first `total - S` entries of the cache followed by the
S new ones. A query sees the entries up to its own; with `window = w > 0` only the last w of them, itself included.
"""

from __future__ import annotations

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
    allowed = ("heads", "kv_heads", "scale", "window", "softcap")

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.integer("heads")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; each serves `heads / kv_heads` query heads."""
        return self.integer("kv_heads")

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

    def _number(self, name: str) -> float:
        value = self.get(name, 0.0)
        assert isinstance(value, float)
        return value

    def verify_(self) -> None:
        """Six operands, three results, heads that divide, and extents that agree."""
        if len(self.slots) != 6 or None in self.slots or len(self.results) != 3:
            raise VerifyException(f"{self.where()}: expected six operands and three results")
        for name in self.parameters:
            if name not in self.allowed:
                raise VerifyException(f"{self.where()}: no attribute is called {name!r}; known: {list(self.allowed)}")
        if self.kv_heads < 1 or self.heads < 1 or self.heads % self.kv_heads:
            raise VerifyException(
                f"{self.where()}: {self.heads} query heads do not share {self.kv_heads} heads of keys and values"
            )
        if not isinstance(self.get("scale"), float) or self.window < 0:
            raise VerifyException(f"{self.where()}: it needs a float scale, and a window of at least 0")
        widths = [(self.operands[0], self.heads), (self.operands[1], self.kv_heads), (self.operands[2], self.kv_heads)]
        cache = types.dims_of(self.operands[3].type)
        size = cache[3] if cache is not None and len(cache) == 4 else None
        for value, heads in widths:
            dims = types.dims_of(value.type)
            if dims is not None and (len(dims) != 3 or (isinstance(dims[2], int) and dims[2] % heads)):
                raise VerifyException(f"{self.where()}: {value.type} is not [batch, length, {heads} heads of one size]")
            if dims is not None and isinstance(dims[2], int) and isinstance(size, int) and dims[2] != heads * size:
                raise VerifyException(
                    f"{self.where()}: heads of {size} in the cache, {dims[2] // heads} in {value.type}"
                )
