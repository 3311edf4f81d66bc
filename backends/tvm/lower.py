"""From the IR to a Relax function: standard operators through TVM, `q` operations as calls of generated C functions.

    main(inputs..., weights...) -> outputs          weights are arguments, in the order of `Lowered.parameters`

A value is held in the forms that its readers ask for: as the IR has it, or, around convolutions, in blocks of 16
channels (`blocked.py`). Symbols of dimensions are TVM's; shapes that are computed are followed (`symbolic.py`).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from xdsl.dialects.func import ReturnOp
from xdsl.ir import Operation, SSAValue

from qcc.backends.native.calls import Function, rows_function
from qcc.backends.native.isa import Isa
from qcc.backends.native.rows_spec import RowsSpec
from qcc.ir import types
from qcc.ir.dialects.graph_op import GraphOp
from qcc.ir.dialects.onnx import OnnxOp, opset_of
from qcc.ir.dialects.q import Conv, Dequantize, Embedding, Linear, Quantize, Weight
from qcc.ir.dialects.q_attention import Attention
from qcc.ir.errors import NotSupported
from qcc.ir.infer import constant_of
from qcc.ir.program import Program
from qcc.ir.weights import WeightStore

from . import symbolic
from .caches import DTYPES, Cache
from .symbolic import Integers
from .toolchain import Tvm, tvm
from .wrappers import Float, Int32, wrapper

if TYPE_CHECKING:
    from .attention import Prologue
    from .quantized import Kernel

INLINE = 16
"""Numbers of a weight that is written into the function instead of being an argument."""
CALL = "call_"
"""What names of TIR functions begin with that call C functions."""
Result = tuple[Sequence[Any], str]
"""Extents and dtype. Any: int, or an expression of TVM's."""
_KEEP_SHAPES = {"Reshape", "Expand", "Resize", "ConstantOfShape"}
"""Operators whose converters take a shape as it is."""


@dataclass
class Lowered:
    """A network in TVM's terms."""

    module: Tvm
    parameters: list[str]
    """Names in `weights`, in the order of the arguments behind the inputs."""
    weights: WeightStore
    functions: list[Function]
    caches: list[Cache]
    """Inputs that are written to in place; the outputs of their names are the same memory."""
    free: list[str]
    """Symbols of extents of inputs that are no caches."""
    step: dict[str, list[int]]
    """The shapes of these inputs where every such symbol is 1."""


@dataclass
class Lowering:
    """A program while it becomes a Relax function. The fields of type `Tvm` are TVM's, which has no types."""

    program: Program
    isa: Isa
    packed: Mapping[str, Kernel]
    """The kernels of linear operations and embeddings, by node."""
    builder: Tvm = field(init=False)
    values: dict[SSAValue, Tvm] = field(default_factory=dict[SSAValue, Any])
    known: dict[SSAValue, Integers] = field(default_factory=dict[SSAValue, Any])
    symbols: dict[str, Tvm] = field(default_factory=dict[str, Any])
    functions: dict[str, Function] = field(default_factory=dict[str, Function])
    weights: WeightStore = field(default_factory=WeightStore)
    parameters: dict[str, Tvm] = field(default_factory=dict[str, Any])
    caches: dict[SSAValue, Cache] = field(default_factory=dict[SSAValue, Any])
    scales: dict[SSAValue, Tvm] = field(default_factory=dict[SSAValue, Any])
    """Of caches of codes: one number for each entry of a head."""
    prologues: dict[Attention, Prologue] = field(default_factory=dict[Attention, Any])

    def __post_init__(self) -> None:
        from . import attention
        from .blocked import Blocks
        from .rowwise import Rows

        tvm()
        self.relax: Tvm = importlib.import_module("tvm.relax")
        self.builder = self.relax.BlockBuilder()
        self.blocks, self.lazy = Blocks(self), Rows(self)
        self.caches = attention.caches_of(self.program)
        self.prologues = dict(attention.covered(self.program))
        for before in self.prologues.values():
            self.blocks.covered.update(before.covered)

    def run(self) -> Lowered:
        """The whole function. `NotSupported` names the operation that there is no form for."""
        builder, relax, body = self.builder, self.relax, self.program.body
        inputs = [self._input(port.name, arg) for port, arg in zip(self.program.inputs(), body.args, strict=True)]
        caches = [self.values[v] for v in self.caches]
        inputs = [*(x for x in inputs if all(x is not c for c in caches)), *caches, *self.scales.values()]
        with builder.function("main", attrs={"num_input": len(inputs)}):
            with builder.dataflow():
                results: list[Tvm] = []
                for op in body.ops:
                    if isinstance(op, ReturnOp):
                        held = [v for a in self.prologues for v in a.results[1:]]
                        results = [builder.emit_output(self.tensor(v)) for v in op.operands if v not in held]
                    elif op not in self.blocks.covered:
                        self._lower(op)
            builder.emit_func_output(relax.Tuple(results), params=[*inputs, *self.parameters.values()])
        ports = zip(self.program.inputs(), body.args, strict=True)
        free = {port.name: self._extents(port.name, arg) for port, arg in ports if arg not in self.caches}
        return Lowered(
            builder.get(),
            list(self.parameters),
            self.weights,
            list(self.functions.values()),
            list(self.caches.values()),
            list(dict.fromkeys(_identifier(d) for dims in free.values() for d in dims if isinstance(d, str))),
            {name: [d if isinstance(d, int) else 1 for d in dims] for name, dims in free.items()},
        )

    def _lower(self, op: Operation) -> None:
        from . import attention, operators, quantized

        try:
            match op:
                case Weight():
                    pass  # becomes an argument where it is read
                case Linear():
                    quantized.linear(op, self)
                case Embedding():
                    quantized.embedding(op, self)
                case Conv():
                    self.blocks.conv(op)
                case Quantize():
                    pass  # whoever reads it says in which form
                case Dequantize():
                    self.blocks.dequantize(op)
                case Attention():
                    attention.lower(op, self)
                case OnnxOp():
                    operators.lower(op, self)
                case _:
                    raise NotSupported("TVM has no form for it")
        except NotSupported as error:
            where = op.where() if isinstance(op, GraphOp) else op.name
            raise NotSupported(f"{where}: {error.message}", hint="--backend onnxruntime") from error

    def _input(self, name: str, arg: SSAValue) -> Tvm:
        extents = [self.extent(d) for d in self._extents(name, arg)]
        kind = types.element_of(types.element_type(arg.type)).numpy.name
        if arg in self.caches:
            form = self.caches[arg].form
            kind = DTYPES[form]
            if form == "i8":
                self.scales[arg] = self.relax.Var(
                    f"{_identifier(name)}_scale", self.relax.TensorType(extents[:-1], "float32")
                )
        self.values[arg] = self.relax.Var(_identifier(name), self.relax.TensorType(extents, kind))
        return self.values[arg]

    def _extents(self, name: str, arg: SSAValue) -> list[int | str]:
        """The extents of an input; every one that is open has a name."""
        dims = types.dims_of(arg.type)
        if dims is None:
            raise NotSupported(f"input {name!r} has no rank", hint="--input-shape states it, or --backend onnxruntime")
        return [d if d is not None else f"{name}.{i}" for i, d in enumerate(dims)]

    def extent(self, dim: int | str) -> Tvm:
        """An extent, or the symbol of its name."""
        if isinstance(dim, int):
            return dim
        if dim not in self.symbols:
            self.symbols[dim] = tvm().tirx.Var(_identifier(dim), "int64")
        return self.symbols[dim]

    # Values

    def tensor(self, value: SSAValue) -> Tvm:
        """A value as the IR has it: a tensor in row-major order."""
        if value in self.values:
            return self.values[value]
        if value in self.known:
            return self._shape(value, as_tensor=True)
        if value in self.lazy.waiting:
            return self.lazy.tensor(value)
        owner = value.owner
        if isinstance(owner, Weight):
            made = self.constant(self.program.weights[owner.weight], owner.weight)
        elif (array := constant_of(value)) is not None:
            made = self.constant(array, f"{value.name_hint or 'constant'}.{len(self.parameters)}")
        else:
            made = self.emit(self.blocks.natural(value))
        self.values[value] = made
        return made

    def constant(self, array: np.ndarray, name: str) -> Tvm:
        """A small array as a constant, a larger one as an argument called `name`."""
        if array.size <= INLINE:
            return self.relax.const(np.ascontiguousarray(array), str(array.dtype))
        return self.parameter(array, name)

    def parameter(self, array: np.ndarray, name: str) -> Tvm:
        """An array as an argument of the function, kept in the weights file under `name`."""
        if name not in self.parameters:
            self.weights[name] = np.ascontiguousarray(array)
            kind = self.relax.TensorType(array.shape, str(array.dtype))
            self.parameters[name] = self.relax.Var(f"w{len(self.parameters)}", kind)
        return self.parameters[name]

    def integers(self, value: SSAValue) -> Integers | None:
        """A small tensor of integers, where they are known."""
        if value in self.known:
            return self.known[value]
        owner = value.owner
        array = self.program.weights[owner.weight] if isinstance(owner, Weight) else constant_of(value)
        whole = array is not None and array.dtype.kind in "iu" and array.size <= symbolic.MOST
        return array.astype(object) if array is not None and whole else None

    def dims(self, value: SSAValue) -> list[Any] | None:
        """Extents of a value in whatever form there is. Any: int, or an expression of TVM's."""
        if value not in self.values and (blocked := self.blocks.dims(value)) is not None:
            return blocked
        if value in self.lazy.extents and value not in self.values:
            return self.lazy.extents[value]
        return extents_of(self.tensor(value))

    def _shape(self, value: SSAValue, *, as_tensor: bool) -> Tvm:
        """Known integers as a tensor, or as a shape."""
        known = self.known[value]
        kind = types.element_of(types.element_type(value.type)).numpy.name
        if (array := symbolic.constant(known)) is not None:
            return self.relax.const(array.astype(kind), kind)
        shape = self.relax.ShapeExpr(list(known.reshape(-1)))
        if not as_tensor and known.ndim == 1:
            return shape
        tensor = self.emit(self.relax.op.shape_to_tensor(shape))
        if kind != "int64":
            tensor = self.emit(self.relax.op.astype(tensor, kind))
        return tensor if known.ndim == 1 else self.emit(self.relax.op.reshape(tensor, known.shape))

    def operand(self, op: OnnxOp, value: SSAValue) -> Tvm:
        """A value as a converter of `op` takes it: shapes stay shapes where it can read them."""
        if value in self.known and value not in self.values and op.op_type in _KEEP_SHAPES:
            return self._shape(value, as_tensor=False)
        return self.tensor(value)

    def emit(self, expression: Tvm) -> Tvm:
        """Bind an expression; what it gives has a shape, or `NotSupported`."""
        made = self.builder.emit(self.builder.normalize(expression))
        if getattr(made.ty, "shape", True) is None:
            raise NotSupported("the shape of its result is not known before it runs")
        return made

    def matched(self, value: Tvm, extents: Sequence[Any]) -> Tvm:
        """`value` with these extents, which are checked when it runs. Any: int, or an expression of TVM's."""
        return self.builder.match_cast(value, self.relax.TensorType(list(extents), value.ty.dtype.dtype))

    def agreed(self, value: Tvm, wanted: Sequence[Any]) -> Tvm:
        """`value` with the wanted extents: where a symbol is not known to be one, it is checked. Any: as `matched`."""
        own, prove = extents_of(value) or [], tvm().sym.Analyzer().can_prove_equal
        clash = [
            not isinstance(o, int) and (isinstance(w, int) or not prove(o, w)) for o, w in zip(own, wanted, strict=True)
        ]
        if not any(clash):
            return value
        return self.matched(value, [w if c else o for o, w, c in zip(own, wanted, clash, strict=True)])

    # Calls

    def rows(self, spec: RowsSpec, inputs: Mapping[str, Tvm], extents: Sequence[Any]) -> list[Tvm]:
        """A row kernel, whose results have these extents, the last `spec.k`. Any: int, or an expression of TVM's."""
        rows = math.prod(extents[:-1], start=1)
        tensors = sum(node.op == "tensor" for node in spec.inputs)
        results = [(extents, {"f32": "float32"}.get(output.form, "uint8")) for output in spec.outputs]
        arguments = [inputs[node.name] for node in spec.inputs]
        steps = [spec.k] * (tensors + len(results))
        return self.calls(rows_function(spec, self.isa), arguments, results, [rows, *steps])

    def call(
        self,
        function: Function,
        inputs: Sequence[Tvm],
        result: Result,
        numbers: Sequence[Any] = (),
        *,
        refusal: str = "",
        changed: Sequence[int] = (),
    ) -> Tvm:
        """`function(inputs..., result, numbers...)`, as `calls` does it. Any: numbers of Python's, or extents."""
        return self.calls(function, inputs, [result], numbers, refusal=refusal, changed=changed)[0]

    def calls(
        self,
        function: Function,
        inputs: Sequence[Tvm],
        results: Sequence[Result],
        numbers: Sequence[Any] = (),
        *,
        refusal: str = "",
        changed: Sequence[int] = (),
    ) -> list[Tvm]:
        """`function(inputs..., results..., numbers...)`: numbers are Python's, or extents. Any: as they are.

        With `refusal`, the function gives a number, and that is what is said where it is not 0. It writes to the inputs
        `changed`.
        """
        relax = self.relax
        self.functions[function.symbol] = function
        extents = [n for n in numbers if not isinstance(n, (Float, Int32))]
        tensors = [(len(extents_of(x) or []), x.ty.dtype.dtype) for x in inputs]
        made = wrapper(function.symbol, tensors, [(len(e), k) for e, k in results], numbers, refusal, changed)
        target = self.builder.add_func(made, CALL + function.symbol)
        integer = tvm().tirx.IntImm
        passed = [integer("int64", e) if isinstance(e, int) else e for e in extents]
        kinds = [relax.TensorType(list(extents), kind) for extents, kind in results]
        called = relax.call_tir(target, [*inputs, *passed], kinds if len(kinds) > 1 else kinds[0])
        if len(kinds) == 1:
            return [self.emit(called)]
        together = self.builder.emit(called)
        return [self.emit(relax.TupleGetItem(together, i)) for i in range(len(kinds))]


def extents_of(value: Tvm) -> list[Any] | None:
    """The extents of a tensor; None where they are not known. Any: int, or an expression of TVM's."""
    shape = getattr(value.ty, "shape", None)
    return None if shape is None else [symbolic.as_int(d) for d in shape.values]


def lower(program: Program, isa: Isa, packed: Mapping[str, Kernel]) -> Lowered:
    """The Relax function of a program whose weights are packed, and the C functions that it calls."""
    return Lowering(program, isa, packed).run()


def _identifier(name: str) -> str:
    return "v_" + "".join(c if c.isalnum() else "_" for c in name)


def opset(op: OnnxOp) -> int:
    """The version of the standard operators around `op`."""
    return opset_of(op, op.domain)
