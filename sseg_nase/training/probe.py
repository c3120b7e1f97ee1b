"""Measurements on networks beside the training: nothing here changes what is trained."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sseg_nase.config.schema import Config
from sseg_nase.data.feed import Batch, CurriculumFeed
from sseg_nase.data.random import derive
from sseg_nase.data.views import make_views, normalize
from sseg_nase.evolution.operators import output_change
from sseg_nase.hardware.latency import latency_ms
from sseg_nase.nets.evolvable import Learner
from sseg_nase.nets.mutation import Mutation
from sseg_nase.sparsity.recalibration import recalibrate
from sseg_nase.ssl.methods import METHODS, Crops
from sseg_nase.training.accumulation import Views, differentiate, evaluate
from sseg_nase.training.distributed import average_over_ranks, gather_rows, synchronizing
from sseg_nase.training.divergence import MOST_SKIPPED
from sseg_nase.training.fabric import Fabric
from sseg_nase.training.networks import Networks, Workshop

PROBE, TRIAL = "probe", "trial"  # separate random streams
DELTA_IMAGES = 32
TIMED_BATCH, TIMED_REPEATS = 64, 5
SMALLEST_LOSS = 1e-12  # that a fall is related to: a loss may be 0
WIDER = 4  # times as wide as float16: float64


class Probe:
    """Losses, gradients and function deltas on images of the feed's present levels.

    Losses and gradients are taken as a step of training takes them: in its precision, with a loss
    scale that is divided out where that is float16, batches of the same size compared with each
    other, divided into the same parts and among the same processes. So a mutation needs no more
    memory than a step. In bfloat16 the fall of a held loss is rounded by 2e-4 of the loss, in
    float16 by 2e-5, where one batch of held images differs from another by 1e-2. Function deltas
    are in float64. All numbers are the same in every process, and all must ask for them together.
    """

    def __init__(
        self, config: Config, feed: CurriculumFeed, workshop: Workshop, fabric: Fabric
    ) -> None:
        self.config, self.feed, self.workshop, self.fabric = config, feed, workshop, fabric
        self.method = METHODS[config.ssl.name]
        batch = config.hardware.batch_size
        assert batch is not None
        self.delta_batch = max(1, batch // WIDER)
        self.timed_batch = min(TIMED_BATCH, batch)

    @torch.no_grad()
    def loss(self, networks: Networks, epoch: int) -> float:
        """Loss as of `epoch` on held images: same images and views at every call within a level."""
        learner = copy.deepcopy(networks.learner).train()
        parts = self.views_of(self.feed.held(), derive(self.config.seed, PROBE))
        with synchronizing():
            losses = evaluate(
                self.method.loss,
                learner,
                networks.teaching(epoch),
                parts,
                self.config.ssl,
                autocast=self.fabric.autocast,
                gather=gather_rows,
            )
        average_over_ranks([losses.total])
        return losses.total.item()

    def gradients(self, networks: Networks, epoch: int, batches: int) -> Iterator[None]:
        """Each time leave in `.grad` of the student that of the loss of another batch.

        The batches are like those of `epoch`, but not the ones trained on.
        """
        for parts in self.batches(epoch, batches):
            self._differentiate(networks, epoch, parts)
            yield

    def _differentiate(self, networks: Networks, epoch: int, parts: Sequence[Views]) -> None:
        """Where gradients overflow float16 they are taken again with half the loss scale."""
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()  # fits the networks that are trained

        def backward(total: Tensor) -> None:
            (total * scale).backward()

        for _ in range(1 if scaler is None else MOST_SKIPPED):
            networks.learner.zero_grad(set_to_none=True)
            with synchronizing():
                differentiate(
                    self.method.loss,
                    networks.learner,
                    networks.teaching(epoch),
                    parts,
                    self.config.ssl,
                    backward=backward,
                    autocast=self.fabric.autocast,
                    gather=gather_rows,
                )
            found = [p.grad for p in networks.learner.parameters() if p.grad is not None]
            average_over_ranks(found)
            if scaler is None:
                return
            torch._foreach_mul_(found, 1 / scale)
            if torch.stack(torch._foreach_norm(found)).isfinite().all():
                return
            scale /= 2

    def batches(self, epoch: int, count: int) -> Iterator[list[Views]]:
        """`views` of batches like those of `epoch`, but other ones, in this process's parts."""
        stream = self.feed.others(epoch, TRIAL)
        for index in range(count):
            parts = list(itertools.islice(stream, self.feed.micro))
            if not parts:
                return
            yield self.views_of(parts, derive(self.config.seed, TRIAL, epoch, index))

    def views_of(self, parts: Sequence[Batch], seed: int) -> list[Views]:
        """`views` of every part of one batch."""
        return [self.views(each.images, seed, first=each.first, of=each.of) for each in parts]

    def recalibrate(self, networks: Networks, epoch: int, batches: int) -> None:
        """Compute all BN statistics anew, from `batches` that are like those of `epoch`.

        On views of the whole size: embeddings are of such images. The teacher has statistics of its
        own, and they are those of a network that is gone, too.
        """
        parts = (networks.teacher, networks.teacher_head)
        teacher = nn.Sequential(*(part for part in parts if part is not None))
        for network in (networks.learner, teacher):
            if not any(isinstance(part, _BatchNorm) for part in network.modules()):
                continue
            found = self.batches(epoch, batches)
            whole = (views[0].flatten(0, 1) for parts in found for views in parts)
            with synchronizing():
                recalibrate(network, whole)

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
        for _ in self.gradients(tried, epoch, steps):
            tried.optimizer.step()
            tried.optimizer.zero_grad(set_to_none=True)
        return (before - self.loss(tried, epoch)) / max(abs(before), SMALLEST_LOSS)

    @torch.no_grad()
    def function_delta(self, old: Networks, new: Networks, mutation: Mutation) -> float:
        """`output_change` in eval mode, in float64."""
        images = self._delta_images()
        f, f_new = (self._put_out(self._exact(networks), images) for networks in (old, new))
        return output_change(mutation, f, f_new, embeddings=self._headless(old))

    @torch.no_grad()
    def pruning_error(self, old: Networks, new: Networks, mutation: Mutation) -> float:
        """Relative difference between the pruned network and the masked one, in float64."""
        images = self._delta_images()
        masks = [
            torch.isin(torch.arange(space.old), torch.tensor(space.index)).to(images)
            for space in mutation.spaces[1:]
        ]
        expected = self._put_out(self._exact(old), images, masks)
        found = self._put_out(self._exact(new), images)
        return output_change(mutation, expected, found, embeddings=self._headless(old))

    def _delta_images(self) -> Tensor:
        return normalize(self.feed.probe()[:DELTA_IMAGES]).double()

    def _put_out(
        self, learner: Learner, images: Tensor, masks: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The projections of images, a few at a time; `masks` as for the backbone."""
        given = {} if masks is None else {"masks": masks}
        few = images.split(self.delta_batch)
        return torch.cat([learner.project(learner.backbone(each, **given)) for each in few])

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
                self.timed_batch,
                repeats=TIMED_REPEATS,
                warmup=1,
                device=device,
                in_channels=architecture.in_channels,
            )
            for name, networks in (("before_ms", old), ("after_ms", new))
        }
        return {"batch": self.timed_batch, **times}

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
