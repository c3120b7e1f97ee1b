"""What fine-tuning sees of the base split: episode by episode or in plain batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sseg_nase.config.groups.finetune import Classifying, Episodic
from sseg_nase.config.options import filled
from sseg_nase.config.schema import Config
from sseg_nase.data.episodes import EpisodeList, sample_episodes
from sseg_nase.data.placement import Images, fetch
from sseg_nase.data.random import derive
from sseg_nase.data.views import make_views, normalize
from sseg_nase.finetune.mixing import Centre


class Labelled(Protocol):
    """What is read of the base split."""

    @property
    def labels(self) -> np.ndarray:
        """The class of every image, int64 `[n]`."""

    @property
    def class_names(self) -> Sequence[str]:
        """The classes by number."""

    @property
    def class_indices(self) -> Sequence[np.ndarray]:
        """The images of every class."""


class Step(NamedTuple):
    """What one optimizer step sees: the images at `indices`, and what they are.

    Of T episodes: `tasks` T, `ways`, `shots`, and first all support `[T, N, K]`, then all queries
    `[T, N, Q]`. Of a plain batch: `truth` `[B]`; with mixup every image is `share` itself and the
    rest of it image `partner` `[B]` of the batch, with CutMix in a rectangle around a `centre`.
    `noise`: the seed of what dropout leaves out; None: nothing.
    """

    indices: Tensor
    tasks: int = 0
    ways: int = 0
    shots: int = 0
    truth: Tensor | None = None
    partner: Tensor | None = None
    share: float = 1.0
    centre: Centre | None = None
    noise: int | None = None

    def parts(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of images `[n, ...]` as support `[T, N, K, ...]` and queries `[T, M, ...]`."""
        count = self.tasks * self.ways * self.shots
        support = rows[:count].unflatten(0, (self.tasks, self.ways, self.shots))
        return support, rows[count:].unflatten(0, (self.tasks, -1))

    def query_truth(self) -> Tensor:
        """The classes of one episode's queries, int64 `[M]`."""
        count = self.tasks * self.ways * self.shots
        queries = (len(self.indices) - count) // (self.tasks * self.ways)
        return torch.arange(self.ways).repeat_interleave(queries)


class Steps:
    """Steps on the images of `base`, which lie in `images`, as `config.finetune` asks for them.

    All random numbers are a function of the seeds that are given.
    """

    def __init__(
        self, config: Config, base: Labelled, images: Images, device: torch.device
    ) -> None:
        self.options, self.dataset, self.base = config.finetune, config.dataset, base
        self.images, self.device = images, device
        self.batch_size = filled(config.hardware.batch_size, "hardware.batch_size")

    def steps_of(self, seed: int) -> Iterator[Step]:
        """The steps of an epoch, whose order and views `seed` decides."""
        options = self.options
        if isinstance(options, Classifying):
            yield from self._batches(options, seed)
            return
        assert isinstance(options, Episodic)
        episodes, per_step = self._episodes(options, seed), options.tasks_per_step
        for first in range(0, len(episodes), per_step):
            support, query = (
                torch.from_numpy(indices[first : first + per_step].copy())
                for indices in (episodes.support, episodes.query)
            )
            indices = torch.cat((support.flatten(), query.flatten()))
            yield Step(indices, len(support), episodes.ways, episodes.shots)

    def _episodes(self, options: Episodic, seed: int) -> EpisodeList:
        return sample_episodes(
            self.base.class_indices,
            class_names=self.base.class_names,
            dataset=self.dataset.name,
            split="train",
            ways=filled(options.ways, "finetune.ways"),
            shots=filled(options.shots, "finetune.shots"),
            queries=filled(options.queries, "finetune.queries"),
            episodes=options.episodes_per_epoch,
            seed=seed,
            section="finetune",
        )

    def _batches(self, options: Classifying, seed: int) -> Iterator[Step]:
        """All images in random order; what does not fill the last batch waits for another epoch."""
        size = self.batch_size
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.base.labels), generator=generator)
        labels = torch.tensor(np.asarray(self.base.labels))
        for index, indices in enumerate(order.split(min(size, len(order)))):
            if len(indices) == min(size, len(order)):
                noise = derive(seed, "dropout", index) if options.dropout else None
                mixed = self._mixed(options, seed, index, len(indices))
                yield Step(indices, truth=labels[indices], noise=noise, **mixed)

    def _mixed(self, options: Classifying, seed: int, index: int, count: int) -> dict[str, Any]:
        """Partners and share of a batch, by Zhang et al. 2018: one λ ~ Beta(α, α) for all of it.

        With CutMix also the centre of what is pasted, drawn evenly.
        """
        if not (alpha := options.mixup or options.cutmix):
            return {}
        seed = derive(seed, "mixup" if options.mixup else "cutmix", index)
        rng = np.random.default_rng(seed)
        share, centre = float(rng.beta(alpha, alpha)), tuple(rng.random(2).tolist())
        generator = torch.Generator().manual_seed(seed)
        found = {"partner": torch.randperm(count, generator=generator), "share": share}
        return found | ({"centre": centre} if options.cutmix else {})

    def views_of(self, step: Step, seed: int, image_size: int) -> Tensor:
        """A random view of every image of a step, `[B, C, S, S]`, S the `image_size`."""
        images = self._pixels(step.indices)
        return make_views(images, self.options.views, image_size=image_size, seed=seed, count=1)[0]

    def plain(self, count: int) -> Tensor:
        """The first images, at most `count`, normalised `[B, C, S, S]`."""
        return normalize(self._pixels(torch.arange(min(count, len(self.base.labels)))))

    def _pixels(self, indices: Tensor) -> Tensor:
        size, channels = self.dataset.image_size, self.dataset.channels
        images = torch.empty(
            (len(indices), channels, size, size), dtype=torch.uint8, device=self.device
        )
        fetch(self.images, indices, images)
        return images
