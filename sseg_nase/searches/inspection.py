"""`task=status` and `task=report`: of a search with `search=DIR`, else of runs and sweeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sseg_nase.config.schema import Config
from sseg_nase.errors import DONE, FAILURE, UserError
from sseg_nase.files import StorageError, make_own
from sseg_nase.home import expanded
from sseg_nase.rundir.status import FAILED
from sseg_nase.sweeps import finish
from sseg_nase.sweeps import report as of_sweeps

if TYPE_CHECKING:
    from sseg_nase.searches.folder import SearchFolder

WIDTH = 160
STYLES = {"scored": "green", "failed": "bold red", "pending": "cyan", "above a cap": "yellow"}

Say = Callable[[str], None]


def status(config: Config, say: Say) -> int:
    """`task=status`: show how the candidates of a search, or the jobs of a sweep, stand.

    Returns the exit code: of a search 1 where it has failed.
    """
    if config.search.dir is None:
        return finish.status(config, say)
    from sseg_nase.searches.folder import looked_at  # here, because it imports NumPy

    folder = looked_at(config.search.dir, Path(config.paths.output_dir))
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=WIDTH)
    console.print(table(folder))
    return FAILURE if folder.status == FAILED else DONE


def report(config: Config, say: Say) -> int:
    """`task=report`: of a search, or of runs and sweeps; return the exit code."""
    if config.search.dir is None:
        return of_sweeps.report(config, say)
    from sseg_nase.searches.folder import looked_at
    from sseg_nase.searches.report import write_report

    folder, output = looked_at(config.search.dir, Path(config.paths.output_dir)), folder_of(config)
    try:
        write_report(folder, output or folder.report)
    except (OSError, StorageError) as error:
        raise UserError(
            f"report.output={output or folder.report}: it cannot be written ({error}). Set "
            "report.output to a folder of yours."
        ) from error
    say(f"report: {(output or folder.report) / 'report.html'}, and the same as .md; figures/")
    return DONE


def folder_of(config: Config) -> Path | None:
    """The folder that `report.output` names, made."""
    if config.report.output is None:
        return None
    folder = expanded("report.output", config.report.output).absolute()
    make_own(folder)
    return folder


def table(folder: SearchFolder) -> Table:
    """Return the candidates with their state, scores, point and reason."""
    from sseg_nase.searches.progress import said_of_point, short

    log, space = folder.log(), folder.space()
    states: dict[str, int] = {}
    shown = Table(title=Text(f"search {folder.path.name}: {folder.plan['title']}"), padding=(0, 1))
    goals = list(log.objectives.goals)
    fidelity = any(candidate.fidelity for candidate in log.candidates)
    columns = ["candidate", "state", *goals, *(["fidelity"] if fidelity else []), "point", "why"]
    for name in columns:
        right = name in ("candidate", *goals)
        shown.add_column(name, justify="right" if right else "left", overflow="fold")
    best = log.best() if not fidelity else None
    for candidate in log.candidates:
        result = log.result(candidate.number)
        state, scores = "pending", [""] * len(goals)
        if result is not None:
            state = "failed" if result.error is not None else "scored"
            if state == "scored":
                scores = [short(result.scores[name]) for name in goals]
                state = state if log.is_usable(result) else "above a cap"
        states[state] = states.get(state, 0) + 1
        point = " ".join(said_of_point(candidate.point, space))
        cells = [str(candidate.number), state, *scores]
        if fidelity:
            cells.append(" ".join(f"{k}={v:g}" for k, v in candidate.fidelity.items()))
        cells += [point, (result.error or "") if result else ""]
        bold = " bold" if best is not None and result is best else ""
        style = STYLES.get(state, "")
        shown.add_row(
            *(Text(c, style=style if n == 1 else bold.strip()) for n, c in enumerate(cells))
        )
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    shown.caption = f"{folder.status}: {counts or 'nothing asked for yet'}{_beside(folder)}"
    return shown


def _beside(folder: SearchFolder) -> str:
    """How random search and the trainings from scratch stand, where they have begun."""
    from sseg_nase.search import Log
    from sseg_nase.searches.answer import FINAL, RANDOM

    said = ""
    for name, what in ((RANDOM, "random search"), (FINAL, "trained from scratch")):
        if (folder.path / name).exists():
            log = Log.read(folder.path / name)
            said += f"; {what}: {len(log.told)} of {len(log.candidates)} asked for"
    return said
