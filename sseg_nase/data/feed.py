"""What training sees: batches of the curriculum's images on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sseg_nase.config.groups.curriculum import SYNTHETIC_LEVELS, CurriculumConfig
from sseg_nase.data.curriculum.schedule import LevelSchedule, plan_epoch
from sseg_nase.data.placement import Images, fetch
from sseg_nase.data.prefetch import one_ahead
from sseg_nase.data.random import derive
from sseg_nase.data.rendered import RenderedImages

HELD, HELD_IMAGES, HELD_BATCHES, FEWEST_BATCHES = "held", 256, 8, 4


@dataclass(frozen=True)
class Batch:
    """`images` uint8 `[B, C, S, S]`; `adversarial` the positions of ADVERSARIAL images.

    They are the rows `first`, `first` + 1, ... of a batch of `of` images that all processes share,
    and which may come in several parts; `seen` counts the images of that whole batch by source:
    synthetic, or real and unlabeled.
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
    training batches are this process's share of it, in `micro` parts of equal size, one after the
    other: those of all processes together are neighbours in the batch. On CUDA every part is made
    on a stream of the feed's own, one ahead; on a CPU that would only take cores from the step.
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
        micro: int = 1,
    ) -> None:
        self.part, self.micro = part, micro
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
                level: self._first_held(level) + self._spare
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
        """The training batches of one epoch at the present level, from batch `start` on.

        Of each its `micro` parts, in order.
        """
        yield from self._batches(self._plan(epoch, "train")[start:], *self._shares())

    def others(self, epoch: int, purpose: str) -> Iterator[Batch]:
        """Batches like those of `epoch`, but other ones, as `epoch` gives them."""
        yield from self._batches(self._plan(epoch, purpose), *self._shares())

    def held(self) -> Iterator[Batch]:
        """Batches of the present levels' held images, as `epoch` gives them: always the same ones.

        Drawn images come from beyond the pools, so they are never trained on; NATURAL has no
        images to spare and gives those that it has.
        """
        yield from self._batches(self._held(), *self._shares())

    @property
    def held_batches(self) -> int:
        """How many `held` gives: 8, or as many as 256 images take.

        Fewer where NATURAL has not so many images, but 4: in those they come again.
        """
        natural = self.batch_size * self.schedule.weights().get("NATURAL", 0)
        most = int(self.pools["NATURAL"] // natural) if natural else self._most_held
        return min(self._most_held, max(FEWEST_BATCHES, most))

    @property
    def few_held(self) -> str | None:
        """Why decisions rest on fewer held batches than they should, or None."""
        count = self.held_batches
        if count == self._most_held:
            return None
        return (
            f"decisions are made on {count} held batches instead of {self._most_held}: level "
            f"NATURAL has {self.pools['NATURAL']:,} images, {self._named()} compares "
            f"{self.batch_size} of them"
        )

    @property
    def _most_held(self) -> int:
        return max(HELD_BATCHES, -(-HELD_IMAGES // self.batch_size))

    @property
    def _spare(self) -> int:
        """Images of a drawn level beyond its pool, an even number: it may have `held` to itself."""
        images = self._most_held * self.batch_size
        return images + images % 2

    def _held(self) -> list[dict[str, Tensor]]:
        """The images of every held batch by level."""
        drawn = {level: self._spare for level in self.pools if level in SYNTHETIC_LEVELS}
        plan = plan_epoch(
            self.schedule.weights(),
            self.held_batches * self.batch_size,
            self.pools | drawn,
            self.batch_size,
            seed=derive(self.seed, HELD),
            epoch=0,
            named=self._named(),
        )
        first = {level: self._first_held(level) for level in drawn}
        return [
            {level: chosen + first.get(level, 0) for level, chosen in batch.items()}
            for batch in plan
        ]

    def _shares(self) -> tuple[list[int], int]:
        """Where this process's parts of a batch begin, and how many images each has."""
        rank, ranks = self.part
        count = self.batch_size // (ranks * self.micro)
        return [(part * ranks + rank) * count for part in range(self.micro)], count

    def _plan(self, epoch: int, purpose: str) -> list[dict[str, Tensor]]:
        return plan_epoch(
            self.schedule.weights(),
            self.images_per_epoch,
            self.pools,
            self.batch_size,
            seed=derive(self.seed, purpose),
            epoch=epoch,
            named=self._named(),
        )

    def _named(self) -> str:
        """The size of a batch as it is set."""
        own = f"hardware.batch_size={self.batch_size // (self.micro * self.part[1])}"
        steps = f", hardware.gradient_accumulation_steps={self.micro}" if self.micro > 1 else ""
        return own + steps + (f", hardware.devices={self.part[1]}" if self.part[1] > 1 else "")

    def probe(self) -> Tensor:
        """The first batch of `held` in every process, uint8 `[B, C, S, S]`."""
        return next(self._batches(self._held()[:1], [0], self.batch_size)).images

    def _first_held(self, level: str) -> int:
        """The first index beyond a level's pool; even, since twins stay together."""
        return self.pools[level] + self.pools[level] % 2

    def _batches(
        self, plan: list[dict[str, Tensor]], starts: Sequence[int], count: int
    ) -> Iterator[Batch]:
        """Of every batch in `plan` `count` images from each row of `starts` on."""
        self.rendered.favour(self.schedule.weights())
        batches = (self._batch(indices, first, count) for indices in plan for first in starts)
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
