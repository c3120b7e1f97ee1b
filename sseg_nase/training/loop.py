"""The training loop. It knows no tracker, no Hydra and no particular mutation."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from sseg_nase.config.schema import Config
from sseg_nase.data.curriculum.render import perturb
from sseg_nase.data.feed import Batch, CurriculumFeed
from sseg_nase.data.random import derive
from sseg_nase.data.views import normalize, two_views
from sseg_nase.evolution.history import MutationRecord, counts
from sseg_nase.evolution.operators import (
    TrainingState,
    apply,
    build_learner,
    load_moments,
    named_moments,
)
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN, Learner
from sseg_nase.nets.mutation import Mutation
from sseg_nase.ssl.methods import METHODS, Losses
from sseg_nase.ssl.objectives import nt_xent
from sseg_nase.ssl.teacher import ema_update, make_teacher
from sseg_nase.tracking.sink import Sink
from sseg_nase.training.events import Callback, Event
from sseg_nase.training.optim import build_optimizer, lr_ratio

VIEWS, PROBE, TRIAL = "views", "probe", "trial"  # separate random streams
DELTA_IMAGES = 32


@dataclass(frozen=True)
class Decision:
    """What an intervention wants. `mutation` None: nothing, and `trigger['reason']` says why.

    `tolerance`: relative rise of the probe's loss up to which the mutation is accepted.
    """

    mutation: Mutation | None
    trigger: dict[str, Any]
    fitness: float | None = None
    tolerance: float = float("inf")


class Intervention(Protocol):
    """Says when the architecture changes. The change itself is a `Mutation`."""

    name: str

    def decide(self, trainer: Trainer) -> Decision:
        """Called once after every epoch."""

    def settled(self, record: MutationRecord) -> None:
        """Told of every mutation that was tried, its own or another's."""

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""


@dataclass
class Networks:
    """Student, teacher and optimizer: what a mutation replaces together."""

    learner: Learner
    teacher: EvolvableCNN | None
    optimizer: torch.optim.Optimizer

    @property
    def architecture(self) -> Architecture:
        """Of the student, and so of the teacher."""
        return self.learner.backbone.architecture

    def state(self) -> TrainingState:
        """All of it as named tensors."""
        teacher = None if self.teacher is None else self.teacher.state_dict()
        moments = named_moments(self.optimizer, self.learner)
        return TrainingState(self.learner.state_dict(), teacher, moments)


@dataclass
class Progress:
    """Where training is. `epoch` and `step` (of the optimizer) count what is done."""

    epoch: int = 0
    step: int = 0
    images_seen: dict[str, int] = field(
        default_factory=lambda: {"synthetic": 0, "real_unlabeled": 0, "real_labeled": 0}
    )
    history: list[MutationRecord] = field(default_factory=list)


@dataclass
class EpochMeans:
    """Mean losses of one epoch. `gap` is the distillation loss, None without a teacher."""

    level: str
    loss: float
    contrastive: float
    gap: float | None
    images_per_second: float


class Trainer:
    """Self-supervised pretraining with interventions between epochs."""

    def __init__(
        self,
        config: Config,
        *,
        learner: Learner,
        feed: CurriculumFeed,
        fabric: Fabric,
        interventions: Sequence[Intervention] = (),
        callbacks: Sequence[Callback] = (),
        sink: Sink | None = None,
    ) -> None:
        self.config, self.feed, self.fabric = config, feed, fabric
        self.interventions, self.callbacks = list(interventions), list(callbacks)
        self.sink = sink or Sink()
        self.method = METHODS[config.ssl.name]
        self.progress = Progress()
        self.means: EpochMeans | None = None
        self.accumulation = config.hardware.gradient_accumulation_steps or 1
        self.steps_per_epoch = -(-feed.batches_per_epoch // self.accumulation)
        self._install(self._networks(learner))

    def fit(self) -> None:
        """Train for all epochs that are left."""
        try:
            self._emit(Event.FIT_START)
            while self.progress.epoch < self.config.pretrain.epochs:
                self._train_epoch()
                self._advance_level()
                self._emit(Event.EPOCH_END)
                self._intervene()
                self.progress.epoch += 1
            self._emit(Event.FIT_END)
        finally:
            self._emit(Event.CLOSE)

    # -- one epoch ---------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        self._emit(Event.EPOCH_START)
        self.model.train()
        batches = self.feed.batches_per_epoch
        sums = torch.zeros(3, device=self.fabric.device)
        began, images = time.perf_counter(), 0
        for index, batch in enumerate(self.feed.epoch(self.progress.epoch)):
            self._emit(Event.BATCH_START)
            group_end = index + 1 == batches or (index + 1) % self.accumulation == 0
            group_size = min(self.accumulation, batches - index + index % self.accumulation)
            losses = self._losses(batch, index)
            self._emit(Event.AFTER_LOSS)
            self.fabric.backward(losses.total / group_size)
            self._emit(Event.AFTER_BACKWARD)
            sums += torch.stack(_detached(losses))
            images += len(batch.images)
            if group_end:
                self._step()
                speed = images / (time.perf_counter() - began)
                self._report(index + 1, batches, losses, speed)
                self._emit(Event.AFTER_STEP)
            for source, count in batch.seen.items():
                self.progress.images_seen[source] += count
        total, contrastive, gap = (sums / batches).tolist()
        self.means = EpochMeans(
            self.feed.schedule.level,
            total,
            contrastive,
            None if self.networks.teacher is None else gap,
            images / (time.perf_counter() - began),
        )
        self.sink.event("epoch", {"epoch": self.progress.epoch, **self._figures()})

    def _losses(self, batch: Batch, index: int) -> Losses:
        seed = derive(self.config.seed, VIEWS, self.progress.epoch, index)
        images = self._perturbed(batch)
        view1, view2 = self._views(images, seed)
        with self.fabric.autocast():
            return self.method(self.model, self.networks.teacher, view1, view2, self.config.ssl)

    def _perturbed(self, batch: Batch) -> Tensor:
        """ADVERSARIAL images moved a little towards what the student confuses them with."""
        epsilon, chosen = self.config.curriculum.perturbation, batch.adversarial
        if not epsilon or not chosen:
            return batch.images
        learner = copy.deepcopy(self.networks.learner).eval()
        plain = batch.images[chosen].float() / 255
        with torch.no_grad():
            anchors = learner(2 * plain - 1)[1]

        def loss(images: Tensor) -> Tensor:
            return nt_xent(learner(2 * images - 1)[1], anchors, self.config.ssl.temperature)

        moved = perturb(plain, loss, epsilon)
        images = batch.images.clone()
        images[chosen] = (moved * 255).round().to(torch.uint8)
        return images

    def _step(self) -> None:
        ratio = lr_ratio(
            self.progress.step,
            self.steps_per_epoch,
            self.config.pretrain.epochs,
            self.config.scheduler,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.optimizer.lr * ratio
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.networks.teacher is not None:
            ema_update(
                self.networks.teacher, self.networks.learner.backbone, self.config.ssl.ema_decay
            )
        self.progress.step += 1

    def _report(self, batch: int, batches: int, losses: Losses, speed: float) -> None:
        if self.progress.step % self.config.tracking.interval_steps:
            return
        loss, contrastive, gap = (value.item() for value in _detached(losses))
        values = {
            "pretrain/loss": loss,
            "pretrain/contrastive": contrastive,
            "pretrain/lr": self.optimizer.param_groups[0]["lr"],
            "pretrain/level": self.feed.schedule.index,
            "pretrain/images_per_second": speed,
        }
        if losses.distillation is not None:
            values["pretrain/distillation"] = gap
        self.sink.metrics(values, self.progress.step)
        shown = {**self._figures(), "loss": loss, "images_per_second": speed}
        self.sink.progress(self.progress.epoch, batch, batches, shown)

    def _figures(self) -> dict[str, Any]:
        architecture = self.networks.architecture
        figures: dict[str, Any] = {
            "level": self.feed.schedule.level,
            "blocks": len(architecture.blocks),
            "params": architecture.params,
        }
        if self.means is not None:
            figures |= {
                "loss": self.means.loss,
                "gap": self.means.gap,
                "images_per_second": self.means.images_per_second,
            }
        return figures

    def _advance_level(self) -> None:
        assert self.means is not None
        reason = self.feed.schedule.step(self.means.loss, self.means.gap)
        if reason is not None:
            level = {"level": self.feed.schedule.level, "epoch": self.progress.epoch + 1}
            self.sink.event("level", {**level, "reason": reason})

    # -- mutations ---------------------------------------------------------------------------

    def _intervene(self) -> None:
        """Ask every intervention in turn; each sees what the one before it left."""
        if self.progress.epoch + 1 >= self.config.pretrain.epochs:
            return  # what changes now would never be trained
        for intervention in self.interventions:
            decision = intervention.decide(self)
            if decision.mutation is not None:
                self._mutate(decision.mutation, decision)
            else:
                about = {"intervention": intervention.name, "epoch": self.progress.epoch}
                self.sink.event("decision", {**about, **decision.trigger})

    def _mutate(self, mutation: Mutation, decision: Decision) -> None:
        """Apply to student, teacher and optimizer, verify, then accept or leave all as it was."""
        began = time.perf_counter()
        old = self.networks
        loss_before = self.probe_loss(old)
        new = self.mutated(mutation)
        _verify(new, mutation)
        loss_after = self.probe_loss(new)
        accepted = loss_after <= loss_before * (1 + decision.tolerance)  # False for nan, too
        if accepted:
            self._install(new)
        record = MutationRecord(
            index=len(self.progress.history),
            epoch=self.progress.epoch,
            step=self.progress.step,
            kind=mutation.kind,
            target=mutation.target,
            trigger=decision.trigger,
            before=counts(mutation.before),
            after=counts(mutation.after),
            function_delta=self._function_delta(old.learner, new.learner),
            loss_before=loss_before,
            loss_after=loss_after,
            fitness=decision.fitness,
            seconds=time.perf_counter() - began,
            accepted=accepted,
        )
        self.progress.history.append(record)
        for intervention in self.interventions:
            intervention.settled(record)
        self.sink.event("mutation", record.to_dict())
        self._emit(Event.MUTATION)

    def mutated(self, mutation: Mutation) -> Networks:
        """New networks and optimizer after `mutation`; the present ones are left as they are."""
        state = apply(mutation, self.networks.state())
        learner = build_learner(mutation, state, like=self.networks.learner)
        networks = self._networks(learner)
        if networks.teacher is not None and state.teacher is not None:
            networks.teacher.load_state_dict(dict(state.teacher))
        load_moments(networks.optimizer, learner, state.moments)
        return networks

    def trial(self, mutation: Mutation, steps: int) -> float:
        """Relative fall of the probe's loss after `steps` steps with `mutation`.

        The networks of the trial are thrown away; all trials of an epoch see the same images.
        """
        networks = self.mutated(mutation)
        before = self.probe_loss(self.networks)
        for group in networks.optimizer.param_groups:
            group["lr"] = self.optimizer.param_groups[0]["lr"]
        networks.learner.train()
        for index, losses in enumerate(self.trial_losses(networks, steps)):
            losses.total.backward()
            networks.optimizer.step()
            networks.optimizer.zero_grad(set_to_none=True)
            assert index < steps
        return (before - self.probe_loss(networks)) / abs(before)

    def trial_losses(self, networks: Networks, batches: int) -> Iterator[Losses]:
        """Losses of `networks` on batches like those of the present epoch, in float32."""
        epoch = self.feed.epoch(self.progress.epoch, purpose=TRIAL)
        for index, batch in zip(range(batches), epoch, strict=False):
            yield self._plain_losses(networks, batch.images, TRIAL, index)

    @torch.no_grad()
    def probe_loss(self, networks: Networks) -> float:
        """Loss on held images of the present levels: same images and views at every call."""
        learner = copy.deepcopy(networks.learner).train()
        held = Networks(learner, networks.teacher, networks.optimizer)
        return self._plain_losses(held, self.feed.probe(), PROBE, 0).total.item()

    def _plain_losses(self, networks: Networks, images: Tensor, kind: str, index: int) -> Losses:
        seed = derive(self.config.seed, kind, self.progress.epoch if kind == TRIAL else 0, index)
        view1, view2 = self._views(images, seed)
        return self.method(networks.learner, networks.teacher, view1, view2, self.config.ssl)

    @torch.no_grad()
    def _function_delta(self, old: nn.Module, new: nn.Module) -> float:
        """‖f' − f‖ / ‖f‖ of the projections in eval mode, in float64."""
        images = normalize(self.feed.probe()[:DELTA_IMAGES]).double()
        f, f_new = (copy.deepcopy(net).double().eval()(images)[1] for net in (old, new))
        return ((f_new - f).norm() / f.norm().clamp_min(1e-12)).item()

    # -- parts -------------------------------------------------------------------------------

    def _networks(self, learner: Learner) -> Networks:
        backbone = learner.backbone
        backbone.gradient_checkpointing = self.config.hardware.gradient_checkpointing
        learner.to(self.fabric.device).to(memory_format=self._memory_format)
        distills = self.config.ssl.distillation_weight > 0
        teacher = make_teacher(backbone) if distills else None
        return Networks(learner, teacher, build_optimizer(learner, self.config.optimizer))

    def _install(self, networks: Networks) -> None:
        """Train `networks` from now on."""
        self.networks = networks
        self.model, self.optimizer = self.fabric.setup(networks.learner, networks.optimizer)

    @property
    def _memory_format(self) -> torch.memory_format:
        channels_last = self.config.hardware.channels_last
        return torch.channels_last if channels_last else torch.contiguous_format

    def _views(self, images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        size = self.config.dataset.image_size
        view1, view2 = two_views(images, self.config.views, image_size=size, seed=seed)
        layout = self._memory_format
        return view1.contiguous(memory_format=layout), view2.contiguous(memory_format=layout)

    def _emit(self, event: Event) -> None:
        for callback in self.callbacks:
            callback.on(event, self)

    def state_dict(self) -> dict[str, Any]:
        """Everything a checkpoint holds: tensors and plain data."""
        state = self.networks.state()
        return {
            "architecture": self.networks.architecture.to_dict(),
            "student": dict(state.student),
            "teacher": None if state.teacher is None else dict(state.teacher),
            "moments": {name: dict(moments) for name, moments in state.moments.items()},
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "images_seen": dict(self.progress.images_seen),
            "history": [record.to_dict() for record in self.progress.history],
            "levels": self.feed.schedule.state_dict(),
            "interventions": {i.name: i.state_dict() for i in self.interventions},
        }


def _detached(losses: Losses) -> tuple[Tensor, Tensor, Tensor]:
    gap = losses.distillation
    gap = torch.zeros_like(losses.total) if gap is None else gap
    return losses.total.detach(), losses.contrastive.detach(), gap.detach()


def _verify(networks: Networks, mutation: Mutation) -> None:
    """Our own invariants: counts as described, student and teacher alike."""
    params = sum(p.numel() for p in networks.learner.backbone.parameters())
    assert params == mutation.after.params, (params, mutation.after.params)
    if networks.teacher is not None:
        assert networks.teacher.architecture == mutation.after
