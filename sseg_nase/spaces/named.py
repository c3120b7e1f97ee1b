"""Spaces by their names in `conf/space`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sseg_nase.errors import UserError, did_you_mean
from sseg_nase.spaces.nb201 import NB201
from sseg_nase.spaces.overrides import overrides_space
from sseg_nase.spaces.space import Space

SPACES: Mapping[str, Callable[..., Space]] = {"nb201": NB201, "overrides": overrides_space}


def named(name: str, **settings: Any) -> Space:
    """Return the space of that name. Raises `UserError` for an unknown name or setting."""
    if name not in SPACES:
        near = did_you_mean(name, SPACES)
        raise UserError(
            f"space={name}: there is no such space.{near} There are {', '.join(SPACES)}."
        )
    try:
        return SPACES[name](**settings)
    except TypeError as error:
        raise UserError(f"space={name} space.settings={settings}: {error}.") from error
