"""Conformance: every ONNX node test that ONNX Runtime passes, taken through import, text, parse, export, ONNX Runtime.

Prints the share that gives the same outputs and, with a reason, each that does not; and how many broken copies of each
test (a required operand dropped, an attribute of another type or name, an operand type that the schema forbids) the
verifier refuses.

    python benchmarks/conformance.py [--only NAME] [--limit N]
"""

from __future__ import annotations

import argparse
import collections
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto, numpy_helper

from qcc.frontend.onnx_file import HIGHEST_OPSET, from_model
from qcc.ir import types
from qcc.ir.emit_onnx import emit
from qcc.ir.errors import QccError
from qcc.ir.program import Program
from qcc.ir.text import parse, show
from qcc.ir.weights import WeightStore

RESULTS = Path(__file__).parent / "results"

Value = np.ndarray | list[Any] | None
"""Any: the items of a sequence are values again."""


@dataclass(frozen=True)
class NodeTest:
    """One test of `onnx.backend.test`: a model and sets of inputs with expected outputs."""

    name: str
    folder: Path

    def model(self) -> ModelProto:
        """The model as shipped."""
        return onnx.load(str(self.folder / "model.onnx"))

    def feeds(self, model: ModelProto) -> dict[str, Value]:
        """The inputs of the first data set."""
        files = sorted((self.folder / "test_data_set_0").glob("input_*.pb"), key=lambda p: int(p.stem.split("_")[1]))
        return {i.name: _load(f, i.type) for i, f in zip(model.graph.input, files, strict=False)}


def node_tests() -> Iterator[NodeTest]:
    """Every node test that the onnx package ships."""
    root = Path(onnx.__file__).parent / "backend" / "test" / "data" / "node"
    for folder in sorted(root.iterdir()):
        if (folder / "model.onnx").exists():
            yield NodeTest(folder.name, folder)


@dataclass
class Survey:
    """What became of a set of node tests and of their broken copies."""

    passed: int = 0
    failures: dict[str, str] = field(default_factory=dict[str, str])
    """Reason by test."""
    left_out: int = 0
    """Tests that ONNX Runtime does not run as shipped."""
    tried: collections.Counter[str] = field(default_factory=collections.Counter[str])
    refused: collections.Counter[str] = field(default_factory=collections.Counter[str])
    """Broken copies by kind."""
    accepted: list[str] = field(default_factory=list[str])
    """Broken copies that were not refused."""

    @property
    def tests(self) -> int:
        """Tests that ONNX Runtime runs as shipped."""
        return self.passed + len(self.failures)


def survey(tests: Iterable[NodeTest]) -> Survey:
    """Take every test through qcc, and try its broken copies."""
    found = Survey()
    for test in tests:
        expected = run_original(test)
        if expected is None:
            found.left_out += 1
            continue
        try:
            actual = _run(through_qcc(test), test.feeds(test.model()))
            if all(same(a, b) for a, b in zip(expected, actual, strict=True)):
                found.passed += 1
            else:
                found.failures[test.name] = "outputs differ"
        except Exception as error:  # noqa: BLE001 - every reason is listed
            found.failures[test.name] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
        for kind, mutant in mutants(test):
            found.tried[kind] += 1
            if refuses(mutant):
                found.refused[kind] += 1
            else:
                found.accepted.append(f"{test.name}, {kind}")
    return found


def run_original(test: NodeTest) -> list[Value] | None:
    """What ONNX Runtime gives for the test as shipped; None where it cannot run it."""
    model = test.model()
    try:
        return _run(model, test.feeds(model))
    except Exception:  # noqa: BLE001 - any reason that ONNX Runtime has not to run it leaves the test out
        return None


def through_qcc(test: NodeTest) -> ModelProto:
    """The model after import, text, parse and export."""
    store = WeightStore()
    program = from_model(test.model(), store, test.name)
    text = show(program.module)
    again = parse(text, test.name)
    if show(again) != text:
        raise AssertionError("the text does not round-trip")
    return emit(Program(again, store)).embed(store)


def same(left: Value, right: Value) -> bool:
    """Equal to the bit, NaN included; sequences item by item."""
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if left is None or right is None:
        return left is right
    a, b = np.asarray(left), np.asarray(right)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))


def mutants(test: NodeTest) -> Iterator[tuple[str, ModelProto]]:
    """Broken copies of a test that the specification forbids, with what was broken."""
    model = test.model()
    if len(model.graph.node) != 1 or model.functions:
        return
    node = model.graph.node[0]
    version = next((o.version for o in model.opset_import if o.domain == node.domain), 1)
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    broken = ModelProto()
    if node.input and schema.min_input and schema.inputs[0].option.name == "Single":
        broken.CopyFrom(model)
        broken.graph.node[0].input[0] = ""
        yield "operand missing", broken
    broken = ModelProto()
    broken.CopyFrom(model)
    extra = broken.graph.node[0].attribute.add()
    extra.name, extra.type, extra.i = "no_such_attribute", onnx.AttributeProto.INT, 1
    yield "attribute unknown", broken
    for index, attribute in enumerate(node.attribute):
        if attribute.type in (
            onnx.AttributeProto.INT,
            onnx.AttributeProto.STRING,
            onnx.AttributeProto.INTS,
            onnx.AttributeProto.FLOAT,
        ):
            broken = ModelProto()
            broken.CopyFrom(model)
            target = broken.graph.node[0].attribute[index]
            wrong = "wrong" if attribute.type != onnx.AttributeProto.STRING else 7
            target.CopyFrom(onnx.helper.make_attribute(attribute.name, wrong))
            yield "attribute type", broken
            break
    forbidden = _forbidden_type(schema, model)
    if forbidden is not None:
        broken = ModelProto()
        broken.CopyFrom(model)
        broken.graph.input[0].type.tensor_type.elem_type = forbidden
        yield "operand type", broken


def _forbidden_type(schema: onnx.defs.OpSchema, model: ModelProto) -> int | None:
    node = model.graph.node[0]
    if not node.input or not model.graph.input or node.input[0] != model.graph.input[0].name or not schema.inputs:
        return None
    if not model.graph.input[0].type.HasField("tensor_type"):
        return None
    for candidate in (TensorProto.COMPLEX128, TensorProto.STRING, TensorProto.BOOL, TensorProto.UINT16):
        if f"tensor({types.element_of(candidate).schema})" not in schema.inputs[0].types:
            return candidate
    return None


def refuses(model: ModelProto) -> bool:
    """Whether the IR verifier (not the ONNX checker, which is left out here) refuses a model."""
    from qcc.frontend import onnx_file

    checker, inference = onnx_file._check_structure, onnx.shape_inference.infer_shapes
    onnx_file._check_structure = lambda *_: None
    onnx.shape_inference.infer_shapes = lambda m, **_: m
    try:
        from_model(model, WeightStore(), "mutant", lowest_opset=1)
    except QccError:
        return True
    finally:
        onnx_file._check_structure, onnx.shape_inference.infer_shapes = checker, inference
    return False


def _run(model: ModelProto, feeds: dict[str, Value]) -> list[Value]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    known = {i.name for i in session.get_inputs()}
    return session.run(None, {k: v for k, v in feeds.items() if k in known})


def _load(file: Path, type_: onnx.TypeProto) -> Value:
    data = file.read_bytes()
    match type_.WhichOneof("value"):
        case "sequence_type":
            sequence = onnx.SequenceProto.FromString(data)
            return numpy_helper.to_list(sequence)
        case "optional_type":
            optional = onnx.OptionalProto.FromString(data)
            return numpy_helper.to_optional(optional)
        case _:
            return numpy_helper.to_array(TensorProto.FromString(data))


def main() -> None:
    """Run the tests and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="", help="only tests whose name contains this")
    parser.add_argument("--limit", type=int, default=0, help="at most so many tests")
    parser.add_argument("--json", type=Path, default=RESULTS / "conformance.json", help="write the result here")
    options = parser.parse_args()
    tests = [t for t in node_tests() if options.only in t.name]
    found = survey(tests[: options.limit or None])
    for name, reason in (*found.failures.items(), *((name, "accepted though broken") for name in found.accepted)):
        print(f"  {name}: {reason}")
    print(
        f"node tests: {found.passed}/{found.tests} identical ({100 * found.passed / max(1, found.tests):.2f}%); "
        f"{found.left_out} that ONNX Runtime itself does not pass; opset <= {HIGHEST_OPSET}"
    )
    for kind, tried in found.tried.items():
        print(f"mutants, {kind}: {found.refused[kind]}/{tried} refused")
    if options.json:
        result = {
            "identical": found.passed,
            "tests": found.tests,
            "left_out": found.left_out,
            "failures": found.failures,
            "mutants": {kind: [found.refused[kind], tried] for kind, tried in found.tried.items()},
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
