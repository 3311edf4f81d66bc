"""The sections with pictures: size by layer, error by layer, and latency beside its baselines."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from .charts import Bar, bars, dots
from .facts import Facts, Layer
from .markup import Html, element, join
from .overview import BASELINES
from .section import Section, note
from .words import amount, count, decibels, milliseconds, noise, percent, ratio

SHOWN = 20
"""Bars of single layers in a picture; the table has all of them."""

WORST = 10


def size(facts: Facts) -> Section:
    """Where the bytes are, the largest layer first."""
    m = facts.manifest
    stored = sum({layer.record.weight: layer.record.bytes for layer in facts.layers}.values())
    whole = [
        Bar(Html("in float"), m.float_bytes, amount(m.float_bytes), "weights alone", kind="quiet"),
        Bar(Html("this artifact"), m.bytes, amount(m.bytes), ratio(m.bytes, m.float_bytes)),
    ]
    parts = [bars(whole, label="Size of the artifact and of the float network")]
    if facts.layers:
        rest = (
            f"; the other {amount(m.bytes - stored)} are the graph and what stayed in float" if m.bytes > stored else ""
        )
        parts += [
            note(
                f"{amount(stored)} in {count(len(facts.layers), 'quantized layer')}, with scales and zero points{rest}."
            ),
            element("h3", "By layer, largest first"),
            note("Filled: as stored. Pale: the same weight in float32."),
            *_by_size(facts.layers),
        ]
    return Section("size", "Size", "Size by layer", join(parts))


def _by_size(layers: Sequence[Layer]) -> list[Html]:
    ordered = sorted(layers, key=lambda layer: -layer.record.bytes)
    shown, rest = ordered[:SHOWN], ordered[SHOWN:]
    rows = [
        Bar(_link(layer), r.bytes, amount(r.bytes), ratio(r.bytes, r.float_bytes), ghost=r.float_bytes)
        for layer in shown
        for r in (layer.record,)
    ]
    picture = bars(rows, label="Bytes of each layer")
    if not rest:
        return [picture]
    together = amount(sum(layer.record.bytes for layer in rest))
    return [picture, note(f"Another {count(len(rest), 'layer')}, {together} together, can be found in the table.")]


def error(facts: Facts) -> Section:
    """The error of the whole, of each layer along the network, and of the worst."""
    m, found = facts.manifest, facts.verified
    parts: list[Html] = [
        element(
            "p",
            "The outputs keep ",
            element("b", decibels(found.sqnr_db)),
            " signal to noise against the float network, and no value is more than ",
            element("b", f"{found.max_abs_error:.4g}"),
            f" off. When it was compiled, it was {decibels(m.error.sqnr_db)} and {m.error.max_abs_error:.4g}.",
        ),
        note(f"Measured on the stored samples: {m.samples}."),
    ]
    known = [(layer, layer.sqnr_db) for layer in facts.layers if layer.sqnr_db is not None]
    if known:
        worst = sorted(known, key=lambda pair: pair[1])[:WORST]
        rows = [
            Bar(_link(layer), noise(value), percent(noise(value)), decibels(value), kind="error")
            for layer, value in worst
        ]
        parts += [
            element("h3", "Along the network"),
            note(
                "Signal to noise of each layer's result, on the first stored sample: higher is better. What the layers "
                "before it got wrong is in it, so look for steps down."
            ),
            element(
                "div",
                dots(facts.layers),
                class_="scroll",
                tabindex=0,
                role="group",
                aria_label="Error along the network",
            ),
            element("h3", "Worst first" if len(known) <= WORST else f"The worst {WORST}"),
            note("Size of the error relative to the result: ", element("code", "10^(-dB/20)"), "."),
            bars(rows, label="Relative error of the worst layers"),
        ]
    return Section("error", "Error", "Error by layer", join(parts))


def _call(facts: Facts) -> str:
    return "one call on the first stored sample" if facts.manifest.language is None else "one token behind a prompt"


def _model(facts: Facts) -> str:
    return "MODEL.onnx" if facts.manifest.language is None else "MODEL.gguf"


def speed(facts: Facts) -> Section:
    """Latency beside the baselines, or how to measure it."""
    if facts.times is None:
        name = shlex.quote(facts.folder)
        body = join(
            (
                element("p", "Latency was not measured for this page."),
                element("p", "To time one call on this machine:"),
                element("pre", f"qcc report {name} --bench"),
                element("p", "To time the model in another runtime beside it, in turn:"),
                element("pre", f"qcc report {name} --bench --model {_model(facts)}"),
            )
        )
        return Section("speed", "Speed", "Speed", body)
    times = facts.times
    ours = times.latency_ms
    sides = [("this artifact", ours, ""), *((BASELINES.get(n, n), b, "quiet") for n, b in times.baselines.items())]
    rows = [
        Bar(
            element("span", label),
            side.median,
            milliseconds(side.median),
            f"{milliseconds(side.p10)} to {milliseconds(side.p90)}"
            + (f", {ratio(side.median, ours.median)}" if kind else ""),
            spread=(side.p10, side.p90),
            kind=kind,
        )
        for label, side, kind in sides
    ]
    threads = count(times.threads, "thread") if times.threads else "all threads"
    body = join(
        (
            bars(rows, label="Latency of one call"),
            note(
                f"Median of {count(times.rounds, 'round')} on {threads} of {facts.machine}, with the 10th and 90th "
                f"percentile; {_call(facts)}, the sides in turn."
                + ("" if times.baselines else f" No baseline was asked for: --model {_model(facts)} adds one.")
            ),
        )
    )
    return Section("speed", "Speed", "Speed", body)


def _link(layer: Layer) -> Html:
    return element("a", layer.record.node or "no name", href=f"#{layer.anchor}")
