"""A comparison of runs as Markdown, HTML, CSV, JSON and LaTeX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sseg_nase.files import write_json, write_text
from sseg_nase.finite import plain
from sseg_nase.reporting.comparison import (
    Comparison,
    Row,
    Setting,
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
    Column,
    Document,
    Heading,
    Items,
    Paragraph,
    Picture,
    Text,
    framed,
    p_value,
    rows_of,
)
from sseg_nase.reporting.document import Row as Values
from sseg_nase.reporting.document import Table as TableBlock
from sseg_nase.reporting.document import as_csv as frame_as_csv
from sseg_nase.reporting.html import as_html
from sseg_nase.reporting.latex import as_latex, preview
from sseg_nase.reporting.markdown import as_markdown
from sseg_nase.reporting.provenance import NOTHING as UNTRAINED
from sseg_nase.reporting.provenance import REGIMES
from sseg_nase.reporting.published import WAYS, Published

if TYPE_CHECKING:
    import pandas as pd

NAME = "comparison"
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
    """Who is best, the tables, the figures, the runs, and what could not be compared."""
    blocks: list[Block] = []
    if short := [said for one in comparison.tables for said in _in_short(one)]:
        blocks.append(Items(short))
    for (dataset, split, ways), group in groupby(comparison.tables, key=lambda t: t.setting[:3]):
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


def _in_short(one: Table) -> Iterator[Text]:
    """Which run of a table is best at each number of shots, whether that is sure, and its size."""
    dataset, split, ways = one.setting[:3]
    among = _heading(one.setting.regime, one.setting.transductive).lower()
    for shots in one.shots:
        key = f"accuracy_{shots}"
        rows = [row for row in rows_of(_frame(one)) if row[key] is not None]
        first = max(rows, key=itemgetter(key))
        sure = "significantly" if first[f"best_{shots}"] else "but not significantly"
        yield (
            f"{dataset} {split}, {ways}-way {shots}-shot, {among}: run {first['run']} "
            f"({first['method']}, {in_units(first['params'])} params) has ",
            _measured(shots, first),
            f" %, {sure} better than every other." if len(rows) > 1 else " %, beside no other.",
        )


def _section(one: Table, comparison: Comparison) -> Iterator[Block]:
    yield Heading(3, _heading(one.setting.regime, one.setting.transductive))
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
    known = _published_shots(one)
    columns = [*ABOUT, Column("FLOPs", _flops)]
    columns += [Column(f"{k}-shot measured (%)", partial(_measured, k)) for k in one.shots]
    columns += [Column(_published_name(k), partial(_published, k)) for k in known]
    return TableBlock(_frame(one), [*columns, *([SOURCE] if known else [])])


def _frame(one: Table) -> pd.DataFrame:
    """A row per run: the network, and what is measured and published of each number of shots."""
    shots = sorted({*one.shots, *_published_shots(one)})
    rows = [
        {
            "run": row.run,
            "method": row.method,
            "backbone": row.backbone,
            "params": row.params,
            "flops": row.flops,
            "resolution": row.resolution,
            "source": row.published.source if row.published else None,
            **{f"{key}_{k}": value for k in shots for key, value in _numbers(row, k).items()},
        }
        for row in one.rows
    ]
    return framed(rows, list(rows[0]) if rows else [])


def _numbers(row: Row, shots: int) -> dict[str, Any]:
    """What a row has of one number of shots."""
    cell = row.cells.get(shots)
    result = cell.result if cell else None
    return {
        "accuracy": result.accuracy if result else None,
        "ci95": result.ci95 if result else None,
        "episodes": (result.episodes or 0) if result else None,
        "best": cell is not None and cell.best,
        "published": row.published.accuracy.get(shots) if row.published else None,
    }


def _published_shots(one: Table) -> list[int]:
    return sorted({k for row in one.rows if row.published for k in row.published.accuracy})


def _differences(one: Table) -> TableBlock:
    difference = Column(
        "difference ± 95 % CI (% points)",
        lambda row: f"{_difference(row)} (n={row['episodes']})",
    )
    return TableBlock(_difference_frame(one), [*PAIRED, difference, *TESTED])


def _difference_frame(one: Table) -> pd.DataFrame:
    methods = {row.run: row.method for row in one.rows}
    rows = [{**dataclasses.asdict(each), "method": methods[each.run]} for each in one.differences]
    return framed(rows, list(rows[0]))


def _difference(row: Values) -> str:
    return f"{row['mean']:+.2f} ± {row['ci95']:.2f}"


def _gains(one: Table) -> TableBlock | None:
    """What is known of the networks before training, and before fine-tuning."""
    rows = [
        {
            "run": row.run,
            "method": row.method,
            "shots": shots,
            "untrained": cell.untrained,
            "pretrained": cell.pretrained,
            "trained": cell.result.accuracy,
        }
        for row in one.rows
        for shots, cell in row.cells.items()
        if cell.untrained is not None or cell.pretrained is not None
    ]
    if one.setting.regime == UNTRAINED or not rows:
        return None
    names = {"untrained": "untrained", "pretrained": "before fine-tuning", "trained": "trained"}
    columns = [
        Column(f"{name} (%)", partial(_percent_of, key))
        for key, name in names.items()
        if any(row[key] is not None for row in rows)
    ]
    return TableBlock(framed(rows, list(rows[0])), [*PAIRED, *columns])


def published_blocks(comparison: Comparison) -> Iterator[Block]:
    """What is published on the datasets of the tables and stands beside no run."""
    for dataset, entries in groupby(comparison.alone, key=lambda one: one.dataset):
        yield Heading(2, f"{dataset}, test classes, {WAYS}-way: published only")
        for (regime, transductive), group in _by_place(list(entries)):
            yield Heading(3, _heading(regime, transductive))
            yield _published_table(group, _published_name)


def _published_table(
    group: Sequence[Published], name: Callable[[int], str], caption: str = ""
) -> TableBlock:
    """`name`: of the column of a number of shots."""
    shots = sorted({k for one in group for k in one.accuracy})
    rows = [
        {
            "method": one.method,
            "backbone": one.backbone_name,
            "params": one.params,
            "source": one.source,
            **{f"published_{k}": one.accuracy.get(k) for k in shots},
        }
        for one in group
    ]
    accuracies = [Column(name(k), partial(_published, k)) for k in shots]
    return TableBlock(framed(rows, list(rows[0])), [*ABOUT[1:], *accuracies, SOURCE], caption)


def _published_name(shots: int) -> str:
    return f"{shots}-shot published (test, %)"


def _short_name(shots: int) -> str:
    return f"{shots}-shot"


def _by_place(entries: Sequence[Published]) -> list[tuple[tuple[str, bool], list[Published]]]:
    """By regime and by whether they are transductive, in the order of our own tables."""
    order = list(REGIMES)

    def order_of(one: Published) -> tuple[bool, int]:
        return one.transductive, order.index(one.regime)

    grouped = groupby(sorted(entries, key=order_of), key=lambda one: (one.regime, one.transductive))
    return [(key, list(group)) for key, group in grouped]


def _runs(comparison: Comparison) -> TableBlock:
    evaluated: dict[int, list[str]] = {}
    for one in comparison.tables:
        for row in one.rows:
            evaluated.setdefault(row.run, []).extend(
                cell.result.method for cell in row.cells.values()
            )
    lines: list[list[Text]] = [
        [
            str(run.number),
            NOTHING if run.seed is None else str(run.seed),
            ", ".join(dict.fromkeys(evaluated.get(run.number, [NOTHING]))),
            *_seen(run.images_seen),
            Code(run.folder),
        ]
        for run in comparison.runs
    ]
    sources = ["synthetic images seen", "unlabeled real ones", "labeled real ones"]
    header = ["run", "seed", "evaluated by", *sources, "folder"]
    return TableBlock.of(header, [RIGHT, RIGHT, LEFT, RIGHT, RIGHT, RIGHT, LEFT], lines)


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
            tables.append(_published_table(group, _short_name, caption))
    return as_latex(tables)


def _latex(one: Table, comparison: Comparison) -> Iterator[TableBlock]:
    setting = one.setting
    about = (
        f"{setting.dataset}, {setting.split} classes, {setting.ways}-way: "
        f"{_heading(setting.regime, setting.transductive).lower()}"
    )
    counts = {cell.result.episodes or 0 for row in one.rows for cell in row.cells.values()}
    sizes = {row.resolution for row in one.rows if row.flops is not None}
    episodes = f", n = {counts.pop():,} episodes" if len(counts) == 1 else ""
    pixels = f" FLOPs at {next(iter(sizes))} px." if len(sizes) == 1 and None not in sizes else ""
    frame = _frame(one)
    flops = Column("FLOPs", (lambda row: in_units(row["flops"])) if pixels else _flops)
    yield TableBlock(
        frame,
        [*ABOUT, flops]
        + [Column(_short_name(k), partial(_measured, k, short=bool(episodes))) for k in one.shots],
        f"{about}. Accuracy in % ± 95 % CI{episodes}.{pixels}",
        ["Bold: significantly better than every other of these networks."]
        if any(cell.best for row in one.rows for cell in row.cells.values())
        else [],
    )
    if known := _published_shots(one):
        yield TableBlock(
            frame[frame["source"].notna()],
            [*ABOUT[:2], *(Column(_short_name(k), partial(_published, k)) for k in known), SOURCE],
            f"Published beside the runs of {about}. Accuracy on the test classes in %.",
        )
    if one.differences:
        names = {run.number: run.method for run in comparison.runs}
        reference = one.differences[0].reference
        shown = [
            Column("difference", _difference), Column("n", lambda row: str(row["episodes"]))
        ]  # fmt: skip
        yield TableBlock(
            _difference_frame(one),
            [*PAIRED, *shown, *TESTED],
            f"Paired differences to run {reference} ({names[reference]}) on the same episodes in "
            f"% points ± 95 % CI. {about}.",
        )


# -- CSV and JSON ------------------------------------------------------------------------------


def as_csv(comparison: Comparison) -> str:
    """A line per accuracy, in full precision; empty where something is not known."""
    return frame_as_csv(framed(records(comparison), CSV_COLUMNS))


def as_json(comparison: Comparison) -> dict[str, Any]:
    """`runs`, `accuracies` (as in the CSV), `differences` and `notes`."""
    return {
        "schema": 1,
        "runs": [{**dataclasses.asdict(run), "folder": str(run.folder)} for run in comparison.runs],
        "accuracies": list(records(comparison)),
        "differences": [
            {**_setting(one.setting), **plain(dataclasses.asdict(found))}
            for one in comparison.tables
            for found in one.differences
        ],
        "notes": list(comparison.notes),
    }


def _setting(setting: Setting) -> dict[str, Any]:
    return dict(setting._asdict())


# -- cells -------------------------------------------------------------------------------------


def _measured(shots: int, row: Values, *, short: bool = False) -> str:
    if row[f"accuracy_{shots}"] is None:
        return NOTHING
    count = "" if short else f" (n={row[f'episodes_{shots}']:,})"
    interval = _percent(row[f"ci95_{shots}"])
    text = f"{row[f'accuracy_{shots}']:.2f} ± {interval}{count}"
    return Bold(text) if row[f"best_{shots}"] else text


def _published(shots: int, row: Values) -> str:
    return _percent(row[f"published_{shots}"])


def _percent_of(key: str, row: Values) -> str:
    return _percent(row[key])


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _flops(row: Values) -> str:
    if row["flops"] is None:
        return NOTHING
    at = "" if row["resolution"] is None else f" ({row['resolution']} px)"
    return f"{in_units(row['flops'])}{at}"


def in_units(value: float | None) -> str:
    """Three digits, in thousands, millions or thousand millions."""
    if value is None:
        return NOTHING
    for unit, name in UNITS:
        if value >= unit:
            scaled = value / unit
            return f"{scaled:.{max(0, 3 - len(str(int(scaled))))}f} {name}"
    return f"{value:.0f}"


# -- columns of several tables -----------------------------------------------------------------

PAIRED = (
    Column("run", lambda row: str(row["run"])),
    Column("method", itemgetter("method"), LEFT),
    Column("shots", lambda row: str(row["shots"])),
)
TESTED = (
    Column("p", lambda row: p_value(row["p"])),
    Column("p (Holm)", lambda row: p_value(row["p_holm"])),
)
ABOUT = (
    *PAIRED[:2],
    Column("backbone", itemgetter("backbone"), LEFT),
    Column("params", lambda row: in_units(row["params"])),
)
SOURCE = Column("source", lambda row: row["source"] or NOTHING, LEFT)
