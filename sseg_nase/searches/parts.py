"""What a search is made of, from its configuration: space, strategy, objectives, budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from sseg_nase.config.compose import beside_hydra, load
from sseg_nase.config.groups import strategy as options
from sseg_nase.config.groups.evaluator import OfPredictor, OfProxies, OfRuns, OfTable
from sseg_nase.config.groups.oneshot import OneShot
from sseg_nase.config.groups.space import OfNetworks
from sseg_nase.config.groups.strategy import StrategyConfig
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError
from sseg_nase.search import Budget, Log, Objectives, Table, Tabular
from sseg_nase.search import strategies as known
from sseg_nase.search.latency import csv_latencies, measured_table, this_machine, timed
from sseg_nase.search.loop import Strategy
from sseg_nase.search.strategies.genetic import Genetic
from sseg_nase.search.strategies.halving import Rungs
from sseg_nase.searches.asked_space import space_of
from sseg_nase.searches.evaluators import learnt_from, refuse_test_scores, screened
from sseg_nase.searches.jobs import of_jobs
from sseg_nase.searches.oneshot import NoCandidates, goals_of
from sseg_nase.searches.own import called, imported
from sseg_nase.spaces.choice import Point, Value
from sseg_nase.spaces.networks import NetworkSpace
from sseg_nase.spaces.overrides import Overrides, written
from sseg_nase.spaces.space import Space

# Of every option of `strategy` of the house; one from outside is added to it.
STRATEGIES: dict[type[StrategyConfig], Callable[..., Strategy]] = {
    options.Random: known.RandomSearch,
    options.Grid: known.Grid,
    options.Local: known.LocalSearch,
    options.Evolution: known.Evolution,
    options.Genetic: known.Genetic,
    options.Reinforce: known.Reinforce,
    options.Bananas: known.Bananas,
    options.GP: known.GP,
    options.NSGA2: known.NSGA2,
    options.Halving: known.SuccessiveHalving,
    options.Hyperband: known.Hyperband,
    options.ASHA: known.ASHA,
    options.PNAS: known.PNAS,
    options.TPE: known.TPE,
}
GOALS = {"accuracy": "max"}
SEEDS = 3  # of the trainings from scratch, where candidates are runs
COSTS = ("params", "macs")
SHAPING = ("backbone", "dataset")  # sections that a network's shape follows from
RUNGS = {"fidelity": "name", "least": "least", "most": "most", "eta": "eta"}


@dataclass(frozen=True)
class Parts:
    """What a search is made of but for its evaluator; `about`: what is the same when it resumes."""

    space: Space
    strategy: Strategy
    objectives: Objectives
    budget: Budget
    about: Mapping[str, Any]
    learnt_from: Log | None = None  # of evaluator=predicted


def parts_of(
    config: Config,
    overrides: Sequence[str] = (),
    further: Sequence[Path] = (),
    folder: Path | None = None,
    say: Callable[[str], None] = print,
) -> Parts:
    """Return what the config asks for. Raises `UserError`, also for caps that nothing meets.

    `overrides` are those of the search, `further` its config folders, with which `space=overrides`
    counts its networks; `folder`: that of the search, once it has one. A table of latencies that
    is not there is measured, which `say` is told.
    """
    space, caps = space_of(config), config.search.caps
    networks = caps or final_seeds(config) or config.search.latency
    if isinstance(space, Overrides) and (networks or config.search.screen in COSTS):
        space = counted(space, overrides, further)
    if config.search.latency is not None:
        space = timed(space, *latency_of(config, space, say))
    known = space.costs(space.sample(Random(0))) if caps else {}
    capped = {name: cap for name, cap in caps.items() if name in known}
    space = space.under(capped) if capped else space
    # A run tells what its network has become; another evaluator gives what it gives.
    runs = isinstance(config.evaluator, OfRuns)
    measured = {name: cap for name, cap in caps.items() if runs or name not in known}
    choices = {choice.name: str(choice) for choice in space.choices}
    known_log = None
    if isinstance(config.evaluator, OfPredictor):
        known_log = learnt_from(config, choices, folder)
    objectives = Objectives(config.search.objectives or usual_goals(config, known_log), measured)
    refuse_test_scores(objectives.goals, "search.objectives")
    refuse_test_scores(objectives.caps, "search.caps")
    settings = config.space.settings if isinstance(config.space, OfNetworks) else {}
    chosen = {k: v for k, v in dataclasses.asdict(config.strategy).items() if v not in (None, {})}
    about = {
        "space": {"name": config.space.name, **settings},
        "choices": choices,
        "caps": capped,
        "strategy": chosen,
        "evaluator": config.evaluator.name,
        "at_once": config.search.at_once,
        "seed": config.seed,
    }
    if config.search.latency is not None:
        about["latency"] = config.search.latency_column or "of this machine"
    if config.search.screen is not None:
        about["screen"] = [config.search.screen, config.search.screen_factor]
    strategy = strategy_of(config.strategy)
    if isinstance(strategy, Genetic):
        strategy.check(space)
    return Parts(
        space,
        screened(strategy, config, space),
        objectives,
        Budget(**dataclasses.asdict(config.search.budget)),
        about,
        known_log,
    )


def final_seeds(config: Config) -> list[int]:
    """Return the seeds of the trainings from scratch: none that a candidate has had."""
    count = config.search.final_seeds
    if count is None:
        count = SEEDS if isinstance(config.evaluator, OfRuns) else 0
    return [config.seed + 1 + number for number in range(count)]


def usual_goals(config: Config, known: Log | None) -> Mapping[str, str]:
    """Return what is looked for where the search does not say: the first score of its evaluator."""
    if isinstance(config.strategy, OneShot):
        return goals_of(config.strategy)
    if isinstance(config.evaluator, OfProxies):
        return {config.evaluator.proxies[0]: "max"}
    if known is not None:
        name, direction = next(iter(known.objectives.goals.items()))
        return {name: direction}
    return GOALS


@dataclass(frozen=True)
class Counted(Overrides):
    """Keys of the configuration, with what the network of a point costs before it has weights."""

    described: Callable[[tuple[str, ...]], Any] = lambda shape: None

    def costs(self, point: Point) -> Mapping[str, float]:
        """Return params and macs of the network that a run begins with; ∞ where there is none."""
        found = self._described(point)
        if found is None:
            return dict.fromkeys(COSTS, math.inf)
        summary = found.summary()
        return {name: float(summary[name]) for name in COSTS}

    def describe(self, point: Point) -> Any:
        """Return the network that a run begins with. Raises `UserError` where there is none."""
        found = self._described(point)
        if found is None:
            raise UserError(f"No run has these values together: {self.to_json(point)}.")
        return found

    def _described(self, point: Point) -> Any:
        shaped = (c.name for c in self.choices if c.name.split(".")[0] in SHAPING)
        return self.described(tuple(written(name, point[name]) for name in shaped))

    def largest(self, name: str, like: Point) -> dict[str, Value] | None:
        """Return the point with the most of a cost within the caps, in all else as `like`.

        None where no choice changes what a network costs. One choice at a time, from `like` on.
        """
        shaped = [c for c in self.choices if c.name.split(".")[0] in SHAPING]
        point, changes = dict(like), False
        cost = self.costs(point).get(name, 0.0)
        while True:
            most = cost
            for choice in shaped:
                for value in choice.few(9):
                    other = {**point, choice.name: value}
                    one = self.costs(other).get(name, 0.0)
                    changes |= one not in (cost, math.inf)
                    if cost < one < math.inf and self.allows(other):
                        point, cost = other, one
            if cost == most:
                return point if changes else None


def counted(space: Overrides, overrides: Sequence[str], further: Sequence[Path]) -> Counted:
    """Return the space with the costs of its networks, which follow from its overrides."""
    from sseg_nase.nets.building import configured  # here, because it imports torch

    @cache
    def describe(shape: tuple[str, ...]) -> Any:
        try:
            with beside_hydra():
                run = load([*of_jobs(overrides), *shape, "task=pipeline"], *further)
        except UserError:  # no run has these values together
            return None
        return configured(run.backbone, run.dataset.image_size)

    return Counted(space.name, space.choices, space.caps, describe)


def latency_of(
    config: Config, space: Space, say: Callable[[str], None]
) -> tuple[Callable[[Point], float], Callable[[Point], float] | None]:
    """Return what `search.latency` tells of a point, in ms, and what measures its network itself.

    The latter is None where the table is of another device. Raises `UserError`.
    """
    from sseg_nase.hardware.profiles import cores

    search, evaluator = config.search, config.evaluator
    path = Path(str(search.latency)).expanduser()
    if search.latency_column is not None:
        form, column = "string", "arch"
        if isinstance(evaluator, OfTable):
            form, column = evaluator.form, evaluator.id_column
        told = csv_latencies(path, space, search.latency_column, id_column=column, form=form)
        return told, None
    if not isinstance(space, NetworkSpace | Counted):
        raise UserError(
            f"search.latency={path}: the points of space={config.space.name} are no networks."
        )
    resolution, channels = config.dataset.image_size, config.backbone.in_channels
    threads = config.hardware.threads or cores()
    now = this_machine(resolution, channels, threads=threads)
    table = measured_table(path, space, space.describe, now, say)

    def latency(point: Point) -> float:
        try:
            description = space.describe(point)
        except UserError:  # no run has these values together
            return math.inf
        return table.predict(description)

    return latency, lambda point: table.whole(space.describe(point))


def strategy_of(config: StrategyConfig) -> Strategy:
    """Return the strategy with its settings. Raises `UserError`."""
    if isinstance(config, options.OwnStrategy):
        target = config.target
        found = imported("strategy.target", target)
        if isinstance(found, type):
            found = called("strategy", target, found, **config.settings)
        elif config.settings:
            raise UserError(
                f"strategy.settings={config.settings}: {target} is a function and takes none; make "
                "it a class with these fields and __call__(space, log, how_many, seed)."
            )
        if not callable(found):
            raise UserError(f"strategy.target={target}: it is no function (space, log, n, seed).")
        return found
    if isinstance(config, OneShot):
        return NoCandidates(config.name)
    kind = STRATEGIES[type(config)]
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given = {name: getattr(config, name) for name in names - {"rungs", "proposals"}}
    if "rungs" in names:
        given["rungs"] = Rungs(**{to: getattr(config, name) for name, to in RUNGS.items()})
    return kind(**{name: value for name, value in given.items() if value is not None})


def tabular(config: Config, space: Space) -> Tabular:
    """Return the evaluator that takes scores from a table. Raises `UserError`."""
    asked = config.evaluator
    assert isinstance(asked, OfTable)
    if not asked.scores:
        raise UserError(
            "evaluator.scores={}: which columns? Such as evaluator.scores='{accuracy: COLUMN}'."
        )
    free = dataclasses.replace(space, caps={})  # a table has rows above the caps, too
    table = Table(Path(asked.table), free, asked.id_column, free.encoding(asked.form).decode)
    return Tabular(
        table,
        asked.scores,
        seconds=asked.seconds,
        protocol=asked.protocol,
        slots=config.search.slots,
    )
