"""Images with equal pixels: within a split and across splits.

Two images are equal when the store has the same pixels for them, so a copy in another format or
place counts, too. An image twice in a class can be in the support and among the queries of one
episode; an image in two splits is seen in training and counted in the evaluation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from sseg_nase.errors import UserError

ONE_COLOUR = np.uint64(0)  # instead of the hash of an image that has nothing to compare
EXAMPLES = 3

NameOf = Callable[[int], str]


class Hashed(Protocol):
    """What is compared of an ImageStore."""

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""

    @property
    def channels(self) -> int:
        """Of its images."""

    @property
    def hashes(self) -> np.ndarray:
        """Of every image, as `hashes_of` gives them, uint64 `[n]`."""

    @property
    def images(self) -> np.ndarray:
        """The pixels, uint8 `[n, H, W, C]`."""

    def name_of(self, index: int) -> str:
        """The file of an image."""


@dataclass(frozen=True)
class Verdict:
    """Which images are kept (bool `[n]`), and what is to be said about the others."""

    kept: np.ndarray
    notices: list[str] = field(default_factory=list)
    copies: int = 0  # in a class, beyond the first of each image
    two_labels: int = 0  # images of which several classes have a copy


def hashes_of(block: np.ndarray) -> np.ndarray:
    """A hash per image of a block `[n, H, W, C]`, uint64 `[n]`; equal for equal pixels."""
    digests = b"".join(hashlib.blake2b(image, digest_size=8).digest() for image in block)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def of_one_colour(block: np.ndarray) -> np.ndarray:
    """Which images of a block uint8 `[n, H, W, C]` have the same value everywhere; bool `[n]`."""
    corners = block[:, :1, :1]
    found: np.ndarray = (corners == block[:, -1:, -1:]).all(axis=(1, 2, 3))
    for index in np.flatnonzero(found):
        found[index] = (block[index] == corners[index]).all()
    return found


def examine(
    hashes: np.ndarray, labels: np.ndarray, classes: Sequence[str], policy: str, name_of: NameOf
) -> Verdict:
    """Find equal images of a split by their hashes, and decide which stay.

    `policy` is `dataset.duplicates`: drop keeps the first copy in a class, and none of an image
    that is in several classes, since one of its labels is wrong (unless a class would have no image
    left); keep leaves everything; refuse raises UserError. `name_of` gives the file of an image,
    for examples.
    """
    kept = np.ones(len(hashes), dtype=bool)
    order = np.lexsort((labels, hashes))  # stable: copies stay in the order of the listing
    same = hashes[order][1:] == hashes[order][:-1]
    if not same.any():
        return Verdict(kept)
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    groups = [group for group in np.split(order, starts[1:]) if len(group) > 1]
    mixed = [group for group in groups if len(np.unique(labels[group])) > 1]
    later = [_later(group, labels) for group in groups]
    copies = np.concatenate(later)
    notices = []
    if len(copies):
        first = next(group for group, more in zip(groups, later, strict=True) if len(more))
        twin = _later(first, labels)[0]
        original = next(index for index in first if labels[index] == labels[twin])
        copy, of = name_of(twin), name_of(original)
        example = f"{copy} of {of}" if copy != of else f"{copy}, which is listed twice"
        said = (
            f"copies of other images in their class: {len(copies):,} of {len(hashes):,} images, "
            f"such as {example}"
        )
        if policy == "refuse":
            raise UserError(
                f"{said}. dataset.duplicates=refuse: remove the copies, or choose "
                "dataset.duplicates=drop (one of each is kept) or keep."
            )
        if policy == "drop":
            kept[copies] = False
            notices.append(f"{said}. One of each is kept (dataset.duplicates=drop).")
        else:
            notices.append(
                f"{said}. All are kept (dataset.duplicates=keep): an episode can have the same "
                "image in its support and among its queries."
            )
    if mixed:
        count = sum(len(group) for group in mixed)
        examples = " and ".join(
            f"{name_of(index)} ({classes[labels[index]]})"
            for index in _one_a_class(mixed[0], labels)
        )
        said = (
            f"equal pixels under different labels: {len(mixed):,} images are in several classes, "
            f"such as {examples}"
        )
        if policy == "refuse":
            raise UserError(
                f"{said}. dataset.duplicates=refuse: remove the wrong ones, or choose "
                "dataset.duplicates=drop (none of them is used) or keep."
            )
        without = kept.copy()
        without[np.concatenate(mixed)] = False
        emptied = np.setdiff1d(labels, labels[without])
        if policy == "drop" and len(emptied):
            notices.append(
                f"{said}. They are kept, since {classes[emptied[0]]} would have no image left: an "
                "episode that asks for two of these classes cannot be solved."
            )
        elif policy == "drop":
            kept = without
            notices.append(
                f"{said}. All {count:,} copies are left out (dataset.duplicates=drop): remove the "
                "wrong ones, and the right ones are used."
            )
        else:
            notices.append(f"{said}. All {count:,} are kept (dataset.duplicates=keep).")
    return Verdict(kept, notices, len(copies), len(mixed))


def shared_images(one: Hashed, other: Hashed) -> tuple[int, list[tuple[str, str]]]:
    """How many images two stores have in common, and the files of a few, (of one, of other).

    Images of one colour do not count: a blank page here and there says nothing. Stores of other
    sizes or channels cannot be compared; they have nothing in common.
    """
    if (one.image_size, one.channels) != (other.image_size, other.channels):
        return 0, []
    common, here, there = np.intersect1d(one.hashes, other.hashes, return_indices=True)
    found = [
        (i, k)
        for hashed, i, k in zip(common, here, there, strict=True)
        if hashed != ONE_COLOUR and np.array_equal(one.images[i], other.images[k])
    ]
    return len(found), [(one.name_of(i), other.name_of(k)) for i, k in found[:EXAMPLES]]


def _later(group: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of equal images, sorted by label, those that are not the first of their class."""
    of_group = labels[group]
    return group[1:][of_group[1:] == of_group[:-1]]


def _one_a_class(group: np.ndarray, labels: np.ndarray) -> np.ndarray:
    _, firsts = np.unique(labels[group], return_index=True)
    return group[firsts][:EXAMPLES]
