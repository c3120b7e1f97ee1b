"""A comparison of runs as Markdown, HTML, CSV, JSON and LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from sseg_nase.files import write_json, write_text
from sseg_nase.finite import plain
from sseg_nase.reporting.comparison import (
    Cell,
    Comparison,
    Difference,
    Place,
    Row,
    Table,
    records,
)
from sseg_nase.reporting.document import (
    LEFT,
    NOTHING,
    RIGHT,
    Block,
    Bold,
    Code,
    Document,
    Heading,
    Items,
    Paragraph,
    Picture,
    Text,
    p_value,
)
from sseg_nase.reporting.document import Table as TableBlock
from sseg_nase.reporting.html import as_html
from sseg_nase.reporting.latex import LatexTable, as_latex, preview
from sseg_nase.reporting.markdown import as_markdown
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


def write(
    comparison: Comparison, folder: Path, pictures: Sequence[Picture] = ()
) -> tuple[str, list[Path]]:
    """Write the comparison to `folder`; return the Markdown, and the files.

    Those are comparison.md, .html (with the `pictures` in it), .csv, .json and .tex, and
    preview.tex, a document that shows the tables of the last.
    """
    whole = document(comparison, pictures)
    shown = as_markdown(whole, folder)
    texts = {
        f"{NAME}.md": shown,
        f"{NAME}.html": as_html(whole),
        f"{NAME}.csv": as_csv(comparison),
        f"{NAME}.tex": latex(comparison),
        "preview.tex": preview([f"{NAME}.tex"]),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    write_json(folder / f"{NAME}.json", as_json(comparison))
    return shown, [folder / name for name in [*texts, f"{NAME}.json"]]


# -- the document ------------------------------------------------------------------------------


def markdown(comparison: Comparison) -> str:
    """The comparison without figures."""
    return as_markdown(document(comparison))


def document(comparison: Comparison, pictures: Sequence[Picture] = ()) -> Document:
    """The tables, how they are read, the runs, and what could not be compared."""
    blocks: list[Block] = []
    for (dataset, split, ways), group in groupby(comparison.tables, key=lambda t: t.place[:3]):
        blocks.append(Heading(2, f"{dataset}, {split} classes, {ways}-way"))
        for one in group:
            blocks += _section(one, comparison)
    blocks += published_blocks(comparison)
    if pictures:
        blocks += [Heading(2, "Figures"), *pictures]
    blocks += [Heading(2, "Runs"), _runs(comparison)]
    blocks += [Heading(2, "How to read this"), Items(list(_legend(comparison)))]
    if comparison.notes:
        blocks += [Heading(2, "Notes"), Items(comparison.notes)]
    return Document("Comparison", blocks)


def _section(one: Table, comparison: Comparison) -> Iterator[Block]:
    yield Heading(3, _heading(one.place.regime, one.place.transductive))
    yield measured_block(one)
    if one.differences:
        methods = {run.number: run for run in comparison.runs}
        reference = methods[one.differences[0].reference]
        yield Paragraph(
            f"Differences to run {reference.number} ({reference.method}; "
            f"{REGIMES[reference.regime]}), on the same episodes:"
        )
        yield _differences(one)
    if (gains := _gains(one)) is not None:
        yield Paragraph("The same networks before they were trained:")
        yield gains


def measured_block(one: Table) -> TableBlock:
    """The accuracies of a table, and what is published beside them."""
    shots, known = one.shots, _published_shots(one)
    header = ["run", "method", "backbone", "params", "FLOPs"]
    header += [f"{k}-shot measured (%)" for k in shots]
    header += [*map(_published_name, known), "source"] if known else []
    lines = []
    for row in one.rows:
        line = [str(row.run), row.method, row.backbone, in_units(row.params), _flops(row)]
        line += [_measured(row.cells.get(k)) for k in shots]
        line += [_published(row.published, k) for k in known]
        if known:
            line.append(row.published.source if row.published else NOTHING)
        lines.append(line)
    return TableBlock(header, _aligned(header), lines)


def _aligned(header: Sequence[str]) -> list[str]:
    return [LEFT if name in WORDS else RIGHT for name in header]


def _published_shots(one: Table) -> list[int]:
    return sorted({k for row in one.rows if row.published for k in row.published.accuracy})


def _differences(one: Table) -> TableBlock:
    header = ["run", "method", "shots", "difference ± 95 % CI (% points)", "p", "p (Holm)"]
    methods = {row.run: row.method for row in one.rows}
    lines = [
        [
            str(found.run),
            methods[found.run],
            str(found.shots),
            f"{_difference(found)} (n={found.episodes})",
            p_value(found.p),
            p_value(found.p_holm),
        ]
        for found in one.differences
    ]
    return TableBlock(header, [RIGHT, LEFT, RIGHT, RIGHT, RIGHT, RIGHT], lines)


def _difference(found: Difference) -> str:
    return f"{found.mean:+.2f} ± {found.ci95:.2f}"


def _gains(one: Table) -> TableBlock | None:
    """What is known of the networks before training, and before fine-tuning."""
    if one.place.regime == UNTRAINED:
        return None
    known = [
        (row, shots, cell)
        for row in one.rows
        for shots, cell in row.cells.items()
        if cell.untrained is not None or cell.pretrained is not None
    ]
    if not known:
        return None
    columns = {
        "untrained (%)": [_percent(cell.untrained) for *_, cell in known],
        "before fine-tuning (%)": [_percent(cell.pretrained) for *_, cell in known],
        "trained (%)": [_percent(cell.result.accuracy) for *_, cell in known],
    }
    columns = {name: values for name, values in columns.items() if set(values) != {NOTHING}}
    lines = [
        [str(row.run), row.method, str(shots), *values]
        for (row, shots, _), *values in zip(known, *columns.values(), strict=True)
    ]
    header = ["run", "method", "shots", *columns]
    return TableBlock(header, [RIGHT, LEFT, *[RIGHT] * (1 + len(columns))], lines)


def published_blocks(comparison: Comparison) -> Iterator[Block]:
    """What is published on the datasets of the tables and stands beside no run."""
    for dataset, entries in groupby(comparison.alone, key=lambda one: one.dataset):
        yield Heading(2, f"{dataset}, test classes, {WAYS}-way: published only")
        for (regime, transductive), group in _by_place(list(entries)):
            yield Heading(3, _heading(regime, transductive))
            header, lines = _published_columns(group)
            yield TableBlock(header, _aligned(header), lines)


def _published_columns(group: Sequence[Published]) -> tuple[list[str], list[list[str]]]:
    shots = sorted({k for one in group for k in one.accuracy})
    lines = [
        [
            one.method,
            one.backbone_name,
            in_units(one.params),
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


def _runs(comparison: Comparison) -> TableBlock:
    judged: dict[int, list[str]] = {}
    for one in comparison.tables:
        for row in one.rows:
            judged.setdefault(row.run, []).extend(cell.result.method for cell in row.cells.values())
    lines: list[list[Text]] = [
        [
            str(run.number),
            NOTHING if run.seed is None else str(run.seed),
            ", ".join(dict.fromkeys(judged.get(run.number, [NOTHING]))),
            *_seen(run.images_seen),
            Code(run.folder),
        ]
        for run in comparison.runs
    ]
    sources = ["synthetic images seen", "unlabeled real ones", "labeled real ones"]
    header = ["run", "seed", "judged by", *sources, "folder"]
    return TableBlock(header, [RIGHT, RIGHT, LEFT, RIGHT, RIGHT, RIGHT, LEFT], lines)


def _seen(images: Mapping[str, int] | None) -> list[str]:
    sources = ("synthetic", "real_unlabeled", "real_labeled")
    return [NOTHING if images is None else f"{images.get(source, 0):,}" for source in sources]


def _legend(comparison: Comparison) -> Iterator[Text]:
    yield (
        "Measured: mean accuracy ± 95 % CI over n episodes (1.96·s/√n), of the last network, or "
        "of that which fine-tuning has chosen. A row is one run: it says nothing about other seeds."
    )
    yield (
        Bold("Bold"),
        ": the best of these networks, not of their methods: better than every other of its table "
        "on the same episodes, paired, p < 0.05 after Holm for all pairs of the table. Nothing is "
        "bold where that is not so.",
    )
    if any(one.differences for one in comparison.tables):
        yield (
            "Differences: paired t-tests on the same episodes, of these networks; Holm for all "
            "that stand in one table. CIs are not adjusted."
        )
    yield (
        "Params and FLOPs are the backbone's, without heads; FLOPs are 2 × multiply-accumulates "
        "of one image of the size that stands there."
    )
    yield (
        "What a network has learned from and whether it looks at its queries together "
        "(transductive) decide in which table it stands: accuracies compare within a table."
    )
    if comparison.alone or any(row.published for one in comparison.tables for row in one.rows):
        yield PUBLISHED


PUBLISHED = (
    "Published: as the source has it, on the test classes; beside a run where method, backbone "
    "and dataset are the same. Its images, views and episodes may differ."
)


def _heading(regime: str, transductive: bool) -> str:
    kind = "transductive" if transductive else "inductive"
    name = REGIMES[regime]
    return f"{name[0].upper()}{name[1:]}, {kind}"


# -- LaTeX -------------------------------------------------------------------------------------


def latex(comparison: Comparison) -> str:
    """The tables of the Markdown, in columns that are narrow enough for a page."""
    tables = [table for one in comparison.tables for table in _latex(one, comparison)]
    for dataset, entries in groupby(comparison.alone, key=lambda one: one.dataset):
        for (regime, transductive), group in _by_place(list(entries)):
            heading = _heading(regime, transductive).lower()
            caption = f"{dataset}, test classes, {WAYS}-way, published: {heading}. Accuracy in %."
            header, lines = _published_columns(group)
            shots = sorted({k for one in group for k in one.accuracy})
            short = ["method", "backbone", "params", *(f"{k}-shot" for k in shots), "source"]
            tables.append(LatexTable(caption, short, _aligned(header), lines))
    return as_latex(tables)


def _latex(one: Table, comparison: Comparison) -> Iterator[LatexTable]:
    place = one.place
    about = (
        f"{place.dataset}, {place.split} classes, {place.ways}-way: "
        f"{_heading(place.regime, place.transductive).lower()}"
    )
    counts = {cell.result.episodes or 0 for row in one.rows for cell in row.cells.values()}
    sizes = {row.resolution for row in one.rows if row.flops is not None}
    episodes = f", n = {counts.pop():,} episodes" if len(counts) == 1 else ""
    pixels = f" FLOPs at {next(iter(sizes))} px." if len(sizes) == 1 and None not in sizes else ""
    lines = []
    for row in one.rows:
        flops = in_units(row.flops) if pixels else _flops(row)
        line = [str(row.run), row.method, row.backbone, in_units(row.params), flops]
        lines.append([*line, *(_measured(row.cells.get(k), bool(episodes)) for k in one.shots)])
    header = ["run", "method", "backbone", "params", "FLOPs", *(f"{k}-shot" for k in one.shots)]
    yield LatexTable(
        f"{about}. Accuracy in % ± 95 % CI{episodes}.{pixels}",
        header,
        _aligned(header),
        lines,
        ["Bold: significantly better than every other of these networks."]
        if any(cell.best for row in one.rows for cell in row.cells.values())
        else [],
    )
    if known := _published_shots(one):
        header = ["run", "method", *(f"{k}-shot" for k in known), "source"]
        yield LatexTable(
            f"Published beside the runs of {about}. Accuracy on the test classes in %.",
            header,
            _aligned(header),
            [
                [str(row.run), row.method, *shown, row.published.source]
                for row in one.rows
                if row.published
                for shown in [[_published(row.published, k) for k in known]]
            ],
        )
    if one.differences:
        methods = {row.run: row.method for row in one.rows}
        names = {run.number: run.method for run in comparison.runs}
        reference = one.differences[0].reference
        header = ["run", "method", "shots", "difference", "n", "p", "p (Holm)"]
        yield LatexTable(
            f"Paired differences to run {reference} ({names[reference]}) on the same episodes in "
            f"% points ± 95 % CI. {about}.",
            header,
            _aligned(header),
            [
                [
                    str(found.run), methods[found.run], str(found.shots), _difference(found),
                    str(found.episodes), p_value(found.p), p_value(found.p_holm),
                ]
                for found in one.differences
            ],
        )  # fmt: skip


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
            {**_place(one.place), **plain(dataclasses.asdict(found))}
            for one in comparison.tables
            for found in one.differences
        ],
        "notes": list(comparison.notes),
    }


def _place(place: Place) -> dict[str, Any]:
    return dict(place._asdict())


# -- cells -------------------------------------------------------------------------------------


def _measured(cell: Cell | None, short: bool = False) -> str:
    if cell is None:
        return NOTHING
    result = cell.result
    interval = NOTHING if result.ci95 is None else f"{result.ci95:.2f}"
    count = "" if short else f" (n={result.episodes or 0:,})"
    text = f"{result.accuracy:.2f} ± {interval}{count}"
    return Bold(text) if cell.best else text


def _published(entry: Published | None, shots: int) -> str:
    return _percent(None if entry is None else entry.accuracy.get(shots))


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _flops(row: Row) -> str:
    if row.flops is None:
        return NOTHING
    at = "" if row.resolution is None else f" ({row.resolution} px)"
    return f"{in_units(row.flops)}{at}"


def in_units(value: float | None) -> str:
    """Three digits, in thousands, millions or thousand millions."""
    if value is None:
        return NOTHING
    for unit, name in UNITS:
        if value >= unit:
            scaled = value / unit
            return f"{scaled:.{max(0, 3 - len(str(int(scaled))))}f} {name}"
    return f"{value:.0f}"
