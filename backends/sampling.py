"""Choose the next token from logits: greedy, or at random after temperature, top-k and top-p, the same for a seed.

    p = softmax(logits / temperature), cut to the k likeliest, then to the fewest whose probabilities sum to top_p

(Fan et al. 2018, arXiv 1805.04833, for top-k; Holtzman et al. 2020, arXiv 1904.09751, for top-p.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qcc.ir.errors import BadInput


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Temperature 0 is greedy; `top_k=0` and `top_p=1` cut nothing."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise BadInput(f"temperature {self.temperature} is not a number of at least 0", hint="0 is greedy; try 0.8")
        if self.top_k < 0:
            raise BadInput(f"top-k {self.top_k} is negative", hint="0 keeps every token")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"top-p {self.top_p} is not in (0, 1]", hint="1 keeps every token; try 0.95")

    def draw(self, logits: np.ndarray, rng: np.random.Generator) -> int:
        """A token for `logits` [V]; equal logits go to the lowest token."""
        if self.temperature == 0:
            return int(np.argmax(logits))
        order = np.argsort(-logits, kind="stable")[: self.top_k or None]
        below = logits[order].astype(np.float64) - float(logits[order[0]])
        with np.errstate(over="ignore"):  # a tiny temperature leaves the likeliest only
            chances = np.exp(below / self.temperature)
        chances /= chances.sum()
        if self.top_p < 1:
            enough = int(np.searchsorted(np.cumsum(chances), self.top_p)) + 1
            order, chances = order[:enough], chances[:enough] / chances[:enough].sum()
        return int(rng.choice(order, p=chances))
