"""How the network became what it is: parameters, blocks and widths over the epochs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from sseg_nase.reporting.aggregate import Aggregate
from sseg_nase.reporting.figures import Drawing, absent, style
from sseg_nase.rundir.record import RunRecord

TITLE = "How the network grew"
TITLE_OF_SEVERAL = "Parameters over the epochs"


class State(NamedTuple):
    """What the network was from `start` epochs on until `end` epochs were done."""

    start: int
    end: int
    channels: tuple[int, ...]
    params: int


def states(record: RunRecord) -> list[State]:
    """What the network was, one after the other; a mutation on probation counts while it lasts.

    Of a run without mutations there is one, without channels where they are not known; none where
    nothing was trained. Two mutations after one epoch leave a state without any.
    """
    epochs, mutations = _epochs(record), record.mutations
    done = max([line["epoch"] + 1 for line in epochs], default=0)
    done = max([done, *(line["epoch"] + 1 for line in mutations)])
    if not done:
        return []
    if not mutations:
        params = [line["params"] for line in epochs if isinstance(line.get("params"), int)]
        channels = record.section("architecture").get("channels") or ()
        return [State(0, done, tuple(channels), params[-1])] if params else []
    changes: list[tuple[int, Mapping[str, Any]]] = [(0, mutations[0]["before"])]
    for line in mutations:
        ending = _rolled_back(line)
        if line["accepted"] or ending is not None:
            changes.append((line["epoch"] + 1, line["after"]))
        if ending is not None:
            changes.append((ending + 1, line["before"]))
    starts = [start for start, _ in changes]
    return [
        State(start, end, tuple(counts["channels"]), counts["params"])
        for (start, counts), end in zip(changes, [*starts[1:], done], strict=True)
    ]


def _epochs(record: RunRecord) -> list[Mapping[str, Any]]:
    """All epochs in which the network could change: those of fine-tuning are counted on."""
    epochs = list(record.events.get("epoch", ()))
    tuned = record.events.get("finetune", ())
    if not any("params" in line for line in tuned):  # it did not evolve there
        return epochs
    done = max([line["epoch"] + 1 for line in epochs], default=0)
    return [*epochs, *one_after_the_other(tuned, done)]


def one_after_the_other(
    lines: Iterable[Mapping[str, Any]], before: int = 0
) -> list[dict[str, Any]]:
    """Epochs of fine-tuning in order, counted on from `before` and from stage to stage.

    `first`: of its stage.
    """
    counted: list[dict[str, Any]] = []
    number = -1
    for line in sorted(lines, key=lambda line: (line["number"], line["epoch"])):
        first = line["number"] != number
        if first:
            before = counted[-1]["epoch"] + 1 if counted else before
            number = line["number"]
        counted.append({**line, "epoch": before + line["epoch"], "first": first})
    return counted


def _words(record: RunRecord) -> str:
    """Of which trainings the epochs are."""
    tuned = any("params" in line for line in record.events.get("finetune", ()))
    parts = ["pretraining"] if record.events.get("epoch") or not tuned else []
    return " and ".join([*parts, *(["fine-tuning"] if tuned else [])])


def _rolled_back(line: Mapping[str, Any]) -> int | None:
    """The epoch after which a probation ended badly."""
    trigger = line.get("trigger")
    rollback = trigger.get("rollback") if isinstance(trigger, Mapping) else None
    epoch = rollback.get("epoch") if isinstance(rollback, Mapping) else None
    return epoch if isinstance(epoch, int) else None


def trajectory(record: RunRecord) -> Drawing:
    """Parameters with a mark per mutation above the width of every block, over the epochs."""
    path, mutations = states(record), record.mutations
    if not mutations:
        return absent("trajectory", TITLE, _stayed(path))
    done = path[-1].end
    blocks = max(len(state.channels) for state in path)
    with style.applied():
        figure = style.page(2.6 + 0.19 * blocks)
        above, below = figure.subplots(
            2, 1, sharex=True, height_ratios=[1.75, 0.45 + 0.19 * blocks]
        )
        _draw_growth(above, path, mutations)
        above.tick_params(labelbottom=False)
        _draw_widths(below, path, figure.get_figwidth())
        below.set_xlabel(f"epochs of {_words(record)}")
        style.whole(below.xaxis)
        spans = style.level_spans(record.events.get("epoch", ()))
        style.name_levels(figure, [above, below], spans)
        style.legend_below(figure, [*style.mutation_handles(mutations), *_line("parameters")])
    kept = sum(line["accepted"] for line in mutations)
    back = len(mutations) - kept
    first, last = path[0], path[-1]
    caption = (
        f"Parameters (top) and channels of every block (bottom) over {done} epochs of "
        f"{_words(record)}, with {style.number(kept, 'mutation')} accepted"
        f"{f' and {back} rolled back (empty marks)' if back else ''}. From "
        f"{len(first.channels)} blocks and {first.params:,} parameters to {len(last.channels)} "
        f"blocks and {last.params:,}. A mutation is made after the epoch at which it stands."
        f"{levels_in_words(record, spans)}"
    )
    return Drawing("trajectory", TITLE, caption, figure)


def growth(record: RunRecord) -> Drawing:
    """The parameters alone, with a mark per mutation: what a reader sees at first."""
    path = states(record)
    with style.applied():
        figure = style.page(1.35, style.COLUMN)
        axes = figure.subplots()
        _draw_growth(axes, path, record.mutations)
        axes.set_xlabel(f"epochs of {_words(record)}")
        style.whole(axes.xaxis)
        style.legend_below(figure, style.mutation_handles(record.mutations))
    first, last = path[0], path[-1]
    caption = (
        f"From {first.params:,} to {last.params:,} parameters, {len(first.channels)} to "
        f"{len(last.channels)} blocks."
    )
    return Drawing("growth", "Growth", caption, figure, small=True)


def levels_in_words(record: RunRecord, spans: Sequence[style.Span]) -> str:
    """What a caption says of the levels of the curriculum."""
    mixed = record.setting("curriculum.progression") is False
    if mixed and len(record.setting("curriculum.levels", ())) > 1:
        return " All levels of the curriculum are mixed in every epoch."
    if len(spans) > 1:
        return " Dashed lines: the curriculum goes on to the next level."
    return ""


def _stayed(path: Sequence[State]) -> str:
    if not path:
        return "The run has trained no epoch, so there is nothing to show over the epochs."
    (state,) = path
    channels = "-".join(map(str, state.channels))
    blocks = f"{len(state.channels)} blocks ({channels}), " if channels else ""
    epochs = "one epoch" if state.end == 1 else f"all {state.end} epochs"
    return (
        f"The run has made no mutations: its network stayed as it was, {blocks}"
        f"{state.params:,} parameters, for {epochs}."
    )


def _draw_growth(axes: Axes, path: Sequence[State], mutations: Sequence[Mapping[str, Any]]) -> None:
    """The parameters, with a mark per mutation; there is room for those rolled back, too."""
    axes.set_xlim(0, path[-1].end)
    _draw_params(axes, path)
    for line in mutations:
        axes.plot(
            [line["epoch"] + 1], [line["after"]["params"]], gid="mutation", zorder=4,
            clip_on=False, **style.mutation_style(line["kind"], line["accepted"]),
        )  # fmt: skip
    most = max(axes.get_ylim()[1], *(line["after"]["params"] for line in mutations))
    axes.set_ylim(0, 1.12 * most)
    axes.set_ylabel("parameters")
    style.counted(axes.yaxis)
    axes.grid(axis="y")


def _draw_params(axes: Axes, path: Sequence[State], look: style.Look | None = None) -> Line2D:
    edges = [path[0].start, *(state.end for state in path)]
    params = [path[0].params, *(state.params for state in path)]
    look = look or style.Look(style.BLACK, "", "-")
    (line,) = axes.step(edges, params, where="pre", color=look.colour, linestyle=look.dashes)
    return line


def _line(label: str) -> list[Line2D]:
    return [Line2D([], [], color=style.BLACK, label=label)]


def _draw_widths(axes: Axes, path: Sequence[State], width: float) -> None:
    """A row per block: dark is wide; the number stands where it is new and there is room."""
    done, blocks = path[-1].end, max(len(state.channels) for state in path)
    grid = np.full((blocks, done), np.nan)
    for state in path:
        for block, channels in enumerate(state.channels):
            grid[block, state.start : state.end] = channels
    image = axes.imshow(
        np.ma.masked_invalid(grid),
        aspect="auto",
        origin="lower",
        extent=(0, done, 0.5, blocks + 0.5),
        cmap="Blues",
        vmin=0,
        vmax=float(np.nanmax(grid)) * 1.1,
        interpolation="nearest",
    )
    per_epoch = 0.82 * width / done
    colours = image.to_rgba(grid)
    for block in range(blocks):
        axes.axhline(block + 0.5, color="white", linewidth=1.2)
        for start, end, channels in _stretches(grid[block]):
            axes.plot([start, start], [block + 0.55, block + 1.45], color="white", linewidth=1.2)
            if style.text_width(str(channels)) + 0.04 > per_epoch * (end - start):
                continue
            dark = channels > 0.55 * np.nanmax(grid)
            axes.text(
                (start + end) / 2, block + 1, str(channels), ha="center", va="center",
                fontsize=style.SMALL, color="white" if dark else style.BLACK, clip_on=True,
                path_effects=[withStroke(linewidth=2.5, foreground=colours[block, start])],
            )  # fmt: skip
    axes.set_yticks(range(1, blocks + 1))
    axes.set_ylabel("block")
    axes.figure.colorbar(image, ax=axes, label="channels", pad=0.01, aspect=12, shrink=0.95)


def _stretches(row: np.ndarray) -> list[tuple[int, int, int]]:
    """From, to and channels, for as long as they stay the same."""
    known = np.nan_to_num(row).astype(int).tolist()
    edges = [i for i in range(1, len(known)) if known[i] != known[i - 1]]
    pairs = zip([0, *edges], [*edges, len(known)], strict=True)
    return [(a, b, known[a]) for a, b in pairs if known[a]]


# -- several runs ------------------------------------------------------------------------------


def trajectories(records: Sequence[RunRecord], labels: Sequence[str]) -> Drawing:
    """The parameters of several runs over their epochs; those with the same label look the same."""
    paths = [states(record) for record in records]
    drawn = [label for label, path in zip(labels, paths, strict=True) if path]
    if not drawn:
        return absent(
            "params_over_epochs", TITLE_OF_SEVERAL, "None of the runs has trained an epoch."
        )
    names = list(dict.fromkeys(labels))  # all of them: one looks as it does in the other figures
    looks = dict(zip(names, style.looks(len(names)), strict=True))
    with style.applied():
        figure = style.page(3.0)
        axes = figure.subplots()
        for label, path in zip(labels, paths, strict=True):
            if path:
                line = _draw_params(axes, path, looks[label])
                line.set_gid("run")
                line.set_linewidth(1.1)
                line.set_alpha(0.9)
                axes.plot(
                    [path[-1].end], [path[-1].params], marker=looks[label].marker,
                    color=looks[label].colour, linestyle="none", clip_on=False,
                )  # fmt: skip
        axes.set_yscale("log")
        axes.set_xlim(0, max(path[-1].end for path in paths if path))
        axes.set_xlabel("epochs of pretraining")
        axes.set_ylabel("parameters (log scale)")
        style.log_ticks(axes.yaxis)
        style.whole(axes.xaxis)
        axes.grid(axis="y")
        style.legend_below(
            figure,
            [
                Line2D([], [], label=style.shortened(name), color=look.colour,
                       marker=look.marker, linestyle=look.dashes)
                for name, look in looks.items()
                if name in drawn
            ],
        )  # fmt: skip
    left = len(records) - len(drawn)
    without = (
        f" {left} of {len(records)} runs have trained no epoch and are not shown." if left else ""
    )
    of = style.number(len(drawn), "run")
    caption = f"Parameters of {of} over the epochs of pretraining.{without}"
    return Drawing("params_over_epochs", TITLE_OF_SEVERAL, caption, figure)


def of_sweep(aggregate: Aggregate, records: Sequence[RunRecord]) -> Drawing:
    """The parameters of a sweep's runs over their epochs, a colour per configuration."""
    known = {record.folder.resolve(): record for record in records}
    counting = dict(zip(aggregate.runs["run"], aggregate.runs["configuration"], strict=True))
    pairs = [
        (known[path], style.configuration(name))
        for run, name in counting.items()
        if (path := Path(run).resolve()) in known
    ]
    return trajectories([record for record, _ in pairs], [name for _, name in pairs])
