"""`curriculum`: the images of the self-supervised training. Made in `sseg_nase.data.curriculum`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Optional

from sseg_nase.config.options import Checked, group, option, register

SYNTHETIC_LEVELS = ("BASIC", "TEXTURE", "OBJECT", "ADVERSARIAL")
LEVELS = (*SYNTHETIC_LEVELS, "NATURAL")


@register("curriculum", "synthetic", "natural", "progressive", "mixed")
@group("curriculum")
@dataclass(frozen=True)
class CurriculumConfig(Checked):
    """Levels of images, from easy to hard."""

    name: str
    levels: Annotated[list[str], option(choices=LEVELS)]
    images: Annotated[dict[str, int], option(least=1, keys=SYNTHETIC_LEVELS)]
    progression: bool
    gradual_mixing_ratio: Annotated[float, option(least=0, most=0.9)]
    max_epochs_per_level: Annotated[Optional[int], option(least=1)]
    plateau_threshold: Annotated[float, option(least=0)]
    plateau_window_size: Annotated[int, option(least=1)]
    gap_threshold: Annotated[float, option(least=0)]
    perturbation: Annotated[float, option(least=0, most=0.5)]
    export: Annotated[Optional[str], option(path="a folder for the images")]
