"""The training loop. It knows no tracker, no Hydra and no particular mutation."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sseg_nase.config.schema import Config
from sseg_nase.config.sizes import size_at
from sseg_nase.data.curriculum.render import perturb
from sseg_nase.data.feed import Batch, CurriculumFeed
from sseg_nase.data.random import derive
from sseg_nase.evolution.history import MutationRecord, counts
from sseg_nase.evolution.selection import Difference, paired
from sseg_nase.finite import finite, not_finite, shortened
from sseg_nase.hardware.allocator import release_memory
from sseg_nase.kinds import kind_of
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.evolvable import Learner
from sseg_nase.nets.mutation import Mutation
from sseg_nase.ssl.methods import Losses, method_of
from sseg_nase.ssl.objectives import nt_xent
from sseg_nase.ssl.teacher import ema_decay
from sseg_nase.tracking.sink import Sink
from sseg_nase.training.accumulation import differentiate
from sseg_nase.training.compiling import Choice, choose
from sseg_nase.training.control import Control
from sseg_nase.training.distributed import (
    gather_rows,
    same_everywhere,
    synchronizing,
)
from sseg_nase.training.divergence import DivergenceError, Guard, tell_skipped
from sseg_nase.training.events import Callback, Event
from sseg_nase.training.fabric import Fabric, restore_precision
from sseg_nase.training.graphs import CudaGraph, Replayed, Views, why_not
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.ledger import STUDENT, TEACHER, Ledger
from sseg_nase.training.networks import Networks, Workshop
from sseg_nase.training.optim import lr_ratio, set_learning_rate
from sseg_nase.training.probe import Probe

VIEWS = "views"
PROBATION_ERRORS = 2  # standard errors by which a mutation on probation may look worse
LARGEST_PRUNING_ERROR = 1e-5  # relative, between the pruned network and the masked one


@dataclass(frozen=True)
class Decision:
    """What an intervention wants. `mutation` None: nothing, and `trigger['reason']` says why.

    `tolerance`: relative rise of the held loss, over that of the network without the mutation, up
    to which it stays, but for the error of that difference; judged `grace` epochs later (0: at
    once). `control`: the network without the mutation is trained along until then. `recalibrate`:
    batches from which the new network's BN statistics are computed anew. `negative`: of a PRUNE,
    the one that keeps what it removes, to be judged beside it.
    """

    mutation: Mutation | None
    trigger: dict[str, Any]
    fitness: float | None = None
    tolerance: float = float("inf")
    grace: int = 0
    control: bool = False
    recalibrate: int = 0
    negative: Mutation | None = None


class Intervention(Protocol):
    """Says when the architecture changes. The change itself is a `Mutation`."""

    name: str

    def observe(self, trainer: Trainer) -> None:
        """Called once after every epoch."""

    def decide(self, trainer: Trainer) -> Decision:
        """Called after every epoch that another one follows, unless a mutation is on probation."""

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""


@dataclass
class Progress:
    """Where training is: `batch` batches of epoch `epoch` and `step` optimizer steps are done.

    `skipped` further steps were none, because the scaler of 16-mixed skipped them. `sums` are the
    losses of those batches. All that is random follows from these and the seed.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    skipped: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    images_seen: dict[str, int] = field(
        default_factory=lambda: {"synthetic": 0, "real_unlabeled": 0, "real_labeled": 0}
    )
    history: list[MutationRecord] = field(default_factory=list)


@dataclass(frozen=True)
class EpochMeans:
    """Mean losses of one epoch, its level and the network's widths.

    `gap` is the distillation loss, None without a teacher.
    """

    level: str
    channels: tuple[int, ...]
    loss: float
    contrastive: float
    gap: float | None
    images_per_second: float


@dataclass
class Probation:
    """A mutation that has yet to prove itself; `old` are the networks without it.

    `control`: they are trained along, on the same batches.
    """

    old: Networks
    index: int
    until: int
    tolerance: float
    control: bool = False


class Trainer:
    """Self-supervised pretraining with interventions between epochs.

    `stop` is asked after every step; when it says so, `fit` emits `INTERRUPT` and raises
    `Interrupted`. It raises `DivergenceError` within the epoch in which losses or weights stop
    being finite, or explode, and before anything of it is saved. With several processes all of them
    run the same `fit`: each on its share of every batch, with losses and BN statistics over the
    whole of it. `guide`: the network of another run, which embeddings follow, too (ssl.teacher).
    """

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
        stop: Callable[[], bool] = lambda: False,
        guide: Backbone | None = None,
    ) -> None:
        self.config, self.feed, self.fabric, self.stop = config, feed, fabric, stop
        self.interventions, self.callbacks = list(interventions), list(callbacks)
        self.sink = sink or Sink()
        self.method = method_of(config.ssl)
        self.workshop = Workshop(config, fabric.device, guide)
        self.ledger = Ledger()
        self.probe = Probe(config, feed, self.workshop, fabric, self.ledger)
        self.progress = Progress()
        self.probation: Probation | None = None
        self.control: Control | None = None
        self.means: EpochMeans | None = None
        self.told_few_held = False
        self.compiling: Choice | None = None
        # With hardware.accumulate=exact the feed's batches are those of a whole step, in parts.
        self.accumulation = (config.hardware.gradient_accumulation_steps or 1) // feed.micro
        self.steps_per_epoch = -(-feed.batches_per_epoch // self.accumulation)
        self.graphs = self._graphs() if config.hardware.cuda_graphs else None
        self._install(self.workshop.around(learner))
        self.guard = Guard(
            fabric, self._parts(), steps_per_epoch=self.steps_per_epoch, what="pretraining"
        )

    def fit(self) -> None:
        """Train for all epochs that are left."""
        began = self.progress.epoch
        try:
            self._emit(Event.FIT_START)
            while self.progress.epoch < self.config.pretrain.epochs:
                self._train_epoch()
                self._emit(Event.EPOCH_END)
                if self.graphs is not None:
                    self.graphs.forget()
                release_memory()
                self._change()
                release_memory()
                self._next_epoch()
            if self.progress.step == 0:
                self.guard.check_skipped(f"by {self._place()}", most=0)
            if self.progress.epoch > began:
                tell_skipped(self.sink, "pretraining", self.progress.step, self.progress.skipped)
            assert same_everywhere(self._digest()) == self._digest(), "processes have parted"
            self._emit(Event.FIT_END)
        finally:
            self._emit(Event.CLOSE)

    # -- one epoch ---------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        progress, batches = self.progress, self.feed.batches_per_epoch
        self.probe.image_size = self.image_size
        if progress.batch == 0:
            self._emit(Event.EPOCH_START)
        if self.config.hardware.compile and progress.epoch > 1 + self._epoch_of_last_change():
            self._compile()
        self.model.train()
        sums = torch.tensor(progress.sums, device=self.fabric.device)
        began, images = time.perf_counter(), 0
        for index, parts in enumerate(self._batches(), progress.batch):
            self._emit(Event.BATCH_START)
            group_end = index + 1 == batches or (index + 1) % self.accumulation == 0
            group_size = min(self.accumulation, batches - index + index % self.accumulation)
            losses = self._differentiate(parts, index, group_size, last=group_end)
            if losses.memory is not None:
                self.networks.memory = losses.memory
            self._emit(Event.AFTER_BACKWARD)
            sums += torch.stack(_figures_of(losses))
            self.guard.saw(losses.total)
            images += parts[0].of
            for source, count in parts[0].seen.items():
                progress.images_seen[source] += count
            if group_end:
                if self.guard.at_every_step:
                    self.guard.check_losses(sums.tolist(), f"at {self._place(progress.step + 1)}")
                if self._step():
                    speed = images / (time.perf_counter() - began)
                    self._report(index + 1, batches, losses, sums, speed)
                    self._emit(Event.AFTER_STEP)
            if group_end and self.stop():
                progress.batch, progress.sums = index + 1, sums.tolist()
                self._check(progress.sums)
                self._emit(Event.INTERRUPT)
                raise Interrupted
        means = self.fabric.all_reduce(sums / batches)
        assert isinstance(means, Tensor)
        total, contrastive, gap = means.tolist()
        self._check([total, contrastive, gap])
        doubt = self.guard.check_epoch(total, self._parts(), f"in {self._place()}")
        if doubt is not None:
            self.sink.event("warning", {"text": doubt})
        architecture = self.networks.architecture
        self.means = EpochMeans(
            self.feed.schedule.level,
            tuple(architecture.axes.values()) or architecture.channels,
            total,
            contrastive,
            None if self.networks.teacher is None else gap,
            images / (time.perf_counter() - began),
        )
        skipped = {"skipped": progress.skipped} if progress.skipped else {}
        self.sink.event("epoch", {"epoch": progress.epoch, **self._figures(), **skipped})

    def _compile(self) -> None:
        """Let torch compile what has lasted; with hardware.compile=auto where it is faster so.

        That is measured once for networks that stay as they are, also by a resumed run.
        """
        if self.config.hardware.compile == "auto":
            since, epoch = self._epoch_of_last_change(), self.progress.epoch
            if self.compiling is None or self.compiling.since != since:
                self.compiling = choose(
                    self.networks, self.probe, epoch=epoch, since=since, stop=self.stop
                )
                if self.compiling is None:
                    return  # to be stopped after the next step
                about = {"text": self.compiling.text(), "epoch": epoch, **asdict(self.compiling)}
                self.sink.event("message", about)
            if not self.compiling.compiled:
                return
        self.networks.compile()

    def _check(self, losses: Sequence[float]) -> None:
        """Raise `DivergenceError` unless what is to be kept, or saved, is finite."""
        self.guard.check_losses(losses, f"in {self._place()}")
        self.guard.check_state(self.networks.state_dict(), f"in {self._place()}")

    def _place(self, step: int | None = None) -> str:
        """Where training is, in words; epochs and steps count from 1."""
        epoch = f"epoch {self.progress.epoch + 1} (level {self.feed.schedule.level})"
        if step is None:
            return f"{epoch}, after step {self.progress.step}"
        return f"step {step}, {epoch}"

    def _parts(self) -> dict[str, nn.Module]:
        return {"student": self.networks.learner}

    def _epoch_of_last_change(self) -> int:
        """The epoch after which the networks became what they are; -1 for those of the start."""
        changes = [-1]
        for record in self.progress.history:
            if record.accepted:
                changes.append(record.epoch)
            elif "rollback" in record.trigger:
                changes += [record.epoch, record.trigger["rollback"]["epoch"]]
        return max(changes)

    def _batches(self) -> Iterator[list[Batch]]:
        """The parts of every batch of the epoch that is left to train on."""
        stream = self.feed.epoch(self.progress.epoch, start=self.progress.batch)
        while parts := list(itertools.islice(stream, self.feed.micro)):
            yield parts

    def _differentiate(self, parts: Sequence[Batch], index: int, of: int, *, last: bool) -> Losses:
        """Add the gradient of a batch's loss, one `of` so many, and return the losses, detached.

        `last`: the processes exchange what has been added up.
        """
        seed = derive(self.config.seed, VIEWS, self.progress.epoch, index)
        perturbed = [replace(each, images=self._perturbed(each)) for each in parts]
        views = self.probe.views_of(perturbed, seed)
        self.ledger.add_loss(STUDENT, self.networks, self.method, views, teacher=TEACHER)
        if self.control is not None:
            self.control.differentiate(views, self.progress.epoch, of)

        def around(of_the_last: bool) -> AbstractContextManager[None]:
            return self.fabric.no_backward_sync(self.model, enabled=not (last and of_the_last))

        def compute(given: Views, known: Callable[[], None] = lambda: None) -> Losses:
            with synchronizing():
                return differentiate(
                    self.method.loss,
                    self.model,
                    self.networks.teaching(self.progress.epoch, tracks=True),
                    given,
                    self.config.ssl,
                    backward=lambda total: self.fabric.backward(total / of),
                    autocast=self.fabric.autocast,
                    gather=gather_rows,
                    around=around,
                    known=known,
                )

        if self.graphs is None:
            return compute(views, lambda: self._emit(Event.AFTER_LOSS))
        losses = self.graphs(compute, self.networks.learner, views)
        self._emit(Event.AFTER_LOSS)
        return losses

    def _perturbed(self, batch: Batch) -> Tensor:
        """ADVERSARIAL images moved a little towards what the student confuses them with.

        Among those of this process and part: the loss that they raise is no more than a direction.
        """
        epsilon, chosen = self.config.curriculum.perturbation, batch.adversarial
        if not epsilon or not chosen:
            return batch.images
        learner = copy.deepcopy(self.networks.learner).eval()
        rows = slice(chosen[0], chosen[-1] + 1)  # a list would be sent to the device as indices
        assert len(batch.images[rows]) == len(chosen), chosen
        plain = batch.images[rows].float() / 255
        # Forward for the anchors; forward and back for the loss's gradient in the images alone.
        self.ledger.add(STUDENT, self.networks.architecture, [plain], 3)
        with torch.no_grad():
            anchors = learner(2 * plain - 1)[1]

        def loss(images: Tensor) -> Tensor:
            return nt_xent(learner(2 * images - 1)[1], anchors, self.config.ssl.temperature)

        moved = perturb(plain, loss, epsilon)
        images = batch.images.clone()
        images[rows] = (moved * 255).round().to(torch.uint8)
        return images

    @property
    def image_size(self) -> int:
        """Of the views, in the epoch that is trained."""
        pretrain, usual = self.config.pretrain, self.config.dataset.image_size
        return size_at(pretrain.image_sizes, self.progress.epoch, pretrain.epochs, usual)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        accepted = [record.step for record in self.progress.history if record.accepted]
        return self.config.optimizer.lr * lr_ratio(
            self.progress.step,
            self.steps_per_epoch,
            self.config.pretrain.epochs,
            self.config.scheduler,
            mutated_at=accepted[-1] if accepted else None,
        )

    def _step(self) -> bool:
        """A step of optimizer and teacher; False where the scaler of 16-mixed skips it.

        Then nothing has changed but the scale and what the forward passes track, and no step is
        counted: neither by the schedules nor by the teacher.
        """
        set_learning_rate(self.optimizer, self.learning_rate)
        self.networks.hold(self.progress.epoch)
        if (most := self.config.optimizer.clip_norm) is not None:
            # Where it is not finite the scaler skips the step, or the guard says so.
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=most, error_if_nonfinite=False
            )
        taken = self.guard.took(self.optimizer.step)
        self.optimizer.zero_grad(set_to_none=True)
        if not taken:
            self.progress.skipped += 1
            if self.control is not None:
                self.control.skip()
            self.guard.check_skipped(f"at {self._place(self.progress.step + 1)}")
            return False
        steps = self.steps_per_epoch * self.config.pretrain.epochs
        decay = ema_decay(self.progress.step, steps, self.config.ssl)
        self.networks.follow(decay)
        if self.control is not None:
            self.control.step(self.learning_rate, decay, self.progress.epoch)
        self.progress.step += 1
        return True

    def _report(self, batch: int, batches: int, losses: Losses, sums: Tensor, speed: float) -> None:
        if self.progress.step % self.config.tracking.interval_steps:
            return
        # The sums hold every NaN of the epoch: read together, they cost no further wait.
        figures = self.fabric.all_reduce(torch.cat((torch.stack(_figures_of(losses)), sums)))
        assert isinstance(figures, Tensor)
        loss, contrastive, gap, *so_far = figures.tolist()
        self.guard.check_losses(so_far, f"by {self._place(self.progress.step)}")
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
            "blocks": len(architecture.channels),
            "params": architecture.params,
        }
        if self.config.pretrain.image_sizes is not None:
            figures["image_size"] = self.image_size
        if self.means is not None:
            figures |= {
                "loss": self.means.loss,
                "gap": self.means.gap,
                "images_per_second": self.means.images_per_second,
            }
        return figures

    def _change(self) -> None:
        """One decision between two epochs: evolve or prune if there is reason to, else go on to the
        next level if it is time to.

        Not both: what is new is compared on the images that it was trained on. So a probation ends
        before its level does, however few epochs it had: the networks without the mutation may
        never see the next one. A level's end is put off once at most.
        """
        assert self.means is not None
        reason = self.feed.schedule.observe(self.means.loss, self.means.gap)
        changed = self._intervene(judge=reason is not None)
        if reason is None or changed:
            return  # of a level that is over `observe` says so again
        self.feed.schedule.advance()
        level = {"level": self.feed.schedule.level, "epoch": self.progress.epoch + 1}
        self.sink.event("level", {**level, "reason": reason})

    def _next_epoch(self) -> None:
        self.progress.epoch += 1
        self.progress.batch, self.progress.sums = 0, [0.0, 0.0, 0.0]

    # -- mutations ---------------------------------------------------------------------------

    def _intervene(self, *, judge: bool) -> bool:
        """Ask every intervention in turn; each sees what the one before it left.

        `judge`: end a probation at once. Returns whether there was a mutation.
        """
        for intervention in self.interventions:
            intervention.observe(self)
        last = self.progress.epoch + 1 >= self.config.pretrain.epochs
        if self.probation is not None and (
            last or judge or self.progress.epoch >= self.probation.until
        ):
            self._judge(self.probation)
        if last:
            return False  # what changes now would never be trained
        known = len(self.progress.history)
        for intervention in self.interventions:
            self._say_few_held()
            if self.probation is not None:
                decision = Decision(None, {"reason": "the last mutation is on probation"})
            elif self.feed.schedule.overdue:
                decision = Decision(None, {"reason": "the next level was put off once already"})
            else:
                decision = same_everywhere(intervention.decide(self))
            if decision.mutation is not None:
                self._mutate(decision.mutation, decision)
            else:
                about = {"intervention": intervention.name, "epoch": self.progress.epoch}
                self.sink.event("decision", {**about, **decision.trigger})
        return len(self.progress.history) > known

    def _say_few_held(self) -> None:
        note = self.feed.few_held
        if note is not None and not self.told_few_held:
            self.told_few_held = True
            self.sink.event("message", {"text": note})

    def _mutate(self, mutation: Mutation, decision: Decision) -> None:
        """Apply to student, teacher and optimizer, verify, then accept or leave all as it was."""
        began, epoch = time.perf_counter(), self.progress.epoch
        old = self.networks
        new = self.workshop.mutated(old, mutation)
        self._verify(old, new, mutation)
        if decision.recalibrate:
            self.probe.recalibrate(new, epoch, decision.recalibrate)
        held = self.probe.held_losses([old, new], epoch)
        loss_before, loss_after = held.mean(1).tolist()
        unfit = [
            f"the held loss {when} it is not finite"
            for when, loss in (("before", loss_before), ("after", loss_after))
            if not finite(loss)
        ]
        if names := not_finite(new.state_dict()):
            unfit.append(f"not finite after it are {shortened(names)}")
        fits = decision.grace > 0 or within(held[1], held[0], decision.tolerance)
        accepted = same_everywhere(not unfit and fits)
        trigger = {**decision.trigger, "refused": "; ".join(unfit)} if unfit else decision.trigger
        pruned = kind_of(mutation.kind).removes and not unfit
        record = MutationRecord(
            index=len(self.progress.history),
            epoch=epoch,
            step=self.progress.step,
            kind=mutation.kind,
            target=mutation.target,
            trigger=trigger,
            before=counts(mutation.before),
            after=counts(mutation.after),
            function_delta=self.probe.function_delta(old, new, mutation),
            loss_before=loss_before,
            loss_after=loss_after,
            fitness=decision.fitness,
            seconds=time.perf_counter() - began,
            accepted=accepted,
            measured=self._measured(old, new, decision) if pruned else None,
        )
        if accepted:
            self._install(new)
        if accepted and decision.grace:
            until = epoch + decision.grace
            if decision.control:  # a copy: what was trained here before is not trained by hand
                old = self.workshop.restored(old.state_dict())
            self._watch(Probation(old, record.index, until, decision.tolerance, decision.control))
        self.progress.history.append(record)
        self.sink.event("mutation", record.to_dict())
        if record.measured is not None:
            self._doubt_removed(record.measured)
        self._emit(Event.MUTATION)

    def _measured(self, old: Networks, new: Networks, decision: Decision) -> dict[str, Any]:
        """What a PRUNE costs and gives, at once: `accuracy`, `latency`.

        Accuracies in percent of `Probe.held_accuracies` with the standard errors of paired
        differences: `before`, `after`, and of what was removed alone (`removed`, less that of what
        is kept: `removed_lead`). Latencies as `Probe.latency` has them.
        """
        networks = [old, new]
        if decision.negative is not None:
            negative = self.workshop.mutated(old, decision.negative)
            if decision.recalibrate:
                self.probe.recalibrate(negative, self.progress.epoch, decision.recalibrate)
            networks.append(negative)
        before, after, *removed = self.probe.held_accuracies(networks)
        accuracy: dict[str, Any] = {"episodes": len(before), "before": before.mean().item()}
        accuracy |= {"after": after.mean().item(), **_named("change", paired(after, before))}
        for one in removed:
            accuracy |= {"removed": one.mean().item(), **_named("removed_lead", paired(one, after))}
        return {"accuracy": accuracy, "latency": self.probe.latency(old, new)}

    def _doubt_removed(self, measured: Mapping[str, Any]) -> None:
        """Warn where what was removed does better than what was kept, beyond the error."""
        accuracy = measured["accuracy"]
        lead, error = accuracy.get("removed_lead"), accuracy.get("removed_lead_error")
        if lead is None or not lead > PROBATION_ERRORS * error:
            return
        text = (
            "what PRUNE removes does better than what it keeps: on held images its channels alone "
            f"reach {accuracy['removed']:.1f} %, those that are kept {accuracy['after']:.1f} % "
            f"(difference {lead:+.1f} ± {error:.1f}). Their importance may be noise: raise "
            "sparsity.importance_batches, or lower sparsity.ratio."
        )
        self.sink.event("warning", {"text": text})

    def _judge(self, probation: Probation) -> None:
        """End a probation: the mutation stays, or the networks without it come back."""
        self._watch(None)
        held = self.probe.held_losses([self.networks, probation.old], self.progress.epoch)
        loss, without = held.mean(1).tolist()
        if not finite(without):
            # The older network is no better: with neither there is nothing to train on from.
            if not same_everywhere(finite(loss)):
                raise DivergenceError(
                    f"{self.guard.what} diverged in {self._place()}: the held loss is not finite, "
                    "with the mutation on probation and without it."
                )
            without = float("inf")
        fits = without == float("inf") or within(held[0], held[1], probation.tolerance)
        kept = same_everywhere(finite(loss) and fits)
        figures: dict[str, Any] = {"epoch": self.progress.epoch, "loss": loss}
        figures["loss_without"] = without
        figures["error"] = paired(held[0], held[1]).error
        figures["control"] = probation.control
        if self.progress.history[probation.index].measured is not None:
            accuracy = self.probe.held_accuracies([self.networks, probation.old])
            figures["accuracy"], figures["accuracy_without"] = accuracy.mean(1).tolist()
            figures |= _named("accuracy_change", paired(*accuracy))
        if not (finite(loss) and finite(without)):
            which = "with" if finite(without) else "without"
            figures["reason"] = f"the held loss {which} the mutation is not finite"
        self.sink.event("probation", {"index": probation.index, "kept": kept, **figures})
        if kept:
            return
        self._install(self.workshop.restored(probation.old.state_dict()))
        record = self.progress.history[probation.index]
        record = replace(record, accepted=False, trigger={**record.trigger, "rollback": figures})
        self.progress.history[probation.index] = record
        self.sink.event("rollback", record.to_dict())
        self._emit(Event.MUTATION)

    def _watch(self, probation: Probation | None) -> None:
        """Put a mutation on probation, or none."""
        self.probation, self.control = probation, None
        if probation is not None and probation.control:
            self.control = Control(probation.old, self.probe)

    def _verify(self, old: Networks, new: Networks, mutation: Mutation) -> None:
        """Our own invariants: counts as described, student and teacher alike, pruned as masked."""
        params = sum(p.numel() for p in new.learner.backbone.parameters())
        assert params == mutation.after.params, (params, mutation.after.params)
        if new.teacher is not None:
            assert new.teacher.architecture == mutation.after
        if kind_of(mutation.kind).removes:
            error = self.probe.pruning_error(old, new, mutation)
            assert error <= LARGEST_PRUNING_ERROR, error

    # -- parts -------------------------------------------------------------------------------

    def _install(self, networks: Networks) -> None:
        """Train `networks`, which were never trained here before, from now on.

        DDP leaves its hooks in what it once wrapped.
        """
        self.networks = networks
        self.model, self.optimizer = self.fabric.setup(networks.learner, networks.optimizer)

    def _graphs(self) -> Replayed | None:
        """For hardware.cuda_graphs=true; where there can be none, that is said."""

        def say(why: str) -> None:
            text = f"hardware.cuda_graphs=true: steps are launched one by one, because {why}"
            self.sink.event("warning", {"text": text})

        if (why := why_not(self.config, batches=self.accumulation)) is not None:
            say(why)
            return None
        return Replayed(CudaGraph, lambda error: say(f"they cannot be recorded: {error}"))

    def _digest(self) -> str:
        """Of all weights, bit for bit."""
        tensors = self.networks.learner.state_dict().values()
        return sha256(b"".join(t.cpu().numpy().tobytes() for t in tensors)).hexdigest()

    def _emit(self, event: Event) -> None:
        for callback in self.callbacks:
            callback.on(event, self)

    def state_dict(self) -> dict[str, Any]:
        """Everything a checkpoint holds: tensors and plain data.

        There is no state of random generators: every draw is derived from the seed and the place
        in training.
        """
        on_probation = self.probation
        return {
            **self.networks.state_dict(),
            **asdict(self.progress),
            "macs": self.ledger.state(),
            "levels": self.feed.schedule.state_dict(),
            "interventions": {i.name: i.state_dict() for i in self.interventions},
            "probation": None
            if on_probation is None
            else {**vars(on_probation), "old": on_probation.old.state_dict()},
            "precision": self.fabric.strategy.precision.state_dict(),
            "compiling": None if self.compiling is None else asdict(self.compiling),
            "callbacks": {type(c).__name__: c.state_dict() for c in self.callbacks},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken: bit for bit on a CPU."""
        self._install(self.workshop.restored(state))
        history = [MutationRecord.from_dict(record) for record in state["history"]]
        kept = ("epoch", "batch", "step", "sums", "images_seen")
        skipped = state.get("skipped", 0)  # an older version did not count them
        self.progress = Progress(
            **{key: state[key] for key in kept}, skipped=skipped, history=history
        )
        self.ledger.load(state.get("macs"))
        self.feed.schedule.load_state_dict(state["levels"])
        for intervention in self.interventions:
            intervention.load_state_dict(state["interventions"][intervention.name])
        for callback in self.callbacks:
            callback.load_state_dict(state["callbacks"][type(callback).__name__])
        self._watch(None)
        if state["probation"] is not None:
            old = self.workshop.restored(state["probation"]["old"])
            self._watch(Probation(**{**state["probation"], "old": old}))
        chosen = state.get("compiling")  # an older version did not choose
        self.compiling = None if chosen is None else Choice(**chosen)
        restore_precision(self.fabric, state["precision"])


def _named(name: str, difference: Difference) -> dict[str, float]:
    return {name: difference.mean, f"{name}_error": difference.error}


def within(new: Tensor, old: Tensor, tolerance: float) -> bool:
    """Whether held losses `[K]` are no higher than `tolerance` allows, by what lies beyond the
    error of their paired difference."""
    rise = paired(new, old)
    return rise.mean <= tolerance * abs(old.mean().item()) + PROBATION_ERRORS * rise.error


def _figures_of(losses: Losses) -> tuple[Tensor, Tensor, Tensor]:
    gap = losses.distillation
    return losses.total, losses.contrastive, torch.zeros_like(losses.total) if gap is None else gap
