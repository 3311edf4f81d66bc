"""What was quantized, and how: the kinds of layer, and a table with a row for every layer."""

from __future__ import annotations

from collections import defaultdict

from qcc.backends.artifact import LayerRecord

from .facts import Facts, Layer
from .markup import Html, code, element, join, table
from .section import Section, note
from .words import amount, decibels, format_in_words, ratio, shape

_COLUMNS = ("node", "shape", "format", "kernel", "activation", "bytes", "of float", "reason", "error")
_NUMBERS = {"bytes", "of float", "error"}
_DIGITS = 6
_AT_RUN_TIME = " at run time"


def kinds(facts: Facts) -> Section | None:
    """Layers of one format, activation and kernel counted together."""
    if not facts.layers:
        return None
    alike: dict[tuple[str, str, str], list[LayerRecord]] = defaultdict(list)
    for layer in facts.layers:
        record = layer.record
        alike[record.format, record.activation, record.kernel].append(record)
    ordered = sorted(alike.items(), key=lambda item: -sum(r.bytes for r in item[1]))
    rows = [
        (
            _explained(weight),
            _explained(activation),
            code(kernel),
            f"{len(records):,}",
            amount(sum(r.bytes for r in records)),
            ratio(sum(r.bytes for r in records), sum(r.float_bytes for r in records)),
        )
        for (weight, activation, kernel), records in ordered
    ]
    head = ("weights", "activations", "kernel", "layers", "bytes", "of float")
    body = element("div", table(head, rows, caption="Kinds of layer", numbers=(3, 4, 5)), class_="scroll")
    return Section("kinds", "Formats", "What was quantized, and how", body)


def layers(facts: Facts) -> Section:
    """Every layer: sortable and filterable where scripts run, in the order of the network where they do not."""
    if not facts.layers:
        return Section("layers", "Layers", "Every layer", note("No layer was quantized."))
    head = element("tr", *(_title(column) for column in _COLUMNS))
    tools = element(
        "div",
        element("label", "Filter ", element("input", type="search", id="filter", autocomplete="off")),
        element("output", id="shown", for_="filter"),
        element("p", "Words that a layer must all contain. A title sorts.", class_="note"),
        class_="tools",
        hidden="",
        data_for="layer-table",
    )
    rows = element(
        "table",
        element("caption", "Every quantized layer, in the order of the network", class_="hide"),
        element("thead", head),
        element("tbody", *(_row(layer) for layer in facts.layers)),
        id="layer-table",
    )
    body = join((tools, element("div", rows, class_="scroll", tabindex=0, role="group", aria_label="Table of layers")))
    return Section("layers", "Layers", f"Every layer ({len(facts.layers):,})", body)


def _title(column: str) -> Html:
    kind = "number" if column in _NUMBERS else "text"
    return element("th", column, scope="col", data_sort=kind, class_="number" if kind == "number" else None)


def _row(layer: Layer) -> Html:
    record = layer.record
    share = record.bytes / record.float_bytes if record.float_bytes else None
    error = layer.sqnr_db
    return element(
        "tr",
        element("th", _details(layer), scope="row"),
        element("td", shape(record.shape)),
        element("td", record.format),
        element("td", record.kernel),
        element("td", record.activation),
        element("td", amount(record.bytes), class_="number", data_v=record.bytes),
        element(
            "td",
            ratio(record.bytes, record.float_bytes),
            class_="number",
            data_v="" if share is None else round(share, _DIGITS),
        ),
        element("td", record.reason),
        element(
            "td",
            "not known" if error is None else decibels(error),
            class_="number",
            data_v=None if error is None else error,
        ),
        id=layer.anchor,
    )


def _details(layer: Layer) -> Html:
    record = layer.record
    facts = [
        ("operation", record.op),
        ("weight", record.weight),
        ("format", format_in_words(record.format)),
        ("layout", record.layout),
        ("bytes", f"{record.bytes:,}, in float {record.float_bytes:,}"),
        ("result", record.value),
        *((decision.action, decision.reason) for decision in layer.decisions),
    ]
    listed = [join((element("dt", name), element("dd", text))) for name, text in facts if text]
    return element("details", element("summary", record.node or "no name"), element("dl", *listed))


def _explained(text: str) -> Html:
    """A format, and under it what it means."""
    fixed = text.removesuffix(_AT_RUN_TIME)
    words = format_in_words(fixed) + (", computed at run time" if fixed != text else "")
    return join((code(text), element("small", words) if words else None))
