"""A point of a space as the backbone of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sseg_nase.errors import UserError
from sseg_nase.nets.description import Description
from sseg_nase.nets.families.searched import Searched
from sseg_nase.nets.searched import SearchedArchitecture
from sseg_nase.spaces.networks import named_space


class PointOfSpace:
    """What `backbone=searched` describes: also a chain of ConvBlocks, from space=chain."""

    @staticmethod
    def configured(backbone: Searched, image_size: int) -> Description:
        """The untrained network of a run. Raises `UserError`."""
        try:
            space = named_space(
                backbone.space, resolution=image_size, in_channels=backbone.in_channels
            )
            return space.describe(space.read(backbone.point))
        except UserError as error:
            said = f"backbone.space={backbone.space} backbone.point={backbone.point}"
            raise UserError(f"{said}: {error}") from None

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Description:
        """The description that `to_dict` wrote: it needs no space."""
        return SearchedArchitecture.from_dict(data)
