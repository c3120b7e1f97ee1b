"""The configurations of a sweep: mean accuracy over seeds, and what is significant."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sseg_nase.reporting.aggregate import OVER_BOTH, Aggregate, Side
from sseg_nase.reporting.evaluated_on import EvaluatedOn, evaluated_on
from sseg_nase.reporting.figures import Drawing, absent, style
from sseg_nase.rundir.results import LAST

TITLE = "Accuracy of the configurations"
FULL_METHOD = re.compile(r"(?<![\w])A7(?![\w])")
STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
PANELS = 2  # in a row

Row = Mapping[str, Any]


class Bar(NamedTuple):
    """One configuration on one list, in percent; `mark`: how it compares with the reference."""

    side: Side
    mean: float
    ci95: float
    seeds: int
    values: tuple[float, ...]
    reference: bool
    mark: str


class Panel(NamedTuple):
    """One episode list, or closed set; `reference` is what the others are compared with."""

    on: EvaluatedOn
    bars: tuple[Bar, ...]
    reference: Side


def stars(p: float | None) -> str:
    """The mark of an adjusted p-value; None: not compared."""
    if p is None or math.isnan(p):
        return "not compared"
    return next((mark for most, mark in STARS if p < most), "n.s.")


def configurations(aggregate: Aggregate) -> Iterator[Drawing]:
    """A figure per dataset, split and kind of evaluation, a panel per episode list."""
    rows: list[Row] = [
        {str(name): value for name, value in row.items()}
        for row in aggregate.summary.to_dict("records")
        if row["network"] == LAST
    ]
    groups: dict[tuple[str, str, bool], dict[str, list[Row]]] = {}
    for row in rows:
        if (on := evaluated_on(str(row["key"]))) is None:
            continue
        group = groups.setdefault((on.dataset, on.split, bool(row["transductive"])), {})
        group.setdefault(row["key"], []).append(row)
    if not groups:
        yield absent("ablation", TITLE, "No run of the sweep has finished with an accuracy.")
    for (dataset, split, transductive), lists in groups.items():
        kind = "transductive" if transductive else "inductive"
        name = "ablation" if len(groups) == 1 else f"ablation_{dataset}_{split}_{kind}"
        panels = [_panel(aggregate, key, transductive, members) for key, members in lists.items()]
        yield _drawing(name, f"{dataset}, {split} classes, {kind}", panels)


def _panel(aggregate: Aggregate, key: str, transductive: bool, rows: Sequence[Row]) -> Panel:
    on = evaluated_on(key)
    assert on is not None
    sides = {Side(row["configuration"], row["method"]): row for row in rows}
    full = [side for side in sides if FULL_METHOD.search(side.configuration)]
    reference = full[0] if len(full) == 1 else max(sides, key=lambda side: sides[side]["mean"])
    compared = _p_values(aggregate, key, transductive, reference)
    runs = aggregate.runs
    runs = runs[(runs["key"] == key) & (runs["network"] == LAST)]
    bars = []
    for side, row in sides.items():
        own = runs[(runs["configuration"] == side.configuration) & (runs["method"] == side.method)]
        half = row["ci95_episodes"] if row["seeds"] == 1 else row["ci95"]
        mark = "ref." if side == reference else stars(compared.get(side))
        bars.append(
            Bar(
                side,
                float(row["mean"]),
                0.0 if math.isnan(half) else float(half),
                int(row["seeds"]),
                tuple(own["accuracy"].tolist()),
                side == reference,
                mark,
            )
        )
    return Panel(on, tuple(bars), reference)


def _p_values(
    aggregate: Aggregate, key: str, transductive: bool, reference: Side
) -> dict[Side, float]:
    """The adjusted p of every pair with `reference`, over seeds where several are common."""
    found = {}
    for row in aggregate.comparisons.to_dict("records"):
        if (row["key"], row["network"], row["transductive"]) != (key, LAST, transductive):
            continue
        a, b = Side(row["a"], row["method_a"]), Side(row["b"], row["method_b"])
        if reference in (a, b):
            test = "seeds_episodes" if row["over"] == OVER_BOTH else "episodes"
            found[b if a == reference else a] = float(row[f"p_{test}_holm"])
    return found


def _drawing(name: str, words: str, panels: Sequence[Panel]) -> Drawing:
    several = len({bar.side.method for panel in panels for bar in panel.bars}) > 1
    sides = list(dict.fromkeys(bar.side for panel in panels for bar in panel.bars))
    labels = {side: _label(side, several) for side in sides}
    lines = sum(max(1.35, label.count("\n") + 1.0) for label in labels.values())
    rows = math.ceil(len(panels) / PANELS)
    columns = min(len(panels), PANELS)
    with style.applied():
        figure = style.page(rows * (0.62 + 0.155 * lines), style.PAGE if columns > 1 else 4.9)
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in grid.flatten()[len(panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(grid.flatten(), panels, strict=False):
            _draw(axes, panel, sides)
            axes.set_yticks(range(len(sides)), [labels[side] for side in sides])
            axes.tick_params(axis="y", length=0)
        handles = [
            Patch(facecolor=style.BLUE, label="reference"),
            Patch(facecolor=style.SKY, hatch="////", edgecolor="white", linewidth=0,
                  label="other configurations"),
            Line2D([], [], linestyle="none", marker="o", markersize=3, markerfacecolor="white",
                   markeredgecolor=style.BLACK, label="one seed"),
            Line2D([], [], color=style.BLACK, linewidth=1, marker="|", label="95 % CI"),
        ]  # fmt: skip
        if all(bar.seeds == 2 for panel in panels for bar in panel.bars):
            del handles[-1]
        style.legend_below(figure, handles)
    references = list(dict.fromkeys(panel.reference.configuration for panel in panels))
    chance = " and ".join(sorted({f"{panel.on.chance:.3g}" for panel in panels if panel.on.chance}))
    begin = f"chance ({chance} %)" if chance else "0"
    over = " and ".join(dict.fromkeys(panel.on.over for panel in panels))
    seeds = sorted({bar.seeds for panel in panels for bar in panel.bars})
    n = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    caption = (
        f"{words}: accuracy of the last network, mean over n = {n} seeds ± 95 % CI (Student's t; "
        f"of one seed: over its {over}; of two: the dots alone). Bars begin at {begin}. "
        f"Against {' and '.join(references)} (ref.), paired on the same {over}, p adjusted by "
        "Holm for all pairs: * p < 0.05, ** p < 0.01, *** p < 0.001, n.s. not significant."
    )
    return Drawing(name, TITLE, caption, figure)


def _label(side: Side, several: bool) -> str:
    text = f"{side.configuration} ({side.method})" if several else side.configuration
    return fill(style.shortened(style.configuration(text), 90), 26)


def _draw(axes: Axes, panel: Panel, sides: Sequence[Side]) -> None:
    chance = panel.on.chance
    for bar in panel.bars:
        row = sides.index(bar.side)
        look: dict[str, Any] = {"color": style.BLUE}
        if not bar.reference:
            look = {"color": style.SKY, "hatch": "////", "edgecolor": "white", "linewidth": 0}
        axes.barh(row, bar.mean - chance, left=chance, height=0.62, gid="bar", **look)
        if len(bar.values) > 1:
            axes.plot(
                bar.values, [row] * len(bar.values), linestyle="none", marker="o", markersize=2.8,
                markerfacecolor="white", markeredgecolor=style.BLACK, markeredgewidth=0.6,
                zorder=4, gid="seeds", clip_on=False,
            )  # fmt: skip
        # Student's interval of two seeds is wider than the axis: the dots say more.
        half = 0.0 if bar.seeds == 2 else bar.ci95
        if half:
            axes.errorbar(
                [bar.mean], [row], xerr=style.within_percent(bar.mean, half), color=style.BLACK,
                capsize=2.5, linewidth=1, zorder=3, clip_on=False,
            )  # fmt: skip
        told = f"{bar.mean:.2f} ± {half:.2f}" if half else f"{bar.mean:.2f}"
        axes.annotate(
            f"{told}  {bar.mark}", (1.0, row), xycoords=axes.get_yaxis_transform(),
            xytext=(3, 0), textcoords="offset points", va="center", fontsize=style.SMALL,
            annotation_clip=False,
        )  # fmt: skip
    halves = {bar.side: 0.0 if bar.seeds == 2 else bar.ci95 for bar in panel.bars}
    ends = [bar.mean + halves[bar.side] for bar in panel.bars]
    starts = [min(chance, bar.mean - halves[bar.side], *bar.values) for bar in panel.bars]
    low, high = min(starts), max([*ends, *(v for bar in panel.bars for v in bar.values)])
    margin = 0.03 * (high - low)
    axes.set_xlim(low if low == chance else max(0.0, low - margin), min(100.0, high + margin))
    axes.axvline(chance, color=style.BLACK, linewidth=0.8)
    axes.set_ylim(len(sides) - 0.45, -0.55)
    axes.set_title(panel.on.title)
    axes.set_xlabel("accuracy (%)")
    axes.grid(axis="x")
    axes.set_axisbelow(True)
