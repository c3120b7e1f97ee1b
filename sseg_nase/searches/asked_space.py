"""The space that a configuration asks for."""

from __future__ import annotations

from typing import Any

from sseg_nase import spaces
from sseg_nase.config.groups.evaluator import OfInherited, OfProxies, OfRuns
from sseg_nase.config.groups.space import OfNetworks, OwnSpace
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError
from sseg_nase.nets.own import registered_by
from sseg_nase.searches.own import called, imported
from sseg_nase.spaces.space import Space


def space_of(config: Config) -> Space:
    """Return the space. Raises `UserError`."""
    asked = config.space
    registered_by("space.imports", asked.imports)
    if not isinstance(asked, OfNetworks):
        return spaces.named(asked.name, choices=config.search.choices)
    if not isinstance(asked, OwnSpace):
        images: dict[str, Any] = {
            "resolution": config.dataset.image_size,
            "in_channels": config.backbone.in_channels,
        }
        built = isinstance(config.evaluator, OfRuns | OfInherited | OfProxies)
        if asked.name == "nb201" and built:
            images["counts"] = "network"  # no classifier of the benchmark's
        return spaces.named(asked.name, **{**images, **asked.settings})
    made_by = imported("space.target", asked.target)
    space = called("space", asked.target, made_by, **asked.settings)
    if not isinstance(space, Space):
        raise UserError(
            f"space.target={asked.target}: it gave {type(space).__name__} and no Space."
        )
    return space
