"""What the readers share: what a data set on disk is, class folders, class lists, fingerprints."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sseg_nase.config.schema import SPLITS, DatasetConfig
from sseg_nase.data.store import ImageItem, Listing
from sseg_nase.errors import UserError

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
)
NAMELESS = ""  # the one class of images without labels
HOW_TO_POINT = (
    "Set paths.data_dir (or the environment variable SSEG_NASE_DATA) to the folder that holds it, "
    "or dataset.root to the data set itself."
)


@dataclass(frozen=True)
class SplitSource:
    """One split on disk: what its fingerprint covers, its class names, and its images."""

    files: Sequence[Path]  # files, and folders with everything in them
    classes: Callable[[], Sequence[str]]
    read: Callable[[], Listing]


@dataclass(frozen=True)
class Official:
    """What the complete data set has, for saying when the one on disk is another."""

    title: str
    classes: Mapping[str, int]
    images_per_class: int
    names: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def notices(self, split: str, names: Sequence[str], counts: np.ndarray) -> list[str]:
        """Sentences on how a split differs from the official one; none when it does not."""
        found = []
        if len(names) < self.classes[split]:
            found.append(
                f"{split} has {len(names)} of the {self.classes[split]} classes of {self.title}: "
                f"a sample, whose accuracies are not those of {self.title}."
            )
        elif len(names) > self.classes[split]:
            found.append(
                f"{split} has {len(names)} classes, {self.title} has {self.classes[split]}."
            )
        if set(counts.tolist()) != {self.images_per_class}:
            least, most = counts.min(), counts.max()
            found.append(
                f"{split} has {least if least == most else f'{least} to {most}'} images per class, "
                f"{self.title} has {self.images_per_class}."
            )
        if split in self.names and (others := sorted(set(names) - self.names[split])):
            found.append(f"{split} has classes that are not of {self.title}: {enumerated(others)}.")
        return found


@dataclass(frozen=True)
class Found:
    """A data set as found on disk: its layout, where it is, and the splits that exist."""

    layout: str
    path: Path
    splits: Mapping[str, SplitSource]
    official: Official | None = None
    # What of the configuration decides which class goes into which split.
    options: Mapping[str, Any] = field(default_factory=dict)
    # False: labels are numbers, and counting from 0 in every split says nothing about classes.
    named: bool = True


Detector = Callable[[Path], "Found | None"]


def enumerated(names: Sequence[str], most: int = 5) -> str:
    """Write `names` as a short list: the first few and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def required_root(dataset: DatasetConfig, accepted: str) -> Path:
    """The existing path in `dataset.root`; raises UserError when it is not set or not there."""
    if not dataset.root:
        raise UserError(f"dataset.root is not set: dataset={dataset.name} needs {accepted}.")
    root = Path(dataset.root).expanduser()
    if not root.exists():
        raise UserError(f"dataset.root={dataset.root} does not exist. Expected: {accepted}.")
    return root


def named_folders(parent: Path, names: Iterable[str]) -> list[Path]:
    """Sub-folders of `parent` with one of `names` in any case, in the order of `names`."""
    if not parent.is_dir():
        return []
    there = sorted(entry for entry in parent.iterdir() if entry.is_dir())
    return [entry for name in names for entry in there if entry.name.lower() == name.lower()]


def first_found(places: Iterable[tuple[Path, Sequence[Detector]]]) -> Found | None:
    """The first data set that a detector knows, place by place."""
    for folder, detectors in places:
        for detector in detectors:
            if found := detector(folder):
                return found
    return None


def class_folders(folder: Path) -> list[Path]:
    """Sub-folders of `folder` by name, without hidden ones; raises UserError when none."""
    found = sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    if not found:
        raise UserError(f"There are no class folders in {folder}.")
    return found


def _images_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".")
            and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES
        )


def images_in(folder: Path) -> list[Path]:
    """The image files directly in `folder` by name; raises UserError naming it when none."""
    names = _images_in(folder)
    if not names:
        raise UserError(
            f"The class folder {folder} has no images: add some or remove it. "
            f"Accepted are {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return [folder / name for name in names]


def listing_of(classes: Mapping[str, Sequence[Path | np.ndarray]]) -> Listing:
    """A listing of `classes` (name to images), sorted by name."""
    names = sorted(classes)
    items: list[ImageItem] = [
        (image, label) for label, name in enumerate(names) for image in classes[name]
    ]
    return Listing(tuple(names), items)


def folders_source(folders: Mapping[str, Path], covered: Sequence[Path]) -> SplitSource:
    """A split of class folders (name to folder), fingerprinted by everything in `covered`."""
    return SplitSource(
        files=covered,
        classes=lambda: sorted(folders),
        read=lambda: listing_of({name: images_in(path) for name, path in folders.items()}),
    )


def split_folders(base: Path) -> dict[str, SplitSource]:
    """The splits of the layout `{train,val,test}/<class>/*` in `base`; empty when it is another."""
    sources = {}
    for split in SPLITS:
        folder = base / split
        if folder.is_dir():
            sources[split] = _split_folder(folder)
    return sources


def _split_folder(folder: Path) -> SplitSource:
    def classes() -> dict[str, Path]:
        return {entry.name: entry for entry in class_folders(folder)}

    return SplitSource(
        files=[folder],
        classes=lambda: sorted(classes()),
        read=lambda: listing_of({name: images_in(path) for name, path in classes().items()}),
    )


def without_labels(folder: Path) -> SplitSource | None:
    """A split of images that lie directly in `folder`, as one nameless class; None if it is other.

    It is other with class folders in it, or without images.
    """
    if any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir()):
        return None
    if not _images_in(folder):
        return None

    def read() -> Listing:
        images = images_in(folder)
        notice = (
            f"{folder.name} has {len(images)} images and no class folders: they have no labels "
            "and serve for pretraining only."
        )
        return replace(listing_of({NAMELESS: images}), notes={"notices": [notice]})

    return SplitSource(files=[folder], classes=lambda: (NAMELESS,), read=read)


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header that has `columns`; UserError names file and line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            header = reader.fieldnames or []
            if missing := [column for column in columns if column not in header]:
                raise UserError(
                    f"The header of {path} has no column {', '.join(missing)}: it is "
                    f"'{','.join(header)}', expected '{','.join(columns)}'."
                )
            rows = []
            for row in reader:
                if any(not row[column] for column in columns):
                    raise UserError(
                        f"Line {reader.line_num} of {path} lacks a value for "
                        f"{' or '.join(columns)}."
                    )
                rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"The CSV file {path} cannot be read: {error}.") from error
    if not rows:
        raise UserError(f"The CSV file {path} lists no images.")
    return rows


def split_classes(
    names: Iterable[str], fractions: Sequence[float] | None, seed: int
) -> dict[str, list[str]]:
    """Deal class `names` into train, val and test by `fractions`, reproducibly from `seed`.

    The order is by a hash of seed and name, so it depends on no library's generator. Every
    fraction above 0 gets at least one class; a split of fraction 0 is left out. Raises UserError
    when the fractions are not three that sum to 1, or when there are too few classes.
    """
    assert fractions is not None  # fitted before
    if len(fractions) != len(SPLITS) or abs(sum(fractions) - 1) > 1e-3 or min(fractions) < 0:
        raise UserError(
            f"dataset.split_fractions={list(fractions)} must be three numbers from 0 to 1 for "
            "train, val and test that sum to 1, such as [0.64,0.16,0.2]."
        )
    ordered = sorted(
        set(names), key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest()
    )
    shares = {split: share for split, share in zip(SPLITS, fractions, strict=True) if share > 0}
    if len(ordered) < len(shares):
        raise UserError(
            f"{len(ordered)} classes cannot be split into {', '.join(shares)} "
            f"(dataset.split_fractions={list(fractions)}): every split needs one at least."
        )
    counts = dict.fromkeys(shares, 1)
    for _ in range(len(ordered) - len(shares)):
        # The next class goes where most is lacking.
        lacking = max(shares, key=lambda split: shares[split] * len(ordered) - counts[split])
        counts[lacking] += 1
    dealt, start = {}, 0
    for split, count in counts.items():
        dealt[split] = sorted(ordered[start : start + count])
        start += count
    return dealt


def fingerprint(files: Iterable[Path]) -> str:
    """A cheap hash of `files` and folders: file count, total size and newest change."""
    count, size, newest = 0, 0, 0
    pending = [os.fspath(path) for path in files]
    while pending:
        path = pending.pop()
        try:
            status = os.stat(path)
            newest = max(newest, status.st_mtime_ns)
            if not os.path.isdir(path):
                count, size = count + 1, size + status.st_size
                continue
            with os.scandir(path) as entries:
                pending.extend(entry.path for entry in entries)
        except FileNotFoundError:
            continue  # a listed image that is missing is named when it is read
    return hashlib.sha256(f"{count}/{size}/{newest}".encode()).hexdigest()[:12]
