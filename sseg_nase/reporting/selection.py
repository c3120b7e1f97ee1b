"""The runs that `runs=DIR1,DIR2,...` names: folders, patterns, and LAST."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path

from sseg_nase.errors import UserError
from sseg_nase.files import read_json
from sseg_nase.home import expanded

LAST = "LAST"
FINISHED = "FINISHED"
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


def comparable(runs: Sequence[Path], warn: Callable[[str], None]) -> list[Path]:
    """Those of `runs` that are finished and have judged something.

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
    if _is_run(path):
        return [path]
    if path.exists() or not glob.has_magic(name):
        raise UserError(_no_run(path))
    matching = [Path(match) for match in sorted(glob.glob(str(path)))]
    runs = [match for match in matching if _is_run(match)]
    if not runs:
        what = f"none of the {len(matching)} that match is" if matching else "nothing matches it as"
        raise UserError(f"runs={name}: {what} the directory of a run. {AN_EXAMPLE}, or LAST.")
    return runs


def _last(output_dir: Path) -> Path:
    results = output_dir.expanduser().glob("*/*/results.json")
    finished = [path for path in results if _unfit(path.parent) is None]
    if not finished:
        raise UserError(f"runs=LAST: there is no finished run in {output_dir} yet.")
    return max(finished, key=lambda path: path.stat().st_mtime).parent


def _no_run(path: Path) -> str:
    if not path.exists():
        return f"runs={path}: there is no such folder. {AN_EXAMPLE}, a pattern in quotes, or LAST."
    if (path / "sweep.json").exists():
        return f"runs={path}: this is the directory of a sweep; write sweep={path}."
    hint = f"{AN_EXAMPLE}, or LAST."
    if path.is_dir() and any(_is_run(inner) for inner in path.iterdir()):
        hint = f"""For the runs in it write 'runs="{path}/*"', outer quotes included."""
    return f"runs={path}: not the directory of a run (no config.yaml and status.json). {hint}"


def _is_run(path: Path) -> bool:
    said = any((path / name).is_file() for name in ("status.json", "results.json"))
    return said and (path / "config.yaml").is_file()


def _unfit(run: Path) -> str | None:
    """Why a run cannot be compared, in words; None where it can."""
    status = (read_json(run / "status.json") or {}).get("status")
    if status not in (None, FINISHED):
        return f"is {status}, not {FINISHED}"
    results = read_json(run / "results.json")
    if results is None:
        return "has no results.json that can be read"
    if not isinstance(results.get("fewshot"), dict):
        return "has judged nothing: results.json has no few-shot accuracies"
    return None
