"""`optimizer`: of the self-supervised training. Built in `sseg_nase.training.optim`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Optional

from sseg_nase.config.options import Option, group, option, register


@group("optimizer")
@dataclass(frozen=True)
class OptimizerConfig(Option):
    """What all optimizers have.

    `made_by`: of an optimizer of another package, MODULE:NAME of the function that makes it of its
    option and the groups of parameters, imported where it trains.
    """

    lr: Annotated[float, option(above=0)]
    gamma_lr_ratio: Annotated[float, option(above=0)]
    weight_decay: Annotated[float, option(least=0)]
    clip_norm: Annotated[Optional[float], option(above=0)]
    made_by: ClassVar[str] = ""


@dataclass(frozen=True)
class _Adaptive(OptimizerConfig):
    betas: Annotated[list[float], option(least=0, most=0.99999)]

    def wrong(self) -> Iterator[str]:
        if len(self.betas) != 2:
            yield f"optimizer.betas={self.betas}: two numbers are needed, such as [0.9,0.999]."


@register("optimizer", "adamw")
@dataclass(frozen=True)
class AdamW(_Adaptive):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""


@register("optimizer", "adam")
@dataclass(frozen=True)
class Adam(_Adaptive):
    """Adam (Kingma and Ba 2015); weight decay is a part of the gradient."""


@register("optimizer", "sgd")
@dataclass(frozen=True)
class SGD(OptimizerConfig):
    """Stochastic gradient descent."""

    momentum: Annotated[float, option(least=0, most=0.999)]  # at 1 no step is forgotten
    nesterov: bool

    def wrong(self) -> Iterator[str]:
        """Nesterov's step looks ahead by a momentum."""
        if self.nesterov and not self.momentum:
            yield "optimizer.nesterov=true: it needs optimizer.momentum above 0."
