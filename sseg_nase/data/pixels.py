"""From an image file to the square of pixels that a network takes. Nothing here loads torch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from sseg_nase.data.opening import PLAIN, Facts, Reading, open_image
from sseg_nase.errors import UserError

MODES = {1: "L", 3: "RGB"}  # Pillow's, by channels
LONGEST = 50  # times the shorter side: what is beyond is cut off before an image is resized
LONGEST_SIDE = 16_384  # pixels of a drawing that is not square


def load_image(
    image: Path | np.ndarray, image_size: int, channels: int = 3, reading: Reading = PLAIN
) -> np.ndarray:
    """Decode `image` to RGB uint8 `[image_size, image_size, 3]`, or grey with 1 of `channels`.

    It is opened as `sseg_nase.data.opening` says. The shorter side is resized (bilinear,
    antialiased), the longer one cropped at the centre; an image of that size keeps every byte.
    Raises UserError naming a file that cannot be decoded.
    """
    return load_with_facts(image, image_size, channels, reading)[0]


def load_with_facts(
    image: Path | np.ndarray, size: int, channels: int, reading: Reading
) -> tuple[np.ndarray, Facts]:
    """`load_image` with what is worth a notice about the image."""
    opened, facts = _opened(image, channels, reading)
    return np.asarray(_cut(opened, size)).reshape(size, size, channels), facts


def drawn_with_facts(
    path: Path | np.ndarray, size: int, channels: int, reading: Reading
) -> tuple[np.ndarray, Facts]:
    """As `load_with_facts`, of a line drawing: nothing is cut off, thin strokes survive.

    A longer side gets paper (`reading.background`) beside it, and a pixel is the mean of the area
    that it covers; a smaller drawing is enlarged bilinearly.
    """
    image, facts = _opened(path, channels, reading)
    pixels = _square(path, image, reading.background)
    return _resized(pixels.reshape(*pixels.shape[:2], channels), size), facts


def _opened(
    source: Path | np.ndarray, channels: int, reading: Reading
) -> tuple[Image.Image, Facts]:
    image, facts = open_image(source, MODES[channels], reading)
    return image, facts._replace(size=image.size) if reading.one_size else facts


def _cut(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    if (width, height) == (size, size):
        return image
    if max(width, height) > LONGEST * min(width, height):
        # A strip of 10 × 100,000 pixels would become one of size × 10,000 size.
        keep = LONGEST * min(width, height)
        left, top = max(0, (width - keep) // 2), max(0, (height - keep) // 2)
        image = image.crop((left, top, left + min(width, keep), top + min(height, keep)))
        width, height = image.size
    if width <= height:
        scaled = (size, max(size, int(size * height / width)))
    else:
        scaled = (max(size, int(size * width / height)), size)
    image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _square(path: Path | np.ndarray, image: Image.Image, paper: tuple[int, int, int]) -> np.ndarray:
    width, height = image.size
    side = max(width, height)
    if width == height:
        return np.asarray(image)
    if side > LONGEST_SIDE:
        raise UserError(
            f"The drawing {_name(path)} has {width:,} × {height:,} pixels: at most "
            f"{LONGEST_SIDE:,} a side are read, since paper is added to make it square. "
            "Make it smaller or cut it up."
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


def _name(path: Path | np.ndarray) -> str:
    return "in an array" if isinstance(path, np.ndarray) else str(path)
