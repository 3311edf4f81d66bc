"""From a transformers decoder to an ONNX graph of one step: new tokens and a cache in, logits and the cache out.

    step(input_ids [1, S], past_length [1], logits_at [L], past_key_i, past_value_i [1, G, C, D])
        -> logits [1, L, V], present_key_i, present_value_i [1, G, max(C, past_length + S), D]

One graph is prefill and decode: S and C may be anything, and logits are computed at the wanted positions only.
Attention is captured whole, as `com.microsoft.GroupQueryAttention`: transformers lets a function of ours be named.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .torch_export import write_step
from .torch_to_onnx import import_torch

if TYPE_CHECKING:
    from torch import nn

IMPLEMENTATION = "qcc"
"""The name under which transformers knows our attention."""

_OPSET = 23


@dataclass(frozen=True)
class CacheShape:
    """Layers, heads of keys and values, and the size of a head."""

    layers: int
    kv_heads: int
    head_size: int


def cache_shape(config: Any) -> CacheShape:
    """The cache that a decoder of this configuration keeps. Any: transformers' configurations are untyped."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return CacheShape(config.num_hidden_layers, kv_heads, size)


def capture(model: nn.Module, config: Any, folder: Path) -> Path:
    """Write the step of `model` as `folder/model.onnx`, weights beside it under their checkpoint names.

    `model` was loaded with `attn_implementation=IMPLEMENTATION` after `register()`. Raises `NotSupported` where torch
    cannot capture or translate it.
    """
    torch = import_torch()
    shape = cache_shape(config)
    past = {
        f"{kind}_{i}": torch.zeros(1, shape.kv_heads, 3, shape.head_size)
        for i in range(shape.layers)
        for kind in ("key", "value")
    }
    inputs = {
        "input_ids": torch.ones(1, 5, dtype=torch.int64),
        "past_length": torch.tensor([3]),
        "logits_at": torch.tensor([2, 4]),
        "past": past,
    }
    axes = {"input_ids": {1: "sequence"}, "logits_at": {0: "kept"}}
    axes |= {f"past_{name}": {2: "past"} for name in past}
    step = _step_class()(model, shape.layers)
    return write_step(step, inputs, axes, folder, opset=_OPSET, prefix="decoder.")


@cache
def register() -> None:
    """Make our attention known to transformers."""
    import transformers

    known: Any = transformers
    known.AttentionInterface.register(IMPLEMENTATION, _attention)
    known.AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)


class _Trace:
    """What attention layers read and write while one step is traced."""

    past: Any = None
    total: Any = None
    present: Any = None


def _no_mask(*_: object, **__: object) -> None:
    """The operator itself says which positions are seen."""


def _attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: object,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """transformers' interface: query [B, H, S, D], key and value [B, G, S, D]; gives [B, S, H, D]. Any: tensors."""
    del attention_mask
    if kwargs.get("s_aux") is not None:
        raise ValueError("attention sinks are not supported")
    torch = import_torch()
    batch, heads, length, size = query.shape
    groups = key.shape[1]
    layer = module.layer_idx
    past_key, past_value = _Trace.past[f"key_{layer}"], _Trace.past[f"value_{layer}"]
    flat = [t.transpose(1, 2).reshape(batch, length, t.shape[1] * size) for t in (query, key, value)]
    last = (_Trace.total - 1).reshape(1)
    grown = (batch, groups, past_key.shape[2] + length, size)
    y, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (*flat, past_key, past_value, last, _Trace.total),
        attrs={
            "num_heads": heads,
            "kv_num_heads": groups,
            "scale": float(size**-0.5 if scaling is None else scaling),
            "local_window_size": int(sliding_window or -1),
            "softcap": float(softcap or 0.0),
        },
        dtypes=(query.dtype,) * 3,
        shapes=((batch, length, heads * size), grown, grown),
        version=1,
    )
    _Trace.present[f"present_key_{layer}"], _Trace.present[f"present_value_{layer}"] = present_key, present_value
    return y.reshape(batch, length, heads, size), None


@cache
def _step_class() -> Any:
    """The module that is traced. Any: torch is imported when the class is first asked for."""
    torch = import_torch()

    class Step(torch.nn.Module):
        """One step of a decoder over an explicit cache."""

        def __init__(self, decoder: Any, layers: int) -> None:
            torch.nn.Module.__init__(self)
            self.decoder = decoder
            self.layers = layers

        def forward(self, input_ids: Any, past_length: Any, logits_at: Any, past: dict[str, Any]) -> dict[str, Any]:
            """The step of this file's head."""
            length = input_ids.shape[1]
            _Trace.past, _Trace.present = past, {}
            _Trace.total = (past_length + length).to(torch.int32).reshape(())
            positions = (past_length + torch.arange(length)).unsqueeze(0)
            out = self.decoder(
                input_ids=input_ids,
                position_ids=positions,
                attention_mask=torch.zeros(1, 1, 1, 1),  # given ready-made, transformers builds none
                use_cache=False,
                logits_to_keep=logits_at,
            )
            order = [f"present_{kind}_{i}" for i in range(self.layers) for kind in ("key", "value")]
            return {"logits": out.logits, **{name: _Trace.present[name] for name in order}}

    return Step
