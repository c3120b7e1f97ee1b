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
from sseg_nase.data.benchmarks.layouts import NAMELESS, Found, enumerated, fingerprint
from sseg_nase.data.duplicates import shared_images
from sseg_nase.data.opening import PLAIN, Reading
from sseg_nase.data.store import ImageStore, Listing, build_store, outdated
from sseg_nase.errors import UserError, did_you_mean
from sseg_nase.files import read_json

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
EMBEDDED: Mapping[str, tuple[Sequence[str], Callable[[str, int, int], ImageStore]]] = {
    "digits": (tuple(digits.CLASSES), digits.load),
}


def load_split(
    dataset: DatasetConfig, split: str, *, data_dir: Path, cache_dir: Path, workers: int
) -> ImageStore:
    """The images of one split at `dataset.image_size`, from the cache or read into it.

    With `dataset.channels=1` they are grey. The store is kept in `cache_dir`, keyed by where the
    data set is, its layout, split, size, channels and split options, and by a fingerprint of its
    files: a changed source is read again. `workers` threads decode (0: this one). CIFAR-100 is
    downloaded when `dataset=cifar_fs` finds nothing. Raises UserError for whatever is wrong with
    the data: missing, a missing split, an empty class folder, an image that cannot be read, splits
    that share classes.
    """
    if split not in SPLITS:
        raise UserError(
            f"split={split} is not one of {', '.join(SPLITS)}.{did_you_mean(split, SPLITS)}"
        )
    if dataset.name in EMBEDDED:
        return EMBEDDED[dataset.name][1](split, dataset.image_size, dataset.channels)
    found = _find(dataset, data_dir, cache_dir)
    if split not in found.splits:
        raise UserError(
            f"dataset={dataset.name} has no {split} split in {found.path.absolute()} (layout "
            f"{found.layout}), only {' and '.join(found.splits)}. Add it, or choose another split "
            "(evaluation.split)."
        )
    stem = _stem(dataset, found, split)
    target = _target(dataset, found, split, cache_dir)
    if target.exists() and not outdated(target):
        store = ImageStore.open(target)
    else:
        store = _build(dataset, found, split, target, workers)
        # The stores of what the source was before.
        for old in target.parent.glob(f"{stem}-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)
        _remove_outdated(store, target.parent)
    notices = [*store.manifest["notices"], *_overlaps(dataset, found, split, store, cache_dir)]
    for notice in notices:
        logger.warning("dataset=%s: %s", dataset.name, notice)
    return store


def reading_of(dataset: DatasetConfig) -> Reading:
    """How the images of a data set are opened; what older runs do not name is as by default."""
    if dataset.background is None:
        return PLAIN
    red, green, blue = dataset.background
    values = dataset.value_range
    return Reading((red, green, blue), None if values is None else (values[0], values[1]))


def available_splits(dataset: DatasetConfig, *, data_dir: Path, cache_dir: Path) -> tuple[str, ...]:
    """The splits that `load_split` can give, found without reading an image.

    Raises UserError when the data set is missing; CIFAR-100 is downloaded as in `load_split`.
    """
    if dataset.name in EMBEDDED:
        return tuple(EMBEDDED[dataset.name][0])
    return tuple(_find(dataset, data_dir, cache_dir).splits)


def _stem(dataset: DatasetConfig, found: Found, split: str) -> str:
    """The name of a store but for the fingerprint of its files."""
    key = {
        "layout": found.layout,
        "source": str(found.path.resolve()),
        "options": found.options,
        "reading": dataclasses.asdict(reading_of(dataset)),
        "duplicates": dataset.duplicates,
    }
    form = f"{dataset.image_size}{'-grey' if dataset.channels == 1 else ''}"
    return f"{dataset.name}-{split}-{form}-{_hash(key)}"


def _target(dataset: DatasetConfig, found: Found, split: str, cache_dir: Path) -> Path:
    name = f"{_stem(dataset, found, split)}-{fingerprint(found.splits[split].files)}"
    return cache_dir / "stores" / name


def _remove_outdated(store: ImageStore, folder: Path) -> None:
    """Remove the stores that an earlier version has built of the same split, at any size."""
    own = [store.manifest[key] for key in ("dataset", "source", "split")]
    for old in folder.glob(f"{own[0]}-{own[2]}-*"):
        manifest = read_json(old / "manifest.json") or {}
        if outdated(old) and [manifest.get(key) for key in ("dataset", "source", "split")] == own:
            shutil.rmtree(old, ignore_errors=True)


def _overlaps(
    dataset: DatasetConfig, found: Found, split: str, store: ImageStore, cache_dir: Path
) -> list[str]:
    """Compare the images of `store` with those of the other splits that have been read.

    Raises UserError where some are in both, unless `dataset.overlap=keep`, or where values of more
    than 8 bits were taken for other ranges. A split that was not read yet is compared when it is.
    """
    notices = []
    for other in found.splits:
        if other == split:
            continue
        for place in (cache_dir / "stores").glob(f"{_stem(dataset, found, other)}-*"):
            try:
                sibling = ImageStore.open(place)
                count, examples = shared_images(store, sibling)
            except UserError:
                continue  # it is damaged, which is said when it is wanted
            ranges, others = (one.manifest["value_ranges"] for one in (store, sibling))
            unlike = [kind for kind in ranges if ranges[kind] != others.get(kind, ranges[kind])]
            if unlike and place == _target(dataset, found, other, cache_dir):
                (low, high), (low_there, high_there) = ranges[unlike[0]], others[unlike[0]]
                raise UserError(
                    f"The images of mode {unlike[0]} have values like {low:g}…{high:g} in {split} "
                    f"and like {low_there:g}…{high_there:g} in {other}. Set "
                    "dataset.value_range=[LOW,HIGH], which is black and white in both."
                )
            if not count:
                continue
            pairs = ", ".join(f"{here} ({split}) = {there} ({other})" for here, there in examples)
            said = f"images of {split} that are also in {other}: {count:,}, such as {pairs}"
            if _complete(found, split, store) and _complete(found, other, sibling):
                assert found.official is not None
                notices.append(f"{said}. They are kept, as {found.official.title} was published.")
            elif place != _target(dataset, found, other, cache_dir):
                continue  # files have changed since, perhaps because of this very message
            elif dataset.overlap == "refuse":
                raise UserError(
                    f"dataset={dataset.name} in {found.path.absolute()}: {said}. An accuracy on "
                    "images that were trained on is too high: remove them from one of the splits, "
                    "or set dataset.overlap=keep where this is on purpose."
                )
            else:
                notices.append(f"{said} (dataset.overlap=keep).")
    return notices


def _complete(found: Found, split: str, store: ImageStore) -> bool:
    """Whether a split has as many classes and images as the benchmark that it is of."""
    official = found.official
    return official is not None and not official.notices(split, store.class_names, store.counts())


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
        listing = found.splits[split].read()
        _check_disjoint(dataset, found, split, listing)
        if found.official is None:
            return replace(listing, notes={"sample": False, "notices": [], **listing.notes})
        labels = [label for _, label in listing.items]
        counts = np.bincount(labels, minlength=len(listing.class_names))
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
        reading=reading_of(dataset),
        duplicates=dataset.duplicates or "keep",
        source=str(found.path.resolve()),
        layout=found.layout,
        split=split,
        dataset=dataset.name,
    )


def _check_disjoint(dataset: DatasetConfig, found: Found, split: str, listing: Listing) -> None:
    """Raise UserError naming the classes that `split` shares with another split."""
    own = listing.class_names
    if own == (NAMELESS,):
        return
    for other, source in found.splits.items():
        if other == split:
            continue
        names = source.classes()
        if not found.named and _counts_from_zero(own) and _counts_from_zero(names):
            continue
        if common := sorted(set(own) & set(names)):
            raise UserError(
                f"The splits {split} and {other} of dataset={dataset.name} in "
                f"{found.path.absolute()} share {len(common)} classes: {enumerated(common)}. "
                "Few-shot learning needs splits without common classes: remove them from one."
            )


def _counts_from_zero(names: Sequence[str]) -> bool:
    return set(names) == {str(number) for number in range(len(names))}


def _hash(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
