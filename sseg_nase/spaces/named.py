"""Spaces by their names in `conf/space`."""

from __future__ import annotations

from typing import Any

from sseg_nase.errors import UserError, did_you_mean
from sseg_nase.spaces.networks import SPACES, named_space
from sseg_nase.spaces.overrides import overrides_space
from sseg_nase.spaces.space import Space

OVERRIDES = "overrides"


def named(name: str, **settings: Any) -> Space:
    """Return the space of that name. Raises `UserError` for an unknown name or setting."""
    if name == OVERRIDES:
        return overrides_space(**settings)
    if name not in SPACES:
        known = (OVERRIDES, *SPACES)
        near = did_you_mean(name, known)
        raise UserError(
            f"space={name}: there is no such space.{near} There are {', '.join(known)}."
        )
    return named_space(name, **settings)
