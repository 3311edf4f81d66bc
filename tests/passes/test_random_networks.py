"""Whatever network the passes meet, they keep its meaning: chains of random blocks, side branches, several readers."""

from __future__ import annotations

import random

import numpy as np
import pytest

from qcc.ir.program import Program
from qcc.ir.rewrite import ProgramContext
from qcc.passes import pipeline
from qcc.passes.calibrate import calibrate
from tests.networks import Array, agreement, names, normal, program, rewritten


class Builder:
    """Appends random operators to a network on images of `channels` x 9 x 9; every value stays near size one."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lines: list[str] = []
        self.weights: dict[str, Array] = {}
        self.values = [("x", 6)]

    def network(self, length: int) -> Program:
        for _ in range(length):
            block = self.random.choice(BLOCKS)
            source = self.values[-1] if self.random.random() < 0.8 else self.random.choice(self.values)
            self.values.append(block(self, *source))
        last, channels = self.values[-1]
        extra = self.random.choice(self.values[1:])
        self.add("y", f"Tanh({last})")
        self.add("z", f"Identity({extra[0]})")
        text = f"(float[N,6,9,9] x) => (float[N,{channels},9,9] y, float[N,{extra[1]},9,9] z)"
        return program(f"{text} {{ {' '.join(self.lines)} }}", **self.weights)

    def add(self, name: str, operator: str) -> str:
        self.lines.append(f"[{name}_node] {name} = {operator}")
        return name

    def name(self) -> str:
        return f"v{len(self.lines)}"

    def weight(self, array: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = array.astype(np.float32)
        return name

    def normal(self, *shape: int, scale: float = 1.0) -> str:
        return self.weight(normal(*shape, seed=self.random.randrange(1 << 30), scale=scale))

    def constant(self, channels: int) -> str:
        """A constant in one of the shapes that broadcast against images."""
        shape = self.random.choice(
            [(), (1,), (channels, 1, 1), (1, channels, 1, 1), (1, 1, 1), (1, channels, 9, 9), (9,)]
        )
        return self.weight(np.abs(normal(*shape, seed=self.random.randrange(1 << 30))) + 0.3)


def convolution(b: Builder, value: str, channels: int) -> tuple[str, int]:
    kernel, pad = b.random.choice([(1, 0), (3, 1)])
    group = b.random.choice([1, 1, 2, channels])
    out = b.random.choice([6, 12]) if group != channels else channels
    weight = b.normal(out, channels // group, kernel, kernel, scale=1 / (kernel * (channels // group) ** 0.5))
    bias = f", {b.normal(out)}" if b.random.random() < 0.5 else ""
    pads = b.random.choice([f"pads=[{pad},{pad},{pad},{pad}]", 'auto_pad="SAME_UPPER"'])
    return b.add(b.name(), f"Conv<group={group}, {pads}>({value}, {weight}{bias})"), out


def transposed(b: Builder, value: str, channels: int) -> tuple[str, int]:
    group = b.random.choice([1, 2])
    weight = b.normal(channels, 6 // group, 3, 3, scale=0.3 / channels**0.5)
    return b.add(b.name(), f"ConvTranspose<group={group}, pads=[1,1,1,1]>({value}, {weight})"), 6


def affine(b: Builder, value: str, channels: int) -> tuple[str, int]:
    kind, constant = b.random.choice(["Mul", "Add", "Sub", "Div"]), b.constant(channels)
    pair = (constant, value) if kind in ("Mul", "Add", "Sub") and b.random.random() < 0.4 else (value, constant)
    return b.add(b.name(), f"{kind}({pair[0]}, {pair[1]})"), channels


def batch_norm(b: Builder, value: str, channels: int) -> tuple[str, int]:
    statistics = [b.normal(channels) for _ in range(3)]
    variance = b.weight(np.abs(normal(channels, seed=b.random.randrange(1 << 30))) + 0.5)
    return b.add(b.name(), f"BatchNormalization({value}, {', '.join(statistics)}, {variance})"), channels


def hard_swish(b: Builder, value: str, channels: int) -> tuple[str, int]:
    three, zero, six = (b.weight(np.array(v)) for v in (3.0, 0.0, 6.0))
    shifted = b.add(b.name(), f"Add({value}, {three})")
    clipped = b.add(b.name(), f"Clip({shifted}, {zero}, {six})")
    if b.random.random() < 0.5:
        gate = b.add(b.name(), f"Div({clipped}, {six})")
        return b.add(b.name(), f"Mul({value}, {gate})"), channels
    product = b.add(b.name(), f"Mul({clipped}, {value})")
    return b.add(b.name(), f"Div({product}, {six})"), channels


def nothing(b: Builder, value: str, channels: int) -> tuple[str, int]:
    operator = b.random.choice(["Identity({})", "Dropout({})", "Cast<to=1>({})", "Transpose<perm=[0,1,2,3]>({})"])
    return b.add(b.name(), operator.format(value)), channels


def activation(b: Builder, value: str, channels: int) -> tuple[str, int]:
    operator = b.random.choice(["Relu", "Tanh", "Sigmoid", "HardSigmoid"])
    return b.add(b.name(), f"{operator}({value})"), channels


def residual(b: Builder, value: str, channels: int) -> tuple[str, int]:
    others = [name for name, count in b.values if count == channels]
    return b.add(b.name(), f"Add({value}, {b.random.choice(others or [value])})"), channels


def computed_constant(b: Builder, value: str, channels: int) -> tuple[str, int]:
    root = b.add(b.name(), f"Abs({b.normal(channels, 1, 1)})")
    return b.add(b.name(), f"Mul({value}, {root})"), channels


BLOCKS = [
    *(convolution, convolution, transposed, affine, affine, batch_norm),
    *(hard_swish, nothing, activation, residual, computed_constant),
]
SEEDS = range(40)


def samples(count: int = 2) -> list[dict[str, Array]]:
    return [{"x": normal(2, 6, 9, 9, seed=seed)} for seed in range(count)]


@pytest.mark.parametrize("seed", SEEDS)
def test_simplifying_keeps_the_meaning(seed: int) -> None:
    before = Builder(seed).network(8)
    after = rewritten(before, *pipeline.simplify())
    assert agreement(before, after, samples(1)) > 95
    assert not {"BatchNormalization", "Dropout"} & set(names(after))
    assert len(names(after)) <= len(names(before)) + names(before).count("BatchNormalization")


@pytest.mark.parametrize("scheme", ["W8A16", "W8A8", "W8A8_DYNAMIC"])
@pytest.mark.parametrize("seed", SEEDS[:12])
def test_quantizing_to_eight_bits_loses_little(seed: int, scheme: str) -> None:
    before = Builder(seed).network(6)
    simple = rewritten(before, *pipeline.simplify())
    context = ProgramContext()
    if scheme == "W8A8":
        context.statistics = calibrate(simple, samples())
    options = pipeline.QuantizeOptions(scheme, observer="minmax", include=("re:.*",))
    after = rewritten(simple, *pipeline.quantize(options), context=context)
    assert agreement(before, after, samples()) > (20 if scheme == "W8A8" else 30)
