"""What the readers share: what a data set on disk is, its splits, class folders, dealt classes."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sseg_nase.config.groups.dataset import SPLITS
from sseg_nase.config.options import filled
from sseg_nase.data.benchmarks.lists import alike, both
from sseg_nase.data.benchmarks.walk import (
    TWICE,
    LeftOut,
    Seen,
    class_folders,
    class_images,
    has,
    left_out_notice,
    of_file,
    same_files,
    scan,
)
from sseg_nase.data.store import ImageItem, Listing
from sseg_nase.errors import UserError, shown

NAMELESS = ""  # the one class of images without labels
SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".xz", ".txz", ".bz2", ".zst", ".7z", ".rar")
HOW_TO_POINT = (
    "Set paths.data_dir (or the environment variable SSEG_NASE_DATA) to the folder that holds it, "
    "or dataset.root to the data set itself."
)


@dataclass(frozen=True)
class SplitSource:
    """One split on disk. Nothing is looked at before it is asked for."""

    classes: Callable[[], Sequence[str]]  # without looking at the images
    read: Callable[[], Listing]
    files: Callable[[], Sequence[Seen]]  # every file that its images come from
    # Lines that are others when a file, its name, its class or its place in a list changed.
    stamp: Callable[[], Iterable[str]]
    notices: Callable[[], Sequence[str]] = tuple


@dataclass(frozen=True)
class Images:
    """The image files of a split by class, in order, and sentences on what was not taken."""

    classes: Mapping[str, Sequence[Seen]]
    notices: Sequence[str] = ()


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
    notices: Sequence[str] = ()  # on the data set as a whole
    closed: bool = False  # all splits have the same classes


Detector = Callable[[Path], "Found | None"]


def enumerated(names: Sequence[str], most: int = 5) -> str:
    """Write `names` as a short list: the first few and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def required_root(given: str, accepted: str) -> Path:
    """The existing path that `dataset.root` gives; raises UserError when it is not there."""
    root = Path(given).expanduser()
    if not root.exists():
        raise UserError(f"dataset.root={given} does not exist. Expected: {accepted}.")
    if root.is_file() and root.suffix.lower() in ARCHIVES:
        raise UserError(
            f"dataset.root={given} is an archive: unpack it and set dataset.root to the folder. "
            f"Expected: {accepted}."
        )
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


def listing_of(classes: Mapping[str, Sequence[Path | np.ndarray]]) -> Listing:
    """A listing of `classes` (name to images), sorted by name."""
    names = sorted(classes)
    items: list[ImageItem] = [
        (image, label) for label, name in enumerate(names) for image in classes[name]
    ]
    return Listing(tuple(names), items)


def images_source(classes: Callable[[], Sequence[str]], find: Callable[[], Images]) -> SplitSource:
    """A split of image files; `find` looks for them, once.

    One file twice in a class is taken once, with a notice; under two classes it is refused.
    """

    @cache
    def found() -> Images:
        return _each_once(find())

    def read() -> Listing:
        return listing_of(
            {name: [Path(seen.path) for seen in images] for name, images in _classes().items()}
        )

    def stamp() -> Iterable[str]:
        for name in sorted(_classes()):
            yield f"class {name}"
            yield from (seen.stamp() for seen in _classes()[name])

    def _classes() -> Mapping[str, Sequence[Seen]]:
        return found().classes

    return SplitSource(
        classes=classes,
        read=read,
        files=lambda: [seen for images in _classes().values() for seen in images],
        stamp=stamp,
        notices=lambda: found().notices,
    )


def file_source(
    files: Sequence[Path],
    classes: Callable[[], Sequence[str]],
    read: Callable[[], Listing],
    notices: Sequence[str] = (),
) -> SplitSource:
    """A split whose images are all within `files`, such as a pickle."""

    @cache
    def seen() -> list[Seen]:
        return [of_file(file) for file in files]

    return SplitSource(
        classes=classes,
        read=read,
        files=list,
        stamp=lambda: [one.stamp() for one in seen()],
        notices=lambda: notices,
    )


def _each_once(images: Images) -> Images:
    """`images` with every file once; raises UserError where one has two labels."""
    pairs = list(same_files(seen for listed in images.classes.values() for seen in listed))
    label: dict[int, str] = {}
    if pairs:
        label = {id(seen): name for name, listed in images.classes.items() for seen in listed}
    dropped: dict[int, Seen] = {}
    for first, again in pairs:
        one, other = label[id(first)], label[id(again)]
        if one != other:
            raise UserError(
                f"One image has two labels, {both(one, other)}: {first} and {again} are the same "
                "file. Remove it from one class."
            )
        dropped[id(again)] = again
    notices = list(images.notices)
    if dropped:
        example = str(next(iter(dropped.values())))
        notices.append(f"{len(dropped)} images are not taken ({TWICE}), among them {example}.")
    for one, other in alike(sorted(images.classes)):
        notices.append(f"{both(one, other)} are two classes.")
    classes = images.classes
    if dropped:
        classes = {
            name: [seen for seen in listed if id(seen) not in dropped]
            for name, listed in classes.items()
        }
    return Images(classes, notices)


Folders = tuple[Mapping[str, str], LeftOut]  # path by class name, and the files beside them


def folders_source(find: Callable[[], Folders], parent: str | os.PathLike[str]) -> SplitSource:
    """A split of class folders, which `find` looks for; `parent` is the folder they are in."""
    found = cache(find)

    def images() -> Images:
        folders, beside = found()
        classes, left_out = {}, {shown(os.path.basename(parent)): beside}
        for name, path in folders.items():
            place = f"{shown(os.path.basename(parent))}/{name}"
            classes[name], left_out[place] = class_images(path, parent)
        return Images(classes, left_out_notice(left_out))

    return images_source(lambda: sorted(found()[0]), images)


def in_folders(folders: Mapping[str, str], parent: str | os.PathLike[str]) -> SplitSource:
    """A split of the class `folders` (path by name) in `parent`."""
    return folders_source(lambda: (folders, Counter()), parent)


def split_named(name: str) -> str | None:
    """The split that a folder or a cell calls by its name or a usual variant; None if none."""
    word = name.strip().lower()
    return next((split for split, names in SPLIT_NAMES.items() if word in names), None)


def splits_among(folders: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The folders (path by name) that are called as splits are: path by split, and notices.

    Raises UserError where two are the same split.
    """
    by_split: dict[str, str] = {}
    notices = []
    for name, path in folders.items():
        split = split_named(name)
        if split is None:
            continue
        if split in by_split:
            raise UserError(
                f"The folders {shown(by_split[split])} and {name} are both a {split} split: rename "
                "one, or move it away."
            )
        by_split[split] = path
        if name != split:
            notices.append(f"the folder {name} is taken as the {split} split.")
    return {split: by_split[split] for split in SPLITS if split in by_split}, notices


def folder_layout(base: Path, official: Official | None = None) -> Found | None:
    """The layout `{train,val,test}/<class>/*` in `base`; None when it is another."""
    if not base.is_dir():
        return None
    splits, notices = splits_among(scan(base).folders)
    if not splits:
        return None
    sources = {split: split_folder(path) for split, path in splits.items()}
    return Found("folders", base, sources, official, notices=notices)


def split_folder(folder: str) -> SplitSource:
    """A split of the class folders in `folder`."""
    return folders_source(lambda: class_folders(folder), folder)


def without_labels(folder: str | os.PathLike[str]) -> SplitSource | None:
    """A split of images that lie directly in `folder`, as one nameless class; None if it is other.

    It is other with class folders in it, or without images.
    """
    images, folders = has(folder)
    if folders or not images:
        return None
    name = shown(os.path.basename(os.path.realpath(folder)))

    def find() -> Images:
        seen, left_out = class_images(os.fspath(folder), folder)
        notice = (
            f"{name} has {len(seen)} images and no class folders: they have no labels and serve "
            "for pretraining only."
        )
        return Images({NAMELESS: seen}, [notice, *left_out_notice({name: left_out})])

    return images_source(lambda: (NAMELESS,), find)


def split_classes(
    names: Iterable[str], fractions: Sequence[float] | None, seed: int
) -> dict[str, list[str]]:
    """Deal class `names` into train, val and test by `fractions`, reproducibly from `seed`.

    The order is by a hash of seed and name, so it depends on no library's generator, nor on the
    Unicode form in which a system writes the name. Every fraction above 0 gets at least one class;
    a split of fraction 0 is left out. Raises UserError when the fractions are not three that sum to
    1, when there are too few classes, and for names that are hardly two classes, because they could
    end in two splits.
    """
    fractions = filled(fractions, "dataset.split_fractions")
    if len(fractions) != len(SPLITS) or abs(sum(fractions) - 1) > 1e-3 or min(fractions) < 0:
        raise UserError(
            f"dataset.split_fractions={list(fractions)} must be three numbers from 0 to 1 for "
            "train, val and test that sum to 1, such as [0.64,0.16,0.2]."
        )
    if pairs := alike(sorted(set(names := list(names)))):
        raise UserError(
            f"The classes {both(*pairs[0])} look like one, and could be dealt into two splits: "
            "rename or join them."
        )
    ordered = sorted(set(names), key=lambda name: _draw(seed, name))
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


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{unicodedata.normalize('NFC', name)}".encode()).digest()
