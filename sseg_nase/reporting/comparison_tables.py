"""A comparison of runs as Markdown, CSV, JSON and LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from sseg_nase.files import write_json, write_text
from sseg_nase.reporting.comparison import (
    Cell,
    Comparison,
    Place,
    Row,
    Table,
    finite,
    records,
)
from sseg_nase.reporting.markdown import LEFT, NOTHING, RIGHT, escaped, p_value, table
from sseg_nase.reporting.provenance import NOTHING as UNTRAINED
from sseg_nase.reporting.provenance import REGIMES
from sseg_nase.reporting.published import WAYS, Published

NAME = "comparison"
WORDS = ("method", "backbone", "source")  # columns that are no figures
CSV_COLUMNS = (
    "dataset", "split", "ways", "shots", "transductive", "regime", "run", "method", "backbone",
    "params", "flops", "resolution", "accuracy", "ci95", "episodes", "judged_by", "best",
    "untrained", "pretrained", "published", "source", "folder",
)  # fmt: skip
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "–": "--",
}  # fmt: skip


class Bold(str):
    """A cell that stands out."""


def write(comparison: Comparison, folder: Path) -> str:
    """Write comparison.md, .csv, .json and .tex to `folder`, and return the Markdown."""
    shown = markdown(comparison)
    write_text(folder / f"{NAME}.md", shown)
    write_text(folder / f"{NAME}.csv", as_csv(comparison))
    write_json(folder / f"{NAME}.json", as_json(comparison))
    write_text(folder / f"{NAME}.tex", latex(comparison))
    return shown


# -- Markdown ----------------------------------------------------------------------------------


def markdown(comparison: Comparison) -> str:
    """The tables, how they are read, the runs, and what could not be compared."""
    parts = ["# Comparison"]
    for (dataset, split, ways), group in groupby(comparison.tables, key=lambda t: t.place[:3]):
        parts.append(f"## {escaped(dataset)}, {split} classes, {ways}-way")
        for one in group:
            parts += _section(one, comparison)
    for dataset, entries in groupby(comparison.alone, key=lambda one: one.dataset):
        parts += _alone(dataset, list(entries))
    parts += ["## Runs", _runs(comparison)]
    parts += ["## How to read this", "\n".join(_legend(comparison))]
    if comparison.notes:
        parts += ["## Notes", "\n".join(f"- {escaped(note)}" for note in comparison.notes)]
    return "\n\n".join(parts) + "\n"


def _section(one: Table, comparison: Comparison) -> Iterator[str]:
    yield f"### {_heading(one.place.regime, one.place.transductive)}"
    header, lines = _columns(one)
    align = [LEFT if name in WORDS else RIGHT for name in header]
    yield table(header, align, [[_in_markdown(cell) for cell in line] for line in lines])
    if one.differences:
        methods = {run.number: run for run in comparison.runs}
        reference = methods[one.differences[0].reference]
        yield (
            f"Differences to run {reference.number} ({escaped(reference.method)}; "
            f"{REGIMES[reference.regime]}), on the same episodes:"
        )
        yield _differences(one)
    if gains := _gains(one):
        yield "The same networks before they were trained:"
        yield gains


def _columns(one: Table) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a table, their text as it is; some of it `Bold`."""
    shots = one.shots
    known = sorted({k for row in one.rows if row.published for k in row.published.accuracy})
    header = ["run", "method", "backbone", "params", "FLOPs"]
    header += [f"{k}-shot measured (%)" for k in shots]
    header += [*map(_published_name, known), "source"] if known else []
    lines = []
    for row in one.rows:
        line = [str(row.run), row.method, row.backbone, _size(row.params), _flops(row)]
        line += [_measured(row.cells.get(k)) for k in shots]
        line += [_published(row.published, k) for k in known]
        if known:
            line.append(row.published.source if row.published else NOTHING)
        lines.append(line)
    return header, lines


def _differences(one: Table) -> str:
    header = ["run", "method", "shots", "difference ± 95 % CI (% points)", "p", "p (Holm)"]
    methods = {row.run: row.method for row in one.rows}
    lines = [
        [
            str(found.run),
            escaped(methods[found.run]),
            str(found.shots),
            f"{found.mean:+.2f} ± {found.ci95:.2f} (n={found.episodes})",
            p_value(found.p),
            p_value(found.p_holm),
        ]
        for found in one.differences
    ]
    return table(header, [RIGHT, LEFT, RIGHT, RIGHT, RIGHT, RIGHT], lines)


def _gains(one: Table) -> str:
    """What is known of the networks before training, and before fine-tuning."""
    if one.place.regime == UNTRAINED:
        return ""
    known = [
        (row, shots, cell)
        for row in one.rows
        for shots, cell in row.cells.items()
        if cell.untrained is not None or cell.pretrained is not None
    ]
    columns = {
        "untrained (%)": [_percent(cell.untrained) for *_, cell in known],
        "before fine-tuning (%)": [_percent(cell.pretrained) for *_, cell in known],
        "trained (%)": [_percent(cell.accuracy) for *_, cell in known],
    }
    columns = {name: values for name, values in columns.items() if set(values) != {NOTHING}}
    lines = [
        [str(row.run), escaped(row.method), str(shots), *values]
        for (row, shots, _), *values in zip(known, *columns.values(), strict=True)
    ]
    header = ["run", "method", "shots", *columns]
    return table(header, [RIGHT, LEFT, *[RIGHT] * (1 + len(columns))], lines) if lines else ""


def _alone(dataset: str, entries: Sequence[Published]) -> Iterator[str]:
    yield f"## {escaped(dataset)}, test classes, {WAYS}-way: published only"
    for (regime, transductive), group in _by_place(entries):
        yield f"### {_heading(regime, transductive)}"
        header, lines = _published_columns(group)
        align = [LEFT if name in WORDS else RIGHT for name in header]
        yield table(header, align, [[escaped(cell) for cell in line] for line in lines])


def _published_columns(group: Sequence[Published]) -> tuple[list[str], list[list[str]]]:
    shots = sorted({k for one in group for k in one.accuracy})
    lines = [
        [
            one.method,
            one.backbone_name,
            _size(one.params),
            *(_published(one, k) for k in shots),
            one.source,
        ]
        for one in group
    ]
    return ["method", "backbone", "params", *map(_published_name, shots), "source"], lines


def _published_name(shots: int) -> str:
    return f"{shots}-shot published (test, %)"


def _by_place(entries: Sequence[Published]) -> list[tuple[tuple[str, bool], list[Published]]]:
    """By regime and by whether they are transductive, in the order of our own tables."""
    order = list(REGIMES)

    def place(one: Published) -> tuple[bool, int]:
        return one.transductive, order.index(one.regime)

    grouped = groupby(sorted(entries, key=place), key=lambda one: (one.regime, one.transductive))
    return [(key, list(group)) for key, group in grouped]


def _runs(comparison: Comparison) -> str:
    judged: dict[int, list[str]] = {}
    for one in comparison.tables:
        for row in one.rows:
            judged.setdefault(row.run, []).extend(cell.judged_by for cell in row.cells.values())
    lines = [
        [
            str(run.number),
            NOTHING if run.seed is None else str(run.seed),
            escaped(", ".join(dict.fromkeys(judged.get(run.number, [NOTHING])))),
            *_seen(run.images_seen),
            f"`{run.folder}`",
        ]
        for run in comparison.runs
    ]
    sources = ["synthetic images seen", "unlabeled real ones", "labeled real ones"]
    header = ["run", "seed", "judged by", *sources, "folder"]
    return table(header, [RIGHT, RIGHT, LEFT, RIGHT, RIGHT, RIGHT, LEFT], lines)


def _seen(images: Mapping[str, int] | None) -> list[str]:
    sources = ("synthetic", "real_unlabeled", "real_labeled")
    return [NOTHING if images is None else f"{images.get(source, 0):,}" for source in sources]


def _legend(comparison: Comparison) -> Iterator[str]:
    yield (
        "- Measured: mean accuracy ± 95 % CI over n episodes (1.96·s/√n), of the last network, or "
        "of that which fine-tuning has chosen. A row is one run: it says nothing about other seeds."
    )
    yield (
        "- **Bold**: better than every other run of its table on the same episodes, paired, "
        "p < 0.05 after Holm for all pairs of the column. Nothing is bold where that is not so."
    )
    if any(one.differences for one in comparison.tables):
        yield (
            "- Differences: paired t-tests on the same episodes; Holm for all runs that are "
            "compared on an episode list. CIs are not adjusted."
        )
    yield (
        "- Params and FLOPs are the backbone's, without heads; FLOPs are 2 × multiply-accumulates "
        "of one image of the size that stands there."
    )
    yield (
        "- What a network has learned from and whether it looks at its queries together "
        "(transductive) decide in which table it stands: accuracies compare within a table."
    )
    if comparison.alone or any(row.published for one in comparison.tables for row in one.rows):
        yield (
            "- Published: as the source has it, on the test classes; beside a run where method, "
            "backbone and dataset are the same. Its images, views and episodes may differ."
        )


def _heading(regime: str, transductive: bool) -> str:
    kind = "transductive" if transductive else "inductive"
    name = REGIMES[regime]
    return f"{name[0].upper()}{name[1:]}, {kind}"


# -- LaTeX -------------------------------------------------------------------------------------


def latex(comparison: Comparison) -> str:
    r"""One `table` per table of the Markdown; they need \usepackage{booktabs}."""
    parts = [r"% Needs \usepackage{booktabs}."]
    for one in comparison.tables:
        header, lines = _columns(one)
        place = one.place
        caption = (
            f"{place.dataset}, {place.split} classes, {place.ways}-way: "
            f"{_heading(place.regime, place.transductive).lower()}. Accuracy in % ± 95 % CI."
        )
        parts.append(_tabular(caption, header, lines))
    for dataset, entries in groupby(comparison.alone, key=lambda one: one.dataset):
        for (regime, transductive), group in _by_place(list(entries)):
            heading = _heading(regime, transductive).lower()
            caption = f"{dataset}, test classes, {WAYS}-way, published: {heading}."
            parts.append(_tabular(caption, *_published_columns(group)))
    return "\n\n".join(parts) + "\n"


def _tabular(caption: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    align = "".join("l" if name in WORDS else "r" for name in header)
    rows = [" & ".join(_in_latex(cell) for cell in line) + r" \\" for line in lines]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_in_latex(caption)}}}",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            " & ".join(_in_latex(name) for name in header) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _in_latex(cell: str) -> str:
    safe = "".join(LATEX.get(character, character) for character in cell)
    return rf"\textbf{{{safe}}}" if isinstance(cell, Bold) else safe


# -- CSV and JSON ------------------------------------------------------------------------------


def as_csv(comparison: Comparison) -> str:
    """A line per accuracy, in full precision; empty where something is not known."""
    text = io.StringIO()
    lines = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    lines.writeheader()
    lines.writerows(records(comparison))
    return text.getvalue()


def as_json(comparison: Comparison) -> dict[str, Any]:
    """`runs`, `accuracies` (as in the CSV), `differences` and `notes`."""
    return {
        "schema": 1,
        "runs": [{**dataclasses.asdict(run), "folder": str(run.folder)} for run in comparison.runs],
        "accuracies": list(records(comparison)),
        "differences": [
            {**_place(one.place), **{k: finite(v) for k, v in dataclasses.asdict(found).items()}}
            for one in comparison.tables
            for found in one.differences
        ],
        "notes": list(comparison.notes),
    }


def _place(place: Place) -> dict[str, Any]:
    return dict(place._asdict())


# -- cells -------------------------------------------------------------------------------------


def _in_markdown(cell: str) -> str:
    return f"**{cell}**" if isinstance(cell, Bold) else escaped(cell)


def _measured(cell: Cell | None) -> str:
    if cell is None:
        return NOTHING
    interval = NOTHING if finite(cell.ci95) is None else f"{cell.ci95:.2f}"
    text = f"{cell.accuracy:.2f} ± {interval} (n={cell.episodes:,})"
    return Bold(text) if cell.best else text


def _published(entry: Published | None, shots: int) -> str:
    return _percent(None if entry is None else entry.accuracy.get(shots))


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _flops(row: Row) -> str:
    if row.flops is None:
        return NOTHING
    at = "" if row.resolution is None else f" ({row.resolution} px)"
    return f"{_size(row.flops)}{at}"


def _size(value: float | None) -> str:
    """Three digits, in thousands, millions or thousand millions."""
    if value is None:
        return NOTHING
    for unit, name in UNITS:
        if value >= unit:
            scaled = value / unit
            return f"{scaled:.{max(0, 3 - len(str(int(scaled))))}f} {name}"
    return f"{value:.0f}"
