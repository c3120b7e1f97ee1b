"""Measurements on networks beside the training: nothing here changes what is trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sseg_nase.config.schema import Config
from sseg_nase.data.feed import CurriculumFeed
from sseg_nase.data.random import derive
from sseg_nase.data.views import make_views, normalize
from sseg_nase.hardware.latency import latency_ms
from sseg_nase.nets.mutation import Mutation
from sseg_nase.ssl.methods import METHODS, Losses
from sseg_nase.training.networks import Networks, Workshop

PROBE, TRIAL = "probe", "trial"  # separate random streams
DELTA_IMAGES = 32
TIMED_BATCH, TIMED_REPEATS = 64, 5


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
    def loss(self, networks: Networks) -> float:
        """Loss on held images: same images and views at every call within a level."""
        learner = copy.deepcopy(networks.learner).train()
        views = self.views(self.feed.probe(), derive(self.config.seed, PROBE))
        losses = self.method(learner, networks.teacher, views, self.config.ssl)
        return losses.total.item()

    def losses(self, networks: Networks, epoch: int, batches: int) -> Iterator[Losses]:
        """Losses of `networks` on batches like those of `epoch`, other than the ones trained on."""
        half = self.config.hardware.precision == "bf16-mixed"
        for views in self.batches(epoch, batches):
            with torch.autocast(views.device.type, torch.bfloat16, enabled=half):
                losses = self.method(networks.learner, networks.teacher, views, self.config.ssl)
            yield losses

    def batches(self, epoch: int, count: int) -> Iterator[Tensor]:
        """Views `[2, B, 3, S, S]` of batches like those of `epoch`, but other ones."""
        stream = self.feed.others(epoch, TRIAL)
        for index, images in zip(range(count), stream, strict=False):
            yield self.views(images, derive(self.config.seed, TRIAL, epoch, index))

    def trial(
        self, networks: Networks, mutation: Mutation, *, epoch: int, steps: int, lr: float
    ) -> float:
        """Relative fall of the held loss after `steps` steps with `mutation`.

        The networks of the trial are thrown away; all trials of an epoch see the same images.
        """
        tried = self.workshop.mutated(networks, mutation)
        before = self.loss(networks)
        for group in tried.optimizer.param_groups:
            group["lr"] = lr
        tried.learner.train()
        for losses in self.losses(tried, epoch, steps):
            losses.total.backward()
            tried.optimizer.step()
            tried.optimizer.zero_grad(set_to_none=True)
        return (before - self.loss(tried)) / abs(before)

    @torch.no_grad()
    def function_delta(self, old: nn.Module, new: nn.Module) -> float:
        """‖f' − f‖ / ‖f‖ of the projections in eval mode, in float64."""
        images = normalize(self.feed.probe()[:DELTA_IMAGES]).double()
        f, f_new = (copy.deepcopy(net).double().eval()(images)[1] for net in (old, new))
        return ((f_new - f).norm() / f.norm().clamp_min(1e-12)).item()

    @torch.no_grad()
    def pruning_error(self, old: Networks, new: Networks, mutation: Mutation) -> float:
        """Relative difference between the pruned network and the masked one, in float64."""
        images = normalize(self.feed.probe()[:DELTA_IMAGES]).double()
        masks = [
            torch.isin(torch.arange(space.old), torch.tensor(space.index)).to(images)
            for space in mutation.spaces[1:]
        ]
        masked = copy.deepcopy(old.learner).double().eval()
        expected = masked.head(masked.backbone(images, masks))
        found = copy.deepcopy(new.learner).double().eval()(images)[1]
        return ((found - expected).norm() / expected.norm().clamp_min(1e-12)).item()

    def latency(self, old: Networks, new: Networks) -> dict[str, float]:
        """Median ms of a forward pass of both backbones: counts alone promise no speed."""
        resolution, device = new.architecture.resolution, self.workshop.device
        times = {
            name: latency_ms(
                networks.learner.backbone,
                resolution,
                TIMED_BATCH,
                repeats=TIMED_REPEATS,
                warmup=1,
                device=device,
            )
            for name, networks in (("before_ms", old), ("after_ms", new))
        }
        return {"batch": TIMED_BATCH, **times}

    def views(self, images: Tensor, seed: int, *, first: int = 0, of: int | None = None) -> Tensor:
        """Two views `[2, B, 3, S, S]` in the networks' memory format; see `make_views`."""
        size = self.config.dataset.image_size
        made = make_views(images, self.config.views, image_size=size, seed=seed, first=first, of=of)
        flat = made.flatten(0, 1).contiguous(memory_format=self.workshop.memory_format)
        return flat.unflatten(0, made.shape[:2])
