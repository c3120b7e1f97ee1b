"""`scheduler`: the learning rate over time. Computed in `sseg_nase.training.optim`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from sseg_nase.config.options import Option, group, option, register


@group("scheduler")
@dataclass(frozen=True)
class SchedulerConfig(Option):
    """What all schedules have.

    `made_by`: of a schedule of another package, MODULE:NAME of the function of its option, the
    epoch and the number of epochs, both without the warm-up, that gives the share of the learning
    rate.
    """

    warmup_epochs: Annotated[float, option(least=0)]
    rewarmup_steps: Annotated[int, option(least=0)]
    made_by: ClassVar[str] = ""


@register("scheduler", "cosine")
@dataclass(frozen=True)
class Cosine(SchedulerConfig):
    """Half a cosine down to `final_ratio`."""

    final_ratio: Annotated[float, option(least=0, most=1)]


@register("scheduler", "step")
@dataclass(frozen=True)
class Step(SchedulerConfig):
    """Times `gamma` after every `step_size` epochs."""

    step_size: Annotated[int, option(least=1)]
    gamma: Annotated[float, option(above=0, most=1)]


@register("scheduler", "constant")
@dataclass(frozen=True)
class Constant(SchedulerConfig):
    """The same rate all along."""


@register("scheduler", "constant_decay")
@dataclass(frozen=True)
class ConstantDecay(SchedulerConfig):
    """The same rate, and over the last `decay_share` of the epochs a line to `final_ratio`."""

    final_ratio: Annotated[float, option(least=0, most=1)]
    decay_share: Annotated[float, option(above=0, most=1)]
