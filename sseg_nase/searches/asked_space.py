"""The space that a configuration asks for."""

from __future__ import annotations

from typing import Any

from sseg_nase import spaces
from sseg_nase.config.schema import OWN, Config
from sseg_nase.errors import UserError
from sseg_nase.nets.own import registered_by
from sseg_nase.searches.own import called, imported
from sseg_nase.spaces.space import Space


def space_of(config: Config) -> Space:
    """Return the space. Raises `UserError`."""
    registered_by("space.imports", config.space.imports)
    name, target, settings = config.space.name, config.space.target, config.space.settings
    if name == "overrides":
        return spaces.named(name, choices=config.search.choices)
    if name != OWN:
        images: dict[str, Any] = {
            "resolution": config.dataset.image_size,
            "in_channels": config.backbone.in_channels,
        }
        if name == "nb201" and config.evaluator.name in ("run", "inherited", "proxy"):
            images["counts"] = "network"  # no classifier of the benchmark's
        return spaces.named(name, **{**images, **settings})
    assert target is not None
    space = called("space", target, imported("space.target", target), **settings)
    if not isinstance(space, Space):
        raise UserError(f"space.target={target}: it gave {type(space).__name__} and no Space.")
    return space
