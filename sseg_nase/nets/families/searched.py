"""A point of a search space, such as a search's answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sseg_nase.config.groups.backbone import BackboneConfig
from sseg_nase.config.options import register


@register("backbone", "searched", "autossl_tiny")
@dataclass(frozen=True)
class Searched(BackboneConfig):
    """A point of a search space."""

    space: str
    point: str
    exact = takes_imports = True
    described_by: ClassVar[str] = "sseg_nase.spaces.backbone:PointOfSpace"
