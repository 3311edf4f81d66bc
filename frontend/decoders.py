"""A decoder of transformers whose weights come from elsewhere: built without memory for them, then filled by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from qcc.ir.errors import BadInput, MissingExtra
from qcc.ir.program import StoredCodes

from . import causal_lm
from .checkpoints import Weight
from .torch_to_onnx import import_torch


def empty_decoder(config: Any) -> Any:
    """The module of a configuration, its parameters on torch's meta device. Any: torch is not imported here."""
    import transformers

    causal_lm.register()
    try:
        from accelerate import init_empty_weights  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise MissingExtra("such files need the package accelerate", hint='pip install "qcc[hf]"') from error
    known: Any = transformers
    with init_empty_weights(include_buffers=False):
        return known.AutoModelForCausalLM.from_config(
            config, attn_implementation=causal_lm.IMPLEMENTATION, dtype="float32"
        )


def fill(module: Any, names: Iterable[str], read: Callable[[str], Weight], path: Path) -> dict[str, StoredCodes]:
    """Give the module float32 weights; codes are decoded, and returned by name. Any: a module of torch.

    Raises `BadInput` for a tensor of another shape than the module wants.
    """
    torch = import_torch()
    values: dict[str, Any] = {}
    stored: dict[str, StoredCodes] = {}
    known = set(names)
    wanted: dict[str, Any] = module.state_dict(keep_vars=True)
    tied = bool(module.config.tie_word_embeddings)
    for name, parameter in wanted.items():
        if name not in known or (tied and name == "lm_head.weight"):
            continue
        weight = read(name)
        if isinstance(weight, StoredCodes):
            stored[name] = weight
            weight = weight.value.decode()
        if weight.shape != tuple(parameter.shape):
            found, expected = list(weight.shape), list(parameter.shape)
            raise BadInput(
                f"{path}: the weight {name!r} has shape {found}, the network wants {expected}",
                hint="the weights and the configuration do not belong together: copy the model again",
            )
        values[name] = torch.from_numpy(np.array(weight, np.float32))
    if tied and "model.embed_tokens.weight" in stored:  # the table is the output head
        stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
    module.load_state_dict(values, strict=False, assign=True)
    module.tie_weights()
    return stored
