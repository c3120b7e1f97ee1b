"""What is under `paths.output_dir`, as the rows that the page shows: runs, sweeps, searches."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sseg_nase.errors import UserError
from sseg_nase.files import read_json, read_lines
from sseg_nase.rundir.config import read_overrides
from sseg_nase.rundir.events import last_epoch
from sseg_nase.rundir.lock import locked
from sseg_nase.rundir.names import CANDIDATES, CHECKPOINTS, CONFIG, SEARCH, SEARCHES, is_run
from sseg_nase.rundir.results import BEST, LAST, accuracies_of, read_results
from sseg_nase.rundir.status import INTERRUPTED, RUNNING, UNKNOWN, status_of
from sseg_nase.rundir.times import created, ended
from sseg_nase.sweeps.folder import SweepFolder
from sseg_nase.sweeps.status import Seen

if TYPE_CHECKING:  # they import torch
    from sseg_nase.search.log import Log
    from sseg_nase.searches.folder import SearchFolder

MOST = 100  # in a list; the latest


class Row(NamedTuple):
    """One run or search in a list. `epoch`, `minutes`: None where it is not known."""

    path: Path
    state: str
    what: str
    epoch: int | None
    result: str
    began: float
    minutes: float | None
    reason: str


def state_of(folder: Path) -> str:
    """Return how a run or a search stands; one whose process is gone is interrupted."""
    said = status_of(folder).get("status", UNKNOWN)
    return INTERRUPTED if said == RUNNING and not locked(folder) else said


def runs(output_dir: Path) -> list[Path]:
    """Return the folders of runs, the latest first; those of searches are not among them."""
    found = [p.parent for p in output_dir.glob(f"*/*/{CONFIG}") if p.parents[1].name != SEARCHES]
    return sorted(filter(is_run, found), key=lambda run: run.name, reverse=True)[:MOST]


def searches(output_dir: Path) -> list[Path]:
    """Return the folders of searches, the latest first."""
    found = (path.parent for path in (output_dir / SEARCHES).glob(f"*/{SEARCH}"))
    return sorted(found, key=lambda path: path.name, reverse=True)[:MOST]


def sweeps(output_dir: Path) -> list[Path]:
    """Return the folders of sweeps, the latest first."""
    found = (path.parent for path in (output_dir / "sweeps").glob("*/sweep.json"))
    return sorted(found, key=lambda path: path.name, reverse=True)[:MOST]


def row(run: Path) -> Row:
    """Return a run, or a search, as a line of a list."""
    state = state_of(run)
    epoch, loss = last_epoch(run)
    result = _result(read_results(run) or {}) or (f"loss {loss:.4g}" if loss is not None else "")
    began = created(run)
    until = time.time() if state == RUNNING else ended(run)
    return Row(
        path=run,
        state=state,
        what=" ".join(read_overrides(run) or [run.parent.name]),
        epoch=epoch,
        result=result,
        began=began,
        minutes=max(0.0, until - began) / 60 if until > 0 else None,
        reason=(status_of(run).get("error") or "").split("\n")[0],
    )


def spent(search: Path) -> str:
    """Return how many results a search has, and how much of its budget they have taken.

    Older versions have kept no budget with it. "" before its first result.
    """
    told = [line["scored"] for line in _log_of(search) if "scored" in line]
    if not told:
        return ""
    limits = dict((read_json(search / SEARCH) or {}).get("budget") or {})
    counted = "epochs" if "epochs" in limits else "candidates"
    most = limits.pop(counted, None)
    said = [f"{len(told):,} {'' if most is None else f'of at most {most:,} '}{counted}"]
    for name, limit in limits.items():
        taken = sum(one["cost"][name] for one in told)
        said.append(f"{taken / limit:.0%} of {name.replace('_', ' ')}")
    return ", ".join(said)


def _log_of(search: Path) -> list[Mapping[str, Any]]:
    """What a search has written, read without the package of searches, which imports torch."""
    try:
        lines = list(read_lines(search / CANDIDATES, errors="replace"))
    except OSError:
        return []
    return [line.value for line in lines if line.value is not None and not line.torn]


def _result(results: Mapping[str, Any]) -> str:
    said = (accuracies_of(results, LAST) or accuracies_of(results, BEST)).items()
    return ", ".join(
        f"{key} {one['accuracy']:.2f} %"
        for key, one in said
        if isinstance(one, dict) and "accuracy" in one
    )


def jobs(seen: list[Seen]) -> list[dict[str, Any]]:
    """Return the jobs of a sweep as rows."""
    return [
        {
            "job": one.job.number,
            "what": one.job.label,
            "state": one.state,
            "epoch": one.epoch,
            "result": one.metric,
            "seconds": None if one.seconds is None else round(one.seconds),
            "reason": one.detail,
        }
        for one in seen
    ]


def candidates(folder: SearchFolder, log: Log) -> list[dict[str, Any]]:
    """Return the candidates of a search as rows with their scores, in the order of asking."""
    from sseg_nase.searches.progress import said_of_point, short

    space, best, front = folder.space(), log.best(), {r.candidate.number for r in log.front()}
    rows = []
    for candidate in log.candidates:
        result = log.result(candidate.number)
        state = "pending" if result is None else "failed" if result.error is not None else "scored"
        if result is not None and state == "scored" and not log.is_usable(result):
            state = "above a cap"
        scores = result.scores if result is not None and result.error is None else {}
        rows.append(
            {
                "candidate": candidate.number,
                "state": state,
                **{name: scores.get(name) for name in log.objectives.goals},
                "best": result is not None and result is best,
                "front": candidate.number in front,
                "point": " ".join(said_of_point(candidate.point, space)),
                **{name: short(value) for name, value in candidate.fidelity.items()},
                "reason": "" if result is None else result.error or "",
            }
        )
    return rows


def best_so_far(log: Log) -> list[dict[str, float]]:
    """Return the leading score after every result, as rows: that of the best usable one so far."""
    goal = next(iter(log.objectives.goals))
    best, found = None, list[dict[str, float]]()
    for number, result in enumerate(log.told, 1):
        if log.is_usable(result) and (best is None or log.value(result) > log.value(best)):
            best = result
        if best is not None:
            found.append({"results": number, goal: best.scores[goal]})
    return found


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, the latest first."""
    return sorted((run / CHECKPOINTS).glob("*.pt"), key=lambda p: p.stat().st_mtime, reverse=True)


def opened_search(path: Path) -> tuple[SearchFolder, Log] | None:
    """Return a search and its log; None where it has asked for nothing yet."""
    from sseg_nase.searches.folder import SearchFolder

    folder = SearchFolder(path)
    try:
        return folder, folder.log()
    except UserError:
        return None


def opened_sweep(path: Path) -> SweepFolder:
    """Return a sweep. Raises `UserError` where it cannot be read."""
    return SweepFolder(path)
