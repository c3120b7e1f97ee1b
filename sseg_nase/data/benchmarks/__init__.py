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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sseg_nase.config.groups.dataset import (
    SPLITS,
    UNLABELED,
    DatasetConfig,
    Folder,
    InMemory,
    Listed,
    OnDisk,
    is_closed,
    one_size,
)
from sseg_nase.config.options import imported, null_before
from sseg_nase.data.benchmarks import dealing
from sseg_nase.data.benchmarks.layouts import NAMELESS, Found, SplitSource, enumerated
from sseg_nase.data.benchmarks.lists import both, folded
from sseg_nase.data.benchmarks.walk import Seen, looking, same_files
from sseg_nase.data.duplicates import shared_images
from sseg_nase.data.opening import PLAIN, Reading
from sseg_nase.data.remarks import ONE_SIZE
from sseg_nase.data.store import ImageStore, Listing, build_store, outdated
from sseg_nase.errors import UserError, did_you_mean, shown
from sseg_nase.files import make_own, read_json

__all__ = ["Preview", "available_splits", "how_dealt", "load_split", "preview"]

logger = logging.getLogger("sseg_nase")

# Fields of DatasetConfig of which all that matters is known by the files, the layout and `options`.
NOT_IN_KEY = (
    *("root", "split_by", "split_fractions", "split_seed", "overlap"),
    *("path_column", "label_column", "sizes", "unlabeled"),
)


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
    if split not in (*SPLITS, UNLABELED):
        raise UserError(
            f"split={split} is not one of {', '.join(SPLITS)}.{did_you_mean(split, SPLITS)}"
        )
    if isinstance(dataset, InMemory):
        held: ImageStore = imported(dataset.reader)(dataset, split)
        return held
    dataset = _on_disk(dataset)
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
    if target.exists() and not outdated(target):
        store = ImageStore.open(target)
    else:
        make_own(cache_dir)
        store = _build(dataset, found, split, target, workers)
        # The stores of what the source was before.
        for old in target.parent.glob(f"{_stem(dataset, found, split)}-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)
        _remove_outdated(store, target.parent)
    _say_once(dataset, found.path, found.notices)
    notices = [*notices, *store.manifest["notices"]]
    # The store is another one when a file has changed.
    _say_once(dataset, target, [*notices, *_overlaps(dataset, found, split, store, cache_dir)])
    return store


def reading_of(dataset: OnDisk) -> Reading:
    """How the images of a data set are opened; what older runs do not name is as by default."""
    if dataset.background is None:
        return PLAIN
    red, green, blue = dataset.background
    values = None if dataset.value_range is None else tuple(dataset.value_range)
    return Reading((red, green, blue), values, one_size(dataset))  # type: ignore[arg-type]


def available_splits(dataset: DatasetConfig, *, data_dir: Path, cache_dir: Path) -> tuple[str, ...]:
    """The splits that `load_split` can give, found without reading an image.

    Raises UserError when the data set is missing; CIFAR-100 is downloaded as in `load_split`.
    """
    if isinstance(dataset, InMemory):
        return dataset.splits
    dataset = _on_disk(dataset)
    with looking(dataset.root or data_dir):
        return tuple(_find(dataset, data_dir, cache_dir).splits)


@dataclass(frozen=True)
class Preview:
    """A data set before an image of it is read: images per class and split, and sentences on it."""

    layout: str
    path: Path
    splits: Mapping[str, Mapping[str, int]]
    notices: Sequence[str]


def preview(dataset: OnDisk, *, data_dir: Path, cache_dir: Path) -> Preview:
    """Return which images `load_split` would read. Raises UserError as it does, but for images."""
    with looking(dataset.root or data_dir):
        found = _find(dataset, data_dir, cache_dir)
        splits, notices = dict[str, Mapping[str, int]](), list(found.notices)
        for split, source in found.splits.items():
            listing = source.read()
            _check_disjoint(dataset, found, split, listing)
            splits[split] = _counts(listing)
            notices += source.notices()
    return Preview(found.layout, found.path, splits, list(dict.fromkeys(notices)))


def _counts(listing: Listing) -> dict[str, int]:
    labels = [label for _, label in listing.items]
    counts = np.bincount(labels, minlength=len(listing.class_names)).tolist()
    return dict(zip(listing.class_names, counts, strict=True))


_said: set[tuple[str, str]] = set()


def _say_once(dataset: DatasetConfig, place: Path, notices: Iterable[str]) -> None:
    """Log each notice about a data set once per process, however many stages open it."""
    for notice in notices:
        if (said := (str(place.absolute()), notice)) not in _said:
            _said.add(said)
            logger.warning("dataset=%s: %s", dataset.name, notice)


def _stem(dataset: OnDisk, found: Found, split: str) -> str:
    """The name of a store but for the key of its files: all else that decides on its images."""
    once = dict.fromkeys(null_before(DatasetConfig))  # of other data sets, as stores were named
    given = {**once, **dataclasses.asdict(dataset)}
    values = {key: value for key, value in given.items() if key not in NOT_IN_KEY}
    source = {"layout": found.layout, "source": shown(found.path.resolve())}
    if one_size(dataset):  # what was read without looking at sizes is read again
        source["sizes"] = "one"
    form = f"{dataset.image_size}{'-grey' if dataset.channels == 1 else ''}"
    name = _hash({**values, **source, "options": found.options})
    return f"{dataset.name}-{split}-{form}-{name}"


def _target(dataset: OnDisk, found: Found, split: str, cache_dir: Path) -> Path:
    name = f"{_stem(dataset, found, split)}-{_key(found.splits[split])}"
    return cache_dir / "stores" / name


def _key(source: SplitSource) -> str:
    """A hash of every file, its name and class: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for line in source.stamp():
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def how_dealt(dataset: DatasetConfig, *, data_dir: Path, cache_dir: Path) -> str | None:
    """Say how the classes are dealt into splits as fits their number; None where they are not."""
    if not isinstance(dataset, OnDisk) or dataset.split_fractions is not None:
        return None
    with looking(dataset.root or data_dir):
        found = _find(dataset, data_dir, cache_dir)
    return dealing.said(found) if dealing.is_dealt(found) else None


def _remove_outdated(store: ImageStore, folder: Path) -> None:
    """Remove the stores that an earlier version has built of the same split, at any size."""
    own = [store.manifest[key] for key in ("dataset", "source", "split")]
    for old in folder.glob(f"{own[0]}-{own[2]}-*"):
        manifest = read_json(old / "manifest.json") or {}
        if outdated(old) and [manifest.get(key) for key in ("dataset", "source", "split")] == own:
            shutil.rmtree(old, ignore_errors=True)


def _overlaps(
    dataset: OnDisk, found: Found, split: str, store: ImageStore, cache_dir: Path
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
            sizes = [one.manifest.get("original_size") for one in (store, sibling)]
            if (
                sizes[0] is not None
                and sizes[1] is not None
                and sizes[0] != sizes[1]
                and place == _target(dataset, found, other, cache_dir)
            ):
                (wide, high), (wide_there, high_there) = sizes[0], sizes[1]
                raise UserError(
                    f"The images of {split} have {wide} × {high} pixels and those of {other} "
                    f"{wide_there} × {high_there}. {ONE_SIZE}"
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
                    f"images that were trained on is too high: {_which_to_remove(found)}, or set "
                    "dataset.overlap=keep where this is on purpose."
                )
            else:
                notices.append(f"{said} (dataset.overlap=keep).")
    return notices


def _complete(found: Found, split: str, store: ImageStore) -> bool:
    """Whether a split has as many classes and images as the benchmark that it is of."""
    official = found.official
    return official is not None and not official.notices(split, store.class_names, store.counts())


def _on_disk(dataset: DatasetConfig) -> OnDisk:
    if not isinstance(dataset, OnDisk):
        raise TypeError(f"{type(dataset).__name__}: a data set is InMemory or OnDisk.")
    return dataset


def _find(dataset: OnDisk, data_dir: Path, cache_dir: Path) -> Found:
    read: Callable[[OnDisk, Path, Path], Found] = imported(dataset.reader)

    def find(dataset: OnDisk) -> Found:
        return read(dataset, Path(data_dir).expanduser(), Path(cache_dir))

    if is_closed(dataset) or dataset.split_fractions is not None:
        return find(dataset)
    return dealing.fitted(find, dataset)


def _build(dataset: OnDisk, found: Found, split: str, target: Path, workers: int) -> ImageStore:
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
        reading=reading_of(dataset),
        duplicates=dataset.duplicates or "keep",
        layout=found.layout,
        split=split,
        dataset=dataset.name,
    )


def _check_disjoint(dataset: OnDisk, found: Found, split: str, listing: Listing) -> None:
    """Raise UserError naming the classes or files that `split` shares with another split.

    Names that differ in case, spaces or Unicode form only are common.
    """
    # Other images of the same classes: it is said, or how a closed set is.
    if found.closed or found.layout == dealing.BY_IMAGES:
        return
    own, files = listing.class_names, found.splits[split].files()
    for other, source in found.splits.items():
        if other == split:
            continue
        where = f"of dataset={dataset.name} in {shown(found.path.absolute())}"
        if own != (NAMELESS,) and (common := _common(own, source.classes(), found.named)):
            raise UserError(
                f"The splits {split} and {other} {where} share {len(common)} classes: "
                f"{enumerated(common)}. Few-shot learning needs splits without common classes: "
                f"remove them from one{_or_deal(dataset, found, split)}."
            )
        for one, again in same_files([*files, *_files(source)]):
            raise UserError(
                f"The splits {split} and {other} {where} share an image: {one} and {again} are "
                f"the same file: {_which_to_remove(found)}."
            )


def _which_to_remove(found: Found) -> str:
    """What to do about images in two splits: nobody can look for them in splits that are dealt."""
    if dealing.is_dealt(found):
        return (
            "these splits are not on disk but dealt from all images, so remove one image of each "
            "such pair"
        )
    return "remove them from one of the splits"


def _or_deal(dataset: OnDisk, found: Found, split: str) -> str:
    """What else to do with splits made for classification, which have the same classes."""
    if isinstance(dataset, Listed):
        return ", or delete the column split, so that whole classes are dealt into splits"
    if isinstance(dataset, Folder) and found.layout == "folders":
        return (
            ", or let the classes of one folder be dealt into splits (dataset.split_by=classes, "
            "dataset.root the folder of train)"
        )
    return ""


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
