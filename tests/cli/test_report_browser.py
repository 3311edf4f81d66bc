"""The page of `qcc report` in a real browser: sorted, filtered, opened, in both themes, and silent all the while."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from qcc.api.page import render
from qcc.api.page.facts import gather
from qcc.api.verify import LayerError
from qcc.cli import run
from tests.browser import launched, unwanted

pytestmark = pytest.mark.skipif(unwanted(), reason="QCC_NO_BROWSER=1")

BYTES, ERROR = 6, 9
"""Columns of the table, counted from one."""

HOSTILE = "</script><img src=x onerror=alert(1)>"

CONTRASTS = """
() => {
  const parts = (color) => {
    const found = color.match(/[\\d.]+/g).map(Number);
    return found.length === 3 ? [...found, 1] : found;
  };
  const light = ([r, g, b]) => {
    const linear = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = parts(getComputedStyle(e).backgroundColor);
      if (color[3] === 1) return color;
      if (color[3] !== 0) throw new Error("a background lets another one through: " + e.outerHTML.slice(0, 80));
    }
    throw new Error("no background");
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.textContent.trim());
    if (!own || !element.checkVisibility() || ["SCRIPT", "title"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(parts(element.ownerSVGElement ? style.fill : style.color)), light(behind(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML.slice(0, 120)]);
  }
  return found;
}
"""


@dataclass
class Opened:
    """A page in the browser, and what it did that it should not."""

    tab: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def column(self, number: int) -> list[str]:
        """The texts of a column, of the rows that are shown, from the top."""
        return self.tab.locator(f"#layer-table tbody tr:visible > :nth-child({number})").all_inner_texts()

    def nodes(self) -> list[str]:
        return self.tab.locator("#layer-table tbody tr:visible summary").all_inner_texts()

    def sort(self, column: int) -> str | None:
        """Press the title of a column; gives the order that it announces."""
        title = self.tab.locator(f"#layer-table thead th:nth-child({column})")
        title.get_by_role("button").click()
        return title.get_attribute("aria-sort")

    def background(self) -> str:
        return self.tab.evaluate("getComputedStyle(document.body).backgroundColor")


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Any: Playwright is loaded when these tests run, not when they are collected."""
    with launched() as found:
        yield found


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """`open_page(path, **options)`: the page in a window of its own. After the test it must have been silent."""
    opened: list[Opened] = []

    def open_one(path: Path, *, before: str = "", **options: Any) -> Opened:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        if before:
            context.add_init_script(before)
        page = Opened(context.new_page())
        page.tab.on("request", lambda request: page.requests.append(request.url))
        page.tab.on("console", lambda message: page.complaints.append(message.text))
        page.tab.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.tab.on("dialog", lambda dialog: page.complaints.append(dialog.message))
        page.tab.goto(path.as_uri())
        opened.append(page)
        return page

    yield open_one
    for page in opened:
        assert not page.complaints
        assert len(page.requests) == 1, page.requests
        assert page.requests[0].startswith("file:")
        page.tab.context.close()


@pytest.fixture(scope="module")
def artifact(network: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network in 8 bits, integer kernels and float ones."""
    folder = tmp_path_factory.mktemp("browser") / "digits.qcc"
    calibration = str(digits / "calibration.npz")
    assert (
        run(["compile", str(network), "--scheme", "W8A8", "--calibration", calibration, "-o", str(folder), "-q"]) == 0
    )
    return folder


@pytest.fixture(scope="module")
def page(artifact: Path, network: Path) -> Path:
    """Its page, with times."""
    path = artifact.with_name("page.html")
    assert (
        run(["report", str(artifact), "-o", str(path), "--bench", "--model", str(network), "--rounds", "2", "-q"]) == 0
    )
    return path


@pytest.fixture(scope="module")
def layers(artifact: Path) -> list[dict[str, Any]]:
    """What the manifest says about them."""
    return json.loads((artifact / "manifest.json").read_text())["layers"]


def test_a_title_sorts_down_up_and_back(open_page: Open, page: Path, layers: list[dict[str, Any]]) -> None:
    opened = open_page(page)
    network_order = [layer["node"] for layer in layers]
    assert opened.nodes() == network_order
    assert opened.sort(BYTES) == "descending"
    by_bytes = sorted(layers, key=lambda layer: -layer["bytes"])
    assert opened.nodes() == [layer["node"] for layer in by_bytes]
    assert opened.sort(BYTES) == "ascending"
    assert opened.nodes() == [layer["node"] for layer in sorted(layers, key=lambda layer: layer["bytes"])]
    assert opened.sort(BYTES) is None
    assert opened.nodes() == network_order
    assert opened.sort(1) == "ascending"
    assert opened.nodes() == sorted(network_order)
    assert opened.sort(ERROR) == "descending"
    decibels = [float(text.removesuffix(" dB")) for text in opened.column(ERROR)]
    assert decibels == sorted(decibels, reverse=True)
    assert opened.tab.locator("[aria-sort]").count() == 1


def test_text_filters(open_page: Open, page: Path, layers: list[dict[str, Any]]) -> None:
    opened = open_page(page)
    field = opened.tab.get_by_label("Filter")
    field.fill("QDQ  conv")
    wanted = [layer["node"] for layer in layers if layer["kernel"] == "qdq_conv"]
    assert opened.nodes() == wanted
    assert opened.tab.locator("#shown").inner_text() == f"{len(wanted)} of {len(layers)} layers"
    assert opened.sort(BYTES) == "descending"
    assert opened.nodes() == wanted, "what is hidden stays hidden"
    field.fill("no such layer")
    assert opened.nodes() == []
    field.fill("")
    assert len(opened.nodes()) == len(layers)


def test_details_open_by_a_click_a_key_and_a_link(open_page: Open, page: Path, layers: list[dict[str, Any]]) -> None:
    opened = open_page(page)
    row = opened.tab.locator("#layer-0")
    layout = row.get_by_text(layers[0]["layout"])
    assert not layout.is_visible()
    row.locator("summary").click()
    assert layout.is_visible()
    row.locator("summary").press("Enter")
    assert not layout.is_visible()
    opened.tab.get_by_label("Filter").fill("qdq")
    largest = max(layers, key=lambda layer: layer["bytes"])
    opened.tab.locator("#size li a").last.click()
    target = opened.tab.locator("tr:target")
    assert target.is_visible(), "a link shows the layer although the filter had hidden it"
    assert target.locator("details").get_attribute("open") is not None
    assert target.locator("summary").inner_text() != largest["node"]
    opened.tab.locator("#decisions summary").first.click()
    assert opened.tab.locator("#decisions").get_by_text("weight [10, 48] as i8").is_visible()


def test_the_keyboard_reaches_everything(open_page: Open, page: Path) -> None:
    opened = open_page(page)
    reached: set[str] = set()
    for _ in range(90):
        opened.tab.keyboard.press("Tab")
        reached.add(opened.tab.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"theme", "filter", "Layers", "bytes", "/head/Gemm"} <= reached
    title = opened.tab.locator(f"#layer-table thead th:nth-child({BYTES})")
    title.get_by_role("button").focus()
    opened.tab.keyboard.press("Enter")
    assert title.get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_theme_follows_the_system_and_the_button(theme: str, open_page: Open, page: Path) -> None:
    opened = open_page(page, color_scheme=theme)
    button = opened.tab.locator("#theme")
    other = {"light": "Dark theme", "dark": "Light theme"}
    begin = opened.background()
    assert button.inner_text() == other[theme]
    button.click()
    assert opened.background() != begin
    assert button.inner_text() != other[theme]
    button.click()
    assert opened.background() == begin


def test_the_theme_changes_where_nothing_can_be_stored(open_page: Open, page: Path) -> None:
    refuse = (
        "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }});"
    )
    opened = open_page(page, before=refuse)
    begin = opened.background()
    opened.tab.locator("#theme").click()
    assert opened.background() != begin


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_background(theme: str, open_page: Open, page: Path) -> None:
    opened = open_page(page, color_scheme=theme)
    opened.tab.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    opened.sort(BYTES)
    opened.tab.get_by_label("Filter").fill("conv")
    opened.tab.evaluate("location.hash = '#layer-1'")
    found = opened.tab.evaluate(CONTRASTS)
    assert len(found) > 150
    weakest, where = min(found)
    assert weakest >= 4.5, f"{weakest:.2f} at {where}"


def test_without_scripts_everything_can_be_read(open_page: Open, page: Path, layers: list[dict[str, Any]]) -> None:
    opened = open_page(page, java_script_enabled=False)
    assert opened.nodes() == [layer["node"] for layer in layers]
    assert opened.column(BYTES)[0] == f"{layers[0]['bytes']} B"
    assert not opened.tab.locator("#theme").is_visible()
    assert not opened.tab.get_by_label("Filter").is_visible()
    opened.tab.locator("#layer-0 summary").click()
    assert opened.tab.locator("#layer-0").get_by_text(layers[0]["layout"]).is_visible()


@pytest.mark.parametrize("width", [360, 768, 1280, 1920])
def test_the_page_fits_its_window(width: int, open_page: Open, page: Path) -> None:
    opened = open_page(page)
    opened.tab.set_viewport_size({"width": width, "height": 900})
    assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width


def test_it_prints_light_and_without_buttons(open_page: Open, page: Path) -> None:
    opened = open_page(page, color_scheme="dark")
    opened.tab.emulate_media(media="print")
    assert not opened.tab.locator("#theme").is_visible()
    assert not opened.tab.get_by_label("Filter").is_visible()
    ink = opened.tab.evaluate("getComputedStyle(document.querySelector('h1')).color")
    assert max(int(part) for part in ink[4:-1].split(",")) < 80
    assert opened.tab.pdf().startswith(b"%PDF")


def test_hostile_names_are_only_text(open_page: Open, artifact: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(artifact, tmp_path / "hostile.qcc"))
    data = json.loads((folder / "manifest.json").read_text())
    data["name"] = HOSTILE
    for record in (*data["layers"], *data["decisions"]):
        record["node"] = record["reason"] = HOSTILE
    data["decisions"][0]["action"] = "skipped"
    (folder / "manifest.json").write_text(json.dumps(data))
    path = tmp_path / "hostile.html"
    assert run(["report", str(folder), "-o", str(path), "-q"]) == 0
    opened = open_page(path)
    assert opened.tab.locator("img").count() == 0
    assert opened.tab.locator("h1").inner_text() == HOSTILE
    assert opened.nodes() == [HOSTILE] * len(data["layers"])
    assert opened.sort(1) == "ascending"
    opened.tab.get_by_label("Filter").fill("onerror=alert(1)")
    assert len(opened.nodes()) == len(data["layers"])


@pytest.mark.slow
def test_a_page_of_3000_layers_opens_and_sorts_in_seconds(open_page: Open, artifact: Path, tmp_path: Path) -> None:
    """Some tenths of a second to the first text on a desk; the bound leaves room for a busy machine."""
    facts = gather(artifact, measure=False, model=None, threads=1, rounds=1)
    kinds = facts.manifest.layers
    layers = [kinds[k % 6].model_copy(update={"node": f"/layers.{k}/MatMul", "bytes": k}) for k in range(3000)]
    errors = tuple(LayerError(layer.node, 40 - 0.01 * k) for k, layer in enumerate(layers))
    manifest = facts.manifest.model_copy(update={"layers": layers})
    path = tmp_path / "large.html"
    path.write_text(
        render(replace(facts, manifest=manifest, verified=replace(facts.verified, layers=errors))), encoding="utf-8"
    )
    begin = time.monotonic()
    opened = open_page(path)
    assert opened.sort(BYTES) == "descending"
    opened.tab.get_by_label("Filter").fill("layers.2999/")
    assert opened.nodes() == ["/layers.2999/MatMul"]
    assert time.monotonic() - begin < 30


def test_even_markup_that_slipped_through_could_not_run(open_page: Open, page: Path, tmp_path: Path) -> None:
    """The policy of the page is a second wall: a script and a handler put in by hand are refused, and say so."""
    path = tmp_path / "broken.html"
    planted = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\"></main>"
    path.write_text(page.read_text(encoding="utf-8").replace("</main>", planted), encoding="utf-8")
    opened = open_page(path)
    assert opened.tab.title() == "digits: qcc report"
    refused = [text for text in opened.complaints if "Content Security Policy" in text]
    assert len(refused) >= 2
    opened.complaints.clear()
    opened.requests = opened.requests[:1]
