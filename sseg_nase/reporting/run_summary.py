"""The first screen of a run's report: what evolution gave, whether that is sure, what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sseg_nase.finite import finite
from sseg_nase.reporting.aggregate import SIGNIFICANCE
from sseg_nase.reporting.comparison import Comparison
from sseg_nase.reporting.document import (
    LEFT,
    NOTHING,
    RIGHT,
    Block,
    Bold,
    Items,
    Table,
    Text,
    p_value,
)
from sseg_nase.reporting.evaluated_on import evaluated_on
from sseg_nase.rundir.record import RunRecord
from sseg_nase.rundir.results import BEST, LAST, EpisodeResult, section

UNTRAINED, CONTROL = "untrained", "control"
# The networks that stand side by side, and what they are called there.
SHOWN: Mapping[str, str] = {
    UNTRAINED: "untrained",
    "pretrained": "before fine-tuning",
    CONTROL: "seed network, trained",
    BEST: "best",
    LAST: "last",
}
COSTS = (
    ("params", "parameters", ",.0f"),
    ("macs", "multiply-accumulates (MACs)", ",.0f"),
    ("latency_ms_b1", "latency of one image (ms)", ".3f"),
)


def summary(
    record: RunRecord, results: Sequence[EpisodeResult], known: Comparison | None
) -> Iterator[Block]:
    """The sentences and the table that stand first; nothing of a run without accuracies.

    `known`: the run beside published figures.
    """
    if not results:
        return
    yield Items([*_gains(record, results), *_price(record)])
    yield _side_by_side(record, results, known)


# -- what it gave ------------------------------------------------------------------------------


def _gains(record: RunRecord, results: Sequence[EpisodeResult]) -> Iterator[Text]:
    differences = section(record.section(CONTROL), "last_minus")
    for key, one in differences.items():
        sure, mark = _sure(one)
        yield (
            "Evolution gave ",
            Bold(f"{one['mean']:+.2f} ± {one['ci95']:.2f} points"),
            f" on {in_words(key)} over the seed network, trained on the same images for as many "
            f"steps without mutations: {'' if sure else 'not '}significant{mark}.",
        )
    if not differences and any(line["accepted"] for line in record.mutations):
        yield (
            "What evolution gave is not known: report.control=true trains the seed network, too, "
            "on the same images."
        )
    by_network = {(one.key, one.network): one for one in results}
    for (key, network), last in by_network.items():
        first = by_network.get((key, UNTRAINED))
        if network == LAST and first is not None:
            gain = last.accuracy - first.accuracy
            yield f"Training gave {gain:+.2f} points on {in_words(key)} over the untrained network."


def _sure(one: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a paired difference is significant, and by which p."""
    p = one.get("p_value")
    if finite(p):
        return p < SIGNIFICANCE, f" (p {'' if p < 0.001 else '= '}{p_value(p)})"
    return abs(one["mean"]) > one["ci95"], ""


# -- what it costs -----------------------------------------------------------------------------


def _price(record: RunRecord) -> Iterator[Text]:
    before, after = costs_of(record, CONTROL), costs_of(record, LAST)
    ratios = [
        f"{_times(after[key], before[key])} the {name}"
        for key, name in (("params", "parameters"), ("macs", "multiply-accumulates"))
        if finite(after.get(key)) and finite(before.get(key)) and before[key]
    ]
    if ratios and before.get("params") != after.get("params"):
        yield f"The network has {' and '.join(ratios)} of the one that it grew from."
    spent = record.section("training_macs").get("total")
    alone = record.section(CONTROL).get("training_macs")
    if finite(spent) and finite(alone) and alone:
        yield (
            f"Its training took {_times(spent, alone)} the multiply-accumulates of training the "
            f"seed network ({spent / 1e12:.3g} T and {alone / 1e12:.3g} T)."
        )


def _times(value: float, of: float) -> str:
    return f"{value / of:.2f} times"


def costs_of(record: RunRecord, network: str) -> Mapping[str, Any]:
    """What is known of the size and speed of a network.

    That at the start is the one before the first mutation; without any it is the last one.
    """
    last = {**record.section("architecture"), **record.section("efficiency")}
    if network == BEST:
        return record.section("best")
    if network == LAST:
        return last
    start = record.mutations[0]["before"] if record.mutations else last
    return {**start, "latency_ms_b1": None if record.mutations else last.get("latency_ms_b1")}


def _side_by_side(
    record: RunRecord, results: Sequence[EpisodeResult], known: Comparison | None
) -> Table:
    """The networks of a run, a column each, and what is published of the same method."""
    evaluated = {(one.key, one.network): one for one in results}
    networks = [name for name in SHOWN if any(network == name for _, network in evaluated)]
    beside = _published(known)
    keys = list(dict.fromkeys(one.key for one in results if one.network in SHOWN))
    lines: list[list[Text]] = [
        [
            f"{in_words(key)} (%)",
            *(_shown(evaluated.get((key, name))) for name in networks),
            *([beside.get(key, NOTHING)] if beside else []),
        ]
        for key in keys
    ]
    for quantity, name, form in COSTS:
        values = [costs_of(record, network).get(quantity) or None for network in networks]
        if any(finite(value) for value in values):
            shown = [format(value, form) if finite(value) else NOTHING for value in values]
            lines.append([name, *shown, *([NOTHING] if beside else [])])
    header = ["", *(SHOWN[name] for name in networks), *(["published"] if beside else [])]
    return Table.of(header, [LEFT, *[RIGHT] * (len(header) - 1)], lines)


def _published(known: Comparison | None) -> dict[str, str]:
    """What is published of the same method, network and data set, by episode list."""
    found = {}
    for table in () if known is None else known.tables:
        dataset, split, ways = table.setting[:3]
        for row in table.rows:
            for shots, accuracy in row.published.accuracy.items() if row.published else ():
                found[f"{dataset}/{split}/{ways}w{shots}s"] = f"{accuracy:.2f}"
    return found


def _shown(one: EpisodeResult | None) -> Text:
    if one is None:
        return NOTHING
    return f"{one.accuracy:.2f} ± {NOTHING if one.ci95 is None else f'{one.ci95:.2f}'}"


def in_words(key: str) -> str:
    """An episode list in words."""
    on = evaluated_on(key)
    return key if on is None else f"{on.dataset} {on.split}, {on.title}"
