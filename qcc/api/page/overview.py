"""The head of the page: what the artifact is, and its four numbers."""

from __future__ import annotations

from .facts import Facts
from .markup import Html, element, join
from .words import amount, count, decibels, milliseconds, ratio

BASELINES = {"onnxruntime": "ONNX Runtime in float", "llama.cpp": "llama.cpp"}
"""Names of baselines for people."""


def overview(facts: Facts) -> Html:
    """The name, one line that says what was made, and a tile for each of size, error, layers and speed."""
    m = facts.manifest
    ok = facts.verified.ok
    status = element("span", "verified" if ok else "check failed", class_=f"status {'good' if ok else 'bad'}")
    failures = [element("p", f"Failed: {text}", class_="alert") for text in facts.verified.failures]
    return join(
        (
            element("h1", m.name or facts.folder),
            element(
                "p",
                element("b", m.scheme),
                f" for {m.target}, run by {m.backend}, on {m.machine} ",
                status,
                class_="lead",
            ),
            *failures,
            element("dl", *_tiles(facts), class_="tiles"),
        )
    )


def _tiles(facts: Facts) -> list[Html]:
    m, error = facts.manifest, facts.verified
    skipped = len({d.node for d in facts.decided("skipped")})
    tiles = [
        _tile("Size", amount(m.bytes), f"{ratio(m.bytes, m.float_bytes)} of {amount(m.float_bytes)} in float"),
        _tile("Error", decibels(error.sqnr_db), f"signal to noise; at most {error.max_abs_error:.4g} off"),
        _tile(
            "Quantized",
            count(len(facts.layers), "layer"),
            f"{m.bits_per_weight:.2f} bits a weight; {skipped or 'none'} left in float"
            if facts.layers
            else "the network runs in float",
        ),
    ]
    if facts.times is None:
        return [*tiles, _tile("Speed", "not measured", "see below how to measure it")]
    ours = facts.times.latency_ms.median
    beside = [
        f"{ratio(b.median, ours)} the speed of {BASELINES.get(name, name)}"
        for name, b in facts.times.baselines.items()
        if ours
    ]
    return [*tiles, _tile("Speed", milliseconds(ours), "; ".join(beside) or "median of one call")]


def _tile(title: str, value: str, note: str) -> Html:
    return element(
        "div", element("dt", title), element("dd", value, class_="figure"), element("dd", note, class_="about")
    )
