"""How the classes of own images are dealt into train, val and test, where nothing says how."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sseg_nase.config.groups.dataset import SPLITS, OnDisk
from sseg_nase.data.benchmarks.layouts import Found, SplitSource
from sseg_nase.data.store import Listing
from sseg_nase.errors import UserError

BY_IMAGES = "images of every class"  # the layout where the classes are too few to hold any out
CLOSED = " (closed)"  # behind the layout of images whose splits have the same classes
USUAL = (0.64, 0.16, 0.2)
MOST_WAYS = 5  # classes that an evaluation usually takes


def class_counts(classes: int) -> tuple[int, int, int]:
    """How many of `classes` (3 or more) go into train, val and test.

    The usual shares where these leave five classes to val and to test. With fewer, up to a quarter
    each, two at least; fewer than six classes have no test split.
    """
    usual = [round(share * classes) for share in USUAL]
    held = MOST_WAYS if classes >= 4 * MOST_WAYS else max(2, classes // 4)
    if usual[1] >= held and usual[2] >= held:
        return classes - usual[1] - usual[2], usual[1], usual[2]
    test = held if classes >= 6 else 0
    return classes - held - test, held, test


def fitted(find: Callable[[OnDisk], Found], dataset: OnDisk) -> Found:
    """What `find` finds, dealt as fits the number of classes.

    A data set whose splits are on disk is returned as it is. Two classes are too few to hold one
    out: train and val then have other images of the same ones.
    """
    whole = find(replace(dataset, split_fractions=[1.0, 0.0, 0.0]))
    if not is_dealt(whole):
        return whole
    source = whole.splits["train"]
    classes = len(source.classes())
    if classes > 2:
        shares = [count / classes for count in class_counts(classes)]
        return find(replace(dataset, split_fractions=shares))
    if classes < 2:
        return whole
    seed = dataset.split_seed
    halves = {name: _half(source, whole.path, seed, name == "train") for name in ("train", "val")}
    return replace(whole, layout=BY_IMAGES, splits=halves, options={"split_seed": seed})


def closed(found: Found, dataset: OnDisk) -> Found:
    """`found` as a closed set: from train comes what it has no split for, image by image.

    The shares are `dataset.split_fractions`, by default the usual ones; test is made of train only
    where train is all there is. Raises `UserError` for one class.
    """
    splits, seed = dict(found.splits), dataset.split_seed
    if "train" not in splits:
        raise UserError(
            f"dataset.root={dataset.root} has {' and '.join(splits)}, and no train to learn from."
        )
    if len(names := splits["train"].classes()) < 2:
        raise UserError(
            f"dataset.root={dataset.root}: all images are of one class, {', '.join(names)}: there "
            "is nothing to tell apart. Add a folder (or label) for another class."
        )
    _, val, test = fractions = dataset.split_fractions or USUAL
    options: dict[str, Any] = {"image_fractions": list(fractions), "split_seed": seed}
    if len(splits) == 1 and test:
        source, rest = splits["train"], 1 - test
        splits["test"] = held_out(source, test, seed, held=True)
        splits["train"], val = held_out(source, test, seed, held=False), val / rest
    if "val" not in splits and val:
        source = splits["train"]
        splits["val"] = held_out(source, val, seed, held=True)
        splits["train"] = held_out(source, val, seed, held=False)
    return replace(
        found,
        layout=f"{found.layout}{CLOSED}",
        splits=splits,
        options={**found.options, **options},
        closed=True,
    )


def is_dealt(found: Found) -> bool:
    """Whether the splits are not on disk but made by the program."""
    return found.layout == BY_IMAGES or "split_fractions" in found.options


def said(found: Found) -> str:
    """Say in one sentence which split got how much."""
    if found.layout == BY_IMAGES:
        return (
            "the 2 classes are too few to hold one out: train and val have other images of the "
            "same classes, half of them each, so accuracies are not those of unseen classes"
        )
    counts = {name: len(found.splits[name].classes()) for name in SPLITS if name in found.splits}
    dealt = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{sum(counts.values())} classes are dealt: {dealt}"


def _half(source: SplitSource, root: Path, seed: int, second: bool) -> SplitSource:
    """Every other image of each class, in the order of a hash of `seed` and the names of files."""
    base = root if root.is_dir() else root.parent

    def rank(item: tuple[Any, int]) -> bytes:
        name = os.path.relpath(str(item[0]), base)
        return hashlib.sha256(os.fsencode(f"{seed}/{name}")).digest()

    def read() -> Listing:
        listing = source.read()
        by_class: dict[int, list[tuple[Any, int]]] = defaultdict(list)
        for item in listing.items:
            by_class[item[1]].append(item)
        chosen = {
            id(item)
            for items in by_class.values()
            for item in sorted(items, key=rank)[int(second) :: 2]
        }
        return replace(listing, items=[item for item in listing.items if id(item) in chosen])

    return replace(source, read=read)


def held_out(source: SplitSource, share: float, seed: int, *, held: bool) -> SplitSource:
    """The images of every class of `source` that are `held` out, a `share` of them; or the rest.

    They are sampled by `seed` and their positions in the class.

    One image at least of every class is in either part. Raises UserError for a class with one.
    """

    def read() -> Listing:
        listing = source.read()
        by_class: dict[int, list[int]] = defaultdict(list)
        for position, (_, label) in enumerate(listing.items):
            by_class[label].append(position)
        chosen: set[int] = set()
        for label, positions in by_class.items():
            name = listing.class_names[label]
            if len(positions) < 2:
                raise UserError(
                    f"The class {name} has one image to train on, and one more is needed to be "
                    "held out: add some, or remove the class."
                )
            ranks = [
                hashlib.sha256(f"{seed}/{name}/{place}".encode()).digest()
                for place in range(len(positions))
            ]
            order = [
                positions[place] for place in sorted(range(len(positions)), key=ranks.__getitem__)
            ]
            count = min(max(1, round(share * len(order))), len(order) - 1)
            chosen.update(order[:count] if held else order[count:])
        items = [item for position, item in enumerate(listing.items) if position in chosen]
        return replace(listing, items=items)

    return replace(source, read=read)
