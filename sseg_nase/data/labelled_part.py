"""The part of the labelled images that a classifier may learn from.

It is a function of the seed, the names of the classes and their numbers of images: the same for
every method and network. Of two parts with one seed the smaller is within the larger.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sseg_nase.data.random import derive
from sseg_nase.errors import UserError


def part_of(
    class_indices: Sequence[np.ndarray],
    class_names: Sequence[str],
    *,
    fraction: float,
    samples: int,
    seed: int,
) -> np.ndarray:
    """The images that are learned from, int64, ascending.

    Of every class `fraction` of its images (rounded, one at least), or, where `samples` is above 0,
    as many in all, evenly over the classes; the first of a random order get one more where that
    does not come out even. Raises UserError where that many are not there.
    """
    orders = [
        np.random.default_rng(derive(seed, "labels", name)).permutation(indices)
        for name, indices in zip(class_names, class_indices, strict=True)
    ]
    counts = [max(1, round(fraction * len(order))) for order in orders]
    if samples:
        counts = _evenly(samples, class_indices, class_names, seed)
    chosen = [order[:count] for order, count in zip(orders, counts, strict=True)]
    return np.sort(np.concatenate(chosen))


def _evenly(
    samples: int, class_indices: Sequence[np.ndarray], class_names: Sequence[str], seed: int
) -> list[int]:
    classes = len(class_names)
    if samples < classes:
        raise UserError(
            f"finetune.samples={samples}: there are {classes} classes, and one image of each is "
            f"needed; take {classes} or more."
        )
    each, more = divmod(samples, classes)
    first = np.random.default_rng(derive(seed, "classes")).permutation(classes)[:more]
    counts = [each + int(number in first) for number in range(classes)]
    for count, indices, name in zip(counts, class_indices, class_names, strict=True):
        if count > len(indices):
            smallest = min(len(indices) for indices in class_indices)
            raise UserError(
                f"finetune.samples={samples}: {count} images of every class are needed, and "
                f"'{name}' has {len(indices)}; take {smallest * classes} or less."
            )
    return counts
