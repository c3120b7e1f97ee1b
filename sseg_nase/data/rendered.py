"""The drawn images of the synthetic levels: drawn when first asked for, then kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sseg_nase.data.curriculum.render import render
from sseg_nase.data.grey import of_channels
from sseg_nase.data.prefetch import sent

ABSENT = -1


class RenderedImages:
    """As many drawn images as fit into `most_bytes` on `device`, those used most often first.

    They are grey where `channels` is 1. `sizes`: how many images of each level are asked for again.
    What is kept decides how often an image is drawn, never how it looks: that is a function of
    (seed, level, index).
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        most_bytes: int,
        image_size: int,
        channels: int = 3,
        seed: int,
        device: torch.device,
    ) -> None:
        self.image_size, self.seed, self.device = image_size, seed, device
        self.channels = channels
        room = min(most_bytes // (channels * image_size**2), sum(sizes.values()))
        # RAM is taken page by page, when it is written to.
        self.kept = torch.empty(
            (room, channels, image_size, image_size), dtype=torch.uint8, device=device
        )
        # All that is looked up lies in RAM, so that a GPU is never asked.
        self._place = {level: torch.full((size,), ABSENT) for level, size in sizes.items()}
        self._limit = dict.fromkeys(sizes, 0)  # images with a smaller index are kept
        self._free = torch.arange(room)
        self._weights: dict[str, float] = {}

    def favour(self, weights: Mapping[str, float]) -> None:
        """Divide the room again, where the levels' shares of the images have become `weights`."""
        weights = {level: weights[level] for level in self._place if weights.get(level, 0) > 0}
        if weights == self._weights:
            return
        self._weights, left = weights, len(self.kept)
        often = {level: weight / len(self._place[level]) for level, weight in weights.items()}
        limits = dict.fromkeys(self._place, 0)
        for level in sorted(often, key=lambda level: often[level], reverse=True):
            limits[level] = min(len(self._place[level]), left)
            left -= limits[level]
        self._limit = limits
        for level, place in self._place.items():
            beyond = place[limits[level] :]
            self._free = torch.cat([self._free, beyond[beyond != ABSENT]])
            beyond.fill_(ABSENT)

    def read(self, level: str, indices: Tensor, out: Tensor) -> None:
        """Write the images `indices` `[B]` (in RAM) of `level` to `out` uint8 `[B, C, S, S]`."""
        place = self._place[level]
        places = place[indices]
        present = places != ABSENT
        if present.all():
            torch.index_select(self.kept, 0, sent(places, self.device), out=out)
            return
        new, which = indices[~present].unique(return_inverse=True)
        images = render(
            level,
            sent(new, self.device),
            seed=self.seed,
            image_size=self.image_size,
            device=self.device,
        )
        images = of_channels(images, self.channels)
        self._copy(images, which, out, ~present)
        self._copy(self.kept, places[present], out, present)
        keep = int((new < self._limit[level]).sum())  # the first ones, since `new` ascends
        taken, self._free = self._free[:keep], self._free[keep:]
        place[new[:keep]] = taken
        self.kept.index_copy_(0, sent(taken, self.device), images[:keep])

    def _copy(self, source: Tensor, chosen: Tensor, out: Tensor, rows: Tensor) -> None:
        """Copy the images `chosen` of `source` to those rows of `out` that `rows` `[B]` marks."""
        to = sent(rows.nonzero()[:, 0], self.device)
        out.index_copy_(0, to, source.index_select(0, sent(chosen, self.device)))
