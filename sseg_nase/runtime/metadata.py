"""What an exported file says of itself: all that is needed to use it, and what it was measured at.

It is JSON under the key `sseg_nase` of the file's own metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sseg_nase.data.opening import Reading, without_warnings
from sseg_nase.data.pixels import drawn_with_facts, load_with_facts
from sseg_nase.errors import UserError, shown

KEY = "sseg_nase"
SCHEMA = 1


@dataclass(frozen=True)
class Metadata:
    """What is said of a network.

    `input`: uint8 (`[B, S, S, C]`, normalised inside) or float (`[B, C, S, S]`, normalised by
    (x / 255 - 0.5) / 0.5). `reading`: how an image file becomes pixels. `normalize`, `base_mean`
    `[features]` and `metric`: what is done to features, as `task=evaluate` does; `temperature`: of
    the softmax of the scores. `about`: everything else, such as accuracy and architecture.
    """

    image_size: int
    channels: int
    features: int
    input: str
    reading: Mapping[str, Any]
    normalize: str
    base_mean: Sequence[float] | None
    metric: str
    temperature: float
    weights: str
    about: Mapping[str, Any]
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The text that `from_json` reads."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | None, path: Path) -> Metadata:
        """Read what `to_json` wrote; `path` is what messages name. Raises `UserError`."""
        if text is None:
            raise UserError(
                f"{shown(path)}: this file was not made by sseg-nase task=export; it says nothing "
                "of image size, normalisation and classes. Export the network again."
            )
        try:
            return cls._checked(json.loads(text))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{shown(path)}: its metadata are damaged or of another version of sseg-nase "
                f"({type(error).__name__}: {error}). Export the network again."
            ) from error

    @classmethod
    def _checked(cls, found: Mapping[str, Any]) -> Metadata:
        if found["schema"] != SCHEMA:
            raise ValueError(f"schema {found['schema']}, this version reads {SCHEMA}")
        made = cls(**found)
        mean = made.base_mean
        if made.channels not in (1, 3) or made.input not in ("uint8", "float"):
            raise ValueError(f"{made.channels} channels, input {made.input}")
        if mean is not None and len(mean) != made.features:
            raise ValueError(f"a base mean of {len(mean)} for {made.features} features")
        if not made.temperature > 0:
            raise ValueError(f"a temperature of {made.temperature}")
        return made

    def pixels(self, image: Path | str | np.ndarray) -> np.ndarray:
        """An image file, or an array `[H, W(, C)]`, as uint8 `[S, S, C]`: as data sets are read.

        Raises `UserError` naming the file and what is wrong with it.
        """
        source = image if isinstance(image, np.ndarray) else Path(image).expanduser()
        value_range = self.reading["value_range"]
        reading = Reading(
            tuple(self.reading["background"]),
            None if value_range is None else (value_range[0], value_range[1]),
        )
        load = drawn_with_facts if self.reading["drawing"] else load_with_facts
        with without_warnings():
            pixels, _ = load(source, self.image_size, self.channels, reading)
        return 255 - pixels if self.reading["invert"] else pixels

    def batch(self, images: Sequence[Path | str | np.ndarray] | np.ndarray) -> np.ndarray:
        """Images as uint8 `[n, S, S, C]`; an array of that form is taken as it is."""
        size = self.image_size
        form = (size, size, self.channels)
        if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == form:
            return images
        found = [self.pixels(image) for image in images]
        return np.stack(found) if found else np.zeros((0, size, size, self.channels), np.uint8)
