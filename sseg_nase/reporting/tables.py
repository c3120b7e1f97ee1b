"""An aggregate as CSV files and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sseg_nase.files import write_text
from sseg_nase.reporting.aggregate import LOSS, OVER_BOTH, Aggregate, Side
from sseg_nase.reporting.episodes import BEST, LAST, NETWORKS
from sseg_nase.reporting.markdown import LEFT, NOTHING, RIGHT, escaped, p_value, table

if TYPE_CHECKING:
    import pandas as pd

ONE_SEED = "†"

Row = Mapping[str, Any]


class Compared(NamedTuple):
    """A row of the comparisons, turned so that the best configuration comes first."""

    difference: float
    row: Row


def write(aggregate: Aggregate, folder: Path, title: str) -> None:
    """Write `runs.csv`, `summary.csv`, `comparisons.csv` (full precision) and `report.md`."""
    for name in ("runs", "summary", "comparisons"):
        frame: pd.DataFrame = getattr(aggregate, name)
        write_text(folder / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
    write_text(folder / "report.md", markdown(aggregate, title))


def markdown(aggregate: Aggregate, title: str) -> str:
    """The report: per episode list the configurations, and how they compare with the best one."""
    summary, comparisons = _rows(aggregate.summary), _rows(aggregate.comparisons)
    runs = aggregate.runs["run"].nunique()
    count = aggregate.runs["configuration"].nunique()
    parts = [f"# {title}", f"Finished runs: {runs}, of {count} configurations."]
    accuracies = [row for row in summary if row["key"] != LOSS]
    for key, transductive in dict.fromkeys((r["key"], r["transductive"]) for r in accuracies):
        judged = [r for r in accuracies if (r["key"], r["transductive"]) == (key, transductive)]
        compared = [r for r in comparisons if (r["key"], r["transductive"]) == (key, transductive)]
        parts += _section(key, transductive, judged, compared)
    parts += _losses([row for row in summary if row["key"] == LOSS])
    if accuracies:
        parts += ["## How to read this", "\n".join(_legend(accuracies, comparisons))]
    if aggregate.notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in aggregate.notes)]
    return "\n\n".join(parts) + "\n"


def _section(
    key: str, transductive: bool, judged: Sequence[Row], comparisons: Sequence[Row]
) -> Iterator[str]:
    methods = list(dict.fromkeys(row["method"] for row in judged))
    kind = "transductive" if transductive else "inductive"
    yield f"## {key} ({kind})"
    yield f"Accuracy in % with {', '.join(methods)}."
    cells = {
        network: {_side(row): row for row in judged if row["network"] == network}
        for network in NETWORKS
    }
    ranked = {network: _ranked(of) for network, of in cells.items()}
    winners = {
        network: _winner(ranked[network], _of_network(comparisons, network)) for network in NETWORKS
    }
    several = len(methods) > 1
    lines = []
    for side in dict.fromkeys([*ranked[LAST], *ranked[BEST]]):
        shown = [_label(side, several)]
        for network in NETWORKS:
            text = _accuracy(cells[network].get(side))
            shown.append(f"**{text}**" if winners[network] == side else text)
        sizes = cells[LAST].get(side, {})
        lines.append([*shown, _count(sizes.get("params")), _count(sizes.get("macs"))])
    header = ["configuration", "last network (%)", "best network (%)", "params", "MACs"]
    yield table(header, [LEFT, RIGHT, RIGHT, RIGHT, RIGHT], lines)
    if max(map(len, ranked.values())) == 1:
        yield "One configuration: there is nothing to compare, so nothing is bold."
    for network in NETWORKS:
        if len(ranked[network]) < 2:
            continue
        first, *others = ranked[network]
        pairs = _with(first, _of_network(comparisons, network))
        yield _verdict(network, _label(first, several), winners[network] is not None, pairs, others)
        if pairs:
            yield _comparison_table(_label(first, several), others, pairs, several)


def _verdict(
    network: str, first: str, wins: bool, pairs: Mapping[Side, Compared], others: Sequence[Side]
) -> str:
    if wins:
        return f"The {network} network of {first} is significantly better than every other."
    missing = len(others) - len(pairs)
    unknown = f", and {missing} of them could not be compared with it" if missing else ""
    return (
        f"{network.capitalize()} network: no configuration is significantly better than every "
        f"other, so none is bold. {first} has the highest mean{unknown}."
    )


def _comparison_table(
    first: str, others: Sequence[Side], pairs: Mapping[Side, Compared], several: bool
) -> str:
    header = [
        f"{first} minus",
        "difference ± CI over episodes (% points)",
        "p over episodes",
        "± CI over seeds and episodes (% points)",
        "p over seeds and episodes",
        "common seeds",
        "significant",
    ]
    lines = []
    for side in others:
        if side not in pairs:
            continue
        difference, row = pairs[side]
        both = row["over"] == OVER_BOTH
        lines.append(
            [
                _label(side, several),
                f"{difference:+.2f} ± {row['ci95_episodes']:.2f}",
                p_value(row["p_episodes_holm"]),
                f"± {row['ci95_seeds_episodes']:.2f}" if both else NOTHING,
                p_value(row["p_seeds_episodes_holm"]) if both else NOTHING,
                str(row["seeds"]),
                f"{'yes' if row['significant'] else 'no'}, over {row['over']}",
            ]
        )
    return table(header, [LEFT, RIGHT, RIGHT, RIGHT, RIGHT, RIGHT, LEFT], lines)


def _losses(rows: Sequence[Row]) -> Iterator[str]:
    if not rows:
        return
    cells = {(row["configuration"], row["network"]): row for row in rows}
    lines = []
    for name in dict.fromkeys(row["configuration"] for row in rows):
        line = [escaped(name)]
        for network in NETWORKS:
            row = cells.get((name, network))
            line.append(NOTHING if row is None else _loss(row))
        lines.append(line)
    yield "## Training loss"
    yield table(["configuration", "last (nats)", "lowest (nats)"], [LEFT, RIGHT, RIGHT], lines)
    yield (
        "The loss of single batches, as logged every `tracking.interval_steps` steps: mean ± 95 % "
        "CI over seeds. It depends on level, temperature and distillation: configurations that "
        "differ in these do not compare by it."
    )


def _legend(summary: Sequence[Row], comparisons: Sequence[Row]) -> Iterator[str]:
    yield (
        "- **last**: the network at the end of training. **best**: that with the lowest training "
        "loss at the latest level, chosen without any labels. Params and MACs: of the last "
        "network, mean over seeds."
    )
    if any(row["seeds"] > 1 for row in summary):
        yield (
            "- Accuracy ± 95 % CI (n = seeds): over seeds, Student's t with n − 1 degrees of "
            "freedom. It covers other seeds, on these same episodes."
        )
    if any(row["seeds"] == 1 for row in summary):
        yield (
            f"- {ONE_SEED} one seed: says nothing about other seeds. The ± is the 95 % CI over the "
            "episodes of this one run (1.96·s/√episodes)."
        )
    if not comparisons:
        return
    yield (
        "- Over episodes: both configurations on the same episodes, averaged over the common "
        "seeds, paired t-test. It covers other episodes of the same classes, but no other seeds."
    )
    yield (
        "- Over seeds and episodes: the same differences with seeds and episodes as crossed random "
        "effects; needs 2 common seeds."
        + (
            " With just 2 seeds it finds a difference where there is none in up to 11 % of cases "
            "rather than 5 %."
            if any(row["seeds"] == 2 for row in comparisons)
            else ""
        )
    )
    yield (
        "- All p are adjusted by Holm for all pairs of the same episode list and network; CIs are "
        "not adjusted. Significant: adjusted p < 0.05, over seeds and episodes where there are at "
        "least 2 common seeds, else over episodes alone."
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
    name = f"{side.configuration} ({side.method})" if with_method else side.configuration
    return escaped(name)


def _accuracy(row: Row | None) -> str:
    if row is None:
        return NOTHING
    one = row["seeds"] == 1
    ci95 = row["ci95_episodes"] if one else row["ci95"]
    interval = NOTHING if math.isnan(ci95) else f"{ci95:.2f}"
    return f"{row['mean']:.2f} ± {interval}{ONE_SEED if one else ''} (n={row['seeds']})"


def _loss(row: Row) -> str:
    interval = "" if math.isnan(row["ci95"]) else f" ± {row['ci95']:.4f}"
    return f"{row['mean']:.4f}{interval} (n={row['seeds']})"


def _count(value: float | None) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:,.0f}"
