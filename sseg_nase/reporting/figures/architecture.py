"""Networks as pictures: what a mutation changed, a box per block.

All lengths are in inches, so that text keeps its size whatever the number of blocks; up to twelve
fit the width of a page. A box is as high as the square root of its channels, and never so low that
its number does not fit: 256 channels stand beside 4. What has changed has a colour, and a hatching,
a filling or an outline of its own, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path as Outline
from matplotlib.transforms import Affine2D

from sseg_nase.errors import UserError
from sseg_nase.evolution.replay import ReplayError, replay
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.building import asked_for, described
from sseg_nase.nets.description import Description
from sseg_nase.nets.mutations.operator import rebuild
from sseg_nase.reporting.figures import Drawing, absent
from sseg_nase.reporting.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    NORMAL,
    PAGE,
    PALE,
    TITLE,
    VERMILLION,
    Picture,
)
from sseg_nase.rundir.architecture import read_architecture
from sseg_nase.rundir.record import RunRecord

ROWS = 6  # networks in one figure
MOST_SHOWN = 12  # mutations of a run that are drawn: of more, the first and the last ones
NEW, WIDER, NARROWER = "new block", "channels added", "channels removed"
COLOURS = {NEW: BLUE, WIDER: VERMILLION, NARROWER: GREEN}
LOOKS: Mapping[str, Mapping[str, Any]] = {  # of a box, under its number
    NEW: {"facecolor": "white", "edgecolor": COLOURS[NEW], "hatch": "////", "lw": 1.3},
    WIDER: {"facecolor": COLOURS[WIDER], "edgecolor": BLACK, "lw": 0.8},
    NARROWER: {
        "facecolor": "white",
        "edgecolor": COLOURS[NARROWER],
        "linestyle": (0, (3, 2)),
        "lw": 1.3,
    },
    "": {"facecolor": PALE, "edgecolor": BLACK, "lw": 0.8},
}
SHORTCUTS: Mapping[str, Any] = {"identity": "-", "routed": (0, (2, 1.2))}

HEADS, MARGIN = 0.68, 0.06  # the column of the rows' names, and the right edge
NARROWEST, WIDEST = 0.43, 1.15  # of a block's column
LOWEST, HIGHEST = 0.17, 0.86  # of a box
LINE = 0.135  # of the table under a row
OVER, LABEL = 0.08, 0.13  # of a box: how high a shortcut goes, and each line of what has changed
TOP, BETWEEN, LEGEND = 0.34, 0.14, 0.44
SMALL = 6.5  # points: twelve columns leave no room for more
TABLE = ("block", "kernel", "map", "size")


@dataclass(frozen=True)
class _Cell:
    """One box: a block, or alike blocks of a fixed network.

    `side`: of the map that it gives; `was`: its channels before, where `change` says that they
    have changed.
    """

    name: str
    channels: int
    kernel: str = ""
    side: str = ""
    pools: bool = False
    shortcut: str = ""  # identity or routed
    change: str = ""
    was: int = 0

    @property
    def label(self) -> str:
        """What stands over the box."""
        if self.change == NEW:
            return "new"
        return f"{self.was} → {self.channels}" if self.change else ""


@dataclass(frozen=True)
class _Row:
    """One network: its boxes (None leaves a column free), its two ends and its size in words."""

    name: str
    cells: tuple[_Cell | None, ...]
    images: str
    side: str
    features: str
    ending: str
    size: str


def draw_architecture(
    before: Architecture | None,
    after: Architecture,
    title: str = "",
    *,
    origins: Sequence[int | None] | None = None,
) -> Figure:
    """A Matplotlib figure of `before`, where there is one, and of `after` with what has changed.

    `origins`: for every block of `after` the block of `before` that it continues, None for a new
    one, as in `Mutation.origins`; without them they are worked out from the two networks. Params
    and MACs (multiply-accumulates of one forward, at the resolution of each) stand under each row.
    Save it with `figure.savefig(path)`; a notebook shows it by itself. Raises `UserError` where
    `after` has fewer blocks than `before`, which no mutation gives.
    """
    if before is None:
        return _draw([_row("", after, _cells(after))], title, _about(after))
    origins = continued(before, after) if origins is None else tuple(origins)
    assert len(origins) == len(after.blocks), origins
    plain = _cells(before)
    old = tuple(None if origin is None else plain[origin] for origin in origins)
    new = _changed(before, after, origins)
    # In the row before, a new block has no place of its own: the others keep theirs.
    rows = [
        _row("before", before, old),
        _row("after", after, new, _more(before, after)),
    ]
    return _draw(rows, title, _about(after))


def draw_fixed(network: Description, title: str = "") -> Figure:
    """A Matplotlib figure of a network that does not evolve: its widths, alike blocks together."""
    cells, first = [], 1
    for channels, group in groupby(network.channels):
        count = len(list(group))
        name = f"{first}" if count == 1 else f"{first}–{first + count - 1}"
        cells.append(_Cell(name, channels))
        first += count
    row = _Row(
        "",
        tuple(cells),
        images=str(network.in_channels),
        side=f"{network.resolution} px",
        features=f"{network.features:,}",
        ending="",
        size=_size(network),
    )
    return _draw([row], title, f"{network.name}. {HEIGHTS}")


def architecture_pictures(record: RunRecord) -> Iterator[Drawing]:
    """The network from seed to final, then after every accepted mutation, a row each.

    Of more than `MOST_SHOWN` mutations the first and the last ones are drawn, as many of each;
    the first caption says so. A backbone that does not evolve has the first picture alone. What
    cannot be drawn is a `Drawing` that says why.
    """
    final = _final_of(record)
    try:
        seed = asked_for(record.config or {})
    except (KeyError, TypeError, AssertionError, UserError):
        seed = None
    if not isinstance(seed, Architecture) or record.setting("task") != "pipeline":
        yield _alone(final or (seed if record.setting("task") == "pipeline" else None))
        if record.mutations:
            why = (
                "config.yaml does not tell the seed network that the mutations began with."
                if seed is None
                else f"{seed.name} is no chain of blocks; the table says what mutations changed."
            )
            yield absent("mutations", "Mutations", why)
        return
    try:
        steps = _steps(seed, record.mutations)
    except ReplayError as error:
        yield _alone(final)
        why = f"The networks in between cannot be rebuilt from mutations.jsonl: {error}."
        yield absent("mutations", "Mutations", why)
        return
    if final is not None and final != (steps[-1].after if steps else seed):
        # It was taken over from another run, or mutations.jsonl is not whole.
        yield _alone(final)
        if steps:
            why = "mutations.jsonl does not lead to the network in architecture.json."
            yield absent("mutations", "Mutations", why)
        return
    if not steps:
        yield _alone(seed, "No mutation was accepted: it is the seed network.")
        return
    yield _overview(seed, steps)
    half = MOST_SHOWN // 2
    yield from _pictures(steps if len(steps) <= MOST_SHOWN else [*steps[:half], *steps[-half:]])


def continued(before: Architecture, after: Architecture) -> tuple[int | None, ...]:
    """For every block of `after` the block of `before` that it most likely continues.

    Blocks keep their order, and all of `before` go on; of equally likely ways the one whose new
    blocks come last. Raises `UserError` where `after` has fewer blocks.
    """
    old, new = before.blocks, after.blocks
    if len(new) < len(old):
        raise UserError(
            f"draw_architecture: {len(old)} blocks before and {len(new)} after, but no mutation "
            "removes blocks. Draw the two networks each by itself, with before=None."
        )

    @cache
    def best(i: int, j: int) -> tuple[float, tuple[int | None, ...]]:
        """Cost and origins of the blocks of `after` from j on, for those of `before` from i on."""
        if len(new) - j == len(old) - i:
            pairs = zip(old[i:], new[j:], strict=True)
            return sum(_unlike(*pair) for pair in pairs), tuple(range(i, len(old)))
        skipped, rest = best(i, j + 1)
        skip = skipped, (None, *rest)
        if i == len(old):
            return skip
        cost, rest = best(i + 1, j + 1)
        keep = cost + _unlike(old[i], new[j]), (i, *rest)
        return min(keep, skip, key=lambda way: way[0])

    return best(0, 0)[1]


# -- what is drawn -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """An accepted mutation with its record."""

    record: Mapping[str, Any]
    before: Architecture
    after: Architecture
    origins: tuple[int | None, ...]


HEIGHTS = "Height of a box: square root of its channels."


def _unlike(old: Any, new: Any) -> float:
    """How little one block looks like the other."""
    kind = (old.pool, old.residual) != (new.pool, new.residual)
    return abs(math.log(old.channels / new.channels)) + 10 * kind


def _steps(seed: Architecture, records: Sequence[Mapping[str, Any]]) -> list[_Step]:
    """Every accepted mutation. Raises `ReplayError`."""
    architectures = [each for each in replay(seed, records) if isinstance(each, Architecture)]
    accepted = [record for record in records if record["accepted"]]
    return [
        _Step(record, before, after, rebuild(record["kind"], record["target"], before).origins)
        for record, before, after in zip(
            accepted, architectures[:-1], architectures[1:], strict=True
        )
    ]


def _final_of(record: RunRecord) -> Description | None:
    """The network of architecture.json; None where there is none that can be read."""
    try:
        return described(read_architecture(record.folder))
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
        return None


def _alone(network: Description | None, note: str = "") -> Drawing:
    name, title = "architecture", "The network"
    if network is None:
        why = "The run's folder does not tell its network: no backbone in config.yaml, and no "
        return absent(name, title, f"{why}architecture.json.")
    if isinstance(network, Architecture):
        figure = draw_architecture(None, network)
    else:
        figure, note = draw_fixed(network), f"{network.name} does not evolve."
    caption = " ".join(filter(None, ("The network of the run.", note, HEIGHTS)))
    return Drawing(name, title, caption, figure)


def _overview(seed: Architecture, steps: Sequence[_Step]) -> Drawing:
    origins: tuple[int | None, ...] = tuple(range(len(seed.blocks)))
    for step in steps:
        origins = tuple(None if origin is None else origins[origin] for origin in step.origins)
    title = "From the seed network to the final one"
    figure = draw_architecture(seed, steps[-1].after, title, origins=origins)
    count = "one accepted mutation" if len(steps) == 1 else f"{len(steps)} accepted mutations"
    caption = f"The network before and after {count}. {HEIGHTS}"
    if len(steps) > MOST_SHOWN:
        half = MOST_SHOWN // 2
        caption += f" The first {half} and the last {half} of the mutations follow one by one."
    return Drawing("architecture", title, caption, figure)


def _pictures(steps: Sequence[_Step]) -> Iterator[Drawing]:
    """The network after every mutation, a row each, `ROWS` rows in a figure."""
    for page in (steps[start : start + ROWS] for start in range(0, len(steps), ROWS)):
        first, last = page[0].record["index"], page[-1].record["index"]
        several = first != last
        title = f"Mutations {first} to {last}" if several else f"Mutation {first}"
        rows = [
            _row(
                f"{step.record['index']} {step.record['kind']}",
                step.after,
                _changed(step.before, step.after, step.origins),
                f", after epoch {step.record['epoch'] + 1}",
            )
            for step in page
        ]
        figure = _draw(rows, title, _about(page[-1].after))
        what = "every accepted one of these mutations" if several else "this mutation"
        caption = f"The network after {what}, with what it has changed. {HEIGHTS}"
        yield Drawing(f"mutations_{first:02d}", title, caption, figure)


def _changed(
    before: Architecture, after: Architecture, origins: Sequence[int | None]
) -> tuple[_Cell, ...]:
    """The boxes of `after`, marked by what is not as in `before`."""
    old = _cells(before)
    pairs = zip(_cells(after), origins, strict=True)
    return tuple(_compared(cell, None if at is None else old[at]) for cell, at in pairs)


def _cells(architecture: Architecture) -> tuple[_Cell, ...]:
    sides = architecture.sides()
    kernel = f"{architecture.kernel_size}×{architecture.kernel_size}"
    return tuple(
        _Cell(
            name=str(number + 1),
            channels=block.channels,
            kernel=kernel,
            side=f"{sides[number + 1]} px",
            pools=sides[number + 1] < sides[number],
            shortcut=("routed" if block.routed else "identity") if block.residual else "",
        )
        for number, block in enumerate(architecture.blocks)
    )


def _compared(new: _Cell, old: _Cell | None) -> _Cell:
    if old is None:
        return replace(new, change=NEW)
    if new.channels == old.channels:
        return new
    change = WIDER if new.channels > old.channels else NARROWER
    return replace(new, change=change, was=old.channels)


def _row(
    name: str, architecture: Architecture, cells: tuple[_Cell | None, ...], more: str = ""
) -> _Row:
    return _Row(
        name,
        cells,
        images=str(architecture.in_channels),
        side=f"{architecture.resolution} px",
        features=f"{architecture.features:,}",
        ending="mean" if architecture.embedding == "average" else "flatten",
        size=_size(architecture) + more,
    )


def _size(network: Description) -> str:
    macs = network.macs()
    power = max(0, min(3, int(math.log10(max(macs, 1))) // 3))
    shown = f"{macs / 1000**power:.3g} {' kMG'[power]}".rstrip()
    params = f"{network.params:,} parameters"
    return f"{params}, {shown} MACs at {network.resolution} px".replace("  ", " ")


def _more(before: Architecture, after: Architecture) -> str:
    """How many times the params and MACs of `before`."""
    params, macs = after.params / before.params, after.macs() / before.macs()
    return f"  (×{params:.3g} parameters, ×{macs:.3g} MACs)"


def _about(architecture: Architecture) -> str:
    norm = ", batch norm" if architecture.batch_norm else ""
    activation = {"relu": "ReLU", "leaky_relu": "LeakyReLU", "gelu": "GELU"}.get(
        architecture.activation, architecture.activation
    )
    return f"A block: convolution{norm}, {activation}. {HEIGHTS}"


# -- how it is drawn ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """Where columns and boxes are: `most` is the widest block's channels, which is `HIGHEST`."""

    column: float
    most: int

    @property
    def box(self) -> float:
        """Width of a box."""
        return min(0.44, 0.6 * self.column)

    @property
    def gap(self) -> float:
        """Between two boxes."""
        return self.column - self.box

    def centre(self, column: int) -> float:
        """Of column 0, the images, and all after it."""
        return HEADS + (column + 0.5) * self.column

    def height(self, channels: int) -> float:
        """Of a box."""
        return LOWEST + (HIGHEST - LOWEST) * math.sqrt(channels / self.most)

    def label(self, cell: _Cell) -> str:
        """What stands over the box, in two lines where neighbours would touch."""
        return cell.label if self.column > 0.7 else cell.label.replace("→ ", "→\n")

    def above(self, row: _Row) -> float:
        """From the middle of a row to its top."""
        return max(
            self.height(max(cell.channels, cell.was)) / 2
            + OVER * bool(cell.shortcut)
            + LABEL * (bool(cell.label) + self.label(cell).count("\n"))
            for cell in row.cells
            if cell is not None
        )


def _draw(rows: Sequence[_Row], title: str, about: str) -> Figure:
    columns = max(len(row.cells) for row in rows) + 2
    column = min(WIDEST, max(NARROWEST, (PAGE - HEADS - MARGIN) / columns))
    width = max(PAGE, HEADS + columns * column + MARGIN)
    cells = [cell for row in rows for cell in row.cells if cell is not None]
    grid = _Grid(column, max(cell.channels for cell in cells))
    names = [name for name in TABLE if name != "kernel" or any(cell.kernel for cell in cells)]
    below = HIGHEST / 2 + 0.06 + len(names) * LINE
    head = (TOP if title else 0) + 0.06
    middles, height = [], head  # from the top
    for row in rows:
        middles.append(height + grid.above(row))
        height = middles[-1] + below + BETWEEN
    height += LEGEND - BETWEEN
    figure = Picture(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    if title:
        _text(axes, 0.08, height - 0.16, title, size=TITLE, weight="bold", ha="left")
    for row, middle in zip(rows, middles, strict=True):
        _draw_row(axes, grid, row, height - middle, names)
    _legend(axes, cells, about, width)
    return figure


def _draw_row(axes: Axes, grid: _Grid, row: _Row, middle: float, names: Sequence[str]) -> None:
    last = len(row.cells) + 1
    ends = [grid.centre(0), grid.centre(last)]
    axes.plot(ends, [middle, middle], color=GREY, linewidth=0.9, zorder=1)
    table = middle - HIGHEST / 2 - 0.06 - LINE / 2
    for number, name in enumerate(names):
        _text(axes, 0.08, table - number * LINE, name, ha="left", colour=GREY)
    if row.name:
        size = _fitting(row.name, HEADS - 0.1, NORMAL)
        _text(axes, 0.08, middle, row.name, size=size, weight="bold", ha="left")
    _end(axes, grid, grid.centre(0), middle, row.images)
    _column(axes, grid.centre(0), table, names, {"block": "image", "map": row.side})
    for number, cell in enumerate(row.cells, start=1):
        if cell is not None:
            _box(axes, grid, grid.centre(number), middle, cell)
            values = {"block": cell.name, "kernel": cell.kernel, "map": cell.side}
            _column(axes, grid.centre(number), table, names, values)
    _end(axes, grid, grid.centre(last), middle, row.features)
    _column(axes, grid.centre(last), table, names, {"block": "features", "map": row.ending})
    _text(axes, HEADS, table - (len(names) - 1) * LINE, row.size, ha="left")


def _column(
    axes: Axes, x: float, y: float, names: Sequence[str], values: Mapping[str, str]
) -> None:
    for number, name in enumerate(names):
        _text(axes, x, y - number * LINE, values.get(name, ""))


def _end(axes: Axes, grid: _Grid, x: float, middle: float, text: str) -> None:
    """What goes in, or comes out."""
    wide, high = min(max(0.44, 0.07 * len(text) + 0.12), 0.8 * grid.column) - 0.08, 0.14
    corner = (x - wide / 2, middle - high / 2)
    style = "round,pad=0.04,rounding_size=0.09"
    axes.add_patch(
        FancyBboxPatch(
            corner, wide, high, boxstyle=style, facecolor="white", edgecolor=BLACK, lw=0.8
        )
    )
    _text(axes, x, middle, text, size=_fitting(text, wide + 0.04, 7))


def _box(axes: Axes, grid: _Grid, x: float, middle: float, cell: _Cell) -> None:
    def rectangle(channels: int, **looks: Any) -> float:
        high = grid.height(channels)
        corner = (x - grid.box / 2, middle - high / 2)
        axes.add_patch(Rectangle(corner, grid.box, high, **looks))
        return high

    high = rectangle(max(cell.channels, cell.was), **LOOKS[cell.change], zorder=2)
    if cell.was:
        # What stays, in the look of a block that is as it was.
        rectangle(min(cell.channels, cell.was), **LOOKS[""], zorder=3)
    number = str(cell.channels)
    pad = {"facecolor": "white", "edgecolor": "none", "pad": 0.6} if cell.change == NEW else None
    size = _fitting(number, grid.box - 0.02, 7.5)
    _text(axes, x, middle, number, size=size, weight="bold", bbox=pad)
    top = middle + high / 2
    right = x + grid.box / 2
    if cell.shortcut:
        top = _shortcut(axes, grid, x, middle, top, cell.shortcut)
    if cell.pools:
        tall, low, start = 0.11, 0.045, right + 0.34 * grid.gap
        end = start + min(0.12, 0.36 * grid.gap)
        corners = [(start, middle + tall), (end, middle + low), (end, middle - low)]
        corners.append((start, middle - tall))
        axes.add_patch(Polygon(corners, facecolor=BLACK, edgecolor="none", zorder=3))
    if cell.label:
        text, colour = grid.label(cell), COLOURS[cell.change]
        look: dict[str, Any] = {"weight": "bold", "linespacing": 0.9}
        _text(axes, x, top + 0.03, text, va="bottom", colour=colour, **look)


def _shortcut(axes: Axes, grid: _Grid, x: float, middle: float, top: float, kind: str) -> float:
    """Draw it around the box, from the line before it to the line after it; returns its top."""
    over, foot = top + OVER, grid.box / 2 + 0.17 * grid.gap
    bend = min(0.06, foot / 2)
    left, right = x - foot, x + foot
    points = [
        (left, middle), (left, over - bend), (left, over), (left + bend, over),
        (right - bend, over), (right, over), (right, over - bend), (right, middle),
    ]  # fmt: skip
    codes = [Outline.MOVETO, Outline.LINETO, Outline.CURVE3, Outline.CURVE3]
    codes += [Outline.LINETO, Outline.CURVE3, Outline.CURVE3, Outline.LINETO]
    look = {"facecolor": "none", "edgecolor": BLACK, "lw": 1.0, "linestyle": SHORTCUTS[kind]}
    axes.add_patch(PathPatch(Outline(points, codes), zorder=3, **look))
    axes.plot([right], [middle], marker="o", markersize=2.6, color=BLACK, zorder=4)
    return over


def _legend(axes: Axes, cells: Sequence[_Cell], about: str, width: float) -> None:
    entries: list[Any] = []
    for change in (NEW, WIDER, NARROWER):
        if any(cell.change == change for cell in cells):
            entries.append(Patch(label=change, **LOOKS[change]))
    if any(cell.pools for cell in cells):
        mark: dict[str, Any] = {"marker": ">", "markersize": 5, "linestyle": "none"}
        entries.append(Line2D([], [], label="2×2 max-pooling", color=BLACK, **mark))
    names = {"identity": "shortcut", "routed": "shortcut, channels moved"}
    for kind, name in names.items():
        if any(cell.shortcut == kind for cell in cells):
            style = SHORTCUTS[kind]
            entries.append(Line2D([], [], label=name, color=BLACK, linewidth=1, linestyle=style))
    _text(axes, 0.08, 0.12, f"{about} In a box: its channels.", colour=GREY, ha="left")
    if entries:
        axes.legend(
            handles=entries,
            loc="lower left",
            bbox_to_anchor=(0.08 / width, 0.2),
            bbox_transform=_below(axes, width),
            ncol=len(entries),
            frameon=False,
            fontsize=SMALL,
            handlelength=1.8,
            columnspacing=1.4,
            borderpad=0,
            borderaxespad=0,
        )


def _below(axes: Axes, width: float) -> Any:
    """Fractions of the width, and inches from the bottom."""
    return Affine2D().scale(width, 1) + axes.transData


def _fitting(text: str, width: float, size: float) -> float:
    """The font size at which `text` is no wider than `width`: a bold figure is 0.7 of its size."""
    return min(size, 72 * width / (0.7 * len(text)))


def _text(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float = SMALL,
    colour: str = BLACK,
    ha: str = "center",
    va: str = "center",
    **look: Any,
) -> None:
    axes.text(x, y, text, fontsize=size, color=colour, ha=ha, va=va, zorder=5, **look)
