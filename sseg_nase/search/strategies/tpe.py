"""Tree-structured Parzen estimators (Bergstra et al. 2011), those of optuna, by ask and tell."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from sseg_nase.errors import UserError
from sseg_nase.search.log import Candidate, Log
from sseg_nase.search.strategies.ask import Ask
from sseg_nase.search.strategies.settings import at_least
from sseg_nase.spaces.choice import Choice, Integers, Reals, Value
from sseg_nase.spaces.space import Space

DRAWS = 20  # of a point that is not new, before a random one is taken


@dataclass(frozen=True)
class TPE:
    """optuna's TPE after `starts` random points. The study is rebuilt from the log at every ask.

    Pending candidates count as the constant liar has them: with the worst value that is known.
    optuna is an extra: without it a `UserError` says how to install it.
    """

    starts: int = 10

    def __post_init__(self) -> None:
        at_least(1, self, "starts")

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return the next candidates."""
        optuna = _optuna()
        ask, usable = Ask(space, log, seed), log.usable()
        missing = self.starts - len(log.candidates)
        if missing > 0 or not usable:
            return ask.fill(min(count, max(missing, 1)))
        kinds = {choice.name: _distribution(optuna, choice) for choice in space.choices}
        sampler = optuna.samplers.TPESampler(
            seed=ask.rng.getrandbits(32), n_startup_trials=0, multivariate=True
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        worst = min(log.value(scored) for scored in usable)
        told = [(s.candidate.point, log.value(s)) for s in usable]
        told += [(candidate.point, worst) for candidate in log.pending]
        for point, value in told:
            trial = optuna.trial.create_trial(
                params=dict(point), distributions=kinds, value=float(value)
            )
            study.add_trial(trial)
        while len(ask) < count:
            if not self._draw(ask, study, kinds, worst) and not ask.suggest_any():
                break
        return ask.candidates

    def _draw(self, ask: Ask, study: Any, kinds: dict[str, Any], worst: float) -> bool:
        for _ in range(DRAWS):
            trial = study.ask(kinds)
            point: dict[str, Value] = {c.name: trial.params[c.name] for c in ask.space.choices}
            study.tell(trial, worst)  # so that the next suggestion is another one
            if ask.space.allows(point) and ask.suggest(point, "tpe"):
                return True
        return False


def _optuna() -> Any:
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise UserError(
            "strategy tpe needs optuna, which is not installed: pip install 'sseg-nase[tpe]', or "
            "choose gp or bananas."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(optuna: Any, choice: Choice) -> Any:
    if isinstance(choice, Integers):
        return optuna.distributions.IntDistribution(choice.low, choice.high)
    if isinstance(choice, Reals):
        return optuna.distributions.FloatDistribution(choice.low, choice.high, log=choice.log)
    return optuna.distributions.CategoricalDistribution(choice.grid(1))
