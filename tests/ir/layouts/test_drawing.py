"""Pictures of layouts: what they show is where `pack` puts the bits, and they are plain, valid SVG."""

from __future__ import annotations

import re
from itertools import pairwise
from math import prod
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from qcc.ir import layouts
from qcc.ir.draw_layout import Plan, plan_named, plan_text, spans, svg, total_bytes
from qcc.ir.errors import BadInput
from qcc.ir.layout import Ragged, pack, parse_layout
from qcc.ir.layouts import NamedLayout, named

from .helpers import store
from .test_registry import EVERY, ROOT, random_parts

each = pytest.mark.parametrize("layout", EVERY, ids=str)
CHAIN = "n(n0) k(k1 k0:4) -> n0 k1 k0 xor 8"
RAGGED = "n(n0) k(k1 k0:8) -> k1 n0 k0 + n(n0) k(k0) -> n0 k0 along k"
STAGES = "n(n0:4) k(k0:6) -> k0 n0; slot(s1:8 s0:3) -> s0 s1"


@each
def test_every_bit_is_drawn_once(layout: NamedLayout) -> None:
    plan = plan_named(layout)
    found = spans(plan, 0, 8 * total_bytes(plan))
    assert found[0].start == 0
    assert all(before.stop == after.start for before, after in pairwise(found))
    assert found[-1].stop in range(8 * total_bytes(plan) - 7, 8 * total_bytes(plan) + 1)
    held = sum(span.high - span.low for span in found if span.part == "codes" and not span.is_padding)
    assert held == prod(plan.shape) * layout.bits


@each
def test_a_code_lies_where_it_is_drawn(layout: NamedLayout) -> None:
    """Flip every bit of one value: exactly the bits of its spans change in what is stored."""
    plan = plan_named(layout)
    parts = random_parts(layout, plan.shape, seed=1)
    before = np.unpackbits(store(layout, parts, plan.shape), bitorder="little")
    found = spans(plan, 0, 8 * total_bytes(plan))
    rng = np.random.default_rng(0)
    for part in parts:
        at = tuple(int(rng.integers(extent)) for extent in parts[part].shape)
        changed = {name: values.copy() for name, values in parts.items()}
        raw = changed[part].view(f"u{changed[part].itemsize}")
        raw[at] ^= np.array((1 << layout.part_bits[part]) - 1).astype(raw.dtype)
        if changed[part].dtype == np.int8:  # two's complement of few bits in a byte
            changed[part][at] = ~parts[part][at]
        after = np.unpackbits(store(layout, changed, plan.shape), bitorder="little")
        drawn = [
            bit for span in found if span.part == part and span.coords == at for bit in range(span.start, span.stop)
        ]
        assert np.flatnonzero(before != after).tolist() == sorted(drawn)


@each
def test_pictures_are_small_plain_svg(layout: NamedLayout) -> None:
    text = svg(plan_named(layout))
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not re.search(r"<script|<foreignObject|https?://(?!www\.w3\.org)|@font-face|@import|\son\w+=", text)
    assert "prefers-color-scheme: dark" in text
    assert len(text) < 500_000
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert title is not None
    assert title.text == f"{layout.name}: {layout.layout}"


def labels(text: str, kind: str) -> list[str]:
    group = re.search(rf'<g class="{kind}">(.*?)</g>', text, re.DOTALL)
    return re.findall(r">([^<]+)</text>", group[1]) if group else []


def test_a_picture_of_a_chain_numbers_slots_and_labels_nibbles() -> None:
    text = svg(plan_text(CHAIN, 4, (2, 6)))
    assert labels(text, "slot") == ["0", "1", "2", "3", "4", "5", "8", "9", "10", "11", "12", "13"]
    assert labels(text, "code") == [f"{n},{k}" for n in range(2) for k in range(6)]
    assert text.count('class="cell pad"') == 1  # one path of four boxes
    path = re.search(r'class="cell pad" d="([^"]*)"', text)
    assert path is not None
    assert path[1].count("M") == 4


def test_marlin_is_coloured_by_lane() -> None:
    text = svg(plan_named(named("marlin")))
    lanes = re.findall(r'class="cell o(\d+)" d="([^"]*)"', text)
    assert sorted(int(lane) for lane, _ in lanes) == list(range(32))
    per_lane = {lane: path.count("M") for lane, path in lanes}
    assert per_lane["0"] == 32 + 32  # 32 elements above, and its 16 bytes of two below
    assert labels(text, "axis")[-1]


@pytest.mark.parametrize("text", [CHAIN, RAGGED, STAGES, "n(n0) k(k1 k0:8) -> @bank k0 @row n0 k1"])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_layouts_that_are_spelled_out(text: str, bits: int) -> None:
    plan = plan_text(text.replace("xor 8", ""), bits)
    found = spans(plan, 0, 8 * total_bytes(plan))
    codes = np.random.default_rng(0).integers(0, 1 << bits, plan.shape).astype(np.uint8)
    layout = parse_layout(text.replace("xor 8", ""))
    assert not isinstance(layout, layouts.Record)
    stream = np.unpackbits(pack(codes, bits, layout), bitorder="little")
    for span in found:
        if not span.is_padding:
            value = stream[span.start : span.stop] @ (1 << np.arange(span.high - span.low))
            assert value == codes[span.coords] >> span.low & (1 << span.high - span.low) - 1
    assert sum(not span.is_padding for span in found) == codes.size
    assert isinstance(layout, Ragged) == ("along" in text)
    ElementTree.fromstring(svg(plan))


def test_a_record_that_is_spelled_out_names_its_fields() -> None:
    text = svg(plan_text("n(n0) k(k1 k0:32) -> n0 k1 {scale; codes[0:4] k0; codes[4:5] k0}", 5, (1, 32)))
    assert {"scale", "codes[0:4]", "codes[4:5]"} <= set(labels(text, "axis"))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (lambda: plan_named(named("marlin"), (100, 100)), "10000 elements"),
        (lambda: plan_named(named("marlin"), (0, 64)), "0 elements"),
        (lambda: plan_named(named("marlin"), (64,)), "rank 1"),
        (lambda: plan_text("n(n0) -> n1", 4), "n1"),
        (lambda: plan_text("n(n0) -> n0 {scale}", 4), "codes"),
        (lambda: plan_text("n(n0) -> n0", 9), "9 bits"),
        (lambda: plan_text("n(n0) -> n0 xor 8", 2), "xor 8"),
    ],
)
def test_what_cannot_be_drawn_is_refused(plan: object, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        assert isinstance(plan(), Plan)  # type: ignore[operator]


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "pictures").glob("layout-*.svg")), ids=lambda path: path.stem)
def test_pictures_of_the_documentation_are_drawn_by_this_version(path: Path) -> None:
    """To update one: `qcc inspect --layout NAME -o docs/pictures/layout-NAME.svg --force`."""
    name = path.stem.removeprefix("layout-").replace("-", "_")
    assert path.read_text() == svg(plan_named(named(name)))
