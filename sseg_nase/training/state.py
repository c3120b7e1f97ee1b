"""What callbacks and interventions see of a training: where it is, and what is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sseg_nase.config.schema import Config
from sseg_nase.config.sizes import size_at
from sseg_nase.evolution.history import MutationRecord
from sseg_nase.nets.description import Description
from sseg_nase.nets.mutation import Mutation
from sseg_nase.tracking.sink import Sink
from sseg_nase.training.ledger import Ledger
from sseg_nase.training.measurements import Probe
from sseg_nase.training.networks import Networks
from sseg_nase.training.optim import lr_ratio


@dataclass
class Progress:
    """Where training is: `batch` batches of epoch `epoch` and `step` optimizer steps are done.

    `skipped` further steps were none, because the scaler of 16-mixed skipped them. `sums` are the
    figures of those batches, such as losses. All that is random follows from these and the seed.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    skipped: int = 0
    sums: list[float] = field(default_factory=list)
    history: list[MutationRecord] = field(default_factory=list)


@dataclass
class PretrainingProgress(Progress):
    """`sums`: of the loss, its contrastive part and the distillation."""

    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    images_seen: dict[str, int] = field(
        default_factory=lambda: {"synthetic": 0, "real_unlabeled": 0, "real_labeled": 0}
    )


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


class Trained(Protocol):
    """Networks in training: a learner with a `backbone`, and whatever is trained along with it."""

    learner: Any

    @property
    def architecture(self) -> Description:
        """Of the backbone."""

    def state_dict(self) -> dict[str, Any]:
        """All tensors of it."""


class Measures(Protocol):
    """Measurements beside a training, which change nothing of it. Networks are `Trained`."""

    def gradients(self, networks: Any, epoch: int, batches: int) -> Iterator[None]:
        """Each time leave in `.grad` of the learner that of the loss of another batch."""

    def held_losses(self, networks: Sequence[Any], epoch: int) -> Tensor:
        """`[networks, batches]` float64, of the same batches for all: two rows are paired."""

    def recalibrate(self, networks: Any, epoch: int, batches: int) -> None:
        """Re-estimate all BN statistics from so many batches."""

    def function_delta(self, old: Any, new: Any, mutation: Mutation) -> float:
        """Relative change of what is put out, in eval mode and float64."""

    def pruning_error(self, old: Any, new: Any, mutation: Mutation) -> float:
        """Relative difference between the pruned network and the masked one, in float64."""


@dataclass
class State:
    """A training between two of its steps. `what`: its name in messages."""

    what: str
    epochs: int
    sink: Sink
    progress: Progress

    @property
    def epoch_in_words(self) -> str:
        """The present one; epochs count from 1."""
        return f"epoch {self.progress.epoch + 1}"

    def position(self, step: int | None = None) -> str:
        """Where training is, in words; steps count from 1."""
        if step is None:
            return f"{self.epoch_in_words}, after step {self.progress.step}"
        return f"step {step}, {self.epoch_in_words}"


@dataclass
class Evolving(State):
    """A training whose networks change between two epochs: what interventions see."""

    networks: Trained
    probe: Measures


@dataclass
class Pretraining(Evolving):
    """Self-supervised training: what callbacks see. `checkpoint` gives all that a file holds."""

    networks: Networks
    probe: Probe
    progress: PretrainingProgress
    config: Config
    device: torch.device
    ledger: Ledger
    steps_per_epoch: int
    checkpoint: Callable[[], dict[str, Any]]
    means: EpochMeans | None = None  # of the latest epoch that this process has seen

    @property
    def level(self) -> str:
        """Of the curriculum, at present."""
        return self.probe.feed.schedule.level

    @property
    def epoch_in_words(self) -> str:
        """With its level."""
        return f"{super().epoch_in_words} (level {self.level})"

    @property
    def image_size(self) -> int:
        """Of the views, in the epoch that is trained."""
        sizes, usual = self.config.pretrain.image_sizes, self.config.dataset.image_size
        return size_at(sizes, self.progress.epoch, self.epochs, usual)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        accepted = [record.step for record in self.progress.history if record.accepted]
        return self.config.optimizer.lr * lr_ratio(
            self.progress.step,
            self.steps_per_epoch,
            self.epochs,
            self.config.scheduler,
            mutated_at=accepted[-1] if accepted else None,
        )
