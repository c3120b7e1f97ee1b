"""What all figures have in common: sizes, fonts, colours, marks.

For print: 8 pt type at the width of a column or a page. No two things differ by colour alone; the
colours are those of Okabe and Ito, which the colour-blind can tell apart.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple, cast

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

from sseg_nase.kinds import kinds

COLUMN, PAGE = 3.4, 6.9  # inches
SCREEN = 120  # dots per inch where a figure is looked at on a screen
SMALL, NORMAL, TITLE = 7.0, 8.0, 9.0  # points
LINE = 0.135  # inches, from one line of SMALL type to the next
BLACK, GREY, PALE = "#222222", "#777777", "#DDDDDD"
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, YELLOW = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442",
)  # fmt: skip
COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK, YELLOW)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
DASHES: Sequence[Any] = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.5)),
    (0, (5, 2, 1, 2)),
    (0, (8, 2, 1, 2, 1, 2)),
)

MOST_TICKS = 6
LOG_TICKS: Sequence[Sequence[float]] = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))

RC: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib
    "font.size": NORMAL,
    "axes.titlesize": NORMAL,
    "axes.labelsize": NORMAL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": BLACK,
    "axes.labelcolor": BLACK,
    "text.color": BLACK,
    "xtick.color": BLACK,
    "ytick.color": BLACK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": PALE,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 5,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "figure.dpi": 100,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "sseg-nase",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # names are no formulas
}


class Look(NamedTuple):
    """How one of several things is drawn."""

    colour: str
    marker: str
    dashes: Any


def mutation_looks() -> dict[str, Look]:
    """Of every kind of mutation that is known, in their order."""
    own = {"blue": BLUE, "vermillion": VERMILLION, "green": GREEN, "purple": PURPLE}
    return {
        name: Look(own.get(kind.colour, kind.colour), kind.marker, "-")
        for name, kind in kinds().items()
    }


def looks(count: int) -> list[Look]:
    """Of `count` things to be told apart; up to 40 differ in two ways at least."""
    numbers = range(count)
    return [
        Look(
            COLOURS[n % len(COLOURS)],
            MARKERS[n % len(MARKERS)],
            DASHES[(n + n // len(COLOURS)) % len(DASHES)],
        )
        for n in numbers
    ]


@contextmanager
def applied() -> Iterator[None]:
    """Draw in this style; Matplotlib's own settings are as before afterwards."""
    with matplotlib.rc_context(cast(Any, RC)), warnings.catch_warnings():
        # A class may be named in a script that the font does not have.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


class Picture(Figure):
    """A figure that a notebook shows by itself, without pyplot ever having been used."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        with applied():
            self.savefig(file, format="png", dpi=SCREEN)
        return file.getvalue()


def page(height: float, width: float = PAGE) -> Figure:
    """An empty figure, in inches, whose parts do not overlap."""
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, hspace=0.03, wspace=0.03)
    return Picture(figsize=(width, height), layout=layout)


def within_percent(mean: float, half: float) -> Any:
    """The two arms of an interval around `mean`, cut at 0 and at 100: for `errorbar`."""
    return [[min(half, mean)], [min(half, 100 - mean)]]


def settle(figure: Figure) -> None:
    """Place everything, once for all files."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine(None)  # with "none" it would be drawn twice per file


def counted(axis: Any) -> None:
    """Ticks of large whole numbers: 20k, 1.5M."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def whole(axis: Any) -> None:
    """Ticks at whole numbers."""
    axis.set_major_locator(MaxNLocator(integer=True, nbins="auto", min_n_ticks=1))


def short(value: float) -> str:
    """A large number for a tick or a label."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def legend_below(figure: Figure, handles: Sequence[Artist], columns: int | None = None) -> None:
    """A legend under everything, as wide as it needs to be; the figure grows by its height."""
    labels = [str(handle.get_label()) for handle in handles]
    columns = columns or fitting(labels, figure)
    figure.set_figheight(figure.get_figheight() + 0.155 * math.ceil(len(labels) / columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def fitting(labels: Sequence[str], figure: Figure) -> int:
    """How many columns of a legend with `labels` a figure has room for."""
    widest = max((text_width(label) for label in labels), default=1.0) + 0.55
    return max(1, min(len(labels), int((figure.get_figwidth() - 0.2) / widest)))


def text_width(text: str, points: float = SMALL) -> float:
    """About how wide a text is, in inches."""
    return 0.58 * points / 72 * len(text)


# -- mutations and levels ----------------------------------------------------------------------


def mutation_style(kind: str, accepted: bool) -> dict[str, Any]:
    """A filled mark for what was kept, an empty one for what was rolled back."""
    look = mutation_looks().get(kind, Look(PURPLE, "o", "-"))
    return {
        "marker": look.marker,
        "linestyle": "none",
        "markersize": 6,
        "markerfacecolor": look.colour if accepted else "white",
        "markeredgecolor": look.colour,
        "markeredgewidth": 1.1,
    }


def mutation_handles(mutations: Sequence[Mapping[str, Any]]) -> list[Line2D]:
    """The legend of the marks that are there."""
    present = {(line["kind"], line["accepted"]) for line in mutations}
    known = mutation_looks()
    order = [*known, *sorted({kind for kind, _ in present} - known.keys())]
    return [
        Line2D([], [], label=kind if accepted else f"{kind}, rolled back",
               **mutation_style(kind, accepted))
        for kind in order
        for accepted in (True, False)
        if (kind, accepted) in present
    ]  # fmt: skip


def mark_epochs(axes: Axes, mutations: Sequence[Mapping[str, Any]]) -> None:
    """A lane of marks along the bottom, one per mutation, each with a thin line upwards."""
    if not mutations:
        return
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.14 * (high - low), high)
    seen: dict[int, int] = {}
    for line in mutations:
        at = line["epoch"] + 1
        above = seen.setdefault(at, 0)
        seen[at] += 1
        style = mutation_style(line["kind"], line["accepted"])
        axes.axvline(at, color=style["markeredgecolor"], linewidth=0.5, alpha=0.5, zorder=0.5)
        axes.plot(
            [at], [0.055 + 0.06 * above], transform=axes.get_xaxis_transform(),
            gid="mutation", clip_on=False, **{**style, "markersize": 5},
        )  # fmt: skip


class Span(NamedTuple):
    """A level of the curriculum, from `start` epochs on until `end` epochs were done."""

    level: str
    start: int
    end: int


def level_spans(epochs: Sequence[Mapping[str, Any]]) -> list[Span]:
    """The levels of consecutive epochs, from the `epoch` events."""
    spans: list[Span] = []
    for line in sorted(epochs, key=lambda line: line["epoch"]):
        level, epoch = str(line.get("level", "")), line["epoch"]
        if spans and spans[-1].level == level:
            spans[-1] = spans[-1]._replace(end=epoch + 1)
        else:
            spans.append(Span(level, epoch, epoch + 1))
    return spans


def name_levels(figure: Figure, all_axes: Sequence[Axes], spans: Sequence[Span]) -> None:
    """A line where a level ends, in all of `all_axes`, and the levels' names above the first.

    Nothing where there is only one. The limits of x have to be set before.
    """
    if len(spans) < 2:
        return
    for axes in all_axes:
        for span in spans[1:]:
            axes.axvline(
                span.start, color=GREY, linestyle=(0, (3, 2)), linewidth=0.7, zorder=0.6,
                gid="level",
            )  # fmt: skip
    left, right = all_axes[0].get_xlim()
    per_epoch = 0.82 * figure.get_figwidth() / (right - left)  # what is left beside the y axis
    apart = per_epoch * min(span.end - span.start for span in spans[:-1])
    angle = next((a for a in (30, 50, 70) if apart * math.sin(math.radians(a)) > LINE), 90)
    level = all(text_width(s.level) + 0.1 <= per_epoch * (s.end - s.start) for s in spans)
    for span in spans:
        all_axes[0].annotate(
            span.level,
            ((span.start + span.end) / 2 if level else span.start + 0.15, 1.0),
            xycoords=all_axes[0].get_xaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=SMALL,
            color=BLACK,
            ha="center" if level else "left",
            va="bottom",
            rotation=0 if level else angle,
            rotation_mode="anchor",
            annotation_clip=False,
        )


def first(values: Sequence[str], count: int) -> str:
    """Names in words; of many the first ones."""
    named = ", ".join(islice(values, count))
    return named if len(values) <= count else f"{named} and {len(values) - count} more"


def shortened(text: str, most: int = 60) -> str:
    """A label that fits the width of a page."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def configuration(text: str) -> str:
    """A configuration's name, without what goes without saying."""
    return text.removeprefix("ablation=")


def number(count: int, what: str) -> str:
    """A number of things."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def log_ticks(axis: Any) -> None:
    """Three to `MOST_TICKS` round ticks of a logarithmic axis, written as 20k."""
    low, high = sorted(axis.get_view_interval())
    locator: Locator
    for subs in LOG_TICKS:
        locator = LogLocator(subs=subs, numticks=15)
        there = [tick for tick in locator.tick_values(low, high) if low <= tick <= high]
        if 3 <= len(there) <= MOST_TICKS:  # within a decade Matplotlib may take linear ones: many
            break
    else:
        locator = MaxNLocator(nbins=4, steps=[1, 2, 5, 10])
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    counted(axis)
