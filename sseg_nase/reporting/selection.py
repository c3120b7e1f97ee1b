"""The runs that `runs=DIR1,DIR2,...` names: folders, patterns, and LAST."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path

from sseg_nase.config.commands import argument
from sseg_nase.errors import UserError
from sseg_nase.home import expanded
from sseg_nase.rundir.config import config_of
from sseg_nase.rundir.names import CONFIG, RESULTS, SEARCH, is_run
from sseg_nase.rundir.results import read_results, section
from sseg_nase.rundir.status import FINISHED, status_of
from sseg_nase.rundir.times import created, ended

LAST = "LAST"
AN_EXAMPLE = "Name one like runs/<experiment>/<time>-<id>"


def named_runs(named: Sequence[str], output_dir: Path) -> list[Path]:
    """The folders of the runs that are named, each once, in the order given, however they ended.

    `LAST` is the run under `output_dir` that finished last. Raises `UserError` for what is no run.
    """
    found: dict[Path, Path] = {}
    for name in named:
        for run in _named(name, output_dir):
            found.setdefault(run.resolve(), run)
    return list(found.values())


def latest_run(output_dir: Path | str = "runs", *, pretrained: bool = False) -> Path:
    """The folder of the run under `output_dir` that has finished last, with results.

    `pretrained`: only a run that has pretrained a network, so that it has losses and mutations.
    Raises `UserError` where there is none.
    """
    output_dir = Path(output_dir).expanduser()
    finished = [path for path in _finished(output_dir) if not pretrained or _pretrained(path)]
    if not finished:
        what = "finished run that has pretrained a network" if pretrained else "finished run"
        raise UserError(f"There is no {what} in {output_dir} yet: `make run` makes one.")
    return max(finished, key=lambda run: (ended(run), run.name))


def comparable(runs: Sequence[Path], warn: Callable[[str], None]) -> list[Path]:
    """Those of `runs` that are finished and have evaluated something.

    `warn` is told which are left out, and why. Raises `UserError` where nothing is left.
    """
    unfit = {run: why for run in runs if (why := _unfit(run)) is not None}
    if len(unfit) == len(runs):
        listed = "; ".join(f"{run} {why}" for run, why in unfit.items())
        raise UserError(f"runs: there is nothing to compare: {listed}.")
    for run, why in unfit.items():
        warn(f"{run} {why}: left out")
    return [run for run in runs if run not in unfit]


def _named(name: str, output_dir: Path) -> list[Path]:
    if name == LAST:
        return [_last(output_dir)]
    path = expanded("runs", name)
    if (path / SEARCH).exists():
        instead = argument("search", str(path))
        raise UserError(f"runs={path}: this is the directory of a search; write {instead} instead.")
    if is_run(path):
        return [path]
    if path.exists() or not glob.has_magic(name):
        raise UserError(_no_run(path))
    matching = [Path(match) for match in sorted(glob.glob(str(path)))]
    runs = [match for match in matching if is_run(match)]
    if not runs:
        what = f"none of the {len(matching)} that match is" if matching else "nothing matches it as"
        raise UserError(f"runs={name}: {what} the directory of a run. {AN_EXAMPLE}, or LAST.")
    return runs


def _last(output_dir: Path) -> Path:
    finished = _finished(output_dir.expanduser())
    if not finished:
        raise UserError(f"runs=LAST: there is no finished run in {output_dir} yet.")
    return max(finished, key=lambda run: (ended(run), run.name))


def _finished(output_dir: Path) -> list[Path]:
    runs = (path.parent for path in output_dir.glob(f"*/*/{RESULTS}"))
    return [run for run in runs if _unfit(run) is None]


def _pretrained(run: Path) -> bool:

    config = config_of(run) or {}
    ssl, pretrain, finetune = (section(config, key) for key in ("ssl", "pretrain", "finetune"))
    trained = ssl.get("name") != "none" and pretrain.get("epochs") and not finetune.get("start")
    return config.get("task") == "pipeline" and bool(trained)


def last_made(key: str, output_dir: Path) -> Path:
    """Return the run under `output_dir` that was made last, however it ended, for `key`=LAST.

    A search is one for `resume` alone.

    Raises `UserError` where there is none.
    """
    folders = (path.parent for path in output_dir.expanduser().absolute().glob(f"*/*/{CONFIG}"))
    runs = [folder for folder in folders if is_run(folder)]
    if key == "run":
        runs = [folder for folder in runs if not (folder / SEARCH).exists()]
    if not runs:
        raise UserError(f"{key}=LAST: there is no run in {output_dir} yet.")
    return max(runs, key=lambda run: (created(run), run.name))


def _no_run(path: Path) -> str:
    if not path.exists():
        return f"runs={path}: there is no such folder. {AN_EXAMPLE}, a pattern in quotes, or LAST."
    if (path / "sweep.json").exists():
        instead = argument("sweep", str(path))
        return f"runs={path}: this is the directory of a sweep; write {instead} instead."
    hint = f"{AN_EXAMPLE}, or LAST."
    if path.is_dir() and any(is_run(inner) for inner in path.iterdir()):
        pattern = argument("runs", f"{glob.escape(str(path))}/*")
        hint = f"For the runs in it write {pattern} with all its quotes."
    return f"runs={path}: not the directory of a run (no config.yaml and status.json). {hint}"


def _unfit(run: Path) -> str | None:
    """Why a run cannot be compared, in words; None where it can."""
    status = status_of(run).get("status")
    if status not in (None, FINISHED):
        return f"is {status}, not {FINISHED}"
    results = read_results(run)
    if results is None:
        return "has no results.json that can be read"
    if not isinstance(results.get("fewshot"), dict):
        return "has evaluated nothing: results.json has no few-shot accuracies"
    return None
