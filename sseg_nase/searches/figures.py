"""Figures of a search: pure functions of its log."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes

from sseg_nase.reporting.figures import Drawing, absent, style
from sseg_nase.search import Log, Scored
from sseg_nase.search.objectives import front
from sseg_nase.searches.analysis import (
    Importance,
    Share,
    active,
    direction,
    leading,
    near_the_best,
    outer,
)
from sseg_nase.searches.descent import course, descent, network
from sseg_nase.searches.folder import Other
from sseg_nase.searches.generations import generations
from sseg_nase.searches.progress import short
from sseg_nase.spaces.choice import Choice, Options
from sseg_nase.spaces.space import Space

SO_FAR = "Best so far"
FRONT = "Pareto front"
COORDINATES = "Parallel coordinates"
SHARES = "What the best have"
IMPORTANCE = "Importance of the choices"
MOST_LINES = 200
MOST_CHOICES, MOST_MARKS, MOST_OPTIONS = 14, 10, 30
BEHIND = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}


def figures_of_search(
    log: Log,
    choices: Sequence[Choice],
    results: Sequence[Scored],
    importance: Sequence[Importance],
    shares: Sequence[Share],
    space: Space | None = None,
    others: Sequence[Other] = (),
) -> Iterator[Drawing]:
    """All figures, in reading order.

    `results`: those that are compared, of one fidelity; `others`: searches for the same.
    """
    yield best_so_far(log, others)
    yield pareto(log, results)
    yield course(log, space)
    yield generations(log, space)
    yield network(log, results, space)
    shown = told_most(log, choices, results, importance, space)
    yield coordinates(log, shown, results, space, len(choices))
    yield importances(importance)
    yield shares_of(shares)
    yield descent(log)


def best_so_far(log: Log, others: Sequence[Other] = ()) -> Drawing:
    """Every result and the best until then, over the queries, beside that of other searches."""
    goal = leading(log)
    usable = [(n, s) for n, s in enumerate(log.told, start=1) if log.is_usable(s)]
    if not usable:
        return absent("best_so_far", SO_FAR, "No candidate has a score within the caps yet.")
    numbers = [n for n, _ in usable]
    values = [scored.scores[goal] for _, scored in usable]
    accumulate = (np.maximum if direction(log) == "max" else np.minimum).accumulate
    best = accumulate(values)
    with style.applied():
        figure = style.page(2.3)
        axes: Axes = figure.subplots()
        axes.plot(numbers, values, "o", color=style.GREY, markersize=3, label="a result")
        axes.step(
            [*numbers, max(len(log.told), numbers[-1])], [*best, best[-1]], where="post",
            color=style.BLUE, label="best so far",
        )  # fmt: skip
        names = list(dict.fromkeys(other.name for other in others))
        for other in others:
            look = style.looks(len(names) + 2)[names.index(other.name) + 2]
            usable = [(n, s) for n, s in enumerate(other.log.told, start=1) if log.is_usable(s)]
            if not usable:
                continue
            first = other is next(each for each in others if each.name == other.name)
            axes.step(
                [*(n for n, _ in usable), max(len(other.log.told), usable[-1][0])],
                [*(reached := accumulate([s.scores[goal] for _, s in usable])), reached[-1]],
                where="post", color=look.colour, linestyle=look.dashes, linewidth=1.0, zorder=1,
                label=other.name if first else None,
            )  # fmt: skip
        failed = [n for n, s in enumerate(log.told, start=1) if s.error is not None]
        if failed:
            axes.plot(
                failed, [0.03] * len(failed), "x", color=style.VERMILLION, markersize=4,
                transform=axes.get_xaxis_transform(), label="failed",
            )  # fmt: skip
        axes.set_xlabel("results")
        axes.set_ylabel(goal)
        left_out = near_the_best(log, axes, values)
        style.whole(axes.xaxis)
        style.legend_below(figure, axes.get_legend_handles_labels()[0])
    caption = (
        f"{goal} of each of {len(usable)} results within the caps, in the order in which they came,"
        f" and the best until then; it ends at {short(float(best[-1]))}."
        f"{left_out}"
    )
    if others:
        caption += (
            f" Beside it {len(others)} other search{'es' if len(others) > 1 else ''} for the same, "
            "in the same folder: a line each."
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
        style.legend_below(figure, axes.get_legend_handles_labels()[0])
    caption = (
        f"{first} against {second}: {len(ahead)} of {len(results)} results are dominated by none."
    )
    return Drawing("front", FRONT, caption, figure)


def told_most(
    log: Log,
    choices: Sequence[Choice],
    results: Sequence[Scored],
    importance: Sequence[Importance],
    space: Space | None,
) -> list[Choice]:
    """The most important choices, in the order in which they stand.

    First those of which it is known, then those that say anything of the best.
    """
    known = [one.name for one in importance if one.share is not None]
    best = active(space, sorted(results, key=log.value)[-1:])
    of_best = [choice.name for choice in choices if any(choice.name in names for names in best)]
    most = list(dict.fromkeys([*known, *of_best]))[:MOST_CHOICES]
    return [choice for choice in choices if choice.name in most]


def coordinates(
    log: Log,
    shown: Sequence[Choice],
    results: Sequence[Scored],
    space: Space | None = None,
    choices: int = 0,
) -> Drawing:
    """One line per result through its values, the better ones darker and on top.

    It passes by the choices that say nothing at its point. `choices`: how many there are.
    """
    if len(results) < 2:
        return absent("coordinates", COORDINATES, "Two results are needed, within the caps.")
    goal = leading(log)
    ordered = sorted(results, key=log.value)[-MOST_LINES:]
    scores = [one.scores[goal] for one in ordered]
    low, high = outer(log, scores)
    with style.applied():
        figure = style.page(2.8)
        axes: Axes = figure.subplots()
        told = active(space, ordered)
        for rank, one in enumerate(ordered):
            places = [at for at, choice in enumerate(shown) if choice.name in told[rank]]
            heights = [_height(shown[at], one.candidate.point[shown[at].name]) for at in places]
            height = (one.scores[goal] - low) / (high - low) if high > low else 0.5
            heights.append(min(max(height, 0.0), 1.0))
            better = (rank + 1) / len(ordered)
            best = rank == len(ordered) - 1
            axes.plot(
                [*places, len(shown)], heights, "-o" if best else "-", markersize=3,
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
                    fontsize=style.SMALL - 1, color=style.BLACK, va="center", bbox=BEHIND,
                )  # fmt: skip
        axes.axvline(len(shown), color=style.PALE, linewidth=0.7, zorder=0)
        signs = ["≤ " if min(scores) < low else "", "≥ " if max(scores) > high else ""]
        for height, value, sign in ((0.0, low, signs[0]), (1.0, high, signs[1])):
            axes.annotate(
                f"{sign}{short(value)}", (len(shown), height), xytext=(2, 0),
                textcoords="offset points", fontsize=style.SMALL - 1, va="center",
            )  # fmt: skip
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    more = f" Of {choices} choices the {len(shown)} most important." if choices > len(shown) else ""
    caption = (
        "A line per result through its values; the better, the darker; the best in another colour, "
        f"with marks.{more}"
    )
    return Drawing("coordinates", COORDINATES, caption, figure)


def importances(found: Sequence[Importance]) -> Drawing:
    """How much of the differences each choice explains by itself, and in a random forest."""
    told = [one for one in found if one.share is not None][:MOST_CHOICES]
    if not told:
        return absent("importance", IMPORTANCE, "Too few results differ: ten are needed.")
    with style.applied():
        figure = style.page(0.7 + 0.22 * len(told))
        axes: Axes = figure.subplots()
        rows = np.arange(len(told))
        axes.barh(
            rows - 0.2, [100 * (one.share or 0.0) for one in told], 0.36, color=style.BLUE,
            label="by itself",
        )  # fmt: skip
        axes.barh(
            rows + 0.2, [100 * (one.forest or 0.0) for one in told], 0.36, color=style.PALE,
            edgecolor=style.GREY, hatch="///", label="in a random forest",
        )  # fmt: skip
        axes.set_yticks(range(len(told)), [style.shortened(one.name, 40) for one in told])
        axes.margins(y=0.01)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("differences in rank (%)")
        style.legend_below(figure, axes.get_legend_handles_labels()[0])
    caption = (
        "By itself: variance of the ranks between the values of a choice (ranges in four parts), "
        "as a share of all, less what chance would give, over the results where it says anything. "
        "In a random forest that predicts the ranks from all choices: what a choice takes of its "
        "explanation, all together 100 %. A search that has settled on one value says little about "
        "that choice."
    )
    return Drawing("importance", IMPORTANCE, caption, figure)


def shares_of(found: Sequence[Share]) -> Drawing:
    """How often each option stands in the best quarter, and in all results."""
    told = [one for one in found if one.all or one.best]
    far = sorted(told, key=lambda one: abs(one.best - one.all), reverse=True)[:MOST_OPTIONS]
    left_out = len(told) - len(far)
    told = [one for one in told if one in far]
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
        axes.margins(y=0.01)
        axes.invert_yaxis()
        axes.set_xlabel("share of the places of its kind (%)")
        style.legend_below(figure, axes.get_legend_handles_labels()[0])
    caption = (
        "How often an option stands in the best quarter of the results, and in all of them, where "
        "its choice says anything. Options that several choices share, as the edges of a cell do, "
        "are counted together."
    )
    if left_out:
        caption += f" Of {len(told) + left_out} those {len(told)} that differ most."
    return Drawing("shares", SHARES, caption, figure)


def _height(choice: Choice, value: object) -> float:
    if isinstance(choice, Options):
        place = choice.values.index(value)
        return place / (len(choice.values) - 1) if len(choice.values) > 1 else 0.5
    return choice.encode(value)[0]  # type: ignore[arg-type]


def _marks(choice: Choice) -> list[tuple[float, str]]:
    values = list(choice.values) if isinstance(choice, Options) else choice.few(2)
    step = max(1, math.ceil(len(values) / MOST_MARKS))
    return [(_height(choice, value), short(value)) for value in values[::step]]
