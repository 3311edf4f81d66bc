"""`simulate`: sizes are those of `compile`, errors those of numpy, and no layer is lost without a word."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto

from qcc import api
from qcc.api import Artifact, Simulation
from qcc.api.simulation import SimulatedLayer, SimulatedScheme, listed
from qcc.api.simulation_marks import Axis, width
from qcc.api.simulation_plot import draw, pareto
from qcc.ir.errors import BadInput, NotSupported
from qcc.ir.format import Format
from qcc.ir.quantize import quantize
from qcc.passes import algorithms, schemes
from tests.networks import model, normal

InScheme = Callable[..., Artifact]
Array = NDArray[np.float32]

MLP = """(float[N,64] x) => (float[N,32] y) {
    [up] a0 = MatMul(x, w0)  a1 = Add(a0, b0)  a2 = Relu(a1)
    [mid] b1 = MatMul(a2, w1)  b2 = Relu(b1)
    [down] c0 = Gemm <alpha = 0.5, transB = 1> (b2, w2, b3)  y = Relu(c0) }"""
ALL = ("up", "mid", "down")


def mlp(**changed: Array) -> ModelProto:
    weights = {"w0": normal(64, 96, seed=1, scale=0.1), "w1": normal(96, 96, seed=2, scale=0.1)}
    weights |= {"w2": normal(32, 96, seed=3, scale=0.1), "b0": normal(96, seed=4), "b3": normal(32, seed=5)}
    return model(MLP, **{**weights, **changed})


def samples(count: int = 3) -> list[dict[str, Array]]:
    return [{"x": normal(5, 64, seed=10 + i)} for i in range(count)]


def simulated(*names: str, proto: ModelProto | None = None, **options: Any) -> Simulation:
    given = {"calibration": samples(), "include": ALL, **options}
    return api.simulate(proto or mlp(), schemes=names, **given)


def db(reference: Array, got: Array) -> float:
    a, b = reference.astype(np.float64), got.astype(np.float64)
    return 10 * math.log10((a**2).sum() / ((a - b) ** 2).sum())


class TestAgainstCompile:
    @pytest.mark.parametrize("scheme", ["W4A16", "W8A16", "W8A8", "W8A8_DYNAMIC"])
    def test_digits(self, scheme: str, in_scheme: InScheme, digits: Path) -> None:
        calibration: Any = digits / "calibration.npz" if scheme == "W8A8" else None
        manifest = in_scheme(scheme).manifest
        row = api.simulate(digits / "digits.onnx", schemes=[scheme], calibration=calibration).schemes[0]
        plan = api.plan(digits / "digits.onnx", scheme=scheme, calibration=calibration)
        assert [(r.node, r.format, r.bytes) for r in row.layers] == [
            (r.node, r.format, r.bytes) for r in manifest.layers
        ]
        assert row.bits_per_weight == pytest.approx(manifest.bits_per_weight, abs=1e-9)
        assert (row.bytes, row.float_bytes) == (plan.bytes, manifest.float_bytes)
        assert [(d.node, d.reason) for d in row.skipped] == [
            (d.node, d.reason) for d in manifest.decisions if d.action == "skipped"
        ]
        assert row.sqnr_db == pytest.approx(manifest.error.sqnr_db, abs=0.5)
        assert row.max_abs_error == pytest.approx(manifest.error.max_abs_error, rel=0.2)

    @pytest.mark.parametrize("scheme", ["W4A16", "W4A8", "W8A8", "NVFP4A16", "NF4"])
    def test_a_small_network_of_linear_layers(self, scheme: str) -> None:
        options: dict[str, Any] = {"calibration": samples(), "include": ALL}
        row = simulated(scheme).schemes[0]
        manifest = api.compile(mlp(), scheme=scheme, **options).manifest
        assert row.bits_per_weight == pytest.approx(manifest.bits_per_weight, abs=1e-9)
        assert [r.bytes for r in row.layers] == [r.bytes for r in manifest.layers]
        assert row.sqnr_db == pytest.approx(manifest.error.sqnr_db, abs=0.5)

    @pytest.mark.parametrize(("scheme", "bits"), [("W4A16_ASYM", 4 + 36 * 224 / 18432), ("W2A16", 2 + 34 / 32)])
    def test_zero_points_take_their_bits_and_what_an_artifact_pads_is_left_out(self, scheme: str, bits: float) -> None:
        packed = api.compile(mlp(), scheme=scheme, calibration=samples(), include=ALL).manifest.bits_per_weight
        row = simulated(scheme).schemes[0]
        assert row.bits_per_weight == pytest.approx(bits)
        assert row.bits_per_weight <= packed < 1.07 * row.bits_per_weight

    def test_gptq_and_a_group_size(self) -> None:
        options: dict[str, Any] = {"algorithm": "gptq", "group_size": 32}
        row = simulated("W4A16", **options).schemes[0]
        manifest = api.compile(mlp(), scheme="W4A16", calibration=samples(), include=ALL, **options).manifest
        assert {layer.format for layer in row.layers} == {"i4, f32 per 32"}
        assert row.sqnr_db == pytest.approx(manifest.error.sqnr_db, abs=0.3)
        assert row.sqnr_db != pytest.approx(simulated("W4A16", group_size=32).schemes[0].sqnr_db, abs=0.01)

    def test_schemes_of_an_fpga_beside_those_of_a_cpu(self, digits: Path) -> None:
        calibration = digits / "calibration.npz"
        found = api.simulate(digits / "digits.onnx", schemes="XINT8,W8A8", calibration=calibration)
        plan = api.plan(digits / "digits.onnx", scheme="XINT8", target="fpga", calibration=calibration)
        assert found.schemes[0].bytes == pytest.approx(plan.bytes, abs=32)
        assert 20 < found.schemes[0].sqnr_db < found.schemes[1].sqnr_db

    def test_the_sizes_of_formats_count_every_bit(self) -> None:
        q4_k = simulated(
            "Q4_K",
            proto=model("(float[N,512] x) => (float[N,64] y) { [up] y = MatMul(x, w) }", w=normal(512, 64)),
            calibration=None,
            include="up",
        )
        assert q4_k.schemes[0].bits_per_weight == 4.5
        assert q4_k.schemes[0].layers[0].bytes == 512 * 64 * 4.5 / 8


class TestLayers:
    def test_errors_are_those_of_numpy(self) -> None:
        """The float layers and the decoded weights multiplied here, without the graph."""
        proto, fmt = mlp(), Format.parse("i4, f32 per 32")
        w = {i.name: np.frombuffer(i.raw_data, np.float32).reshape(i.dims) for i in proto.graph.initializer}
        x = np.concatenate([s["x"] for s in samples()])
        hidden = np.maximum(x @ w["w0"] + w["b0"], 0)
        deeper = np.maximum(hidden @ w["w1"], 0)
        layers = {
            "up": (x, w["w0"].T, w["b0"]),
            "mid": (hidden, w["w1"].T, np.float32(0)),
            "down": (deeper, 0.5 * w["w2"], w["b3"]),
        }
        rows = {layer.node: layer for layer in simulated("i4, f32 per 32").schemes[0].layers}
        assert list(rows) == list(layers)
        for node, (value, weight, bias) in layers.items():
            decoded = algorithms.load("rtn")(np.ascontiguousarray(weight), fmt).decode()
            assert rows[node].weight_sqnr_db == pytest.approx(db(weight, decoded), abs=1e-3)
            exact, got = value @ weight.T + bias, value @ decoded.T + bias
            assert rows[node].output_sqnr_db == pytest.approx(db(exact, got), abs=0.01)

    def test_activations_of_the_layer_itself_are_quantized(self) -> None:
        """MXFP4 beside MXFP4A16: the same weights, and noise of its input besides."""
        fmt = Format.parse("e2m1, e8m0 per 32")
        both, weights = simulated("MXFP4", "MXFP4A16", calibration=None, inputs=samples(1)[0]).schemes
        x, w = samples(1)[0]["x"], normal(64, 96, seed=1, scale=0.1).T
        decoded = algorithms.load("rtn")(np.ascontiguousarray(w), fmt).decode()
        exact = x @ w.T + normal(96, seed=4)
        got = quantize(x, fmt).decode() @ decoded.T + normal(96, seed=4)
        assert both.layers[0].weight_sqnr_db == weights.layers[0].weight_sqnr_db
        assert both.layers[0].output_sqnr_db == pytest.approx(db(exact, got), abs=0.01)
        assert both.layers[0].output_sqnr_db < weights.layers[0].output_sqnr_db  # type: ignore[operator]

    @pytest.mark.parametrize("scheme", ["i4, f32 per 32", "W8A8_DYNAMIC", "W8A8"])
    def test_a_layer_alone_is_the_network_with_that_layer_quantized(self, scheme: str, digits: Path) -> None:
        """The head is the last operation, so its error alone is the network's where nothing else is quantized."""
        found = api.simulate(
            digits / "digits.onnx",
            schemes=[scheme],
            calibration=digits / "calibration.npz",
            ignore="re:Conv",
            include="/head/Gemm",
        ).schemes[0]
        assert [layer.node for layer in found.layers] == ["/head/Gemm"]
        assert found.layers[0].output_sqnr_db == pytest.approx(found.sqnr_db, abs=0.02)

    def test_convolutions_of_every_kind(self) -> None:
        """A strided, a grouped, a transposed one, each the last layer of its network."""
        kinds = {
            "Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w, b)": (8, 4, 3, 3),
            "Conv <group = 2, dilations = [2, 1]> (x, w, b)": (8, 2, 3, 3),
            "ConvTranspose <strides = [2, 2]> (x, w, b)": (4, 8, 3, 3),
        }
        for text, shape in kinds.items():
            proto = model(
                f"(float[N,4,9,9] x) => (float[N,8,A,B] y) {{ [conv] y = {text} }}", w=normal(*shape), b=normal(8)
            )
            row = api.simulate(proto, schemes="W8A16").schemes[0]
            assert row.layers[0].output_sqnr_db == pytest.approx(row.sqnr_db, abs=0.02), text
            assert 35 < row.sqnr_db < 60, text

    def test_a_layer_with_an_outlier_is_the_worst(self) -> None:
        """Large weights of a channel that is never active: they take the range and give nothing."""
        w0, b0, w1 = normal(64, 96, seed=1, scale=0.1), normal(96, seed=4), normal(96, 96, seed=2, scale=0.1)
        w0[:, 7], b0[7], w1[7, :] = 0, -1, 20
        found = simulated("W4A16", "W8A16", "nf4, f32 per 128", proto=mlp(w0=w0, b0=b0, w1=w1))
        assert [row.worst.node for row in found.schemes if row.worst] == ["mid"] * 3
        assert found.most_sensitive(1) == ["mid"]
        assert found.nodes == ALL
        even = simulated("W4A16").schemes[0]
        assert {layer.node: layer for layer in found.schemes[0].layers}["mid"].output_sqnr_db < min(  # type: ignore[operator]
            layer.output_sqnr_db or 0 for layer in even.layers
        )

    def test_more_bits_make_less_error(self) -> None:
        found = simulated(*(f"i{bits}, f32 per 32" for bits in range(2, 9)))
        for name in ("sqnr_db", "bits_per_weight", "bytes"):
            column = [getattr(row, name) for row in found.schemes]
            assert column == sorted(set(column)), name
        for node in ALL:
            errors = [value for value in found.output_sqnr(node) if value is not None]
            assert len(errors) == 7
            assert all(later > before + 3 for before, later in pairwise(errors))

    def test_an_embedding_and_a_head_that_share_a_table(self) -> None:
        text = """(int64[N] i) => (float[N,50] y) {
            [rows] e = Gather(t, i)  r = Relu(e)  [head] y = Gemm <transB = 1> (r, t) }"""
        table = normal(50, 64)
        row = api.simulate(
            model(text, t=table), inputs={"i": np.arange(50)}, schemes="W8A16", include=["rows", "head"]
        ).schemes[0]
        assert [layer.node for layer in row.layers] == ["rows", "head"]
        assert row.layers[0].weight_sqnr_db == row.layers[1].weight_sqnr_db
        assert row.layers[0].output_sqnr_db == pytest.approx(row.layers[0].weight_sqnr_db, abs=1e-3)
        assert row.bytes == row.layers[0].bytes, "what is stored once counts once"

    def test_a_layer_in_a_branch_has_no_error_of_its_own(self) -> None:
        text = """(float[N,32] x, bool c) => (float[N,32] y) {
            [top] m = MatMul(x, w0)  h = Relu(m)
            y = If (c) <then_branch = t () => (float[N,32] p) { [inner] t0 = MatMul(h, w1) p = Relu(t0) },
                        else_branch = e () => (float[N,32] q) { q = Relu(h) }> }"""
        data = [{"x": normal(4, 32), "c": np.array(True)}]
        found = api.simulate(
            model(text, w0=normal(32, 32), w1=normal(32, 32, seed=1)),
            schemes="W8A16",
            calibration=data,
            include=["top", "inner"],
        )
        top, inner = found.schemes[0].layers
        assert (top.node, inner.node) == ("top", "inner")
        assert top.output_sqnr_db is not None
        assert inner.output_sqnr_db is None
        assert inner.weight_sqnr_db > 35
        assert found.most_sensitive(5) == ["top"]

    def test_a_computed_bias_leaves_the_other_figures(self) -> None:
        text = "(float[N,32] x, float[8] c) => (float[N,8] y) { [only] y = Gemm(x, w, c) }"
        row = api.simulate(model(text, w=normal(32, 8)), schemes="W8A16").schemes[0]
        assert row.layers[0].output_sqnr_db is None
        assert row.worst is None
        assert row.layers[0].weight_sqnr_db > 35


class TestWhatCannotBe:
    def test_a_layer_that_a_format_does_not_hold_stays_float_and_says_why(self) -> None:
        huge = normal(96, 96, seed=2, scale=1e8)
        narrow, wide = simulated("i8, f16 per 32", "i8, f32 per 32", proto=mlp(w1=huge)).schemes
        assert [layer.node for layer in narrow.layers] == ["up", "down"]
        assert [layer.node for layer in wide.layers] == ["up", "mid", "down"]
        assert [d.node for d in narrow.skipped] == ["mid"]
        assert "f16 does not hold" in narrow.skipped[0].reason
        assert narrow.sqnr_db > 30

    def test_a_scheme_that_fits_nowhere_keeps_its_row(self) -> None:
        found = simulated(
            "i8, f16 per 32",
            proto=model("(float[N,64] x) => (float[N,8] y) { [up] y = MatMul(x, w) }", w=normal(64, 8, scale=1e9)),
            include="up",
        )
        row = found.schemes[0]
        assert (row.layers, row.bits_per_weight, row.bytes) == ((), 32.0, row.float_bytes)
        assert row.worst is None
        assert found.nodes == ()
        assert "No layer was quantized" in draw(found)

    def test_a_damaged_weight_is_no_matter_of_formats(self, tmp_path: Path) -> None:
        weight = normal(96, 96, seed=2)
        weight[3, 4] = np.nan
        with pytest.raises(BadInput, match=r"'w1' holds nan at \[3, 4\]"):
            simulated("W4A16", proto=mlp(w1=weight), output=tmp_path / "plot.svg")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ([], "no scheme"),
            ([""], "no scheme"),
            ("W9A9", "no scheme is called 'W9A9'"),
            ("W4A16,", "empty place"),
            ("W4A16,,W8A16", "empty place"),
            ("W4A16,w4a16", "W4A16 is asked for twice"),
            (["i4,f32 per 32", "i4, f32  per 32"], "i4, f32 per 32 is asked for twice"),
            ("float", "quantizes nothing"),
            ("e9m9, f32 per 32", "e9m9"),
            ("i4, f32 every 32", "every"),
        ],
    )
    def test_lists_of_schemes(self, names: Any, message: str, digits: Path) -> None:
        with pytest.raises(BadInput, match=re.escape(message)):
            api.simulate(digits / "no_such_model.onnx", schemes=names)

    def test_the_conditions_of_compile_hold_for_each_scheme(self, digits: Path) -> None:
        path = digits / "digits.onnx"
        with pytest.raises(BadInput) as theirs:
            api.compile(path, scheme="W8A8")
        with pytest.raises(BadInput) as ours:
            api.simulate(path, schemes="W4A16,W8A8")
        assert (ours.value.message, ours.value.hint) == (theirs.value.message, theirs.value.hint)
        with pytest.raises(BadInput, match=r"NVFP4A16 .* takes no group size"):
            api.simulate(path, schemes="W4A16,NVFP4A16", group_size=32)
        with pytest.raises(BadInput, match="second moments"):
            api.simulate(path, schemes="W4A16", algorithm="gptq")
        with pytest.raises(BadInput, match="matches no node"):
            api.simulate(path, schemes="W4A16", ignore="nothing")
        with pytest.raises((BadInput, NotSupported)):
            api.simulate(digits / "calibration.npz", schemes="W4A16")

    def test_the_place_of_the_plot(self, digits: Path, tmp_path: Path) -> None:
        taken = tmp_path / "taken.svg"
        taken.write_text("mine")
        missing = digits / "no_such_model.onnx"
        for place, message in (
            (taken, "exists"),
            (tmp_path, "not a file"),
            (tmp_path / "a" / "b.svg", "no such folder"),
        ):
            with pytest.raises(BadInput, match=message):
                api.simulate(missing, schemes="W4A16", output=place)
        assert taken.read_text() == "mine"
        found = api.simulate(digits / "digits.onnx", schemes="W4A16", output=taken, force=True)
        assert found.file == taken
        assert taken.read_text().startswith("<svg")
        assert [p.name for p in tmp_path.iterdir()] == ["taken.svg"]


def test_the_model_is_read_and_run_once_and_progress_is_told(digits: Path) -> None:
    class Listener:
        def __init__(self) -> None:
            self.stages: list[str] = []
            self.steps: list[tuple[int, int]] = []

        def stage(self, name: str) -> None:
            self.stages.append(name)

        def step(self, done: int, total: int) -> None:
            self.steps.append((done, total))

    listener = Listener()
    calibration = digits / "calibration.npz"
    names = "W8A8,W4A16,W8A8_DYNAMIC,W8A16"
    api.simulate(digits / "digits.onnx", schemes=names, calibration=calibration, progress=listener)
    for once in ("import", "run the float model", "simplify", "smooth activations", "calibrate"):
        assert listener.stages.count(once) == 1, once
    assert [s for s in listener.stages if s.startswith("simulate")] == [f"simulate {n}" for n in names.split(",")]
    assert (6, 6) in listener.steps


def test_schemes_side_by_side_are_what_each_is_alone() -> None:
    """Smoothing, statistics and codes of one scheme do not reach another."""
    names = ("W8A8", "W4A16", "XINT8", "W8A8_DYNAMIC", "W8A16")
    x = [{"x": s["x"] * np.geomspace(0.01, 10, 64).astype(np.float32)} for s in samples()]
    together = simulated(*names, calibration=x).schemes
    for name, row in zip(names, together, strict=True):
        assert row == simulated(name, calibration=x).schemes[0], name


def test_two_runs_are_equal(digits: Path) -> None:
    first, second = (api.simulate(digits / "digits.onnx", schemes="W4A16,NVFP4A16", seed=3) for _ in range(2))
    assert first == second


class TestLists:
    def test_commas_of_formats_are_told_from_commas_of_the_list(self) -> None:
        assert listed("W4A16,NVFP4A16,nf4, f32 per 64") == ["W4A16", "NVFP4A16", "nf4, f32 per 64"]
        assert listed("nf4, f32 per 64,w4a16") == ["nf4, f32 per 64", "W4A16"]
        assert listed(["W4A16; i4,f32 per 32 ;", "i8, f32 per *"]) == ["W4A16", "i4, f32 per 32", "i8, f32 per *"]

    @given(st.lists(st.sampled_from([n for n in schemes.names() if n != "float"]), min_size=1, max_size=6, unique=True))
    def test_texts_of_all_formats_in_one_list(self, names: list[str]) -> None:
        """Every format of a scheme, by name and by its text, in one list without spaces after commas."""
        loaded = [schemes.load(name) for name in names]
        wanted = list(dict.fromkeys(str(s.linear_format()) for s in loaded))
        mixed = [*wanted, *(s.name for s in loaded)]
        for text in (",".join(mixed), ", ".join(mixed), ";".join(mixed)):
            assert listed(text) == mixed

    def test_words_that_end_formats_begin_none(self) -> None:
        texts = [
            "i4, f32 per 32, permuted",
            "i3, f16 per 16, sparse 2:4",
            "k16 in f16 per *",
            "[e2m1z5|e2m1z-5] per 64, f16 per 64",
        ]
        assert listed(",".join(texts)) == texts


def row(name: str, bits: float, sqnr_db: float, nodes: tuple[str, ...] = ()) -> SimulatedScheme:
    layers = tuple(
        SimulatedLayer(node, "i4, f32 per 32", sqnr_db, sqnr_db + i % 7, 1, 1) for i, node in enumerate(nodes)
    )
    return SimulatedScheme(name, bits, 1, 1, sqnr_db, 1.0, layers, ())


SVG = "{http://www.w3.org/2000/svg}"


def parsed(found: Simulation) -> ElementTree.Element:
    return ElementTree.fromstring(draw(found))


def classed(root: ElementTree.Element, group: str, name: str) -> list[ElementTree.Element]:
    inside = next(g for g in root.iter(f"{SVG}g") if g.get("class") == group)
    return [e for e in inside.iter() if name in (e.get("class") or "").split()]


class TestPlot:
    def test_a_point_a_scheme_and_a_line_through_the_layers(self) -> None:
        found = simulated("W4A16", "W8A16", "nf4, f32 per 64", "W8A8_DYNAMIC")
        root = parsed(found)
        assert len(classed(root, "sizes", "mark")) == 4
        assert len(classed(root, "layers", "line")) == 4
        assert len(classed(root, "layers", "mark")) == 4 * 3
        titles = [t.text or "" for t in root.iter(f"{SVG}title")]
        for scheme in found.schemes:
            assert f"{scheme.scheme}: {scheme.bits_per_weight:.2f} bits, {scheme.sqnr_db:.1f} dB" in titles
        shown = {t.text for t in root.iter(f"{SVG}text")}
        assert {"W4A16", "nf4, f32 per 64", *ALL} <= shown

    def test_places_follow_the_numbers(self) -> None:
        rows = (row("A", 4, 20), row("B", 8, 40), row("C", 5, 15))
        marks = classed(parsed(Simulation("m", "s", rows, ())), "sizes", "mark")
        places = [tuple(map(float, re.findall(r"[\d.]+", m.get("transform") or ""))) for m in marks]
        (ax, ay), (bx, by), (cx, cy) = places
        assert ax < cx < bx
        assert by < ay < cy
        assert (cx - ax) / (bx - ax) == pytest.approx(0.25, abs=0.01)
        assert (ay - by) / (cy - by) == pytest.approx(0.8, abs=0.01)
        assert ["hollow" in (m.get("class") or "") for m in marks] == [False, False, True]

    def test_the_front_holds_what_nothing_beats(self) -> None:
        rows = [row("A", 4, 20), row("B", 8, 40), row("C", 5, 15), row("D", 4, 18), row("E", 8, 39), row("F", 2, 5)]
        assert [s.scheme for s in pareto(rows)] == ["F", "A", "B"]

    @pytest.mark.parametrize("spread", [0.0, 0.02, 0.4, 3.0])
    def test_labels_stand_apart_and_inside(self, spread: float) -> None:
        random = np.random.default_rng(0)
        rows = tuple(
            row(f"SCHEME_{i}", 4 + spread * random.random(), 25 + 5 * spread * random.random()) for i in range(12)
        )
        boxes: list[tuple[float, float, float, float]] = []
        for label in classed(parsed(Simulation("m", "s", rows, ())), "sizes", "name"):
            wide, x, y = width(label.text or ""), float(label.get("x") or 0), float(label.get("y") or 0)
            left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[label.get("text-anchor") or ""]
            boxes.append((left, y - 11, left + wide, y + 3))
        assert len(boxes) == 12
        for (a, b, c, d), (e, f, g, h) in combinations(boxes, 2):
            assert min(c, g) - max(a, e) <= 0.2 or min(d, h) - max(b, f) <= 0.2
        assert all(a >= 0 and c <= 960 for a, _, c, _ in boxes)

    def test_a_gap_where_a_layer_stays_float(self) -> None:
        rows = (row("A", 4, 20, ("a", "b", "c")), row("B", 8, 40, ("a", "c")))
        lines = classed(parsed(Simulation("m", "s", rows, ("a", "b", "c"))), "layers", "line")
        assert [(line.get("d") or "").count("M") for line in lines] == [1, 2]

    def test_names_from_a_model_are_text(self) -> None:
        hostile = ('</text><script>alert(1)</script>&"', "\x00\x07\n]]>", "half \ud800", "\u202eevil", "a" * 300)
        rows = (
            row("W4A16", 4, 20, hostile),
            row("[e2m1z5|e2m1z-5|e2m1z8|e2m1z-8] per 128, f16 per 128", 4, 22, hostile),
        )
        root = parsed(Simulation(hostile[0], hostile[1], rows, hostile))
        assert not list(root.iter(f"{SVG}script"))
        assert len(classed(root, "layers", "mark")) == 10

    @pytest.mark.parametrize("count", [1, 7, 60, 61, 1500])
    def test_any_number_of_layers(self, count: int) -> None:
        nodes = tuple(f"/model/layers.{i}/mlp/MatMul" for i in range(count))
        root = parsed(Simulation("m", "s", (row("A", 4, 20, nodes), row("B", 8, 200, nodes)), nodes))
        named = [t for t in root.iter(f"{SVG}text") if "MatMul" in (t.text or "")]
        assert len(named) == (count if count <= 60 else 0)
        height = float(root.get("height") or 0)
        assert 500 < height < 1100
        assert all(0 <= float(t.get("y") or 0) <= height for t in root.iter(f"{SVG}text"))

    def test_many_schemes_differ(self) -> None:
        rows = tuple(row(f"S{i}", 2 + i / 10, 10 + i, ("a", "b")) for i in range(18))
        root = parsed(Simulation("m", "s", rows, ("a", "b")))
        looks = {(m.get("class"), m.get("d")) for m in classed(root, "legend", "mark")}
        assert len(looks) == 18

    @given(st.lists(st.floats(-200, 200), min_size=1, max_size=5), st.sampled_from([0.05, 1.0]))
    def test_axes_hold_their_values_at_round_numbers(self, values: list[float], least: float) -> None:
        axis = Axis.around(values, 0, 100, least=least)
        ticks = list(axis.ticks())
        assert axis.low <= min(values) + 1e-6
        assert axis.high >= max(values) - 1e-6
        assert 2 <= len(ticks) <= 10
        assert axis.at(axis.low) == 0
        assert axis.at(axis.high) == pytest.approx(100)
        assert ticks[-1] == pytest.approx(axis.high)
