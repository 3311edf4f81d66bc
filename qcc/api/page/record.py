"""The sections for the record: decisions, where it ran, inputs and outputs, options, versions and files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import cast

from qcc.backends.artifact import SCHEMA_VERSION, DecisionRecord, PortRecord

from .facts import Facts
from .markup import Child, Html, code, element, join, table
from .section import Section, note
from .words import count

_FOLDED = 12
"""Lists longer than this begin folded."""


def decisions(facts: Facts) -> Section:
    """What was left in float and why, then every other decision, by kind and reason."""
    skipped = facts.decided("skipped")
    parts: list[Html] = [element("h3", "Left in float")]
    if skipped:
        rows = [(code(d.node), d.reason) for d in skipped]
        parts.append(_folded(len(rows), "node", table(("node", "why"), rows, caption="Nodes left in float")))
    else:
        parts.append(note("Nothing was skipped: every weight that the scheme covers is quantized."))
    kinds: dict[str, list[DecisionRecord]] = defaultdict(list)
    for decision in facts.manifest.decisions:
        if decision.action != "skipped":
            kinds[decision.action].append(decision)
    if kinds:
        parts.append(element("h3", "Every other decision"))
    for action, made in kinds.items():
        summary = element("summary", element("b", action), f" {count(len(made), 'decision')}")
        parts.append(element("details", summary, _by_reason(made)))
    return Section("decisions", "Decisions", "Decisions", join(parts))


def _by_reason(made: Sequence[DecisionRecord]) -> Html:
    alike: dict[str, list[str]] = defaultdict(list)
    for decision in made:
        alike[decision.reason].append(decision.node)
    rows = [(reason, f"{len(nodes):,}", _listed(nodes)) for reason, nodes in alike.items()]
    return element("div", table(("why", "nodes", ""), rows, caption="Nodes by reason", numbers=(1,)), class_="scroll")


def _listed(nodes: Sequence[str]) -> Html:
    return element("ul", *(element("li", code(node)) for node in nodes), class_="names")


def _folded(length: int, noun: str, body: Html) -> Html:
    body = element("div", body, class_="scroll")
    return body if length <= _FOLDED else element("details", element("summary", count(length, noun)), body)


def places(facts: Facts) -> Section:
    """Devices on which the figures were taken, and those on which nobody ran it."""
    m = facts.manifest
    rows: list[tuple[str, Child]] = [
        ("compiled for", f"{m.target}, with kernels chosen on {m.machine}"),
        ("ran on", ", ".join(m.ran_on) or "nothing"),
        ("not run on", ", ".join(m.not_run) or "none"),
        ("requires", ", ".join(m.requires) or "nothing beyond the backend, which chooses its code paths itself"),
        ("backend", m.backend),
        ("checked for this page", f"on {facts.machine}"),
    ]
    return Section("places", "Where it ran", "What ran where, and what did not", pairs(rows), half=True)


def interface(facts: Facts) -> Section:
    """Inputs and outputs."""
    rows = [("input", port) for port in facts.manifest.inputs] + [("output", port) for port in facts.manifest.outputs]
    cells = [(code(port.name), which, port.dtype, _extents(port)) for which, port in rows]
    body = table(("name", "", "type", "shape"), cells, caption="Inputs and outputs")
    return Section("interface", "Inputs", "Inputs and outputs", element("div", body, class_="scroll"), half=True)


def _extents(port: PortRecord) -> str:
    if port.shape is None:
        return "not known"
    return "[" + ", ".join("?" if extent is None else str(extent) for extent in port.shape) + "]"


def recipe(facts: Facts) -> Section:
    """The options that shaped the result, and the samples on which it was measured."""
    m = facts.manifest
    rows: list[tuple[str, Child]] = [(name.replace("_", " "), _value(value)) for name, value in m.options.items()]
    rows += [("seed", str(m.seed)), ("stored samples", m.samples), ("hash of the samples", code(m.samples_sha256))]
    return Section("options", "Options", "Options", pairs(rows), half=True)


def _value(value: object) -> str:
    if value is None or value == "" or value == [] or value == {}:
        return "none"
    if isinstance(value, list):
        return ", ".join(_value(each) for each in cast(list[object], value))
    if isinstance(value, Mapping):
        return "; ".join(f"{key} = {_value(each)}" for key, each in cast(Mapping[str, object], value).items())
    return value if isinstance(value, str) else json.dumps(value)


def made_with(facts: Facts) -> Section:
    """Versions, and the hash of every file."""
    m = facts.manifest
    versions: list[tuple[str, Child]] = [(name, version) for name, version in m.versions.items()]
    versions.append(
        ("schema of the manifest", f"{m.schema_version}, the newest that this qcc knows is {SCHEMA_VERSION}")
    )
    files = [(code(name), code(digest)) for name, digest in m.files.items()]
    body = join(
        (
            element("h3", "Versions"),
            pairs(versions),
            element("h3", "Files"),
            note("SHA-256 of each, compared for this page: none has changed since the artifact was written."),
            element("div", table(("file", "SHA-256"), files, caption="Files", class_="hashes"), class_="scroll"),
        )
    )
    return Section("files", "Files", "Versions and files", body, half=True)


def pairs(rows: Sequence[tuple[str, Child]]) -> Html:
    """Names and what stands for each, as a list."""
    listed = [element("div", element("dt", name), element("dd", value)) for name, value in rows]
    return element("dl", *listed, class_="pairs")
