"""Search spaces: what may be built, as plain data.

A point is a JSON object with one value per choice. What strategies need (sample, neighbours,
mutate, crossover, enumeration, encodings) follows from the choices; a space of networks adds which
points are the same function (`key`) and what a point costs before any weight exists (`costs`).
"""

from sseg_nase.spaces.cells import PNAS, CellSpace, Darts, ENASMicro, Tiny
from sseg_nase.spaces.chains import Chain, ENASMacro, Mobile
from sseg_nase.spaces.choice import Choice, Integers, Options, Point, Reals, Value
from sseg_nase.spaces.choices import choices_space
from sseg_nase.spaces.families import Families
from sseg_nase.spaces.family import Family, register_family
from sseg_nase.spaces.graph import Graph
from sseg_nase.spaces.named import named
from sseg_nase.spaces.nb201 import NB201
from sseg_nase.spaces.networks import SPACES, NetworkSpace, named_space, register_space
from sseg_nase.spaces.overrides import Overrides, overrides_space
from sseg_nase.spaces.space import Encoding, Space

__all__ = [
    "NB201",
    "PNAS",
    "SPACES",
    "CellSpace",
    "Chain",
    "Choice",
    "Darts",
    "ENASMacro",
    "ENASMicro",
    "Encoding",
    "Families",
    "Family",
    "Graph",
    "Integers",
    "Mobile",
    "NetworkSpace",
    "Options",
    "Overrides",
    "Point",
    "Reals",
    "Space",
    "Tiny",
    "Value",
    "choices_space",
    "named",
    "named_space",
    "overrides_space",
    "register_family",
    "register_space",
]
