"""An aggregate as a report: Markdown, HTML, LaTeX, CSV and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sseg_nase.files import write_json, write_text
from sseg_nase.finite import plain
from sseg_nase.reporting.ablation import PARTS, Ablation, Line, ablations
from sseg_nase.reporting.aggregate import LOSS, OVER_BOTH, Aggregate, Side
from sseg_nase.reporting.document import (
    CENTRE,
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
    Table,
    Text,
    p_value,
)
from sseg_nase.reporting.html import as_html
from sseg_nase.reporting.latex import CHECK, LatexTable, as_latex, preview
from sseg_nase.reporting.markdown import as_markdown
from sseg_nase.rundir.results import BEST, LAST, NETWORKS

if TYPE_CHECKING:
    import pandas as pd

FRAMES = ("runs", "summary", "comparisons")
ONE_SEED, SIGNIFICANT = "†", "*"
ABLATION = "ablation="
SPENT = "training MACs"
SPENT_MEANS = "Training MACs: of student, teacher, trials and all else, see results.json."

Row = Mapping[str, Any]


class Compared(NamedTuple):
    """A row of the comparisons, turned so that the best configuration comes first."""

    difference: float
    row: Row


class Judged(NamedTuple):
    """All that was judged on one episode list, inductive or transductive.

    `cells` and `ranked` (from the highest mean to the lowest) by network; `winners`: who is
    significantly better than every other; `several`: whether more than one method judged.
    """

    key: str
    transductive: bool
    methods: tuple[str, ...]
    cells: Mapping[str, Mapping[Side, Row]]
    ranked: Mapping[str, Sequence[Side]]
    winners: Mapping[str, Side | None]
    comparisons: Sequence[Row]

    @property
    def several(self) -> bool:
        """Whether more than one method judged, so that configurations are told by it, too."""
        return len(self.methods) > 1

    @property
    def kind(self) -> str:
        """Whether queries were looked at together."""
        return "transductive" if self.transductive else "inductive"


def write(
    aggregate: Aggregate, folder: Path, title: str, pictures: Sequence[Picture] = ()
) -> list[Path]:
    """Write the report to `folder`, and return its files.

    `runs.csv`, `summary.csv`, `comparisons.csv` (full precision), all of them as `report.json`,
    `report.md`, `report.html` with the `pictures` in it, `results.tex`, `ablation.tex` where
    configurations differ by parts of the method, and `preview.tex`, a document that shows them.
    """
    whole = document(aggregate, title, pictures)
    texts = {
        f"{name}.csv": getattr(aggregate, name).to_csv(index=False, lineterminator="\n")
        for name in FRAMES
    }
    texts["report.md"] = as_markdown(whole, folder)
    texts["report.html"] = as_html(whole)
    texts |= {f"{name}.tex": as_latex(tables) for name, tables in latex(aggregate).items()}
    texts["preview.tex"] = preview([name for name in texts if name.endswith(".tex")])
    for name, text in texts.items():
        write_text(folder / name, text)
    write_json(folder / "report.json", as_json(aggregate, title))
    return [folder / name for name in [*texts, "report.json"]]


def as_json(aggregate: Aggregate, title: str) -> dict[str, Any]:
    """Everything that the CSV files hold, and the notes; what is not a number is null."""
    frames = {name: plain(_rows(getattr(aggregate, name))) for name in FRAMES}
    return {"schema": 1, "title": title, **frames, "notes": list(aggregate.notes)}


def markdown(aggregate: Aggregate, title: str) -> str:
    """The report without figures."""
    return as_markdown(document(aggregate, title))


def document(aggregate: Aggregate, title: str, pictures: Sequence[Picture] = ()) -> Document:
    """The report: per episode list the configurations, and how they compare with the best one."""
    runs = aggregate.runs["run"].nunique()
    count = aggregate.runs["configuration"].nunique()
    blocks: list[Block] = [Paragraph(f"Finished runs: {runs}, of {count} configurations.")]
    judgements = list(_judgements(aggregate))
    for judged in judgements:
        blocks += _section(judged)
    parts = ablations(aggregate)
    blocks += _ablation_section(parts)
    summary = _rows(aggregate.summary)
    blocks += _losses([row for row in summary if row["key"] == LOSS])
    if pictures:
        blocks += [Heading(2, "Figures"), *pictures]
    if judgements:
        accuracies = [row for row in summary if row["key"] != LOSS]
        legend = _legend(accuracies, _rows(aggregate.comparisons), parts)
        blocks += [Heading(2, "How to read this"), Items(list(legend))]
    if aggregate.notes:
        blocks += [Heading(2, "Notes"), Items(aggregate.notes)]
    return Document(title, blocks)


def latex(aggregate: Aggregate) -> dict[str, list[LatexTable]]:
    """The tables for papers, by the names of their files: results, and ablation if there is one."""
    tables = {"results": [table for one in _judgements(aggregate) for table in _latex(one)]}
    parts = [_ablation_latex(one) for one in ablations(aggregate)]
    return tables | ({"ablation": parts} if parts else {})


def _judgements(aggregate: Aggregate) -> Iterator[Judged]:
    rows = [row for row in _rows(aggregate.summary) if row["key"] != LOSS]
    compared = _rows(aggregate.comparisons)
    for key, transductive in dict.fromkeys((r["key"], r["transductive"]) for r in rows):
        here = [r for r in rows if (r["key"], r["transductive"]) == (key, transductive)]
        pairs = [r for r in compared if (r["key"], r["transductive"]) == (key, transductive)]
        cells = {
            network: {_side(row): row for row in here if row["network"] == network}
            for network in NETWORKS
        }
        ranked = {network: _ranked(of) for network, of in cells.items()}
        yield Judged(
            key=key,
            transductive=transductive,
            methods=tuple(dict.fromkeys(row["method"] for row in here)),
            cells=cells,
            ranked=ranked,
            winners={
                network: _winner(ranked[network], _of_network(pairs, network))
                for network in NETWORKS
            },
            comparisons=pairs,
        )


# -- results -----------------------------------------------------------------------------------


def _section(judged: Judged) -> Iterator[Block]:
    yield Heading(2, f"{judged.key} ({judged.kind})")
    yield Paragraph(f"Accuracy in % with {', '.join(judged.methods)}.")
    header = ["configuration", "last network (%)", "best network (%)", "params", "MACs", SPENT]
    lines = [
        [
            _label(side, judged.several),
            *(_seeds_told(judged, network, side) for network in NETWORKS),
            *_sizes(judged, side),
        ]
        for side in _sides(judged)
    ]
    yield Table(header, [LEFT, *[RIGHT] * (len(header) - 1)], lines)
    if max(map(len, judged.ranked.values())) == 1:
        yield Paragraph("One configuration: there is nothing to compare, so nothing is bold.")
    for network in NETWORKS:
        if len(judged.ranked[network]) < 2:
            continue
        yield Paragraph(_verdict(judged, network))
        if pairs := _pairs(judged, network):
            first = _label(judged.ranked[network][0], judged.several)
            yield _comparison_table(judged, network, first, pairs)


def _sides(judged: Judged) -> list[Side]:
    """Of all networks, the best last network first."""
    return list(dict.fromkeys([*judged.ranked[LAST], *judged.ranked[BEST]]))


def _seeds_told(judged: Judged, network: str, side: Side) -> str:
    row = judged.cells[network].get(side)
    return _emphasised(judged, network, side, _accuracy(row, seeds=True))


def _emphasised(judged: Judged, network: str, side: Side, text: str) -> str:
    return Bold(text) if judged.winners[network] == side else text


def _sizes(judged: Judged, side: Side) -> list[str]:
    row = judged.cells[LAST].get(side, {})
    spent = row.get("training_macs")
    told = NOTHING if spent is None or math.isnan(spent) else f"{spent:.3g}"
    return [_count(row.get("params")), _count(row.get("macs")), told]


def _pairs(judged: Judged, network: str) -> dict[Side, Compared]:
    """What the first was compared with."""
    return _with(judged.ranked[network][0], _of_network(judged.comparisons, network))


def _verdict(judged: Judged, network: str) -> str:
    first, *others = judged.ranked[network]
    name = _label(first, judged.several)
    if judged.winners[network] is not None:
        return f"The {network} network of {name} is significantly better than every other."
    missing = len(others) - len(_pairs(judged, network))
    unknown = f", and {missing} of them could not be compared with it" if missing else ""
    return (
        f"{network.capitalize()} network: no configuration is significantly better than every "
        f"other, so none is bold. {name} has the highest mean{unknown}."
    )


def _comparison_table(
    judged: Judged, network: str, first: str, pairs: Mapping[Side, Compared]
) -> Table:
    header = [
        f"{first} minus",
        "difference ± CI over episodes (% points)",
        "p over episodes",
        "± CI over seeds and episodes (% points)",
        "p over seeds and episodes",
        "common seeds",
        "significant",
    ]
    lines = [
        [*_differences(side, pairs[side], judged.several), _significant(pairs[side].row)]
        for side in judged.ranked[network]
        if side in pairs
    ]
    return Table(header, [LEFT, RIGHT, RIGHT, RIGHT, RIGHT, RIGHT, LEFT], lines)


def _differences(side: Side, pair: Compared, several: bool) -> list[str]:
    difference, row = pair
    both = row["over"] == OVER_BOTH
    return [
        _label(side, several),
        f"{difference:+.2f} ± {row['ci95_episodes']:.2f}",
        p_value(row["p_episodes_holm"]),
        f"± {row['ci95_seeds_episodes']:.2f}" if both else NOTHING,
        p_value(row["p_seeds_episodes_holm"]) if both else NOTHING,
        str(row["seeds"]),
    ]


def _significant(row: Row) -> str:
    return f"{'yes' if row['significant'] else 'no'}, over {row['over']}"


def _latex(judged: Judged) -> Iterator[LatexTable]:
    sides = _sides(judged)
    about = f"{judged.key}, {judged.kind}, {', '.join(judged.methods)}"
    lines: list[list[Text]] = []
    for side in sides:
        rows = [judged.cells[network].get(side) for network in NETWORKS]
        shown = [
            _emphasised(judged, network, side, _accuracy(row, seeds=False))
            for network, row in zip(NETWORKS, rows, strict=True)
        ]
        seeds = max(row["seeds"] for row in rows if row is not None)
        lines.append([_label(side, judged.several), *shown, str(seeds), *_sizes(judged, side)])
    notes = [f"n: seeds. Params and MACs: of the last network. {SPENT_MEANS}"]
    if any(judged.winners.values()):
        notes.append("Bold: significantly better than every other.")
    if any(row["seeds"] == 1 for row in judged.cells[LAST].values()):
        notes.append(f"{ONE_SEED} one seed: 95 % CI over its episodes.")
    yield LatexTable(
        f"Accuracy in % ± 95 % CI over seeds: {about}.",
        ["Configuration", "last", "best", "n", "params", "MACs", SPENT],
        [LEFT, *[RIGHT] * 6],
        lines,
        notes,
    )
    for network in NETWORKS:
        if len(judged.ranked[network]) < 2 or not (pairs := _pairs(judged, network)):
            continue
        first = _label(judged.ranked[network][0], judged.several)
        yield LatexTable(
            f"{first} minus the others in % points, {network} network: {about}. Paired "
            "differences over episodes (E) and over seeds and episodes (S, E) with 95 % CI.",
            ["Configuration", "E", "p (E)", "S, E", "p (S, E)", "seeds"],
            [LEFT, RIGHT, RIGHT, RIGHT, RIGHT, RIGHT],
            [
                _differences(side, pairs[side], judged.several)
                for side in judged.ranked[network]
                if side in pairs
            ],
            ["p: adjusted by Holm for all pairs of the report."],
        )


# -- ablation ----------------------------------------------------------------------------------


def _ablation_section(parts: Sequence[Ablation]) -> Iterator[Block]:
    if not parts:
        return
    yield Heading(2, "Ablation")
    for one in parts:
        kind = "transductive" if one.transductive else "inductive"
        yield Heading(3, f"{one.key} ({kind}), {one.network} network")
        yield Table(
            ["configuration", *PARTS.values(), "accuracy (%)", _from(one), "p", "params"],
            [LEFT, *[CENTRE] * len(PARTS), RIGHT, RIGHT, RIGHT, RIGHT],
            [
                [
                    _name(line, one),
                    *_marks(line),
                    _accuracy(line.summary, seeds=True),
                    _lost(line, one),
                    _p_of(line),
                    _count(line.summary["params"]),
                ]
                for line in one.lines
            ],
        )


def _ablation_latex(one: Ablation) -> LatexTable:
    kind = "transductive" if one.transductive else "inductive"
    notes = [f"{SIGNIFICANT} significant (p < 0.05, Holm). n: seeds."]
    if any(line.summary["seeds"] == 1 for line in one.lines):
        notes.append(f"{ONE_SEED} one seed: 95 % CI over its episodes.")
    return LatexTable(
        f"Ablation: accuracy in % ± 95 % CI over seeds, and paired difference from "
        f"{_short(one.reference.configuration)} in % points ± 95 % CI. {one.key}, {kind}, "
        f"{one.network} network.",
        [
            "",
            "self-sup.",
            "evolution",
            "sparsity",
            "curric.",
            "distill.",
            "accuracy",
            "n",
            "difference",
        ],
        [LEFT, *[CENTRE] * len(PARTS), RIGHT, RIGHT, RIGHT],
        [
            [
                _name(line, one),
                *_marks(line),
                _accuracy(line.summary, seeds=False),
                str(line.summary["seeds"]),
                _lost(line, one),
            ]
            for line in one.lines
        ],
        notes,
    )


def _from(one: Ablation) -> str:
    return f"difference from {_short(one.reference.configuration)} (% points)"


def _name(line: Line, one: Ablation) -> str:
    several = len({other.side.method for other in one.lines}) > 1
    name = _short(line.side.configuration)
    return f"{name} ({line.side.method})" if several else name


def _short(configuration: str) -> str:
    """`A7` for `ablation=A7`; what else was set stays."""
    return configuration.removeprefix(ABLATION)


def _marks(line: Line) -> list[str]:
    return [CHECK if on else NOTHING for on in line.switches]


def _lost(line: Line, one: Ablation) -> str:
    """The difference from the reference, over seeds and episodes where there are two seeds."""
    if line.side == one.reference:
        return "reference"
    if line.difference is None or line.comparison is None:
        return "not compared"
    row = line.comparison
    interval = row["ci95_seeds_episodes" if row["over"] == OVER_BOTH else "ci95_episodes"]
    mark = SIGNIFICANT if row["significant"] else ""
    return f"{line.difference:+.2f} ± {interval:.2f}{mark}"


def _p_of(line: Line) -> str:
    if line.comparison is None:
        return NOTHING
    both = line.comparison["over"] == OVER_BOTH
    return p_value(line.comparison["p_seeds_episodes_holm" if both else "p_episodes_holm"])


# -- losses and legend -------------------------------------------------------------------------


def _losses(rows: Sequence[Row]) -> Iterator[Block]:
    if not rows:
        return
    cells = {(row["configuration"], row["network"]): row for row in rows}
    lines = []
    for name in dict.fromkeys(row["configuration"] for row in rows):
        line = [name]
        for network in NETWORKS:
            row = cells.get((name, network))
            line.append(NOTHING if row is None else _loss(row))
        lines.append(line)
    yield Heading(2, "Training loss")
    yield Table(["configuration", "last (nats)", "lowest (nats)"], [LEFT, RIGHT, RIGHT], lines)
    yield Paragraph(
        (
            "The loss of single batches, as logged every ",
            Code("tracking.interval_steps"),
            " steps: mean ± 95 % CI over seeds. It depends on level, temperature and "
            "distillation: configurations that differ in these do not compare by it.",
        )
    )


def _legend(
    summary: Sequence[Row], comparisons: Sequence[Row], parts: Sequence[Ablation]
) -> Iterator[Text]:
    yield (
        Bold("last"),
        ": the network at the end of training. ",
        Bold("best"),
        ": that with the lowest training loss at the latest level, chosen without any labels. "
        f"Params and MACs: of the last network, mean over seeds. {SPENT_MEANS}",
    )
    if any(row["seeds"] > 1 for row in summary):
        yield (
            "Accuracy ± 95 % CI (n = seeds): over seeds, Student's t with n − 1 degrees of "
            "freedom. It covers other seeds, on these same episodes."
        )
    if any(row["seeds"] == 1 for row in summary):
        yield (
            f"{ONE_SEED} one seed: says nothing about other seeds. The ± is the 95 % CI over the "
            "episodes of this one run (1.96·s/√episodes)."
        )
    if not comparisons:
        return
    yield (
        "Over episodes: both configurations on the same episodes, averaged over the common "
        "seeds, paired t-test. It covers other episodes of the same classes, but no other seeds."
    )
    yield (
        "Over seeds and episodes: the same differences with seeds and episodes as crossed random "
        "effects; needs 2 common seeds."
        + (
            " With just 2 seeds it finds a difference where there is none in up to 11 % of cases "
            "rather than 5 %."
            if any(row["seeds"] == 2 for row in comparisons)
            else ""
        )
    )
    yield (
        "All p are adjusted by Holm for all pairs of this report, of every dataset, number of "
        "shots and network together; CIs are not adjusted. Significant: adjusted p < 0.05, over "
        "seeds and episodes where there are at least 2 common seeds, else over episodes alone."
    )
    if parts:
        yield (
            f"Ablation: {CHECK} marks the parts of the method that a configuration has. The "
            "difference is the configuration minus the one with most parts, on the same episodes, "
            "± 95 % CI over seeds and episodes where there are at least 2 common seeds, else over "
            f"episodes alone; {SIGNIFICANT} marks significant ones."
        )


# -- parts -------------------------------------------------------------------------------------


def _rows(frame: pd.DataFrame) -> list[Row]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _side(row: Row) -> Side:
    return Side(row["configuration"], row["method"])


def _of_network(rows: Sequence[Row], network: str) -> list[Row]:
    return [row for row in rows if row["network"] == network]


def _ranked(cells: Mapping[Side, Row]) -> list[Side]:
    """From the highest mean to the lowest."""
    return sorted(cells, key=lambda side: -cells[side]["mean"])


def _with(first: Side, comparisons: Sequence[Row]) -> dict[Side, Compared]:
    """What `first` was compared with; the difference is `first` minus the other."""
    found = {}
    for row in comparisons:
        a, b = Side(row["a"], row["method_a"]), Side(row["b"], row["method_b"])
        if a == first:
            found[b] = Compared(row["difference"], row)
        elif b == first:
            found[a] = Compared(-row["difference"], row)
    return found


def _winner(ranked: Sequence[Side], comparisons: Sequence[Row]) -> Side | None:
    """The first, if it is significantly better than every other."""
    if len(ranked) < 2:
        return None
    first, *others = ranked
    pairs = _with(first, comparisons)
    better = (
        side in pairs and pairs[side].row["significant"] and pairs[side].difference > 0
        for side in others
    )
    return first if all(better) else None


def _label(side: Side, with_method: bool) -> str:
    return f"{side.configuration} ({side.method})" if with_method else side.configuration


def _accuracy(row: Row | None, *, seeds: bool) -> str:
    if row is None:
        return NOTHING
    one = row["seeds"] == 1
    ci95 = row["ci95_episodes"] if one else row["ci95"]
    interval = NOTHING if math.isnan(ci95) else f"{ci95:.2f}"
    count = f" (n={row['seeds']})" if seeds else ""
    return f"{row['mean']:.2f} ± {interval}{ONE_SEED if one else ''}{count}"


def _loss(row: Row) -> str:
    interval = "" if math.isnan(row["ci95"]) else f" ± {row['ci95']:.4f}"
    return f"{row['mean']:.4f}{interval} (n={row['seeds']})"


def _count(value: float | None) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:,.0f}"
