"""The loop of fine-tuning: labelled base images, episode by episode or in plain batches."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sseg_nase.config.groups.finetune import Classifying, Episodic, Linear, Maml
from sseg_nase.config.options import fields_of, options_of
from sseg_nase.config.schema import Config, FinetuneConfig, SchedulerConfig
from sseg_nase.config.sizes import size_at
from sseg_nase.counting import BACKWARD
from sseg_nase.data.episodes import EpisodeList, sample_episodes
from sseg_nase.data.placement import Images, fetch
from sseg_nase.data.prefetch import sent
from sseg_nase.data.random import derive
from sseg_nase.data.views import make_views
from sseg_nase.evolution.history import MutationRecord, architecture_figures, counts
from sseg_nase.evolution.operators import load_moments, named_moments
from sseg_nase.finetune.auxiliary import (
    Taught,
    Teacher,
    add_beside,
    cosine_distance,
    count_turned,
    rotation_loss,
    softened,
    turned,
)
from sseg_nase.finetune.evolving import LabelledProbe, Tuned, mutated
from sseg_nase.finetune.learner import (
    ROTATION,
    TO_TEACHER,
    BaseClassifier,
    EpisodeLearner,
    around,
    frozen_parts,
    method_of,
    norms_of,
)
from sseg_nase.finetune.maml import Classifier, adapt
from sseg_nase.finite import finite, not_finite, shortened
from sseg_nase.hardware.allocator import release_memory
from sseg_nase.kinds import kind_of
from sseg_nase.nets.building import build, described
from sseg_nase.nets.evolvable import ConvBlock
from sseg_nase.nets.mutation import Mutation
from sseg_nase.tracking.sink import Sink
from sseg_nase.training.divergence import Guard, tell_skipped
from sseg_nase.training.fabric import Fabric, restore_precision
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.ledger import TEACHER
from sseg_nase.training.optim import lr_ratio
from sseg_nase.training.state import Evolving
from sseg_nase.training.surgery import LARGEST_PRUNING_ERROR, Decision, Intervention, within

PURPOSE = "finetune"  # of what is drawn at random here
BESIDE = "head.beside."  # in front of what is learned beside the head, and not kept with it
STATISTICS_BATCHES = 20  # BN statistics are re-estimated from so many for another image size
OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    # Not fused: where the scaler of 16-mixed skips the first step, momenta would not be written.
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}


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
    rest of it image `partner` `[B]` of the batch.
    """

    indices: Tensor
    tasks: int = 0
    ways: int = 0
    shots: int = 0
    truth: Tensor | None = None
    partner: Tensor | None = None
    share: float = 1.0

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


class Outcome(NamedTuple):
    """Of one step: the loss, a scalar, and the share of right predictions.

    A loss without gradient has been differentiated already.
    """

    loss: Tensor
    accuracy: Tensor


@dataclass
class Progress:
    """Where fine-tuning is: `position` batches of epoch `epoch`, and `step` steps in all, are done.

    `skipped` further steps were none, because the scaler of 16-mixed skipped them.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
    skipped: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    images_seen: int = 0
    macs: int | None = 0  # of the encoder, see `training.ledger`; None: begun by an older version
    beside: dict[str, int] = field(default_factory=dict)  # of the ledger's other parts
    history: list[MutationRecord] = field(default_factory=list)
    best_accuracy: float | None = None
    best_epoch: int | None = None


class Before(NamedTuple):
    """What a run has done before a stage of fine-tuning: its records count on from here."""

    epochs: int = 0
    mutations: int = 0


class FineTuner:
    """Trains `learner` on the labelled images of the base split.

    `validate` judges the learner after every epoch (percent and 95 % interval), or, with
    `finetune.ema_decay`, the moving average `judged` of its weights; `save(name, state)` keeps the
    state: `best` where it is better than ever, `last` after every epoch and when `stop`, asked
    after every step, says so: then `Interrupted` is raised. `DivergenceError` is raised within the
    epoch in which losses or weights stop being finite, or explode. `what` names the training in
    messages, `about` its stage in events. `interventions` change the network between epochs, as
    they do in pretraining; then the best one is chosen anew. A classifier is distilled from
    `teacher`, where there is one. What is drawn at random follows from the seed and the place in
    training, so `load_state_dict` goes on bit for bit on a CPU.
    """

    def __init__(
        self,
        config: Config,
        *,
        learner: EpisodeLearner,
        base: Labelled,
        images: Images,
        fabric: Fabric,
        validate: Callable[[EpisodeLearner], tuple[float, float]],
        save: Callable[[str, dict[str, Any]], None],
        sink: Sink | None = None,
        first_step: int = 0,
        stop: Callable[[], bool] = lambda: False,
        what: str = "fine-tuning",
        about: Mapping[str, Any] | None = None,
        interventions: Sequence[Intervention] = (),
        before: Before | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self.about, self.before = dict(about or {}), before or Before()
        self.interventions, self.probe = list(interventions), LabelledProbe(self)
        # Interventions know of epochs by this key.
        pretrain = replace(config.pretrain, epochs=config.finetune.epochs)
        config = replace(config, pretrain=pretrain)
        self.config, self.options, self.base, self.images = config, config.finetune, base, images
        self.fabric, self.validate, self.save, self.stop = fabric, validate, save, stop
        self.sink, self.first_step = sink or Sink(), first_step
        self.method, self.teacher = method_of(self.options), teacher
        self.progress = Progress()
        self._add_beside(learner)
        learner.to(fabric.device).to(memory_format=torch.channels_last)
        self._install(learner, copy.deepcopy(learner) if self.options.ema_decay else learner)
        self.steps_per_epoch = sum(1 for _ in self._steps(0))
        self.guard = Guard(fabric, self._parts(), steps_per_epoch=self.steps_per_epoch, what=what)

    def fit(self) -> None:
        """Train for all epochs that are left."""
        first = self.progress.epoch
        while self.progress.epoch < self.options.epochs:
            began, before = time.perf_counter(), self.progress.images_seen
            self._train_epoch()
            speed = (self.progress.images_seen - before) / (time.perf_counter() - began)
            self._close_epoch(speed)
            release_memory()
        if self.progress.step == 0:
            self.guard.check_skipped(f"by {self._place()}", most=0)
        if self.progress.epoch > first:
            tell_skipped(self.sink, self.guard.what, self.progress.step, self.progress.skipped)

    # -- one epoch ---------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        progress = self.progress
        self._train_mode()
        sums = torch.tensor(progress.sums, device=self.fabric.device)
        steps = list(self._steps(progress.epoch))
        for index in range(progress.position, len(steps)):
            step = steps[index]
            images = self._views(step, index)
            outcome = self.outcome(step, images, self.learner)
            if outcome.loss.requires_grad:
                self.fabric.backward(outcome.loss)
            sums += torch.stack((outcome.loss.detach(), outcome.accuracy.detach()))
            self.guard.saw(outcome.loss)
            if self.guard.at_every_step:
                self.guard.check_losses(sums.tolist(), f"at {self._place(progress.step + 1)}")
            taken = self._update()
            progress.images_seen += len(step.indices)
            if progress.macs is not None:
                progress.macs += self._macs(step, images)
            progress.position = index + 1
            if taken and progress.step % self.config.tracking.interval_steps == 0:
                self._report(outcome, sums)
            if self.stop():
                progress.sums = sums.tolist()
                self._check(progress.sums)
                self.save("last", self.state_dict())
                raise Interrupted
        progress.sums = sums.tolist()
        self._check(progress.sums)
        loss = progress.sums[0] / progress.position
        doubt = self.guard.check_epoch(loss, self._parts(), f"in {self._place()}")
        if doubt is not None:
            self.sink.event("warning", {"text": doubt})

    def outcome(self, step: Step, images: Tensor, learner: EpisodeLearner) -> Outcome:
        """What `learner` makes of a step."""
        own = (found for kind, found in OUTCOMES.items() if isinstance(self.options, kind))
        return next(own, episodic)(self, step, images, learner)

    def taught(self, images: Tensor) -> Taught | None:
        """What the teacher says of images, counted as its own; None without one."""
        if self.teacher is None:
            return None
        macs = len(images) * self.teacher.architecture.macs(images.shape[-1])
        self.progress.beside[TEACHER] = self.progress.beside.get(TEACHER, 0) + macs
        with self.fabric.autocast():
            return self.teacher(images)

    def embedded(self, images: Tensor) -> int:
        """How many images go through the network in a step on `images`: with turned copies."""
        options = self.options
        turns = isinstance(options, Classifying) and options.rotation
        return len(images) + (count_turned(images) if turns else 0)

    def _macs(self, step: Step, images: Tensor) -> int:
        """Of one step. To differentiate a pass and its gradient takes twice as much as the two."""
        encoder, options = self.learner.backbone, self.options
        learns = any(parameter.requires_grad for parameter in encoder.parameters())
        passes = 1 + BACKWARD if learns else 1
        count = passes * self.embedded(images)
        if isinstance(options, Maml):
            support = step.tasks * step.ways * step.shots
            inner = passes if options.first_order else passes * (1 + BACKWARD)
            count += support * (options.inner_steps * inner - passes)
        return count * encoder.architecture.macs(images.shape[-1])

    def _check(self, sums: Sequence[float]) -> None:
        """Raise `DivergenceError` unless what is to be saved is finite."""
        self.guard.check_losses(sums, f"in {self._place()}")
        self.guard.check_state(self.state_dict(), f"in {self._place()}")

    def _place(self, step: int | None = None) -> str:
        """Where fine-tuning is, in words; epochs and steps count from 1."""
        epoch = f"epoch {self.progress.epoch + 1}"
        if step is None:
            return f"{epoch}, after step {self.progress.step}"
        return f"step {step}, {epoch}"

    def _parts(self) -> dict[str, nn.Module]:
        return {"encoder": self.learner.backbone, "head": self.learner.head}

    @property
    def image_size(self) -> int:
        """Of the views, in the epoch that is trained."""
        options, usual = self.options, self.config.dataset.image_size
        return size_at(options.image_sizes, self.progress.epoch, options.epochs, usual)

    def _fit_to_be_judged(self) -> EpisodeLearner:
        """`judged`, with BN statistics of the size at which it is judged.

        Where the epoch has trained at another size they are re-estimated, in a copy.
        """
        if self.image_size == self.config.dataset.image_size:
            return self.judged
        fitted = copy.deepcopy(self.judged)
        size = self.config.dataset.image_size
        self.probe.recalibrate([fitted], self.progress.epoch, STATISTICS_BATCHES, size)
        return fitted

    def _close_epoch(self, speed: float) -> None:
        progress = self.progress
        judged = self._fit_to_be_judged()
        try:
            accuracy, ci95 = self.validate(judged)
        except Interrupted:  # all steps of the epoch are done: they are not lost
            self.save("last", self.state_dict())
            raise
        loss, training_accuracy = (each / progress.position for each in progress.sums)
        better = progress.best_accuracy is None or accuracy > progress.best_accuracy
        if better:
            progress.best_accuracy, progress.best_epoch = accuracy, progress.epoch
        figures = {
            **self.about,
            "epoch": progress.epoch,
            "epochs": self.options.epochs,
            "loss": loss,
            "accuracy": 100 * training_accuracy,
            "val_accuracy": accuracy,
            "val_ci95": ci95,
            "best": better,
            "images_per_second": speed,
        }
        if self.options.image_sizes is not None:
            figures["image_size"] = self.image_size
        if self.interventions:
            architecture = self.networks.architecture
            figures |= {"blocks": len(architecture.channels), "params": architecture.params}
            self._tell_architecture()
        self.sink.event("finetune", figures)
        logged = ("val_accuracy", "images_per_second")
        self.sink.metrics(
            {f"finetune/{key}": figures[key] for key in logged}, self.first_step + progress.step
        )
        progress.position, progress.sums = 0, [0.0, 0.0]
        progress.epoch += 1
        if better:
            self.save("best", {**self.state_dict(), "student": _kept(judged)})
        progress.epoch -= 1
        self._change()
        progress.epoch += 1
        self.save("last", self.state_dict())

    # -- mutations ---------------------------------------------------------------------------

    @property
    def networks(self) -> Tuned:
        """What interventions see."""
        return Tuned(self.learner)

    def _change(self) -> None:
        """Ask every intervention in turn; each sees what the one before it left.

        What changes after the last epoch would never be trained.
        """
        if self.progress.epoch + 1 >= self.options.epochs:
            return
        for intervention in self.interventions:
            decision = intervention.decide(self._state())
            if decision.mutation is not None:
                self._mutate(decision.mutation, decision)
            else:
                name = f"{intervention.name} in {self.guard.what}"
                about = {"intervention": name, "epoch": self.progress.epoch}
                self.sink.event("decision", {**about, **decision.trigger})

    def _state(self) -> Evolving:
        """What interventions see."""
        return Evolving(
            self.guard.what,
            self.options.epochs,
            self.sink,
            cast(Any, self.progress),
            self.networks,
            cast(Any, self.probe),
        )

    def _mutate(self, mutation: Mutation, decision: Decision) -> None:
        """Apply to learner, average and optimizer, verify, then accept or leave all as it was.

        A network that has changed is chosen anew: the best one so far had another architecture, and
        is not what the mutations after this one follow from.
        """
        assert decision.grace == 0
        began, progress = time.perf_counter(), self.progress
        classes = len(self.base.class_names)
        moments = named_moments(self._plain_optimizer, self.learner)
        new, moved = mutated(mutation, self.learner, self.options, classes, moments)
        average = new
        if self.judged is not self.learner:
            average, _ = mutated(mutation, self.judged, self.options, classes, {})
        old = self.networks
        self._verify(old, Tuned(new), mutation)
        if decision.recalibrate:
            both = [new] if average is new else [new, average]
            self.probe.recalibrate(both, progress.epoch, decision.recalibrate)
        held = self.probe.held_losses([self.learner, new])
        before, after = held.mean(1).tolist()
        trigger = {**decision.trigger, "training": self.guard.what}
        unfit = not_finite({"new": new.state_dict(), "average": average.state_dict()})
        if unfit:
            trigger["refused"] = f"not finite after it are {shortened(unfit)}"
        fits = finite(before) and finite(after) and within(held[1], held[0], decision.tolerance)
        record = MutationRecord(
            index=self.before.mutations + len(progress.history),
            epoch=self.before.epochs + progress.epoch,
            step=self.first_step + progress.step,
            kind=mutation.kind,
            target=mutation.target,
            trigger=trigger,
            before=counts(mutation.before),
            after=counts(mutation.after),
            function_delta=self.probe.function_delta(old, Tuned(new), mutation),
            loss_before=before,
            loss_after=after,
            fitness=decision.fitness,
            seconds=time.perf_counter() - began,
            accepted=fits and not unfit,
        )
        if record.accepted:
            self._install(new, average)
            load_moments(self._plain_optimizer, self.learner, moved)
            progress.best_accuracy = progress.best_epoch = None
        progress.history.append(record)
        self.sink.event("mutation", record.to_dict())

    def _verify(self, old: Tuned, new: Tuned, mutation: Mutation) -> None:
        """Our own invariants: counts as described, pruned as masked."""
        params = sum(p.numel() for p in new.learner.backbone.parameters())
        assert params == mutation.after.params, (params, mutation.after.params)
        if kind_of(mutation.kind).removes:
            error = self.probe.pruning_error(old, new, mutation)
            assert error <= LARGEST_PRUNING_ERROR, error

    def _tell_architecture(self) -> None:
        figures = architecture_figures(self.networks.architecture, self.progress.history)
        self.sink.metrics(figures, self.first_step + self.progress.step)

    def _install(self, learner: EpisodeLearner, judged: EpisodeLearner) -> None:
        """Train `learner` from now on, with an optimizer without moments, and judge `judged`."""
        self.learner, self.judged = learner, judged
        self._plain_optimizer = OPTIMIZERS[self.options.optimizer](
            self._groups(), weight_decay=self.options.weight_decay
        )
        self.model, self.optimizer = self.fabric.setup(learner, self._plain_optimizer)

    # -- steps -------------------------------------------------------------------------------

    def _steps(self, epoch: int) -> Iterator[Step]:
        """Every step of `epoch`: a function of the seed."""
        return self.steps_of(derive(self.config.seed, PURPOSE, epoch))

    def steps_of(self, seed: int) -> Iterator[Step]:
        """The steps of an epoch that is drawn from `seed`."""
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
        assert options.ways is not None  # all three fitted before
        assert options.shots is not None
        assert options.queries is not None
        return sample_episodes(
            self.base.class_indices,
            class_names=self.base.class_names,
            dataset=self.config.dataset.name,
            split="train",
            ways=options.ways,
            shots=options.shots,
            queries=options.queries,
            episodes=options.episodes_per_epoch,
            seed=seed,
            section="finetune",
        )

    def _batches(self, options: Classifying, seed: int) -> Iterator[Step]:
        """All images in random order; what does not fill the last batch waits for another epoch."""
        size = self.config.hardware.batch_size
        assert size is not None
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.base.labels), generator=generator)
        labels = torch.tensor(np.asarray(self.base.labels))
        for index, indices in enumerate(order.split(min(size, len(order)))):
            if len(indices) == min(size, len(order)):
                yield Step(
                    indices,
                    truth=labels[indices],
                    **self._mixed(options.mixup, seed, index, len(indices)),
                )

    def _mixed(self, alpha: float, seed: int, index: int, count: int) -> dict[str, Any]:
        """Partners and share of a batch, by Zhang et al. 2018: one λ ~ Beta(α, α) for all of it."""
        if not alpha:
            return {}
        seed = derive(seed, "mixup", index)
        share = np.random.default_rng(seed).beta(alpha, alpha)
        generator = torch.Generator().manual_seed(seed)
        return {"partner": torch.randperm(count, generator=generator), "share": float(share)}

    def _views(self, step: Step, index: int) -> Tensor:
        seed = derive(self.config.seed, PURPOSE, "views", self.progress.epoch, index)
        return self.views_of(step, seed)

    def views_of(self, step: Step, seed: int, image_size: int | None = None) -> Tensor:
        """A random view of every image of a step, `[B, C, S, S]`; None: of the epoch's size."""
        size, channels = self.config.dataset.image_size, self.config.dataset.channels
        images = torch.empty(
            (len(step.indices), channels, size, size), dtype=torch.uint8, device=self.fabric.device
        )
        fetch(self.images, step.indices, images)
        side = self.image_size if image_size is None else image_size
        return make_views(images, self.options.views, image_size=side, seed=seed, count=1)[0]

    def _update(self) -> bool:
        """A step of optimizer and average; False where the scaler of 16-mixed skips it.

        Then nothing has changed but the scale and what the forward pass tracks.
        """
        progress = self.progress
        at = progress.epoch * self.steps_per_epoch + progress.position
        epochs, schedule = self.options.epochs, schedule_of(self.options)
        ratio = lr_ratio(at, self.steps_per_epoch, epochs, schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = group["first_lr"] * ratio
        taken = self.guard.took(self.optimizer.step)
        self.optimizer.zero_grad(set_to_none=True)
        if not taken:
            self.progress.skipped += 1
            self.guard.check_skipped(f"at {self._place(self.progress.step + 1)}")
            return False
        self.progress.step += 1
        if self.judged is not self.learner:
            step = self.progress.step
            # The average follows closely at first: it does not begin with what nobody has trained.
            average(self.judged, self.learner, min(self.options.ema_decay, step / (step + 10)))
        return True

    def _report(self, outcome: Outcome, sums: Tensor) -> None:
        self.guard.check_losses(sums.tolist(), f"by {self._place(self.progress.step)}")
        figures = {
            "finetune/loss": outcome.loss.item(),
            "finetune/accuracy": 100 * outcome.accuracy.item(),
            "finetune/lr": self.optimizer.param_groups[0]["lr"],
        }
        self.sink.metrics(figures, self.first_step + self.progress.step)

    # -- what is trained ---------------------------------------------------------------------

    def _train_mode(self) -> None:
        """What is frozen stays as it is: BN statistics, too."""
        self.model.train()
        for module in frozen_parts(self.learner, self.options):
            module.eval()
        if self.options.freeze_norms:
            for norm in norms_of(self.learner.backbone):
                norm.eval()

    def _groups(self) -> list[dict[str, Any]]:
        options = self.options
        parts = ((self.learner.backbone, options.lr_encoder), (self.learner.head, options.lr_head))
        groups: list[dict[str, Any]] = []
        gammas = self._gammas() if options.evolve else []
        for module, lr in parts:
            trained = [p for p in module.parameters() if p.requires_grad and _none_of(p, gammas)]
            if trained:
                groups.append({"params": trained, "lr": lr, "first_lr": lr})
        if gammas:  # at 0 where a block has just grown: weight decay would hold it there
            lr = options.lr_encoder * options.gamma_lr_ratio
            groups.append({"params": gammas, "lr": lr, "first_lr": lr, "weight_decay": 0.0})
        return groups

    def _gammas(self) -> list[nn.Parameter]:
        """γ of every residual block."""
        return [
            part.norm.weight
            for part in self.learner.backbone.modules()
            if isinstance(part, ConvBlock)
            and part.residual
            and isinstance(part.norm, nn.BatchNorm2d)
        ]

    # -- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a checkpoint of fine-tuning holds: tensors and plain data."""
        return {
            "stage": PURPOSE,
            "method": self.options.name,
            "architecture": self.learner.backbone.architecture.to_dict(),
            "student": _kept(self.learner),
            "beside": _beside(self.learner),
            "average": _kept(self.judged),
            "optimizer": self.optimizer.state_dict(),
            "finetune": asdict(self.progress),
            "interventions": {i.name: i.state_dict() for i in self.interventions},
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if described(state["architecture"]) != self.networks.architecture:  # it has changed since
            self._install(*(self._learner_of(state["architecture"]) for _ in range(2)))
            if not self.options.ema_decay:
                self.judged = self.learner
        beside = state.get("beside", {})
        self.learner.load_state_dict({**state["student"], **beside})
        # What stands beside the average is never read.
        self.judged.load_state_dict({**state.get("average", state["student"]), **beside})
        self.optimizer.load_state_dict(state["optimizer"])
        progress = {"macs": None, **state["finetune"]}
        history = [MutationRecord.from_dict(one) for one in progress.get("history", ())]
        self.progress = Progress(**{**progress, "history": history})
        for intervention in self.interventions:
            intervention.load_state_dict(state["interventions"][intervention.name])
        restore_precision(self.fabric, state.get("precision"))

    def _add_beside(self, learner: EpisodeLearner) -> None:
        generator = torch.Generator().manual_seed(derive(self.config.seed, PURPOSE, "beside"))
        with torch.random.fork_rng(devices=[]):  # layers draw from the global generator, too
            add_beside(learner.head, self.options, self.teacher, generator)

    def _learner_of(self, architecture: Mapping[str, Any]) -> EpisodeLearner:
        """A learner with that architecture; its weights are to be loaded."""
        learner = learner_of(architecture, self.options, len(self.base.class_names))
        self._add_beside(learner)
        return learner.to(self.fabric.device).to(memory_format=torch.channels_last)


def learner_of(
    architecture: Mapping[str, Any], options: FinetuneConfig, classes: int
) -> EpisodeLearner:
    """A learner with the architecture that a checkpoint describes; its weights are to be loaded."""
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator
        return around(build(described(architecture)), options, classes, torch.Generator())


def _kept(learner: EpisodeLearner) -> dict[str, Tensor]:
    """What of a learner is kept when it is trained."""
    state = learner.state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith(BESIDE)}


def _beside(learner: EpisodeLearner) -> dict[str, Tensor]:
    state = learner.state_dict()
    return {name: tensor for name, tensor in state.items() if name.startswith(BESIDE)}


def schedule_of(options: FinetuneConfig) -> SchedulerConfig:
    """The learning rates' course, as `training.optim` has it."""
    kind = options_of(SchedulerConfig)[options.scheduler]
    fixed = {"name": options.scheduler, "rewarmup_steps": 0, "final_ratio": 0.0}
    names = [name for name, *_ in fields_of(kind)]
    schedule: SchedulerConfig = kind(
        **{name: fixed[name] if name in fixed else getattr(options, name) for name in names}
    )
    return schedule


def _none_of(parameter: Tensor, others: Sequence[Tensor]) -> bool:
    return all(parameter is not other for other in others)


@torch.no_grad()
def average(towards: nn.Module, network: nn.Module, decay: float) -> None:
    """Move all that `towards` is by 1 − `decay` to what `network` is: weights and BN statistics."""
    ours, theirs = towards.state_dict(), network.state_dict()
    for name, tensor in ours.items():
        if tensor.is_floating_point():
            tensor.lerp_(theirs[name], 1 - decay)
        else:
            tensor.copy_(theirs[name])


def episodic(tuner: FineTuner, step: Step, images: Tensor, learner: EpisodeLearner) -> Outcome:
    """All images embedded as one batch; the head scores every episode by itself."""
    with tuner.fabric.autocast():
        features = learner.backbone(images)
    scores = learner.head(*step.parts(features.float()))
    truth = sent(step.query_truth(), scores.device)
    right = (scores.argmax(dim=-1) == truth).float().mean()
    return Outcome(tuner.method.loss(scores, truth), right)


def classification(
    tuner: FineTuner, step: Step, images: Tensor, learner: EpisodeLearner
) -> Outcome:
    """Cross-entropy of a plain classifier of all base classes, smoothed and mixed as configured.

    With mixup: λ · CE(z, y) + (1 − λ) · CE(z, y'), z of λ · x + (1 − λ) · x' (Zhang et al. 2018).
    Right is what has the image's own class. What a teacher and turned copies add is of the same
    images, mixed or not: nothing tells them from each other but what is to be learned.
    """
    assert step.truth is not None
    options, count = tuner.options, len(images)
    assert isinstance(options, Classifying)
    partner = None if step.partner is None else sent(step.partner, images.device)
    if partner is not None:
        images = images.lerp(images[partner], 1 - step.share)
    shown = torch.cat((images, turned(images))) if options.rotation else images
    with tuner.fabric.autocast():
        features = learner.backbone(shown)
    features = features.float()
    logits = learner.head(features[:count])
    truth = sent(step.truth, logits.device)
    right = (logits.argmax(dim=-1) == truth).float().mean()
    smoothing = options.label_smoothing
    loss = F.cross_entropy(logits, truth, label_smoothing=smoothing)
    if partner is not None:
        others = F.cross_entropy(logits, truth[partner], label_smoothing=smoothing)
        loss = step.share * loss + (1 - step.share) * others
    taught = tuner.taught(images)
    if taught is not None:
        assert isinstance(options, Linear)  # no other has a teacher
        loss = _distilled(loss, features[:count], logits, taught, options, learner.head)
    if options.rotation:
        rotation = _beside_of(learner.head, ROTATION)
        loss = loss + options.rotation * rotation_loss(rotation, features, count)
    return Outcome(loss, right)


def _distilled(
    loss: Tensor,
    features: Tensor,
    logits: Tensor,
    taught: Taught,
    options: Linear,
    head: nn.Module,
) -> Tensor:
    """(1 − w) · `loss` + w · `softened`, and the cosine distance of the embeddings."""
    weight, temperature = options.distillation_weight, options.distillation_temperature
    loss = (1 - weight) * loss + weight * softened(logits, taught.logits, temperature)
    if options.feature_weight:
        mapped = _beside_of(head, TO_TEACHER)(features)
        loss = loss + options.feature_weight * cosine_distance(mapped, taught.features)
    return loss


def _beside_of(head: nn.Module, name: str) -> nn.Module:
    assert isinstance(head, BaseClassifier)
    return head.beside[name]


def meta_learned(tuner: FineTuner, step: Step, images: Tensor, learner: EpisodeLearner) -> Outcome:
    """MAML: the loss on the queries after the inner steps, averaged over the episodes (eq. 4).

    Differentiated episode by episode: what one episode's gradient needs is large.
    """
    options, classifier = tuner.options, Classifier(learner)
    assert isinstance(options, Maml)
    support, query = step.parts(images)
    truth = sent(step.query_truth(), images.device)
    own = torch.arange(step.ways, device=images.device).repeat_interleave(step.shots)
    weights = dict(classifier.named_parameters())
    outcomes = []
    for s, q in zip(support, query, strict=True):
        with tuner.fabric.autocast():
            adapted = adapt(
                classifier,
                weights,
                s.flatten(0, 1),
                own,
                steps=options.inner_steps,
                lr=options.inner_lr,
                second_order=not options.first_order,
            )
            logits = torch.func.functional_call(classifier, dict(adapted), (q,)).float()
        loss = F.cross_entropy(logits, truth)
        tuner.fabric.backward(loss / step.tasks)
        right = (logits.argmax(dim=-1) == truth).float().mean()
        outcomes.append(Outcome(loss.detach(), right))
    losses, accuracies = zip(*outcomes, strict=True)
    return Outcome(torch.stack(losses).mean(), torch.stack(accuracies).mean())


OUTCOMES: Mapping[type, Callable[[FineTuner, Step, Tensor, EpisodeLearner], Outcome]] = {
    Classifying: classification,
    Maml: meta_learned,
}
