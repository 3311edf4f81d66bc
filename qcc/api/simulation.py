"""What `simulate` finds: size and error of a network in each scheme and of each of its layers. And which schemes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qcc.ir.errors import BadInput
from qcc.ir.program import Decision
from qcc.passes import schemes


@dataclass(frozen=True)
class SimulatedLayer:
    """A quantized layer. Errors are decibels of signal to noise, at most 200."""

    node: str
    format: str
    weight_sqnr_db: float
    """Of the decoded weight against the float one."""
    output_sqnr_db: float | None
    """Of its result where this layer alone is quantized; None inside branches and loops, whose values stay there."""
    bytes: int
    """Bytes of the weight with its scales, each number in as many bits as its format says."""
    weights: int
    """How many numbers the weight has."""


@dataclass(frozen=True)
class SimulatedScheme:
    """The network in one scheme. `layers` are in the order of the network, `bytes` those of all its weights."""

    scheme: str
    bits_per_weight: float
    """Over the quantized layers, scales included; 32 where there are none."""
    bytes: int
    float_bytes: int
    sqnr_db: float
    max_abs_error: float
    layers: tuple[SimulatedLayer, ...]
    decisions: tuple[Decision, ...]

    @property
    def skipped(self) -> tuple[Decision, ...]:
        """The nodes that stay float, with reasons."""
        return tuple(d for d in self.decisions if d.action == "skipped")

    @property
    def worst(self) -> SimulatedLayer | None:
        """The layer whose result suffers most, None where no layer's is known."""
        known = [(layer.output_sqnr_db, i) for i, layer in enumerate(self.layers) if layer.output_sqnr_db is not None]
        return self.layers[min(known)[1]] if known else None


@dataclass(frozen=True)
class Simulation:
    """A row for each scheme, as asked for. `samples` says what errors were taken on, `file` where the plot is."""

    name: str
    samples: str
    schemes: tuple[SimulatedScheme, ...]
    nodes: tuple[str, ...]
    """The layers that some scheme quantizes, in the order of the network."""
    file: Path | None = None

    def output_sqnr(self, node: str) -> list[float | None]:
        """Decibels of a layer's result in each scheme; None where it stays float or is not known."""
        return [{layer.node: layer.output_sqnr_db for layer in s.layers}.get(node) for s in self.schemes]

    def most_sensitive(self, count: int) -> list[str]:
        """The layers with the lowest decibels, on average over the schemes that quantize them; the worst first."""
        known = {node: [db for db in self.output_sqnr(node) if db is not None] for node in self.nodes}
        means = {node: sum(found) / len(found) for node, found in known.items() if found}
        return sorted(means, key=lambda node: means[node])[:count]


def shortened(nodes: Sequence[str]) -> list[str]:
    """Names of layers without the beginning that all of them share: `…0.mlp.up_proj`."""
    same = next((i for i, letters in enumerate(zip(*nodes, strict=False)) if len(set(letters)) > 1), 0)
    begin = max(nodes[0].rfind(separator, 0, same) for separator in "./") + 1 if nodes else 0
    return [f"…{node[begin:]}" if begin > 1 else node for node in nodes]


def listed(texts: str | Sequence[str]) -> list[str]:
    """The names of the schemes in some lists, as `schemes.load` spells them.

    `,` and `;` separate schemes. The text of a format has commas too, but only its first part can be a word alone, a
    codebook `k16 in ...` or a choice `[a|b] per ...`: there the next scheme begins. `BadInput` for a scheme that does
    not exist, twice the same one, `float`, and no scheme at all.
    """
    names: list[str] = []
    for text in [texts] if isinstance(texts, str) else texts:
        for piece in _pieces(text):
            scheme = schemes.load(piece)
            if not scheme.weight:
                raise BadInput(
                    f"scheme {scheme.name} quantizes nothing: it is what the others are compared with",
                    hint="leave it out of --schemes",
                )
            if scheme.name in names:
                raise BadInput(f"scheme {scheme.name} is asked for twice", hint="name each scheme once")
            names.append(scheme.name)
    if not names:
        raise BadInput("no scheme to simulate", hint="write them like --schemes W4A16,NVFP4A16; `qcc list schemes`")
    return names


def _pieces(text: str) -> Iterator[str]:
    for group in text.split(";"):
        parts: list[str] = []
        for part in (p.strip() for p in group.split(",")):
            if not part:
                if len(group.strip()) > 0:
                    raise BadInput(f"--schemes {text!r} has an empty place", hint="write it like W4A16,NVFP4A16")
                continue
            if parts and _begins(part):
                yield ", ".join(parts)
                parts = []
            parts.append(part)
        if parts:
            yield ", ".join(parts)


def _begins(part: str) -> bool:
    """Whether a part is the name of a scheme or the element of a format."""
    words = part.split()
    return part.startswith("[") or (len(words) == 1 and part != "permuted") or words[1:2] == ["in"]
