"""The torch doors: what ONNX Runtime computes from the written file is what torch computes, at sizes never captured."""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from qcc.frontend.torch_export import open_pt2, to_onnx
from qcc.ir.errors import BadInput, MissingExtra, NotSupported

torch = pytest.importorskip("torch")
F = torch.nn.functional


class ConvNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, image: Any) -> Any:
        return self.head(self.drop(F.hardswish(self.norm(self.conv(image))).mean((2, 3))))


class RootMeanSquare(torch.nn.Module):
    """RMS norm as model code writes it, by hand."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x: Any) -> Any:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Decoder(torch.nn.Module):
    """One causal layer with rotary positions as Hugging Face writes them, and a head that shares the embedding."""

    def __init__(self, vocabulary: int = 40, size: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed = torch.nn.Embedding(vocabulary, size)
        self.norm = RootMeanSquare(size)
        self.qkv = torch.nn.Linear(size, 3 * size)
        self.out = torch.nn.Linear(size, size, bias=False)
        self.last = RootMeanSquare(size)
        self.head = torch.nn.Linear(size, vocabulary, bias=False)
        self.head.weight = self.embed.weight
        half = size // heads // 2
        self.register_buffer("frequencies", 10000.0 ** (-torch.arange(half) / half), persistent=False)

    def rotate(self, x: Any, angles: Any) -> Any:
        first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        angles = torch.cat([angles, angles], -1)
        return x * angles.cos().unsqueeze(1) + torch.cat([-second, first], -1) * angles.sin().unsqueeze(1)

    def forward(self, input_ids: Any, scale: Any = None) -> Any:
        batch, length = input_ids.shape
        angles = (torch.arange(length)[None, :, None] * self.frequencies[None, None, :]).float()
        x = self.embed(input_ids)
        qkv = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = self.rotate(qkv[0], angles), self.rotate(qkv[1], angles), qkv[2]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        return {"logits": self.head(self.last(x)), "hidden": (x, x.sum(-1)), "scale": scale}


def seeded(module: type[Any]) -> Any:
    torch.manual_seed(0)
    return module()


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def assert_same(run: onnxruntime.InferenceSession, inputs: Mapping[str, Any], expected: list[Any]) -> None:
    outputs = run.run(None, {name: value.numpy() for name, value in inputs.items()})
    assert len(outputs) == len(expected)
    for output, reference in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, reference.detach().numpy(), atol=1e-4)


def shapes(values: Any) -> dict[str, list[Any]]:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


def test_conv_net_runs_at_other_sizes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    net = seeded(ConvNet)
    net.norm(torch.randn(4, 8, 5, 5))
    net.norm.eval()
    path = to_onnx(
        net, torch.randn(1, 3, 16, 16), folder=tmp_path, dynamic={"image": {0: "batch", 2: "high", -1: "wide"}}
    )
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]
    assert net.training
    assert net.drop.training
    assert not net.norm.training

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert shapes(model.graph.input) == {"image": ["batch", 3, "high", "wide"]}
    assert shapes(model.graph.output) == {"output": ["batch", 5]}
    assert {"conv.weight", "head.weight", "head.bias"} <= {w.name for w in model.graph.initializer}
    assert not [p for node in model.graph.node for p in node.metadata_props if __file__ in p.value]

    net.eval()
    run = session(path)
    for size in ((1, 3, 16, 16), (3, 3, 9, 20), (2, 3, 3, 3)):
        image = torch.randn(size)
        assert_same(run, {"image": image}, [net(image)])


@pytest.fixture(scope="module")
def decoder_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    decoder = seeded(Decoder)
    ids = torch.randint(0, 40, (1, 6))
    dynamic = {"input_ids": {0: "batch", 1: "length"}}
    folder = tmp_path_factory.mktemp("decoder") / "new" / "folder"
    return decoder, to_onnx(decoder, {"input_ids": ids}, folder=folder, dynamic=dynamic)


def test_attention_and_norm_stay_whole(decoder_file: tuple[Any, Path]) -> None:
    model = onnx.load(decoder_file[1], load_external_data=False)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Attention"] == 1
    assert kinds["RMSNormalization"] == 2
    assert kinds["Softmax"] == kinds["Sqrt"] == kinds["Pow"] == 0
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 23)]
    assert model.ir_version == 11


def test_decoder_runs_at_other_sizes(decoder_file: tuple[Any, Path]) -> None:
    """Batches over 1 too, where torch's fusion alone leaves a rotary embedding that ONNX Runtime refuses."""
    decoder, path = decoder_file
    decoder.eval()
    run = session(path)
    for size in ((1, 6), (1, 1), (3, 9), (2, 6)):
        ids = torch.randint(0, 40, size)
        expected = decoder(ids)
        assert_same(run, {"input_ids": ids}, [expected["logits"], *expected["hidden"]])


def test_values_and_weights_bear_their_torch_names(decoder_file: tuple[Any, Path]) -> None:
    decoder, path = decoder_file
    model = onnx.load(path)
    assert shapes(model.graph.input) == {"input_ids": ["batch", "length"]}
    assert shapes(model.graph.output) == {
        "logits": ["batch", "length", 40],
        "hidden_0": ["batch", "length", 32],
        "hidden_1": ["batch", "length"],
    }
    weights = {weight.name: onnx.numpy_helper.to_array(weight) for weight in model.graph.initializer}
    for name, weight in decoder.state_dict().items():
        assert name in weights
        kept = weight.numpy() if name == "embed.weight" or weight.ndim == 1 else weight.numpy().T
        np.testing.assert_array_equal(weights[name], kept)


def test_weights_lie_beside_the_graph(decoder_file: tuple[Any, Path]) -> None:
    path = decoder_file[1]
    model = onnx.load(path, load_external_data=False)
    outside = {w.name for w in model.graph.initializer if w.data_location == onnx.TensorProto.EXTERNAL}
    assert {"embed.weight", "qkv.weight", "head.weight"} <= outside
    assert (path.parent / "model.onnx.data").stat().st_size > 4 * 40 * 32 * 2
    assert path.stat().st_size < 40_000


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(4, 6)
        self.b = torch.nn.Linear(6, 4)

    def forward(self, x: Any, past: Any) -> Any:
        return x + self.b(F.relu(self.a(past[0]["k"]))), [past[1] * 2]


def test_a_module_its_program_and_its_pt2_file_give_the_same(tmp_path: Path) -> None:
    net, x, k, v = seeded(Small), torch.randn(2, 4), torch.randn(2, 4), torch.randn(2, 4)
    inputs = (x, ({"k": k}, v))
    names = ("x", "past_0_k", "past_1")
    dynamic = {name: {0: "batch"} for name in names}
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(net.eval(), inputs, dynamic_shapes={"x": batch, "past": ({"k": batch}, batch)})
    torch.export.save(program, tmp_path / "small.pt2")
    paths = [
        to_onnx(net, inputs, folder=tmp_path / "module", dynamic=dynamic),
        to_onnx(program, folder=tmp_path / "program"),
        to_onnx(open_pt2(tmp_path / "small.pt2"), folder=tmp_path / "pt2"),
    ]
    x, k, v = torch.randn(3, 5, 4)
    expected = net(x, ({"k": k}, v))
    for path in paths:
        run = session(path)
        assert [value.name for value in run.get_inputs()] == list(names)
        assert [value.name for value in run.get_outputs()] == ["output_0", "output_1_0"]
        assert_same(run, dict(zip(names, (x, k, v), strict=True)), [expected[0], expected[1][0]])
    with pytest.raises(BadInput, match="captured already"):
        to_onnx(program, inputs, folder=tmp_path)


class Clashes(torch.nn.Module):
    """Outputs named as an input and as values inside, an input returned as it came, an argument that is no tensor."""

    def forward(self, x: Any, mul: Any, times: int = 2) -> Any:
        return {"mul": x * mul, "add": (x * times + mul) * mul, "x": x, "none": None}


def test_names_that_clash_give_way(tmp_path: Path) -> None:
    path = to_onnx(Clashes(), {"mul": torch.ones(3), "times": 3, "x": torch.ones(3)}, folder=tmp_path)
    run = session(path)
    assert [value.name for value in run.get_inputs()] == ["x", "mul"]
    assert [value.name for value in run.get_outputs()] == ["mul_out", "add", "x_out"]
    x, mul = torch.randn(3), torch.randn(3)
    assert_same(run, {"x": x, "mul": mul}, [x * mul, (x * 3 + mul) * mul, x])


class Branches(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x * 2 if x.sum() > 0 else x


class Counts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return x + self.calls


class Spectrum(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.linalg.eigvals(x).real


class Number(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x, 5


class Gathers(torch.nn.Module):
    def forward(self, x: Any, **more: Any) -> Any:
        return x + more["y"]


@pytest.mark.parametrize(
    ("module", "inputs", "dynamic", "reason"),
    [
        (Branches, torch.ones(2), None, r"test_torch_export.py:\d+\): Could not guard on data-dependent expression"),
        (Counts, torch.ones(2), None, "'calls' in place"),
        (Spectrum, torch.ones(2, 2), None, "aten.linalg_eig"),
        (Number, torch.ones(2), None, "'output_1' is the constant 5"),
        (Gathers, {"x": torch.ones(2), "y": torch.ones(2)}, {"x": {0: "n"}}, r"\*\*more"),
    ],
)
def test_says_why_a_module_is_not_supported(
    module: Any, inputs: Any, dynamic: Any, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotSupported, match=reason) as caught:
        to_onnx(module(), inputs, folder=tmp_path, dynamic=dynamic)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


class Square(torch.nn.Module):
    """Its two axes must be equal."""

    def forward(self, x: Any) -> Any:
        return x + x.T


class Halves(torch.nn.Module):
    """Treats size 1 apart, which ONNX could not say."""

    def forward(self, x: Any) -> Any:
        return x if x.shape[0] == 1 else x / 2


class Short(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x if x.shape[0] <= 100 else x / 2


class Rows(torch.nn.Module):
    """Rows by twos; and an unrelated axis of the same size, which torch believes to be 3 or more."""

    def forward(self, x: Any, y: Any) -> Any:
        return x.view(-1, 2, 3).sum(1), y.sum(0) if y.shape[0] < 3 else y.sum((0,))


def test_axes_of_one_size_stay_apart(tmp_path: Path) -> None:
    axes = {"x": {0: "rows"}, "y": {0: "others"}}
    path = to_onnx(Rows(), (torch.ones(4, 3), torch.ones(4, 3)), folder=tmp_path, dynamic=axes)
    assert shapes(onnx.load(path).graph.input) == {"x": ["rows", 3], "y": ["others", 3]}
    run = session(path)
    for rows, others in ((6, 5), (2, 1)):
        x, y = torch.randn(rows, 3), torch.randn(others, 3)
        assert_same(run, {"x": x, "y": y}, list(Rows()(x, y)))


@pytest.mark.parametrize(
    ("module", "inputs", "dynamic", "reason"),
    [
        (Branches(), None, None, r"Branches\.forward\(x\) needs example inputs"),
        (Branches(), (torch.ones(1), torch.ones(1)), None, "too many positional arguments"),
        (Branches(), {"y": torch.ones(1)}, None, "missing a required argument: 'x'"),
        (Branches(), (3,), None, "hold no tensor"),
        (torch.nn.Linear(4, 4), torch.ones(2, 3), None, "does not run on the example inputs: mat1 and mat2"),
        (torch.nn.Linear(4, 4, device="meta"), torch.ones(2, 4), None, "'weight' has no data"),
        (Square(), torch.ones(4, 4), {"y": {0: "n"}}, "no input 'y' to make dynamic\n.*the inputs are x"),
        (Square(), torch.ones(4, 4), {"x": {2: "n"}}, r"shape \(4, 4\) has no axis 2"),
        (Square(), torch.ones(4, 4), {"x": {0: "a b"}}, "'a b' is not a word"),
        (Square(), torch.ones(4, 4), {"x": {0: "a"}}, "axes do not hold for Square: .* constant"),
        (Halves(), torch.ones(4), {"x": {0: "n"}}, "another path where 'n' is 1 than at 4"),
        (Halves(), torch.ones(1), {"x": {0: "n"}}, "another path where 'n' is 2 than at 1"),
        (Short(), torch.ones(4), {"x": {0: "n"}}, "another path where 'n' is 101 than at 4"),
        ("model.onnx", torch.ones(1), None, "not str"),
    ],
)
def test_says_what_is_wrong_with_the_input(
    module: Any, inputs: Any, dynamic: Any, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadInput) as caught:
        to_onnx(module, inputs, folder=tmp_path, dynamic=dynamic)
    assert re.search(reason, str(caught.value))
    assert capfd.readouterr() == ("", "")


def test_says_which_opset_torch_can_write(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match=r"opset .* not 99"):
        to_onnx(torch.nn.ReLU(), torch.ones(1), folder=tmp_path, opset=99)


@pytest.mark.parametrize("missing", ["torch", "onnxscript"])
def test_names_the_extra_that_is_missing(missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtra, match=missing) as caught:
        to_onnx(torch.nn.ReLU(), torch.ones(1), folder=tmp_path)
    assert caught.value.hint == 'pip install "qcc[torch]"'
