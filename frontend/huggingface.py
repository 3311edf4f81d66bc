"""The Hugging Face door: a folder of config, weights and tokenizer becomes a torch decoder, without running its code.

Weights are read from safetensors, codes of GPTQ, AWQ and compressed-tensors among them (`checkpoints.py`); a float
`pytorch_model.bin` is read with torch's restricted unpickler (`weights_only`), which refuses everything but tensors.
Custom code (`auto_map`) is refused.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qcc.ir.errors import BadInput, MissingExtra, NotSupported, QccError
from qcc.ir.weights import locate

from . import causal_lm
from .checkpoints import INDEX, WHOLE, open_checkpoint, shards
from .decoders import empty_decoder, fill
from .language import LanguageModel, check_architecture, describe, read_json
from .quantization_config import reader_of
from .torch_to_onnx import first_reason, quiet

_PICKLE = "pytorch_model.bin"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def open_folder(path: str | Path) -> LanguageModel:
    """Load a decoder in float32, with its tokenizer.

    Raises `BadInput` for a folder that is incomplete or damaged, `NotSupported` for architectures that are not known,
    for custom code and for methods of quantization that are not known, `MissingExtra` without transformers.
    """
    path = Path(path)
    config = read_json(_required(path, "config.json", "a Hugging Face folder has a config.json"))
    if "auto_map" in config:
        raise NotSupported(
            f"{path}: the model brings code of its own (auto_map), which qcc does not run",
            hint="use an architecture of transformers, or export the model to ONNX yourself",
        )
    if "quantization_config" in config:
        reader_of(config["quantization_config"], path)
    check_architecture(config.get("model_type"), path)
    _check_weights(path)
    if not any((path / name).is_file() for name in _TOKENIZERS):
        raise BadInput(
            f"{path}: no tokenizer: none of {', '.join(_TOKENIZERS)}", hint="copy the tokenizer files of the model too"
        )
    generation = path / "generation_config.json"
    settings = read_json(generation) if generation.is_file() else {}
    return load_quantized(path, settings) if "quantization_config" in config else load(path, settings)


def load(path: Path, settings: dict[str, Any]) -> LanguageModel:
    """The decoder of a checked folder. Any: parsed JSON."""
    transformers = import_transformers()
    causal_lm.register()
    with loading(path):
        module, info = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            dtype="float32",
            attn_implementation=causal_lm.IMPLEMENTATION,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
            trust_remote_code=False,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    for name, stored, wanted in sorted(info["mismatched_keys"]):
        raise BadInput(
            f"{path}: the weight {name!r} has shape {list(stored)}, the network wants {list(wanted)}",
            hint="the weights and the configuration do not belong together: copy the model again",
        )
    require_all(info["missing_keys"], path)
    return finish(module, tokenizer, settings, "Hugging Face folder", path)


def load_quantized(path: Path, settings: dict[str, Any]) -> LanguageModel:
    """The decoder of a checked folder whose weights are codes: float32 is what they decode to. Any: parsed JSON.

    Quantized activations of the checkpoint are not taken over: how activations are held is for the scheme to say.
    """
    checkpoint = open_checkpoint(path)
    transformers = import_transformers()
    with loading(path):
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        del config.quantization_config
        module = empty_decoder(config)
    with loading(path):
        stored = fill(module, checkpoint.names, checkpoint.read, path)
    left = sorted(set(checkpoint.names) - set(module.state_dict()))
    if left:
        raise BadInput(
            f"{path}: {module.config.model_type} of transformers has no place for the weight {left[0]!r}",
            hint="the weights and the configuration do not belong together: copy the model again",
        )
    require_all((n for n, p in module.named_parameters() if p.is_meta), path)
    return dataclasses.replace(finish(module, tokenizer, settings, "Hugging Face folder", path), stored=stored)


def finish(module: Any, tokenizer: Any, settings: dict[str, Any], source: str, path: Path) -> LanguageModel:
    """A loaded module and its tokenizer as a `LanguageModel`. Any: transformers' classes are untyped."""
    _require_fixed_rope(module.config, path)
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        raise NotSupported(f"{path}: its tokenizer has no form for the tokenizers library", hint="add a tokenizer.json")
    spec = describe(module.config, settings, causal_lm.cache_shape(module.config), source)
    return LanguageModel(module.eval(), module.config, spec, fast.to_str())


def _require_fixed_rope(config: Any, path: Path) -> None:
    """`NotSupported` where angles depend on the length of the text: a captured graph has one table for all lengths."""
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    layers: list[dict[str, Any]] = [v for v in rope.values() if isinstance(v, dict)]
    for kind in (each.get("rope_type") for each in (rope, *layers)):
        if kind in ("dynamic", "longrope"):
            raise NotSupported(
                f"{path}: rotary positions {kind!r} depend on the length of the text; a captured graph's do not",
                hint="use a model with default, linear, llama3 or yarn positions",
            )


def require_all(missing: Iterable[str], path: Path) -> None:
    """`BadInput` where the checkpoint lacks weights of the network."""
    names = sorted(missing)
    if names:
        raise BadInput(
            f"{path}: the checkpoint lacks {len(names)} weights, {names[0]!r} first",
            hint="the weights and the configuration do not belong together: copy the model again",
        )


@contextmanager
def loading(path: Path) -> Generator[None]:
    """What transformers raises for a damaged model, as `BadInput` with its reason; it stays silent and offline.

    It raises errors of many libraries, which have no common base.
    """
    transformers = import_transformers()
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        with quiet():
            yield
    except ImportError as error:
        raise MissingExtra(
            f"transformers asks for more: {first_reason(error)}", hint='pip install "qcc[hf]"'
        ) from error
    except NotImplementedError as error:
        raise NotSupported(f"{path}: {first_reason(error)}", hint="give the float checkpoint") from error
    except (QccError, MemoryError):
        raise
    except Exception as error:
        raise BadInput(
            f"{path}: transformers {transformers.__version__} does not load it: {first_reason(error)}",
            hint="copy the model again, or check that its files belong together",
        ) from error
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before


def import_transformers() -> Any:
    """The transformers module. Any: it has no stubs that hold."""
    try:
        import tokenizers  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import transformers
    except ImportError as error:
        raise MissingExtra(f"language models need {error.name}", hint='pip install "qcc[hf]"') from error
    return transformers


def _required(path: Path, name: str, hint: str) -> Path:
    if not (path / name).is_file():
        raise BadInput(f"{path}: no {name}", hint=hint)
    return path / name


def _check_weights(path: Path) -> None:
    """Every file of the weights is there and whole."""
    if (path / INDEX).is_file():
        for shard in shards(path):
            locate(path / shard)
    elif (path / WHOLE).is_file():
        locate(path / WHOLE)
    elif not (path / _PICKLE).is_file():
        raise BadInput(f"{path}: no weights: neither {WHOLE} nor {_PICKLE}", hint="copy every file of the model")
