"""Accuracy by the number of labels: configurations of a sweep that differ in it.

`finetune.fraction` and `finetune.samples` are what a classifier of a closed set may see. What else
tells configurations apart is a method; a method has one line of the table and of the figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml

from sseg_nase.finite import finite
from sseg_nase.reporting.aggregate import OVER_BOTH, SIGNIFICANCE, Aggregate
from sseg_nase.reporting.document import (
    LEFT,
    NOTHING,
    Block,
    Column,
    Heading,
    Paragraph,
    Row,
    Table,
    framed,
    rows_of,
)
from sseg_nase.reporting.evaluated_on import evaluated_on
from sseg_nase.rundir.config import config_of
from sseg_nase.rundir.results import LAST, section
from sseg_nase.statistics import holm

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("finetune.fraction", "finetune.samples")
SIGNIFICANT = "*"


class Labels(NamedTuple):
    """How many labels: a `fraction` of all, or so many `samples`, where these are not 0."""

    samples: int
    fraction: float

    def __str__(self) -> str:
        return (
            f"{self.samples:,} labels" if self.samples else f"{100 * self.fraction:g} % of labels"
        )

    @property
    def at(self) -> float:
        """Where it stands on an axis: samples, or percent."""
        return float(self.samples or 100 * self.fraction)


class Method(NamedTuple):
    """What configurations have in common but for the labels; `backbone`: its name in conf/."""

    name: str
    backbone: str


@dataclass(frozen=True)
class Published:
    """What a source says of a network with few labels on test images, in percent."""

    method: str
    backbone: str
    params: int
    flops: int
    dataset: str
    accuracy: float
    source: str
    fraction: float = 1.0
    samples: int = 0

    @property
    def labels(self) -> Labels:
        """How many it has seen."""
        return Labels(self.samples, self.fraction)


@cache
def published() -> tuple[Published, ...]:
    """All of published_few_labels.yaml, in its order."""
    text = Path(__file__).with_name("published_few_labels.yaml").read_text(encoding="utf-8")
    return tuple(Published(**entry) for entry in yaml.safe_load(text))


@dataclass(frozen=True)
class FewLabels:
    """The methods that were evaluated on `key`, each at several amounts of labels.

    `rows`: those of the summary, of the last network. `differences`: the first method minus every
    other, with `p`, adjusted by Holm for all of them.
    """

    key: str
    amounts: tuple[Labels, ...]
    rows: Mapping[Method, Mapping[Labels, Row]]
    differences: Mapping[Method, Mapping[Labels, Row]]

    @property
    def methods(self) -> list[Method]:
        """In the order of the sweep."""
        return list(self.rows)


def few_labels(aggregate: Aggregate) -> list[FewLabels]:
    """One per key on which a method was evaluated at two amounts of labels or more."""
    known = _known(aggregate)
    summary = [row for row in rows_of(aggregate.summary) if row["network"] == LAST]
    compared = [row for row in rows_of(aggregate.comparisons) if row["network"] == LAST]
    found = []
    for key in dict.fromkeys(row["key"] for row in summary):
        rows: dict[Method, dict[Labels, Row]] = {}
        for row in summary:
            if row["key"] == key and row["configuration"] in known:
                method, labels = known[row["configuration"]]
                rows.setdefault(method, {})[labels] = row
        amounts = sorted({labels for by_labels in rows.values() for labels in by_labels})
        if max(map(len, rows.values()), default=0) < 2:
            continue
        pairs = [row for row in compared if row["key"] == key]
        differences = _differences(list(rows), pairs, known)
        found.append(FewLabels(key, tuple(amounts), rows, differences))
    return found


def _known(aggregate: Aggregate) -> dict[str, tuple[Method, Labels]]:
    """By configuration, its method and how many labels it has seen, where its runs tell."""
    found = {}
    for row in rows_of(aggregate.runs[["configuration", "run"]]):
        name = row["configuration"]
        config = None if name in found else config_of(Path(row["run"]))
        tuning = section(config or {}, "finetune")
        fraction, samples = tuning.get("fraction"), tuning.get("samples")
        if not finite(fraction) or not finite(samples):
            continue
        words = [word for word in name.split(" ") if word.partition("=")[0] not in KEYS]
        backbone = str(section(config or {}, "backbone").get("name", ""))
        method = Method(" ".join(words).removeprefix("backbone=") or backbone, backbone)
        found[name] = method, Labels(int(samples), float(fraction))
    return found


def _differences(
    methods: Sequence[Method],
    pairs: Sequence[Row],
    known: Mapping[str, tuple[Method, Labels]],
) -> Mapping[Method, Mapping[Labels, Row]]:
    found: dict[Method, dict[Labels, dict[str, float]]] = {method: {} for method in methods[1:]}
    for row in pairs:
        if row["a"] not in known or row["b"] not in known:
            continue
        (a, at_a), (b, at_b) = known[row["a"]], known[row["b"]]
        if at_a != at_b or a == b or methods[0] not in (a, b):
            continue
        other, sign = (b, 1) if a == methods[0] else (a, -1)
        test = "seeds_episodes" if row["over"] == OVER_BOTH else "episodes"
        found[other][at_a] = {
            "difference": sign * row["difference"],
            "ci95": row[f"ci95_{test}"],
            "p": row[f"p_{test}"],
        }
    family = [row for by_labels in found.values() for row in by_labels.values()]
    adjusted = holm(np.array([row["p"] for row in family], dtype=np.float64))
    for row, p in zip(family, adjusted.tolist(), strict=True):
        row["p"] = p
    return found


def records(found: Sequence[FewLabels]) -> pd.DataFrame:
    """Every accuracy that was measured, and every published one, as one flat line."""
    lines: list[dict[str, Any]] = [
        {
            "key": one.key,
            "method": method.name,
            "backbone": method.backbone,
            "fraction": labels.fraction,
            "samples": labels.samples,
            **{name: row[name] for name in ("mean", "ci95", "seeds", "params")},
            "flops": 2 * row["macs"],
        }
        for one in found
        for method, by_labels in one.rows.items()
        for labels, row in by_labels.items()
    ]
    lines += [
        {
            "key": one.key,
            "method": each.method,
            "backbone": each.backbone,
            "fraction": each.fraction,
            "samples": each.samples,
            "params": each.params,
            "flops": each.flops,
            "published": each.accuracy,
            "source": each.source,
        }
        for one in found
        for each in _published_of(one)
    ]
    return framed(lines, [*lines[0], "published", "source"])


# -- the document ------------------------------------------------------------------------------


def blocks(aggregate: Aggregate) -> Iterator[Block]:
    """The table of every key: measured, then what is published, in columns of its own."""
    found = few_labels(aggregate)
    if found:
        yield Heading(2, "Accuracy by the number of labels")
    for one in found:
        yield Heading(3, one.key)
        yield table(one)
        yield Paragraph(
            "Measured: accuracy in % ± 95 % CI over seeds (n). Params and FLOPs (2 × "
            "multiply-accumulates) are the backbone's. The labels are drawn by the seed, the same "
            "for every method."
        )
        if any(one.differences.values()):
            yield Paragraph(
                f"{one.methods[0].name} minus the others in % points, paired on the same images, "
                f"± 95 % CI over seeds and images where there are two common seeds; {SIGNIFICANT}: "
                "p < 0.05, adjusted by Holm for all of this table."
            )
            yield _difference_table(one)
        if _published_of(one):
            yield Paragraph(
                "Published: as the source has it, on test images of the whole data set; another "
                "training, and networks that are counted otherwise."
            )
            yield published_table(one)


def table(one: FewLabels) -> Table:
    """A row per method, a column per amount of labels; what is published has columns of its own."""
    known = {(each.backbone, each.labels): each.accuracy for each in _published_of(one)}
    beside = sorted({labels for _, labels in known if labels in one.amounts})
    rows = [
        {
            "method": method.name,
            "params": _mean(by_labels, "params"),
            "flops": 2 * _mean(by_labels, "macs"),
            **{
                f"{name}_{number}": by_labels[labels][name] if labels in by_labels else None
                for number, labels in enumerate(one.amounts)
                for name in ("mean", "ci95", "ci95_episodes", "seeds")
            },
            **{f"published_{labels}": known.get((method.backbone, labels)) for labels in beside},
        }
        for method, by_labels in one.rows.items()
    ]
    columns = [
        Column("method", lambda row: row["method"], LEFT),
        Column("params", partial(_count, "params")),
        Column("FLOPs", partial(_count, "flops")),
        *(
            Column(f"{labels} (%)", partial(_accuracy, number))
            for number, labels in enumerate(one.amounts)
        ),
        *(
            Column(f"{labels}, published (%)", partial(_approximately, f"published_{labels}"))
            for labels in beside
        ),
    ]
    caption = f"Accuracy in % ± 95 % CI by the number of labels: {one.key}."
    return Table(framed(rows, list(rows[0])), columns, caption, ["n: seeds."])


def published_table(one: FewLabels) -> Table:
    """What is published of the data set of `one`: never in a column with what was measured."""
    found = _published_of(one)
    ours = {method.backbone: method.name for method in one.methods}
    rows = [{**vars(each), "ours": ours.get(each.backbone), "at": each.labels} for each in found]
    columns = [
        Column("published method", lambda row: row["method"], LEFT),
        Column("here", lambda row: row["ours"] or NOTHING, LEFT),
        Column("params", partial(_count, "params")),
        Column("FLOPs", partial(_count, "flops")),
        Column("labels", lambda row: str(row["at"])),
        Column("published (%)", partial(_approximately, "accuracy")),
        Column("source", lambda row: row["source"], LEFT),
    ]
    return Table(framed(rows, list(rows[0])), columns, "Published accuracy with few labels.")


def _published_of(one: FewLabels) -> list[Published]:
    on = evaluated_on(one.key)
    assert on is not None
    return [each for each in published() if each.dataset == on.dataset]


def _difference_table(one: FewLabels) -> Table:
    lines = [
        [
            method.name,
            *(_difference(differences.get(labels)) for labels in one.amounts),
        ]
        for method, differences in one.differences.items()
    ]
    header = [f"{one.methods[0].name} minus", *map(str, one.amounts)]
    return Table.of(header, [LEFT, *["right"] * len(one.amounts)], lines)


def _difference(row: Row | None) -> str:
    if row is None:
        return NOTHING
    mark = SIGNIFICANT if row["p"] < SIGNIFICANCE else ""
    return f"{row['difference']:+.2f} ± {row['ci95']:.2f}{mark}"


def _mean(by_labels: Mapping[Labels, Row], name: str) -> float:
    values = [row[name] for row in by_labels.values() if finite(row[name])]
    return math.fsum(values) / len(values) if values else math.nan


def _count(name: str, row: Row) -> str:
    return f"{row[name]:,.0f}" if finite(row[name]) else NOTHING


def _approximately(name: str, row: Row) -> str:
    return f"~{row[name]:g}" if finite(row[name]) else NOTHING


def _accuracy(number: int, row: Row) -> str:
    mean = row[f"mean_{number}"]
    if not finite(mean):
        return NOTHING
    half = half_width(
        {name: row[f"{name}_{number}"] for name in ("seeds", "ci95", "ci95_episodes")}
    )
    return f"{mean:.2f} ± {half:.2f} (n={row[f'seeds_{number}']})"


def half_width(row: Mapping[str, Any]) -> float:
    """Of the 95 % interval: over seeds, of one seed over its images."""
    half = row["ci95_episodes"] if row["seeds"] == 1 else row["ci95"]
    return float(half) if finite(half) else math.nan
