"""`strategy`: how `task=search` chooses, as `sseg_nase.search.strategies` does it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Optional

from sseg_nase.config.options import Option, group, option, register

# How much an evaluation is given.
FIDELITIES = ("epochs", "images", "finetune_epochs", "resolution", "episodes")


@group("strategy")
@dataclass(frozen=True)
class StrategyConfig(Option):
    """What all strategies have."""


@register("strategy", "random")
@dataclass(frozen=True)
class Random(StrategyConfig):
    """Without replacement."""


@register("strategy", "grid")
@dataclass(frozen=True)
class Grid(StrategyConfig):
    """Every point, spread over the space."""

    steps: Annotated[int, option(least=1)]


@register("strategy", "local")
@dataclass(frozen=True)
class Local(StrategyConfig):
    """The best of some random points, then its neighbours."""

    starts: Annotated[int, option(least=1)]
    restarts: Annotated[int, option(least=1)]


@register("strategy", "evolution")
@dataclass(frozen=True)
class Evolution(StrategyConfig):
    """Regularised evolution."""

    population: Annotated[int, option(least=1)]
    sample: Annotated[int, option(least=1)]


@register("strategy", "genetic")
@dataclass(frozen=True)
class Genetic(StrategyConfig):
    """Generations with elites and tournaments. None: without it; of `promoted`, half."""

    population: Annotated[int, option(least=1)]
    elites: Annotated[int, option(least=0)]
    tournament: Annotated[int, option(least=1)]
    crossover: Annotated[float, option(least=0, most=1)]
    mutation: Annotated[float, option(least=0, most=1)]
    generations: Annotated[Optional[int], option(least=1)]
    patience: Annotated[Optional[int], option(least=1)]
    min_delta: Annotated[Optional[float], option(least=0)]
    level_generations: Annotated[Optional[int], option(least=1)]
    most_share: Annotated[Optional[float], option(above=0, most=1)]
    least_diversity: Annotated[Optional[float], option(above=0)]
    immigrants: Annotated[Optional[int], option(least=1)]
    fidelity: Annotated[Optional[str], option(choices=FIDELITIES)]
    least: Annotated[Optional[int], option(least=1)]
    most: Annotated[Optional[int], option(least=1)]
    promoted: Annotated[Optional[float], option(above=0, most=1)]

    def wrong(self) -> Iterator[str]:
        """What belongs together is there together."""
        pairs = (
            ("min_delta", "patience"),
            ("least_diversity", "immigrants"),
            ("immigrants", "least_diversity"),
            *((key, "fidelity") for key in ("least", "most", "promoted")),
            *(("fidelity", key) for key in ("least", "most")),
        )
        for key, needed in pairs:
            if getattr(self, key) is not None and getattr(self, needed) is None:
                yield (
                    f"strategy.{key}={getattr(self, key)}: it needs strategy.{needed}; set it, or "
                    f"leave strategy.{key} out."
                )


@register("strategy", "reinforce")
@dataclass(frozen=True)
class Reinforce(StrategyConfig):
    """A policy over the choices."""

    learning_rate: Annotated[float, option(above=0)]
    baseline_decay: Annotated[float, option(least=0, most=0.99999)]


@dataclass(frozen=True)
class _Pooled(StrategyConfig):
    """Strategies that ask a surrogate about a pool of points."""

    starts: Annotated[int, option(least=1)]
    pool: Annotated[int, option(least=1)]
    incumbents: Annotated[int, option(least=1)]


@register("strategy", "bananas")
@dataclass(frozen=True)
class Bananas(_Pooled):
    """An ensemble of networks on an encoding."""

    encoding: Annotated[str, option(text="an encoding of the space")]
    members: Annotated[int, option(least=1)]


@register("strategy", "gp")
@dataclass(frozen=True)
class GP(_Pooled):
    """A Gaussian process and expected improvement."""

    kernel: Annotated[str, option(choices=("hamming", "wl"))]


@register("strategy", "nsga2")
@dataclass(frozen=True)
class NSGA2(StrategyConfig):
    """Several objectives: ranks and crowding. `mutation` None: one over the number of choices."""

    population: Annotated[int, option(least=1)]
    crossover: Annotated[float, option(least=0, most=1)]
    mutation: Annotated[Optional[float], option(least=0, most=1)]


@dataclass(frozen=True)
class Promoting(StrategyConfig):
    """Strategies that give the best candidates more of a fidelity, rung by rung."""

    fidelity: Annotated[str, option(choices=FIDELITIES)]
    least: Annotated[int, option(least=1)]
    most: Annotated[int, option(least=1)]
    eta: Annotated[int, option(least=2)]

    def wrong(self) -> Iterator[str]:
        """The first rung is not above the last."""
        if self.least > self.most:
            yield f"strategy.least={self.least}: it must be at most strategy.most={self.most}."


@register("strategy", "halving")
@dataclass(frozen=True)
class Halving(Promoting):
    """Successive halving in rounds."""

    candidates: Annotated[int, option(least=1)]


@register("strategy", "hyperband")
@dataclass(frozen=True)
class Hyperband(Promoting):
    """Successive halving from every rung."""


@register("strategy", "asha")
@dataclass(frozen=True)
class ASHA(Promoting):
    """Successive halving without waiting."""


@register("strategy", "pnas")
@dataclass(frozen=True)
class PNAS(StrategyConfig):
    """Beams of growing networks. `size` None: the first whole number of the space."""

    beam: Annotated[int, option(least=2)]
    starts: Annotated[int, option(least=1)]
    expansions: Annotated[int, option(least=1)]
    members: Annotated[int, option(least=1)]
    size: Annotated[Optional[str], option(text="a whole-number choice of the space")]


@register("strategy", "tpe")
@dataclass(frozen=True)
class TPE(StrategyConfig):
    """Optuna's."""

    starts: Annotated[int, option(least=1)]


@register("strategy", "own")
@dataclass(frozen=True)
class OwnStrategy(StrategyConfig):
    """One of the user's, from a file of theirs."""

    target: Annotated[str, option(text="FILE.py:NAME or MODULE:NAME")]
    settings: dict[str, Any]
