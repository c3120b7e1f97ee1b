"""`optimizer`: of the self-supervised training. Built in `sseg_nase.training.optim`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Optional

from sseg_nase.config.options import Option, group, option, options_of, register


@group("optimizer")
@dataclass(frozen=True)
class OptimizerConfig(Option):
    """What all optimizers have.

    `made_by`: of an optimizer of another package, MODULE:NAME of the function that makes it of its
    option and the groups of parameters, imported where it trains. `usual_rates`: from the lowest to
    the highest that is usual, None where nobody knows. `instead`: the optimizer to try where
    training with it came apart, and `instead_in_tuning` where fine-tuning did. `tunes`: it is one
    of fine-tuning, too; `tuning_rate`: at this rate, where that is not for the method to say.
    """

    lr: Annotated[float, option(above=0)]
    gamma_lr_ratio: Annotated[float, option(above=0)]
    weight_decay: Annotated[float, option(least=0)]
    clip_norm: Annotated[Optional[float], option(above=0)]
    made_by: ClassVar[str] = ""
    usual_rates: ClassVar[Optional[tuple[float, float]]] = None
    instead: ClassVar[str] = "adamw"
    instead_in_tuning: ClassVar[str] = "adam"
    tunes: ClassVar[bool] = False
    tuning_rate: ClassVar[Optional[float]] = None


# Rates are far out where they lie ten times and more beyond what is published for any network of
# these kinds. Adam's step is about the learning rate itself, whatever the gradient, and weights
# are about 0.1; SGD has been run at up to 5, with a batch of 4,096.


@dataclass(frozen=True)
class _Adaptive(OptimizerConfig):
    usual_rates = (1e-7, 0.1)
    tunes = True
    betas: Annotated[list[float], option(least=0, most=0.99999)]

    def wrong(self) -> Iterator[str]:
        if len(self.betas) != 2:
            yield f"optimizer.betas={self.betas}: two numbers are needed, such as [0.9,0.999]."


@register("optimizer", "adamw")
@dataclass(frozen=True)
class AdamW(_Adaptive):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    instead = "sgd"


@register("optimizer", "adam")
@dataclass(frozen=True)
class Adam(_Adaptive):
    """Adam (Kingma and Ba 2015); weight decay is a part of the gradient."""

    instead_in_tuning = "sgd"


@register("optimizer", "sgd")
@dataclass(frozen=True)
class SGD(OptimizerConfig):
    """Stochastic gradient descent."""

    usual_rates: ClassVar[tuple[float, float]] = (1e-6, 50)
    tunes = True
    tuning_rate = 0.1  # see conf/finetune/prototypical.yaml
    momentum: Annotated[float, option(least=0, most=0.999)]  # at 1 no step is forgotten
    nesterov: bool

    def wrong(self) -> Iterator[str]:
        """Nesterov's step looks ahead by a momentum."""
        if self.nesterov and not self.momentum:
            yield "optimizer.nesterov=true: it needs optimizer.momentum above 0."


def of_tuning() -> tuple[str, ...]:
    """Return the names of the optimizers of this package that fine-tuning has, too."""
    return tuple(sorted(name for name, cls in options_of(OptimizerConfig).items() if cls.tunes))
