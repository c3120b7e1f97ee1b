"""`evolution`: when and how the network grows. Done by `sseg_nase.training`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Optional

from sseg_nase.config.options import Checked, OrOfPackages, group, option, register
from sseg_nase.packages import OPERATORS

LATEST_EXPANSION = 0.6  # of all epochs: what is new then is trained for the rest of them
AS_USUAL = "such as that of evolution=balanced"


@group("evolution", told_by="order")
@dataclass(frozen=True)
class EvolutionConfig(Checked):
    """What all orders have."""

    enabled: bool
    order: str
    operators: Annotated[
        list[str], option(choices=OrOfPackages(("grow", "widen", "widen_all"), OPERATORS))
    ]
    max_blocks: Annotated[int, option(least=1)]
    max_channels: Annotated[int, option(least=1)]
    max_params: Annotated[int, option(least=1)]
    max_flops: Annotated[int, option(least=1)]
    cap_resolution: Annotated[int, option(least=8)]
    channel_expansion_ratio: Annotated[float, option(above=1)]
    detector: Annotated[str, option(choices=("window", "slope"))]
    plateau_threshold: Annotated[float, option(least=0)]
    plateau_window_size: Annotated[int, option(least=1)]
    patience_epochs: Annotated[int, option(least=1)]
    smoothing: Annotated[float, option(least=0, most=0.999)]
    distillation_gap_threshold: Annotated[float, option(least=0)]
    burn_in_epochs: Annotated[int, option(least=0)]
    cooldown_epochs: Annotated[int, option(least=0)]
    fitness_alpha: Annotated[float, option(least=0)]
    trial_steps: Annotated[int, option(least=0)]
    trial_margin: Annotated[Optional[float], option(least=0)]
    trial_new_lr_ratio: Annotated[float, option(least=1)]
    max_repeats: Annotated[int, option(least=1)]
    grow_mode: Annotated[str, option(choices=("preserve", "fresh"))]
    grow_positions: Annotated[str, option(choices=("last", "stages", "all"))]
    widen_mode: Annotated[str, option(choices=("duplicate", "zero", "pairs"))]
    widen_noise: Annotated[float, option(least=0, most=1)]
    probation: Annotated[str, option(choices=("control", "tolerance"))]
    rollback_tolerance: Annotated[float, option(least=-1)]
    rollback_grace_epochs: Annotated[int, option(least=0)]


@register("evolution", "trials")
@dataclass(frozen=True)
class Trials(EvolutionConfig):
    """On a plateau, what is tried decides."""


@register("evolution", "balanced", "random")
@dataclass(frozen=True)
class Planned(EvolutionConfig):
    """At given shares of the epochs the stages get one convolution more each, up to so many."""

    expand_at: Annotated[list[float], option(above=0, most=LATEST_EXPANSION, text=AS_USUAL)]
    blocks_per_stage: Annotated[int, option(least=2, text=AS_USUAL)]

    @property
    def drawn(self) -> bool:
        """Whether each convolution gets a random stage."""
        return self.order == "random"

    def wrong(self) -> Iterator[str]:
        """There are expansions, and they follow in time."""
        if not self.expand_at:
            yield f"evolution.expand_at=[]: evolution.order={self.order} needs a value, {AS_USUAL}."
        if self.expand_at != sorted(set(self.expand_at)):
            yield (
                f"evolution.expand_at={self.expand_at}: name each share once, from early to late."
            )
