"""The comparison of runs with each other and with what is published.

Pure functions over run directories. Networks that were evaluated on the same classes stand in one
table if they have learned from the same kind of images and none or all of them look at the queries
together; accuracies, their differences and intervals are in percent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sseg_nase.finite import figure
from sseg_nase.reporting.aggregate import (
    SIGNIFICANCE,
    Entry,
    Evaluated,
    evaluations,
    other_images,
    same_episodes,
)
from sseg_nase.reporting.evaluated_on import evaluated_on
from sseg_nase.reporting.provenance import REGIMES, Provenance, provenance
from sseg_nase.reporting.published import WAYS, Published, corresponding, published
from sseg_nase.rundir.config import config_of
from sseg_nase.rundir.results import LAST, SECTIONS, EpisodeResult, read_results, section
from sseg_nase.rundir.status import FINISHED, status_of
from sseg_nase.statistics import PairedDifference, holm, paired_difference

REFERENCES = ("untrained", "pretrained")


class Setting(NamedTuple):
    """What accuracies must have in common to stand in one table, but for the shots."""

    dataset: str
    split: str
    ways: int
    transductive: bool
    regime: str


@dataclass(frozen=True)
class Cell:
    """One network on one episode list.

    `best`: significantly better than every other of its table. `untrained`, `pretrained`: the same
    network before any training, and before fine-tuning, where that was evaluated.
    """

    result: EpisodeResult
    best: bool = False
    untrained: float | None = None
    pretrained: float | None = None


@dataclass(frozen=True)
class Row:
    """One run in one table: `cells` by shots, and what is published of the same method."""

    run: int
    method: str
    backbone: str
    params: int | None
    flops: int | None
    resolution: int | None
    cells: Mapping[int, Cell]
    published: Published | None


@dataclass(frozen=True)
class Difference:
    """`run` minus `reference` on the same episodes; `p_holm`: adjusted for those of the table."""

    run: int
    reference: int
    shots: int
    mean: float
    ci95: float
    p: float
    p_holm: float
    episodes: int


@dataclass(frozen=True)
class Table:
    """The rows of one setting, and how they differ from the first run on the same classes."""

    setting: Setting
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]

    @property
    def shots(self) -> list[int]:
        """Of all rows."""
        return sorted({shots for row in self.rows for shots in row.cells})


@dataclass(frozen=True)
class Compared:
    """A run of the comparison; `number` as in the tables, images by source (None: not known)."""

    number: int
    folder: Path
    seed: int | None
    method: str
    regime: str
    images_seen: Mapping[str, int] | None


@dataclass(frozen=True)
class Comparison:
    """`alone`: what is published on the datasets of the tables and stands beside no run.

    `notes`: what could not be compared, and why.
    """

    runs: tuple[Compared, ...]
    tables: tuple[Table, ...]
    alone: tuple[Published, ...]
    notes: tuple[str, ...]


class _Read(NamedTuple):
    """A run as it was read: `evaluated` by key."""

    number: int
    origin: Provenance
    results: Mapping[str, Any]
    evaluated: Mapping[str, Evaluated]


class _Evaluation(NamedTuple):
    """One run on one episode list."""

    read: _Read
    shots: int
    key: str
    evaluated: Evaluated


def compare(runs: Sequence[Path], *, with_published: bool = True) -> Comparison:
    """Compare finished runs, numbered from 1 in the order given. Raises nothing."""
    notes: list[str] = []
    reads = [_read(number, run, notes) for number, run in enumerate(runs, start=1)]
    settings: dict[Setting, list[_Evaluation]] = defaultdict(list)
    for read in reads:
        for key, evaluated in read.evaluated.items():
            on = evaluated_on(key)
            if on is None or not on.ways:
                notes.append(f"run {read.number}: {key} is no episode list: left out.")
                continue
            transductive, regime = evaluated.result.transductive, read.origin.regime
            setting = Setting(on.dataset, on.split, on.ways, transductive, regime)
            settings[setting].append(_Evaluation(read, on.shots, key, evaluated))
    differences = _differences(settings, notes)
    order = {name: index for index, name in enumerate(REGIMES)}
    datasets = list(dict.fromkeys(setting.dataset for setting in settings))
    tables = [
        Table(
            setting,
            _rows(setting, settings[setting], with_published),
            tuple(differences.get(setting, ())),
        )
        for setting in sorted(
            settings, key=lambda p: (datasets.index(p.dataset), *p[1:4], order[p.regime])
        )
    ]
    beside = [row.published for table in tables for row in table.rows]
    alone = [one for one in published() if one.dataset in datasets and one not in beside]
    return Comparison(
        tuple(_compared(read, run) for read, run in zip(reads, runs, strict=True)),
        tuple(tables),
        tuple(alone) if with_published else (),
        tuple(dict.fromkeys(notes)),
    )


def _read(number: int, run: Path, notes: list[str]) -> _Read:
    results = read_results(run) or {}
    ended = status_of(run).get("status", FINISHED)
    if ended != FINISHED:
        notes.append(f"run {number} is {ended}, not {FINISHED}: its results are left out.")
        results = {}
    evaluated = evaluations(Entry(f"run {number}", _seed(run) or 0, run), results, notes, (LAST,))
    origin = provenance(run, results)
    return _Read(number, origin, results, {key: one for (key, _), one in evaluated.items()})


def _compared(read: _Read, run: Path) -> Compared:
    seen = section(read.results, "images_seen") or None
    return Compared(read.number, run, _seed(run), read.origin.method, read.origin.regime, seen)


def _seed(run: Path) -> int | None:
    seed = (config_of(run) or {}).get("seed")
    return seed if isinstance(seed, int) else None


# -- rows --------------------------------------------------------------------------------------


def _rows(setting: Setting, group: Sequence[_Evaluation], with_published: bool) -> tuple[Row, ...]:
    winners = _winners(_by_key(group))
    rows: dict[tuple[int, str], dict[int, Cell]] = defaultdict(dict)
    reads = {one.read.number: one.read for one in group}
    for one in group:
        method = one.read.origin.evaluated_by(one.evaluated.result.method, setting.dataset)
        wins = (one.key, one.read.number) in winners
        rows[one.read.number, method][one.shots] = _cell(one, wins)
    return tuple(
        _row(setting, reads[number], method, cells, with_published)
        for (number, method), cells in rows.items()
    )


def _cell(one: _Evaluation, best: bool) -> Cell:
    before = {
        name: figure(section(section(one.read.results, SECTIONS[name]), one.key).get("accuracy"))
        for name in REFERENCES
    }
    return Cell(one.evaluated.result, best, **before)


def _row(
    setting: Setting, read: _Read, method: str, cells: Mapping[int, Cell], with_published: bool
) -> Row:
    costs, origin = section(read.results, "efficiency"), read.origin
    macs = costs.get("macs")
    known = None
    if with_published and setting.ways == WAYS:
        known = corresponding(
            method,
            origin.backbone,
            origin.channels,
            dataset=setting.dataset,
            regime=setting.regime,
            transductive=setting.transductive,
        )
    return Row(
        run=read.number,
        method=method,
        backbone=origin.shown,
        params=costs.get("params"),
        flops=None if macs is None else 2 * macs,
        resolution=costs.get("resolution"),
        cells=dict(sorted(cells.items())),
        published=known,
    )


# -- differences -------------------------------------------------------------------------------


def _by_key(group: Sequence[_Evaluation]) -> dict[str, list[_Evaluation]]:
    found: dict[str, list[_Evaluation]] = defaultdict(list)
    for one in group:
        found[one.key].append(one)
    return found


def _winners(lists: Mapping[str, Sequence[_Evaluation]]) -> set[tuple[str, int]]:
    """The (episode list, run) of a table where a run is significantly better than every other.

    The pairs of all its lists are one family: each p-value is adjusted for their number.
    """
    pairs = [
        (key, a, b, found.p_value)
        for key, group in lists.items()
        for a, b in combinations(group, 2)
        if (found := _paired(a.evaluated, b.evaluated)) is not None
    ]
    adjusted = holm(np.array([p for *_, p in pairs], dtype=np.float64))
    beaten: dict[tuple[str, int], int] = defaultdict(int)
    for (key, a, b, _), p in zip(pairs, adjusted.tolist(), strict=True):
        if p < SIGNIFICANCE:
            beaten[key, max(a, b, key=lambda one: one.evaluated.result.accuracy).read.number] += 1
    return {(key, run) for (key, run), count in beaten.items() if count == len(lists[key]) - 1}


def _paired(a: Evaluated, b: Evaluated) -> PairedDifference | None:
    """a − b where both were evaluated on the same episodes."""
    if a.accuracies is None or b.accuracies is None or not same_episodes(a, b):
        return None
    return paired_difference(a.accuracies, b.accuracies)


def _differences(
    settings: Mapping[Setting, Sequence[_Evaluation]], notes: list[str]
) -> dict[Setting, list[Difference]]:
    """Of every run to the first one on the same list, adjusted for all that stand in one table.

    Regimes are told apart by where the difference stands; what is transductive is not compared
    with what is not.
    """
    lists: dict[tuple[str, bool], list[tuple[Setting, _Evaluation]]] = defaultdict(list)
    for setting, group in settings.items():
        for one in group:
            lists[one.key, setting.transductive].append((setting, one))
    known: dict[Setting, list[tuple[_Evaluation, _Evaluation, PairedDifference]]] = defaultdict(
        list
    )
    for (key, _), members in lists.items():
        (_, first), *others = sorted(members, key=lambda item: item[1].read.number)
        tested = [(*other, _paired(other[1].evaluated, first.evaluated)) for other in others]
        notes += [
            f"run {one.read.number}, {key}: it was evaluated on other images than run "
            f"{first.read.number}: the accuracies do not compare, and no difference is given."
            if other_images(one.evaluated, first.evaluated)
            else f"run {one.read.number}, {key}: it was not evaluated on the episodes of run "
            f"{first.read.number}, or they are not known: no difference."
            for _, one, difference in tested
            if difference is None
        ]
        for setting, one, diff in tested:
            if diff is not None:
                known[setting].append((one, first, diff))
    return {setting: _adjusted(family) for setting, family in known.items()}


def _adjusted(
    family: Sequence[tuple[_Evaluation, _Evaluation, PairedDifference]],
) -> list[Difference]:
    """The differences of one table, by run and shots, adjusted for their number."""
    p_holm = holm(np.array([diff.p_value for *_, diff in family], dtype=np.float64)).tolist()
    found = [
        Difference(
            run=one.read.number,
            reference=first.read.number,
            shots=one.shots,
            mean=diff.mean,
            ci95=diff.ci95,
            p=diff.p_value,
            p_holm=p,
            episodes=one.evaluated.result.episodes or 0,
        )
        for (one, first, diff), p in zip(family, p_holm, strict=True)
    ]
    return sorted(found, key=lambda one: (one.run, one.shots))


def records(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Every accuracy of the tables, measured and published, as one flat line."""
    folders = {run.number: str(run.folder) for run in comparison.runs}
    for table in comparison.tables:
        setting = table.setting
        for row in table.rows:
            for shots, cell in row.cells.items():
                known = row.published
                yield {
                    **setting._asdict(),
                    "shots": shots,
                    "run": row.run,
                    "method": row.method,
                    "backbone": row.backbone,
                    "params": row.params,
                    "flops": row.flops,
                    "resolution": row.resolution,
                    "accuracy": cell.result.accuracy,
                    "ci95": cell.result.ci95,
                    "episodes": cell.result.episodes or 0,
                    "judged_by": cell.result.method,
                    "best": cell.best,
                    "untrained": cell.untrained,
                    "pretrained": cell.pretrained,
                    "published": None if known is None else known.accuracy.get(shots),
                    "source": None if known is None else known.source,
                    "folder": folders[row.run],
                }
    for one in comparison.alone:
        for shots, accuracy in one.accuracy.items():
            yield {
                "dataset": one.dataset,
                "split": "test",
                "ways": WAYS,
                "transductive": one.transductive,
                "regime": one.regime,
                "shots": shots,
                "method": one.method,
                "backbone": one.backbone_name,
                "params": one.params,
                "published": accuracy,
                "source": one.source,
            }
