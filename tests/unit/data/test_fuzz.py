"""Hundreds of random data folders and CSV files, compared with a slow and obvious reader.

Every case gives the pixels and labels that the obvious reader gives, or one UserError that names
what is wrong; all files that are there are used or named as left out.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sseg_nase.config.groups.dataset import SPLITS, DatasetConfig
from sseg_nase.data.benchmarks import available_splits
from sseg_nase.data.opening import reads_avif
from sseg_nase.errors import UserError
from tests.support.own_images import SIDE, Content, content, load, own, picture

CASES = 300
PARTS = 6  # tests that share the cases
NAMES = """
ant|bee|café|cafe\u0301 noir|Zoë|名前|Łódź|a b|-dash|#2|50%|it's|(1)|x=1|trailing |0|1|17|
n01532829|TRAIN set|tests|валя|İstanbul|a,b|a;b|a"b
""".replace("\n", "").split("|")
LETTERS = "abcdefgh é_名"

# How an image is written: extension, and what is changed about the picture [SIDE, SIDE, 3].
Saver = Callable[[Path, np.ndarray, np.random.Generator], None]


def as_mode(mode: str, suffix: str, **options: Any) -> tuple[str, Saver]:
    def save(path: Path, pixels: np.ndarray, rng: np.random.Generator) -> None:
        Image.fromarray(pixels).convert(mode).save(path, **options)

    return suffix, save


def grey_16(path: Path, pixels: np.ndarray, rng: np.random.Generator) -> None:
    Image.fromarray(rng.integers(0, 65536, (SIDE, SIDE), np.uint16)).save(path)


def with_alpha(path: Path, pixels: np.ndarray, rng: np.random.Generator) -> None:
    alpha = rng.choice(np.array([0, 255], np.uint8), (SIDE, SIDE, 1))
    Image.fromarray(np.concatenate([pixels, alpha], axis=2)).save(path)


def turned(path: Path, pixels: np.ndarray, rng: np.random.Generator) -> None:
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(1, 9))
    Image.fromarray(pixels).save(path, exif=exif)


SAVERS: list[tuple[str, Saver]] = [
    as_mode("RGB", ".png"),
    as_mode("RGB", ".PNG"),
    as_mode("L", ".png"),
    as_mode("P", ".png"),
    as_mode("1", ".png"),
    as_mode("RGB", ".bmp"),
    as_mode("L", ".bmp"),
    as_mode("RGB", ".jpg"),
    as_mode("L", ".jpeg"),
    as_mode("RGB", ".jfif", format="JPEG"),
    as_mode("RGB", ".JPE", format="JPEG"),
    as_mode("CMYK", ".jpg"),
    as_mode("RGB", ".tif"),
    as_mode("L", ".tiff"),
    as_mode("P", ".gif"),
    as_mode("RGB", ".webp", lossless=True),
    as_mode("RGB", ".ppm"),
    as_mode("L", ".pgm"),
    as_mode("1", ".pbm"),
    as_mode("RGB", ".tga"),
    as_mode("RGB", ".jpg", format="PNG"),  # called otherwise than it is
    as_mode("RGB", ".png", format="JPEG"),
    (".png", grey_16),
    (".tif", grey_16),
]
# Images are seen upright and on white.
SAVERS += [(".png", with_alpha), (".jpg", turned), (".png", turned)]
if reads_avif():
    SAVERS.append(as_mode("RGB", ".avif"))


# The obvious reader

TRANSPOSED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}


def obvious(path: Path) -> bytes:
    """The pixels of an image file of SIDE × SIDE: upright, on white, 8 bits, RGB."""
    with path.open("rb") as file, Image.open(file) as image:
        image.load()
        orientation = image.getexif().get(0x0112, 1)
        if image.mode.startswith("I"):
            grey = np.round(np.asarray(image).astype(np.float64) / 257).astype(np.uint8)
            pixels = np.repeat(grey[:, :, None], 3, axis=2)
        elif image.mode == "RGBA":
            coloured = np.asarray(image)
            pixels = np.where(coloured[:, :, 3:] == 255, coloured[:, :, :3], 255).astype(np.uint8)
        else:
            pixels = np.asarray(image.convert("RGB"))
    return np.ascontiguousarray(TRANSPOSED[orientation](pixels)).tobytes()


# The generator


@dataclass
class Case:
    """What was written: which image is in which class and split, and what is to be refused."""

    dataset: DatasetConfig
    splits: dict[str, dict[str, list[Path]]]  # files by split and class; "" is any split
    left_out: int = 0  # files that are there and are not to be taken
    twice: int = 0
    copies: int = 0
    refused: list[str] = field(default_factory=list)  # texts of which one is in the message


@dataclass
class Writer:
    root: Path
    rng: np.random.Generator
    number: int
    written: int = 0

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def name(self) -> str:
        length = int(self.rng.integers(1, 9))
        return "".join(self.rng.choice([*LETTERS], length)).strip(" ") + str(self.written)

    def image(self, folder: Path, raw_names: bool = True) -> Path:
        self.written += 1
        suffix, save = SAVERS[int(self.rng.integers(len(SAVERS)))]
        stem = self.name()
        if raw_names and self.chance(0.05):
            stem += os.fsdecode(b"\xe8\xff")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{stem}{suffix}"
        save(path, picture(9, self.number, self.written), self.rng)
        return path

    def class_names(self, count: int) -> list[str]:
        return [str(name) for name in self.rng.choice(NAMES, count, replace=False)]


def clutter(writer: Writer, case: Case, folder: Path, classes: bool) -> None:
    """Put something that is no image of a class into `folder`; it is counted as left out."""
    tag = f"left{writer.written}"
    writer.written += 1
    kind = str(
        writer.rng.choice(
            ["heic", "text", "none", "store", "hidden", "fifo", "broken", "macosx", "raw", "below"]
        )
    )
    if kind == "below" and classes:
        for _ in range(int(writer.rng.integers(1, 3))):
            writer.image(folder / tag / "deep")
            case.left_out += 1
        return
    case.left_out += 1
    if kind == "heic":
        (folder / f"{tag}.HEIC").write_bytes(b"no image")
    elif kind == "text":
        (folder / f"{tag}.txt").write_text("words")
    elif kind == "none":
        (folder / tag).write_text("words")
    elif kind == "fifo":
        os.mkfifo(folder / f"{tag}.png")
    elif kind == "broken":
        os.symlink("gone", folder / tag)
    elif kind == "macosx":
        name = ("__MACOSX", ".git", "@eaDir")[int(writer.rng.integers(3))]
        if (folder / name).exists():
            case.left_out -= 1
        (folder / name / "c0").mkdir(parents=True, exist_ok=True)
        (folder / name / "c0" / "._0.png").write_bytes(b"")
    elif kind == "raw":
        (folder / (tag + os.fsdecode(b"\xe9.dat"))).write_bytes(b"")
    else:
        (folder / f".{tag}{kind}.png").write_bytes(b"")


def fill(writer: Writer, case: Case, split: str, base: Path, names: list[str]) -> None:
    """Class folders in `base`, now and then with what is left out."""
    for name in names:
        raw = name + os.fsdecode(b"\xe9") if writer.chance(0.03) else name
        shown = name + "\\xe9" if raw != name else name
        images = [writer.image(base / raw) for _ in range(int(writer.rng.integers(1, 4)))]
        case.splits[split][shown] = images
        if writer.chance(0.15):
            clutter(writer, case, base / raw, True)
        if writer.chance(0.08):
            os.symlink(images[0].name, base / raw / f"again{images[0].suffix}")
            case.twice += 1
        if writer.chance(0.08):
            shutil.copy(images[-1], base / raw / f"zz copy{images[-1].suffix}")
            case.copies += 1
    if writer.chance(0.2):
        clutter(writer, case, base, False)
    if writer.chance(0.1):
        writer.image(base)
        case.left_out += 1


def in_splits(writer: Writer) -> Case:
    case = Case(own("folder", writer.root), {})
    spelled = {"train": ["Train", "training"], "val": ["valid", "Validation"], "test": ["testing"]}
    names = writer.class_names(6)
    for number, split in enumerate(SPLITS):
        if split == "test" and writer.chance(0.5):
            continue
        folder = str(writer.rng.choice([split, split, *spelled[split]]))
        case.splits[split] = {}
        if split == "train" and writer.chance(0.15):
            count = int(writer.rng.integers(1, 5))
            case.splits[split][""] = [writer.image(writer.root / folder) for _ in range(count)]
        else:
            mine = names[2 * number : 2 * number + 2]
            fill(writer, case, split, writer.root / folder, mine)
    return case


def dealt(writer: Writer) -> Case:
    split_by = str(writer.rng.choice(["auto", "classes"]))
    case = Case(own("folder", writer.root, split_by=split_by), {"": {}})
    fill(writer, case, "", writer.root, writer.class_names(int(writer.rng.integers(3, 7))))
    return case


def flat(writer: Writer) -> Case:
    case = Case(own("folder", writer.root), {"train": {}})
    case.splits["train"][""] = [writer.image(writer.root) for _ in range(3)]
    if writer.chance(0.5):
        clutter(writer, case, writer.root, False)
    return case


def quoted(cell: str, delimiter: str) -> str:
    if delimiter in cell or '"' in cell:
        return '"' + cell.replace('"', '""') + '"'
    return cell


def csv_file(writer: Writer) -> Case:
    with_split = writer.chance(0.5)
    case = Case(own("csv", writer.root / "list.csv"), {})
    delimiter = str(writer.rng.choice([",", ",", ";", "\t", "|"]))
    header = ["path", "label", "split"] if with_split else ["path", "label"]
    if writer.chance(0.3):
        header = [cell.capitalize() for cell in header]
    rows: list[list[str]] = []
    labels = [name.strip() for name in writer.class_names(6)]
    for number, label in enumerate(labels):
        split = SPLITS[number // 2] if with_split else ""
        images = [
            writer.image(writer.root / "images", raw_names=False)
            for _ in range(int(writer.rng.integers(1, 4)))
        ]
        case.splits.setdefault(split, {})[label] = images
        for image in images:
            path = image.relative_to(writer.root).as_posix()
            cells = [path, label, split][: len(header)]
            rows.append(cells)
            if writer.chance(0.05):
                rows.append([f"./{path}", *cells[1:]])
                case.twice += 1
    if writer.chance(0.2):
        for row in rows:
            row[0] = row[0].replace("/", "\\")
    pad = " " if writer.chance(0.3) else ""
    lines = [
        (pad + delimiter + pad).join(quoted(cell, delimiter) for cell in row)
        for row in [header, *rows]
    ]
    if pad:
        # Blanks behind a closing quotation mark are no part of strict CSV.
        lines = [re.sub('"\\s+(?=[,;\t|])', '"', line) for line in lines]
    end = str(writer.rng.choice(["\n", "\r\n"]))
    if writer.chance(0.2):
        lines.insert(int(writer.rng.integers(1, len(lines))), "")
    text = end.join(lines) + end
    bom = "\ufeff" if writer.chance(0.2) else ""
    (writer.root / "list.csv").write_bytes((bom + text).encode())
    return case


# Faults: each makes a case that has to be refused, and says what the message has to name.


def any_image(writer: Writer, case: Case) -> tuple[str, str, Path]:
    split = str(writer.rng.choice(list(case.splits)))
    name = str(writer.rng.choice(list(case.splits[split])))
    images = case.splits[split][name]
    return split, name, images[int(writer.rng.integers(len(images)))]


def named(path: Path) -> str:
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")


def damaged(writer: Writer, case: Case) -> None:
    _, _, path = any_image(writer, case)
    whole = path.read_bytes()
    contents = [b"", b"<html>no image</html>", whole[: len(whole) // 3], os.urandom(40)]
    path.write_bytes(contents[int(writer.rng.integers(4))])
    case.refused = [named(path)]


def broken_link(writer: Writer, case: Case) -> None:
    _, _, path = any_image(writer, case)
    path.unlink()
    path.symlink_to("gone.png")
    case.refused = [named(path)]


def two_labels(writer: Writer, case: Case) -> None:
    classes = [(s, n) for s, of in case.splits.items() for n in of if n]
    if len(classes) < 2:
        return damaged(writer, case)
    chosen = writer.rng.choice(len(classes), 2, replace=False)
    (s, one), (t, other) = (classes[int(i)] for i in chosen)
    source, place = case.splits[s][one][0], case.splits[t][other][0]
    link = place.parent / f"linked{source.suffix}"
    link.symlink_to(source.absolute())
    case.refused = [named(link), named(source)]


def empty_class(writer: Writer, case: Case) -> None:
    _, _, path = any_image(writer, case)
    if path.parent.parent == writer.root.parent:
        return damaged(writer, case)
    folder = path.parent.parent / "void class"
    folder.mkdir()
    (folder / "readme.txt").write_text("")
    case.refused = ["void class"]
    return None


def common_class(writer: Writer, case: Case) -> None:
    if len(case.splits) < 2:
        return damaged(writer, case)
    base = [next(iter(classes.values()))[0].parent for classes in case.splits.values()]
    if "" in case.splits["train"]:
        return damaged(writer, case)
    pairs = [("Same", "same"), ("näme", "na\u0308me"), ("same", "same"), ("7", "07")]
    for folder, name in zip(base, pairs[int(writer.rng.integers(4))], strict=False):
        writer.image(folder.parent / name)
    case.refused = ["share 1 classes"]
    return None


def two_vals(writer: Writer, case: Case) -> None:
    if "val" not in case.splits or case.dataset.name == "csv":
        return damaged(writer, case)
    there = next(iter(case.splits["val"].values()))[0].parent.parent.name
    other = "val" if there != "val" else "valid"
    writer.image(writer.root / other / "more")
    case.refused = [other]
    return None


def bad_row(writer: Writer, case: Case) -> None:
    path = writer.root / "list.csv"
    raw = path.read_bytes()
    lines = raw.decode("utf-8-sig").splitlines()
    place = 1 + int(writer.rng.integers(len(lines) - 1))
    delimiter = next(d for d in ",;\t|" if d in lines[0])
    width = lines[0].count(delimiter)
    kind = int(writer.rng.integers(8))
    tail = delimiter + delimiter.join(["ant", "train"][:width])
    line = place + 1
    if kind == 0:
        lines.insert(place, f"images{tail}{delimiter}more")
    elif kind == 1:
        lines.insert(place, "images")
    elif kind == 2:
        lines.insert(place, f'"images{tail}')
    elif kind == 3:
        lines.insert(place, f"gone.png{tail}")
    elif kind == 4:
        lines.insert(place, f"images{tail}")
    elif kind == 5:
        lines.insert(place, f"a\0b{tail}")
    elif kind == 6:
        lines.insert(place, f"{tail}")
    encoding = "latin1" if kind == 7 else "utf-8"
    if kind == 7:
        lines = [*lines[:place], f"images/é.png{tail}"]
    path.write_bytes("\n".join(lines).encode(encoding, "replace"))
    case.refused = [f"{word} {line}" for word in ("Line", "line", "lines")]
    if kind == 7:
        case.refused = ["that is not UTF-8"]  # on the first line that has such a letter


LAYOUTS: list[Callable[[Writer], Case]] = [
    *(in_splits, in_splits, dealt, dealt, flat, csv_file, csv_file)
]
OF_FOLDERS = [damaged, broken_link, two_labels, empty_class, common_class, two_vals]


def written(number: int, root: Path) -> Case:
    rng = np.random.default_rng([15, number])
    root.mkdir(parents=True)
    writer = Writer(root, rng, number)
    layout = LAYOUTS[int(rng.integers(len(LAYOUTS)))]
    case = layout(writer)
    if writer.chance(0.3):
        if case.dataset.name == "csv":
            faults = [damaged, bad_row, bad_row]
        else:
            faults = OF_FOLDERS if layout is not flat else [damaged, broken_link]
        faults[int(rng.integers(len(faults)))](writer, case)
    return case


# The comparison


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        message.encode()  # raises for what no file and no terminal takes
        self.said.append(message)

    def number_of(self, pattern: str) -> int:
        # A notice on the whole data set may come with every split.
        return sum(int(found) for said in set(self.said) for found in re.findall(pattern, said))


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler, logger = Heard(), logging.getLogger("sseg_nase")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def check(case: Case, heard: Heard, where: str) -> bool:
    """Compare one case; returns whether it was refused, as it has to be."""
    places = {"data_dir": Path("data"), "cache_dir": Path("cache")}
    found: dict[str, Content] = {}
    errors = []
    try:
        splits = available_splits(case.dataset, **places)
    except UserError as error:
        splits, errors = (), [str(error)]
    for split in splits:
        try:
            store = load(case.dataset, split)
        except UserError as error:
            errors.append(str(error))
        else:
            store.verify()
            found[split] = content(store)
    for error in errors:
        assert "\n" not in error, where
        error.encode()
    if case.refused:
        assert any(text in error for error in errors for text in case.refused), (where, errors)
        return True
    assert not errors, (where, errors)
    expected = {
        split: {name: sorted(map(obvious, images)) for name, images in classes.items()}
        for split, classes in case.splits.items()
    }
    if "" in expected:
        # The classes are dealt: every one into one split.
        together = {name: images for classes in found.values() for name, images in classes.items()}
        assert sum(map(len, found.values())) == len(together), where
        assert together == expected[""], where
        assert set(found) == set(SPLITS), where
    else:
        assert {split: list(of) for split, of in found.items()} == {
            split: sorted(of) for split, of in expected.items()
        }, where
        assert found == expected, where
    left_out = heard.number_of(r"(\d+) files? (?:is|are) not taken")
    assert left_out == case.left_out, (where, heard.said)
    assert heard.number_of(r"(\d+) images are not taken \(the same") == case.twice, where
    assert heard.number_of(r"copies of other images in their class: (\d+)") == case.copies, where
    return False


@pytest.mark.parametrize("part", range(PARTS))
def test_random_data_is_read_as_it_is_or_refused(
    part: int, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # nothing here has to survive the test
    refused = 0
    numbers = range(part, CASES, PARTS)
    for number in numbers:
        case = written(number, Path(f"own{number}"))
        heard.said.clear()
        refused += check(case, heard, f"case {number}")
        shutil.rmtree("cache", ignore_errors=True)
    assert 0.1 < refused / len(numbers) < 0.6  # neither path is empty
