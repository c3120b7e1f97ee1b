"""Line drawings: transparency is paper, nothing is cut off, thin strokes survive small sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sseg_nase.data.benchmarks.layouts import SplitSource
from sseg_nase.data.opening import Facts, Reading
from sseg_nase.data.pixels import drawn_with_facts
from sseg_nase.data.store import Listing

TURNS = (0, 90, 180, 270)  # degrees counterclockwise


@dataclass(frozen=True)
class Drawing:
    """A file with a drawing, turned by `degrees` of TURNS, light and dark exchanged or not."""

    path: Path
    degrees: int = 0
    invert: bool = False


def as_drawings(source: SplitSource, *, invert: bool, rotations: bool = False) -> SplitSource:
    """A split of image files read as drawings.

    With `rotations` every class becomes four, `<class>/rot000` to `<class>/rot270`.
    """
    turns = TURNS if rotations else (0,)

    def turned(name: str) -> list[str]:
        return [f"{name}/rot{degrees:03d}" for degrees in turns] if rotations else [name]

    def read() -> Listing:
        listing = source.read()
        of_class: list[list[Path]] = [[] for _ in listing.class_names]
        for path, label in listing.items:
            assert isinstance(path, Path)
            of_class[label].append(path)
        items = [
            (Drawing(path, degrees, invert), label * len(turns) + turn)
            for label, paths in enumerate(of_class)
            for turn, degrees in enumerate(turns)
            for path in paths
        ]
        names = tuple(part for name in listing.class_names for part in turned(name))
        return replace(listing, class_names=names, items=items, load=load_drawing)

    return replace(
        source,
        classes=lambda: [part for name in source.classes() for part in turned(name)],
        read=read,
    )


def load_drawing(
    drawing: Drawing, image_size: int, channels: int, reading: Reading
) -> tuple[np.ndarray, Facts]:
    """Decode to uint8 `[image_size, image_size, channels]`, RGB or grey.

    What is transparent becomes paper, which is `reading.background`, a longer side gets paper
    beside it, and a pixel is the mean of the area that it covers; a smaller drawing is enlarged
    bilinearly. Raises UserError naming a file that cannot be decoded.
    """
    pixels, facts = drawn_with_facts(drawing.path, image_size, channels, reading)
    pixels = np.rot90(pixels, TURNS.index(drawing.degrees))
    return np.ascontiguousarray(255 - pixels if drawing.invert else pixels), facts
