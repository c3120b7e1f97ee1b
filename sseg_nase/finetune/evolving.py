"""Growth and pruning while a network is trained on labels.

Nothing of labels is known to the interventions: they see a training with epochs, a network, and
gradients of a loss. A mutation takes across what `carry` takes across in pretraining: weights of
encoder and head, the optimizer's moments, and here the moving average of the weights, too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sseg_nase.config.groups.optimizer import SGD, Adam, AdamW, OptimizerConfig
from sseg_nase.config.options import option_of
from sseg_nase.config.schema import FinetuneConfig
from sseg_nase.counting import BACKWARD
from sseg_nase.data.random import derive
from sseg_nase.evolution.operators import (
    TrainingState,
    apply,
    load_moments,
    named_moments,
    output_change,
)
from sseg_nase.finetune.auxiliary import add_like
from sseg_nase.finetune.learner import EpisodeLearner, around
from sseg_nase.finetune.objective import Objective
from sseg_nase.finetune.steps import Step, Steps
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.building import build
from sseg_nase.nets.description import Description
from sseg_nase.nets.evolvable import ConvBlock
from sseg_nase.nets.mutation import Mutation
from sseg_nase.sparsity.recalibration import recalibrate
from sseg_nase.training.ledger import CHECKS, IMPORTANCE
from sseg_nase.training.state import Evolving, Progress
from sseg_nase.training.surgery import Before, Decision, Intervention, Surgery

HELD_STEPS = 4  # on which a network is compared with the one before a mutation
DELTA_IMAGES = 32


OPTIMIZERS: Mapping[type[OptimizerConfig], Callable[..., torch.optim.Optimizer]] = {
    Adam: partial(torch.optim.Adam, fused=True),
    AdamW: partial(torch.optim.AdamW, fused=True),
    # Not fused: where the scaler of 16-mixed skips the first step, momenta would not be written.
    SGD: partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}


@dataclass
class Tuned:
    """A learner and its optimizer. `evaluated`: the learner, or the average of its weights."""

    learner: EpisodeLearner
    evaluated: EpisodeLearner
    optimizer: torch.optim.Optimizer

    @property
    def architecture(self) -> Description:
        """Of the backbone."""
        return self.learner.backbone.architecture

    @property
    def learners(self) -> list[EpisodeLearner]:
        """The learner, and its average where there is one."""
        return [self.learner] if self.evaluated is self.learner else [self.learner, self.evaluated]

    def state_dict(self) -> dict[str, Any]:
        """All tensors of both."""
        return {"new": self.learner.state_dict(), "average": self.evaluated.state_dict()}


def tuned(learner: EpisodeLearner, evaluated: EpisodeLearner, options: FinetuneConfig) -> Tuned:
    """With an optimizer without moments."""
    groups = groups_of(learner, options)
    make = OPTIMIZERS[option_of(OptimizerConfig, options.optimizer)]
    return Tuned(learner, evaluated, make(groups, weight_decay=options.weight_decay))


def groups_of(learner: EpisodeLearner, options: FinetuneConfig) -> list[dict[str, Any]]:
    """The parameters that are trained, with their learning rates."""
    parts = ((learner.backbone, options.lr_encoder), (learner.head, options.lr_head))
    groups: list[dict[str, Any]] = []
    gammas = _gammas(learner) if options.evolve else []
    for module, lr in parts:
        trained = [p for p in module.parameters() if p.requires_grad and _none_of(p, gammas)]
        if trained:
            groups.append({"params": trained, "lr": lr, "first_lr": lr})
    if gammas:  # at 0 where a block has just grown: weight decay would hold it there
        lr = options.lr_encoder * options.gamma_lr_ratio
        groups.append({"params": gammas, "lr": lr, "first_lr": lr, "weight_decay": 0.0})
    return groups


def _gammas(learner: EpisodeLearner) -> list[nn.Parameter]:
    """γ of every residual block."""
    return [
        part.norm.weight
        for part in learner.backbone.modules()
        if isinstance(part, ConvBlock) and part.residual and isinstance(part.norm, nn.BatchNorm2d)
    ]


def _none_of(parameter: Tensor, others: Sequence[Tensor]) -> bool:
    return all(parameter is not other for other in others)


def mutated(
    mutation: Mutation,
    learner: EpisodeLearner,
    options: FinetuneConfig,
    classes: int,
    moments: Mapping[str, Mapping[str, Any]],
) -> tuple[EpisodeLearner, Mapping[str, Mapping[str, Any]]]:
    """A new learner after `mutation`, on the device of the given one, and its `moments` by name.

    `classes`: of the base split. What is new in the head is initialised by `mutation.seed`.
    """
    generator = torch.Generator().manual_seed(mutation.seed)
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator, too
        new = around(build(mutation.after), options, classes, generator)
        add_like(new.head, learner.head, generator)
    state = apply(
        mutation,
        TrainingState(learner.state_dict(), moments=moments),
        head=new.head,
    )
    new.load_state_dict(dict(state.student))
    new.backbone.gradient_checkpointing = learner.backbone.gradient_checkpointing
    device = next(learner.parameters()).device
    return new.to(device).to(memory_format=torch.channels_last), state.moments


class LabelledProbe:
    """Losses and gradients on labelled images, beside those that the training sees.

    They are images of the base split in other batches, episodes and views: the split has no images
    that are not trained on.
    """

    def __init__(self, steps: Steps, objective: Objective, seed: int) -> None:
        self.steps, self.objective, self.seed = steps, objective, seed
        self.image_size = steps.dataset.image_size  # of the views, set by whoever trains

    def gradients(self, networks: Tuned, epoch: int, batches: int) -> Iterator[None]:
        """Each time leave in `.grad` of the learner that of the loss of another batch.

        With the loss scale of the training, which is divided out, where that is float16.
        """
        learner, objective = networks.learner, self.objective
        scaler = getattr(objective.fabric.strategy.precision, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        for step, images in self._batches(f"importance {epoch}", batches, self.image_size):
            learner.zero_grad(set_to_none=True)
            (objective.outcome(step, images, learner).loss * scale).backward()
            torch._foreach_mul_(
                [p.grad for p in learner.parameters() if p.grad is not None], 1 / scale
            )
            passed = (1 + BACKWARD) * objective.embedded(images)
            self._count(IMPORTANCE, images, passed, learner)
            yield

    @torch.no_grad()
    def held_losses(self, networks: Sequence[Tuned], epoch: int) -> Tensor:
        """`[networks, HELD_STEPS]` float64: on the same images and views, at every call."""
        copies = [copy.deepcopy(each.learner).train() for each in networks]
        rows: list[list[float]] = [[] for _ in copies]
        for step, images in self._batches("held", HELD_STEPS, self.image_size):
            for row, learner in zip(rows, copies, strict=True):
                # Without dropout: the features of two networks are not left out alike.
                step = step._replace(noise=None)
                row.append(self.objective.outcome(step, images, learner).loss.item())
                self._count(CHECKS, images, self.objective.embedded(images), learner)
        return torch.tensor(rows, dtype=torch.float64)

    def recalibrate(self, networks: Tuned, epoch: int, batches: int) -> None:
        """Recompute all BN statistics of the backbones, on views of the epoch's size."""
        self.recalibrate_at(self.image_size, networks.learners, epoch, batches)

    def recalibrate_at(
        self, image_size: int, learners: Iterable[EpisodeLearner], epoch: int, batches: int
    ) -> None:
        """`recalibrate` of views of another size."""
        for learner in learners:
            backbone = learner.backbone
            if any(isinstance(part, nn.BatchNorm2d) for part in backbone.modules()):
                made = self._batches(f"statistics {epoch}", batches, image_size)
                with torch.no_grad():
                    recalibrate(backbone, (self._counted(images, learner) for _, images in made))

    @torch.no_grad()
    def function_delta(self, old: Tuned, new: Tuned, mutation: Mutation) -> float:
        """`output_change` of the embeddings in eval mode, in float64."""
        images = self._plain()
        f, f_new = (self._exact(each)(images) for each in (old, new))
        return output_change(mutation, f, f_new, embeddings=True)

    @torch.no_grad()
    def pruning_error(self, old: Tuned, new: Tuned, mutation: Mutation) -> float:
        """Relative difference between the pruned network and the masked one, in float64."""
        images = self._plain()
        masks = [kept.to(images) for kept in mutation.kept]
        expected, found = self._exact(old).masked(images, masks), self._exact(new)(images)
        return output_change(mutation, expected, found, embeddings=True)

    @staticmethod
    def _exact(networks: Tuned) -> Backbone:
        return copy.deepcopy(networks.learner.backbone).double().eval()

    def _plain(self) -> Tensor:
        return self.steps.plain(DELTA_IMAGES).double()

    def _batches(self, purpose: str, count: int, image_size: int) -> Iterator[tuple[Step, Tensor]]:
        steps, made, again = self.steps, 0, 0
        while made < count:  # where more are asked for than an epoch has
            seed = derive(self.seed, "finetune", "probe", purpose, again)
            for index, step in enumerate(steps.steps_of(seed)):
                if made == count:
                    return
                yield step, steps.views_of(step, derive(seed, "views", index), image_size)
                made += 1
            again += 1

    def _counted(self, images: Tensor, learner: EpisodeLearner) -> Tensor:
        self._count(CHECKS, images, len(images), learner)
        return images

    def _count(self, part: str, images: Tensor, passed: int, learner: EpisodeLearner) -> None:
        """`passed` images of the size of `images` have gone through the network."""
        macs = learner.backbone.architecture.macs(images.shape[-1])
        self.objective.spend(part, passed * macs)


@dataclass
class TuningProgress(Progress):
    """`sums`: of the loss, and of the share of right predictions."""

    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    images_seen: int = 0
    macs: int | None = 0  # of the encoder, see `training.ledger`; None: begun by an older version
    beside: dict[str, int] = field(default_factory=dict)  # of the ledger's other parts
    best_accuracy: float | None = None
    best_epoch: int | None = None
    watched: float | None = None  # the best of `finetune.monitor`, and when it was reached
    watched_epoch: int | None = None


@dataclass
class Tuning(Evolving):
    """Fine-tuning between two of its steps."""

    networks: Tuned
    probe: LabelledProbe
    progress: TuningProgress


class TuningSurgery(Surgery):
    """Of learner, average and optimizer. `classes`: of the base split."""

    state: Tuning

    def __init__(
        self,
        state: Tuning,
        interventions: Sequence[Intervention],
        options: FinetuneConfig,
        classes: int,
        before: Before,
    ) -> None:
        after = partial(tuned_after, options=options, classes=classes)
        super().__init__(state, interventions, mutated=after, before=before)

    def accept(self, old: Tuned, new: Tuned, decision: Decision) -> None:
        """Choose the best network, and be patient, from here on: the best one so far had another
        architecture, and is not what the mutations after this one follow from."""
        super().accept(old, new, decision)
        progress = self.state.progress
        progress.best_accuracy = progress.best_epoch = None
        progress.watched = progress.watched_epoch = None


def tuned_after(
    networks: Tuned, mutation: Mutation, *, options: FinetuneConfig, classes: int
) -> Tuned:
    """New networks after `mutation`; the given ones are left as they are."""
    moments = named_moments(networks.optimizer, networks.learner)
    learner, moved = mutated(mutation, networks.learner, options, classes, moments)
    evaluated = learner
    if networks.evaluated is not networks.learner:
        evaluated, _ = mutated(mutation, networks.evaluated, options, classes, {})
    new = tuned(learner, evaluated, options)
    load_moments(new.optimizer, learner, moved)
    return new
