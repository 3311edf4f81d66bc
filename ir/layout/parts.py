"""A bound layout taken apart: chains of parts that can be split and merged, on the left and on the right alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

from ..errors import BadInput
from .chain import PLAIN, Layout, Space
from .digits import Digit, Dimension
from .stages import radices


@dataclass(frozen=True, eq=False)
class Part:
    """A digit or a piece of one; `name` is the digit's, for errors. Two parts are the same only if they are one."""

    name: str
    radix: int


@dataclass
class Chains:
    """The parts of each dimension (outer first) and of each space (in storage order), swizzles and xor."""

    dimensions: dict[str, list[Part]]
    spaces: dict[str, list[Part]]
    swizzles: dict[Part, Part] = field(default_factory=dict[Part, Part])
    xor: int = 0

    def replace(self, pieces: Mapping[Part, Sequence[Part]]) -> None:
        """Put pieces, outer first, where a part stands on either side. The part is in no swizzle."""
        for chains in (self.dimensions, self.spaces):
            for name, chain in chains.items():
                chains[name] = [piece for part in chain for piece in pieces.get(part, (part,))]

    def split_swizzles(self) -> None:
        """Make every part of a swizzle a single bit."""
        parts = {part for pair in self.swizzles.items() for part in pair}
        bits = {part: [Part(part.name, 2) for _ in range(part.radix.bit_length() - 1)] for part in parts}
        pairs = [(bits[digit][::-1], bits[partner][::-1]) for digit, partner in self.swizzles.items()]
        self.swizzles = {a: b for digit, partner in pairs for a, b in zip(digit, partner, strict=False)}
        self.replace(bits)

    def cut(self, chain: Sequence[Part], size: int) -> bool:
        """Split the part of a chain inside which its last places count `size`; whether that could be done."""
        place = 1
        for part in reversed(chain):
            if place == size:
                return True
            if place * part.radix > size:
                inner = size // place
                if size % place or part.radix % inner:
                    return False
                self.replace({part: [Part(part.name, part.radix // inner), Part(part.name, inner)]})
                return True
            place *= part.radix
        return place == size

    def drop_ones(self) -> None:
        """Leave out the parts of radix 1: they say nothing."""
        self.swizzles = {a: b for a, b in self.swizzles.items() if a.radix > 1 < b.radix}
        self.replace({part: [] for chain in self.dimensions.values() for part in chain if part.radix == 1})

    def merge(self) -> None:
        """Drop parts of radix 1, and make one part of neighbours on both sides that are in no swizzle."""
        self.drop_ones()
        meets = self._neighbours()
        fixed = {part for pair in self.swizzles.items() for part in pair}
        pieces: dict[Part, list[Part]] = {}
        for chain in self.dimensions.values():
            runs: list[list[Part]] = []
            for part in chain:
                if runs and (runs[-1][-1], part) in meets and part not in fixed and runs[-1][-1] not in fixed:
                    runs[-1].append(part)
                else:
                    runs.append([part])
            for run in (run for run in runs if len(run) > 1):
                _join(run, pieces)
        self.replace(pieces)

    def join_swizzles(self) -> None:
        """Make one swizzle of neighbouring bits whose partners are neighbours and belong to no other bit."""
        meets = self._neighbours()
        count = Counter(self.swizzles.values())
        runs: list[list[Part]] = []
        for digit in (part for chain in self.dimensions.values() for part in chain if part in self.swizzles):
            last, partner = runs[-1][-1] if runs else digit, self.swizzles[digit]
            alone = count[partner] == count[self.swizzles[last]] == 1
            if alone and (last, digit) in meets and (self.swizzles[last], partner) in meets:
                runs[-1].append(digit)
            else:
                runs.append([digit])
        pieces: dict[Part, list[Part]] = {}
        for run in (run for run in runs if len(run) > 1):
            partners = [self.swizzles.pop(digit) for digit in run]
            wholes = [_join(parts, pieces) for parts in (run, partners)]
            self.swizzles[wholes[0]] = wholes[1]
        self.replace(pieces)

    def layout(self) -> Layout:
        """The layout of these parts: the digits of dimension k are k0, k1 ... from the last one on."""
        for name, chain in self.dimensions.items():
            if not chain:
                one = Part(name, 1)
                chain.append(one)
                next(iter(self.spaces.values())).insert(0, one)
        names = self._names()
        dimensions = tuple(
            Dimension(name, tuple(Digit(names[part], part.radix) for part in chain))
            for name, chain in self.dimensions.items()
        )
        spaces: list[Space] = []
        order: list[str] = []
        for name, chain in self.spaces.items():
            spaces.append(Space(name, len(order)))
            order += [names[part] for part in chain]
        is_plain = [space.name for space in spaces] == [PLAIN]
        swizzles = frozenset((names[digit], names[partner]) for digit, partner in self.swizzles.items())
        return Layout(dimensions, tuple(order), self.xor, () if is_plain else tuple(spaces), swizzles)

    def _neighbours(self) -> set[tuple[Part, Part]]:
        """Parts that follow one another in their dimension and in their space."""
        sides = [
            {pair for chain in chains.values() for pair in pairwise(chain)} for chains in (self.dimensions, self.spaces)
        ]
        return sides[0] & sides[1]

    def _names(self) -> dict[Part, str]:
        """A name for each part, unlike all others: k0, k1 ..., or k_0, k_1 ... where k1 is also a dimension."""
        between = ""
        while True:
            names = {
                part: f"{name}{between}{place}"
                for name, chain in self.dimensions.items()
                for place, part in enumerate(reversed(chain))
            }
            if len(set(names.values())) == len(names):
                return names
            between += "_"


def _join(run: Sequence[Part], pieces: dict[Part, list[Part]]) -> Part:
    """One part for a run; `pieces` learns to put it where the run stands."""
    whole = Part(run[0].name, prod(part.radix for part in run))
    pieces |= {part: [whole] if part is run[0] else [] for part in run}
    return whole


def take_apart(layout: Layout) -> Chains:
    """The chains of a bound layout; a free digit is refused by name."""
    parts = {name: Part(name, radix) for name, radix in radices(layout).items()}
    return Chains(
        {dimension.name: [parts[digit.name] for digit in dimension.digits] for dimension in layout.dimensions},
        {space: [parts[name] for name in order] for space, order in layout.stored().items()},
        {parts[digit]: parts[partner] for digit, partner in layout.swizzles},
        layout.xor,
    )


def cut_or_refuse(chains: Chains, chain: Sequence[Part], size: int, place: str) -> None:
    """Split a chain where its last places count `size`, or refuse and name the digit in the way."""
    if chains.cut(chain, size):
        return
    inside = 1
    for part in reversed(chain):
        inside *= part.radix
        if inside > size:
            raise BadInput(f"digit {part.name} of radix {part.radix} cannot be cut where {size} fill {place}")
    raise BadInput(f"{place} has {inside} places, fewer than {size}")
