"""The algebra of layouts: every identity is checked on the map itself, place by place."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcc.ir.errors import BadInput
from qcc.ir.layout import (
    Layout,
    Stages,
    canonical,
    complement,
    compose,
    divide,
    inverse,
    pack,
    parse_layout,
    product,
    unpack,
)
from tests.ir.chains import bound_chain, chains, factors, random_codes, shape_of, space_sizes

MARLIN = "k(k3 k2:2 k1:4 k0:2) n(n3 n2:4 n1:2 n0:8) -> k3 n3 n0 k1 n2 k0 n1 k2"
SIZES = [1, 7, 24, 30, 36, 60, 64, 96, 120, 128, 144, 180, 210, 240, 256]
seeds = st.integers(0, 10**6)


def random_layout(seed: int) -> Layout:
    rng = np.random.default_rng(seed)
    sizes = factors(rng, int(rng.choice(SIZES)))[:3]
    return bound_chain(rng, sizes, "nkc"[: len(sizes)])


def slots(layout: Layout) -> np.ndarray:
    shape = shape_of(layout)
    return np.broadcast_to(layout.index(tuple(np.indices(shape)), shape), shape)


@settings(deadline=None)
@given(seeds)
def test_inverse_takes_every_slot_back(seed: int):
    layout = random_layout(seed)
    back = inverse(layout)
    assert inverse(back) == layout or not all(layout.stored().values())
    assert canonical(inverse(back)) == canonical(layout)
    grid = np.indices(shape_of(layout)).reshape(len(shape_of(layout)), -1)
    places = layout.locate(tuple(grid), shape_of(layout))
    coords = back.locate(tuple(places.values()), shape_of(back))
    assert list(coords) == [dimension.name for dimension in layout.dimensions] or list(coords) == ["slot"]
    np.testing.assert_array_equal(np.stack([np.broadcast_to(c, grid.shape[1:]) for c in coords.values()]), grid)


@settings(deadline=None)
@given(seeds)
def test_a_layout_and_its_inverse_compose_to_the_identity(seed: int):
    layout = random_layout(seed)
    identity = compose(layout, inverse(layout))
    assert isinstance(identity, Layout)
    assert identity.xor == 0
    names = [dimension.name for dimension in layout.dimensions]
    for axis, place in enumerate(identity.locate(tuple(np.indices(shape_of(layout))), shape_of(layout)).values()):
        np.testing.assert_array_equal(np.broadcast_to(place, shape_of(layout)), np.indices(shape_of(layout))[axis])
    assert list(identity.stored()) in (names, ["slot"])


def test_composition_is_sequential_application_on_random_pairs():
    rng = np.random.default_rng(4)
    fused = staged = swizzled = 0
    for _ in range(5000):
        sizes = factors(rng, int(rng.choice(SIZES)))[:3]
        first = bound_chain(rng, sizes, "nkc"[: len(sizes)])
        places = space_sizes(first) if rng.random() < 0.5 else [int(np.prod(sizes))]
        second = bound_chain(rng, places, "xy"[: len(places)])
        both = compose(first, second)
        fused, staged = fused + isinstance(both, Layout), staged + isinstance(both, Stages)
        swizzled += bool(first.swizzles or second.swizzles) and isinstance(both, Layout)
        codes = np.arange(np.prod(sizes)).reshape(sizes)
        expected = second.arrange(first.arrange(codes).reshape(shape_of(second)))
        np.testing.assert_array_equal(both.arrange(codes), expected)
        np.testing.assert_array_equal(both.restore(expected, codes.shape), codes)
        index = np.broadcast_to(both.index(tuple(np.indices(codes.shape)), codes.shape), codes.shape)
        np.testing.assert_array_equal(expected[index.ravel()] ^ both.xor, codes.ravel())
        for found, coord in zip(both.inverse(index, codes.shape), np.indices(codes.shape), strict=True):
            np.testing.assert_array_equal(np.broadcast_to(found, coord.shape), coord)
        assert parse_layout(str(both)) == both
    assert fused + staged == 5000
    assert fused > 4000  # most digits refine
    assert staged > 200  # and some do not
    assert swizzled > 500


def test_composition_of_three_is_associative_as_a_map():
    rng = np.random.default_rng(5)
    for _ in range(200):
        a = bound_chain(rng, [12, 10], "nk")
        b, c = (bound_chain(rng, [120], name) for name in "xy")
        codes = np.arange(120).reshape(12, 10)
        left, right = compose(compose(a, b), c), compose(a, compose(b, c))
        np.testing.assert_array_equal(left.arrange(codes), right.arrange(codes))


def test_a_digit_that_cannot_be_cut_leaves_two_stages():
    first = Layout.parse("n(n0:4) k(k0:6) -> k0 n0")
    both = compose(first, Layout.parse("slot(s1:8 s0:3) -> s0 s1"))
    assert str(both) == "n(n0:4) k(k0:6) -> k0 n0; slot(s1:8 s0:3) -> s0 s1"
    assert hash(parse_layout(str(both))) == hash(both)
    assert eval(repr(both)) == both
    assert both.index((1, 2), (4, 6)) == 3
    assert both.inverse(3, (4, 6)) == (1, 2)
    fused = compose(first, Layout.parse("slot(s2:2 s1:3 s0:4) -> s2 s0 s1"))
    assert str(fused) == "n(n0:4) k(k1:2 k0:3) -> k1 n0 k0"


def test_a_merged_digit_may_be_cut_elsewhere():
    both = compose(Layout.parse("n(n1:4 n0:6) -> n1 n0"), Layout.parse("slot(s1:3 s0:8) -> s0 s1"))
    assert str(both) == "n(n1:3 n0:8) -> n0 n1"


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_stages_pack_and_unpack(bits: int, signed: bool):
    both = Stages.parse("n(n0:5) k(k0:12) -> k0 n0 xor 3; slot(s1:4 s0:15) -> s0 s1 xor 5")
    codes = random_codes((5, 12), bits, signed, seed=bits)
    data = pack(codes, bits, both)
    assert both.xor == 6
    np.testing.assert_array_equal(unpack(data, bits, (5, 12), both, signed), codes)
    first = Layout(both.stages[0].dimensions, both.stages[0].order)
    middle = unpack(pack(codes, bits, first), bits, (60,), Layout.parse("s(s0) -> s0"), signed)
    last = Layout(both.stages[1].dimensions, both.stages[1].order, xor=6)
    np.testing.assert_array_equal(data, pack(middle, bits, last))


@settings(deadline=None)
@given(seeds)
def test_canonical_form_is_the_same_map(seed: int):
    layout = random_layout(seed)
    form = canonical(layout)
    assert canonical(form) == form
    assert parse_layout(str(form)) == form
    shape = shape_of(layout)
    grid = tuple(np.indices(shape))
    assert list(form.stored()) == list(layout.stored())
    for a, b in zip(layout.locate(grid, shape).values(), form.locate(grid, shape).values(), strict=True):
        np.testing.assert_array_equal(np.broadcast_to(a, shape), np.broadcast_to(b, shape))


def test_canonical_forms_are_equal_exactly_where_maps_are():
    rng = np.random.default_rng(6)
    layouts = [bound_chain(rng, [8, 4], "nk") for _ in range(400)]
    by_map: dict[bytes, set[Layout]] = {}
    for layout in layouts:
        places = layout.locate(tuple(np.indices((8, 4))), (8, 4))
        maps = [np.broadcast_to(place, (8, 4)).tobytes() for place in places.values()]
        key = repr((list(places), space_sizes(layout), maps, layout.xor)).encode()
        by_map.setdefault(key, set()).add(canonical(layout))
    assert all(len(forms) == 1 for forms in by_map.values())
    assert len({form for forms in by_map.values() for form in forms}) == len(by_map)
    assert len(by_map) < len(layouts)  # some were the same


def test_canonical_form_merges_drops_and_renames():
    layout = Layout.parse("n(a:2 b:1 c:3) k(d:4 e:2) -> d e b a c")
    assert str(canonical(layout)) == "n(n0:6) k(k0:8) -> k0 n0"
    swizzle = Layout.parse("m(a:4 b:2) k(c:2 d:8) -> a b c^b d")
    assert str(canonical(swizzle)) == "m(m1:4 m0:2) k(k1:2 k0:8) -> m1 m0 k1^m0 k0"
    wide = Layout.parse("m(a:8) k(c:2 d:8) -> a c^a d")
    assert canonical(wide) == canonical(swizzle)
    assert str(canonical(Layout.parse("n(n5:1) -> n5"))) == "n(n0:1) -> n0"
    pairs = " ".join(f"a{i} b{i}" for i in range(11))
    long, other = (" ".join(f"{name}{i}:2" for i in range(11)) for name in "ab")
    names = canonical(Layout.parse(f"n({long}) n1({other}) -> {pairs}")).order
    assert names[:4] == ("n_10", "n1_10", "n_9", "n1_9")  # n10 would name two digits


@settings(deadline=None)
@given(seeds)
def test_a_product_repeats_its_tile_and_division_takes_it_back(seed: int):
    rng = np.random.default_rng(seed)
    outer, tile = (bound_chain(rng, [int(rng.choice([1, 2, 3, 4, 6, 8])) for _ in "nk"], "nk") for _ in range(2))
    whole = product(outer, tile)
    (n, k), (tn, tk) = shape_of(outer), shape_of(tile)
    i, j = np.indices((n * tn, k * tk))
    far, near = outer.locate((i // tn, j // tk), (n, k)), tile.locate((i % tn, j % tk), (tn, tk))
    inside = dict(zip(tile.stored(), space_sizes(tile), strict=True))
    for space, place in whole.locate((i, j), (n * tn, k * tk)).items():
        expected = far.get(space, 0) * inside.get(space, 1) + near.get(space, 0)
        np.testing.assert_array_equal(np.broadcast_to(place, i.shape), np.broadcast_to(expected, i.shape))
    assert whole.xor == outer.xor ^ tile.xor
    if list(outer.stored()) == list(whole.stored()):
        rest = divide(whole, tile)
        assert canonical(rest) == canonical(outer)
        assert canonical(product(rest, tile)) == canonical(whole)


def test_marlin_is_its_tile_repeated_row_major():
    whole = Layout.parse(MARLIN).bound((64, 128))
    tile = Layout.parse("k(k2:2 k1:4 k0:2) n(n2:4 n1:2 n0:8) -> n0 k1 n2 k0 n1 k2")
    rest = divide(whole, tile)
    assert rest == complement(tile, (64, 128))
    assert str(rest) == "k(k0:4) n(n0:2) -> k0 n0"
    assert canonical(product(rest, tile)) == canonical(whole)


def test_digits_of_radix_1_leave_their_swizzles():
    one = Layout.parse("n(n1:1 n0:2) k(k0:4) -> n1 n0 k0^n1")
    assert str(product(one, one)) == "n(n1:2 n0:2) k(k1:4 k0:4) -> n1 k1 n0 k0"
    assert str(canonical(one)) == "n(n0:2) k(k0:4) -> n0 k0"
    assert str(divide(product(one, one), one)) == "n(n0:2) k(k0:4) -> n0 k0"


def test_complement_repeats_a_tile_in_its_last_space():
    tile = Layout.parse("n(n0:4) k(k0:2) -> @bank n0 @addr k0")
    rest = complement(tile, (8, 6))
    assert str(rest) == "n(n0:2) k(k0:3) -> @bank @addr n0 k0"
    assert str(product(rest, tile)) == "n(n1:2 n0:4) k(k1:3 k0:2) -> @bank n0 @addr n1 k1 k0"
    with pytest.raises(BadInput, match=r"dimension k of the tile .* has 2 places: 5 are no tiles"):
        complement(tile, (8, 5))
    with pytest.raises(BadInput, match="has rank 1"):
        complement(tile, (8,))


@pytest.mark.parametrize(
    ("layout", "tile", "message"),
    [
        ("n(n0:8) k(k0:8) -> n0 k0", "n(n0:3) k(k0:1) -> n0 k0", "digit n0 of radix 8 cannot be cut where 3 fill"),
        ("n(n0:2) k(k0:8) -> n0 k0", "n(n0:4) k(k0:1) -> n0 k0", "dimension n has 2 places, fewer than 4"),
        ("n(n1:2 n0:4) k(k0:8) -> n1 k0 n0", "n(n0:2) k(k0:2) -> n0 k0", "digit k0 .* reaches out of the tile"),
        ("n(n1:2 n0:2) k(k1:2 k0:2) -> n1 k1 k0 n0", "n(n0:2) k(k0:2) -> n0 k0", "digit k0 .* lies elsewhere"),
        ("n(n1:4) k(k0:2) -> n1 k0^n1", "n(n0:2) k(k0:2) -> n0 k0", "digit k0 .* lies elsewhere"),
        ("n(n0:4) k(k1:2 k0:4) -> n0 k1 k0^n0", "n(n0:1) k(k0:4) -> n0 k0", "digit k0 .* reaches out of the tile"),
        ("n(n0:8) k(k0:8) -> n0 k0", "m(m0:2) k(k0:1) -> m0 k0", "dimensions differ"),
        ("n(n0:8) k(k0:8) -> n0 k0", "n(n0:2) k(k0:1) -> @lane n0 k0", "a space lane"),
    ],
)
def test_division_that_does_not_go_names_the_digit(layout: str, tile: str, message: str):
    with pytest.raises(BadInput, match=message):
        divide(Layout.parse(layout), Layout.parse(tile))


def test_algebra_refuses_a_free_digit():
    free, tile = Layout.parse("n(n1 n0:4) -> n1 n0"), Layout.parse("n(n0:4) -> n0")
    for operation in (
        lambda: canonical(free),
        lambda: inverse(free),
        lambda: compose(free, tile),
        lambda: product(free, tile),
        lambda: divide(free, tile),
        lambda: complement(free, (8,)),
        lambda: Stages((free, free)),
    ):
        with pytest.raises(BadInput, match=r"digit n1 of layout .* is free\n  try: bind it first"):
            operation()
    assert str(free.bound((10,))) == "n(n1:3 n0:4) -> n1 n0"
    with pytest.raises(BadInput, match=r"digit n1 .* takes no value"):
        free.bound((0,))


def test_stages_that_do_not_fit_are_refused():
    first = Layout.parse("n(n0:4) k(k0:6) -> @bank n0 @addr k0")
    with pytest.raises(BadInput, match=r"dimension x .* extent 3, but space bank .* has 4 places"):
        compose(first, Layout.parse("x(x0:3) y(y0:6) -> x0 y0"))
    with pytest.raises(BadInput, match=r"3 dimensions, but .* 2 spaces"):
        compose(first, Layout.parse("x(x0:4) y(y0:6) z(z0:1) -> x0 y0 z0"))
    with pytest.raises(BadInput, match=r"extent 25, but space slot .* 24 places"):
        compose(first, Layout.parse("x(x0:25) -> x0"))
    with pytest.raises(BadInput, match="1 stages"):
        Stages((first,))
    with pytest.raises(BadInput, match="23 slots"):
        Stages.parse(f"{first}; x(x0:24) -> x0").restore(np.zeros(23), (4, 6))


@settings(deadline=None)
@given(chains(largest=4), seeds)
def test_two_digits_swapped_change_the_bytes(case: tuple[Layout, tuple[int, ...]], seed: int):
    """A layout with two stored digits exchanged is another map, unless its canonical form is the same."""
    layout, shape = case
    if 0 in shape or len(layout.order) < 2 or layout.spaces or layout.swizzles:
        return
    rng = np.random.default_rng(seed)
    i, j = sorted(rng.choice(len(layout.order), 2, replace=False))
    order = list(layout.order)
    order[i], order[j] = order[j], order[i]
    mutant = Layout(layout.dimensions, tuple(order), layout.xor)
    codes = np.arange(np.prod(layout.padded_shape(shape))).reshape(layout.padded_shape(shape))
    is_same = canonical(layout.bound(shape)) == canonical(mutant.bound(shape))
    assert np.array_equal(layout.arrange(codes), mutant.arrange(codes)) == is_same


def test_every_exchange_of_two_digits_of_marlin_shows():
    layout = Layout.parse(MARLIN)
    codes = random_codes((64, 128), 4, True, seed=0)
    data = pack(codes, 4, layout)
    for i, j in itertools.combinations(range(len(layout.order)), 2):
        order = list(layout.order)
        order[i], order[j] = order[j], order[i]
        assert not np.array_equal(pack(codes, 4, Layout(layout.dimensions, tuple(order))), data)
