"""Nothing in a `.pt2` archive runs: live exploits of `torch.export.load` are refused, honest archives come through."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcc.frontend import pt2_archive, torch_export
from qcc.ir.errors import BadInput, NotSupported

torch = pytest.importorskip("torch")

PROGRAM = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
EXAMPLES = "data/sample_inputs/model.pt"


class Net(torch.nn.Module):
    """A parameter shared by two names, a buffer of each kind, a lifted constant, a nested output, a symbolic size."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.second = torch.nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.ones(4))
        self.register_buffer("scale", torch.full((4,), 2.0), persistent=False)
        self.steps = torch.arange(4.0)

    def forward(self, x: Any) -> Any:
        with torch.no_grad():
            y = self.first(x) * self.scale + self.shift
        z = torch.div(self.second(y), self.steps + 1, rounding_mode="floor")
        return {"y": y * x.shape[0], "rest": (z.reshape(-1), torch.cat([z, z]))}


@pytest.fixture(scope="module")
def program() -> Any:
    torch.manual_seed(0)
    shapes = {"x": {0: torch.export.Dim("batch")}}
    return torch.export.export(Net().eval(), (torch.randn(3, 4),), dynamic_shapes=shapes)


@pytest.fixture(scope="module")
def honest(program: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("honest") / "net.pt2"
    torch.export.save(program, path, extra_files={"readme.txt": "hello"})
    return path


def records_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(path: Path, records: dict[str, bytes], root: str = "net/", method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, payload in records.items():
            archive.writestr(root + name, payload)
    return path


def edit(records: dict[str, bytes], name: str, change: Callable[[Any], None]) -> None:
    document = json.loads(records[name])
    change(document)
    records[name] = json.dumps(document).encode()


class Payload:
    """A pickle that makes a folder when loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def pickled_weight(records: dict[str, bytes], marker: Path) -> None:
    edit(records, WEIGHTS, lambda config: config["config"]["first.bias"].update(use_pickle=True, path_name="weight_9"))
    records["data/weights/weight_9"] = pickle.dumps(Payload(marker))


def pickled_constant(records: dict[str, bytes], marker: Path) -> None:
    def add(config: Any) -> None:
        config["config"]["extra"] = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
        config["config"]["extra"]["tensor_meta"] = None

    edit(records, CONSTANTS, add)
    records["data/constants/opaque_obj_0"] = pickle.dumps(Payload(marker))


def old_weights(records: dict[str, bytes], marker: Path) -> None:
    records["data/weights/model.pt"] = pickle.dumps(Payload(marker))


def old_layout(records: dict[str, bytes], marker: Path) -> None:
    program = records[PROGRAM]
    records.clear()
    records |= {"version": b"8.20", "serialized_exported_program.json": program}
    records["serialized_constants.pt"] = b""
    records["serialized_state_dict.pt"] = b""
    records["serialized_example_inputs.pt"] = pickle.dumps(Payload(marker))


def symbolic_size(records: dict[str, bytes], marker: Path) -> None:
    code = json.dumps(f"__import__('os').mkdir('{marker}')")
    text = records[PROGRAM].decode()
    start = text.index('"Symbol(')
    records[PROGRAM] = text.replace(text[start : text.index('"', start + 1) + 1], code).encode()


def value_name(records: dict[str, bytes], marker: Path) -> None:
    code = json.dumps(f"x=__import__('os').mkdir('{marker}')")
    records[PROGRAM] = records[PROGRAM].replace(b'"x"', code.encode())


def tree_spec(records: dict[str, bytes], marker: Path) -> None:
    """Import of a module that lies where Python looks, such as the working directory."""
    marker.parent.joinpath("lying_in_wait.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    context = json.dumps([{"__enum__": True, "fqn": "lying_in_wait:Any", "name": "one"}])
    spec = {"type": "builtins.dict", "context": context, "children_spec": []}

    def put(document: Any) -> None:
        document["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps([1, spec])

    edit(records, PROGRAM, put)


def example_inputs(records: dict[str, bytes], marker: Path) -> None:
    records[EXAMPLES] = pickle.dumps(Payload(marker))


def guards(records: dict[str, bytes], marker: Path) -> None:
    code = f"__import__('os').mkdir('{marker}') is None"
    edit(records, PROGRAM, lambda document: document.update(guards_code=[code]))


REFUSED = (pickled_weight, pickled_constant, old_weights, old_layout, symbolic_size, value_name, tree_spec)
LEFT_OUT = (example_inputs, guards)

LOAD_PLAINLY = """
import sys, torch
sys.path.insert(0, sys.argv[1])
for path in sys.argv[2:]:
    try:
        torch.export.load(path).module()(torch.ones(3, 4))
    except Exception:
        pass
"""


def craft(folder: Path, honest: Path, exploit: Callable[[dict[str, bytes], Path], None]) -> tuple[Path, Path]:
    marker = folder / f"{exploit.__name__}.ran"
    records = records_of(honest)
    exploit(records, marker)
    root = "" if exploit is old_layout else "net/"
    return write(folder / f"{exploit.__name__}.pt2", records, root), marker


def test_the_exploits_are_live(honest: Path, tmp_path: Path) -> None:
    crafted = [craft(tmp_path, honest, exploit) for exploit in (*REFUSED, *LEFT_OUT)]
    paths = [str(path) for path, _ in crafted]
    subprocess.run([sys.executable, "-c", LOAD_PLAINLY, str(tmp_path), *paths], capture_output=True, check=True)
    assert [marker.name for _, marker in crafted if not marker.exists()] == []


@pytest.mark.parametrize("exploit", REFUSED)
def test_refuses_what_would_run(
    exploit: Callable[[dict[str, bytes], Path], None], honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, marker = craft(tmp_path, honest, exploit)
    monkeypatch.syspath_prepend(tmp_path)
    for look in (pt2_archive.inspect, torch_export.open_pt2):
        with pytest.raises(NotSupported, match=path.name):
            look(path)
    assert not marker.exists()


@pytest.mark.parametrize("exploit", LEFT_OUT)
def test_leaves_out_what_would_run(
    exploit: Callable[[dict[str, bytes], Path], None], honest: Path, program: Any, tmp_path: Path
) -> None:
    path, marker = craft(tmp_path, honest, exploit)
    x = torch.ones(3, 4)
    torch.testing.assert_close(torch_export.open_pt2(path).module()(x), program.module()(x))
    assert not marker.exists()
    pt2_archive.write_checked_copy(path, tmp_path / "copy.pt2")
    copied = records_of(tmp_path / "copy.pt2")
    assert copied[EXAMPLES] == b""
    assert json.loads(copied[PROGRAM])["guards_code"] == []


def call(document: Any, target: str, **arguments: Any) -> None:
    node = document["graph_module"]["graph"]["nodes"][0]
    node["target"] = target
    node["inputs"] = [{"name": name, "arg": arg, "kind": 1} for name, arg in arguments.items()]


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        ("torch.os.system", {"command": {"as_string": "true"}}),
        ("torch.load", {}),
        ("torch.ops.load_library", {}),
        ("torch.ops.aten.__init__.default", {}),
        ("torch.ops.c10d.send.default", {}),
        ("#custom:op", {}),
        ("_operator.methodcaller", {}),
        ("builtins.eval", {}),
        ("torch.ops.aten.from_file.default", {"filename": {"as_string": "/etc/passwd"}}),
        ("torch.ops.aten.save.default", {"filename": {"as_string": "x"}}),
        ("torch.ops.aten.add.Tensor", {"self": {"as_operator": "torch.os.system"}}),
        ("torch.ops.aten.add.Tensor", {"self": {"as_custom_obj": {"name": "a", "class_fqn": "b"}}}),
    ],
)
def test_refuses_operators_it_does_not_know(
    target: str, arguments: dict[str, Any], honest: Path, tmp_path: Path
) -> None:
    records = records_of(honest)
    edit(records, PROGRAM, lambda document: call(document, target, **arguments))
    with pytest.raises(NotSupported, match=r"nodes\[0\]"):
        pt2_archive.inspect(write(tmp_path / "x.pt2", records))


@pytest.mark.parametrize(
    "expression",
    [
        "Symbol('s0').func",
        "Symbol(s0)",
        "eval('1')",
        "Lambda(Symbol('x'), 1)",
        "Add(*Symbol('s0'))",
        "Symbol('s0') if 1 else 2",
        "Symbol('__import__(1)')",
        "lambda",
        "Add(" * 300,
    ],
)
def test_refuses_expressions_that_are_no_sizes(expression: str, honest: Path, tmp_path: Path) -> None:
    records = records_of(honest)
    value = {"as_expr": {"expr_str": expression, "hint": None}}
    edit(records, PROGRAM, lambda document: document["graph_module"]["graph"]["sym_int_values"].update(s=value))
    with pytest.raises(NotSupported, match="symbolic size"):
        pt2_archive.inspect(write(tmp_path / "x.pt2", records))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("data/constants/custom_obj_0", "TorchScript object"),
        ("data/aotinductor/model/model.so", "compiled code"),
        ("data/executorch/model.pte", "ExecuTorch"),
        ("models/other.json", "more than one program"),
        ("data/constants/model.pt", "pickled tensors"),
        ("code/__torch__.py", "does not know"),
        ("data/weights/../../evil", "does not know"),
    ],
)
def test_refuses_records_that_are_on_no_list(name: str, reason: str, honest: Path, tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match=reason):
        pt2_archive.inspect(write(tmp_path / "x.pt2", records_of(honest) | {name: b"payload"}))


def test_refuses_weights_without_data(honest: Path, tmp_path: Path) -> None:
    """torch loads an empty record as zeros, without a word."""
    with pytest.raises(NotSupported, match="no data"):
        pt2_archive.inspect(write(tmp_path / "x.pt2", records_of(honest) | {"data/weights/weight_0": b""}))


def test_names_the_device_to_move_from(honest: Path, tmp_path: Path) -> None:
    records = records_of(honest)
    records[WEIGHTS] = records[WEIGHTS].replace(b'"type": "cpu"', b'"type": "cuda"')
    with pytest.raises(NotSupported, match="move_to_device_pass"):
        pt2_archive.inspect(write(tmp_path / "x.pt2", records))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (bytes(range(7, 256)), "does not begin as a ZIP"),
        (pickle.dumps([1]), "bare pickle"),
        (b"\x08\x0a\x12\x07pytorch", "ONNX"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"PK\x03\x04" + bytes(60), "damaged"),
    ],
)
def test_says_what_a_file_is_that_is_no_archive(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=reason):
        torch_export.open_pt2(path)


def test_says_that_a_path_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.pt2"):
        with pytest.raises(BadInput, match="cannot be read"):
            pt2_archive.inspect(path)


def test_says_what_another_archive_is(honest: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    torch.save({"weight": torch.ones(1)}, path)
    with pytest.raises(NotSupported, match=r"torch\.save"):
        pt2_archive.inspect(path)
    with pytest.warns(DeprecationWarning):
        script = torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1))
    script.save(str(path))
    with pytest.raises(NotSupported, match="TorchScript"):
        pt2_archive.inspect(path)
    with pytest.raises(BadInput, match=r"not one that torch\.export\.save wrote"):
        pt2_archive.inspect(write(path, {"word/document.xml": b"<w/>"}))


def test_refuses_bombs_and_doubles(honest: Path, tmp_path: Path) -> None:
    records = records_of(honest)
    with pytest.raises(BadInput, match="compressed"):
        bomb = records | {"data/weights/weight_0": bytes(1 << 20)}
        pt2_archive.inspect(write(tmp_path / "bomb.pt2", bomb, method=zipfile.ZIP_DEFLATED))
    path = write(tmp_path / "double.pt2", records)
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"net/{PROGRAM}", "{}")
    with pytest.raises(BadInput, match="twice"):
        pt2_archive.inspect(path)
    path = write(tmp_path / "overlap.pt2", {**records, "data/weights/weight_7": b"ab"})
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")  # the central directory: sizes are 20 and 24 bytes into each entry
    while (name := content[start + 46 :].partition(b"PK")[0]) and b"weight_7" not in name:
        start = content.index(b"PK\x01\x02", start + 4)
    path.write_bytes(content[: start + 20] + (1 << 30).to_bytes(4, "little") * 2 + content[start + 28 :])
    with pytest.raises(BadInput, match="more bytes than the file"):
        pt2_archive.inspect(path)


def test_notices_a_changed_byte_in_a_tensor(honest: Path, tmp_path: Path) -> None:
    content = bytearray(honest.read_bytes())
    with zipfile.ZipFile(honest) as archive:
        weight = archive.read("net/data/weights/weight_0")
    content[content.index(weight)] ^= 1
    path = tmp_path / "x.pt2"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="CRC"):
        torch_export.open_pt2(path)


def test_an_honest_archive_loads_as_it_was(honest: Path, program: Any) -> None:
    opened = torch_export.open_pt2(honest)
    for rows in (3, 1, 5):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(opened.module()(x), program.module()(x), rtol=0, atol=0)
    assert opened.state_dict.keys() == program.state_dict.keys()
    first, second = opened.state_dict["first.weight"], opened.state_dict["second.weight"]
    assert first.data_ptr() == second.data_ptr()
    assert opened.example_inputs is None


def test_the_copy_holds_no_pickle(honest: Path, tmp_path: Path) -> None:
    pt2_archive.write_checked_copy(honest, tmp_path / "copy.pt2")
    copied, original = records_of(tmp_path / "copy.pt2"), records_of(honest)
    assert original[EXAMPLES]
    assert copied[EXAMPLES] == b""
    assert "extra/readme.txt" in original
    assert "extra/readme.txt" not in copied
    assert copied["data/weights/weight_0"] == original["data/weights/weight_0"]
    assert b"test_pt2_archive.py" in original[PROGRAM]
    assert b"test_pt2_archive.py" not in copied[PROGRAM]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_bad_input_or_goes_unnoticed(data: st.DataObject, honest: Path, tmp_path: Path) -> None:
    content = bytearray(honest.read_bytes())
    del content[data.draw(st.integers(1, len(content)), "length") :]
    for _ in range(data.draw(st.integers(0, 4), "flips")):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.pt2"
    path.write_bytes(content)
    with suppress(BadInput, NotSupported):
        pt2_archive.write_checked_copy(path, tmp_path / "copy.pt2")


ODD = st.sampled_from([None, True, -1, 2.5, "", "a b", "x", [], {}, [[]], {"a": 1}, {"as_string": 3}, "\ud800"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), odd=ODD, name=st.sampled_from([PROGRAM, WEIGHTS, CONSTANTS]))
def test_odd_json_raises_nothing_else(data: st.DataObject, odd: Any, name: str, honest: Path, tmp_path: Path) -> None:
    def put(document: Any) -> None:
        inside = document
        while True:
            key = data.draw(st.sampled_from(list(inside) if isinstance(inside, dict) else range(len(inside))))
            if not isinstance(inside[key], dict | list) or not inside[key] or data.draw(st.integers(0, 5)) == 0:
                inside[key] = odd
                return
            inside = inside[key]

    records = records_of(honest)
    edit(records, name, put)
    with suppress(BadInput, NotSupported):
        pt2_archive.inspect(write(tmp_path / "x.pt2", records))
