"""`task=report`: of one run, of several side by side, and of a sweep."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from sseg_nase.config.commands import command
from sseg_nase.config.schema import Config
from sseg_nase.errors import DONE, UserError
from sseg_nase.files import StorageError, make_own, storage_error
from sseg_nase.home import expanded
from sseg_nase.rundir.status import FINISHED
from sseg_nase.sweeps.deliver import deliver_sweep
from sseg_nase.sweeps.folder import SweepFolder, looked_at
from sseg_nase.sweeps.status import Seen, poll
from sseg_nase.tracking.delivery import attached
from sseg_nase.tracking.sweeps import SweepStore

# What MLflow takes as the text of a run's page.
LONGEST_NOTE = 5000

Say = Callable[[str], None]


def report(config: Config, say: Say) -> int:
    """`task=report`: of the `runs` that are named, or of a sweep as far as it has come.

    Returns the exit code.
    """
    if config.runs is None:
        sweep = looked_at(config.sweep.dir, Path(config.paths.output_dir))
        report_sweep(sweep, poll(sweep), SweepStore(sweep.tracking, warn=say), say, figures=True)
        return DONE
    # Here, because numpy takes a while to import.
    from sseg_nase.reporting.selection import comparable, named_runs

    runs = named_runs(config.runs, Path(config.paths.output_dir))
    if len(runs) == 1:
        _report_run(runs[0], config, say)
    else:
        _compare(comparable(runs, say), config, say)
    return DONE


def _report_run(run: Path, config: Config, say: Say) -> None:
    """Write the report of one run into its folder, and hand it to its MLflow run."""
    from sseg_nase.reporting.run_report import NAME, write_report

    output = config.report.output
    folder = (run / NAME if output is None else expanded("report.output", output)).absolute()
    if output is not None:
        make_own(folder)
    try:
        files = write_report(run, folder, published=config.report.published)
    except (OSError, StorageError) as error:
        raise _unwritable(folder, error) from error
    say(
        f"report: {folder / 'report.html'}, and the same as .md; its tables as .tex, .csv and "
        ".json, its figures in figures/"
    )
    placed = [(path, artifact_folder(path, folder)) for path in files]
    say(f"MLflow: {attached(run, placed, config.tracking, folder)}")


def artifact_folder(path: Path, folder: Path) -> str:
    """Where a file of a report in `folder` stands among a run's artifacts."""
    return (Path("report") / path.relative_to(folder).parent).as_posix()


def _compare(runs: Sequence[Path], config: Config, say: Say) -> None:
    """Show the comparison of the runs, and write its files."""
    from sseg_nase.reporting.comparison import compare
    from sseg_nase.reporting.comparison_tables import NAME, write
    from sseg_nase.reporting.figures import figures_of_runs
    from sseg_nase.reporting.pictures import drawn
    from sseg_nase.rundir.record import read_run

    name = f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}_{secrets.token_hex(3)}"
    output = config.report.output or Path(config.paths.output_dir) / "reports" / name
    folder = expanded("report.output", str(output)).absolute()
    if config.report.output is not None:
        make_own(folder)
    comparison = compare(runs, with_published=config.report.published)
    try:
        pictures = drawn(figures_of_runs([read_run(run) for run in runs]), folder)
        text, _ = write(comparison, folder, pictures)
    except (OSError, StorageError) as error:
        raise _unwritable(folder, error) from error
    print(text, flush=True)
    say(
        f"comparison: {folder / NAME}.html, and the same as .md, .csv, .json and .tex; its "
        "figures in figures/"
    )


def again_of(sweep: SweepFolder) -> str | None:
    """The command that does a sweep once more; None where its jobs are no grid of overrides."""
    values: dict[str, list[str]] = {}
    for job in sweep.jobs:
        for text in job.overrides:
            key, _, value = text.partition("=")
            if value not in values.setdefault(key, []):
                values[key].append(value)
    if math.prod(map(len, values.values())) != len(sweep.jobs):
        return None
    return command("-m", *(f"{key}={','.join(those)}" for key, those in values.items()))


def _unwritable(folder: Path, error: OSError | StorageError) -> UserError:
    full = storage_error(error, folder)
    why = f"cannot be written ({error})." if full is None else str(full)
    return UserError(
        f"report.output={folder}: {why} Set report.output, or paths.output_dir, to a folder of "
        "yours."
    )


def report_sweep(
    sweep: SweepFolder, seen: Sequence[Seen], store: SweepStore, say: Say, *, figures: bool
) -> None:
    """Means over seeds and paired differences of what is finished, on disk and at the parent.

    What MLflow has not got of the runs is sent first.
    """
    deliver_sweep(sweep, say)
    parent = sweep.plan["parent_run_id"]
    counts = {
        "sweep/jobs": len(seen),
        "sweep/finished": sum(one.state == FINISHED for one in seen),
        "sweep/failed": sum(one.failed for one in seen),
    }
    runs = [(one.job, one.job.run) for one in seen if one.state == FINISHED]
    if not runs:
        if parent is not None:
            store.report(parent, counts, [], None)
        say("no job is finished yet: there is nothing to report")
        return
    # Here, because pandas takes half a second to import, and Matplotlib too.
    from sseg_nase.reporting.aggregate import Entry, aggregate
    from sseg_nase.reporting.figures import figures_of_sweep
    from sseg_nase.reporting.pictures import drawn, files_of
    from sseg_nase.reporting.tables import markdown, write
    from sseg_nase.rundir.record import read_run

    entries = [Entry(job.configuration, job.seed, run) for job, run in runs if run]
    found = aggregate(entries)
    pictures = []
    if figures:
        records = [read_run(entry.run) for entry in entries]
        pictures = drawn(figures_of_sweep(found, records), sweep.report)
    again = again_of(sweep)
    files = [*write(found, sweep.report, sweep.title, pictures, again), *files_of(pictures)]
    say(f"report: {sweep.report / 'report.html'}, and the same as .md, .tex, .csv and .json")
    if parent is not None:
        placed = [(path, artifact_folder(path, sweep.report)) for path in files]
        beside = [sweep.path / "sweep.json", sweep.path / "code.diff"]
        placed += [(path, "report") for path in beside if path.exists()]
        store.report(parent, counts, placed, markdown(found, sweep.title)[:LONGEST_NOTE])
