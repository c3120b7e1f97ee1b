"""A network type: its choices, and the operations that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sseg_nase.errors import UserError
from sseg_nase.nets.genome import FILTERS, UNITS
from sseg_nase.nets.ops import same_definition
from sseg_nase.nets.plan import Plan
from sseg_nase.spaces.choice import Choice, Value

LEVELS = 3


@dataclass(frozen=True)
class Limits:
    """What a level of complexity allows: `most` layers; `simple` is ReLU, no norms, no skips."""

    most: int
    filters: tuple[int, ...] = FILTERS
    units: tuple[int, ...] = UNITS
    simple: bool = False


@dataclass(frozen=True)
class Family:
    """A network type. `choices` for given limits; `plan` adds to the images what a point says.

    `from_level` is the first level of complexity at which it takes part. Names of choices are its
    own: the space puts the family's name before them. Those of a layer begin with its number, and
    `layers` says how many there are: `layers`, `0.filters`, `1.filters`.
    """

    name: str
    choices: Callable[[Limits], tuple[Choice, ...]]
    plan: Callable[[Plan, Mapping[str, Value], int], None]
    from_level: int = LEVELS


FAMILIES: dict[str, Family] = {}  # of the user's own


def register_family(family: Family) -> None:
    """Let a family take part. Raises `UserError` for a name in use."""
    if not same_definition(FAMILIES.get(family.name, family).plan, family.plan):
        raise UserError(f"Family {family.name} is registered already. Choose another name.")
    FAMILIES[family.name] = family
