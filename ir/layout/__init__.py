"""Where bits lie: digit chains, records of several parts, ragged tails and stages, with one way to pack and unpack."""

from .algebra import canonical, complement, compose, divide, inverse, product
from .bits import pack, unpack
from .chain import Layout, Space
from .digits import Digit, Dimension
from .lower import index_map, lowering
from .ragged import Ragged
from .record import Record
from .stages import Stages
from .text import AnyLayout, parse_layout

__all__ = [
    "AnyLayout",
    "Digit",
    "Dimension",
    "Layout",
    "Ragged",
    "Record",
    "Space",
    "Stages",
    "canonical",
    "complement",
    "compose",
    "divide",
    "index_map",
    "inverse",
    "lowering",
    "pack",
    "parse_layout",
    "product",
    "unpack",
]
