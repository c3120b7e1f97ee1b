"""Few-shot accuracy of one run, beside what it is to be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.lines import Line2D

from sseg_nase.finite import finite
from sseg_nase.reporting.evaluated_on import evaluated_on
from sseg_nase.reporting.figures import Drawing, absent, style
from sseg_nase.rundir.record import RunRecord
from sseg_nase.rundir.results import BEST, LAST, EpisodeResult, episode_results, section

TITLE = "Few-shot accuracy"
LOOKS: Mapping[str, tuple[str, style.Look]] = {
    "untrained": ("untrained", style.Look(style.GREY, "X", "-")),
    "pretrained": ("pretrained", style.Look(style.ORANGE, "D", "-")),
    BEST: ("best network (lowest loss)", style.Look(style.VERMILLION, "s", "-")),
    LAST: ("last network", style.Look(style.BLUE, "o", "-")),
    "views": ("mean of several views", style.Look(style.BLACK, "^", "-")),
    "control": ("control, without mutations", style.Look(style.GREY, "v", "-")),
}
TUNED = "fine-tuned network"


def results_by_list(record: RunRecord) -> dict[str, list[EpisodeResult]]:
    """What is known of every episode list that the last network was evaluated on."""
    found = episode_results(record.results)
    lists = {key: [one for one in found if one.key == key] for key in record.section("fewshot")}
    return {key: results for key, results in lists.items() if results}


def accuracy(record: RunRecord) -> Drawing:
    """A dot with its interval per network and episode list, the number beside it, and chance."""
    found = results_by_list(record)
    if not found:
        why = "The run has evaluated no network yet: results.json has no few-shot accuracies."
        return absent("accuracy", TITLE, why)
    tuned = record.setting("finetune.name", "none") != "none"
    results = record.section("fewshot")
    with style.applied():
        lines = sum(len(points) for points in found.values())
        figure = style.page(0.95 + 0.17 * lines + 0.16 * len(found))
        axes = figure.subplots()
        at, ticks, present, chances = 0.0, [], set[str](), False
        for key, points in found.items():
            top = at
            for point in points:
                label, look = LOOKS[point.network]
                half = point.ci95 or 0.0
                axes.errorbar(
                    [point.accuracy], [at], color=look.colour, marker=look.marker, capsize=2.5,
                    xerr=style.within_percent(point.accuracy, half),
                    linestyle="none", elinewidth=1.1, gid=label, clip_on=False,
                )  # fmt: skip
                axes.annotate(
                    f"{point.accuracy:.2f} ± {half:.2f}", (1.0, at), xytext=(4, 0),
                    xycoords=axes.get_yaxis_transform(), textcoords="offset points",
                    fontsize=style.SMALL, va="center", annotation_clip=False,
                )  # fmt: skip
                present.add(point.network)
                at += 1.0
            on = evaluated_on(key)
            name = key if on is None else f"{on.dataset} ({on.split})\n{on.title}"
            ticks.append(((top + at - 1) / 2, name))
            if on is not None and on.chance:
                chances = True
                axes.plot(
                    [on.chance] * 2, [top - 0.6, at - 0.4], color=style.BLACK,
                    linestyle=style.DASHES[2], linewidth=1, gid="chance",
                )  # fmt: skip
            at += 0.9
            if key != list(found)[-1]:
                axes.axhline(at - 0.95, color=style.PALE, linewidth=0.6)
        axes.set_ylim(at - 1.2, -0.7)
        low, high = axes.get_xlim()
        axes.set_xlim(max(0.0, low), min(100.0, high))
        axes.set_yticks([y for y, _ in ticks], [text for _, text in ticks])
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("accuracy (%)")
        axes.grid(axis="x")
        axes.annotate(
            "% ± 95 % CI", (1.0, 1.0), xytext=(4, 2), xycoords="axes fraction",
            textcoords="offset points", fontsize=style.SMALL, va="bottom",
        )  # fmt: skip
        handles: list[Any] = []
        for name, (label, look) in LOOKS.items():
            if name in present:
                label = TUNED if tuned and name == LAST else label
                handles.append(
                    Line2D([], [], color=look.colour, marker=look.marker, linestyle="none",
                           label=label)
                )  # fmt: skip
        if chances:
            handles.append(
                Line2D([], [], color=style.BLACK, linestyle=style.DASHES[2], linewidth=1,
                       label="chance")
            )  # fmt: skip
        style.legend_below(figure, handles)
    return Drawing("accuracy", TITLE, _caption(results), figure)


def _caption(results: Mapping[str, Any]) -> str:
    evaluated = [section(results, key) for key in results]
    methods = list(dict.fromkeys(str(one["method"]) for one in evaluated if one.get("method")))
    kinds = {bool(one.get("transductive")) for one in evaluated}
    counts = sorted({one["episodes"] for one in evaluated if finite(one.get("episodes"))})
    kind = "transductive" if kinds == {True} else "inductive" if kinds == {False} else "mixed"
    of = f" with {' and '.join(methods)} ({kind})" if methods else ""
    n = f" n = {' and '.join(f'{count:,}' for count in counts)} episodes." if counts else ""
    return (
        f"Few-shot accuracy in %{of}, mean over the episodes ± 95 % CI (1.96·s/√n).{n} All "
        "networks on the same episodes; dotted: chance."
    )
