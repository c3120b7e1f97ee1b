"""How an image becomes pixels: upright, opaque, with 8 bits. All readers open images here.

| what is in the file | what becomes of it |
|---|---|
| an orientation (EXIF, XMP) | the image is turned or mirrored as viewers do |
| transparency: alpha, a colour or palette entries | `Reading.background` shows through |
| 1, L, P, RGB, RGBX, CMYK, YCbCr, LAB, HSV | Pillow's conversion |
| 16-bit colour | the upper bytes |
| 16-bit grey (I;16, and I up to 65535) | 0…65535 becomes 0…255; a 12-bit TIFF 0…4095 |
| 32-bit integers (I) up to 255 | taken as they are |
| floats (F) | 0…1 becomes 0…255; up to 255, as they are |
| any other range of I and F | refused; `Reading.value_range` says what is black and white |
| NaN, infinity | refused |
| several pages or frames | the first one |

Colour profiles are not applied.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from sseg_nase.errors import UserError

WHITE = (255, 255, 255)
SLACK = 1e-3  # of a range: what resampling overshoots
LARGE = 40_000_000  # pixels; larger images are decoded one at a time, for their memory
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1"}
VECTORS = {"EPS", "WMF"}  # which Pillow would give to other programs
ONE_PICTURE = {"MPO", "PSD"}  # their further frames are not other pictures

_large = threading.Lock()
# Opening a pipe would wait for somebody who writes to it.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_ORIENTED = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})


@dataclass(frozen=True)
class Reading:
    """What of the config decides how images become pixels.

    `background` is the colour (R, G, B) under transparent pixels. `value_range` (low, high) says
    which values of images with more than 8 bits are black and white; None: by their type.
    `one_size`: all images of a store must have the same size.
    """

    background: tuple[int, int, int] = WHITE
    value_range: tuple[float, float] | None = None
    one_size: bool = False


PLAIN = Reading()


class Facts(NamedTuple):
    """What is worth a notice about an image.

    `kind` and `span` say how values of more than 8 bits were scaled, None where there were none
    or where all of them are 0; `peak` is the largest of them. `size`: width and height, where
    they are asked for.
    """

    frames: int = 1
    kind: str | None = None
    span: tuple[float, float] | None = None
    peak: float = 0
    size: tuple[int, int] | None = None


ORDINARY = Facts()


class Opened(NamedTuple):
    """An image in the mode that was asked for."""

    image: Image.Image
    facts: Facts = ORDINARY


class _Values(NamedTuple):
    """Values of more than 8 bits: `[H, W]` or `[H, W, C]`, their type, and a range if declared."""

    values: np.ndarray
    kind: str
    span: tuple[float, float] | None


def open_image(source: Path | np.ndarray, mode: str, reading: Reading = PLAIN) -> Opened:
    """Open a file, or an array `[H, W]` or `[H, W, 1 to 4]`, in `mode`: "L" or "RGB".

    Raises UserError naming the file (or "an array") and what is wrong with it.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, mode, reading)
    try:
        with _file(source) as file:
            image = _recognised(file)
            if image.format in VECTORS:
                raise UserError(
                    f"The image {source} cannot be read: it is {image.format}, which has lines "
                    "instead of pixels. Save it as PNG."
                )
            width, height = image.size
            if not width * height:
                raise UserError(
                    f"The image {source} cannot be read: it has {width} × {height} pixels. "
                    "Delete it or replace it."
                )
            frames = _frames(image)
            if frames is None:
                # The search has left it at a page that cannot be read; the first one is wanted.
                image, frames = _recognised(file), 1
            if width * height > LARGE:
                with _large:
                    return _from_file(source, image, frames, mode, reading)
            return _from_file(source, image, frames, mode, reading)
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(
            f"The image {source} cannot be read: it needs more memory than there is. Make it "
            "smaller, or decode fewer images at once (hardware.num_workers=0)."
        ) from error
    except Exception as error:  # decoders of damaged files raise whatever they meet
        raise UserError(_reason(source, error)) from error


def reads_heif() -> bool:
    """Whether .heic and .heif files can be read: pillow-heif is installed."""
    return _register_heif()


def reads_avif() -> bool:
    """Whether .avif files can be read: Pillow is 11.3 or later, built with libavif."""
    return "avif" in features.modules and bool(features.check("avif"))


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence what Pillow has to say about odd metadata and large images.

    To be set around all threads that open images: filters of warnings are one for the process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


# Files.


def _from_file(path: Path, image: Image.Image, frames: int, mode: str, reading: Reading) -> Opened:
    # Tens of thousands of small images pass here: what is rare is looked at only where it is.
    deep = image.mode[0] in "IF"
    rare = deep or "transparency" in image.info
    declared = _declared(image) if rare else _Declared()
    image.load()
    if not _ORIENTED.isdisjoint(image.info) or image.format == "TIFF":
        _turn_upright(image)
    if deep:
        return _deep_file(path, image, declared, frames, mode, reading)
    if image.has_transparency_data:
        _mend_transparency(image, declared.samples)
        image = _composed(image, reading.background)
    return Opened(_in_mode(image, mode), ORDINARY if frames == 1 else Facts(frames))


class _Declared(NamedTuple):
    """What a file says of its samples: Pillow forgets it when the pixels are loaded."""

    samples: str = ""  # how a PNG packs them
    bits: int | None = None  # of a TIFF's grey samples
    inverted: bool = False  # 0 is white


def _declared(image: Image.Image) -> _Declared:
    if image.format == "PNG":
        tile = getattr(image, "tile", None)
        return _Declared(str(tile[0][3]) if tile else "")
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        bits = tags.get(258, (1,))
        return _Declared("", bits[0] if len(bits) == 1 else None, tags.get(262) == 0)
    return _Declared()


def _deep_file(
    path: Path, image: Image.Image, declared: _Declared, frames: int, mode: str, reading: Reading
) -> Opened:
    """Grey values of more than 8 bits."""
    values = np.asarray(image)
    kind, span = image.mode, None
    if kind.startswith("I;16") or (kind == "I" and image.format in ("PNG", "PPM")):
        kind = "I;16"
        span = (0.0, 4095.0 if declared.bits == 12 else 65535.0)
    opened = _scaled(_Values(values, kind, span), f"The image {path}", reading)
    grey = np.asarray(opened.image)
    # Pillow turns a scan with 0 as white where it has 8 bits, but not where it has more.
    if declared.inverted:
        grey = 255 - grey
    image_of = Image.fromarray(grey)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        alpha = np.where(values == clear, 0, 255).astype(np.uint8)
        image_of = _composed(Image.fromarray(np.stack([grey, alpha], axis=2)), reading.background)
    return Opened(_in_mode(image_of, mode), opened.facts._replace(frames=frames))


def _frames(image: Image.Image) -> int | None:
    """How many pages or frames there are; None where counting them fails."""
    if image.format in ONE_PICTURE:
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except MemoryError:
        raise
    except Exception:
        return None  # what is wrong with further frames is none of the first one's business


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:
        return  # metadata that cannot be parsed have no orientation


def _mend_transparency(image: Image.Image, samples: str) -> None:
    """Bring the transparent colour of a PNG to 8 bits, as the pixels are: Pillow leaves it."""
    clear = image.info.get("transparency")
    steps = {"1": 255, "L;2": 85, "L;4": 17}
    if samples in steps and isinstance(clear, int):
        image.info["transparency"] = min(255, clear * steps[samples])
    elif samples == "RGB;16B" and isinstance(clear, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in clear)


# Arrays.


def _from_array(array: np.ndarray, mode: str, reading: Reading) -> Opened:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and not 2 <= array.shape[2] <= 4):
        raise UserError(f"An array of shape {list(array.shape)} is no image: [H, W(, 1 to 4)].")
    if 0 in array.shape:
        raise UserError(f"An array of shape {list(array.shape)} has no pixels.")
    if array.dtype == np.uint8:
        opened = Opened(Image.fromarray(np.ascontiguousarray(array)))
    elif array.dtype == np.bool_:
        opened = Opened(Image.fromarray(array.astype(np.uint8) * np.uint8(255)))
    elif array.dtype.kind in "iuf":
        kind = {"f": "F", "u": "I;16"}.get(array.dtype.kind, "I")
        if array.dtype.itemsize > 2 and kind == "I;16":
            kind = "I"
        span = (0.0, 65535.0) if kind == "I;16" else None
        opened = _scaled(_Values(array, kind, span), f"An array of {array.dtype}", reading)
    else:
        raise UserError(f"An array of {array.dtype} is no image: numbers are needed.")
    image = opened.image
    if image.mode in ("LA", "RGBA"):
        image = _composed(image, reading.background)
    return Opened(_in_mode(image, mode), opened.facts)


# Values.


def _scaled(deep: _Values, name: str, reading: Reading) -> Opened:
    values, kind, span = deep
    if kind == "F" and not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise UserError(
            f"{name} has {bad} values that are not finite (NaN or infinity): replace them by "
            "numbers, or leave the image out."
        )
    low, high = float(values.min()), float(values.max())
    chosen = reading.value_range or span or _span(kind, low, high)
    if chosen is None:
        raise UserError(
            f"{name} (mode {kind}) has values from {low:g} to {high:g}: which of them are black "
            "and white? Set dataset.value_range=[LOW,HIGH], which holds for all images with more "
            "than 8 bits."
        )
    dark, light = chosen
    scaled = (values.astype(np.float64) - dark) * (255 / (light - dark))
    image = Image.fromarray(np.rint(scaled).clip(0, 255).astype(np.uint8))
    nothing = low == high == 0  # which is of any range
    return Opened(image, ORDINARY if nothing else Facts(1, kind, chosen, high))


def _span(kind: str, low: float, high: float) -> tuple[float, float] | None:
    """The range that values from `low` to `high` are of; None where that is not clear."""
    if kind == "F":
        for top in (1.0, 255.0):
            if -SLACK * top <= low and high <= top * (1 + SLACK):
                # Values up to 2, say, are not of 0…255: an image so dark is something else.
                return (0.0, top) if top == 1 or high >= 16 else None
        return None
    tops = [top for top in (255.0, 65535.0) if low >= 0 and high <= top]
    return (0.0, tops[0]) if tops else None


def _composed(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """`image` over a colour, RGB; exact to half a level."""
    under = np.array(background, dtype=np.uint16)
    if image.mode in ("La", "RGBa"):  # the colours are multiplied by alpha already
        planes = np.asarray(image).astype(np.uint16)
        alpha = planes[:, :, -1:]
        mixed = planes[:, :, :-1] + (under * (255 - alpha) + 127) // 255
        return Image.fromarray(mixed.clip(max=255).astype(np.uint8))
    planes = np.asarray(image if image.mode == "RGBA" else image.convert("RGBA"))
    alpha = planes[:, :, 3:].astype(np.uint16)
    mixed = (planes[:, :, :3] * alpha + under * (255 - alpha) + 127) // 255
    return Image.fromarray(mixed.astype(np.uint8))


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:
        return image
    if image.mode == "LAB":
        image = image.convert("RGB")  # from where alone Pillow goes on
    return image.convert(mode)


# What can be wrong.


def _file(path: Path) -> IO[bytes]:
    return open(os.open(path, _FLAGS), "rb")


def _recognised(file: IO[bytes]) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        if not _is_heif(file) or not _register_heif():
            raise
        return Image.open(file)


def _is_heif(file: IO[bytes]) -> bool:
    return _brand(file) in HEIF_BRANDS


def _brand(file: IO[bytes]) -> bytes:
    """Of a file of the ISO base media format (HEIC, AVIF) what it calls itself; else empty."""
    file.seek(0)
    start = file.read(12)
    return start[8:12] if start[4:8] == b"ftyp" else b""


@cache
def _register_heif() -> bool:
    try:
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _reason(path: Path, error: Exception) -> str:
    """What is wrong with `path`, and what to do."""
    what = f"The image {path} cannot be read:"
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            return f"The image {path} does not exist: it is a link to {os.readlink(path)}."
        return f"The image {path} does not exist."
    except OSError as failed:
        return f"{what} {failed}."
    if stat.S_ISDIR(status.st_mode):
        return f"{what} it is a folder, though its name is that of an image. Rename or move it."
    if not stat.S_ISREG(status.st_mode):
        return f"{what} it is not a file but a pipe, a socket or a device. Remove it."
    if isinstance(error, OSError) and error.errno is not None:
        return f"{what} {error.strerror or error}."
    if status.st_size == 0:
        return f"{what} it is empty (0 bytes). Delete it or download it again."
    if isinstance(error, Image.DecompressionBombError):
        counts = [int(number) for number in re.findall(r"\d+", str(error))]
        size = f"{counts[0] / 1e6:.0f} million pixels" if counts else str(error)
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return (
            f"{what} it is too large, {size}, where at most {most:.0f} million are decoded. "
            "Save it smaller (a few thousand pixels a side are plenty) or cut it up."
        )
    if isinstance(error, UnidentifiedImageError):
        return f"{what} {_what_it_is(path)}"
    if "MAX_TEXT_" in str(error):
        return f"{what} it has more text in its metadata than is read. Save it without metadata."
    return f"{what} {error or type(error).__name__}. {ADVICE}"


ADVICE = "It may be damaged or cut off: delete it or download it again."


def _what_it_is(path: Path) -> str:
    """Of a file that Pillow does not know."""
    with path.open("rb") as file:
        brand = _brand(file)
        file.seek(0)
        start = file.read(512).lstrip().lower()
    if brand in HEIF_BRANDS:
        return "it is HEIC, which needs one more package: pip install pillow-heif"
    if brand in (b"avif", b"avis") and not reads_avif():
        return "it is AVIF, which needs Pillow 11.3 or later: pip install -U pillow"
    if start.startswith((b"ii*\0", b"mm\0*", b"ii+\0", b"mm\0+")):
        return (
            "it is a TIFF, but cut off or of a kind that Pillow does not read, such as colours of "
            "floats or more than four channels. Save it as RGB, or as grey of 8 or 16 bits."
        )
    if start.startswith((b"\xff\x0a", b"\0\0\0\x0cjxl ")):
        return "it is JPEG XL, which is not read. Save it as PNG or JPEG."
    if start.startswith(b"version https://git-lfs"):
        return "it is a placeholder of Git LFS. Fetch the images with: git lfs pull"
    if b"<svg" in start:
        return "it is an SVG, which has no pixels. Save it as PNG."
    if start.startswith((b"<!doctype", b"<html")):
        return "it is a web page. Delete it or download the image again."
    if not start.strip(b"\0"):
        return f"it has nothing but zeros at its start. {ADVICE}"
    return f"its content is no image that Pillow {Image.__version__} knows. {ADVICE}"
