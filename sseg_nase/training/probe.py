"""Measurements on networks beside the training: nothing here changes what is trained."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from sseg_nase.config.schema import Config
from sseg_nase.data.feed import CurriculumFeed
from sseg_nase.data.random import derive
from sseg_nase.data.views import make_views, normalize
from sseg_nase.evolution.operators import output_change
from sseg_nase.hardware.latency import latency_ms
from sseg_nase.nets.evolvable import Learner
from sseg_nase.nets.mutation import Mutation
from sseg_nase.ssl.methods import METHODS, Crops, Losses
from sseg_nase.training.networks import Networks, Workshop

PROBE, TRIAL = "probe", "trial"  # separate random streams
DELTA_IMAGES = 32
TIMED_BATCH, TIMED_REPEATS = 64, 5
SMALLEST_LOSS = 1e-12  # that a fall is related to: a loss may be 0


class Probe:
    """Losses and function deltas on images of the feed's present levels.

    In float32 or better; where gradients are taken, in bfloat16 if the training computes in it, so
    that a trial takes no more memory than a step. Every process computes them alone, on whole
    batches: the same numbers everywhere.
    """

    def __init__(self, config: Config, feed: CurriculumFeed, workshop: Workshop) -> None:
        self.config, self.feed, self.workshop = config, feed, workshop
        self.method = METHODS[config.ssl.name]

    @torch.no_grad()
    def loss(self, networks: Networks, epoch: int) -> float:
        """Loss as of `epoch` on held images: same images and views at every call within a level."""
        learner = copy.deepcopy(networks.learner).train()
        views = self.views(self.feed.probe(), derive(self.config.seed, PROBE))
        losses = self.method.loss(learner, networks.teaching(epoch), views, self.config.ssl)
        return losses.total.item()

    def losses(self, networks: Networks, epoch: int, batches: int) -> Iterator[Losses]:
        """Losses of `networks` on batches like those of `epoch`, other than the ones trained on."""
        half = self.config.hardware.precision == "bf16-mixed"
        for views in self.batches(epoch, batches):
            with torch.autocast(views[0].device.type, torch.bfloat16, enabled=half):
                losses = self.method.loss(
                    networks.learner, networks.teaching(epoch), views, self.config.ssl
                )
            yield losses

    def batches(self, epoch: int, count: int) -> Iterator[tuple[Tensor, ...]]:
        """`views` of batches like those of `epoch`, but other ones."""
        stream = self.feed.others(epoch, TRIAL)
        for index, images in zip(range(count), stream, strict=False):
            yield self.views(images, derive(self.config.seed, TRIAL, epoch, index))

    def trial(
        self, networks: Networks, mutation: Mutation, *, epoch: int, steps: int, lr: float
    ) -> float:
        """Relative fall of the held loss after `steps` steps with `mutation`.

        Not finite where the loss before or after is not. The networks of the trial are thrown
        away; all trials of an epoch see the same images.
        """
        tried = self.workshop.mutated(networks, mutation)
        before = self.loss(networks, epoch)
        for group in tried.optimizer.param_groups:
            group["lr"] = lr
        tried.learner.train()
        for losses in self.losses(tried, epoch, steps):
            losses.total.backward()
            tried.optimizer.step()
            tried.optimizer.zero_grad(set_to_none=True)
        return (before - self.loss(tried, epoch)) / max(abs(before), SMALLEST_LOSS)

    @torch.no_grad()
    def function_delta(self, old: Networks, new: Networks, mutation: Mutation) -> float:
        """`output_change` in eval mode, in float64."""
        images = normalize(self.feed.probe()[:DELTA_IMAGES]).double()
        f, f_new = (self._exact(networks)(images)[1] for networks in (old, new))
        return output_change(mutation, f, f_new, embeddings=self._headless(old))

    @torch.no_grad()
    def pruning_error(self, old: Networks, new: Networks, mutation: Mutation) -> float:
        """Relative difference between the pruned network and the masked one, in float64."""
        images = normalize(self.feed.probe()[:DELTA_IMAGES]).double()
        masks = [
            torch.isin(torch.arange(space.old), torch.tensor(space.index)).to(images)
            for space in mutation.spaces[1:]
        ]
        masked = self._exact(old)
        expected = masked.project(masked.backbone(images, masks))
        found = self._exact(new)(images)[1]
        return output_change(mutation, expected, found, embeddings=self._headless(old))

    @staticmethod
    def _exact(networks: Networks) -> Learner:
        return copy.deepcopy(networks.learner).double().eval()

    @staticmethod
    def _headless(networks: Networks) -> bool:
        return not networks.learner.head.state_dict()

    def latency(self, old: Networks, new: Networks) -> dict[str, float | None]:
        """Median ms of a forward pass of both backbones: counts alone promise no speed.

        None where it is too short for the clock.
        """
        architecture, device = new.architecture, self.workshop.device
        times = {
            name: latency_ms(
                networks.learner.backbone,
                architecture.resolution,
                TIMED_BATCH,
                repeats=TIMED_REPEATS,
                warmup=1,
                device=device,
                in_channels=architecture.in_channels,
            )
            for name, networks in (("before_ms", old), ("after_ms", new))
        }
        return {"batch": TIMED_BATCH, **times}

    def views(
        self, images: Tensor, seed: int, *, first: int = 0, of: int | None = None
    ) -> tuple[Tensor, ...]:
        """The method's views, per kind of crops `[V, B, C, S, S]`; see `make_views`.

        In the networks' memory format.
        """
        ssl, side = self.config.ssl, self.config.dataset.image_size
        return tuple(
            self._crops(images, crops, round(side * crops.size), derived, first, of)
            for crops, derived in zip(self.method.crops(ssl), _seeds(seed), strict=False)
        )

    def _crops(
        self, images: Tensor, crops: Crops, size: int, seed: int, first: int, of: int | None
    ) -> Tensor:
        views = self.config.views
        if crops.scale is not None:
            views = dataclasses.replace(views, crop_scale=list(crops.scale))
        made = make_views(
            images, views, image_size=size, seed=seed, count=crops.count, first=first, of=of
        )
        flat = made.flatten(0, 1).contiguous(memory_format=self.workshop.memory_format)
        return flat.unflatten(0, made.shape[:2])


def _seeds(seed: int) -> Iterator[int]:
    """One per kind of crops; the first is `seed` itself."""
    yield seed
    for kind in itertools.count(1):
        yield derive(seed, "crops", kind)
