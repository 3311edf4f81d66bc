"""What can be done with bound layouts: all are bijections, and so are the results.

    inverse(inverse(a)) = a        compose(a, b) = first a, then b        divide(product(a, b), b) ~ a

`~` is sameness of the map: equality of the canonical forms. Bind a layout first: `layout.bound(shape)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from ..errors import BadInput
from .chain import PLAIN, Layout, Space
from .digits import Digit, Dimension, Shape
from .parts import Chains, Part, cut_or_refuse, take_apart
from .stages import Stages, bound_shape, check_fits, radices


def canonical(layout: Layout) -> Layout:
    """The one form of all layouts with the same map, dimension and space names and xor.

    Neighbours that lie together on both sides are one digit, radix 1 is dropped (a dimension of extent 1 keeps one
    digit), swizzles are of no more bits than they change, and digits are named after their dimension: k0 is its last.
    """
    chains = take_apart(layout)
    chains.split_swizzles()
    chains.merge()
    chains.join_swizzles()
    return chains.layout()


def inverse(layout: Layout) -> Layout:
    """The layout that maps slots back to coordinates: spaces become dimensions and dimensions become spaces.

    All slots are one dimension called `slot` where the layout names no spaces. Inverting twice gives back the layout.
    """
    extents = radices(layout)
    stored = layout.stored()
    if not all(stored.values()):
        chains = take_apart(layout)
        turned = Chains(chains.spaces, chains.dimensions or {PLAIN: []}, chains.swizzles, chains.xor)
        return turned.layout()
    dimensions = tuple(
        Dimension(space, tuple(Digit(name, extents[name]) for name in order)) for space, order in stored.items()
    )
    spaces: list[Space] = []
    order: list[str] = []
    for dimension in layout.dimensions:
        spaces.append(Space(dimension.name, len(order)))
        order += [digit.name for digit in dimension.digits]
    is_plain = [space.name for space in spaces] == [PLAIN]
    return Layout(dimensions, tuple(order), layout.xor, () if is_plain else tuple(spaces), layout.swizzles)


def compose(first: Layout | Stages, second: Layout | Stages) -> Layout | Stages:
    """First one layout, then another on its slots: a single layout where their digits refine, else stages.

    The dimensions of the second are the spaces of the first in order, or it has one dimension of all slots.
    """
    stages: list[Layout] = []
    for layout in (*_stages(first), *_stages(second)):
        if stages:
            check_fits(stages[-1], layout)
        fused = _fuse(stages[-1], layout) if stages else None
        if fused is None:
            stages.append(layout)
        else:
            stages[-1] = fused
    return stages[0] if len(stages) == 1 else Stages(tuple(stages))


def product(outer: Layout, tile: Layout) -> Layout:
    """The tile, repeated as `outer` says: coordinate and place are both outer * (size of the tile) + inside the tile.

    Both have the same dimensions. A space that only one of them names counts that one's digits alone.
    """
    a, b = take_apart(outer), take_apart(tile)
    if list(a.dimensions) != list(b.dimensions):
        raise BadInput(f"dimensions differ: `{outer}` has {' '.join(a.dimensions)}, `{tile}` {' '.join(b.dimensions)}")
    dimensions = {name: a.dimensions[name] + b.dimensions[name] for name in a.dimensions}
    spaces = {name: a.spaces.get(name, []) + b.spaces.get(name, []) for name in [*a.spaces, *b.spaces]}
    chains = Chains(dimensions, spaces, a.swizzles | b.swizzles, a.xor ^ b.xor)
    chains.drop_ones()
    return chains.layout()


def divide(layout: Layout, tile: Layout) -> Layout:
    """The layout r with product(r, tile) ~ layout; refused, naming the digit, where there is none."""
    chains, inner = take_apart(layout), take_apart(tile)
    if list(chains.dimensions) != list(inner.dimensions):
        raise BadInput(
            f"dimensions differ: `{layout}` has {' '.join(chains.dimensions)}, `{tile}` {' '.join(inner.dimensions)}"
        )
    if unknown := [space for space in inner.spaces if space not in chains.spaces]:
        raise BadInput(f"`{tile}` has a space {unknown[0]}, `{layout}` has none", hint="name the spaces alike")
    chains.split_swizzles()
    chains.drop_ones()
    for kind, whole, tiled in (
        ("dimension", chains.dimensions, inner.dimensions),
        ("space", chains.spaces, inner.spaces),
    ):
        for name in whole:
            size = prod(part.radix for part in tiled.get(name, ()))
            cut_or_refuse(chains, whole[name], size, f"a tile `{tile}` of {kind} {name}")
    low = {name: _last(chain, inner.dimensions[name]) for name, chain in chains.dimensions.items()}
    low_spaces = {name: _last(chain, inner.spaces.get(name, ())) for name, chain in chains.spaces.items()}
    inside = {part for chain in low.values() for part in chain}
    stored = {part for chain in low_spaces.values() for part in chain}
    pairs = [part for pair in chains.swizzles.items() if (pair[0] in inside) != (pair[1] in inside) for part in pair]
    if astray := sorted({part.name for part in inside ^ stored} | {part.name for part in pairs}):
        raise BadInput(f"digit {astray[0]} of `{layout}` reaches out of the tile `{tile}`")
    body = Chains(dict(low), {name: low_spaces[name] for name in inner.spaces}, _within(chains, inside), tile.xor)
    if different := _first_difference(body, tile):
        raise BadInput(f"digit {different} of `{layout}` lies elsewhere than in the tile `{tile}`")
    rest = Chains(
        {name: chain[: len(chain) - len(low[name])] for name, chain in chains.dimensions.items()},
        {name: chain[: len(chain) - len(low_spaces[name])] for name, chain in chains.spaces.items()},
        {digit: partner for digit, partner in chains.swizzles.items() if digit not in inside},
        layout.xor ^ tile.xor,
    )
    rest.join_swizzles()
    return rest.layout()


def complement(tile: Layout, shape: Shape) -> Layout:
    """The row-major layout that repeats the tile over a tensor of `shape`: product(complement, tile) covers it.

    It has the spaces of the tile and numbers the repetitions in the last of them.
    """
    parts: dict[str, list[Part]] = {}
    sizes = bound_shape(tile)
    if len(shape) != len(sizes):
        raise BadInput(f"shape {tuple(shape)} has rank {len(shape)}, but the tile `{tile}` has rank {len(sizes)}")
    for dimension, size, extent in zip(tile.dimensions, sizes, shape, strict=True):
        if extent < 1 or extent % size:
            raise BadInput(f"dimension {dimension.name} of the tile `{tile}` has {size} places: {extent} are no tiles")
        parts[dimension.name] = [Part(dimension.name, extent // size)]
    names = list(tile.stored())
    spaces: dict[str, list[Part]] = {name: [] for name in names}
    spaces[names[-1]] = [part for chain in parts.values() for part in chain]
    return Chains(parts, spaces).layout()


def _stages(layout: Layout | Stages) -> tuple[Layout, ...]:
    return layout.stages if isinstance(layout, Stages) else (layout,)


def _fuse(first: Layout, second: Layout) -> Layout | None:
    """Both as one layout; None where a digit cannot be cut where the other's digits meet, or partners pile up."""
    a, b = take_apart(first), take_apart(second)
    for chains in (a, b):
        chains.split_swizzles()
        chains.merge()
    if len(a.spaces) != len(b.dimensions):
        a.spaces = {PLAIN: [part for chain in a.spaces.values() for part in chain]}
    for space, dimension in zip(a.spaces, b.dimensions, strict=True):
        sizes = sorted(_meets(a.spaces[space]) | _meets(b.dimensions[dimension]))
        if any(larger % smaller for smaller, larger in pairwise(sizes)):
            return None
        for size in sizes:
            a.cut(a.spaces[space], size)
            b.cut(b.dimensions[dimension], size)
    same: dict[Part, Part] = {}
    for space, dimension in zip(a.spaces, b.dimensions, strict=True):
        same |= dict(zip(b.dimensions[dimension], a.spaces[space], strict=True))
    swizzles = _joined_swizzles(a, b, same)
    if swizzles is None:
        return None
    stored = {name: [same[part] for part in chain] for name, chain in b.spaces.items()}
    fused = Chains(a.dimensions, stored, swizzles, a.xor ^ b.xor)
    fused.merge()
    fused.join_swizzles()
    return fused.layout()


def _meets(chain: Sequence[Part]) -> set[int]:
    """The numbers of places at which digits of a chain meet."""
    return {prod(part.radix for part in chain[start:]) for start in range(len(chain) + 1)}


def _joined_swizzles(a: Chains, b: Chains, same: dict[Part, Part]) -> dict[Part, Part] | None:
    """The swizzles of both stages as partners of the first one's bits; None where a bit would need two partners."""
    held = {part: {part} for part in same.values()}
    for digit, partner in a.swizzles.items():
        held[digit] = {digit, partner}
    total = dict(held)
    for digit, partner in b.swizzles.items():
        total[same[digit]] = held[same[digit]] ^ held[same[partner]]
    joined: dict[Part, Part] = {}
    for part, bits in total.items():
        others = bits - {part}
        if part not in bits or len(others) > 1:
            return None
        if others:
            joined[part] = others.pop()
    return None if set(joined) & set(joined.values()) else joined


def _last(chain: Sequence[Part], tile: Sequence[Part]) -> list[Part]:
    """The last parts of a chain that count as many places as the tile."""
    size = prod(part.radix for part in tile)
    for start in range(len(chain), -1, -1):
        if prod(part.radix for part in chain[start:]) == size:
            return list(chain[start:])
    raise AssertionError("the chain was cut there before")


def _within(chains: Chains, inside: set[Part]) -> dict[Part, Part]:
    return {digit: partner for digit, partner in chains.swizzles.items() if digit in inside}


def _first_difference(body: Chains, tile: Layout) -> str | None:
    """The name of a digit that lies elsewhere in the body than in the tile; None where they are the same map."""
    wanted = canonical(tile)
    body.merge()
    body.join_swizzles()
    names = [part.name for chain in body.spaces.values() for part in chain]
    found = body.layout()
    if found == wanted:
        return None
    pairs = zip(found.order, wanted.order, strict=False)
    return next((name for name, (a, b) in zip(names, pairs, strict=False) if a != b), names[-1] if names else "")
