"""The C text of a row kernel: passes over a row that the first cache holds, each ending in what the next one needs.

    for each row:                                   a thread's share of M
        for each pass:
            for each 16 columns:                    4 x 16 where something is summed, in sums of their own
                what the pass reduces, or in the last pass: the results
            numbers of the row: sums, and what is computed of them alone

What two passes need is computed again where that is an operation or two, else kept in a row of memory. All results are
stored in the last pass, each after what it is made of was read: a result may lie on top of an input. The order of a sum
depends on K alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .isa import C_FOLDER, Isa
from .rows_expression import INPUTS, OPS, REDUCTIONS, Node
from .rows_spec import ENDS, STACK_BYTES, Output, RowsSpec

LANES = 16
CHAINS = 4
"""Sums that run beside each other: as long as an addition takes."""
CHEAP = 3
"""What is worth computing again, in the costs of `OPS`."""
TASK_BYTES = 1 << 15
_CALLS = {
    "sub": "sub", "div": "divide", "min": "min_of", "max": "max_of", "neg": "negate", "abs": "abs_floats",
    "sqrt": "sqrt_floats", "round": "round_floats", "exp": "exp_floats", "log": "log_floats", "erf": "erf_floats",
    "tanh": "tanh_floats",
}  # fmt: skip
"""Functions of the vocabulary, where they are not called as the operation is."""
_NEUTRAL = {"row_sum": "zero_floats()", "row_mean": "zero_floats()", "row_max": "set_floats(-__builtin_inff())"}


@dataclass(frozen=True)
class RowsText:
    """A generated kernel."""

    spec: RowsSpec
    isa: Isa

    def text(self) -> str:
        """The whole C text."""
        spec, rows = self.spec, self._prepared
        lines = [f"/* {spec}, {self.isa.name} */", "#include <math.h>", "#include <stddef.h>", self.isa.text()]
        lines += [(C_FOLDER / f"rows_{self.isa.header}").read_text(), (C_FOLDER / "functions.h").read_text()]
        lines += [f"#define K {spec.k}L", f"#define CHUNK {max(1, TASK_BYTES // (4 * spec.k))}L"]
        if rows and rows.prepared:
            lines += [f"#define {name} {value}" for name, value in rows.prepared.constants().items()]
            lines += [(C_FOLDER / "activations.h").read_text()]
        lines += [(C_FOLDER / "rows_job.h").read_text(), *self._task(), (C_FOLDER / "rows.h").read_text()]
        return "\n".join(lines) + "\n"

    def function(self, symbol: str) -> str:
        """C text, to stand behind that of the kernel: the kernel as a function of plain arguments.

            symbol(inputs..., outputs..., int64 m, int64 step of each tensor..., of each output...)

        `qcc_launch` and `int qcc_threads` are those of the library that it is linked into.
        """
        inputs, outputs = self.spec.inputs, self.spec.outputs
        stepped = [i for i, node in enumerate(inputs) if node.op == "tensor"]
        kinds = ["float" if output.form == "f32" else "uint8_t" for output in outputs]
        names = [f"const float *x{i}" for i in range(len(inputs))]
        names += [f"{kind} *y{i}" for i, kind in enumerate(kinds)]
        names += [
            "int64_t m",
            *[f"int64_t x{i}_step" for i in stepped],
            *[f"int64_t y{i}_step" for i in range(len(outputs))],
        ]
        steps = [f"x{i}_step" if i in stepped else "1" for i in range(len(inputs))]
        return "\n".join(
            [
                "void qcc_launch(task_fn task, void *data, long count, long chunk, int threads);",
                "extern int qcc_threads;",
                f"void {symbol}({', '.join(names)}) {{",
                f"    const float *const inputs[] = {{{', '.join(f'x{i}' for i in range(len(inputs)))}}};",
                f"    const long input_steps[] = {{{', '.join(steps)}}};",
                f"    void *const outputs[] = {{{', '.join(f'y{i}' for i in range(len(outputs)))}}};",
                f"    const long output_steps[] = {{{', '.join(f'y{i}_step' for i in range(len(outputs)))}}};",
                "    qcc_rows(inputs, input_steps, outputs, output_steps, m, qcc_threads, qcc_launch);",
                "}",
            ]
        )

    @property
    def passes(self) -> int:
        """Passes over a row."""
        return 1 + max(node.level for output in self.spec.outputs for node in output.nodes)

    @property
    def _prepared(self) -> Output | None:
        return next((o for o in self.spec.outputs if o.form == "rows"), None)

    @cached_property
    def _numbers(self) -> dict[Node, int]:
        """Every node, with the number that its variable has."""
        nodes = dict.fromkeys(n for o in self.spec.outputs for root in o.nodes for n in root.walk())
        return {node: i for i, node in enumerate(nodes)}

    def goals(self, index: int) -> list[Node]:
        """What a pass is for: what it reduces, or, of the last one, the results."""
        if index == self.passes - 1:
            return [node for output in self.spec.outputs for node in output.nodes]
        return [n.args[0] for n in self.reductions(index)]

    def reductions(self, index: int) -> list[Node]:
        """What a pass reduces a row to."""
        return [n for n in self._numbers if n.op in REDUCTIONS and n.level == index + 1]

    @cached_property
    def saved(self) -> dict[Node, int]:
        """What is kept for later passes, and the pass that computes it: nothing where rows are too long for it."""
        first, saved = dict[Node, int](), dict[Node, int]()

        def need(node: Node, index: int) -> None:
            if not node.varies or node.op in INPUTS:
                return
            if first.setdefault(node, index) < index and _cost(node) > CHEAP:
                saved[node] = first[node]
                return
            for arg in node.args:
                need(arg, index)

        for index in range(self.passes):
            for goal in self.goals(index):
                need(goal, index)
        return saved if 4 * self.spec.k * len(saved) <= STACK_BYTES else {}

    def _task(self) -> Iterator[str]:
        held = [f"kept_{self._numbers[node]}" for node in self.saved] + ["prepared"] * (self._prepared is not None)
        yield "static void rows_task(void *data, long first, long last, int thread) {"
        yield "    const rows_job *job = data;"
        yield "    (void)thread;"
        for name in held:
            yield f"    float {name}[{-(-self.spec.k // LANES) * LANES}] __attribute__((aligned(64)));"
        for i, node in enumerate(self.spec.inputs):
            if node.op == "column":
                yield f"    const float *const i_{self._numbers[node]} = job->inputs[{i}];"
        known = set[Node]()
        fixed = [n for n in self._numbers if not n.varies and _fixed(n)]
        yield from (f"    {line}" for line in self._of_row(fixed, known))
        yield "    for (long m = first; m < last; m++) {"
        for i, node in enumerate(self.spec.inputs):
            at = f"job->inputs[{i}] + m * job->input_steps[{i}]"
            if node.op == "tensor":
                yield f"        const float *const i_{self._numbers[node]} = {at};"
            if node.op == "row":
                yield f"        const floats v_{self._numbers[node]} = set_floats(*({at}));"
                known.add(node)
        for i, output in enumerate(self.spec.outputs):
            kind = "float" if output.form == "f32" else "uint8_t"
            yield f"        {kind} *const o_{i} = ({kind} *)job->outputs[{i}] + m * job->output_steps[{i}];"
        for index in range(self.passes):
            ready = [n for n in self._numbers if not n.varies and n.level <= index and n not in known]
            yield from (f"        {line}" for line in self._of_row(ready, known))
            yield from (f"        {line}" for line in self._pass(index))
        if self._prepared:
            yield f"        prepare_row(prepared, o_{self.spec.outputs.index(self._prepared)});"
        yield "    }"
        yield "}"

    def _of_row(self, nodes: list[Node], known: set[Node]) -> Iterator[str]:
        """Numbers that are the same in all columns, in all lanes of a vector; reductions are there already."""
        for node in nodes:
            known.add(node)
            if node.op not in REDUCTIONS:
                name = f"v_{self._numbers[node]}"
                yield f"const floats {name} = {self._value(node, [f'v_{self._numbers[a]}' for a in node.args])};"

    def _pass(self, index: int) -> Iterator[str]:
        """One pass, and the numbers that it reduces the row to."""
        k, reduced = self.spec.k, self.reductions(index) if index < self.passes - 1 else []
        chains = CHAINS if reduced else 1
        names = {node: f"s_{self._numbers[node]}" for node in reduced}
        for node, name in names.items():
            yield f"floats {', '.join(f'{name}_{u} = {_NEUTRAL[node.op]}' for u in range(chains))};"
        step = chains * LANES
        whole = k // step * step
        if whole:
            yield f"for (long k = 0; k < {whole}; k += {step}) {{"
            for u in range(chains):
                yield from (f"    {line}" for line in self._body(index, f"k + {LANES * u}", LANES, u))
            yield "}"
        for u, at in enumerate(range(whole, k, LANES)):
            yield "{"
            yield from (f"    {line}" for line in self._body(index, str(at), min(LANES, k - at), u))
            yield "}"
        for node, name in names.items():
            join, lanes = ("max_floats", "max_lanes") if node.op == "row_max" else ("add", "sum_lanes")
            total = f"{join}({join}({name}_0, {name}_1), {join}({name}_2, {name}_3))"
            total = f"{lanes}({total})" + f" / {k}.0f" * (node.op == "row_mean")
            yield f"const floats v_{self._numbers[node]} = set_floats({total});"

    def _body(self, index: int, at: str, count: int, u: int) -> Iterator[str]:
        """16 columns of a pass: what it reduces goes to the sums of chain `u`."""
        last, made = index == self.passes - 1, dict[Node, str]()
        goals, uses = self.goals(index), self._uses(index)
        lines = list[str]()

        def value(node: Node) -> str:
            name = f"v_{self._numbers[node]}"
            if not node.varies:
                return name
            if node not in made:
                made[node] = f"{name}_{u}"
                lines.append(f"const floats {made[node]} = {text(node)};")
                if self.saved.get(node) == index:
                    lines.append(f"store_floats(kept_{self._numbers[node]} + {at}, {made[node]}, {LANES});")
            return made[node]

        def text(node: Node) -> str:
            if self.saved.get(node, index) < index:
                return f"load_f32(kept_{self._numbers[node]} + {at})"
            if node.op in INPUTS:
                return f"load_lanes(i_{self._numbers[node]} + {at}, {count})"
            if node.op == "add":
                for a, b in (node.args, node.args[::-1]):
                    if a.op == "mul" and a.varies and uses[a] == 1 and a not in self.saved:
                        return f"fma_({value(a.args[0])}, {value(a.args[1])}, {value(b)})"
            return self._value(node, [value(a) for a in node.args])

        if not last:
            for node in self.reductions(index):
                arg, total = node.args[0], f"s_{self._numbers[node]}_{u}"
                if (
                    node.op != "row_max"
                    and arg.op == "mul"
                    and uses[arg] == 1
                    and count == LANES
                    and arg not in self.saved
                ):
                    a, b = map(value, arg.args)
                    lines.append(f"{total} = fma_({a}, {b}, {total});")
                    continue
                kept = f"keep_lanes({value(arg)}, {count}, {_NEUTRAL[node.op]})"
                lines.append(f"{total} = {'max_floats' if node.op == 'row_max' else 'add'}({total}, {kept});")
        else:
            for goal in goals:
                value(goal)
            for i, output in enumerate(self.spec.outputs):
                lines += self._store(i, output, [value(n) for n in output.nodes], at, count)
        yield from lines

    def _uses(self, index: int) -> Counter[Node]:
        """How often a pass uses what it computes."""
        uses, seen = Counter[Node](), set[Node]()

        def visit(node: Node) -> None:
            uses[node] += 1
            if node in seen or not node.varies or self.saved.get(node, index) < index:
                return
            seen.add(node)
            for arg in node.args:
                visit(arg)

        for goal in self.goals(index):
            visit(goal)
        return uses

    def _store(self, i: int, output: Output, values: list[str], at: str, count: int) -> Iterator[str]:
        if output.form in ENDS:
            low, high = ENDS[output.form]
            ends = ", ".join(f"set_floats({end}.0f)" for end in (output.zero, low, high))
            yield f"store_codes(o_{i} + {at}, {values[0]}, {values[1]}, {ends}, {count});"
        elif output.form == "rows":
            yield f"store_floats(prepared + {at}, {values[0]}, {LANES});"
        else:
            yield f"store_floats(o_{i} + {at}, {values[0]}, {count});"

    def _value(self, node: Node, args: list[str]) -> str:
        """An operation on variables."""
        if node.op == "single":
            return f"set_floats(*job->inputs[{self.spec.inputs.index(node)}])"
        return operation(node, args)


def function_of(expression: Node, name: str) -> Iterator[str]:
    """`floats name(floats x, const float *n)`: an expression of a tensor `x`, and of single numbers `n0`, `n1` ..."""
    made: dict[Node, str] = {}
    yield f"INLINE floats {name}(floats x, const float *n) {{"
    for node in expression.walk():
        if node in made:
            continue
        if node.op == "tensor":
            made[node] = "x"
            continue
        made[node] = f"v{len(made)}"
        single = f"set_floats(n[{node.name[1:]}])" if node.op == "single" else ""
        yield f"    const floats {made[node]} = {single or operation(node, [made[a] for a in node.args])};"
    yield f"    return {made[expression]};"
    yield "}"


def operation(node: Node, args: list[str]) -> str:
    """An operation on variables, or a number, in the vocabulary of vectors."""
    if node.op == "number":
        return f"set_floats({_literal(node.value)})"
    if node.op in ("min", "max") and any(a.op == "number" for a in node.args):
        # a number as the first argument needs no care of NaN
        first, second = args if node.args[0].op == "number" else args[::-1]
        return f"{node.op}_floats({first}, {second})"
    return f"{_CALLS.get(node.op, node.op)}({', '.join(args)})"


def _fixed(node: Node) -> bool:
    """Whether it is the same in all rows."""
    return node.op not in ("row", *REDUCTIONS) and all(map(_fixed, node.args))


def _cost(node: Node) -> int:
    """What computing a value of a column from the inputs takes."""
    if not node.varies or node.op in INPUTS:
        return 0 if not node.varies else 1
    return OPS[node.op][1] + sum(map(_cost, node.args))


def _literal(value: float) -> str:
    return f"{float(np.float32(value)).hex()}f"
