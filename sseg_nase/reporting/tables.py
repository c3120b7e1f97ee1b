"""An aggregate as a report: Markdown, HTML, LaTeX, CSV and JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sseg_nase.files import write_json, write_text
from sseg_nase.finite import finite, plain
from sseg_nase.reporting import few_labels
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
    Column,
    Document,
    Facts,
    Heading,
    Items,
    Listing,
    Paragraph,
    Picture,
    Row,
    Table,
    Text,
    as_csv,
    framed,
    p_value,
    rows_of,
)
from sseg_nase.reporting.evaluated_on import evaluated_on
from sseg_nase.reporting.html import as_html
from sseg_nase.reporting.latex import CHECK, as_latex, preview
from sseg_nase.reporting.markdown import as_markdown
from sseg_nase.reporting.origin import made
from sseg_nase.rundir.results import BEST, LAST, NETWORKS

if TYPE_CHECKING:
    import pandas as pd

FRAMES = ("runs", "summary", "comparisons")
ONE_SEED, SIGNIFICANT = "†", "*"
DIFFERENCES = (
    "difference ± CI over episodes (% points)",
    "p over episodes",
    "± CI over seeds and episodes (% points)",
    "p over seeds and episodes",
    "common seeds",
)
ABLATION = "ablation="
SPENT = "training MACs"
SPENT_MEANS = "Training MACs: of student, teacher, trials and all else, see results.json."


class Compared(NamedTuple):
    """A row of the comparisons, turned so that the best configuration comes first."""

    difference: float
    row: Row


class Evaluated(NamedTuple):
    """All that was evaluated on one episode list, inductive or transductive.

    `sides`: in the order of the sweep, which all tables have. `cells` and `ranked` (from the
    highest mean to the lowest) by network; `winners`: who is significantly better than every
    other; `several`: whether there is more than one `evaluation.method`.
    """

    key: str
    transductive: bool
    methods: tuple[str, ...]
    sides: tuple[Side, ...]
    cells: Mapping[str, Mapping[Side, Row]]
    ranked: Mapping[str, Sequence[Side]]
    winners: Mapping[str, Side | None]
    comparisons: Sequence[Row]

    @property
    def several(self) -> bool:
        """Whether there is more than one method, so that a configuration is named with its own."""
        return len(self.methods) > 1

    @property
    def kind(self) -> str:
        """Whether queries were looked at together."""
        return "transductive" if self.transductive else "inductive"


def write(
    aggregate: Aggregate,
    folder: Path,
    title: str,
    pictures: Sequence[Picture] = (),
    command: str | None = None,
) -> list[Path]:
    """Write the report to `folder`, and return its files.

    `runs.csv`, `summary.csv`, `comparisons.csv` (full precision), all of them as `report.json`,
    `report.md`, `report.html` with the `pictures` in it, `results.tex`, `ablation.tex` where
    configurations differ by parts of the method, `few_labels.tex` and `few_labels.csv` where they
    differ by their labels, and `preview.tex`, a document that shows them.
    `command`: what does the sweep once more.
    """
    whole = document(aggregate, title, pictures, command)
    texts = {f"{name}.csv": as_csv(getattr(aggregate, name)) for name in FRAMES}
    if labels := few_labels.few_labels(aggregate):
        texts["few_labels.csv"] = as_csv(few_labels.records(labels))
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
    frames = {name: plain(rows_of(getattr(aggregate, name))) for name in FRAMES}
    return {"schema": 1, "title": title, **frames, "notes": list(aggregate.notes)}


def markdown(aggregate: Aggregate, title: str) -> str:
    """The report without figures."""
    return as_markdown(document(aggregate, title))


def document(
    aggregate: Aggregate, title: str, pictures: Sequence[Picture] = (), command: str | None = None
) -> Document:
    """The report: who is best and whether that is sure, the figures, then list by list."""
    runs = list(dict.fromkeys(aggregate.runs["run"]))
    count = aggregate.runs["configuration"].nunique()
    evaluations = list(_evaluations(aggregate))
    blocks: list[Block] = [Paragraph(f"Finished runs: {len(runs)}, of {count} configurations.")]
    if evaluations:
        blocks.append(Items([_in_short(evaluated) for evaluated in evaluations]))
    if (line := made([Path(run) for run in runs])) is not None:
        blocks.append(Facts([("Made", line)]))
    if command is not None:
        blocks += [Paragraph("Once more:"), Listing(command)]
    if pictures:
        blocks += [Heading(2, "Figures"), *pictures]
    blocks += few_labels.blocks(aggregate)
    for evaluated in evaluations:
        blocks += _section(evaluated)
    parts = ablations(aggregate)
    blocks += _ablation_section(parts)
    summary = rows_of(aggregate.summary)
    blocks += _losses([row for row in summary if row["key"] == LOSS])
    if evaluations:
        accuracies = [row for row in summary if row["key"] != LOSS]
        legend = _legend(accuracies, rows_of(aggregate.comparisons), parts)
        blocks += [Heading(2, "How to read this"), Items(list(legend))]
    if aggregate.notes:
        blocks += [Heading(2, "Notes"), Items(aggregate.notes)]
    return Document(title, blocks)


def latex(aggregate: Aggregate) -> dict[str, list[Table]]:
    """The tables for papers, by the names of their files.

    Results; ablation and few_labels where configurations differ by parts of the method, or labels.
    """
    tables = {"results": [table for one in _evaluations(aggregate) for table in _latex(one)]}
    parts = [_ablation_latex(one) for one in ablations(aggregate)]
    labels = [few_labels.table(one) for one in few_labels.few_labels(aggregate)]
    tables |= {"ablation": parts} if parts else {}
    return tables | ({"few_labels": labels} if labels else {})


def _evaluations(aggregate: Aggregate) -> Iterator[Evaluated]:
    rows = [row for row in rows_of(aggregate.summary) if row["key"] != LOSS]
    compared = rows_of(aggregate.comparisons)
    for key, transductive in dict.fromkeys((r["key"], r["transductive"]) for r in rows):
        here = [r for r in rows if (r["key"], r["transductive"]) == (key, transductive)]
        pairs = [r for r in compared if (r["key"], r["transductive"]) == (key, transductive)]
        cells = {
            network: {_side(row): row for row in here if row["network"] == network}
            for network in NETWORKS
        }
        ranked = {network: _ranked(of) for network, of in cells.items()}
        yield Evaluated(
            key=key,
            transductive=transductive,
            methods=tuple(dict.fromkeys(row["method"] for row in here)),
            sides=tuple(dict.fromkeys(map(_side, here))),
            cells=cells,
            ranked=ranked,
            winners={
                network: _winner(ranked[network], _of_network(pairs, network))
                for network in NETWORKS
            },
            comparisons=pairs,
        )


# -- results -----------------------------------------------------------------------------------


def _in_short(evaluated: Evaluated) -> Text:
    """Which configuration has the highest mean, whether that is sure, and what it costs."""
    first, *others = evaluated.ranked[LAST] or evaluated.ranked[BEST]
    network = LAST if evaluated.ranked[LAST] else BEST
    row = evaluated.cells[network][first]
    told: list[str] = [f"{evaluated.key} ({evaluated.kind}): "]
    name = _label(first, evaluated.several)
    won = evaluated.winners[network] == first
    told += [Bold(name) if won else name, f" {_accuracy(row, seeds=True)} %"]
    if others:
        told[1:1] = ["the highest mean has "]
        pair = _pairs(evaluated, network).get(others[0])
        second = _label(others[0], evaluated.several)
        if pair is None:
            told.append(f", not compared with {second}, the next one")
        else:
            sure = "significant" if pair.row["significant"] else "not significant"
            half, p = _decisive(pair.row)
            told.append(
                f", {pair.difference:+.2f} ± {half:.2f} points over {second}, the next one: {sure} "
                f"(p {'' if p < 0.001 else '= '}{p_value(p)}, over {pair.row['over']})"
            )
    params, macs = _count(row.get("params")), _count(row.get("macs"))
    return (*told, f"; {params} params, {macs} MACs.")


def _decisive(row: Row) -> tuple[float, float]:
    """The interval and the p that count: over seeds, too, where there are several."""
    test = "seeds_episodes" if row["over"] == OVER_BOTH else "episodes"
    return row[f"ci95_{test}"], row[f"p_{test}_holm"]


def _section(evaluated: Evaluated) -> Iterator[Block]:
    yield Heading(2, f"{evaluated.key} ({evaluated.kind})")
    yield Paragraph(f"Accuracy in % with {', '.join(evaluated.methods)}.")
    headed = {network: f"{network} network (%)" for network in NETWORKS}
    yield Table(_frame(evaluated), _result_columns(headed, seeds=True))
    if max(map(len, evaluated.ranked.values())) == 1:
        yield Paragraph("One configuration: there is nothing to compare, so nothing is bold.")
    for network in NETWORKS:
        if len(evaluated.ranked[network]) < 2:
            continue
        yield Paragraph(_verdict(evaluated, network))
        if (pairs := _pairs_frame(evaluated, network)) is not None:
            first = _label(evaluated.ranked[network][0], evaluated.several)
            names = [f"{first} minus", *DIFFERENCES]
            yield Table(pairs, [*_pair_columns(names), Column("significant", _significant, LEFT)])


def _frame(evaluated: Evaluated) -> pd.DataFrame:
    """A row per configuration: what the summary has of each of its networks."""
    rows = [
        {
            "configuration": _label(side, evaluated.several),
            **{
                f"{network}_{key}": value
                for network in NETWORKS
                for key, value in evaluated.cells[network].get(side, {}).items()
            },
            **{f"{network}_wins": evaluated.winners[network] == side for network in NETWORKS},
        }
        for side in evaluated.sides
    ]
    return framed(rows, list(dict.fromkeys(key for row in rows for key in row)))


def _network(row: Row, network: str) -> dict[str, Any]:
    """What a row of `_frame` has of one network; nothing where that was not evaluated."""
    start = f"{network}_"
    found = {key.removeprefix(start): row[key] for key in row if key.startswith(start)}
    return found if finite(found.get("mean")) else {}


def _result_columns(names: Mapping[str, str], *, seeds: bool) -> list[Column]:
    """`names`: of the columns of accuracies, by network; `seeds`: with their number in each."""

    def accuracy(network: str, row: Row) -> Text:
        shown = _accuracy(_network(row, network), seeds=seeds)
        return Bold(shown) if row[f"{network}_wins"] else shown

    def cost(key: str, form: str, row: Row) -> Text:
        value = _network(row, LAST).get(key)
        return format(value, form) if finite(value) else NOTHING

    return [
        Column("configuration", itemgetter("configuration"), LEFT),
        *(Column(names[network], partial(accuracy, network)) for network in NETWORKS),
        *([] if seeds else [Column("n", _most_seeds)]),
        Column("params", partial(cost, "params", ",.0f")),
        Column("MACs", partial(cost, "macs", ",.0f")),
        Column(SPENT, partial(cost, "training_macs", ".3g")),
    ]


def _most_seeds(row: Row) -> str:
    return str(max(_network(row, network).get("seeds", 0) for network in NETWORKS))


def _pairs(evaluated: Evaluated, network: str) -> dict[Side, Compared]:
    """What the first was compared with."""
    return _with(evaluated.ranked[network][0], _of_network(evaluated.comparisons, network))


def _verdict(evaluated: Evaluated, network: str) -> str:
    first, *others = evaluated.ranked[network]
    name = _label(first, evaluated.several)
    if evaluated.winners[network] is not None:
        return f"The {network} network of {name} is significantly better than every other."
    missing = len(others) - len(_pairs(evaluated, network))
    unknown = f", and {missing} of them could not be compared with it" if missing else ""
    return (
        f"{network.capitalize()} network: no configuration is significantly better than every "
        f"other, so none is bold. {name} has the highest mean{unknown}."
    )


def _pairs_frame(evaluated: Evaluated, network: str) -> pd.DataFrame | None:
    """A row per configuration that the first was compared with; None where there is none."""
    pairs = _pairs(evaluated, network)
    rows = [
        {
            **pairs[side].row,
            "configuration": _label(side, evaluated.several),
            "difference": pairs[side].difference,
        }
        for side in evaluated.sides
        if side in pairs
    ]
    return framed(rows, list(rows[0])) if rows else None


def _pair_columns(names: Sequence[str]) -> list[Column]:
    """Of `_pairs_frame`: the other, both differences with their p, and the common seeds."""

    def over_both(shown: Callable[[Row], str]) -> Callable[[Row], Text]:
        return lambda row: shown(row) if row["over"] == OVER_BOTH else NOTHING

    shows: list[Callable[[Row], Text]] = [
        itemgetter("configuration"),
        lambda row: f"{row['difference']:+.2f} ± {row['ci95_episodes']:.2f}",
        lambda row: p_value(row["p_episodes_holm"]),
        over_both(lambda row: f"± {row['ci95_seeds_episodes']:.2f}"),
        over_both(lambda row: p_value(row["p_seeds_episodes_holm"])),
        lambda row: str(row["seeds"]),
    ]
    aligned = [LEFT, *[RIGHT] * (len(shows) - 1)]
    return [Column(*column) for column in zip(names, shows, aligned, strict=True)]


def _significant(row: Row) -> str:
    return f"{'yes' if row['significant'] else 'no'}, over {row['over']}"


def _latex(evaluated: Evaluated) -> Iterator[Table]:
    about = f"{evaluated.key}, {evaluated.kind}, {', '.join(evaluated.methods)}"
    notes = [f"n: seeds. Params and MACs: of the last network. {SPENT_MEANS}"]
    if any(evaluated.winners.values()):
        notes.append("Bold: significantly better than every other.")
    if any(row["seeds"] == 1 for row in evaluated.cells[LAST].values()):
        notes.append(f"{ONE_SEED} one seed: 95 % CI over its episodes.")
    yield Table(
        _frame(evaluated),
        _result_columns({network: network for network in NETWORKS}, seeds=False),
        f"Accuracy in % ± 95 % CI over seeds: {about}.",
        notes,
    )
    for network in NETWORKS:
        if (
            len(evaluated.ranked[network]) < 2
            or (pairs := _pairs_frame(evaluated, network)) is None
        ):
            continue
        first = _label(evaluated.ranked[network][0], evaluated.several)
        yield Table(
            pairs,
            _pair_columns(["configuration", "E", "p (E)", "S, E", "p (S, E)", "seeds"]),
            f"{first} minus the others in % points, {network} network: {about}. Paired "
            "differences over episodes (E) and over seeds and episodes (S, E) with 95 % CI.",
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
        yield Table.of(
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


def _ablation_latex(one: Ablation) -> Table:
    kind = "transductive" if one.transductive else "inductive"
    notes = [f"{SIGNIFICANT} significant (p < 0.05, Holm). n: seeds."]
    if any(line.summary["seeds"] == 1 for line in one.lines):
        notes.append(f"{ONE_SEED} one seed: 95 % CI over its episodes.")
    parts = ["self-sup.", "evolution", "sparsity", "curric.", "distill."]
    lines: list[list[Text]] = [
        [
            _name(line, one),
            *_marks(line),
            _accuracy(line.summary, seeds=False),
            str(line.summary["seeds"]),
            _lost(line, one),
        ]
        for line in one.lines
    ]
    return Table.of(
        ["", *parts, "accuracy", "n", "difference"],
        [LEFT, *[CENTRE] * len(PARTS), RIGHT, RIGHT, RIGHT],
        lines,
        f"Ablation: accuracy in % ± 95 % CI over seeds, and paired difference from "
        f"{_short(one.reference.configuration)} in % points ± 95 % CI. {one.key}, {kind}, "
        f"{one.network} network.",
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
    mark = SIGNIFICANT if line.comparison["significant"] else ""
    return f"{line.difference:+.2f} ± {_decisive(line.comparison)[0]:.2f}{mark}"


def _p_of(line: Line) -> str:
    if line.comparison is None:
        return NOTHING
    return p_value(_decisive(line.comparison)[1])


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
    yield Table.of(["configuration", "last (nats)", "lowest (nats)"], [LEFT, RIGHT, RIGHT], lines)
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
    if any((on := evaluated_on(str(row["key"]))) and not on.ways for row in summary):
        yield "Of a closed set every image is an episode: what is over episodes is over its images."
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


def _accuracy(row: Row, *, seeds: bool) -> str:
    if not row:
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
