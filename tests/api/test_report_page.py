"""The page of `qcc.report`: whole, well formed, escaped, and every number that of the manifest."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from qcc import api
from qcc.api import Artifact
from qcc.api.page import SECTIONS, render
from qcc.api.page.facts import Facts, gather
from qcc.api.page.markup import Html, code, element
from qcc.api.page.words import amount, decibels, format_in_words, noise, percent, ratio
from qcc.api.verify import LayerError
from qcc.backends.artifact import DecisionRecord, LayerRecord, read_manifest
from qcc.ir.errors import BadInput
from qcc.passes import schemes

Compiled = Callable[..., Artifact]

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "\"' onmouseover='alert(1)",
    "</style><style>*{display:none}",
    "--><!--]]>",
    "</details></table><script>alert(1)</script>",
    "&lt;b&gt;&amp;",
    "\u202eevil\u2066 \x00\x07\n",
    "half a pair \ud800",
    "",
)
VOID = {"meta", "input"}


@dataclass
class Node:
    """An element of a parsed page."""

    name: str
    attributes: dict[str, str | None]
    children: list[Node | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, name: str, **attributes: str) -> list[Node]:
        """Every element of this name below, in order."""
        found: list[Node] = []
        for child in self.children:
            if isinstance(child, Node):
                if child.name == name and attributes.items() <= child.attributes.items():
                    found.append(child)
                found += child.all(name, **attributes)
        return found

    def by_id(self, name: str) -> Node:
        return next(node for node in everything(self) if node.attributes.get("id") == name)


def everything(node: Node) -> list[Node]:
    return [node, *(n for child in node.children if isinstance(child, Node) for n in everything(child))]


class Reader(HTMLParser):
    """A strict reader: every element is closed, and in order."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of <{tag}> is there twice"
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(page: str) -> Node:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == [reader.root]
    return reader.root


@pytest.fixture(scope="module")
def facts(in_scheme: Compiled) -> Facts:
    """Of the digits network in 8 bits."""
    return gather(in_scheme("W8A8"), measure=False, model=None, threads=1, rounds=1)


def with_layers(facts: Facts, layers: list[LayerRecord], decisions: list[DecisionRecord] | None = None) -> Facts:
    """The same artifact with other layers, each with an error."""
    changes = {"layers": layers, "decisions": facts.manifest.decisions if decisions is None else decisions}
    errors = tuple(LayerError(layer.node, 40.0 - 0.01 * k) for k, layer in enumerate(layers))
    return replace(
        facts, manifest=facts.manifest.model_copy(update=changes), verified=replace(facts.verified, layers=errors)
    )


def test_the_page_is_one_well_formed_document(facts: Facts) -> None:
    page = render(facts)
    root = parse(page)
    assert page.startswith("<!doctype html>\n")
    (html,) = root.all("html")
    assert html.attributes == {"lang": "en"}
    ids = [node.attributes["id"] for node in everything(root) if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    links = [node.attributes["href"] or "" for node in root.all("a")]
    assert links
    assert {link.removeprefix("#") for link in links} <= set(ids), "every link leads to a place on the page"
    assert len(root.all("h1")) == 1
    assert len(root.all("section")) == len(SECTIONS) - 1, "all but that of language models"
    assert all(table.all("caption") and table.all("th", scope="col") for table in root.all("table"))


def test_the_page_loads_nothing_and_lets_only_its_own_style_and_script_in(facts: Facts) -> None:
    page = render(facts)
    root = parse(page)
    assert not re.findall(r"https?://|url\(|@import|\bsrc=", page)
    names = {node.name for node in everything(root)}
    assert not names & {"img", "link", "iframe", "object", "embed", "form", "base", "audio", "video"}
    (policy,) = (n.attributes["content"] or "" for n in root.all("meta", **{"http-equiv": "Content-Security-Policy"}))
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert (len(root.all("script")), len(root.all("style"))) == (1, 1)
    attributes = {name for node in everything(root) for name in node.attributes}
    assert not [name for name in attributes if name.startswith("on") or name == "style"]


def test_the_table_has_every_layer_with_the_numbers_of_the_manifest(facts: Facts) -> None:
    rows = parse(render(facts)).by_id("layer-table").all("tbody")[0].all("tr")
    assert len(rows) == len(facts.manifest.layers) == len(facts.verified.layers)
    for row, layer, error in zip(rows, facts.manifest.layers, facts.verified.layers, strict=True):
        assert error is not None
        head, *cells = (child for child in row.children if isinstance(child, Node))
        assert head.all("summary")[0].text == layer.node
        texts = [cell.text for cell in cells]
        assert texts == [
            "x".join(map(str, layer.shape)),
            layer.format,
            layer.kernel,
            layer.activation,
            amount(layer.bytes),
            f"{layer.bytes / layer.float_bytes:.2f}x",
            layer.reason,
            f"{error.sqnr_db:.1f} dB",
        ]
        values = [cell.attributes.get("data-v") for cell in cells]
        assert float(values[4] or 0) == layer.bytes
        assert float(values[5] or 0) == pytest.approx(layer.bytes / layer.float_bytes, abs=1e-6)
        assert float(values[7] or 0) == error.sqnr_db
        for told in (layer.op, layer.weight, layer.layout, layer.value, f"{layer.bytes:,}", f"{layer.float_bytes:,}"):
            assert told in head.text


def test_the_rest_of_the_manifest_is_on_the_page(facts: Facts) -> None:
    m = facts.manifest
    root = parse(render(facts))
    words = " ".join(root.all("body")[0].text.split())
    for told in (
        m.name, m.scheme, m.machine, m.backend, m.samples, m.samples_sha256, amount(m.bytes), amount(m.float_bytes),
        f"{m.bits_per_weight:.2f} bits", f"{facts.verified.sqnr_db:.1f} dB", f"{facts.verified.max_abs_error:.4g}",
        *m.ran_on, *m.files, *m.files.values(), *m.versions, *m.versions.values(),
        *(p.name for p in (*m.inputs, *m.outputs)), "[batch, 1, 8, 8]", "not measured",
    ):  # fmt: skip
        assert told in words, told
    listed = root.by_id("decisions").text
    for decision in m.decisions:
        for told in (decision.action, decision.node, decision.reason):
            assert told in listed
    for name, value in m.options.items():
        assert name.replace("_", " ") in root.by_id("options").text
        assert not isinstance(value, str) or value in root.by_id("options").text


def test_bars_are_in_proportion_and_the_largest_is_first(facts: Facts) -> None:
    (picture,) = parse(render(facts)).all("ol", **{"aria-label": "Bytes of each layer"})
    expected = sorted(facts.manifest.layers, key=lambda layer: -layer.bytes)
    largest = max(layer.float_bytes for layer in expected)
    items = picture.all("li")
    assert [item.all("a")[0].text for item in items] == [layer.node for layer in expected]
    for item, layer in zip(items, expected, strict=True):
        ghost, fill = item.all("rect")
        assert float(fill.attributes["width"] or 0) == pytest.approx(max(100 * layer.bytes / largest, 0.3), abs=0.01)
        assert float(ghost.attributes["width"] or 0) == pytest.approx(100 * layer.float_bytes / largest, abs=0.01)
        assert amount(layer.bytes) in item.text


def test_errors_are_drawn_along_the_network_and_listed_worst_first(facts: Facts) -> None:
    root = parse(render(facts))
    known = {e.node: e.sqnr_db for e in facts.verified.layers if e is not None}
    titles = [circle.all("title")[0].text for circle in root.by_id("error").all("circle")]
    assert titles == [f"{layer.node}: {known[layer.node]:.1f} dB" for layer in facts.manifest.layers]
    (picture,) = root.all("ol", **{"aria-label": "Relative error of the worst layers"})
    assert [item.all("a")[0].text for item in picture.all("li")] == sorted(known, key=lambda node: known[node])
    assert [worst.node for worst in facts.verified.worst] == sorted(known, key=lambda node: known[node])[:5]


def test_skipped_nodes_are_told_with_their_reasons(in_scheme: Compiled) -> None:
    artifact = in_scheme("W4A16")
    skipped = [d for d in artifact.manifest.decisions if d.action == "skipped"]
    assert skipped
    text = parse(api.report(artifact)).by_id("decisions").text
    assert all(d.node in text and d.reason in text for d in skipped)


def test_times_are_told_where_they_were_measured(in_scheme: Compiled, digits: Path) -> None:
    page = parse(api.report(in_scheme("W8A8"), bench=True, model=digits / "digits.onnx", rounds=2))
    items = page.by_id("speed").all("li")
    assert [item.all("span")[0].text for item in items] == ["this artifact", "ONNX Runtime in float"]
    assert "2 rounds on 1 thread" in page.by_id("speed").text
    alone = parse(api.report(in_scheme("W8A8"), bench=True, rounds=1)).by_id("speed")
    assert len(alone.all("li")) == 1
    assert "--model" in alone.text
    with pytest.raises(BadInput, match="only used to time"):
        api.report(in_scheme("W8A8"), model=digits / "digits.onnx")


def test_a_float_artifact_has_a_page(in_scheme: Compiled) -> None:
    root = parse(api.report(in_scheme("float")))
    assert "No layer was quantized" in root.by_id("layers").text
    assert not root.all("circle")


def test_nothing_in_an_artifact_becomes_markup(facts: Facts) -> None:
    """Every text of the manifest, hostile: the same elements stand on the page as with harmless text."""

    def told(mark: Callable[[int], str]) -> Facts:
        layers = [
            facts.manifest.layers[0].model_copy(
                update=dict.fromkeys(("node", "op", "weight", "format", "layout", "kernel", "reason", "value"), mark(k))
                | {"activation": mark(k) or "x", "op": mark(k) or "x"}
            )
            for k in range(len(HOSTILE))
        ]
        decisions = [
            DecisionRecord.model_construct(node=mark(k), action=action, reason=mark(k) or "x")
            for k in range(len(HOSTILE))
            for action in ("skipped", mark(k) or "x")
        ]
        text = mark(0)
        m = facts.manifest.model_copy(
            update={
                **dict.fromkeys(("name", "target", "machine", "backend", "scheme", "samples", "samples_sha256"), text),
                "requires": [text], "ran_on": [text], "not_run": [text], "files": {text: text},
                "versions": {text: text}, "options": {text: {text: [text, None, 1.5]}},
                "inputs": [p.model_copy(update={"name": text, "dtype": text, "shape": [text, None, 3]})
                           for p in facts.manifest.inputs],
            }
        )  # fmt: skip
        return replace(with_layers(replace(facts, manifest=m), layers, decisions), folder=text, machine=text)

    harmless = render(told(lambda k: f"name{k}" if HOSTILE[k] else ""))
    for shift in range(len(HOSTILE) - 1):
        hostile = HOSTILE[shift : len(HOSTILE) - 1] + HOSTILE[:shift] + ("",)
        page = render(told(lambda k, hostile=hostile: hostile[k]))
        page.encode("utf-8")
        assert elements(page) == elements(harmless)


def elements(page: str) -> list[tuple[str, list[str]]]:
    """Names and attribute names of all elements, in order; code and `no name` are one."""
    return [(node.name, sorted(node.attributes)) for node in everything(parse(page))]


def test_a_page_of_3000_layers_stays_small_and_draws_its_dots_as_one_path(facts: Facts) -> None:
    layers = [
        facts.manifest.layers[k % 6].model_copy(update={"node": f"/layers.{k}/MatMul", "weight": f"w{k}", "bytes": k})
        for k in range(3000)
    ]
    page = render(with_layers(facts, layers))
    assert len(page.encode()) < 4_000_000
    root = parse(page)
    assert len(root.by_id("layer-table").all("tbody")[0].all("tr")) == 3000
    assert not root.all("circle")
    assert len(root.by_id("size").all("li")) == 2 + 20
    assert "Another 2,980 layers" in root.by_id("size").text


def test_a_layer_without_an_error_or_without_bytes_is_told_as_such(facts: Facts) -> None:
    empty = facts.manifest.layers[0].model_copy(update={"bytes": 0, "float_bytes": 0, "shape": [0, 3]})
    one = replace(with_layers(facts, [empty]), verified=replace(facts.verified, layers=(None,)))
    (row,) = parse(render(one)).by_id("layer-table").all("tbody")[0].all("tr")
    assert row.text.endswith("not known")
    assert "?" in row.text
    broken = replace(facts.verified, layers=(LayerError("a", -200.0),), ok=False, failures=("it is <b>wrong</b>",))
    page = parse(render(replace(with_layers(facts, [empty]), verified=broken)))
    assert "Failed: it is <b>wrong</b>" in page.text
    assert "check failed" in page.text


def test_the_same_artifact_gives_the_same_page(in_scheme: Compiled) -> None:
    assert api.report(in_scheme("W8A8")) == api.report(in_scheme("W8A8").folder)


@pytest.mark.parametrize("damage", ["file", "size", "layers", "output", "json"])
def test_a_damaged_artifact_is_refused(damage: str, in_scheme: Compiled, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(in_scheme("W8A8").folder, tmp_path / "a.qcc"))
    data: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    if damage == "file":
        (folder / "model.onnx").write_bytes(b"")
    elif damage == "size":
        data["layers"][0]["bytes"] = 10**400
    elif damage == "layers":
        data["layers"] = data["layers"][:2]
    elif damage == "output":
        data["outputs"][0]["name"] = "<b>"
    (folder / "manifest.json").write_text("{" if damage == "json" else json.dumps(data))
    with pytest.raises(BadInput):
        api.report(folder, output=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_output_is_written_whole_and_replaces_only_a_report(in_scheme: Compiled, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    page = api.report(in_scheme("W8A8"), output=path)
    assert path.read_text(encoding="utf-8") == page
    api.report(in_scheme("W8A16"), output=path)
    assert "W8A16" in path.read_text(encoding="utf-8")
    path.write_text("mine")
    with pytest.raises(BadInput, match="not a qcc report"):
        api.report(in_scheme("W8A8"), output=path)
    assert path.read_text() == "mine"
    api.report(in_scheme("W8A8"), output=path, force=True)
    for place in (tmp_path, tmp_path / "nowhere" / "page.html"):
        with pytest.raises(BadInput):
            api.report(in_scheme("W8A8"), output=place, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_markup_escapes_all_but_markup() -> None:
    assert element("b", "<&>", title='"<') == '<b title="&quot;&lt;">&lt;&amp;&gt;</b>'
    assert element("i", Html("<b>"), None, data_v=1, class_="x", hidden="", left=None) == (
        '<i data-v="1" class="x" hidden><b></i>'
    )
    assert element("input", id="a") == '<input id="a">'
    assert code("") == "<i>no name</i>"


def test_numbers_read_well() -> None:
    assert [amount(n) for n in (0, 999, 1000, 56421, 10**6, 3 * 10**9)] == [
        "0 B", "999 B", "1.0 kB", "56.4 kB", "1.0 MB", "3.00 GB",
    ]  # fmt: skip
    assert [decibels(v) for v in (42.66, 200.0, -200.0, -3.0)] == ["42.7 dB", "exact", "broken", "-3.0 dB"]
    assert (noise(40), noise(0), noise(-200)) == (1, 100, 100)
    assert [percent(v) for v in (100, 1.01, 0.0623, 1e-9, 0.0)] == [
        "100 %",
        "1.0 %",
        "0.062 %",
        "under 0.0001 %",
        "0 %",
    ]
    assert ratio(1, 0) == "?"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("i8, f32 per *x*x*", "8-bit signed codes, a float32 scale for each output channel"),
        ("u4, f16 per 32, zero u4", "4-bit unsigned codes, a float16 scale for every 32 values of a row, with a zero point"),  # noqa: E501
        ("u8, f32 per tensor", "8-bit unsigned codes, one float32 scale"),
        ("i4, f32 per 3x*x*", "4-bit signed codes, a float32 scale for each block of 3xallxall"),
        ("u8, f32 per tensor, zero u8 per 32", "8-bit unsigned codes, one float32 scale, with an 8-bit zero point for every 32 values of a row"),  # noqa: E501
        ("u8, f32 per *, zero 128", "8-bit unsigned codes, a float32 scale for each output channel, with the zero point 128"),  # noqa: E501
        ("e2m1, e4m3 per 16, f32 per tensor", "4-bit floats (E2M1), a float8 scale for every 16 values of a row times one float32"),  # noqa: E501
        ("e2m1, e8m0 per 32", "4-bit floats (E2M1), a power-of-two scale for every 32 values of a row"),
        ("i8q6, e8m0 per *", "8-bit fixed point (I8Q6), a power-of-two scale for each output channel"),
        ("nf4, f32 per 64", "4-bit codes (NF4), a float32 scale for every 64 values of a row"),
        ("nf4, i8 per 64, f32 per *, mean f32 per tensor", "4-bit codes (NF4), an 8-bit scale for every 64 values of a row times a float32 one for each output channel, around one float32 mean"),  # noqa: E501
        ("u4, u6 per 32, f16 per 256, minus u6 per 32 by f16 per 256", "4-bit unsigned codes, a 6-bit scale for every 32 values of a row times a float16 one for every 256 values of a row, less a 6-bit minimum for every 32 values of a row times a float16 one for every 256 values of a row"),  # noqa: E501
        ("u4, f16 per 32, plus f16 per 32", "4-bit unsigned codes, a float16 scale for every 32 values of a row, plus a float16 offset for every 32 values of a row"),  # noqa: E501
        ("ternary, bf16 per tensor", "ternary codes, one bfloat16 scale"),
        ("k16 in f16 per *", "4-bit codes, 16 float16 values for each output channel"),
        ("k8 in f16 per tensor", "3-bit codes, 8 float16 values in all"),
        ("[nf4|fp4] per 128, f16 per 128", "4-bit codes, one of 2 types for every 128 values of a row, a float16 scale for every 128 values of a row"),  # noqa: E501
        ("i4, f16 per 32, permuted, sparse 2:4", "4-bit signed codes, a float16 scale for every 32 values of a row, columns in an order of their own, 2 of 4 neighbours kept"),  # noqa: E501
        ("i8, f32 per *, outliers f16 columns", "8-bit signed codes, a float32 scale for each output channel, outlier columns in float16"),  # noqa: E501
        ("i3, f32 per *, outliers bf16 csr", "3-bit signed codes, a float32 scale for each output channel, single outliers in bfloat16"),  # noqa: E501
        ("float", ""),
        ("i4, f32", ""),
    ],
)  # fmt: skip
def test_formats_in_words(text: str, words: str) -> None:
    assert format_in_words(text) == words


def test_every_scheme_has_words() -> None:
    formats = [schemes.load(name).linear_format() for name in schemes.names() if name != "float"]
    assert all(format_in_words(str(fmt)) for fmt in formats)


def test_a_section_may_have_nothing_to_tell(in_scheme: Compiled) -> None:
    manifest = read_manifest(in_scheme("float").folder)
    assert not manifest.layers
    assert "kinds" not in {s.attributes["id"] for s in parse(api.report(in_scheme("float"))).all("section")}
