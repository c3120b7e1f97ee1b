"""Accuracy against the number of labels, a line per method."""

from __future__ import annotations

import math
from collections.abc import Iterator

from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sseg_nase.reporting.aggregate import Aggregate
from sseg_nase.reporting.few_labels import FewLabels, few_labels, half_width
from sseg_nase.reporting.figures import Drawing, style

TITLE = "Accuracy by the number of labels"
WIDTH, HEIGHT = 4.6, 2.9  # inches


def drawings(aggregate: Aggregate) -> Iterator[Drawing]:
    """A figure per key on which methods were evaluated at several amounts of labels."""
    found = few_labels(aggregate)
    for one in found:
        name = "few_labels" if len(found) == 1 else f"few_labels_{one.key.replace('/', '_')}"
        yield _drawing(name, one)


def _drawing(name: str, one: FewLabels) -> Drawing:
    samples = all(labels.samples for labels in one.amounts)
    with style.applied():
        figure = style.page(HEIGHT, WIDTH)
        axes = figure.subplots()
        handles = []
        for (method, rows), look in zip(one.rows.items(), style.looks(len(one.rows)), strict=True):
            known = sorted(rows.items())
            means = [float(row["mean"]) for _, row in known]
            halves = [half_width(row) for _, row in known]
            # Student's interval of two seeds is wider than the axis.
            halves = [
                0.0 if math.isnan(half) or row["seeds"] == 2 else half
                for half, (_, row) in zip(halves, known, strict=True)
            ]
            axes.errorbar(
                [labels.at for labels, _ in known],
                means,
                yerr=[
                    [min(half, mean) for half, mean in zip(halves, means, strict=True)],
                    [min(half, 100 - mean) for half, mean in zip(halves, means, strict=True)],
                ],
                color=look.colour, marker=look.marker, linestyle=look.dashes, capsize=2,
                elinewidth=0.9, gid=method.name,
            )  # fmt: skip
            handles.append(
                Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.dashes,
                       label=style.shortened(method.name))
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([labels.at for labels in one.amounts]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("labelled images" if samples else "labelled share of train (%)")
        axes.set_ylabel("accuracy (%)")
        axes.grid(True)
        axes.set_axisbelow(True)
        style.legend_below(figure, handles)
    seeds = sorted({int(row["seeds"]) for rows in one.rows.values() for row in rows.values()})
    n = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    caption = (
        f"{one.key}: accuracy of the last network, mean over n = {n} seeds ± 95 % CI (Student's t; "
        "of one seed: over its images; of two: none). The labels are the same for every method."
    )
    return Drawing(name, TITLE, caption, figure)
