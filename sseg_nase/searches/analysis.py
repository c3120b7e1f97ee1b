"""What a log tells: which results compare, what choices matter, what the best have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sseg_nase.search import Log, Scored
from sseg_nase.spaces.choice import Choice, Options
from sseg_nase.spaces.space import Space

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST = 10  # results from which a share is told
PARTS = 4  # of a range
TREES = 100
WORST = 0.1  # share of the results that a figure may leave out


class Importance(NamedTuple):
    """The share of the variance of ranks that a choice explains by itself; None: not known.

    `forest`: its share of what a random forest explains by all choices.
    """

    name: str
    share: float | None
    forest: float | None = None


class Share(NamedTuple):
    """How often an option stands in the best quarter, and in all results, from 0 to 1.

    Of the places where its choice says anything.
    """

    name: str
    best: float
    all: float


def leading(log: Log) -> str:
    """The goal that comes first."""
    return next(iter(log.objectives.goals))


def direction(log: Log) -> str:
    """`max` or `min`, of the leading goal."""
    return log.objectives.goals[leading(log)]


def compared(log: Log) -> list[Scored]:
    """The usable results of the fullest fidelity, by number; all, where there is one fidelity."""
    return log.usable(fullest(log))


def fullest(log: Log) -> dict[str, float]:
    """The largest fidelity that has a usable result; an empty one where there is none."""
    found = [dict(one.candidate.fidelity) for one in log.told if log.is_usable(one)]
    return max(found, key=lambda each: sum(each.values()), default={})


def active(space: Space | None, results: Sequence[Scored]) -> list[frozenset[str]]:
    """Return the choices that say anything at the point of each result; all without a space."""
    points = [one.candidate.point for one in results]
    return [frozenset(point if space is None else space.active(point)) for point in points]


def importance(
    log: Log, choices: Sequence[Choice], results: Sequence[Scored], space: Space | None = None
) -> list[Importance]:
    """Return the choices, the most important first.

    The share of the variance of the ranks between the values of a choice (η²), less what as many
    groups explain by chance (ω²), 0 at least; of the results where it says anything. None where
    these are below `FEWEST`, and where all have the same value. With the share of the impurity that
    its splits take in a random forest of all results.
    """
    values = np.array([log.value(one) for one in results])
    ranks = values.argsort(kind="stable").argsort(kind="stable").astype(float)
    told = active(space, results)
    shares = _in_a_forest(ranks, choices, results, told)

    def explained(choice: Choice) -> float | None:
        there = [at for at, names in enumerate(told) if choice.name in names]
        return _explained(ranks[there], _groups(choice, [results[at] for at in there]))

    found = [Importance(c.name, explained(c), shares.get(c.name)) for c in choices]
    return sorted(found, key=lambda one: -1.0 if one.share is None else one.share, reverse=True)


def shares(
    log: Log, choices: Sequence[Choice], results: Sequence[Scored], space: Space | None = None
) -> list[Share]:
    """Return the options by how much more often they stand in the best quarter than in all.

    Choices of the same words are places of one kind, as the edges of a cell, and counted together;
    of the same numbers those that have the same name but for the number of a layer. Nothing is said
    of a kind that has no place in the best.
    """
    options = [choice for choice in choices if isinstance(choice, Options)]
    if not options or not results:
        return []
    ordered = sorted(results, key=log.value, reverse=True)
    best = ordered[: max(1, len(ordered) // 4)]
    kinds: dict[tuple[object, ...], list[Options]] = {}
    for choice in options:
        words = all(isinstance(value, str) for value in choice.values)
        kinds.setdefault((choice.values, "" if words else _unnumbered(choice)), []).append(choice)
    told = [active(space, group) for group in (best, ordered)]
    found = []
    for places in kinds.values():
        names = {place.name for place in places}
        counts = [
            Counter(
                str(one.candidate.point[name])
                for one, there in zip(group, said, strict=True)
                for name in names & there
            )
            for group, said in zip((best, ordered), told, strict=True)
        ]
        if not counts[0]:
            continue
        named = places[0].name if len(places) == 1 else _unnumbered(places[0])
        words = all(isinstance(value, str) for value in places[0].values)
        start = "" if len(places) > 1 and (words or not named) else f"{named}="
        for value in places[0].values:
            of_best, of_all = (each[str(value)] / sum(each.values()) for each in counts)
            found.append(Share(f"{start}{value}", of_best, of_all))
    return sorted(found, key=lambda one: one.all - one.best)


def outer(log: Log, values: Sequence[float]) -> tuple[float, float]:
    """Return the range in which values are told apart: all but the worst tenth, if far away."""
    low, high = min(values), max(values)
    if direction(log) == "max":
        near = float(np.quantile(values, WORST))
        return (near if near - low > (high - near) / 2 else low), high
    near = float(np.quantile(values, 1 - WORST))
    return low, (near if high - near > (near - low) / 2 else high)


def near_the_best(log: Log, axes: Axes, values: Sequence[float]) -> str:
    """Cut the worst tenth off an axis of scores where it is far away; say how many that are."""
    low, high = outer(log, values)
    gone = sum(not low <= value <= high for value in values)
    if high > low and gone:
        margin = 0.05 * (high - low)
        axes.set_ylim(low - margin, high + margin)
        return f" {gone} far worse one{'s are' if gone > 1 else ' is'} out of the picture."
    return ""


def _unnumbered(choice: Choice) -> str:
    """The name without the parts that are numbers: `mlp.3.channels` is `mlp.channels`."""
    parts = choice.name.split(".")
    return ".".join(part for part in parts if any(map(str.isalpha, part)))


def _in_a_forest(
    ranks: np.ndarray,
    choices: Sequence[Choice],
    results: Sequence[Scored],
    told: Sequence[frozenset[str]],
) -> dict[str, float]:
    """Return, per choice, its share of what a random forest of the ranks explains; seed 0.

    Where a choice says nothing (it is none of `told`) it counts as what it most often is elsewhere:
    a code of its own would tell of the choice that it depends on.
    """
    if len(results) < FEWEST or not choices:
        return {}
    from sklearn.ensemble import RandomForestRegressor  # here, because it takes long to load

    columns = [
        np.array([choice.encode(one.candidate.point[choice.name]) for one in results], dtype=float)
        for choice in choices
    ]
    for choice, column in zip(choices, columns, strict=True):
        there = np.array([choice.name in names for names in told])
        elsewhere = Counter(map(tuple, column[there]))
        column[~there] = elsewhere.most_common(1)[0][0] if elsewhere else 0.0
    forest = RandomForestRegressor(TREES, min_samples_leaf=2, random_state=0)
    forest.fit(np.concatenate(columns, axis=1), ranks)
    ends = np.cumsum([column.shape[1] for column in columns])[:-1]
    parts = np.split(forest.feature_importances_, ends)
    return {choice.name: float(p.sum()) for choice, p in zip(choices, parts, strict=True)}


def _groups(choice: Choice, results: Sequence[Scored]) -> np.ndarray:
    points = [one.candidate.point[choice.name] for one in results]
    if isinstance(choice, Options):
        return np.array([choice.values.index(value) for value in points])
    return np.array([min(PARTS - 1, int(PARTS * choice.encode(value)[0])) for value in points])


def _explained(ranks: np.ndarray, groups: np.ndarray) -> float | None:
    there, count = np.unique(groups), len(ranks)
    if count < FEWEST or len(there) < 2 or len(there) >= count:
        return None
    mean = ranks.mean()
    total = ((ranks - mean) ** 2).sum()
    inside = sum(((ranks[groups == g] - ranks[groups == g].mean()) ** 2).sum() for g in there)
    error = inside / (count - len(there))
    between = total - inside
    return float(max(0.0, (between - (len(there) - 1) * error) / (total + error)))
