"""The end of a sweep, or an inspection of it: the table, the report, and the parent run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError
from sseg_nase.rundir.names import SEARCH
from sseg_nase.rundir.status import FAILED, FINISHED, INTERRUPTED
from sseg_nase.sweeps.folder import SweepFolder, looked_at
from sseg_nase.sweeps.report import report_sweep
from sseg_nase.sweeps.status import QUEUED, RUNNING, WAITING, Seen, exit_code, poll
from sseg_nase.tracking.console import duration
from sseg_nase.tracking.sweeps import SweepStore

SECONDS_BETWEEN_TABLES = 2.0
WIDTH = 160
NARROW = 100  # below it the result may take several lines
STYLES = {FINISHED: "green", FAILED: "bold red", INTERRUPTED: "yellow", RUNNING: "cyan"}

Say = Callable[[str], None]


def finish(sweep: SweepFolder, store: SweepStore, say: Say) -> int:
    """Show the table, write the report, end the parent run; return the exit code."""
    seen = poll(sweep)
    console = _console()
    console.print(table(sweep, seen, console.width))
    _close(sweep, seen, store, say)
    return exit_code(seen)


def of_search(sweep: SweepFolder) -> bool:
    """Whether these are the candidates of a search, which closes its folder itself."""
    return (sweep.path / SEARCH).exists()


def _close(sweep: SweepFolder, seen: Sequence[Seen], store: SweepStore, say: Say) -> None:
    """Write the report and, unless a job is on its way, end the parent run."""
    if sweep.plan["parent_run_id"] is None:  # MLflow may have been away when the sweep began
        begin_parent(sweep, store)
    figures = any(job.config.report.at_end for job in sweep.jobs)
    report_sweep(sweep, seen, store, say, figures=figures)
    if any(one.state in (RUNNING, QUEUED) for one in seen):
        return
    bad = sum(one.state != FINISHED for one in seen)
    error = f"{bad} of {len(seen)} jobs are not finished" if bad else None
    status = FAILED if any(one.failed for one in seen) else INTERRUPTED if bad else FINISHED
    if (parent := sweep.plan["parent_run_id"]) is not None:
        store.end(parent, status, error)
    sweep.end(status)


def begin_parent(sweep: SweepFolder, store: SweepStore) -> None:
    """Make the sweep's parent run, or set the one that it has to RUNNING."""
    tags = {"sweep": sweep.name, "directory": str(sweep.path), "task": "sweep"}
    sweep.note(parent_run_id=store.begin(sweep.plan["parent_run_id"], sweep.title, tags))


def finish_if_last(sweep: SweepFolder, say: Say) -> None:
    """Close a sweep that nobody waits for, when this was the last of its jobs to end."""
    if (
        of_search(sweep)
        or sweep.launched()
        or any(one.state in (RUNNING, QUEUED, WAITING) for one in poll(sweep))
    ):
        return
    with suppress(UserError), sweep.launching():  # another may have seen that it was the last
        finish(sweep, SweepStore(sweep.tracking, warn=say), say)


def status(config: Config, say: Say) -> int:
    """`task=status`: show how the jobs of a sweep stand; return the exit code."""
    sweep = looked_at(config.sweep.dir, Path(config.paths.output_dir))
    console = _console()
    seen = poll(sweep)
    if config.sweep.watch and console.is_terminal:
        with Live(table(sweep, seen, console.width), console=console, auto_refresh=False) as live:
            while any(one.state in (RUNNING, QUEUED) for one in seen) or sweep.launched():
                time.sleep(SECONDS_BETWEEN_TABLES)
                seen = poll(sweep)
                live.update(table(sweep, seen, console.width), refresh=True)
    else:
        console.print(table(sweep, seen, console.width))
    _close_forgotten(sweep, seen, say)
    return exit_code(seen)


def _close_forgotten(sweep: SweepFolder, seen: Sequence[Seen], say: Say) -> None:
    """Close a sweep whose launcher is gone and whose last job was killed before it could."""
    begun = any(job.begun for job in sweep.jobs)
    on_its_way = sweep.launched() or any(one.state in (RUNNING, QUEUED) for one in seen)
    if of_search(sweep) or sweep.ended or not begun or on_its_way:
        return
    with suppress(UserError), sweep.launching():
        _close(sweep, seen, SweepStore(sweep.tracking, warn=say), say)


def _console() -> Console:
    """A pipe has no width of its own: there is room for the reasons."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def table(sweep: SweepFolder, seen: Sequence[Seen], width: int = WIDTH) -> Table:
    """Return the jobs with their overrides, state, epoch, last figure, time and reason.

    Columns in which nothing stands are left out; `width` is that of the terminal.
    """
    counts = {
        state: sum(one.state == state for one in seen)
        for state in dict.fromkeys(one.state for one in seen)
    }
    shown = Table(
        title=Text(f"sweep {sweep.name}: {sweep.title}"),
        caption=", ".join(f"{count} {state}" for state, count in counts.items()),
        padding=(0, 1) if width >= NARROW else 0,
    )
    cells = {
        "job": [str(one.job.number) for one in seen],
        "overrides": [one.job.label for one in seen],
        "state": [one.state for one in seen],
        "epoch": [
            "" if one.epoch is None else f"{one.epoch}/{one.job.config.pretrain.epochs}"
            for one in seen
        ],
        "result": [one.metric for one in seen],
        "time": ["" if one.seconds is None else duration(one.seconds) for one in seen],
        "why": [one.detail for one in seen],
    }
    cells = {name: column for name, column in cells.items() if any(column)}
    words = max((len(word) for label in cells["overrides"] for word in label.split()), default=0)
    for name in cells:
        shown.add_column(
            name,
            justify="right" if name in ("job", "epoch", "time") else "left",
            overflow="fold",
            no_wrap=name not in ("overrides", "why") and (name != "result" or width >= NARROW),
            # An override that is broken within its key cannot be read.
            min_width=min(words, width // 3) if name == "overrides" else None,
        )
    for row, one in zip(zip(*cells.values(), strict=True), seen, strict=True):
        styles = [STYLES.get(one.state, "") if name == "state" else "" for name in cells]
        shown.add_row(*(Text(cell, style=style) for cell, style in zip(row, styles, strict=True)))
    return shown
