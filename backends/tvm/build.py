"""Build the backend's part of an artifact: choose kernels, pack, lower to Relax, compile, link one shared library."""

from __future__ import annotations

import importlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from qcc.backends.native import isa as instruction_sets
from qcc.backends.native.calls import Function, runtime
from qcc.backends.native.compile import compiler
from qcc.backends.native.isa import Isa
from qcc.backends.native.linear import generate, pack
from qcc.ir import types
from qcc.ir.dialects.q import Conv, Embedding, Linear, Weight, part
from qcc.ir.errors import NotSupported
from qcc.ir.expand import expand_one
from qcc.ir.kernel_task import Assignment, Picker, cheapest
from qcc.ir.program import Program, stored_value
from qcc.ir.quantized import Quantized
from qcc.ir.rewrite import ProgramContext, remove_dead
from qcc.ir.target import Target
from qcc.ir.weights import WeightStore
from qcc.passes import schemes
from qcc.passes.fold_constants import FoldConstants
from qcc.passes.pack_weights import PackWeights
from qcc.passes.store_cache import StoreCache

from ..select import Built, Samples
from .attention import growth
from .caches import DTYPES
from .lower import Lowered, lower
from .quantized import Kernel, fixed_of, linear_spec, table_spec
from .run import LIBRARY, NETWORK, SLACK, SLACK_BYTES
from .tasks import EXPANSION, choose
from .toolchain import Tvm, require, target_of, tvm
from .vectorize import vectorize

DEVICES = ("cpu",)
CACHE = "f16"
"""What caches keep where nobody asked for another form: decoding reads half the bytes of float32."""
_FOLD = 1 << 40
"""Bytes that folding may add: a weight without a kernel is decoded once, when it is compiled."""


def obstacle(scheme: str, target: Target) -> str:
    """Fixed point is for hardware that shifts. `MissingExtra` where TVM or a C compiler is missing."""
    del target
    require()
    compiler()
    return "its kernels gain nothing from powers of two as scales" if schemes.load(scheme).is_fixed_point else ""


def resolve(program: Program, target: Target, pick: Picker = cheapest) -> list[Assignment]:
    """Choose a kernel for every operation with a weight and resolve layouts in the IR."""
    StoreCache(CACHE).run(program, ProgramContext(program=program))
    return choose(program, target, instruction_sets.best(target), pick)


def build(
    program: Program, target: Target, folder: Path, weights: str, pick: Picker = cheapest, samples: Samples = ()
) -> Built:
    """Write `network.so` and the weights that it takes into `folder`. `program` is left packed."""
    del samples
    isa = instruction_sets.best(target)
    assignments = resolve(program, target, pick)
    packed = _packed(program, isa)
    PackWeights().run(program, ProgramContext(program=program))
    lowered = lower(_expanded(program), isa, packed)
    _compile(lowered, folder / LIBRARY)
    together = WeightStore()
    for store in (lowered.weights, program.weights):
        for name in store:
            together[name] = store[name]
    together[SLACK] = np.zeros(SLACK_BYTES, np.uint8)
    together.save(folder / weights)
    (folder / NETWORK).write_text(json.dumps(_record(program, lowered, isa, weights), indent=1) + "\n")
    forms = {DTYPES[cache.form] for cache in lowered.caches}
    kept = forms.pop() if len(forms) == 1 else ""
    return Built(assignments, {}, (LIBRARY, NETWORK, weights), cache_dtype=kept, requires=isa.needs)


def _packed(program: Program, isa: Isa) -> dict[str, Kernel]:
    """The kernels of linear operations and embeddings, by node; the store holds the bytes that they read."""
    found: dict[str, Kernel] = {}
    ops = [op for op in program.module.walk() if isinstance(op, Linear | Embedding) and op.get("kernel") != EXPANSION]
    done: dict[str, Kernel] = {}
    values: dict[str, Quantized] = {}
    for op in sorted(ops, key=lambda op: isinstance(op, Embedding)):
        owner = op.operands[1].owner
        assert isinstance(owner, Weight)
        if isinstance(op, Embedding) and owner.weight in done:
            found[op.node] = done[owner.weight]
            continue
        if owner.weight not in values:
            values[owner.weight] = stored_value(owner, program)
            for name in values[owner.weight].parts:
                del program.weights[part(owner.weight, name)]
        text = generate(table_spec(op) if isinstance(op, Embedding) else linear_spec(op), isa)
        packed = pack(text.spec, text.storage, values[owner.weight], fixed_of(op))
        found[op.node] = done[owner.weight] = Kernel(text, packed)
        program.weights[part(owner.weight, "codes")] = packed.data
    return found


def _expanded(program: Program) -> Program:
    """A copy whose operations without a kernel are standard operators on constants that are folded."""
    copy = program.clone()
    for op in [op for op in copy.module.walk() if isinstance(op, Linear | Conv | Embedding)]:
        if op.get("kernel") == EXPANSION:
            value = expand_one(op, copy)
            op.results[0].replace_all_uses_with(value)
            op.detach()
            op.erase()
    remove_dead(copy)
    FoldConstants(_FOLD).run(copy, ProgramContext(program=copy))
    remove_dead(copy)
    return copy


def _compile(lowered: Lowered, library: Path) -> None:
    """TVM's part and the C functions, each compiled once for all networks, in one shared library.

    `NotSupported` where TVM fails on a network that it has a form for: another backend may not.
    """
    with ThreadPoolExecutor(2) as pool:
        objects = pool.map(Function.compile, [f for f in lowered.functions if f.text])
        try:
            compiled = tvm().compile(_fused(_with_step(lowered)), target_of("host"))
        except tvm().error.InternalError as error:  # one of its own checks; what else goes wrong is ours
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
            raise NotSupported(f"TVM does not compile the network: {reason}", hint="--backend onnxruntime") from error
        compiled.export_library(str(library), addons=[str(path) for path in [*objects, runtime()]])


def _with_step(lowered: Lowered) -> Tvm:
    """The module; where there are caches, with the function `step` beside `main`, for inputs of one token.

    Its shapes are known: it makes none while it runs, and its memory is planned.
    """
    if not lowered.caches:
        return lowered.module
    relax, module = importlib.import_module("tvm.relax"), lowered.module
    module["step"] = (
        importlib.import_module("tvm.relax.utils").copy_with_new_vars(module["main"]).with_attr("global_symbol", "step")
    )
    return relax.transform.BindSymbolicVars(dict.fromkeys(lowered.free, 1), "step")(module)


def _fused(module: Tvm) -> Tvm:
    """The module with neighbouring elementwise operators in one loop, over blocks of channels as vectors."""
    relax = importlib.import_module("tvm.relax")
    return vectorize(relax.get_pipeline("zero")(relax.transform.DeadCodeElimination()(module)))


def _record(program: Program, lowered: Lowered, isa: Isa, weights: str) -> dict[str, object]:
    """What `run.py` has to know."""
    version = importlib.import_module("importlib.metadata").version
    kinds = [types.element_of(types.element_type(p.type)).numpy.name for p in program.inputs()]
    return {
        "inputs": [p.name for p in program.inputs()],
        "dtypes": kinds,
        "outputs": [p.name for p in program.results()],
        "weights": weights,
        "parameters": lowered.parameters,
        "caches": [asdict(cache) for cache in lowered.caches],
        "grows": growth(program) if lowered.caches else 0,
        "step": lowered.step if lowered.caches else {},
        "isa": isa.name,
        "tvm": version("apache-tvm"),
        "tvm_ffi": version("apache-tvm-ffi"),
    }
