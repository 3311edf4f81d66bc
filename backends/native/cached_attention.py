"""Attention over a cache in place as a C function of a compiled network; norms and rotations of heads belong to it.

    int qcc_attention_<hash>(q, k, v, key, value[, key_scale, value_scale], total[, q_weight][, k_weight][, cos, sin],
                             y, batch, queries, capacity, q_by, k_by, v_by, table_by)

It appends the new keys and values to the caches [batch, kv heads, capacity, size], and gives 1 where they do not hold
`total` tokens, else 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from qcc.ir.errors import NotSupported

from . import attention
from .attention_spec import AttentionSpec
from .calls import Function, function_of
from .isa import C_FOLDER, Isa


@dataclass(frozen=True)
class Heads:
    """What becomes of heads of q and k before they meet: RMSNorm with a weight, then rotary positions."""

    q_epsilon: float | None = None
    """Of the norm of q; None: there is none."""
    k_epsilon: float | None = None
    rotated: int = 0
    """Values of a head that are turned (RoFormer, arXiv 2104.09864); 0: none."""
    pairs: bool = False
    """Whether the numbers of a rotation are neighbours, else halves of what is rotated."""

    def names(self, spec: AttentionSpec) -> list[str]:
        """The inputs of the function, in their order."""
        made = ["q", "k", "v", "key", "value", *["key_scale", "value_scale"] * (spec.cache == "i8"), "total"]
        made += ["q_weight"] * (self.q_epsilon is not None) + ["k_weight"] * (self.k_epsilon is not None)
        return made + ["cos", "sin"] * bool(self.rotated)


NUMBERS = ("batch", "queries", "capacity", "q_by", "k_by", "v_by", "table_by")
"""Behind the result: `by` in numbers from one token to the next; `table_by` from the angles of a row to the next, in
tokens: 0 where they are the same for all."""
_TYPES = {"key": "element *", "value": "element *", "key_scale": "float *", "value_scale": "float *"} | {
    "total": "const int32_t *"
}


def cached_attention_function(spec: AttentionSpec, heads: Heads, isa: Isa) -> Function:
    """The function of a causal attention over a cache of `spec.cache`. `NotSupported` for rotations that do not fit."""
    if heads.rotated % 2 or heads.rotated > spec.size:
        raise NotSupported(f"{heads.rotated} of {spec.size} values of a head are rotated")
    constants = {
        "Q_NORM": int(heads.q_epsilon is not None),
        "K_NORM": int(heads.k_epsilon is not None),
        "Q_EPSILON": f"{float(heads.q_epsilon or 0).hex()}f",
        "K_EPSILON": f"{float(heads.k_epsilon or 0).hex()}f",
        "ROTATED": heads.rotated,
        "PAIRS": int(heads.pairs),
    }
    text = attention.generate(spec, isa).text()
    text += "".join(f"#define {name} {value}\n" for name, value in constants.items())
    text += (C_FOLDER / "attention_cached.h").read_text()
    return function_of("attention", text, _entry(heads.names(spec)), isa)


def _entry(names: list[str]) -> str:
    """The function, with the braces of C doubled."""

    def given(name: str) -> str:
        return name if name in names else "0"

    inputs = ", ".join(f"{_TYPES.get(name, 'const float *')}{name}" for name in names)
    numbers = ", ".join(f"int64_t {name}" for name in NUMBERS)
    cache = ", ".join(given(name) for name in ("key", "value", "key_scale", "value_scale", "total"))
    passed = ", ".join(given(name) for name in ("q_weight", "k_weight", "cos", "sin"))
    return (
        f"int {{symbol}}({inputs}, float *y, {numbers}) {{{{\n"
        f"    return attend(q, k, v, (cache_arrays){{{{{cache}}}}}, {passed}, y, {', '.join(NUMBERS)});\n"
        "}}\n"
    )
