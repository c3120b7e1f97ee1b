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
from sseg_nase.nets.maps import wires_of_heads
from sseg_nase.nets.mutation import Mutation
from sseg_nase.sparsity.recalibration import recalibrate
from sseg_nase.ssl.methods import Crops, Losses, method_of
from sseg_nase.training.accumulation import Views, differentiate, evaluate
from sseg_nase.training.distributed import average_over_ranks, gather_rows, synchronizing
from sseg_nase.training.divergence import MOST_SKIPPED
from sseg_nase.training.fabric import Fabric
from sseg_nase.training.instances import EPISODES, instance_accuracies
from sseg_nase.training.ledger import CHECKS, IMPORTANCE, TRIALS, Ledger
from sseg_nase.training.networks import Networks, Workshop
from sseg_nase.training.optim import set_learning_rate

PROBE, TRIAL = "probe", "trial"  # separate random streams
DELTA_IMAGES = 32
TIMED_BATCH, TIMED_REPEATS = 64, 5
SMALLEST_SIZE = 1e-12  # that a distance is related to
WIDER = 4  # times as wide as float16: float64


class Probe:
    """Losses, gradients and function deltas on images of the feed's present levels.

    Losses and gradients are taken as a step of training takes them: in its precision, with a loss
    scale that is divided out where that is float16, batches of the same size compared with each
    other, divided into the same parts and among the same processes. So a mutation needs no more
    memory than a step. In bfloat16 the fall of a held loss is rounded by 2e-4 of the loss, in
    float16 by 2e-5. Function deltas are in float64. All numbers are the same in every process, and
    all must ask for them together.
    """

    def __init__(
        self,
        config: Config,
        feed: CurriculumFeed,
        workshop: Workshop,
        fabric: Fabric,
        ledger: Ledger,
    ) -> None:
        self.config, self.feed, self.workshop, self.fabric = config, feed, workshop, fabric
        self.ledger = ledger
        self.image_size = config.dataset.image_size  # of the views, set by whoever trains
        self.method = method_of(config.ssl)
        batch = config.hardware.batch_size
        assert batch is not None
        self.delta_batch = max(1, batch // WIDER)
        self.timed_batch = min(TIMED_BATCH, batch)

    @torch.no_grad()
    def held_losses(self, networks: Sequence[Networks], epoch: int, part: str = CHECKS) -> Tensor:
        """The contrastive part of the loss as of `epoch` of each of `networks` on the held batches.

        `[networks, batches]` float64 on the CPU. Same images and views for all of them, and at
        every call within a level: two rows are paired. The distance to a teacher is no part of it,
        since channels that are silent in both networks make it smaller.
        """
        learners = [copy.deepcopy(each.learner).train() for each in networks]
        columns = []
        for parts in self.held():
            for each in networks:
                self.ledger.add_loss(part, each, self.method, parts, backward=False)
            with synchronizing():
                losses = [
                    evaluate(
                        self.method.loss,
                        learner,
                        each.teaching(epoch),
                        parts,
                        self.config.ssl,
                        autocast=self.fabric.autocast,
                        gather=gather_rows,
                    ).contrastive.double()
                    for learner, each in zip(learners, networks, strict=True)
                ]
            average_over_ranks(losses)
            columns.append(torch.stack(losses))
        return torch.stack(columns, dim=1).cpu()

    @torch.no_grad()
    def held_accuracies(self, networks: Sequence[Networks]) -> Tensor:
        """`instance_accuracies` of the backbones of `networks`, in eval mode, on the held images.

        `[networks, EPISODES]` float64 on the CPU. The same episodes for all of them and at every
        call within a level, each of images of one batch, which are different ones.
        """
        backbones = [copy.deepcopy(each.learner.backbone).eval() for each in networks]
        batches = self.feed.held_batches
        columns = []
        for index, parts in enumerate(self.held()):
            count = (EPISODES - index - 1) // batches + 1
            seed = derive(self.config.seed, PROBE, index)
            column = []
            for each, backbone in zip(networks, backbones, strict=True):
                embedded = []
                for views in parts:
                    pair = views[0][:2]
                    self.ledger.add(CHECKS, each.architecture, [pair])
                    with self.fabric.autocast():
                        embedded.append([gather_rows(backbone(view)).float() for view in pair])
                support, query = (torch.cat(rows) for rows in zip(*embedded, strict=True))
                column.append(instance_accuracies(support, query, count, seed=seed))
            columns.append(torch.stack(column))
        return torch.cat(columns, dim=1)

    def held(self) -> Iterator[list[Views]]:
        """`views` of the feed's held batches, in this process's parts: always the same ones."""
        stream = self.feed.held()
        for index in itertools.count():
            parts = list(itertools.islice(stream, self.feed.micro))
            if not parts:
                return
            yield self.views_of(parts, derive(self.config.seed, PROBE, index))

    def gradients(self, networks: Networks, epoch: int, batches: int) -> Iterator[None]:
        """Each time leave in `.grad` of the student that of the loss of another batch.

        The batches are like those of `epoch`, but not the ones trained on.
        """
        for parts in self.batches(epoch, batches):
            self.differentiate(networks, epoch, parts, part=IMPORTANCE)
            yield

    def differentiate(
        self,
        networks: Networks,
        epoch: int,
        parts: Sequence[Views],
        of: int = 1,
        *,
        part: str,
        tracks: bool = False,
    ) -> Losses:
        """Leave the gradient of a batch's loss, divided by `of`, in the student's `.grad`.

        Returns the losses. `tracks`: the teacher tracks its statistics, as in a step of training.
        `part`: of the ledger.

        All that is computed for a gradient outside of the training is computed here: for trials,
        the importance, and networks that are trained along. Where gradients overflow float16 they
        are taken again with half the loss scale.
        """
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()  # fits the networks that are trained

        def backward(total: Tensor) -> None:
            (total / of * scale).backward()

        for _ in range(1 if scaler is None else MOST_SKIPPED):
            networks.learner.zero_grad(set_to_none=True)
            self.ledger.add_loss(part, networks, self.method, parts)
            with synchronizing():
                losses = differentiate(
                    self.method.loss,
                    networks.learner,
                    networks.teaching(epoch, tracks=tracks),
                    parts,
                    self.config.ssl,
                    backward=backward,
                    autocast=self.fabric.autocast,
                    gather=gather_rows,
                )
            found = [p.grad for p in networks.learner.parameters() if p.grad is not None]
            average_over_ranks(found)
            if scaler is None:
                break
            torch._foreach_mul_(found, 1 / scale)
            if torch.stack(torch._foreach_norm(found)).isfinite().all():
                break
            scale /= 2
        return losses

    def batches(self, epoch: int, count: int) -> Iterator[list[Views]]:
        """`views` of batches like those of `epoch`, but other ones, in this process's parts."""
        stream = itertools.chain.from_iterable(
            self.feed.others(epoch, TRIAL if again == 0 else f"{TRIAL} {again}")
            for again in itertools.count()  # where more are asked for than an epoch has
        )
        for index in range(count):
            parts = list(itertools.islice(stream, self.feed.micro))
            yield self.views_of(parts, derive(self.config.seed, TRIAL, epoch, index))

    def views_of(self, parts: Sequence[Batch], seed: int) -> list[Views]:
        """`views` of every part of one batch."""
        return [self.views(each.images, seed, first=each.first, of=each.of) for each in parts]

    def recalibrate(self, networks: Networks, epoch: int, batches: int) -> None:
        """Re-estimate all BN statistics, from `batches` that are like those of `epoch`.

        On views of the whole size: embeddings are of such images. The teacher has statistics of its
        own, and they are those of a network that is gone, too.
        """
        parts = (networks.teacher, networks.teacher_head)
        teacher = nn.Sequential(*(part for part in parts if part is not None))
        for network in (networks.learner, teacher):
            if not any(isinstance(part, _BatchNorm) for part in network.modules()):
                continue
            whole = self._whole_views(networks, epoch, batches)
            with synchronizing():
                recalibrate(network, whole)

    def _whole_views(self, networks: Networks, epoch: int, batches: int) -> Iterator[Tensor]:
        for parts in self.batches(epoch, batches):
            for views in parts:
                self.ledger.add(CHECKS, networks.architecture, views[:1])
                yield views[0].flatten(0, 1)

    def trials(
        self,
        networks: Networks,
        mutations: Sequence[Mutation],
        *,
        epoch: int,
        steps: int,
        lr: float,
        new_lr_ratio: float = 1.0,
    ) -> Tensor:
        """`held_losses` of `networks`, of them after `steps` steps, and so after each mutation.

        `[2 + mutations, batches]`. All are copies that see the same batches, and none is kept. What
        a mutation adds takes `new_lr_ratio` times the learning rate `lr`: a branch that begins at 0
        could not be seen after so few steps otherwise.
        """
        stay = self.workshop.restored(networks.state_dict())
        tried = [stay, *(self.workshop.mutated(networks, each) for each in mutations)]
        added = [[], *(_added(each, by) for each, by in zip(tried[1:], mutations, strict=True))]
        for each in tried:
            each.learner.train()
        for parts in self.batches(epoch, steps):
            for each, new in zip(tried, added, strict=True):
                before = [parameter.detach().clone() for parameter in new]
                self.step(each, epoch, parts, lr)
                for parameter, old in zip(new, before, strict=True):
                    parameter.data.lerp_(old, 1 - new_lr_ratio)
        return self.held_losses([networks, *tried], epoch, TRIALS)

    def step(self, networks: Networks, epoch: int, parts: Sequence[Views], lr: float) -> None:
        """One step of the student of `networks` on one batch, outside of the training."""
        losses = self.differentiate(networks, epoch, parts, part=TRIALS)
        if losses.memory is not None:
            networks.memory = losses.memory
        set_learning_rate(networks.optimizer, lr)
        self.prepare(networks, epoch)
        networks.optimizer.step()
        networks.optimizer.zero_grad(set_to_none=True)

    def prepare(self, networks: Networks, epoch: int) -> None:
        """What is done to the gradients of `networks`, outside of the training, before a step."""
        networks.hold(epoch)
        if (most := self.config.optimizer.clip_norm) is not None:
            torch.nn.utils.clip_grad_norm_(networks.learner.parameters(), most)

    @torch.no_grad()
    def gap(self, networks: Networks) -> float | None:
        """‖s − t‖² / ‖t‖² of student and teacher on the held batches; None without a teacher.

        Of the embeddings of every image's first view. Both normalise with the batch and track
        nothing, so that equal weights have no gap; channels that are silent in both do not count.
        """
        if networks.teacher is None:
            return None
        of = (networks.learner.backbone, networks.teacher)
        pair = [copy.deepcopy(each).train() for each in of]
        apart = torch.zeros(2, dtype=torch.float64, device=self.workshop.device)
        for parts in self.held():
            for views in parts:
                self.ledger.add(CHECKS, networks.architecture, [views[0][0]], len(pair))
                with synchronizing(), self.fabric.autocast():
                    student, teacher = (each(views[0][0]).double() for each in pair)
                apart += torch.stack([(student - teacher).square().sum(), teacher.square().sum()])
        average_over_ranks([apart])
        distance, size = apart.tolist()
        return distance / max(size, SMALLEST_SIZE)

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
        masks = [kept.to(images) for kept in mutation.kept]
        expected = self._put_out(self._exact(old), images, masks)
        found = self._put_out(self._exact(new), images)
        return output_change(mutation, expected, found, embeddings=self._headless(old))

    def _delta_images(self) -> Tensor:
        return normalize(self.feed.probe()[:DELTA_IMAGES]).double()

    def _put_out(
        self, learner: Learner, images: Tensor, masks: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The projections of images, a few at a time; `masks` as in `Backbone.masked`."""
        net, few = learner.backbone, images.split(self.delta_batch)
        embedded = (net(each) if masks is None else net.masked(each, masks) for each in few)
        return torch.cat([learner.project(features) for features in embedded])

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
        ssl, side = self.config.ssl, self.image_size
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


def _added(networks: Networks, mutation: Mutation) -> list[nn.Parameter]:
    """The student's parameters that continue none from before the mutation."""
    named = dict(networks.learner.named_parameters())
    maps = mutation.learner_maps(
        wires_of_heads(networks.learner.heads, mutation.after.embedding_axis)
    )
    return [parameter for name, parameter in named.items() if maps[name].source is None]


def _seeds(seed: int) -> Iterator[int]:
    """One per kind of crops; the first is `seed` itself."""
    yield seed
    for kind in itertools.count(1):
        yield derive(seed, "crops", kind)
