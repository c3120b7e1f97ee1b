"""Search spaces: what may be built, as plain data.

A point is a JSON object with one value per choice. What strategies need (sample, neighbours,
mutate, crossover, enumeration, encodings) follows from the choices; a space of networks adds which
points are the same function (`key`) and what a point costs before any weight exists (`costs`).
"""

from sseg_nase.spaces.choice import Choice, Integers, Options, Point, Reals, Value
from sseg_nase.spaces.choices import choices_space
from sseg_nase.spaces.graph import Graph
from sseg_nase.spaces.named import named
from sseg_nase.spaces.nb201 import NB201
from sseg_nase.spaces.overrides import Overrides, overrides_space
from sseg_nase.spaces.space import Encoding, Space

__all__ = [
    "NB201",
    "Choice",
    "Encoding",
    "Graph",
    "Integers",
    "Options",
    "Overrides",
    "Point",
    "Reals",
    "Space",
    "Value",
    "choices_space",
    "named",
    "overrides_space",
]
