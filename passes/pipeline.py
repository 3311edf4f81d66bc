"""The order of the passes, which is meaning: simplify, quantize weights, then activations. `api` packs at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xdsl.ir import Block, SSAValue
from xdsl.utils.exceptions import VerifyException

from qcc.ir.errors import CheckFailed
from qcc.ir.program import Program
from qcc.ir.rewrite import Pass, ProgramContext
from qcc.ir.text import check

from . import schemes
from .canonicalize import Canonicalize
from .equalize_layers import EqualizeLayers
from .expand_attention_mask import ExpandAttentionMask
from .fold_affine import FoldAffine
from .fold_constants import FoldConstants
from .form_gather import FormGather
from .form_gemm import FormGemm
from .form_global_pool import FormGlobalPool
from .fuse_batch_norm import FuseBatchNorm
from .fuse_bias import FuseBias
from .fuse_hard_sigmoid import FuseHardSigmoid
from .fuse_hard_swish import FuseHardSwish
from .fuse_rotary import FuseRotary
from .keep_codes import KeepCodes
from .merge_duplicates import MergeDuplicates
from .permute_inputs import PermuteInputs
from .quantize_activations import QuantizeActivations
from .quantize_bias import QuantizeBias
from .quantize_conv import QuantizeConv
from .quantize_embedding import QuantizeEmbedding
from .quantize_fixed_point import QuantizeFixedPoint
from .quantize_linear import QuantizeLinear
from .recognize_attention import RecognizeAttention
from .sink_transposes import SinkTransposes
from .smooth_activations import SmoothActivations
from .store_cache import StoreCache


@dataclass(frozen=True)
class QuantizeOptions:
    """What the quantizing passes take from the user."""

    scheme: str
    group_size: int = 0
    algorithm: str = "rtn"
    observer: str = "mse"
    ignore: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    kv_cache: str = ""
    """What caches keep, one of `CACHES`; empty: what the backend prefers."""


def legalize() -> list[Pass]:
    """What ONNX allows and ONNX Runtime, which runs the reference, does not: written in the form that both know.

    Codes that the model was quantized to become `q.linear` before anything folds them.
    """
    return [ExpandAttentionMask(), RecognizeAttention(), KeepCodes()]


def simplify() -> list[Pass]:
    """Rewrites that keep the meaning: the result computes the same numbers up to rounding, with fewer operations."""
    return [
        Canonicalize(),
        FoldConstants(),
        FuseBatchNorm(),
        FuseHardSigmoid(),
        FuseHardSwish(),
        FuseRotary(),
        FormGather(),
        SinkTransposes(),
        FoldAffine(),
        FoldAffine(),  # what the first round folded into a convolution may have stood in the way of its neighbour
        Canonicalize(),
        FoldConstants(),
        MergeDuplicates(),
    ]


def smooth(scheme: str, ignore: tuple[str, ...]) -> list[Pass]:
    """Before ranges are taken: what makes activations easier to quantize."""
    if schemes.load(scheme).is_fixed_point:
        return [FormGemm(), FormGlobalPool(), EqualizeLayers()]
    return [SmoothActivations(scheme, ignore)]


def quantize(options: QuantizeOptions) -> list[Pass]:
    """Weights first, because activations are chosen around quantized weights."""
    return [*_quantize(options), *([StoreCache(options.kv_cache)] if options.kv_cache else [])]


def _quantize(options: QuantizeOptions) -> list[Pass]:
    o = options
    if schemes.load(o.scheme).is_fixed_point:
        return [
            QuantizeLinear(o.scheme, 0, o.algorithm, o.ignore, o.include),
            QuantizeConv(o.scheme, 0, o.algorithm, o.ignore, o.include),
            QuantizeFixedPoint(o.scheme, o.observer, o.ignore),
            QuantizeBias(o.scheme),
        ]
    return [
        QuantizeLinear(o.scheme, o.group_size, o.algorithm, o.ignore, o.include),
        QuantizeConv(o.scheme, o.group_size, o.algorithm, o.ignore, o.include),
        QuantizeEmbedding(o.scheme, o.group_size, o.algorithm, o.ignore, o.include),
        FuseBias(),
        PermuteInputs(),
        QuantizeActivations(o.scheme, o.group_size, o.observer),
    ]


Observe = Callable[[Pass, Program], None]


def run(passes: list[Pass], program: Program, ctx: ProgramContext, *, after: Observe | None = None) -> None:
    """Run passes in order; the module is verified after each, and `after` sees it."""
    for each in passes:
        each.run(program, ctx)
        try:
            check(program.module, f"after pass {each.name}")
            _check_order(program.body, set())
        except Exception as error:
            raise CheckFailed(
                f"pass {each.name} broke the program: {error}", hint="this is a bug of qcc: please report it"
            ) from error
        if after is not None:
            after(each, program)


def _check_order(block: Block, visible: set[SSAValue]) -> None:
    """Every operand is defined above its reader, or around it: xDSL's verifier does not look."""
    defined: list[SSAValue] = list(block.args)
    visible.update(defined)
    for op in block.ops:
        if any(operand not in visible for operand in op.operands):
            raise VerifyException(f"{op.name} {getattr(op, 'node', '')!r} reads a value that is not defined above it")
        for region in op.regions:
            for inner in region.blocks:
                _check_order(inner, visible)
        visible.update(op.results)
        defined.extend(op.results)
    visible.difference_update(defined)
