"""Readers of every data set and layout; all give one `ImageStore`.

A reader says where a data set is, which layout it has and which splits exist (`Found`); the
images are read and stored here, once for all readers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sseg_nase.config.schema import SPLITS, DatasetConfig
from sseg_nase.data.benchmarks import (
    cifar_fs,
    csv_file,
    digits,
    folder,
    minimagenet,
    omniglot,
    sketch,
)
from sseg_nase.data.benchmarks.layouts import NAMELESS, Found, SplitSource, enumerated
from sseg_nase.data.benchmarks.lists import both, folded
from sseg_nase.data.benchmarks.walk import Seen, looking, same_files, shown
from sseg_nase.data.store import ImageStore, Listing, build_store
from sseg_nase.errors import UserError, did_you_mean

__all__ = ["available_splits", "load_split"]

logger = logging.getLogger("sseg_nase")

Reader = Callable[[DatasetConfig, Path, Path], Found]

READERS: Mapping[str, Reader] = {
    "cifar_fs": cifar_fs.find,
    "minimagenet": minimagenet.find,
    "omniglot": omniglot.find,
    "folder": folder.find,
    "sketch": sketch.find,
    "csv": csv_file.find,
}
# Fields of DatasetConfig of which all that matters is known by the files, the layout and `options`.
NOT_IN_KEY = ("root", "split_by", "split_fractions", "split_seed")
EMBEDDED: Mapping[str, tuple[Sequence[str], Callable[[str, int, int], ImageStore]]] = {
    "digits": (tuple(digits.CLASSES), digits.load),
}


def load_split(
    dataset: DatasetConfig, split: str, *, data_dir: Path, cache_dir: Path, workers: int
) -> ImageStore:
    """The images of one split at `dataset.image_size`, from the cache or read into it.

    With `dataset.channels=1` they are grey. The store is kept in `cache_dir`, named by where the
    data set is, its layout, split and settings, and by a key of every file in it: what was moved,
    renamed, relabelled or replaced is read again. `workers` threads decode (0: this one). CIFAR-100
    is downloaded when `dataset=cifar_fs` finds nothing. Notices say what was not taken. Raises
    UserError for whatever is wrong with the data: missing, a missing split, an empty class folder,
    an image that cannot be read or has two labels, splits that share classes or images.
    """
    if split not in SPLITS:
        raise UserError(
            f"split={split} is not one of {', '.join(SPLITS)}.{did_you_mean(split, SPLITS)}"
        )
    if dataset.name in EMBEDDED:
        return EMBEDDED[dataset.name][1](split, dataset.image_size, dataset.channels)
    with looking(dataset.root or data_dir):
        found = _find(dataset, data_dir, cache_dir)
        if split not in found.splits:
            raise UserError(
                f"dataset={dataset.name} has no {split} split in {shown(found.path.absolute())} "
                f"(layout {found.layout}), only {' and '.join(found.splits)}. Add it, or choose "
                "another split (evaluation.split) or data set (evaluation.datasets)."
            )
        target = _target(dataset, found, split, cache_dir)
        notices = found.splits[split].notices()
    if target.exists():
        store = ImageStore.open(target)
    else:
        store = _build(dataset, found, split, target, workers)
        # The stores of what the source was before.
        for old in target.parent.glob(f"{_stem(dataset, found, split)}-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)
    _say_once(dataset, found)
    for notice in (*notices, *store.manifest["notices"]):
        logger.warning("dataset=%s: %s", dataset.name, notice)
    return store


def available_splits(dataset: DatasetConfig, *, data_dir: Path, cache_dir: Path) -> tuple[str, ...]:
    """The splits that `load_split` can give, found without reading an image.

    Raises UserError when the data set is missing; CIFAR-100 is downloaded as in `load_split`.
    """
    if dataset.name in EMBEDDED:
        return tuple(EMBEDDED[dataset.name][0])
    with looking(dataset.root or data_dir):
        return tuple(_find(dataset, data_dir, cache_dir).splits)


def _counts(listing: Listing) -> dict[str, int]:
    labels = [label for _, label in listing.items]
    counts = np.bincount(labels, minlength=len(listing.class_names)).tolist()
    return dict(zip(listing.class_names, counts, strict=True))


_said: set[tuple[str, str]] = set()


def _say_once(dataset: DatasetConfig, found: Found) -> None:
    """Say what holds for all splits of a data set, once in this process."""
    for notice in found.notices:
        if (place := (str(found.path.absolute()), notice)) not in _said:
            _said.add(place)
            logger.warning("dataset=%s: %s", dataset.name, notice)


def _stem(dataset: DatasetConfig, found: Found, split: str) -> str:
    """The name of a store but for the key of its files: all else that decides on its images."""
    values = {
        key: value for key, value in dataclasses.asdict(dataset).items() if key not in NOT_IN_KEY
    }
    source = {"layout": found.layout, "source": shown(found.path.resolve())}
    form = f"{dataset.image_size}{'-grey' if dataset.channels == 1 else ''}"
    name = _hash({**values, **source, "options": found.options})
    return f"{dataset.name}-{split}-{form}-{name}"


def _target(dataset: DatasetConfig, found: Found, split: str, cache_dir: Path) -> Path:
    name = f"{_stem(dataset, found, split)}-{_key(found.splits[split])}"
    return cache_dir / "stores" / name


def _key(source: SplitSource) -> str:
    """A hash of every file, its name and class: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for line in source.stamp():
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def _find(dataset: DatasetConfig, data_dir: Path, cache_dir: Path) -> Found:
    if dataset.name not in READERS:
        known = sorted([*READERS, *EMBEDDED])
        raise UserError(
            f"dataset.name={dataset.name} is not one of {', '.join(known)}."
            f"{did_you_mean(dataset.name, known)}"
        )
    return READERS[dataset.name](dataset, Path(data_dir).expanduser(), Path(cache_dir))


def _build(
    dataset: DatasetConfig, found: Found, split: str, target: Path, workers: int
) -> ImageStore:
    def read() -> Listing:
        with looking(found.path):
            listing = found.splits[split].read()
            _check_disjoint(dataset, found, split, listing)
        if found.official is None:
            return replace(listing, notes={"sample": False, "notices": [], **listing.notes})
        counts = np.array(list(_counts(listing).values()))
        notes = {
            "sample": len(listing.class_names) < found.official.classes[split],
            "notices": found.official.notices(split, listing.class_names, counts),
        }
        return replace(listing, notes=notes)

    return build_store(
        target,
        read,
        dataset.image_size,
        workers=workers,
        channels=dataset.channels,
        source=shown(found.path.resolve()),
        layout=found.layout,
        split=split,
        dataset=dataset.name,
    )


def _check_disjoint(dataset: DatasetConfig, found: Found, split: str, listing: Listing) -> None:
    """Raise UserError naming the classes or files that `split` shares with another split.

    Names that differ in case, spaces or Unicode form only are common.
    """
    own, files = listing.class_names, found.splits[split].files()
    for other, source in found.splits.items():
        if other == split:
            continue
        where = f"of dataset={dataset.name} in {shown(found.path.absolute())}"
        if own != (NAMELESS,) and (common := _common(own, source.classes(), found.named)):
            raise UserError(
                f"The splits {split} and {other} {where} share {len(common)} classes: "
                f"{enumerated(common)}. Few-shot learning needs splits without common classes: "
                "remove them from one."
            )
        for one, again in same_files([*files, *_files(source)]):
            raise UserError(
                f"The splits {split} and {other} {where} share an image: {one} and {again} are "
                "the same file. Remove it from one."
            )


def _files(source: SplitSource) -> Sequence[Seen]:
    try:
        return source.files()
    except UserError:
        return []  # a split that cannot be read is compared when it can


def _common(own: Sequence[str], others: Sequence[str], named: bool) -> list[str]:
    if not named and _counts_from_zero(own) and _counts_from_zero(others):
        return []
    there = {folded(name): name for name in others}
    pairs = [(name, there[folded(name)]) for name in sorted(own) if folded(name) in there]
    return [name if name == other else both(name, other) for name, other in pairs]


def _counts_from_zero(names: Sequence[str]) -> bool:
    return set(names) == {str(number) for number in range(len(names))}


def _hash(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
