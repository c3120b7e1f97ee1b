"""`space`: what `task=search` may choose. Built in `sseg_nase.spaces`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Optional

from sseg_nase.config.options import ANY, Option, group, option, register


@group("space")
@dataclass(frozen=True)
class SpaceConfig(Option):
    """What all spaces have.

    `imports` is what a run gets as `backbone.imports`, which tells it of the same operations.
    """

    imports: Annotated[Optional[str], option(path="a file that registers operations of your own")]


@register("space", "overrides")
@dataclass(frozen=True)
class OfKeys(SpaceConfig):
    """Keys of the configuration: `search.choices`."""


@register("space", ANY)
@dataclass(frozen=True)
class OfNetworks(SpaceConfig):
    """Networks, under the name that the space is registered by, which a file of the user's may do.

    `settings`: what the space of that name takes.
    """

    settings: dict[str, Any]


@register("space", "own")
@dataclass(frozen=True)
class OwnSpace(OfNetworks):
    """One of the user's, from a file of theirs."""

    target: Annotated[
        str,
        option(
            text="FILE.py:NAME or MODULE:NAME",
            question="where is it? Add space.target=FILE.py:NAME.",
        ),
    ]
