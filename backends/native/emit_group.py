"""What begins and ends a group of columns: sums start at minus the offset, and end as floats times its scales."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from .storage import ROWS, Place

if TYPE_CHECKING:
    from .emit_linear import LinearText
    from .linear_spec import LinearSpec

Number = Callable[[Place, str, bool], str]
"""C that reads the numbers of a level for a lane: as floats, or as whole numbers."""


class GroupEnd:
    """What begins and ends a group and a super-block, for lanes of 16 rows and some rows of activations."""

    def __init__(self, text: LinearText, lanes: Sequence[str], rows: int) -> None:
        self.text, self.spec, self.storage, self.lanes = text, text.spec, text.storage, lanes
        self.sums = [f"{lane}_{m}" for lane in lanes for m in range(rows)]
        self.rows = rows
        self.in_memory = len(self.sums) * (text.levels + 1) > text.isa.sums
        self.scaled_outside = any(place.name.startswith("scale") for place in self.storage.outer)
        word = self.spec.weight.offset.word if self.spec.weight.offset else "-"
        self.offset, self.sign = word, "-" if word == "minus" else ""
        self.offset_outside = any(place.name.startswith(word) for place in self.storage.outer)

    def declare(self, kind: str) -> Iterator[str]:
        """Sums of floats, all 0: in registers, or in memory where registers do not suffice for them."""
        if not self.in_memory:
            yield "floats " + ", ".join(f"{kind}_{name} = zero_floats()" for name in self.sums) + ";"
            return
        yield f"_Alignas(64) float {kind}[{16 * len(self.sums)}] = {{0}};"

    def add_to(self, kind: str, name: str, terms: str) -> str:
        """`sum = terms`, where `{}` in the terms stands for the sum."""
        if not self.in_memory:
            return f"{kind}_{name} = {terms.format(f'{kind}_{name}')};"
        at = f"{kind} + {16 * self.sums.index(name)}"
        return f"store_floats({at}, {terms.format(f'load_f32({at})')}, 16);"

    def value(self, kind: str, name: str) -> str:
        """C that reads a sum."""
        return f"load_f32({kind} + {16 * self.sums.index(name)})" if self.in_memory else f"{kind}_{name}"

    def keep(self) -> Iterator[str]:
        """Keeps the compiler from holding in registers, and spilling from the innermost loop, what lies in memory."""
        if self.in_memory:
            kinds = ["y", *(["o"] if self.scaled_outside else []), *(["l"] if self.offset_outside else [])]
            held = ", ".join(f'"r"({kind})' for kind in kinds)
            yield f'__asm__ volatile("" : : {held} : "memory");'

    def declare_outer(self) -> Iterator[str]:
        """The sums of a super-block: of what an outer scale, and an outer level of minima, multiplies."""
        if self.scaled_outside:
            yield from self.declare("o")
        if self.offset_outside:
            yield from self.declare("l")

    def starts(self, number: Number) -> Iterator[str]:
        """What sums begin with: minus the offset, or the zero points, times the sum of the activations."""
        offset = self.spec.offset
        zero = next((p for p in self.storage.inner if p.name == "zero"), None) if self.spec.zero_points else None
        names = [f"a_{name}_{level} = zero_ints()" for name in self.sums for level in range(self.text.levels)]
        yield "ints " + ", ".join(names) + ";"
        for lane in self.lanes if zero else ():
            assert zero is not None
            raised = number(zero, lane, True)
            yield f"const ints z_{lane} = " + (f"add_ints({raised}, set_ints({offset}));" if offset else f"{raised};")
        for lane in self.lanes if zero or offset else ():
            for m in range(self.rows):
                for a in range(self.spec.activation.parts):
                    start = f"set_ints(STARTS(x + {m} * ROW_BYTES, {a})[g])"
                    yield f"a_{lane}_{m}_{a} = " + (f"mul_ints(z_{lane}, {start});" if zero else f"{start};")

    def group(self, number: Number) -> Iterator[str]:
        """The sums of a group as floats, times its scales."""
        inner = self.storage.inner
        scales = [p for p in inner if p.name.startswith("scale")]
        lows = [p for p in inner if p.name.startswith(self.offset)]
        zero = next((p for p in inner if p.name == "zero" and p.dtype[0] not in "iu"), None)
        target, low_target = "o" if self.scaled_outside else "y", "l" if self.offset_outside else "y"
        for lane in self.lanes:
            yield "{"
            yield from (f"    const floats scale = {text};" for text in product_of(scales, lane, number))
            yield from (f"    const floats low = {text};" for text in product_of(lows, lane, number))
            if zero:
                yield f"    const floats zero = {number(zero, lane, False)};"
            for m in range(self.rows):
                yield from indent(1, self._one(f"{lane}_{m}", f"x + {m} * ROW_BYTES", bool(scales), target))
                name, total = f"{lane}_{m}", f"TOTALS(x + {m} * ROW_BYTES)[g]"
                if zero:
                    by = "mul(zero, scale)" if scales else "zero"
                    yield "    " + self.add_to(target, name, f"fma_({by}, set_floats(-{total}), {{}})")
                if self.spec.weight.offset:
                    by = "low" if lows else "set_floats(1)"
                    yield "    " + self.add_to(low_target, name, f"fma_({by}, set_floats({self.sign}{total}), {{}})")
            yield "}"
        yield from self.keep()

    def _one(self, name: str, x: str, scaled: bool, target: str) -> Iterator[str]:
        value = f"to_floats(a_{name}_0)"
        for level in range(1, self.text.levels):
            value = f"fma_({value}, set_floats(256), to_floats(a_{name}_{level}))"
        by = "scale" if scaled else ""
        if self.spec.activation.grouped:
            own = f"set_floats(SCALES({x})[g])"
            by = f"mul(scale, {own})" if scaled else own
        yield self.add_to(target, name, f"fma_({value}, {by}, {{}})" if by else f"add({value}, {{}})")

    def super_block(self, number: Number) -> Iterator[str]:
        """The sums of a super-block times its own scales and minima."""
        for kind, prefix, outside in (("o", "scale", self.scaled_outside), ("l", self.offset, self.offset_outside)):
            places = [p for p in self.storage.outer if p.name.startswith(prefix)]
            for lane in self.lanes if outside else ():
                (by,) = product_of(places, lane, number)
                yield f"{{ const floats by = {by};"
                for m in range(self.rows):
                    name = f"{lane}_{m}"
                    yield "  " + self.add_to("y", name, f"fma_({self.value(kind, name)}, by, {{}})")
                yield "}"


def read_number(place: Place, record: str, r: int, whole: bool) -> str:
    """C that reads the numbers of a level for 16 rows from a record: as floats, or as whole numbers."""
    at = f"{record} + {place.offset + ROWS * r * place.bytes}"
    if place.dtype[0] in "iu":
        read = f"load_{place.dtype[0]}8({at})"
        return read if whole else f"to_floats({read})"
    return f"load_{place.dtype}({at})"


def product_of(places: Sequence[Place], lane: str, number: Number) -> Iterator[str]:
    """The product of some levels; nothing where there are none."""
    if places:
        text = number(places[0], lane, False)
        for place in places[1:]:
            text = f"mul({text}, {number(place, lane, False)})"
        yield text


def factor(spec: LinearSpec, x: str) -> str:
    """What a row of the result is multiplied with at the end."""
    return "set_floats(alpha)" if spec.activation.grouped else f"set_floats(alpha * SCALES({x})[0])"


def indent(depth: int, lines: Iterable[str]) -> Iterator[str]:
    """Lines further in."""
    return ("    " * depth + line for line in lines)
