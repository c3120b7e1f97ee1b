"""`views`: random views of an image. Drawn in `sseg_nase.data.views`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sseg_nase.config.options import option


@dataclass(frozen=True)
class ViewsConfig:
    """Two random views of an image; probabilities and ranges as in SimCLR, then for drawings."""

    crop_scale: Annotated[list[float], option(above=0, most=1)]
    crop_ratio: Annotated[list[float], option(above=0)]
    flip: Annotated[float, option(least=0, most=1)]
    jitter: Annotated[float, option(least=0, most=1)]
    brightness: Annotated[float, option(least=0, most=1)]
    contrast: Annotated[float, option(least=0, most=1)]
    saturation: Annotated[float, option(least=0, most=1)]
    hue: Annotated[float, option(least=0, most=0.5)]
    grey: Annotated[float, option(least=0, most=1)]
    blur: Annotated[float, option(least=0, most=1)]
    blur_sigma: Annotated[list[float], option(above=0)]
    rotation: Annotated[float, option(least=0, most=180)]
    translation: Annotated[float, option(least=0, most=1)]
    zoom: Annotated[list[float], option(least=0.1, most=10)]
    thickness: Annotated[list[float], option(least=-4, most=4)]
    erase: Annotated[float, option(least=0, most=1)]
    erase_area: Annotated[list[float], option(least=0, most=1)]
    ink: Annotated[str, option(choices=("dark", "light"))]

    @property
    def strokes(self) -> bool:
        """Whether anything is done to the views beside what photographs get."""
        moved = self.rotation > 0 or self.translation > 0 or set(self.zoom) != {1.0}
        return moved or any(self.thickness) or self.erase > 0
