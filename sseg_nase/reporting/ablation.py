"""What each part of the method is worth: configurations by their parts, and what they differ by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sseg_nase.config.ablations import Switches, switches_of
from sseg_nase.reporting.aggregate import LOSS, Aggregate, Side
from sseg_nase.rundir.config import config_of

PARTS: Mapping[str, str] = {
    "ssl": "self-supervision",
    "evolution": "evolution",
    "sparsity": "sparsity",
    "progression": "curriculum",
    "distillation": "distillation",
}


@dataclass(frozen=True)
class Line:
    """A configuration: its row of the summary, and of the comparisons with the reference.

    `difference`: in % points, of the configuration minus the reference; None where they were not
    compared.
    """

    side: Side
    switches: Switches
    summary: Mapping[str, Any]
    difference: float | None
    comparison: Mapping[str, Any] | None


@dataclass(frozen=True)
class Ablation:
    """The configurations on one episode list; `reference` is the one with most of the parts."""

    key: str
    network: str
    transductive: bool
    reference: Side
    lines: tuple[Line, ...]


def ablations(aggregate: Aggregate) -> list[Ablation]:
    """One per episode list and network on which configurations with different parts were evaluated.

    What a configuration consists of stands in its runs' config.yaml.
    """
    switches = _switches(aggregate)
    summary = [row for row in _rows(aggregate.summary) if row["key"] != LOSS]
    comparisons = _rows(aggregate.comparisons)
    found = []
    for place in dict.fromkeys(map(_place, summary)):
        rows = {
            Side(row["configuration"], row["method"]): row
            for row in summary
            if _place(row) == place and row["configuration"] in switches
        }
        if len({switches[side.configuration] for side in rows}) < 2:
            continue
        reference = max(rows, key=lambda side: sum(switches[side.configuration]))
        pairs = _against(reference, [row for row in comparisons if _place(row) == place])
        lines = tuple(
            Line(side, switches[side.configuration], row, *pairs.get(side, (None, None)))
            for side, row in rows.items()
        )
        found.append(Ablation(*place, reference, lines))
    return found


def _switches(aggregate: Aggregate) -> dict[str, Switches]:
    """By configuration, where a config can be read and all its runs have the same parts."""
    found: dict[str, set[Switches]] = {}
    for row in _rows(aggregate.runs[["configuration", "run"]].drop_duplicates()):
        config = config_of(Path(row["run"]))
        known = set() if config is None else {switches_of(config)}
        found.setdefault(row["configuration"], set()).update(known)
    return {name: next(iter(those)) for name, those in found.items() if len(those) == 1}


def _place(row: Mapping[str, Any]) -> tuple[str, str, bool]:
    return row["key"], row["network"], row["transductive"]


def _against(
    reference: Side, comparisons: Sequence[Mapping[str, Any]]
) -> dict[Side, tuple[float, Mapping[str, Any]]]:
    """What was compared with `reference`: the other minus it, and the row that says so."""
    found = {}
    for row in comparisons:
        a, b = Side(row["a"], row["method_a"]), Side(row["b"], row["method_b"])
        if reference == b:
            found[a] = row["difference"], row
        elif reference == a:
            found[b] = -row["difference"], row
    return found


def _rows(frame: Any) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]
