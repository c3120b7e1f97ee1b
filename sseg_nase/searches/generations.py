"""How a genetic search went, generation by generation: values, diversity, shares of the types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from sseg_nase.reporting.figures import Drawing, absent, style
from sseg_nase.search import Log
from sseg_nase.search.strategies import Genetic, active_diversity, diversity
from sseg_nase.searches.analysis import direction, leading
from sseg_nase.spaces.space import Space

GENERATIONS = "Generations"


@dataclass(frozen=True)
class Generation:
    """`best` and `mean` of the leading goal, None without usable results; `shares` sum to 1.

    `diversity`: entropy per gene in bits; `inherited`: the mean share of parameters that came from
    others, None where nothing says so.
    """

    number: int
    candidates: int
    best: float | None
    mean: float | None
    diversity: float
    shares: Mapping[str, float]
    inherited: float | None = None


def generations_of(log: Log, space: Space | None = None) -> list[Generation]:
    """Return the generations of a genetic search, the first being 0; none of another strategy."""
    settings = log.about.get("strategy", {})
    if settings.get("name") != "genetic":
        return []
    strategy = Genetic(settings["population"], settings["elites"])
    groups: dict[int, list[int]] = {}
    for place, candidate in enumerate(strategy.born(log)):
        groups.setdefault(strategy.generation(place), []).append(candidate.number)
    found, pick = [], max if direction(log) == "max" else min
    for number, members in groups.items():
        points = [log.candidates[n].point for n in members]
        results = [r for n in members if (r := log.result(n)) is not None and log.is_usable(r)]
        values = [result.scores[leading(log)] for result in results]
        taken = [s for r in results if (s := r.scores.get("inherited_share")) is not None]
        types = Counter(str(point.get("type", "")) for point in points)
        found.append(
            Generation(
                number,
                len(members),
                pick(values) if values else None,
                float(np.mean(values)) if values else None,
                diversity(points) if space is None else active_diversity(space, points),
                {name: count / len(points) for name, count in types.items() if name},
                float(np.mean(taken)) if taken else None,
            )
        )
    return found


def generations(log: Log, space: Space | None = None) -> Drawing:
    """Best and mean value, diversity and the share of every network type, per generation."""
    found = generations_of(log, space)
    if len(found) < 2:
        return absent("generations", GENERATIONS, "Two generations of a genetic search are needed.")
    types = list(dict.fromkeys(name for one in found for name in one.shares))
    with style.applied():
        figure = style.page(1.5 * (3 if types else 2) + 0.6)
        rows = figure.subplots(3 if types else 2, sharex=True, squeeze=False)[:, 0]
        numbers = [one.number for one in found]
        values: Axes = rows[0]
        for name, label, look in (("best", "best", "o-"), ("mean", "mean", "s--")):
            told = [getattr(one, name) for one in found]
            values.plot(
                numbers, [np.nan if v is None else v for v in told], look, markersize=3,
                color=style.BLUE if name == "best" else style.GREY, label=label,
            )  # fmt: skip
        values.set_ylabel(leading(log))
        rows[1].plot(numbers, [one.diversity for one in found], "o-", color=style.VERMILLION)
        rows[1].set_ylabel("diversity (bits)")
        rows[1].set_ylim(bottom=0)
        if types:
            below = np.zeros(len(found))
            for place, name in enumerate(types):
                shares = np.array([100 * one.shares.get(name, 0.0) for one in found])
                again, colour = divmod(place, len(style.COLOURS))
                rows[2].bar(
                    numbers, shares, 0.8, bottom=below, color=style.COLOURS[colour], label=name,
                    edgecolor="white", linewidth=0.4, hatch="///" if again else None,
                )  # fmt: skip
                below += shares
            rows[2].set_ylabel("share (%)")
            rows[2].set_ylim(0, 100)
        style.legend_below(
            figure, [h for each in rows for h in each.get_legend_handles_labels()[0]]
        )
        rows[-1].set_xlabel("generation")
        style.whole(rows[-1].xaxis)
    caption = (
        f"{leading(log)} of each generation's best and on average, the entropy per gene of its "
        f"candidates{', and which network types they are' if types else ''}."
    )
    return Drawing("generations", GENERATIONS, caption, figure)
