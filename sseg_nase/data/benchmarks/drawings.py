"""Line drawings: transparency is paper, nothing is cut off, thin strokes survive small sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from sseg_nase.data.benchmarks.layouts import SplitSource
from sseg_nase.data.opening import Facts, Reading, open_image
from sseg_nase.data.store import MODES, Listing
from sseg_nase.errors import UserError

LONGEST_SIDE = 16_384  # pixels of a drawing that is not square
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
    image, facts = open_image(drawing.path, MODES[channels], reading)
    pixels = _square(drawing.path, image, reading.background)
    pixels = _resized(pixels.reshape(*pixels.shape[:2], channels), image_size)
    pixels = np.rot90(pixels, TURNS.index(drawing.degrees))
    return np.ascontiguousarray(255 - pixels if drawing.invert else pixels), facts


def _square(path: Path, image: Image.Image, paper: tuple[int, int, int]) -> np.ndarray:
    width, height = image.size
    side = max(width, height)
    if width == height:
        return np.asarray(image)
    if side > LONGEST_SIDE:
        raise UserError(
            f"The drawing {path} has {width:,} × {height:,} pixels: at most {LONGEST_SIDE:,} a "
            "side are read, since paper is added to make it square. Make it smaller or cut it up."
        )
    square = Image.new("RGB", (side, side), paper).convert(image.mode)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return np.asarray(square)


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """Square uint8 `[H, H, C]` → `[size, size, C]`."""
    side, _, channels = pixels.shape
    if side == size:
        return pixels
    if side < size:
        image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
        image = image.resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(size, size, channels)
    shares = _shares(side, size)
    planes = shares @ np.moveaxis(pixels, 2, 0).astype(np.float32) @ shares.T
    return np.moveaxis(np.rint(planes).astype(np.uint8), 0, 2)


@lru_cache(maxsize=16)
def _shares(side: int, size: int) -> np.ndarray:
    """Of each of `side` pixels, its share in each of `size` larger ones; float32 `[size, side]`."""
    edges = np.arange(size + 1) * (side / size)
    starts = np.arange(side)
    stop = np.minimum(edges[1:, None], starts + 1)
    overlap = (stop - np.maximum(edges[:-1, None], starts)).clip(min=0)
    return (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)
