"""The images of a one-shot search: two halves of train, and batches of each.

Every batch is a function of the seed and its place in the training, so that a resumed
training sees those that it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sseg_nase.data.random import derive
from sseg_nase.errors import UserError
from sseg_nase.oneshot.objectives import Images


class Labelled(Protocol):
    """What is read of the images of train."""

    @property
    def labels(self) -> np.ndarray:
        """The class of every image, int64 `[n]`."""

    def batch(self, indices: np.ndarray) -> Tensor:
        """The images at `indices`, uint8 `[B, C, S, S]`."""


class Half:
    """One half of the images, at `chosen`, in batches of `batch_size`; a rest is left out."""

    def __init__(
        self,
        store: Labelled,
        chosen: np.ndarray,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.store, self.chosen, self.seed, self.device = store, chosen, seed, device
        self.size = min(batch_size, len(chosen))

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def batches(self) -> int:
        """Of all images once."""
        return len(self.chosen) // self.size

    def at(self, number: int) -> Images:
        """The batch `number` of an endless stream that repeats all images.

        Each time in another order, so that no batch is met twice (and none for ever, as where a
        validation iterator is made for every step).
        """
        cycle, place = divmod(number, self.batches)
        generator = torch.Generator().manual_seed(derive(self.seed, "order", cycle))
        order = torch.randperm(len(self.chosen), generator=generator).numpy()
        return self._read(self.chosen[order[place * self.size : (place + 1) * self.size]])

    def all(self, most: int | None = None) -> Iterator[Images]:
        """All images, or the first `most`, in order."""
        kept = self.chosen[:most]
        for first in range(0, len(kept), self.size):
            yield self._read(kept[first : first + self.size])

    def _read(self, indices: np.ndarray) -> Images:
        labels = torch.from_numpy(self.store.labels[indices]).long()
        return Images(self.store.batch(indices).to(self.device), labels.to(self.device))


def halves(
    store: Labelled,
    *,
    images: int | None,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> tuple[Half, Half]:
    """The images for the weights and those for what chooses: disjoint, sampled by the seed.

    Raises `UserError` where there are fewer than `images`, or fewer than a batch in a half.
    """
    count = len(store.labels)
    wanted = count if images is None else images
    if wanted > count:
        raise UserError(
            f"strategy.images={images}: train has {count:,}. Set it to as many at most, or to null "
            "for all."
        )
    if wanted // 2 < batch_size:
        raise UserError(
            f"strategy.batch_size={batch_size}: each half of {wanted:,} images of train has "
            f"{wanted // 2:,}. Set it to as many at most."
        )
    generator = torch.Generator().manual_seed(derive(seed, "halves"))
    order = torch.randperm(count, generator=generator).numpy()[:wanted]
    parts = np.sort(order[: wanted - wanted // 2]), np.sort(order[wanted - wanted // 2 :])
    first, second = (
        Half(store, part, batch_size, derive(seed, "half", number), device)
        for number, part in enumerate(parts)
    )
    return first, second
