"""What training sees: batches of the curriculum's images on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sseg_nase.config.schema import SYNTHETIC_LEVELS, CurriculumConfig
from sseg_nase.data.curriculum.schedule import LevelSchedule, plan_epoch
from sseg_nase.data.placement import Images, fetch
from sseg_nase.data.prefetch import one_ahead
from sseg_nase.data.random import derive
from sseg_nase.data.rendered import RenderedImages

PROBE_IMAGES = 256


@dataclass(frozen=True)
class Batch:
    """`images` uint8 `[B, C, S, S]`; `adversarial` the positions of ADVERSARIAL images.

    They are the rows `first`, `first` + 1, ... of a batch of `of` images that all processes share;
    `seen` counts the images of that whole batch by source: synthetic, or real and unlabeled.
    """

    images: Tensor
    adversarial: list[int]
    seen: dict[str, int]
    first: int
    of: int


class CurriculumFeed:
    """Draws or reads the images that the level schedule asks for.

    Every epoch is a function of (seed, epoch) and the schedule's state alone. `natural` holds the
    unlabeled base images of level NATURAL; drawn images are kept in up to `drawn_bytes` of the
    device's memory. `batch_size` is that of all processes together; with `part` (rank, processes)
    training batches are this process's share of it. On CUDA every batch is made on a stream of the
    feed's own, one ahead; on a CPU that would only take cores from the step.
    """

    def __init__(
        self,
        curriculum: CurriculumConfig,
        *,
        natural: Images | None,
        image_size: int,
        channels: int = 3,
        batch_size: int,
        images_per_epoch: int,
        epochs: int,
        seed: int,
        device: torch.device,
        drawn_bytes: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.part = part
        self.curriculum, self.natural = curriculum, natural
        self.image_size, self.channels, self.batch_size = image_size, channels, batch_size
        self.images_per_epoch, self.seed, self.device = images_per_epoch, seed, device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.pools = {level: curriculum.images.get(level, 0) for level in curriculum.levels}
        if natural is not None:
            self.pools["NATURAL"] = len(natural)
        assert all(self.pools.values()), self.pools
        self.rendered = RenderedImages(
            {
                level: self._first_held(level) + PROBE_IMAGES
                for level in curriculum.levels
                if level in SYNTHETIC_LEVELS
            },
            most_bytes=drawn_bytes,
            image_size=image_size,
            channels=channels,
            seed=seed,
            device=device,
        )
        evenly = max(1, -(-epochs // len(curriculum.levels)))
        self.schedule = LevelSchedule(
            curriculum.levels,
            progression=curriculum.progression,
            mixing_ratio=curriculum.gradual_mixing_ratio,
            max_epochs_per_level=curriculum.max_epochs_per_level or evenly,
            plateau_threshold=curriculum.plateau_threshold,
            plateau_window=curriculum.plateau_window_size,
            gap_threshold=curriculum.gap_threshold,
        )

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in an epoch; what is left over is not drawn."""
        return self.images_per_epoch // self.batch_size

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The training batches of one epoch at the present level, from batch `start` on."""
        rank, parts = self.part
        share = self.batch_size // parts
        yield from self._batches(self._plan(epoch, "train")[start:], rank * share, share)

    def others(self, epoch: int, purpose: str) -> Iterator[Tensor]:
        """Whole batches like those of `epoch`, but other ones, uint8 `[B, C, S, S]`."""
        for batch in self._batches(self._plan(epoch, purpose), 0, self.batch_size):
            yield batch.images

    def _plan(self, epoch: int, purpose: str) -> list[dict[str, Tensor]]:
        return plan_epoch(
            self.schedule.weights(),
            self.images_per_epoch,
            self.pools,
            self.batch_size,
            seed=derive(self.seed, purpose),
            epoch=epoch,
        )

    def probe(self) -> Tensor:
        """One batch of held images of the present levels, uint8 `[P, C, S, S]`, always the same.

        Drawn images come from beyond the pools, so they are never trained on; NATURAL has no
        images to spare and gives its first ones.
        """
        size = min(self.batch_size, PROBE_IMAGES)
        indices = {}
        for level, share in self.schedule.weights().items():
            if share > 0:
                count = max(2, round(size * share / 2) * 2)
                first = 0 if level == "NATURAL" else self._first_held(level)
                indices[level] = torch.arange(first, first + count)
        if "NATURAL" in indices:
            indices["NATURAL"] %= self.pools["NATURAL"]
        return next(self._batches([indices], 0, sum(map(len, indices.values())))).images

    def _first_held(self, level: str) -> int:
        """The first index beyond a level's pool; even, since twins stay together."""
        return self.pools[level] + self.pools[level] % 2

    def _batches(self, plan: list[dict[str, Tensor]], first: int, count: int) -> Iterator[Batch]:
        """Of every batch in `plan` `count` images from row `first` on."""
        self.rendered.favour(self.schedule.weights())
        batches = (self._batch(indices, first, count) for indices in plan)
        return batches if self.stream is None else one_ahead(batches, self.stream)

    def _batch(self, indices: dict[str, Tensor], first: int, count: int) -> Batch:
        """`count` images from row `first` on of the batch that `indices` describe."""
        of, last = sum(map(len, indices.values())), first + count
        shape = (count, self.channels, self.image_size, self.image_size)
        images = torch.empty(shape, dtype=torch.uint8, device=self.device)
        adversarial, start, done = list[int](), 0, 0
        seen = {"synthetic": 0, "real_unlabeled": 0}
        for level, whole in indices.items():
            chosen = whole[max(first - start, 0) : max(last - start, 0)]
            end = done + len(chosen)
            if len(chosen):
                self._read(level, chosen, images[done:end])
            if level == "ADVERSARIAL":
                adversarial = list(range(done, end))
            seen["synthetic" if level in SYNTHETIC_LEVELS else "real_unlabeled"] += len(whole)
            start, done = start + len(whole), end
        return Batch(images, adversarial, seen, first, of)

    def _read(self, level: str, indices: Tensor, out: Tensor) -> None:
        if level in SYNTHETIC_LEVELS:
            self.rendered.read(level, indices, out)
        else:
            assert self.natural is not None
            fetch(self.natural, indices, out)
