"""Whether a search was worth it: its answer against random search's and the largest network.

All were trained from scratch with the same seeds and evaluated on the same episodes (of a closed
set, images), so differences are paired, over seeds and episodes, and Holm-corrected for the number
of rivals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sseg_nase.config.groups.evaluation import EPISODES
from sseg_nase.files import read_json
from sseg_nase.finite import figure
from sseg_nase.reporting.aggregate import Entry, Evaluated, evaluations, same_episodes
from sseg_nase.rundir.config import config_of
from sseg_nase.rundir.results import LAST, read_results
from sseg_nase.search import Log, Scored
from sseg_nase.searches.analysis import leading
from sseg_nase.searches.answer import ANSWER, BEST, FINAL, FRONT, LARGEST, OF_RANDOM, SAME
from sseg_nase.searches.progress import short
from sseg_nase.statistics import crossed_difference, holm, mean_t95, paired_difference

SIGNIFICANCE = 0.05
ACCURACY = "accuracy"
NAMES = {
    BEST: "the answer",
    FRONT: "front",
    OF_RANDOM: "random search's answer",
    LARGEST: "the largest network",
}


@dataclass(frozen=True)
class Standing:
    """One point, trained from scratch: means over its seeds, 95 % intervals by Student's t.

    `scores` by seed, of the trainings that ended well; `mean` and `ci95` are of the leading goal,
    NaN where there is none of it.
    """

    role: str
    candidate: int | None
    point: Mapping[str, Any]
    scores: Mapping[int, Scored]
    failed: int
    mean: float
    ci95: float

    def average(self, name: str) -> float:
        """Return the mean of a score over the seeds, NaN where one lacks it."""
        values = [one.scores.get(name, float("nan")) for one in self.scores.values()]
        return float(np.mean(values)) if values else float("nan")

    @property
    def training_macs(self) -> float:
        """Of one training, the mean over the seeds."""
        return float(np.mean([one.cost.training_macs for one in self.scores.values()] or [0.0]))


@dataclass(frozen=True)
class Comparison:
    """The answer minus a rival, in points of accuracy; `p` is Holm's over all rivals.

    `over`: `seeds and episodes`, or `episodes` where there is one seed; `images` for `episodes` of
    a closed set.
    """

    role: str
    difference: float
    ci95: float
    p: float
    seeds: int
    episodes: int
    over: str


@dataclass(frozen=True)
class Outcome:
    """What came out of the trainings from scratch.

    `closed`: on a closed set, whose val images are the same for all that is evaluated. `overrides`:
    what they had, and candidates had not.
    """

    seeds: Sequence[int]
    random_candidates: int
    standings: Sequence[Standing]
    comparisons: Sequence[Comparison]
    notes: Sequence[str]
    goal: str
    closed: bool = False
    overrides: Sequence[str] = ()

    @property
    def how_many(self) -> str:
        """How many seeds each has."""
        return f"{len(self.seeds)} seed" + "s" * (len(self.seeds) != 1)

    @property
    def with_overrides(self) -> str:
        """What they had and candidates had not, behind a comma."""
        return f", with {' '.join(self.overrides)}" if self.overrides else ""

    @property
    def evaluated_on(self) -> str:
        """What they were evaluated on."""
        if self.closed:
            return "the images of val that the answer was chosen by"
        return "other episodes of val than the candidates"

    @property
    def verdict(self) -> str:
        """Say in a sentence whether the search was worth it."""
        same = [note for note in self.notes if note in SAME]
        if not self.comparisons:
            if same:
                return f"the search is not shown to be worth it: {' and '.join(same)}"
            why = "; ".join(self.notes) or "there is nothing to compare with"
            return f"whether the search was worth it is not known: {why}"
        worse = [one for one in self.comparisons if one.p < SIGNIFICANCE and one.difference < 0]
        if worse:
            better = " and ".join(NAMES[one.role] for one in worse)
            return f"the search was not worth it: {better} did better at the same training macs"
        unclear = [one for one in self.comparisons if not one.p < SIGNIFICANCE]
        if unclear:
            alike = " and ".join(NAMES[one.role] for one in unclear)
            return (
                f"the search is not shown to be worth it: between its answer and {alike} there is "
                "no significant difference"
            )
        beaten = " and ".join(NAMES[one.role] for one in self.comparisons)
        if same:
            return (
                f"the search is not shown to be worth it: its answer beats {beaten}, but {same[0]}"
            )
        return f"the search was worth it: its answer beats {beaten} at the same training macs"


def outcome(folder: Path) -> Outcome | None:
    """Return what the folder of a search tells of its answer; None where nothing was trained."""
    told = read_json(folder / ANSWER)
    if not told or not (folder / FINAL).exists():
        return None
    log, notes = Log.read(folder / FINAL), list(told["notes"])
    goal = leading(log)
    standings = [_standing(log, goal, one) for one in told["contenders"]]
    evaluation = (config_of(folder) or {}).get("evaluation", {})
    closed = evaluation.get("name", EPISODES) != EPISODES
    way, unit = log.objectives.goals[goal], "images" if closed else "episodes"
    comparisons = _compared(standings, goal, way, notes, unit)
    return Outcome(
        told["seeds"],
        told["random_candidates"],
        standings,
        comparisons,
        notes,
        goal,
        closed,
        told.get("overrides", ()),
    )


def outcome_lines(found: Outcome | None) -> list[str]:
    """Return what the console says of an outcome."""
    if found is None:
        return []
    lines = [
        f"trained from scratch with {found.how_many}{found.with_overrides}, on "
        f"{found.evaluated_on}:"
    ]
    for one in found.standings:
        failed = f", {one.failed} failed" if one.failed else ""
        name = NAMES[one.role] if one.candidate is None else f"{NAMES[one.role]} ({one.candidate})"
        lines.append(
            f"  {name}: {found.goal} {with_error(one.mean, one.ci95)}, "
            f"{short(one.average('params'))} params, {one.training_macs:.3g} training macs{failed}"
        )
    for each in found.comparisons:
        lines.append(
            f"  the answer minus {NAMES[each.role]}: {each.difference:+.2f} ± {each.ci95:.2f} "
            f"points over {each.over}, p = {each.p:.2g}"
        )
    return [*lines, *(f"  {note}" for note in found.notes), found.verdict]


def with_error(mean: float, ci95: float) -> str:
    """Return `12.34 ± 0.56`; one value has no interval."""
    return f"{mean:.2f}" + ("" if figure(ci95) is None else f" ± {ci95:.2f}")


def _standing(log: Log, goal: str, told: Mapping[str, Any]) -> Standing:
    results = [log.result(number) for number in told["trainings"]]
    well = {
        int(one.candidate.fidelity["seed"]): one
        for one in results
        if one is not None and one.error is None
    }
    values = np.array([one.scores[goal] for one in well.values()])
    mean, ci95 = mean_t95(values) if len(values) else (float("nan"), float("nan"))
    return Standing(
        told["role"],
        told["candidate"],
        told["point"],
        well,
        sum(one is not None and one.error is not None for one in results),
        mean,
        ci95,
    )


def _compared(
    standings: Sequence[Standing], goal: str, way: str, notes: list[str], unit: str
) -> list[Comparison]:
    """The answer against each rival, where the goal is an accuracy of episodes, or images."""
    rivals = [one for one in standings if one.role in (OF_RANDOM, LARGEST)]
    if not rivals:
        return []
    if goal.partition("/")[0] != ACCURACY or way != "max":
        notes.append(f"the leading goal, {goal}, is no accuracy to be raised: no test over {unit}")
        return []
    wanted = goal.partition("/")[2]
    (answer,) = (one for one in standings if one.role == BEST)
    found = []
    for rival in rivals:
        rows = []
        for seed in sorted({*answer.scores} & {*rival.scores}):
            sides = [_evaluated(one, seed, wanted, notes) for one in (answer, rival)]
            if (row := _difference(*sides)) is None:
                notes.append(f"{NAMES[rival.role]}, seed {seed}: not evaluated on the same {unit}")
            else:
                rows.append(row)
        if not rows or len({len(row) for row in rows}) > 1:
            notes.append(f"{NAMES[rival.role]}: no training to compare the answer with")
            continue
        found.append(_tested(rival.role, np.stack(rows), unit))
    adjusted = holm(np.array([one.p for one in found]))
    return [
        Comparison(**{**vars(one), "p": float(p)}) for one, p in zip(found, adjusted, strict=True)
    ]


def _evaluated(one: Standing, seed: int, wanted: str, notes: list[str]) -> dict[str, Evaluated]:
    """What a training was evaluated on, by key: all settings, or the one that is the goal."""
    run = Path(str(one.scores[seed].run))
    entry = Entry(NAMES[one.role], seed, run)
    evaluated = evaluations(entry, read_results(run) or {}, notes, [LAST])
    return {key: each for (key, _), each in evaluated.items() if not wanted or key == wanted}


def _difference(
    ours: Mapping[str, Evaluated], theirs: Mapping[str, Evaluated]
) -> np.ndarray | None:
    """The differences `[episodes]` of the mean over the settings; None where they do not pair."""
    if not ours or ours.keys() != theirs.keys():
        return None
    rows = []
    for key, one in ours.items():
        other = theirs[key]
        if one.accuracies is None or other.accuracies is None or not same_episodes(one, other):
            return None
        rows.append(one.accuracies - other.accuracies)
    return np.mean(rows, axis=0) if len({len(row) for row in rows}) == 1 else None


def _tested(role: str, differences: np.ndarray, unit: str) -> Comparison:
    """`differences` `[seeds, episodes]`."""
    seeds, episodes = differences.shape
    if seeds == 1:
        alone = paired_difference(differences[0], np.zeros(episodes))
        return Comparison(role, alone.mean, alone.ci95, alone.p_value, 1, episodes, unit)
    both = crossed_difference(differences)
    return Comparison(
        role, both.mean, both.ci95, both.p_value, seeds, episodes, f"seeds and {unit}"
    )
