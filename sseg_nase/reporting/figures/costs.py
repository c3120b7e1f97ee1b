"""Accuracy against what it costs, with the Pareto front: of single runs and of configurations.

What has learned from different kinds of images, and what looks at the queries together, never
stands on one panel with what has not; nor do latencies of different devices.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sseg_nase.finite import finite
from sseg_nase.reporting.aggregate import Aggregate
from sseg_nase.reporting.evaluated_on import EvaluatedOn, evaluated_on
from sseg_nase.reporting.figures import Drawing, absent, style
from sseg_nase.reporting.provenance import REGIMES, provenance, regime_of
from sseg_nase.rundir.record import RunRecord
from sseg_nase.rundir.results import (
    LAST,
    ClassResult,
    EpisodeResult,
    class_results,
    episode_results,
)


class Cost(NamedTuple):
    """What accuracy is drawn against: the figure's title, what it is, its unit if it has one."""

    title: str
    what: str
    unit: str = ""

    def axis(self, device: str) -> str:
        """The label of its axis."""
        unit = ", ".join(part for part in (self.unit, self.unit and device, "log scale") if part)
        return f"{self.what} ({unit})"


PARAMS, MACS, LATENCY, TRAINING = "params", "macs", "latency", "training_macs"
COSTS: Mapping[str, Cost] = {
    PARAMS: Cost("Accuracy and parameters", "parameters"),
    MACS: Cost("Accuracy and multiply-accumulates", "multiply-accumulates of one image"),
    LATENCY: Cost("Accuracy and latency", "latency of one image", "ms"),
    TRAINING: Cost("Accuracy and training", "multiply-accumulates of the training"),
}
PANELS_IN_ROW = 2


class Group(NamedTuple):
    """What points must have in common to stand in one figure; `device` only for latencies."""

    dataset: str
    split: str
    regime: str
    transductive: bool
    device: str = ""

    def words(self) -> str:
        """For a caption."""
        kind = "transductive" if self.transductive else "inductive"
        return f"{self.dataset}, {self.split} classes, {kind}, {REGIMES[self.regime]}"

    def slug(self) -> str:
        """For a file's name."""
        kind = "transductive" if self.transductive else "inductive"
        parts = [self.dataset, self.split, self.regime, kind, self.device]
        return "_".join(part for part in parts if part)


class Point(NamedTuple):
    """Accuracy in percent with the half width of its 95 % CI; cost from the least to the most.

    `values`: the accuracies of the seeds, where there are several.
    """

    group: Group
    on: EvaluatedOn
    label: str
    accuracy: float
    ci95: float
    costs: Mapping[str, tuple[float, ...]]
    seeds: int
    values: tuple[float, ...] = ()


def numbered(records: Sequence[RunRecord]) -> list[tuple[int, RunRecord]]:
    """The records with the numbers that tables give them, too."""
    return list(enumerate(records, start=1))


def run_label(number: int, record: RunRecord) -> str:
    """The label of a run among several: in a legend and in a table."""
    if record.config is None:
        return f"run {number}"
    origin = provenance(record.folder, record.results)
    return f"{number}: {origin.method}, {origin.shown}"


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of (cost, accuracy) that no other beats at the same or a lower cost, by cost."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def of_runs(records: Sequence[RunRecord]) -> Iterator[Drawing]:
    """A figure per cost and group of runs that may be compared."""
    points = [
        point
        for number, record in numbered(records)
        for point in _points_of_run(record, run_label(number, record))
    ]
    yield from _drawings(points, "95 % CI over episodes", "run")


def of_sweep(aggregate: Aggregate, records: Sequence[RunRecord]) -> Iterator[Drawing]:
    """The same of configurations: means over seeds."""
    over = "95 % CI over seeds, Student's t (of one seed: over its episodes)"
    yield from _drawings(list(_points_of_sweep(aggregate, records)), over, "configuration")


# -- points ------------------------------------------------------------------------------------


def _points_of_run(record: RunRecord, label: str) -> Iterator[Point]:
    regime = provenance(record.folder, record.results).regime
    costs = record.section("efficiency")
    evaluated: list[EpisodeResult | ClassResult] = [*episode_results(record.results, (LAST,))]
    evaluated += class_results(record.results, (LAST,))
    for result in evaluated:
        on = evaluated_on(result.key)
        if on is None:
            continue
        yield Point(
            Group(on.dataset, on.split, regime, getattr(result, "transductive", False),
                  str(costs.get("device", ""))),
            on,
            label,
            result.accuracy,
            result.ci95 or 0.0,
            _costs([record]),
            1,
        )  # fmt: skip


def _points_of_sweep(aggregate: Aggregate, records: Sequence[RunRecord]) -> Iterator[Point]:
    known = {record.folder.resolve(): record for record in records}
    runs = aggregate.runs[aggregate.runs["network"] == LAST]
    for row in aggregate.summary.to_dict("records"):
        on = evaluated_on(str(row["key"]))
        if on is None or row["network"] != LAST:
            continue
        same = runs[
            (runs["configuration"] == row["configuration"])
            & (runs["key"] == row["key"])
            & (runs["method"] == row["method"])
        ]
        its = [known[path] for run in same["run"] if (path := Path(run).resolve()) in known]
        regimes = {provenance(one.folder, one.results).regime for one in its}
        regime = regimes.pop() if len(regimes) == 1 else regime_of({})
        devices = {str(one.section("efficiency").get("device", "")) for one in its}
        costs = _costs(its)
        # Student's interval of two seeds is wider than the axis.
        half = {1: row["ci95_episodes"], 2: 0.0}.get(row["seeds"], row["ci95"])
        yield Point(
            Group(on.dataset, on.split, regime, bool(row["transductive"]),
                  "+".join(sorted(devices))),
            on,
            style.configuration(str(row["configuration"])),
            float(row["mean"]),
            0.0 if math.isnan(half) else float(half),
            costs,
            int(row["seeds"]),
            tuple(same["accuracy"].tolist()) if len(same) > 1 else (),
        )  # fmt: skip


def _costs(records: Sequence[RunRecord]) -> dict[str, tuple[float, ...]]:
    """Of every run that told a positive one, ascending."""
    keys = {
        PARAMS: ("efficiency", "params"),
        MACS: ("efficiency", "macs"),
        LATENCY: ("efficiency", "latency_ms_b1"),
        TRAINING: ("training_macs", "total"),
    }
    found = {}
    for name, (part, key) in keys.items():
        values = [one.section(part).get(key) for one in records]
        told = [value for value in values if finite(value) and value > 0]
        if told:
            found[name] = tuple(sorted(told))
    return found


# -- figures -----------------------------------------------------------------------------------


def _drawings(points: Sequence[Point], over: str, what: str) -> Iterator[Drawing]:
    for cost, (title, asked, _) in COSTS.items():
        groups: dict[Group, list[Point]] = defaultdict(list)
        for point in points:
            if cost in point.costs:
                group = point.group if cost == LATENCY else point.group._replace(device="")
                groups[group].append(point)
        stem, looks = f"accuracy_{cost}", _looks(points)
        shown = {group: those for group, those in groups.items() if _count(those) > 1}
        if not groups:
            why = f"No {what} has results that tell accuracy and {asked}."
            yield absent(stem, title, why)
        elif not shown:
            alone = "; ".join(group.words() for group in groups)
            why = f"There is nothing to compare, for only one {what} each has: {alone}."
            yield absent(stem, title, why)
        alone = "; ".join(group.words() for group in groups if group not in shown)
        rest = f" Not shown, for only one {what} each has it: {alone}." if alone else ""
        if free := list(dict.fromkeys(p.label for p in points if cost not in p.costs)):
            rest += f" Not shown, for they tell none or 0 of this cost: {', '.join(free)}."
        for group, members in shown.items():
            name = stem if len(shown) == 1 else f"{stem}_{group.slug()}"
            of = f"of {style.number(_count(members), what)} ± {over}"
            drawing = _drawing(name, cost, group, members, looks, of)
            yield replace(drawing, caption=drawing.caption + rest)
            rest = ""


def _count(points: Sequence[Point]) -> int:
    """Of different ones."""
    return len({point.label for point in points})


def _looks(points: Sequence[Point]) -> dict[str, style.Look]:
    """The same in every figure."""
    labels = list(dict.fromkeys(point.label for point in points))
    return dict(zip(labels, style.looks(len(labels)), strict=True))


def _drawing(
    name: str,
    cost: str,
    group: Group,
    points: Sequence[Point],
    looks: Mapping[str, style.Look],
    of: str,
) -> Drawing:
    lists = sorted({point.on for point in points})
    rows = math.ceil(len(lists) / PANELS_IN_ROW)
    columns = min(len(lists), PANELS_IN_ROW)
    with style.applied():
        figure = style.page(0.25 + 2.25 * rows, style.PAGE if columns > 1 else 4.6)
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes in panels[len(lists) :]:
            axes.set_visible(False)
        for axes, on in zip(panels, lists, strict=False):
            members = [point for point in points if point.on == on]
            _draw_panel(axes, members, cost, looks)
            axes.set_title(on.title)
            axes.set_ylabel("accuracy (%)")
            axes.set_xlabel(COSTS[cost].axis(group.device))
        shown = {point.label for point in points}
        handles = [
            Line2D([], [], linestyle="none", marker=look.marker, color=look.colour,
                   markeredgecolor=style.BLACK, markeredgewidth=0.5, label=style.shortened(label))
            for label, look in looks.items()
            if label in shown
        ]  # fmt: skip
        front = Line2D([], [], color=style.GREY, linestyle=style.DASHES[1], label="Pareto front")
        style.legend_below(figure, [*handles, front])
    caption = (
        f"{group.words()}: accuracy {of}, and {COSTS[cost].what}, of the last network. On the "
        "dashed front lies what no other beats at the same or lower cost; what lies behind it is "
        "pale. The front is of the means: it does not say that the differences are significant."
    )
    if any(point.values for point in points):
        caption += " Dots: single seeds."
    if any(len(point.costs[cost]) > 1 for point in points):
        caption += " Horizontal bars: from the least to the most of the seeds."
    return Drawing(name, COSTS[cost].title, caption, figure)


def _draw_panel(
    axes: Axes, points: Sequence[Point], cost: str, looks: Mapping[str, style.Look]
) -> None:
    at = {id(point): float(np.mean(point.costs[cost])) for point in points}
    front = pareto((at[id(point)], point.accuracy) for point in points)
    for point in points:
        look, x = looks[point.label], at[id(point)]
        least, *_, most = (*point.costs[cost], point.costs[cost][-1])
        ahead = (x, point.accuracy) in front
        axes.errorbar(
            [x], [point.accuracy], yerr=style.within_percent(point.accuracy, point.ci95),
            xerr=[[x - least], [most - x]],
            marker=look.marker, color=look.colour, linestyle="none", capsize=2, elinewidth=0.9,
            markeredgecolor=style.BLACK if ahead else look.colour, markeredgewidth=0.6,
            markersize=6, alpha=1.0 if ahead else 0.5, gid=point.label, zorder=3, clip_on=False,
        )  # fmt: skip
        if point.values:
            axes.plot(
                [x] * len(point.values), point.values, linestyle="none", marker="o", markersize=2.8,
                markerfacecolor="white", markeredgecolor=style.BLACK, markeredgewidth=0.6,
                alpha=1.0 if ahead else 0.5, zorder=4, gid="seeds", clip_on=False,
            )  # fmt: skip
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(0.0, bottom), min(100.0, top))
    axes.set_xscale("log")
    low, high = min(at.values()), max(at.values())
    margin = 10 ** max(0.12 * math.log10(high / low), 0.1)
    axes.set_xlim(low / margin, high * margin)
    edges = [*front, (axes.get_xlim()[1], front[-1][1])]
    axes.step(
        [x for x, _ in edges], [y for _, y in edges], where="post", color=style.GREY,
        linestyle=style.DASHES[1], linewidth=1, zorder=1, gid="front",
    )  # fmt: skip
    style.log_ticks(axes.xaxis)
    axes.grid(True)
    axes.set_axisbelow(True)
