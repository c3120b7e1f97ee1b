"""The loop of fine-tuning: labelled base images, episode by episode or in plain batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from sseg_nase.config.groups.finetune import MONITORS
from sseg_nase.config.options import fields_of, options_of
from sseg_nase.config.schema import Config, FinetuneConfig, SchedulerConfig
from sseg_nase.config.sizes import size_at
from sseg_nase.data.placement import Images
from sseg_nase.data.random import derive
from sseg_nase.evolution.history import MutationRecord, architecture_figures
from sseg_nase.finetune.auxiliary import Teacher, add_beside
from sseg_nase.finetune.evolving import (
    LabelledProbe,
    Tuned,
    Tuning,
    TuningProgress,
    TuningSurgery,
    tuned,
)
from sseg_nase.finetune.learner import EpisodeLearner, around, frozen_parts, norms_of
from sseg_nase.finetune.objective import Objective
from sseg_nase.finetune.steps import Labelled, Step, Steps
from sseg_nase.hardware.allocator import release_memory
from sseg_nase.nets.building import build, described
from sseg_nase.tracking.sink import Sink
from sseg_nase.training.divergence import Guard
from sseg_nase.training.fabric import Fabric, restore_precision
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.optim import lr_ratio
from sseg_nase.training.skeleton import Loop
from sseg_nase.training.surgery import Before, Intervention

PURPOSE = "finetune"  # of the random numbers here
BESIDE = "head.beside."  # in front of what is learned beside the head, and not kept with it
POSITION = "position"  # what checkpoints call the batch
# Accuracy in percent, its 95 % interval and, of a classifier of a closed set, the loss: nats.
Evaluated = tuple[float, float] | tuple[float, float, float]
STATISTICS_BATCHES = 20  # BN statistics are re-estimated from so many for another image size


class FineTuner(Loop):
    """Trains `learner` on the labelled images of the base split.

    `validate` evaluates the learner after every epoch (`Evaluated`), or, with
    `finetune.ema_decay`, the moving average of its weights; `save(name, state)` keeps the state:
    `best` where it is better than ever, `last` after every epoch and when `stop`, asked after every
    step, says so. `what` names the training in messages, `about` its stage in events, `before` what
    the run has done until then. `interventions` change the network between epochs, as they do in
    pretraining; then the choice of the best one starts again. A classifier is distilled from
    `teacher`, where there is one. All random numbers follow from the seed and the step, so training
    resumes from `load_state_dict` bit for bit on a CPU.
    """

    state: Tuning

    def __init__(
        self,
        config: Config,
        *,
        learner: EpisodeLearner,
        base: Labelled,
        images: Images,
        fabric: Fabric,
        validate: Callable[[EpisodeLearner], Evaluated],
        save: Callable[[str, dict[str, Any]], None],
        sink: Sink | None = None,
        stop: Callable[[], bool] = lambda: False,
        what: str = "fine-tuning",
        about: Mapping[str, Any] | None = None,
        interventions: Sequence[Intervention] = (),
        before: Before | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self.config, self.options, self.base, self.fabric = config, config.finetune, base, fabric
        self.validate, self.save, self.stop, self.teacher = validate, save, stop, teacher
        self.about, self.before = dict(about or {}), before or Before()
        self.device = fabric.device
        self.feed = Steps(config, base, images, fabric.device)
        self.objective = Objective(self.options, fabric, teacher, self._spend)
        self._add_beside(learner)
        learner.to(fabric.device).to(memory_format=torch.channels_last)
        self.state = Tuning(
            what,
            self.options.epochs,
            sink or Sink(),
            TuningProgress(),
            tuned(
                learner, copy.deepcopy(learner) if self.options.ema_decay else learner, self.options
            ),
            LabelledProbe(self.feed, self.objective, config.seed),
        )
        self.surgery = TuningSurgery(
            self.state, interventions, self.options, len(base.class_names), self.before
        )
        self._install(self.state.networks)
        self.batches_per_epoch = sum(1 for _ in self._steps(0))
        self.guard = Guard(fabric, self.parts(), steps_per_epoch=self.batches_per_epoch, what=what)

    @property
    def learner(self) -> EpisodeLearner:
        """What is trained."""
        return self.state.networks.learner

    @property
    def evaluated(self) -> EpisodeLearner:
        """What is validated: the learner, or the average of its weights."""
        return self.state.networks.evaluated

    @property
    def progress(self) -> TuningProgress:
        """Where fine-tuning is."""
        return self.state.progress

    # -- one epoch ---------------------------------------------------------------------------

    def begin_epoch(self) -> None:
        """What is frozen stays as it is: BN statistics, too."""
        self.state.probe.image_size = self.image_size
        self.model.train()
        for module in frozen_parts(self.learner, self.options):
            module.eval()
        if self.options.freeze_norms:
            for norm in norms_of(self.learner.backbone):
                norm.eval()

    def batches(self) -> Iterator[Step]:
        """The steps that are left: a function of the seed."""
        yield from list(self._steps(self.progress.epoch))[self.progress.batch :]

    def differentiate(self, batch: Step, of: int, *, last: bool) -> Tensor:
        """Loss of a step and its share of right predictions, detached `[2]`."""
        progress = self.progress
        images = self._views(batch)
        outcome = self.objective.outcome(batch, images, self.learner)
        if outcome.loss.requires_grad:
            self.fabric.backward(outcome.loss)
        self.images += len(batch.indices)
        progress.images_seen += len(batch.indices)
        if progress.macs is not None:
            progress.macs += self.objective.macs(batch, images, self.learner.backbone)
        return torch.stack((outcome.loss.detach(), outcome.accuracy.detach()))

    def prepare(self) -> None:
        """The learning rates, a function of the place in training, and the gradients' norm."""
        at = self.progress.epoch * self.batches_per_epoch + self.progress.batch
        schedule = schedule_of(self.options)
        ratio = lr_ratio(at, self.batches_per_epoch, self.options.epochs, schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = group["first_lr"] * ratio
        if (most := self.options.clip_norm) is not None:
            # Where it is not finite the scaler skips the step, or the guard says so.
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=most, error_if_nonfinite=False
            )

    def follow(self) -> None:
        """The average of the weights, where there is one."""
        if self.evaluated is not self.learner:
            step = self.progress.step + 1
            # The average follows closely at first: it does not begin with what nobody has trained.
            average(self.evaluated, self.learner, min(self.options.ema_decay, step / (step + 10)))

    def stepped(self, figures: Tensor, sums: Tensor) -> None:
        """Report every so many steps."""
        if self.progress.step % self.config.tracking.interval_steps:
            return
        self.guard.check_losses(sums.tolist(), f"by {self.state.position(self.progress.step)}")
        loss, accuracy = figures.tolist()
        values = {
            "finetune/loss": loss,
            "finetune/accuracy": 100 * accuracy,
            "finetune/lr": self.optimizer.param_groups[0]["lr"],
        }
        self.state.sink.metrics(values, self._run_step)

    def interrupted(self) -> None:
        """Save what has been reached."""
        self.save("last", self.state_dict())

    def tensors(self) -> dict[str, Any]:
        """All that is saved."""
        return self.state_dict()

    def parts(self) -> dict[str, nn.Module]:
        """Encoder and head."""
        return {"encoder": self.learner.backbone, "head": self.learner.head}

    @property
    def image_size(self) -> int:
        """Of the views, in the epoch that is trained."""
        options, usual = self.options, self.config.dataset.image_size
        return size_at(options.image_sizes, self.progress.epoch, options.epochs, usual)

    @property
    def _run_step(self) -> int:
        """The step, counted over the whole run."""
        return self.before.steps + self.progress.step

    def _spend(self, part: str, macs: int) -> None:
        beside = self.progress.beside
        beside[part] = beside.get(part, 0) + macs

    def _steps(self, epoch: int) -> Iterator[Step]:
        return self.feed.steps_of(derive(self.config.seed, PURPOSE, epoch))

    def _views(self, step: Step) -> Tensor:
        place = self.progress.epoch, self.progress.batch
        seed = derive(self.config.seed, PURPOSE, "views", *place)
        return self.feed.views_of(step, seed, self.image_size)

    # -- between two epochs ------------------------------------------------------------------

    def close_epoch(self) -> None:
        """Validate, keep what is best, change the network, and on to the next epoch."""
        progress, sink, speed = self.progress, self.state.sink, self.images_per_second
        loss, training_accuracy = (each / progress.batch for each in progress.sums)
        self.check_epoch(progress.sums, loss)
        evaluated = self._with_statistics_of_the_evaluation()
        try:
            accuracy, ci95, *held = self.validate(evaluated)
        except Interrupted:  # all steps of the epoch are done: they are not lost
            self.interrupted()
            raise
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
            **({"val_loss": held[0]} if held else {}),
            "best": better,
            "images_per_second": speed,
        }
        if self.options.image_sizes is not None:
            figures["image_size"] = self.image_size
        if self.surgery.interventions:
            architecture = self.state.networks.architecture
            figures |= {"blocks": len(architecture.channels), "params": architecture.params}
            sink.metrics(architecture_figures(architecture, progress.history), self._run_step)
        sink.event("finetune", figures)
        logged = ("val_accuracy", "val_loss", "images_per_second")
        sink.metrics(
            {f"finetune/{key}": figures[key] for key in logged if key in figures}, self._run_step
        )
        self._watch(figures[self.options.monitor])
        progress.batch, progress.sums = 0, [0.0, 0.0]
        progress.epoch += 1
        if better:
            self.save("best", {**self.state_dict(), "student": _kept(evaluated)})
        progress.epoch -= 1
        self._change()
        progress.epoch += 1
        self.save("last", self.state_dict())
        release_memory()

    def _watch(self, figure: float) -> None:
        """Remember the best of what is watched, and end where it is too long ago."""
        options, progress = self.options, self.progress
        if options.patience is None:
            return
        gain = figure - (figure if progress.watched is None else progress.watched)
        gain = gain if MONITORS[options.monitor] else -gain
        if progress.watched is None or gain > options.min_delta:
            progress.watched, progress.watched_epoch = figure, progress.epoch
        best = progress.watched_epoch or 0
        if self._out_of_patience(progress.epoch) and progress.epoch + 1 < options.epochs:
            self.state.epochs = progress.epoch + 1
            text = f"{self.state.what} ends after {progress.epoch + 1} of {options.epochs} epochs: "
            text += f"{options.monitor} has not got better since epoch {best + 1}"
            self.state.sink.event(
                "message", {"text": f"{text} (finetune.patience={options.patience})"}
            )

    def _out_of_patience(self, epoch: int) -> bool:
        """Whether training is to end with `epoch`, counted from 0."""
        patience, best = self.options.patience, self.progress.watched_epoch
        return patience is not None and best is not None and epoch - best >= patience

    def _with_statistics_of_the_evaluation(self) -> EpisodeLearner:
        """`evaluated`, with BN statistics of the size at which it is evaluated.

        Where the epoch has trained at another size they are re-estimated, in a copy.
        """
        size = self.config.dataset.image_size
        if self.image_size == size:
            return self.evaluated
        fitted = copy.deepcopy(self.evaluated)
        epoch = self.progress.epoch
        self.state.probe.recalibrate_at(size, [fitted], epoch, STATISTICS_BATCHES)
        return fitted

    def _change(self) -> None:
        """What changes after the last epoch would never be trained."""
        if self.progress.epoch + 1 < self.state.epochs:
            self.surgery.intervene()
        if self.state.networks is not self.fitted:
            self._install(self.state.networks)

    # -- parts -------------------------------------------------------------------------------

    def _install(self, networks: Tuned) -> None:
        """Train `networks` from now on."""
        self.state.networks = self.fitted = networks
        self.model, self.optimizer = self.fabric.setup(networks.learner, networks.optimizer)

    # -- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a checkpoint of fine-tuning holds: tensors and plain data."""
        progress = asdict(self.progress)
        progress[POSITION] = progress.pop("batch")
        return {
            "stage": PURPOSE,
            "method": self.options.name,
            "architecture": self.learner.backbone.architecture.to_dict(),
            "student": _kept(self.learner),
            "beside": _beside(self.learner),
            "average": _kept(self.evaluated),
            "optimizer": self.optimizer.state_dict(),
            "finetune": progress,
            "interventions": {i.name: i.state_dict() for i in self.surgery.interventions},
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if described(state["architecture"]) != self.state.networks.architecture:  # it has changed
            learner, evaluated = (self._learner_of(state["architecture"]) for _ in range(2))
            evaluated = evaluated if self.options.ema_decay else learner
            self._install(tuned(learner, evaluated, self.options))
        beside = state.get("beside", {})
        self.learner.load_state_dict({**state["student"], **beside})
        # What stands beside the average is never read.
        self.evaluated.load_state_dict({**state.get("average", state["student"]), **beside})
        self.optimizer.load_state_dict(state["optimizer"])
        saved = {"macs": None, **state["finetune"]}
        history = [MutationRecord.from_dict(one) for one in saved.get("history", ())]
        saved |= {"history": history, "batch": saved.pop(POSITION)}
        self.state.progress = TuningProgress(**saved)
        if self._out_of_patience(self.progress.epoch - 1):
            self.state.epochs = self.progress.epoch
        for intervention in self.surgery.interventions:
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


@torch.no_grad()
def average(towards: nn.Module, network: nn.Module, decay: float) -> None:
    """Move all that `towards` is by 1 − `decay` to what `network` is: weights and BN statistics."""
    ours, theirs = towards.state_dict(), network.state_dict()
    for name, tensor in ours.items():
        if tensor.is_floating_point():
            tensor.lerp_(theirs[name], 1 - decay)
        else:
            tensor.copy_(theirs[name])
