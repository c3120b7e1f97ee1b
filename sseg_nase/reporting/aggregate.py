"""The results of many runs: per configuration over its seeds, and every pair of configurations.

Pure functions over run directories. What a run lacks is noted, and left out of what needs it.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sseg_nase.finite import figure
from sseg_nase.rundir.config import read_config
from sseg_nase.rundir.episodes import read_episodes
from sseg_nase.rundir.events import is_event, salvaged_events
from sseg_nase.rundir.names import EVENTS
from sseg_nase.rundir.results import (
    BEST,
    LAST,
    NETWORKS,
    EpisodeResult,
    accuracies_of,
    doubts_of,
    episode_result,
    read_results,
    section,
)
from sseg_nase.rundir.status import FINISHED, read_status
from sseg_nase.rundir.unreadable import UnreadableError
from sseg_nase.statistics import crossed_difference, holm, mean_t95, paired_difference

if TYPE_CHECKING:
    import pandas as pd

RUN_COLUMNS = (
    "configuration", "seed", "key", "network", "accuracy", "ci95", "episodes", "method",
    "transductive", "params", "macs", "latency_ms_b1", "training_macs", "loss_best", "loss_last",
    "run",
)  # fmt: skip
SUMMARY_COLUMNS = (
    "configuration", "key", "network", "method", "transductive", "seeds", "mean", "ci95", "std",
    "min", "max", "ci95_episodes", "params", "macs", "training_macs",
)  # fmt: skip
COMPARISON_COLUMNS = (
    "key", "network", "transductive", "a", "method_a", "b", "method_b", "difference",
    "ci95_episodes", "p_episodes", "p_episodes_holm",
    "ci95_seeds_episodes", "p_seeds_episodes", "p_seeds_episodes_holm",
    "seeds", "episodes", "significant", "over",
)  # fmt: skip

LOSS = "pretrain/loss"
SIGNIFICANCE = 0.05
OVER_EPISODES, OVER_BOTH = "episodes", "seeds and episodes"
LARGEST_ROUNDING = 1e-3  # percent, between results.json and the float32 of episodes.npz
MOST_NAMED = 6  # pairs in one note
# What an episode list follows from, with the key and the number of episodes, and the images. The
# other shots of a run have lists of their own.
LIST_SETTINGS = ("seed", "ways", "queries", "episodes", "split", "datasets")
BALANCE_SETTINGS = {"query_balance": "balanced", "dirichlet_alpha": None}  # of older runs too
IMAGE_SETTINGS = ("root", "split_by", "split_fractions", "split_seed")
CLASS_SETTINGS = ("rotations",)  # not in older runs
PLACE_SETTING = "dataset.root"

Setting = tuple[str, str]  # dotted key, value as JSON text


@dataclass(frozen=True)
class Entry:
    """One run of a sweep: which configuration it is of, with which seed, and its directory."""

    configuration: str
    seed: int
    run: Path


@dataclass(frozen=True)
class Aggregate:
    """`runs`, `summary` and `comparisons`, with the columns of this module's tuples of that name.

    Accuracies, their differences and intervals are in percent, losses in nats. `notes`: what was
    left out, and why.
    """

    runs: pd.DataFrame
    summary: pd.DataFrame
    comparisons: pd.DataFrame
    notes: tuple[str, ...]


class Evaluated(NamedTuple):
    """One network of one run on one episode list, and what it has cost (NaN: not known).

    `accuracies` `[episodes]` where they are known; `settings`: what the episode list follows from,
    where config.yaml tells; `images`: the checksum of the images, where the run has recorded it.
    """

    result: EpisodeResult
    params: float
    macs: float
    training_macs: float
    latency_ms: float
    accuracies: np.ndarray | None
    settings: frozenset[Setting] | None
    images: str | None = None


class Found(NamedTuple):
    """What one finished run says: `evaluated` by key and network, losses in nats (NaN: none)."""

    entry: Entry
    evaluated: dict[tuple[str, str], Evaluated]
    loss_best: float
    loss_last: float


class Side(NamedTuple):
    """One side of a comparison; for inductive and transductive evaluations they are apart."""

    configuration: str
    method: str


def aggregate(entries: Iterable[Entry]) -> Aggregate:
    """Read every finished run of `entries` and compare the configurations. Raises nothing.

    Configurations stand in the order of their first entries, keys in that of results.json.
    """
    notes: list[str] = []
    entries = list(entries)
    runs = _once_each(
        [found for entry in entries if (found := _read(entry, notes)) is not None], notes
    )
    order = {
        name: index for index, name in enumerate(dict.fromkeys(e.configuration for e in entries))
    }
    runs = _on_the_same_images(runs, notes)
    runs.sort(key=lambda run: (order[run.entry.configuration], run.entry.seed))
    import pandas as pd

    return Aggregate(
        pd.DataFrame(list(_run_rows(runs)), columns=list(RUN_COLUMNS)),
        pd.DataFrame(list(_summary_rows(runs)), columns=list(SUMMARY_COLUMNS)),
        pd.DataFrame(_comparison_rows(runs, notes), columns=list(COMPARISON_COLUMNS)),
        tuple(dict.fromkeys(notes)),
    )


# -- reading -----------------------------------------------------------------------------------


def _once_each(runs: Sequence[Found], notes: list[str]) -> list[Found]:
    """The first finished run of every configuration and seed."""
    kept: dict[tuple[str, int], Found] = {}
    for run in runs:
        first = kept.setdefault((run.entry.configuration, run.entry.seed), run)
        if first is not run:
            notes.append(
                f"{_name(run.entry)}: there is more than one finished run; {first.entry.run} "
                f"counts, {run.entry.run} is left out."
            )
    return list(kept.values())


def _on_the_same_images(runs: Sequence[Found], notes: list[str]) -> list[Found]:
    """Without what a run of a configuration has evaluated on other images than its first one."""
    first: dict[tuple[str, str], tuple[Found, str]] = {}
    kept = []
    for run in runs:
        evaluated = dict(run.evaluated)
        for (key, network), one in run.evaluated.items():
            if one.images is None:
                continue
            known, images = first.setdefault((run.entry.configuration, key), (run, one.images))
            if images != one.images:
                del evaluated[key, network]
                notes.append(
                    f"{_name(run.entry)}, {key}: it was evaluated on other images than "
                    f"{_name(known.entry)}: left out of the mean and of all comparisons."
                )
        kept.append(run._replace(evaluated=evaluated))
    return kept


def _read(entry: Entry, notes: list[str]) -> Found | None:
    status, results = read_status(entry.run), read_results(entry.run)
    if status is not None and status.get("status") != FINISHED:
        notes.append(f"{_name(entry)} is {status.get('status')}, not {FINISHED}: left out.")
        return None
    if results is None or not isinstance(results.get("fewshot"), dict):
        notes.append(f"{_name(entry)} has no results.json that can be read: left out.")
        return None
    if status is None:
        notes.append(
            f"{_name(entry)} has no status.json that can be read: taken for FINISHED, because "
            "there is a results.json."
        )
    return Found(entry, evaluations(entry, results, notes), *_losses(entry, notes))


def evaluations(
    entry: Entry,
    results: Mapping[str, Any],
    notes: list[str],
    networks: Sequence[str] = NETWORKS,
) -> dict[tuple[str, str], Evaluated]:
    """What `results` (results.json) says of `networks`, by key and network; also of closed sets.

    With the accuracies of every episode where episodes.npz and config.yaml have what belongs to
    them; why they have not is added to `notes`.
    """
    settings = _settings(entry.run)
    if settings is None:
        notes.append(f"{_name(entry)} has no config.yaml that can be read: not compared.")
    try:
        accuracies = read_episodes(entry.run)
    except UnreadableError as error:
        accuracies = {network: {} for network in NETWORKS}
        notes.append(
            f"{_name(entry)} {error} (written by an older version, or damaged): not compared."
        )
        settings = None
    evaluated = {}
    for network in networks:
        for key, result in accuracies_of(results, network).items():
            about = f"{_name(entry)}, {key}, {network} network"
            one = _evaluated(results, network, key, result)
            if one is None:
                notes.append(f"{about}: results.json holds no accuracy: left out.")
                continue
            for doubt in doubts_of(result):
                notes.append(f"{about}: the accuracy counts, but means little, because {doubt}.")
            if settings is not None:
                known = accuracies[network].get(key)
                reason = _unfit(one.result, known)
                if reason is None:
                    one = one._replace(accuracies=known, settings=_of_list(settings, key))
                else:
                    notes.append(f"{about}: {reason}: not compared.")
            evaluated[key, network] = one._replace(images=_images(results, key))
    return evaluated


def same_episodes(a: Evaluated, b: Evaluated) -> bool:
    """Whether both are known to have been evaluated on one and the same episode list.

    Where the checksums of the images are known they count, and not the folder they lay in.
    """
    if a.settings is None or b.settings is None or a.result.episodes != b.result.episodes:
        return False
    if a.images is None or b.images is None:
        return a.settings == b.settings
    ours, theirs = ({s for s in one.settings or () if s[0] != PLACE_SETTING} for one in (a, b))
    return a.images == b.images and ours == theirs


def other_images(a: Evaluated, b: Evaluated) -> bool:
    """Whether the two are known to have been evaluated on images that differ."""
    return None not in (a.images, b.images) and a.images != b.images


def _images(results: Mapping[str, Any], key: str) -> str | None:
    """The checksum of the images of an episode list, which older runs have not recorded."""
    evaluated = section(section(results, "data"), "evaluated")
    found = section(evaluated, key.rpartition("/")[0]).get("identity")
    return found if isinstance(found, str) else None


def _evaluated(results: Mapping[str, Any], network: str, key: str, value: Any) -> Evaluated | None:
    """What results.json says of one network on one list; None where that is no result."""
    result = episode_result(key, network, value)
    if result is None:
        return None
    if result.episodes is None and (images := figure(value.get("images"))) is not None:
        result = result._replace(episodes=int(images))  # of a closed set an image is an episode
    costs = section(results, "efficiency" if network == LAST else "best")
    return Evaluated(
        result,
        params=_number(costs.get("params")),
        macs=_number(costs.get("macs")),
        training_macs=_number(section(results, "training_macs").get("total")),
        latency_ms=_number(costs.get("latency_ms_b1")) or math.nan,  # 0 is no time
        accuracies=None,
        settings=None,
    )


def _unfit(result: EpisodeResult, accuracies: np.ndarray | None) -> str | None:
    """Why `accuracies` are not those of the result, in words; None where they are."""
    if accuracies is None:
        return "episodes.npz does not have it"
    if accuracies.ndim != 1 or not np.isfinite(accuracies).all():
        return "episodes.npz holds something else than accuracies"
    if len(accuracies) != result.episodes or len(accuracies) < 2:
        return (
            f"episodes.npz has {len(accuracies)} episodes where results.json has {result.episodes}"
        )
    if abs(accuracies.mean() - result.accuracy) > LARGEST_ROUNDING:
        return (
            f"the mean of episodes.npz is {accuracies.mean():.2f} % where results.json has "
            f"{result.accuracy:.2f} %"
        )
    return None


def _settings(run: Path) -> dict[str, Any] | None:
    """`evaluation.*` and `dataset.*` of config.yaml by their dotted keys."""
    try:
        config = read_config(run)
        evaluation = config["evaluation"]
        found = {f"evaluation.{key}": evaluation[key] for key in LIST_SETTINGS}
        balance = BALANCE_SETTINGS
        if evaluation.get("query_balance", "balanced") != "balanced":
            balance = {key: evaluation[key] for key in BALANCE_SETTINGS}
        found |= {f"evaluation.{key}": value for key, value in balance.items()}
        dataset = {"root": None, **config["dataset"]}  # images without files have no root
        kept = ("name", "image_size", *IMAGE_SETTINGS)
        found |= {f"dataset.{key}": dataset[key] for key in kept}
        return found | {f"dataset.{key}": bool(dataset.get(key)) for key in CLASS_SETTINGS}
    except (UnreadableError, KeyError, TypeError):
        return None


def _of_list(settings: Mapping[str, Any], key: str) -> frozenset[Setting]:
    """What the episode list `key` follows from: the run's own dataset says where its images are.

    Another dataset of `evaluation.datasets` is read as conf/ has it.
    """
    names = [f"evaluation.{name}" for name in (*LIST_SETTINGS, *BALANCE_SETTINGS)]
    names.append("dataset.image_size")
    if key.split("/")[0] == settings["dataset.name"]:
        names += [f"dataset.{name}" for name in (*IMAGE_SETTINGS, *CLASS_SETTINGS)]
    return frozenset((name, json.dumps(settings[name], default=str)) for name in names)


def _losses(entry: Entry, notes: list[str]) -> tuple[float, float]:
    """Lowest and last `pretrain/loss` of events.jsonl; NaN where nothing was trained.

    After a resume some steps stand there twice: the later line counts.
    """
    by_step: dict[int, float] = {}

    def lost(odd: int) -> None:
        notes.append(f"{_name(entry)}: {odd} lines of {EVENTS} cannot be read: skipped.")

    try:
        for told in salvaged_events(entry.run, is_event, lost, containing=f'"{LOSS}"'):
            if told["kind"] == "metrics" and LOSS in told["values"]:
                by_step[told["step"]] = _number(told["values"][LOSS])
    except UnreadableError:
        notes.append(f"{_name(entry)} has no {EVENTS} that can be read: no training loss.")
    known = [loss for loss in by_step.values() if not math.isnan(loss)]
    if not known:
        return math.nan, math.nan
    if len(known) < len(by_step):
        count = len(by_step) - len(known)
        notes.append(f"{_name(entry)}: the training loss was not finite at {count} logged steps.")
    return min(known), by_step[max(by_step)]


def _number(value: Any) -> float:
    """`value` if it is a finite number, else NaN."""
    found = figure(value)
    return math.nan if found is None else found


def _name(entry: Entry) -> str:
    return f"{entry.configuration}, seed {entry.seed}"


# -- rows --------------------------------------------------------------------------------------


def _run_rows(runs: Sequence[Found]) -> Iterator[dict[str, Any]]:
    for run in runs:
        for (key, network), evaluated in run.evaluated.items():
            yield {
                "configuration": run.entry.configuration,
                "seed": run.entry.seed,
                "key": key,
                "network": network,
                "accuracy": evaluated.result.accuracy,
                "ci95": _number(evaluated.result.ci95),
                "episodes": evaluated.result.episodes or 0,
                "method": evaluated.result.method,
                "transductive": evaluated.result.transductive,
                "params": evaluated.params,
                "macs": evaluated.macs,
                "latency_ms_b1": evaluated.latency_ms,
                "training_macs": evaluated.training_macs,
                "loss_best": run.loss_best,
                "loss_last": run.loss_last,
                "run": str(run.entry.run),
            }


def _summary_rows(runs: Sequence[Found]) -> Iterator[dict[str, Any]]:
    groups: dict[tuple[Any, ...], list[Evaluated]] = defaultdict(list)
    losses: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run in runs:
        name = run.entry.configuration
        for (key, network), evaluated in run.evaluated.items():
            result = evaluated.result
            groups[name, key, network, result.method, result.transductive].append(evaluated)
        for network, loss in ((LAST, run.loss_last), (BEST, run.loss_best)):
            if not math.isnan(loss):
                losses[name, network].append(loss)
    for (name, key, network, method, transductive), group in groups.items():
        yield {
            "configuration": name,
            "key": key,
            "network": network,
            "method": method,
            "transductive": transductive,
            **_spread([evaluated.result.accuracy for evaluated in group]),
            "ci95_episodes": _mean(_number(evaluated.result.ci95) for evaluated in group),
            "params": _mean(evaluated.params for evaluated in group),
            "macs": _mean(evaluated.macs for evaluated in group),
            "training_macs": _mean(evaluated.training_macs for evaluated in group),
        }
    for (name, network), values in losses.items():
        yield {
            "configuration": name,
            "key": LOSS,
            "network": network,
            "method": None,
            "transductive": None,
            **_spread(values),
        }


def _spread(values: Sequence[float]) -> dict[str, float | int]:
    mean, ci95 = mean_t95(np.array(values))
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return {
        "seeds": len(values),
        "mean": mean,
        "ci95": ci95,
        "std": std,
        "min": min(values),
        "max": max(values),
    }


def _mean(values: Iterable[float]) -> float:
    """Of those that are known."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


# -- comparisons -------------------------------------------------------------------------------


def _comparison_rows(runs: Sequence[Found], notes: list[str]) -> list[dict[str, Any]]:
    """All pairs of every key and network, adjusted for the number of all of them together.

    Shots, datasets and networks stand in one table, in which a reader looks for what differs.
    """
    families: dict[tuple[str, str, bool], dict[Side, dict[int, Evaluated]]] = {}
    for run in runs:
        for (key, network), evaluated in run.evaluated.items():
            if evaluated.accuracies is None:
                continue
            family = families.setdefault((key, network, evaluated.result.transductive), {})
            side = Side(run.entry.configuration, evaluated.result.method)
            family.setdefault(side, {})[run.entry.seed] = evaluated
    rows: list[dict[str, Any]] = []
    for (key, network, transductive), family in families.items():
        about = {"key": key, "network": network, "transductive": transductive}
        rows += _pairs(about, family, notes)
    for test in ("episodes", "seeds_episodes"):
        adjusted = holm(np.array([row[f"p_{test}"] for row in rows], dtype=np.float64))
        for row, p in zip(rows, adjusted.tolist(), strict=True):
            row[f"p_{test}_holm"] = p
    for row in rows:
        both = row["seeds"] >= 2
        row["over"] = OVER_BOTH if both else OVER_EPISODES
        decisive = row["p_seeds_episodes_holm" if both else "p_episodes_holm"]
        row["significant"] = decisive < SIGNIFICANCE
    return rows


def _pairs(
    about: Mapping[str, Any], family: Mapping[Side, Mapping[int, Evaluated]], notes: list[str]
) -> list[dict[str, Any]]:
    lists = _lists(family)
    if len(lists) > 1:
        notes.append(_of_different_lists(str(about["key"]), lists))
    rows: list[dict[str, Any]] = []
    apart = []
    for a, b in combinations(family, 2):
        seeds = _comparable(family[a], family[b])
        if seeds:
            row = _compared(
                np.stack([family[a][seed].accuracies for seed in seeds]),  # type: ignore[misc]
                np.stack([family[b][seed].accuracies for seed in seeds]),  # type: ignore[misc]
            )
            sides = {"a": a.configuration, "method_a": a.method}
            sides |= {"b": b.configuration, "method_b": b.method}
            rows.append({**about, **sides, **row})
        else:
            apart.append(f"{a.configuration} and {b.configuration}")
    if apart:
        named = "; ".join(apart[:MOST_NAMED])
        more = f"; and {len(apart) - MOST_NAMED} more pairs" if len(apart) > MOST_NAMED else ""
        notes.append(
            f"{about['key']}: without a common seed on the same episodes, so not compared: "
            f"{named}{more}."
        )
    return rows


def _compared(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """a − b of two configurations, `[S, E]` each, seed by seed and episode by episode."""
    seeds, episodes = a.shape
    if seeds >= 2:
        crossed = crossed_difference(a - b)
        over_episodes = crossed.episodes
        both = crossed.ci95, crossed.p_value
    else:
        over_episodes, both = paired_difference(a[0], b[0]), (math.nan, math.nan)
    return {
        "difference": over_episodes.mean,
        "ci95_episodes": over_episodes.ci95,
        "p_episodes": over_episodes.p_value,
        "ci95_seeds_episodes": both[0],
        "p_seeds_episodes": both[1],
        "seeds": seeds,
        "episodes": episodes,
    }


def _comparable(a: Mapping[int, Evaluated], b: Mapping[int, Evaluated]) -> list[int]:
    """The common seeds that were evaluated on one list of episodes; the commonest, if several."""
    by_list: list[list[int]] = []
    for seed in sorted(a.keys() & b.keys()):
        if same_episodes(a[seed], b[seed]):
            alike = (those for those in by_list if same_episodes(a[those[0]], a[seed]))
            if (those := next(alike, None)) is None:
                by_list.append(those := [])
            those.append(seed)
    return max(by_list, key=len, default=[])


def _lists(
    family: Mapping[Side, Mapping[int, Evaluated]],
) -> dict[frozenset[Setting], list[str]]:
    """The runs by the episode list that they were evaluated on, the commonest list first."""
    found: dict[frozenset[Setting], list[str]] = defaultdict(list)
    recorded = all(one.images for evaluated in family.values() for one in evaluated.values())
    for side, evaluated in family.items():
        for seed, one in evaluated.items():
            assert one.settings is not None
            settings = one.settings
            if recorded:  # the folder does not matter then
                settings = frozenset(s for s in settings if s[0] != PLACE_SETTING)
                settings |= {("images (checksum)", str(one.images)[:12])}
            count = frozenset({("episodes", str(one.result.episodes))})
            found[settings | count].append(f"{side.configuration} (seed {seed})")
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _of_different_lists(key: str, lists: Mapping[frozenset[Setting], Sequence[str]]) -> str:
    common = frozenset.intersection(*lists)
    parts = []
    for settings, runs in lists.items():
        named = ", ".join(runs[:MOST_NAMED])
        more = f" and {len(runs) - MOST_NAMED} more" if len(runs) > MOST_NAMED else ""
        differing = ", ".join(f"{name}={value}" for name, value in sorted(settings - common))
        parts.append(f"{named}{more} with {differing}")
    return (
        f"{key}: not all runs were evaluated on the same episodes, and only those that were are "
        f"compared: {'; '.join(parts)}."
    )
