"""Figures of a search: pure functions of its log."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes

from sseg_nase.reporting.figures import Drawing, absent, style
from sseg_nase.search import Log, Scored
from sseg_nase.search.objectives import front
from sseg_nase.searches.analysis import Importance, Share, direction, leading
from sseg_nase.searches.progress import short
from sseg_nase.spaces.choice import Choice, Options

SO_FAR = "Best so far"
FRONT = "Pareto front"
COORDINATES = "Parallel coordinates"
SHARES = "What the best have"
IMPORTANCE = "Importance of the choices"
MOST_LINES = 200
MOST_CHOICES = 14


def figures_of_search(
    log: Log,
    choices: Sequence[Choice],
    results: Sequence[Scored],
    importance: Sequence[Importance],
    shares: Sequence[Share],
) -> Iterator[Drawing]:
    """All figures, in reading order. `results`: those that are compared, of one fidelity."""
    yield best_so_far(log)
    yield pareto(log, results)
    yield coordinates(log, choices, results)
    yield importances(importance)
    yield shares_of(shares)


def best_so_far(log: Log) -> Drawing:
    """Every result and the best until then, over the queries."""
    goal = leading(log)
    usable = [(n, s) for n, s in enumerate(log.told, start=1) if log.is_usable(s)]
    if not usable:
        return absent("best_so_far", SO_FAR, "No candidate has a score within the caps yet.")
    numbers = [n for n, _ in usable]
    values = [scored.scores[goal] for _, scored in usable]
    best = (np.maximum if direction(log) == "max" else np.minimum).accumulate(values)
    with style.applied():
        figure = style.page(2.3)
        axes: Axes = figure.subplots()
        axes.plot(numbers, values, "o", color=style.GREY, markersize=3, label="a result")
        axes.step(
            [*numbers, max(len(log.told), numbers[-1])], [*best, best[-1]], where="post",
            color=style.BLUE, label="best so far",
        )  # fmt: skip
        failed = [n for n, s in enumerate(log.told, start=1) if s.error is not None]
        if failed:
            axes.plot(
                failed, [0.03] * len(failed), "x", color=style.VERMILLION, markersize=4,
                transform=axes.get_xaxis_transform(), label="failed",
            )  # fmt: skip
        axes.set_xlabel("results")
        axes.set_ylabel(goal)
        style.whole(axes.xaxis)
        axes.legend(loc="best")
    caption = (
        f"{goal} of each of {len(usable)} results within the caps, in the order in which they came,"
        f" and the best until then; it ends at {short(float(best[-1]))}."
    )
    return Drawing("best_so_far", SO_FAR, caption, figure)


def pareto(log: Log, results: Sequence[Scored]) -> Drawing:
    """The first two goals against each other, and what no other result dominates."""
    goals = list(log.objectives.goals)
    if len(goals) < 2:
        return absent("front", FRONT, "The search has one goal; two make a front.")
    if not results:
        return absent("front", FRONT, "No candidate has a score within the caps yet.")
    first, second = goals[:2]
    losses = np.array([log.objectives.losses(one.scores)[:2] for one in results])
    ahead = sorted(front(losses), key=lambda at: results[at].scores[second])
    with style.applied():
        figure = style.page(2.6, style.COLUMN * 1.4)
        axes: Axes = figure.subplots()
        xs, ys = ([one.scores[name] for one in results] for name in (second, first))
        axes.plot(xs, ys, "o", color=style.GREY, markersize=3, label="a result")
        axes.plot(
            [xs[at] for at in ahead], [ys[at] for at in ahead], "s-", color=style.BLUE,
            markersize=4, label="not dominated",
        )  # fmt: skip
        axes.set_xlabel(second)
        axes.set_ylabel(first)
        if min(xs) > 0 and max(xs) > 10 * min(xs):
            axes.set_xscale("log")
            style.log_ticks(axes.xaxis)
        elif max(map(abs, xs)) >= 1000:
            style.counted(axes.xaxis)
        axes.legend(loc="best")
    caption = (
        f"{first} against {second}: {len(ahead)} of {len(results)} results are dominated by none."
    )
    return Drawing("front", FRONT, caption, figure)


def coordinates(log: Log, choices: Sequence[Choice], results: Sequence[Scored]) -> Drawing:
    """One line per result through its values, the better ones darker and on top."""
    if len(results) < 2:
        return absent("coordinates", COORDINATES, "Two results are needed, within the caps.")
    shown = list(choices)[:MOST_CHOICES]
    goal = leading(log)
    ordered = sorted(results, key=log.value)[-MOST_LINES:]
    scores = [one.scores[goal] for one in ordered]
    low, high = min(scores), max(scores)
    with style.applied():
        figure = style.page(2.8)
        axes: Axes = figure.subplots()
        for rank, one in enumerate(ordered):
            heights = [_height(choice, one.candidate.point[choice.name]) for choice in shown]
            heights.append((one.scores[goal] - low) / (high - low) if high > low else 0.5)
            better = (rank + 1) / len(ordered)
            best = rank == len(ordered) - 1
            axes.plot(
                range(len(heights)), heights, "-o" if best else "-", markersize=3,
                color=style.VERMILLION if best else style.BLUE, linewidth=1.6 if best else 0.8,
                alpha=1.0 if best else 0.12 + 0.6 * better**3,
            )  # fmt: skip
        names = [choice.name for choice in shown]
        axes.set_xticks(range(len(names) + 1), [*names, goal], rotation=30, ha="right")
        axes.set_yticks([])
        axes.set_ylim(-0.12, 1.12)
        for at, choice in enumerate(shown):
            axes.axvline(at, color=style.PALE, linewidth=0.7, zorder=0)
            for height, text in _marks(choice):
                axes.annotate(
                    text, (at, height), xytext=(2, 0), textcoords="offset points",
                    fontsize=style.SMALL - 1, color=style.BLACK, va="center",
                )  # fmt: skip
        axes.axvline(len(shown), color=style.PALE, linewidth=0.7, zorder=0)
        for height, value in ((0.0, low), (1.0, high)):
            axes.annotate(
                short(value), (len(shown), height), xytext=(2, 0), textcoords="offset points",
                fontsize=style.SMALL - 1, va="center",
            )  # fmt: skip
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    more = (
        f" Of {len(choices)} choices the first {len(shown)}." if len(choices) > len(shown) else ""
    )
    caption = (
        "A line per result through its values; the better, the darker; the best in another colour, "
        f"with marks.{more}"
    )
    return Drawing("coordinates", COORDINATES, caption, figure)


def importances(found: Sequence[Importance]) -> Drawing:
    """How much of the differences each choice explains by itself."""
    told = [one for one in found if one.share is not None][:MOST_CHOICES]
    if not told:
        return absent("importance", IMPORTANCE, "Too few results differ: ten are needed.")
    with style.applied():
        figure = style.page(0.6 + 0.2 * len(told))
        axes: Axes = figure.subplots()
        axes.barh(
            range(len(told)),
            [100 * (one.share or 0.0) for one in told],
            color=style.BLUE,
            height=0.6,
        )
        axes.set_yticks(range(len(told)), [style.shortened(one.name, 40) for one in told])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("differences in rank that it explains by itself (%)")
    caption = (
        "Variance of the ranks between the values of a choice (ranges in four parts), as a share "
        "of all, less what chance would give; a search that has settled on one value says little "
        "about that choice."
    )
    return Drawing("importance", IMPORTANCE, caption, figure)


def shares_of(found: Sequence[Share]) -> Drawing:
    """How often each option stands in the best quarter, and in all results."""
    told = [one for one in found if one.all or one.best]
    if not told:
        return absent("shares", SHARES, "No choice has options to be counted.")
    with style.applied():
        figure = style.page(0.7 + 0.22 * len(told))
        axes: Axes = figure.subplots()
        rows = np.arange(len(told))
        axes.barh(
            rows - 0.2, [100 * one.best for one in told], 0.36, color=style.BLUE, label="best"
        )
        axes.barh(
            rows + 0.2, [100 * one.all for one in told], 0.36, color=style.PALE,
            edgecolor=style.GREY, hatch="///", label="all",
        )  # fmt: skip
        axes.set_yticks(rows, [style.shortened(one.name, 40) for one in told])
        axes.invert_yaxis()
        axes.set_xlabel("share of the places (%)")
        axes.legend(loc="best")
    caption = (
        "How often an option stands in the best quarter of the results, and in all of them. "
        "Options that several choices share, as the edges of a cell do, are counted together."
    )
    return Drawing("shares", SHARES, caption, figure)


def _height(choice: Choice, value: object) -> float:
    if isinstance(choice, Options):
        place = choice.values.index(value)
        return place / (len(choice.values) - 1) if len(choice.values) > 1 else 0.5
    return choice.encode(value)[0]  # type: ignore[arg-type]


def _marks(choice: Choice) -> list[tuple[float, str]]:
    values = list(choice.values) if isinstance(choice, Options) else choice.few(2)
    step = max(1, math.ceil(len(values) / 6))
    return [(_height(choice, value), short(value)) for value in values[::step]]
