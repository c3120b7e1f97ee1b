"""What a supernet's gates have weighed, epoch by epoch, and what was derived from them: figures.

Read from the events `gates` of a search's folder, and from its supernet in search.json.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve
from matplotlib.ticker import MaxNLocator

from sseg_nase.finite import figure as finite_figure
from sseg_nase.finite import finite
from sseg_nase.reporting.figures import Drawing, absent, style
from sseg_nase.reporting.figures.costs import pareto
from sseg_nase.rundir.events import is_event, salvaged_events
from sseg_nase.rundir.unreadable import UnreadableError
from sseg_nase.searches.outcome import NAMES, Outcome

WEIGHTS, CELLS, COURSE, RIVALS = (
    "Weights of the gates",
    "Cells by epoch",
    "Supernet and derived network",
    "The answer and its rivals",
)
IN_ROW = 4  # panels
MOST_CELLS = 12  # different cells that are drawn
STILL = 1e-6  # change of a weight below which gates have not been trained
SKIPS, EIGENVALUE, SUPERNET = "skips", "eigenvalue", "supernet_"
NO_EVENTS = "The search has recorded no epoch of its supernet yet."


@dataclass(frozen=True)
class Gate:
    """A mixed operation as a cell has it: an edge between two places with these candidates."""

    name: str
    candidates: tuple[str, ...]
    source: str
    target: str

    @property
    def kind(self) -> str:
        """The kind of cell that it belongs to: `normal` of `normal.1.0`."""
        return self.name.rpartition(".")[0].partition(".")[0] or "cell"


@dataclass(frozen=True)
class Epoch:
    """`weights` and what is `chosen` by gate (None: its edge is gone; unknown in older logs)."""

    number: int
    weights: Mapping[str, Sequence[float]]
    chosen: Mapping[str, str | None]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Gates:
    """The gates of a search, in the order of the supernet, and its epochs."""

    gates: tuple[Gate, ...]
    epochs: tuple[Epoch, ...]


def gates_of(folder: Path, supernet: Mapping[str, Any]) -> Gates:
    """What a search has recorded; of an epoch that stands there twice the later line counts."""
    found: dict[int, Epoch] = {}
    try:
        for told in salvaged_events(folder, is_event, lambda odd: None, containing='"gates"'):
            if told["kind"] == "gates":
                said = told["values"]
                number = int(said["epoch"])
                found[number] = Epoch(
                    number, said["weights"], said.get("chosen", {}), said["scores"]
                )
    except UnreadableError:
        pass
    return Gates(_edges(supernet["nodes"]), tuple(found[number] for number in sorted(found)))


def _edges(nodes: Sequence[Mapping[str, Any]]) -> tuple[Gate, ...]:
    """Every gate where it stands first: in the first cell of its kind."""
    readers: dict[int, int] = {}
    for number, node in enumerate(nodes):
        for source in node["inputs"]:
            readers.setdefault(source, number)
    found: dict[str, Gate] = {}
    for number, node in enumerate(nodes):
        options = node["options"]
        if node["op"] != "mixed" or options["gate"] in found:
            continue
        block = node["place"].partition(".")[0]
        ends = [
            _within(block, nodes[at]["place"] if 0 <= at < len(nodes) else "", otherwise)
            for at, otherwise in ((node["inputs"][0], "in"), (readers.get(number, -1), "out"))
        ]
        name = options["gate"]
        found[name] = Gate(name, tuple(options["choices"].split("|")), *ends)
    return tuple(found.values())


def _within(block: str, place: str, otherwise: str) -> str:
    """The name of a place within its block; `otherwise` of one outside."""
    own, _, rest = place.partition(".")
    return rest if own == block and rest else otherwise


def figures_of_gates(found: Gates, goal: str) -> Iterator[Drawing]:
    """Weights, cells and course of a supernet. `goal`: what its networks were evaluated by."""
    yield weights(found)
    yield cells(found)
    yield course(found, goal)


# -- weights -----------------------------------------------------------------------------------


def weights(found: Gates) -> Drawing:
    """A heat map per gate: candidates over epochs."""
    epochs = found.epochs
    if not epochs:
        return absent("gates", WEIGHTS, NO_EVENTS)
    maps = {g.name: np.array([epoch.weights[g.name] for epoch in epochs]).T for g in found.gates}
    if len(epochs) > 1 and all(np.ptp(each, axis=1).max() < STILL for each in maps.values()):
        why = "This strategy trains no weights of gates: it samples its networks."
        return absent("gates", WEIGHTS, why)
    columns = min(IN_ROW, len(found.gates))
    rows = math.ceil(len(found.gates) / columns)
    most = max(float(each.max()) for each in maps.values())
    with style.applied():
        names = max(len(gate.candidates) for gate in found.gates)
        figure = style.page(0.5 + rows * (0.32 + 0.13 * names))
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
        for axes in grid.flatten()[len(found.gates) :]:
            axes.set_visible(False)
        image = None
        for number, (axes, gate) in enumerate(zip(grid.flatten(), found.gates, strict=False)):
            first, last = epochs[0].number + 0.5, epochs[-1].number + 1.5
            image = axes.imshow(
                maps[gate.name], aspect="auto", cmap="cividis", vmin=0, vmax=most,
                extent=(first, last, len(gate.candidates) - 0.5, -0.5), interpolation="nearest",
                gid=gate.name,
            )  # fmt: skip
            axes.set_title(gate.name, pad=2)
            shown = number % columns == 0
            axes.set_yticks(range(len(gate.candidates)), gate.candidates if shown else [""] * names)
            axes.tick_params(length=0)
            style.whole(axes.xaxis)
        for axes in grid[-1]:
            axes.set_xlabel("epoch")
        assert image is not None
        figure.colorbar(image, ax=grid, shrink=0.6, label="weight", pad=0.01)
    caption = (
        "softmax(α) of the candidates of every gate after each epoch: how much of each the "
        "supernet computes."
    )
    return Drawing("gates", WEIGHTS, caption, figure)


# -- cells -------------------------------------------------------------------------------------


def cells(found: Gates) -> Drawing:
    """The derived cells as graphs, one per stretch of epochs in which they stayed."""
    known = [epoch for epoch in found.epochs if epoch.chosen]
    if not known:
        why = NO_EVENTS if not found.epochs else "An older version has not recorded them."
        return absent("cells", CELLS, why)
    stretches = [list(group) for _, group in groupby(known, key=lambda one: dict(one.chosen))]
    left_out = max(0, len(stretches) - MOST_CELLS)
    shown = stretches if not left_out else [*stretches[: MOST_CELLS // 2], *stretches[-6:]]
    kinds = list(dict.fromkeys(gate.kind for gate in found.gates))
    names = list(dict.fromkeys(op for gate in found.gates for op in gate.candidates))
    looks = dict(zip(names, style.looks(len(names)), strict=True))
    columns = min(IN_ROW, len(shown))
    rows = math.ceil(len(shown) / columns)
    with style.applied():
        figure = style.page(0.2 + rows * len(kinds) * 1.15)
        grid = figure.subplots(rows * len(kinds), columns, squeeze=False)
        for axes in grid.flatten():
            axes.set_axis_off()
        for number, stretch in enumerate(shown):
            row, column = divmod(number, columns)
            for at, kind in enumerate(kinds):
                gates = [gate for gate in found.gates if gate.kind == kind]
                axes = grid[row * len(kinds) + at, column]
                _graph(axes, gates, stretch[-1].chosen, looks)
                begin, end = stretch[0].number + 1, stretch[-1].number + 1
                epochs = f"epoch {begin}" if begin == end else f"epochs {begin} to {end}"
                axes.set_title(f"{epochs}, {kind}" if len(kinds) > 1 else epochs, pad=2)
        used = {op for epoch in known for op in epoch.chosen.values()}
        handles = [
            Line2D([], [], color=look.colour, linestyle=look.dashes, label=name)
            for name, look in looks.items()
            if name in used
        ]
        style.legend_below(figure, handles)
    caption = (
        "The cell that would be derived, by the epochs after which it was the same. Nodes are maps "
        "(in: what the cell reads), an edge is the operation between two, from left to right; "
        "edges of nothing are left out."
        + (
            f" {left_out} cells between the first and the last six are not shown."
            if left_out
            else ""
        )
    )
    return Drawing("cells", CELLS, caption, figure)


def _graph(
    axes: Axes,
    gates: Sequence[Gate],
    chosen: Mapping[str, str | None],
    looks: Mapping[str, style.Look],
) -> None:
    """An arc per edge that is kept, above the places that it connects."""
    ends = [name for gate in gates for name in (gate.source, gate.target)]
    places = {name: at for at, name in enumerate(_ordered(gates, list(dict.fromkeys(ends))))}
    highest = 0.5
    for gate in gates:
        op = chosen.get(gate.name)
        if op is None or op in ("none", "zero"):
            continue
        start, end = places[gate.source], places[gate.target]
        height = 0.9 * (end - start)
        highest = max(highest, height / 2)
        curve = Curve(
            [(start, 0), ((start + end) / 2, height), (end, 0)],
            [Curve.MOVETO, Curve.CURVE3, Curve.CURVE3],
        )
        look = looks[op]
        axes.add_patch(
            PathPatch(curve, facecolor="none", edgecolor=look.colour, linestyle=look.dashes,
                      linewidth=1.4, gid=f"{gate.name} {op}")
        )  # fmt: skip
    for name, at in places.items():
        axes.plot([at], [0], marker="o", color=style.BLACK, markersize=3.5, zorder=3)
        axes.annotate(
            name, (at, 0), xytext=(0, -4), textcoords="offset points", ha="center", va="top",
            fontsize=style.SMALL, annotation_clip=False,
        )  # fmt: skip
    axes.set_xlim(-0.4, len(places) - 0.6)
    axes.set_ylim(-0.35, highest + 0.1)


def _ordered(gates: Sequence[Gate], names: Sequence[str]) -> list[str]:
    """Places so that edges lead to the right."""
    before: dict[str, set[str]] = {name: set() for name in names}
    for gate in gates:
        before[gate.target].add(gate.source)
    done: list[str] = []
    while len(done) < len(names):
        free = [n for n in names if n not in done and before[n] <= {*done, n}]
        done.append(free[0] if free else next(n for n in names if n not in done))
    return done


# -- course ------------------------------------------------------------------------------------


def course(found: Gates, goal: str) -> Drawing:
    """The supernet beside the network that would be derived, and its skip connections."""
    if not found.epochs:
        return absent("supernet", COURSE, NO_EVENTS)
    at = [epoch.number + 1 for epoch in found.epochs]
    lines = {
        f"supernet, before anything is chosen: {goal}": SUPERNET + goal,
        f"derived network with the shared weights: {goal}": goal,
    }
    lower = [
        (name, text)
        for name, text in ((SKIPS, "skip\nconnections"), (EIGENVALUE, "eigenvalue\nin α"))
        if any(finite(epoch.scores.get(name)) for epoch in found.epochs)
    ]
    with style.applied():
        figure = style.page(1.6 + 1.0 * len(lower), 4.6)
        panels = figure.subplots(
            1 + len(lower), 1, squeeze=False, sharex=True,
            gridspec_kw={"height_ratios": [1.6, *[1.0] * len(lower)]},
        )[:, 0]  # fmt: skip
        handles = []
        for (label, key), look in zip(lines.items(), style.looks(len(lines)), strict=True):
            values = [epoch.scores.get(key, math.nan) for epoch in found.epochs]
            if not any(map(finite, values)):
                continue
            panels[0].plot(
                at, values, color=look.colour, marker=look.marker, markersize=3.5,
                linestyle=look.dashes, gid=key,
            )  # fmt: skip
            handles.append(
                Line2D([], [], color=look.colour, marker=look.marker, markersize=3.5,
                       linestyle=look.dashes, label=label)
            )  # fmt: skip
        panels[0].set_ylabel(f"{goal} (%)" if goal == "accuracy" else goal)
        for axes, (key, text) in zip(panels[1:], lower, strict=True):
            values = [epoch.scores.get(key, math.nan) for epoch in found.epochs]
            axes.plot(at, values, color=style.BLACK, marker="o", markersize=3, gid=key)
            axes.set_ylabel(text)
            if key == SKIPS:
                axes.set_ylim(bottom=-0.2)
                axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        for axes in panels:
            axes.grid(True)
        panels[-1].set_xlabel("epoch")
        style.whole(panels[-1].xaxis)
        style.legend_below(figure, handles, 1)
    caption = (
        "On the images that the gates are trained on. What lies between the two lines is lost when "
        "something is chosen; skip connections that take over are a collapse (DARTS)."
    )
    return Drawing("supernet", COURSE, caption, figure)


# -- rivals ------------------------------------------------------------------------------------


def rivals(found: Outcome | None) -> Drawing:
    """What was trained from scratch: accuracy over params and over macs, with the front."""
    standings = [] if found is None else [one for one in found.standings if finite(one.mean)]
    if found is None or not standings:
        why = "Nothing was trained from scratch (search.final_seeds=3 does)."
        return absent("rivals", RIVALS, why)
    with style.applied():
        figure = style.page(2.4)
        panels = figure.subplots(1, 2, sharey=True)
        looks = style.looks(len(standings))
        for axes, (cost, text) in zip(
            panels, {"params": "parameters", "macs": "multiply-accumulates"}.items(), strict=True
        ):
            xs = [one.average(cost) for one in standings]
            for one, x, look in zip(standings, xs, looks, strict=True):
                axes.errorbar(
                    [x], [one.mean], yerr=finite_figure(one.ci95) or 0.0, color=look.colour,
                    marker=look.marker, linestyle="none", capsize=2, gid=one.role,
                )  # fmt: skip
            edges = pareto(zip(xs, (one.mean for one in standings), strict=True))
            edges = [*edges, (1.15 * max(xs), edges[-1][1])]
            axes.step(
                [x for x, _ in edges], [y for _, y in edges], where="post", color=style.GREY,
                linestyle=style.DASHES[1], linewidth=1, gid="front",
            )  # fmt: skip
            axes.set_xlabel(text)
            style.counted(axes.xaxis)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
            axes.grid(True)
        panels[0].set_ylabel(found.goal)
        handles = [
            Line2D([], [], color=look.colour, marker=look.marker, linestyle="none",
                   label=NAMES[one.role])
            for one, look in zip(standings, looks, strict=True)
        ]  # fmt: skip
        style.legend_below(figure, handles)
    caption = (
        f"{found.goal} on val, mean over {found.how_many} ± 95 % CI, of networks that were "
        "trained from scratch at the same training macs. On the dashed front lies what no other "
        "beats at the same or lower cost."
    )
    return Drawing("rivals", RIVALS, caption, figure)
