"""`strategy`, those that train one network that contains all others: see `sseg_nase.oneshot`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Optional

from sseg_nase.config.groups.strategy import StrategyConfig
from sseg_nase.config.options import option, register


@dataclass(frozen=True)
class OneShot(StrategyConfig):
    """What all of them have: how the weights of the supernet are trained.

    `objective`: cross-entropy of the classes of train (`labels`), or the loss of `ssl=…` (`ssl`).
    `images` of train, half of them for the weights and half for what chooses; None: all. `parts`:
    in how many a batch goes through the supernet, for memory; to the loss it is one batch.
    `further_epochs`: of the network that was chosen, with the weights that it had in the supernet.
    `max_skips`: in the network that is derived; None: any number.
    """

    objective: Annotated[str, option(choices=("labels", "ssl"))]
    images: Annotated[Optional[int], option(least=4)]
    epochs: Annotated[int, option(least=1)]
    further_epochs: Annotated[int, option(least=0)]
    batch_size: Annotated[int, option(least=2)]
    parts: Annotated[int, option(least=1)]
    weight_lr: Annotated[float, option(above=0)]
    final_weight_lr: Annotated[float, option(least=0)]
    momentum: Annotated[float, option(least=0, most=0.999)]
    weight_decay: Annotated[float, option(least=0)]
    clip_norm: Annotated[Optional[float], option(above=0)]
    max_skips: Annotated[Optional[int], option(least=0)]

    def wrong(self) -> Iterator[str]:
        """The learning rate does not rise, and parts of a batch are equally large."""
        if self.parts > 1 and self.objective != "ssl":
            yield (
                f"strategy.parts={self.parts}: it has an effect with strategy.objective=ssl alone, "
                "whose losses compare the images of a batch; leave it out, and take a smaller "
                "strategy.batch_size."
            )
        elif self.batch_size % self.parts or self.batch_size < 2 * self.parts:
            yield (
                f"strategy.parts={self.parts}: strategy.batch_size={self.batch_size} must be a "
                "multiple of it, with two images in each part at least."
            )
        if self.final_weight_lr > self.weight_lr:
            yield (
                f"strategy.final_weight_lr={self.final_weight_lr}: it must be at most "
                f"strategy.weight_lr={self.weight_lr}."
            )


@dataclass(frozen=True)
class Gated(OneShot):
    """Those with gates α that are trained by gradients, and the brakes against their collapse.

    `warmup_epochs`: of the weights alone, at the start. `stop_at_skips`: end the search when the
    network that would be derived has so many. `eigenvalue_ratio`: end it when the largest
    eigenvalue of the Hessian of the validation loss in α has risen so that its mean
    `eigenvalue_window` epochs ago is less than this share of now; None: do not compute it.
    `perturbation`: uniform noise up to which α is moved while the weights are trained.
    """

    warmup_epochs: Annotated[int, option(least=0)]
    alpha_lr: Annotated[float, option(above=0)]
    alpha_betas: Annotated[list[float], option(least=0, most=0.99999)]
    alpha_weight_decay: Annotated[float, option(least=0)]
    stop_at_skips: Annotated[Optional[int], option(least=1)]
    eigenvalue_ratio: Annotated[Optional[float], option(above=0, most=1)]
    eigenvalue_window: Annotated[int, option(least=1)]
    perturbation: Annotated[float, option(least=0)]

    def wrong(self) -> Iterator[str]:
        """Two betas, and epochs in which the gates are trained."""
        yield from super().wrong()
        if len(self.alpha_betas) != 2:
            yield f"strategy.alpha_betas={self.alpha_betas}: two are needed."
        if self.warmup_epochs >= self.epochs:
            yield (
                f"strategy.warmup_epochs={self.warmup_epochs}: the gates would never be trained in "
                f"strategy.epochs={self.epochs}; take fewer."
            )


@register("strategy", "darts")
@dataclass(frozen=True)
class Darts(Gated):
    """All candidates at once, weighed by softmax(α) (Liu et al. 2019).

    `kept_mb`: of feature maps for the gradients of a batch; where the supernet would keep more,
    its mixed operations are computed again in the backward pass. None: never.
    """

    order: Annotated[str, option(choices=("first", "second"))]
    kept_mb: Annotated[Optional[int], option(least=0)]


@register("strategy", "pc_darts")
@dataclass(frozen=True)
class PCDarts(Darts):
    """One of `partial` channels is mixed, and edges are weighed by softmax(β) (Xu et al. 2020)."""

    partial: Annotated[int, option(least=2)]


@register("strategy", "proxyless")
@dataclass(frozen=True)
class Proxyless(Gated):
    """One path a step, two of each gate for its own step (Cai et al. 2019).

    `alpha_interval`: steps of the weights per step of α. `latency_weight`: of the expected latency,
    as a share of `latency_target` milliseconds, in the loss of α.
    """

    alpha_interval: Annotated[int, option(least=1)]
    latency_weight: Annotated[float, option(least=0)]
    latency_target: Annotated[Optional[float], option(above=0)]

    def wrong(self) -> Iterator[str]:
        """A weight has a target."""
        yield from super().wrong()
        if (self.latency_weight > 0) != (self.latency_target is not None):
            yield (
                f"strategy.latency_weight={self.latency_weight} strategy.latency_target="
                f"{self.latency_target}: set both, the latter in milliseconds, or neither (0 and "
                "null)."
            )


@dataclass(frozen=True)
class Sampled(OneShot):
    """Those that score `samples` networks with the shared weights at the end, and take the best."""

    samples: Annotated[int, option(least=1)]


@register("strategy", "random_sharing")
@dataclass(frozen=True)
class RandomSharing(Sampled):
    """One path a step, any with the same probability (Li and Talwalkar 2019)."""


@register("strategy", "enas")
@dataclass(frozen=True)
class ENAS(Sampled):
    """One path a step, sampled by an LSTM that learns which do well (Pham et al. 2018).

    `controller_steps` after every epoch, each of `controller_samples` networks whose reward is the
    score on one validation batch.
    """

    hidden: Annotated[int, option(least=1)]
    controller_lr: Annotated[float, option(above=0)]
    controller_steps: Annotated[int, option(least=1)]
    controller_samples: Annotated[int, option(least=1)]
    entropy_weight: Annotated[float, option(least=0)]
    baseline_decay: Annotated[float, option(least=0, most=0.99999)]
    tanh_constant: Annotated[float, option(above=0)]
