"""What a language model is and how fast it talks: a section for decoders only."""

from __future__ import annotations

from .facts import Facts
from .markup import Child, Html, code, element, join
from .record import pairs
from .section import Section, note
from .words import amount, count


def language(facts: Facts) -> Section | None:
    """Architecture, positions, cache and tokens; tokens a second where the artifact was timed."""
    m = facts.manifest.language
    if m is None:
        return None
    heads = f"{count(m.layers, 'layer')} of {count(m.kv_heads, 'head')}, {m.head_size} wide, {m.cache_dtype}"
    programs = [element("span", f"{name} in ", code(file), " ") for name, file in m.programs.items()]
    rows: list[tuple[str, Child]] = [
        ("architecture", f"{m.architecture}, from a {m.source}"),
        ("vocabulary", f"{m.vocabulary} tokens"),
        ("positions", f"{m.context}"),
        ("cache", f"{heads}: {amount(m.cache_bytes(1))} a position, {amount(m.cache_bytes(m.context))} when full"),
        ("programs", join(programs)),
        ("ends with", ", ".join(map(str, m.eos)) or "nothing"),
        ("kept from its file", _kept(facts)),
    ]
    parts = [pairs(rows)]
    if facts.times is not None and facts.times.rates:
        parts += [element("h3", "Tokens a second"), *(_rate(name, facts) for name in facts.times.rates)]
        parts.append(note(f"Median of {count(facts.times.rounds, 'round')}, with the 10th and 90th percentile."))
    return Section("language", "Language", "Language model", join(parts), half=True)


def _kept(facts: Facts) -> str:
    kept = sum("kept as" in decision.reason for decision in facts.manifest.decisions)
    decoded = len(facts.decided("decoded"))
    return f"the codes of {count(kept, 'weight')}; {decoded} decoded" if kept or decoded else "no codes: it was float"


def _rate(name: str, facts: Facts) -> Html:
    assert facts.times is not None
    side = facts.times.rates[name]
    phases = [("prefill", side.prefill_tokens_per_s), ("decode", side.decode_tokens_per_s)]
    told = "; ".join(f"{phase} {r.median:.1f} ({r.p10:.1f} to {r.p90:.1f})" for phase, r in phases)
    return element("p", element("b", "this artifact" if name == "artifact" else name), f": {told}")
