"""Figures of a run, of several runs, and of a sweep: pure functions of what the runs wrote.

Importing this package loads no Matplotlib; drawing does. A figure that cannot be drawn says why.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sseg_nase import packages
from sseg_nase.errors import UserError
from sseg_nase.files import replacing
from sseg_nase.rundir.record import RunRecord
from sseg_nase.rundir.results import class_results

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from matplotlib.figure import Figure

    from sseg_nase.reporting.aggregate import Aggregate

SUFFIXES = ("png", "svg", "pdf")
DOTS_PER_INCH = 200
# Without these a file would differ from one writing of the same figure to the next.
METADATA = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


@dataclass(frozen=True)
class Drawing:
    """A figure for a document, or why there is none.

    `name`: the stem of its files. `caption`: what is shown, with units and numbers. `missing`:
    None, or, where `figure` is None, one sentence for the reader. `small`: a preview, for the
    first screen of a report.
    """

    name: str
    title: str
    caption: str
    figure: Figure | None
    missing: str | None = None
    small: bool = False


def absent(name: str, title: str, why: str) -> Drawing:
    """A figure that cannot be drawn; `why` is a sentence."""
    return Drawing(name, title, "", None, why)


def figures_of_run(record: RunRecord) -> Iterator[Drawing]:
    """All figures of one run, in reading order, each when it is asked for.

    Behind those of this package are those that packages name as entry points `sseg_nase.figures`.
    """
    names = set()
    for drawing in _own_figures(record):
        names.add(drawing.name)
        yield drawing
    for point in packages.points_in(packages.FIGURES):
        drawing = _brought(point, record, names)
        names.add(drawing.name)
        yield drawing


def _brought(point: EntryPoint, record: RunRecord, names: Container[str]) -> Drawing:
    """The figure of another package; whatever is wrong with it costs none of the others."""
    package = packages.package_of(point)
    try:
        draw = packages.loaded(point)
        if not callable(draw):
            raise TypeError(f"{point.value} is no function")
        drawing = draw(record)
        if not isinstance(drawing, Drawing):
            raise TypeError(f"{point.value} returned {type(drawing).__name__} instead of a Drawing")
        if drawing.name in names:
            raise ValueError(f"there is a figure named {drawing.name!r} already")
    except UserError as error:
        why = str(error)
    except Exception as error:
        why = f"{package} could not draw it: {type(error).__name__}: {error}."
    else:
        return drawing
    return absent(f"{package}-{point.name}", point.name, why)


def _own_figures(record: RunRecord) -> Iterator[Drawing]:
    from sseg_nase.reporting.figures import (
        accuracy,
        architecture,
        classification,
        curriculum,
        embeddings,
        sparsity,
        training,
        trajectory,
    )

    if record.mutations:
        yield trajectory.growth(record)
    if class_results(record.results):
        yield classification.roc(record)
    else:
        yield accuracy.accuracy(record)
    yield trajectory.trajectory(record)
    yield from architecture.architecture_pictures(record)
    yield training.losses(record)
    if record.setting("finetune.name", "none") != "none" or record.events.get("finetune"):
        yield training.fine_tuning(record)
    yield curriculum.difficulty_per_level(record)
    yield sparsity.pruned_channels(record)
    yield embeddings.embeddings(record)


def figures_of_runs(records: Sequence[RunRecord]) -> Iterator[Drawing]:
    """Several runs against each other: accuracy and cost, and how the networks grew."""
    from sseg_nase.reporting.figures import costs, trajectory

    yield from costs.of_runs(records)
    labels = [costs.run_label(*pair) for pair in costs.numbered(records)]
    yield trajectory.trajectories(records, labels)


def figures_of_sweep(aggregate: Aggregate, records: Sequence[RunRecord]) -> Iterator[Drawing]:
    """The configurations of a sweep against each other, means over seeds.

    `records` are the sweep's runs; those of `aggregate` are found among them by their folders.
    """
    from sseg_nase.reporting.figures import ablation, costs, few_labels, trajectory

    yield from few_labels.drawings(aggregate)
    yield from ablation.configurations(aggregate)
    yield from costs.of_sweep(aggregate, records)
    yield trajectory.of_sweep(aggregate, records)


def save(drawing: Drawing, folder: Path) -> list[Path]:
    """Write `drawing` as PNG, SVG and PDF and return the files; none where there is no figure.

    The bytes follow from the figure. Text is text in the PDF, and outlines in the SVG, which then
    looks the same wherever it is shown.
    """
    if drawing.figure is None:
        return []
    from sseg_nase.reporting.figures import style

    paths = [folder / f"{drawing.name}.{suffix}" for suffix in SUFFIXES]
    with style.applied():
        style.settle(drawing.figure)
        for path, suffix in zip(paths, SUFFIXES, strict=True):
            with replacing(path) as temporary:
                drawing.figure.savefig(
                    temporary, format=suffix, dpi=DOTS_PER_INCH, metadata=METADATA[suffix]
                )
    return paths
