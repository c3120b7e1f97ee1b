"""Every image file becomes the pixels that its user sees, or an error that names it."""

from __future__ import annotations

import dataclasses
import os
import struct
import sys
import time
import types
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from PIL.PngImagePlugin import PngInfo

from sseg_nase.config.compose import load
from sseg_nase.config.schema import DatasetConfig
from sseg_nase.data import opening
from sseg_nase.data.benchmarks import load_split, reading_of
from sseg_nase.data.benchmarks.drawings import TURNS, Drawing, load_drawing
from sseg_nase.data.opening import Reading, open_image
from sseg_nase.data.pixels import load_image
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError

WIDTH, HEIGHT = 7, 5
FORMATS = {
    "PNG": "png",
    "TIFF": "tif",
    "JPEG": "jpg",
    "JPEG2000": "jp2",
    "BMP": "bmp",
    "GIF": "gif",
    "WEBP": "webp",
    "AVIF": "avif",
    "PPM": "pnm",
    "PCX": "pcx",
    "TGA": "tga",
    "SGI": "sgi",
    "DDS": "dds",
    "IM": "im",
    "SPIDER": "spi",
    "MSP": "msp",
    "XBM": "xbm",
}
RAW = {  # how a random image of the mode is made
    "1": ("L", np.uint8, 1),
    "L": ("L", np.uint8, 1),
    "LA": ("LA", np.uint8, 2),
    "La": ("LA", np.uint8, 2),
    "P": ("P", np.uint8, 1),
    "PA": ("PA", np.uint8, 2),
    "RGB": ("RGB", np.uint8, 3),
    "RGBA": ("RGBA", np.uint8, 4),
    "RGBa": ("RGBA", np.uint8, 4),
    "RGBX": ("RGBX", np.uint8, 4),
    "CMYK": ("CMYK", np.uint8, 4),
    "YCbCr": ("YCbCr", np.uint8, 3),
    "LAB": ("LAB", np.uint8, 3),
    "HSV": ("HSV", np.uint8, 3),
    "I": ("I", np.int32, 1),
    "I;16": ("I;16", np.uint16, 1),
    "I;16B": ("I;16B", ">u2", 1),
    "F": ("F", np.float32, 1),
}
COLOUR = (200, 30, 90)


def random_image(mode: str, rng: np.random.Generator, width: int = WIDTH) -> Image.Image:
    raw, dtype, bands = RAW[mode]
    shape = (HEIGHT, width, bands)[: 3 if bands > 1 else 2]
    if mode == "F":
        values = rng.random(shape).astype(dtype)
    else:
        top = {"I": rng.choice([256, 65536]), "I;16": 65536, "I;16B": 65536, "1": 2}.get(mode, 256)
        values = rng.integers(0, top, shape).astype(dtype)
    if mode == "1":
        return Image.fromarray(values * np.uint8(255)).convert("1")
    image = Image.frombytes(raw, (width, HEIGHT), values.tobytes())
    if mode in ("P", "PA"):
        image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    return image.convert(mode) if mode in ("La", "RGBa") else image


# The slow, obvious reference: pixel by pixel, from what Pillow has in the file.


def over(colour: tuple[int, ...], alpha: int) -> tuple[int, ...]:
    return tuple(
        int((c * alpha + b * (255 - alpha)) / 255 + 0.5)
        for c, b in zip(colour, COLOUR, strict=True)
    )


def seen(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    """The colour of one pixel over COLOUR."""
    value: Any = image.getpixel((x, y))
    mode, clear = image.mode, image.info.get("transparency")
    if mode in ("1", "L"):
        return COLOUR if value == clear else (value, value, value)
    if mode == "LA":
        return over((value[0],) * 3, value[1])
    if mode == "La":
        return tuple(min(255, value[0] + int(b * (255 - value[1]) / 255 + 0.5)) for b in COLOUR)
    if mode in ("P", "PA"):
        index = value if mode == "P" else value[0]
        alpha = 255 if mode == "P" else value[1]
        if mode == "P" and isinstance(clear, bytes):
            alpha = clear[index] if index < len(clear) else 255
        elif mode == "P" and clear == index:
            alpha = 0
        palette = image.getpalette("RGBA") or []
        r, g, b, a = palette[4 * index : 4 * index + 4]
        if image.palette is not None and image.palette.mode == "RGBA":
            alpha = a
        return over((r, g, b), alpha)
    if mode in ("RGB", "RGBX"):
        return COLOUR if mode == "RGB" and value == clear else tuple(value[:3])
    if mode == "RGBA":
        return over(value[:3], value[3])
    if mode == "RGBa":
        return tuple(
            min(255, c + int(b * (255 - value[3]) / 255 + 0.5))
            for c, b in zip(value[:3], COLOUR, strict=True)
        )
    if mode == "F":
        unit = 1 if np.asarray(image).max() > 1 else 255
        grey = int(value * unit + 0.5)
    elif mode.startswith("I"):
        small = mode == "I" and image.format not in ("PNG", "PPM")
        small = small and np.asarray(image).max() <= 255
        grey = value if small else int(value / 257 + 0.5)
        if value == clear:
            return COLOUR
    else:  # colour spaces, whose conversion is Pillow's
        return tuple(image.convert("RGB").getpixel((x, y)))  # type: ignore[arg-type]
    return (grey, grey, grey)


def reference(image: Image.Image) -> np.ndarray:
    rows = [[seen(image, x, y) for x in range(image.width)] for y in range(image.height)]
    return np.array(rows, dtype=np.uint8)


@pytest.mark.filterwarnings("ignore:.*format is deprecated:DeprecationWarning")
def test_every_mode_in_every_format_equals_the_reference(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    reading = Reading(background=COLOUR)
    tried, modes = [], set()
    for kind, suffix in FORMATS.items():
        for mode in RAW:
            path = tmp_path / f"{mode.replace(';', '')}.{suffix}"
            try:
                random_image(mode, rng, 16).save(path, kind)
            except (OSError, ValueError, KeyError):
                continue  # a combination that does not exist
            with Image.open(path) as image:
                try:
                    image.load()
                except OSError:
                    continue  # some Pillows cannot read what they have written
                found = image.mode
                if found == "F" and np.asarray(image).max() > 256:
                    with pytest.raises(UserError, match=path.name):
                        open_image(path, "RGB")
                    continue
                expected = reference(image)
            tried.append((kind, mode))
            modes.add(found)
            opened = open_image(path, "RGB", reading).image
            assert opened.mode == "RGB"
            assert np.array_equal(np.asarray(opened), expected), (kind, mode, found)
            grey = np.asarray(open_image(path, "L", reading).image)
            if found not in ("YCbCr", "CMYK", "LAB", "HSV"):
                luminance = expected.astype(int) @ [19595, 38470, 7471] + 0x8000 >> 16
                assert np.array_equal(grey, luminance), (kind, mode, found)
    assert len(tried) > 70, tried
    assert modes >= {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F"}


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF"])
def test_transparent_palettes_and_colours_equal_the_reference(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(3)
    reading = Reading(background=COLOUR)
    tried = 0
    for mode in ("1", "L", "P", "RGB", "I;16"):
        image = random_image(mode, rng)
        clears: list[Any] = [image.getpixel((2, 1))]
        if mode == "P":
            clears.append(bytes(rng.integers(0, 256, 200, dtype=np.uint8)))
        for clear in clears:
            path = tmp_path / f"x.{FORMATS[kind]}"
            try:
                image.save(path, kind, transparency=clear)
            except (OSError, ValueError, TypeError, struct.error):
                continue
            with Image.open(path) as stored:
                stored.load()
                expected = reference(stored)
                marked = stored.has_transparency_data
            tried += marked
            found = open_image(path, "RGB", reading).image
            assert np.array_equal(np.asarray(found), expected), (mode, clear)
    assert tried >= {"PNG": 5, "GIF": 1}.get(kind, 0)


def png(width: int, depth: int, colour: int, row: bytes, clear: bytes) -> bytes:
    """A PNG of one row, as no writer of Pillow makes it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"tRNS", clear), (b"IDAT", zlib.compress(b"\0" + row))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in [*parts, (b"IEND", b"")])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(2, 4, 0, b"\x3f", b"\0\x0f"), [(51, 51, 51), COLOUR]),
        (png(4, 2, 0, b"\x1b", b"\0\x02"), [(0,) * 3, (85,) * 3, COLOUR, (255,) * 3]),
        (png(2, 1, 0, b"\x40", b"\0\x01"), [(0,) * 3, COLOUR]),
        (png(2, 16, 0, b"\x01\x2c\xff\xff", b"\x01\x2c"), [COLOUR, (255,) * 3]),
        (png(2, 16, 2, b"\x01\x2c" * 3 + b"\x80\0" * 3, b"\x01\x2c" * 3), [COLOUR, (128,) * 3]),
    ],
)
def test_the_transparent_colour_of_a_png_of_any_depth(
    tmp_path: Path, content: bytes, expected: list[tuple[int, ...]]
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    found = open_image(path, "RGB", Reading(background=COLOUR)).image
    assert [found.getpixel((x, 0)) for x in range(found.width)] == expected


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA"])
def test_alpha_that_is_in_no_file_of_pillows(mode: str) -> None:
    image = random_image(mode, np.random.default_rng(4))
    composed = opening._composed(image, COLOUR).convert("RGB")
    assert np.array_equal(np.asarray(composed), reference(image))


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_colours_that_are_lighter_than_their_alpha_allows_are_white(mode: str) -> None:
    bands = bytes([200] * (len(mode) - 1) + [100])
    image = Image.frombytes(mode, (1, 1), bands)
    composed = opening._composed(image, (255, 255, 255)).convert("RGB")
    assert composed.getpixel((0, 0)) == (255, 255, 255)


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
    0: lambda a: a,  # which some cameras write
    9: lambda a: a,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "MPO"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    image = random_image("RGB", np.random.default_rng(orientation), 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x"
    more: dict[str, Any] = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    image.save(path, kind, exif=exif, **more)
    with Image.open(path) as stored:
        orientation_stored = stored.getexif().get(0x0112)
        lying = np.asarray(stored.convert("RGB"))
    if kind == "TIFF":  # which Pillow turns itself
        lying = np.asarray(image)
    else:
        assert orientation_stored == orientation
    opened, facts = open_image(path, "RGB")
    assert np.array_equal(np.asarray(opened), UPRIGHT[orientation](lying))
    assert facts.frames == 1  # the second picture of a phone's MPO is no page


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def exif_as_text(orientation: int) -> str:
    """As ImageMagick writes it into a PNG."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    return f"\nexif\n{len(raw):8d}\n{raw.hex()}\n"


@pytest.mark.parametrize("kind", ["XMP in WebP", "XMP in PNG", "EXIF as text in PNG"])
def test_an_orientation_is_found_wherever_it_is_written(tmp_path: Path, kind: str) -> None:
    image = random_image("RGB", np.random.default_rng(0))
    more: dict[str, Any] = {"lossless": True, "xmp": XMP.encode()}
    if "PNG" in kind:
        info = PngInfo()
        if "XMP" in kind:
            info.add_itxt("XML:com.adobe.xmp", XMP)
        else:
            info.add_text("Raw profile type exif", exif_as_text(6))
        more = {"pnginfo": info}
    image.save(tmp_path / "x", kind.split()[-1], **more)
    opened = open_image(tmp_path / "x", "RGB").image
    assert np.array_equal(np.asarray(opened), np.rot90(np.asarray(image), -1))


def test_metadata_that_cannot_be_parsed_do_not_hide_an_image(tmp_path: Path) -> None:
    image = random_image("RGB", np.random.default_rng(0))
    for number, exif in enumerate((b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", b"")):
        path = tmp_path / f"{number}.webp"
        image.save(path, lossless=True, exif=exif)
        assert np.array_equal(np.asarray(open_image(path, "RGB").image), np.asarray(image))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_of_an_animation_the_first_frame_is_taken_and_that_is_said(
    tmp_path: Path, kind: str
) -> None:
    if kind == "AVIF" and not opening.reads_avif():
        pytest.skip("This Pillow has no AVIF.")
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    more: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / "x"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], **more)
    opened, facts = open_image(path, "RGB")
    off = np.abs(np.asarray(opened).astype(int) - [255, 0, 0]).max()
    assert off <= (5 if kind == "AVIF" else 0)
    assert facts.frames == 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "MPO"])
def test_a_file_cut_off_anywhere_gives_its_first_page_or_an_error(
    tmp_path: Path, kind: str
) -> None:
    frames = [random_image("RGB", np.random.default_rng(seed), 16) for seed in range(3)]
    path = tmp_path / "x"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])
    whole = path.read_bytes()
    first = np.asarray(open_image(path, "RGB").image)
    read = 0
    for kept in range(0, len(whole), 7):
        path.write_bytes(whole[:kept])
        try:
            found = open_image(path, "RGB").image
        except UserError as error:
            assert "x cannot be read" in str(error)  # noqa: PT017
        else:
            read += 1
            assert np.array_equal(np.asarray(found), first), kept
    assert read > 20


def test_the_first_of_several_deep_pages_is_taken_and_that_is_said(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((2, 2), 257 * grey, np.uint16)) for grey in (9, 200)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    opened, facts = open_image(tmp_path / "x.tif", "L")
    assert np.asarray(opened).tolist() == [[9, 9], [9, 9]]
    assert (facts.frames, facts.kind) == (2, "I;16")


def test_the_sizes_of_an_icon_are_one_picture(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "x.ico", sizes=[(16, 16), (32, 32)])
    assert open_image(tmp_path / "x.ico", "RGB").facts.frames == 1


@pytest.mark.parametrize(
    ("kind", "frames"), [("MPO", 1), ("PSD", 1), ("GIF", 3), ("TIFF", 3), ("PNG", 3), ("WEBP", 3)]
)
def test_layers_and_stereo_pairs_are_one_picture(kind: str, frames: int) -> None:
    image: Any = types.SimpleNamespace(format=kind, n_frames=3)
    assert opening._frames(image) == frames


def test_a_damaged_further_page_says_nothing_of_the_first(tmp_path: Path) -> None:
    """Its black is 65535; what was found of the second page before it breaks off says otherwise."""
    first = tiff("<", np.array([0, 257, 65535]), black=0)
    second = struct.pack("<HHHIHH", 9, 262, 3, 1, 1, 0)  # of nine entries there is one
    path = tmp_path / "x.tif"
    path.write_bytes(first[:-4] + struct.pack("<I", len(first)) + second)
    opened, facts = open_image(path, "L")
    assert np.asarray(opened).tolist() == [[255, 254, 0]]
    assert facts.frames == 1


@pytest.mark.filterwarnings("ignore:.*format is deprecated:DeprecationWarning")
def test_random_damage_ends_in_an_image_or_in_an_error_that_names_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    ends = {True: 0, False: 0}
    for kind, mode in (
        ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "CMYK"), ("GIF", "P"), ("TIFF", "F"),
        ("TIFF", "LAB"), ("WEBP", "RGBA"), ("BMP", "RGB"), ("PPM", "I"), ("TGA", "RGBA"),
        ("ICO", "RGBA"), ("PCX", "P"), ("SGI", "RGB"), ("JPEG2000", "LA"), ("DDS", "RGBA"),
    ):  # fmt: skip
        path = tmp_path / f"{kind}.img"
        random_image(mode, rng, 16).save(path, kind)
        whole = path.read_bytes()
        for _ in range(25):
            content = bytearray(whole)
            for place in rng.integers(0, min(len(content), 120), 3):
                content[place] = rng.integers(0, 256)
            path.write_bytes(content)
            try:
                with opening.without_warnings():
                    found = load_image(path, 8)
            except UserError as error:
                assert path.name in str(error)  # noqa: PT017
                ends[False] += 1
            else:
                assert (found.shape, found.dtype) == ((8, 8, 3), np.uint8)
                ends[True] += 1
    assert min(ends.values()) > 30, ends


def test_a_run_of_before_the_keys_opens_images_plainly() -> None:
    older = dataclasses.replace(default("folder"), background=None, value_range=None)  # type: ignore[arg-type]
    assert reading_of(older) == reading_of(default("folder")) == Reading()
    given = dataclasses.replace(default("folder"), background=[1, 2, 3], value_range=[4, 5])
    assert reading_of(given) == Reading((1, 2, 3), (4, 5))


def test_large_images_are_decoded_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "x.png")
    at_once, most = [0], [0]

    def slow(image: Image.Image, mode: str) -> Image.Image:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.05)
        at_once[0] -= 1
        return image

    monkeypatch.setattr(opening, "_in_mode", slow)
    for limit, expected in ((opening.LARGE, {2, 3, 4}), (63, {1})):
        monkeypatch.setattr(opening, "LARGE", limit)
        most[0] = 0
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: load_image(tmp_path / "x.png", 8), range(4)))
        assert most[0] in expected


# Values of more than 8 bits.


def deep(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path


def test_a_microscopes_twelve_bits_stay_what_they_are_unless_the_range_is_given(
    tmp_path: Path,
) -> None:
    path = deep(tmp_path / "x.png", np.array([[0, 1285, 4095]], np.uint16))
    opened, facts = open_image(path, "L")
    assert np.asarray(opened).tolist() == [[0, 5, 16]]
    assert (facts.kind, facts.span, facts.peak) == ("I;16", (0, 65535), 4095)
    scaled = open_image(path, "L", Reading(value_range=(0, 4095))).image
    assert np.asarray(scaled).tolist() == [[0, 80, 255]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[-0.0005, 0.5, 1.0005]], np.float32), [0, 128, 255]),  # overshoot
        (np.array([[0, 127.6, 255]], np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 0, 0]], np.float32), [0, 0, 0]),
    ],
)
def test_ranges_of_floats_and_integers(
    tmp_path: Path, values: np.ndarray, expected: list[int]
) -> None:
    path = deep(tmp_path / "x.tif", values)
    for source in (path, values):
        assert np.asarray(open_image(source, "L").image)[0].tolist() == expected
        colours = np.asarray(open_image(source, "RGB").image)[0].tolist()
        assert colours == [[value] * 3 for value in expected]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array([[0, 1.7]], np.float32), r"\(mode F\) has values from 0 to 1\.7"),
        (np.array([[0, 4095]], np.float32), r"\(mode F\) has values from 0 to 4095"),
        (np.array([[-0.5, 0.5]], np.float32), r"\(mode F\) has values from -0\.5 to 0\.5"),
        (np.array([[0, 70000]], np.int32), r"\(mode I\) has values from 0 to 70000"),
        (np.array([[-20, 1000]], np.int32), r"\(mode I\) has values from -20 to 1000"),
    ],
)
def test_a_range_that_is_not_clear_is_refused_with_the_key(
    tmp_path: Path, values: np.ndarray, said: str
) -> None:
    path = deep(tmp_path / "x.tif", values)
    with pytest.raises(UserError, match=rf"x\.tif {said}.*dataset\.value_range=\[LOW,HIGH\]"):
        load_image(path, 8)
    low, high = float(values.min()), float(values.max())
    found = open_image(path, "L", Reading(value_range=(low, high))).image
    assert np.asarray(found).tolist() == [[0, 255]]


def test_values_beyond_the_given_range_are_black_and_white() -> None:
    for dtype in (np.float32, np.int32, np.uint16):
        values = np.array([[0, 100, 160, 200, 300]], dtype)
        found = open_image(values, "L", Reading(value_range=(100, 200))).image
        assert np.asarray(found).tolist() == [[0, 0, 153, 255, 255]]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_mode_becomes_grey_and_colour(tmp_path: Path, mode: str) -> None:
    for name in RAW:
        image = random_image(name, np.random.default_rng(1))
        if name not in ("La", "RGBa", "I;16B", "HSV", "PA"):  # which no TIFF has
            image.save(tmp_path / "x.tif")
            found = open_image(tmp_path / "x.tif", mode).image
            assert (found.mode, found.size) == (mode, image.size)


def test_an_array_of_32_bits_is_of_as_many_as_it_uses() -> None:
    small, large, unclear = (np.array([[0, top]], np.uint32) for top in (255, 65535, 70000))
    for values in (small, large):
        assert np.asarray(open_image(values, "L").image).tolist() == [[0, 255]]
    with pytest.raises(UserError, match=r"An array of uint32 .* has values from 0 to 70000"):
        open_image(unclear, "L")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    values = np.array([[0, 0.5], [bad, 1]], np.float32)
    path = deep(tmp_path / "x.tif", values)
    for source, reading in ((path, Reading()), (path, Reading(value_range=(0, 1)))):
        with pytest.raises(UserError, match=r"x\.tif has 1 values that are not finite"):
            open_image(source, "L", reading)
    with pytest.raises(UserError, match="An array of float32 has 1 values that are not finite"):
        open_image(values, "L")


def tiff(order: str, values: np.ndarray, black: int = 1, bits: int = 16) -> bytes:
    """A TIFF of one row, as no writer of Pillow makes it."""
    n = len(values)
    entries = {256: n, 257: 1, 258: bits, 259: 1, 262: black, 273: 8, 277: 1, 278: 1, 279: 2 * n}
    ifd = struct.pack(f"{order}H", len(entries))
    for tag, value in entries.items():
        ifd += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
    pixels = values.astype(f"{order}u2").tobytes()
    start = b"II" if order == "<" else b"MM"
    return start + struct.pack(f"{order}HI", 42, 8 + len(pixels)) + pixels + ifd + b"\0" * 4


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("black", [0, 1])
def test_a_scanners_sixteen_bits_with_white_as_0(tmp_path: Path, order: str, black: int) -> None:
    """The photometric interpretation of a TIFF says what 0 is."""
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(order, np.array([0, 257, 65535]), black))
    if order == ">" and not black:
        with pytest.raises(UserError, match=r"a TIFF, but .*of a kind"):  # no such mode in Pillow
            open_image(path, "L")
        return
    expected = [0, 1, 255] if black else [255, 254, 0]
    assert np.asarray(open_image(path, "L").image).tolist() == [expected]


def test_twelve_bits_of_a_tiff_are_its_whole_range(tmp_path: Path) -> None:
    packed = np.frombuffer(bytes([0x00, 0x0F, 0xFF, 0x80, 0x80, 0x00]), "<u2")
    path = tmp_path / "x.tif"
    path.write_bytes(tiff("<", packed, bits=12))
    found = np.asarray(open_image(path, "L").image).tolist()
    assert found == [[0, 255, 128]]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 255]], np.uint8), [[0] * 3, [255] * 3]),
        (np.array([[[7], [9]]], np.uint8), [[7] * 3, [9] * 3]),
        (np.array([[False, True]]), [[0] * 3, [255] * 3]),
        (np.array([[0, 65535]], ">u2"), [[0] * 3, [255] * 3]),
        (np.array([[[65535, 257, 0]]], np.uint16), [[255, 1, 0]]),
        (np.array([[[1, 0.5, 0]]], np.float64), [[255, 128, 0]]),
        (np.array([[[255, 128, 0]]], np.int64), [[255, 128, 0]]),
        (np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], np.uint8), [list(COLOUR), [9] * 3]),
        (np.array([[[9, 0], [9, 255]]], np.uint8), [list(COLOUR), [9] * 3]),
    ],
)
def test_arrays_of_any_type(array: np.ndarray, expected: list[list[int]]) -> None:
    opened = open_image(array, "RGB", Reading(background=COLOUR)).image
    assert np.asarray(opened)[0].tolist() == expected


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2, 5), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 3), np.uint8),
        np.zeros((2, 2), complex),
        np.array([["a"]]),
    ],
)
def test_arrays_that_are_no_images(array: np.ndarray) -> None:
    with pytest.raises(UserError, match="An array of"):
        load_image(array, 8)


# What is wrong with a file.


def test_files_that_are_no_images_are_called_what_they_are(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), "red")
    image.save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    image.save(tmp_path / "bomb.png")
    cases: dict[str, tuple[bytes, str]] = {
        "empty.png": (b"", r"it is empty \(0 bytes\)"),
        "zeros.png": (b"\0" * 4096, "nothing but zeros"),
        "cut.png": (whole[:-30], "It may be damaged or cut off"),
        "half.png": (whole[: len(whole) // 2], "It may be damaged or cut off"),
        "text.png": (b"notes of a day", "no image that Pillow .* knows"),
        "page.jpg": (b"<!DOCTYPE html><html>404", "it is a web page"),
        "x.svg.png": (b'<?xml version="1.0"?><svg>', "it is an SVG"),
        "drawing.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS"),
        "floats.tif": (tiff("<", np.zeros(3), bits=24), "it is a TIFF, but cut off or of a kind"),
        "new.png": (b"\xff\x0a" + b"\x7f" * 40, "it is JPEG XL"),
        "lfs.png": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pip install pillow-heif"),
        "zero.gif": (b"GIF89a" + b"\0" * 7 + b"," + b"\0" * 9 + b"\x02\0;", "cannot be read"),
    }
    for name, (content, said) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}.*{said}"):
            load_image(path, 8)


def test_an_image_without_pixels_is_called_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some decoders of older versions of Pillow let them through."""
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    monkeypatch.setattr(opening, "_recognised", lambda file: Image.new("RGB", (0, 5)))
    with pytest.raises(UserError, match=r"x\.png cannot be read: it has 0 × 5 pixels"):
        load_image(tmp_path / "x.png", 8)


def test_things_that_are_no_files_are_called_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name, said in (
        ("folder.png", "it is a folder"),
        ("link.png", r"does not exist: it is a link to .*gone\.png"),
        ("pipe.png", "not a file but a pipe"),
        ("missing.png", r"missing\.png does not exist\.$"),
        ("whole.png/x.png", "does not exist|cannot be read"),
    ):
        with pytest.raises(UserError, match=said):
            load_image(tmp_path / name, 8)


def test_an_image_that_is_too_large_is_called_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    row = zlib.compress(b"\0" * 1800 * 14001, 9)
    header = struct.pack(">IIBBBBB", 14000, 14000, 1, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), (b"IDAT", row), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data
        content += struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)
    said = r"large\.png.*too large, 196 million pixels, where at most 179 million.*Save it smaller"
    with pytest.raises(UserError, match=said):
        load_image(path, 8)
    # What Pillow only warns of is read.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    Image.new("RGB", (10, 6), "red").save(tmp_path / "medium.png")
    with opening.without_warnings():
        assert (load_image(tmp_path / "medium.png", 4) == [255, 0, 0]).all()


def test_too_much_text_in_metadata_is_said(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("note", "a" * 5_000_000, zip=True)
    Image.new("L", (8, 8)).save(tmp_path / "a.png", pnginfo=text)
    with pytest.raises(UserError, match=r"a\.png .*more text in its metadata.*without metadata"):
        open_image(tmp_path / "a.png", "L")


def test_too_little_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **more: Any) -> None:
        raise MemoryError

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", exif=exif)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.gif")
    for file, place, name, failing in (
        ("x.png", opening, "_frames", fail),
        ("x.png", opening.ImageOps, "exif_transpose", fail),
        ("x.gif", GifImageFile, "n_frames", property(fail)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, failing)
            with pytest.raises(UserError, match=rf"{file}.*more memory than there is"):
                load_image(tmp_path / file, 8)
        load_image(tmp_path / file, 8)


@pytest.mark.parametrize("size", [(2, 9000), (9000, 2)])
def test_long_strips_do_not_take_all_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    image = Image.new("L", size, 0)
    image.paste(255, (size[0] // 2 - 1, size[1] // 2 - 1, size[0] // 2 + 1, size[1] // 2 + 1))
    image.save(tmp_path / "x.png")
    resized, resize = [], Image.Image.resize

    def spy(image: Image.Image, size: tuple[int, int], *more: Any) -> Image.Image:
        resized.append(size[0] * size[1])
        return resize(image, size, *more)

    monkeypatch.setattr(Image.Image, "resize", spy)
    found = load_image(tmp_path / "x.png", 8, 1)
    assert found.shape == (8, 8, 1)
    assert resized == [8 * 400]
    assert found.max() > 200


def test_heic_is_read_where_pillow_heif_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "phone.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    package = types.ModuleType("pillow_heif")

    class Heif(Image.Image):
        pass

    def register_heif_opener() -> None:
        def opened(file: Any, name: Any) -> Image.Image:
            return Image.new("RGB", (4, 4), "red")

        Image.register_open("HEIF", opened, lambda start: start[4:8] == b"ftyp")  # type: ignore[arg-type]

    package.register_heif_opener = register_heif_opener  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    opening._register_heif.cache_clear()
    try:
        assert opening.reads_heif()
        assert (load_image(path, 4) == [255, 0, 0]).all()
    finally:
        opening._register_heif.cache_clear()


# Folders as users have them; drawings are opened in the same way.


def photographs(folder: Path) -> None:
    """A phone's: held in every way, all the same scene of a bright sky above a dark ground."""
    for orientation in range(1, 9):
        scene = np.random.default_rng(orientation).integers(0, 30, (16, 16, 3), dtype=np.uint8)
        scene[:8] += 200
        stored = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
        exif = Image.Exif()
        exif[0x0112] = orientation
        lying = np.ascontiguousarray(UPRIGHT[stored](scene))
        Image.fromarray(lying).save(folder / f"{orientation}.jpg", exif=exif, quality=95)


def scans(folder: Path) -> None:
    """Dark pages with a bright upper half, as a scanner saves them."""
    page = np.zeros((16, 16), np.uint8)
    page[:8] = 255
    for number in range(4):
        page = page.copy()
        page[12, number] = 255
        image = Image.fromarray(page)
        image.convert("1").save(folder / f"g4-{number}.tif", compression="group4")
        page[13, number] = 255
        Image.fromarray(page).save(
            folder / f"pages-{number}.tif", save_all=True, append_images=[image, image]
        )
        page[14, number] = 255
        Image.fromarray(page.astype(np.uint16) * 257).save(folder / f"deep-{number}.tif")


def micrographs(folder: Path) -> None:
    for number in range(4):
        values = np.random.default_rng(number).random((16, 16)).astype(np.float32) * 0.1
        values[:8] += 0.9
        Image.fromarray(values).save(folder / f"float-{number}.tif")
        turned = (values[:, ::-1] * 65535).astype(np.uint16)
        Image.fromarray(turned).save(folder / f"deep-{number}.png")


def icons(folder: Path) -> None:
    """A black lower half on nothing."""
    for number in range(3):
        icon = np.zeros((16, 16, 4), np.uint8)
        icon[8:, :, 3] = 255
        icon[number, 0] = (10, 200, 30, 128)
        image = Image.fromarray(icon)
        image.save(folder / f"rgba-{number}.png")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).convert("LA").save(
            folder / f"la-{number}.png"
        )
        indices = (icon[:, :, 3] == 255).astype(np.uint8)
        indices[number, 2] = 1
        palette = Image.fromarray(indices)
        palette.putpalette([255, 0, 0, 0, 0, 0])
        palette.save(folder / f"p-{number}.png", transparency=0)
        palette.putpixel((3, number), 1)
        palette.save(folder / f"p-{number}.gif", transparency=0)


@pytest.mark.parametrize("dataset", ["folder", "sketch"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (photographs, None),
        (scans, "4 of 12 images have several pages or frames, such as c0/pages-0.tif (3)"),
        (micrographs, None),
        (icons, None),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_users_are_bright_above_and_dark_below(
    tmp_path: Path, dataset: str, make: Callable[[Path], None], said: str | None, channels: int
) -> None:
    (tmp_path / "own" / "train" / "c0").mkdir(parents=True)
    make(tmp_path / "own" / "train" / "c0")
    store = read(tmp_path, dataset, channels=channels)
    assert len(store) == len(list((tmp_path / "own" / "train" / "c0").iterdir()))
    assert (store.images[:, :7].mean(axis=(1, 2, 3)) > 190).all()
    assert (store.images[:, 9:].mean(axis=(1, 2, 3)) < 50).all()
    notices = [one.replace("train/", "") for one in store.manifest["notices"]]
    assert [said in one for one in notices] == [True] if said else notices == []


@cache
def default(name: str) -> DatasetConfig:
    return load([f"dataset={name}", "dataset.root=here"]).dataset


def read(tmp_path: Path, name: str, split: str = "train", **changed: Any) -> ImageStore:
    changed = {"root": str(tmp_path / "own"), "image_size": 16, "split_by": "folder", **changed}
    dataset = dataclasses.replace(default(name), **changed)
    return load_split(dataset, split, data_dir=tmp_path, cache_dir=tmp_path / "cache", workers=2)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_drawing_is_opened_like_a_photograph(tmp_path: Path, channels: int) -> None:
    rng = np.random.default_rng(5)
    reading = Reading(background=COLOUR)
    for mode, suffix in (("LA", "png"), ("RGBA", "tif"), ("P", "gif"), ("F", "tif"), ("I", "tif")):
        path = tmp_path / f"x.{suffix}"
        random_image(mode, rng, HEIGHT).save(path)
        drawn, _ = load_drawing(Drawing(path), HEIGHT, channels, reading)
        assert np.array_equal(drawn, load_image(path, HEIGHT, channels, reading)), mode
    assert TURNS[0] == 0


def test_the_paper_beside_a_drawing_is_what_is_under_it(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 8), (0, 0, 0, 0)).save(tmp_path / "x.png")
    drawn, _ = load_drawing(Drawing(tmp_path / "x.png"), 8, 3, Reading(background=COLOUR))
    assert (drawn == COLOUR).all()
    with Image.new("1", (20_000, 3)) as strip:
        strip.save(tmp_path / "strip.png")
    with pytest.raises(UserError, match=r"strip\.png has 20,000 × 3 pixels"):
        load_drawing(Drawing(tmp_path / "strip.png"), 8, 1, Reading())


def test_the_background_and_the_range_are_keys_with_an_effect(tmp_path: Path) -> None:
    folder = tmp_path / "own" / "train" / "c0"
    folder.mkdir(parents=True)
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(folder / "clear.png")
    deep(folder / "deep.png", np.full((16, 16), 4095, np.uint16))
    dark = read(tmp_path, "folder")
    assert sorted({int(value) for value in dark.images[:, 0, 0, 0]}) == [16, 255]
    assert any("4,095 of 65,535" in one for one in dark.manifest["notices"])
    assert any("have one colour each" in one for one in dark.manifest["notices"])
    other = read(tmp_path, "folder", background=[1, 2, 3], value_range=[0, 5000])
    found = {tuple(image[0, 0].tolist()) for image in other.images}
    assert found == {(1, 2, 3), (209, 209, 209)}
    assert not any("of 65,535" in one for one in other.manifest["notices"])
    for bad in ("dataset.background=[1,2]", "dataset.value_range=[5,5]", "dataset.value_range=[1]"):
        with pytest.raises(UserError, match=bad.split("=")[0]):
            load(["dataset=folder", "dataset.root=here", bad])
    with pytest.raises(UserError, match=r"value_range=.* no effect with dataset=digits"):
        load(["dataset=digits", "dataset.value_range=[0,16]"])
    (folder / "deep.png").unlink()
    store = read(tmp_path, "folder", value_range=[0, 5000])
    assert any("dataset.value_range has no effect" in one for one in store.manifest["notices"])


def test_files_of_one_mode_and_different_ranges_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "own" / "train" / "c0"
    folder.mkdir(parents=True)
    deep(folder / "unit.tif", np.random.default_rng(0).random((16, 16)).astype(np.float32))
    deep(folder / "zero.tif", np.zeros((16, 16), np.float32))
    assert read(tmp_path, "folder").manifest["value_ranges"] == {"F": [0, 1]}
    deep(folder / "bytes.tif", np.arange(256, dtype=np.float32).reshape(16, 16))
    with pytest.raises(UserError, match=r"bytes\.tif .*0…255.*unit\.tif .*0…1.*value_range"):
        read(tmp_path, "folder")
    assert len(read(tmp_path, "folder", value_range=[0, 255])) == 3


def test_splits_of_different_ranges_are_refused(tmp_path: Path) -> None:
    for split, top in (("train", 1), ("val", 255)):
        (tmp_path / "own" / split / split).mkdir(parents=True)
        values = np.linspace(0, top, 256, dtype=np.float32).reshape(16, 16)
        deep(tmp_path / "own" / split / split / "x.tif", values[:: 1 if top == 1 else -1].copy())
    read(tmp_path, "folder")
    with pytest.raises(UserError, match=r"0…255 in val and like 0…1 in train.*value_range"):
        read(tmp_path, "folder", "val")
    for split in ("train", "val"):
        assert len(read(tmp_path, "folder", split, value_range=[0, 255])) == 1


def test_a_range_of_files_that_have_changed_since_is_not_compared(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "own" / split / split).mkdir(parents=True)

    def write(split: str, top: float, step: int) -> None:
        values = np.linspace(0, top, 256, dtype=np.float32).reshape(16, 16)[::step]
        deep(tmp_path / "own" / split / split / "x.tif", values.copy())

    write("train", 255, 1)
    write("val", 1, -1)
    read(tmp_path, "folder")
    write("train", 1, 1)  # it is read again later
    assert read(tmp_path, "folder", "val").manifest["value_ranges"] == {"F": [0, 1]}
    assert read(tmp_path, "folder").manifest["value_ranges"] == {"F": [0, 1]}


def test_a_class_or_a_set_without_pictures_is_said(tmp_path: Path) -> None:
    for name in ("c0", "c1", "c2"):
        (tmp_path / "own" / "train" / name).mkdir(parents=True)
        for number in range(2):
            grey = (number + 2 * int(name[1])) % 256
            Image.new("L", (16, 16), grey).save(tmp_path / "own" / "train" / name / f"{number}.png")
    store = read(tmp_path, "folder")
    assert any("All 6 images have one colour each" in one for one in store.manifest["notices"])
    assert any(
        "nearly black: their brightest value is 5" in one for one in store.manifest["notices"]
    )
    picture = random_image("RGB", np.random.default_rng(0), 16)
    picture.save(tmp_path / "own" / "train" / "c1" / "picture.png")
    store = read(tmp_path, "folder")
    said = "All images of class c0 and of 1 more have one colour each"
    assert any(said in one for one in store.manifest["notices"])
    assert not any("black" in one for one in store.manifest["notices"])
