"""What is reported of a sweep, from which of its jobs, and what its parent run gets."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from sseg_nase.config.compose import load
from sseg_nase.reporting import figures
from sseg_nase.reporting.figures import Drawing
from sseg_nase.rundir.directory import RunDirectory
from sseg_nase.rundir.episodes import write_episodes
from sseg_nase.rundir.status import FAILED, FINISHED, INTERRUPTED
from sseg_nase.sweeps import report
from sseg_nase.sweeps.folder import SweepFolder
from sseg_nase.sweeps.report import LONGEST_NOTE, again_of, artifact_folder, report_sweep
from sseg_nase.sweeps.status import poll
from tests.unit.sweeps.test_plan import made

KEY = "digits/val/5w1s"


class Store:
    """What the parent run is given."""

    def __init__(self) -> None:
        self.given: list[tuple[str, dict[str, float], list[tuple[Path, str]], str | None]] = []

    def report(
        self,
        run_id: str,
        figures: dict[str, float],
        files: Sequence[tuple[Path, str]],
        note: str | None,
    ) -> None:
        self.given.append((run_id, figures, list(files), note))


@pytest.fixture
def store() -> Any:
    return Store()


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    found = made(tmp_path / "runs", "ablation=A1,A2", "seed=4,5", "tracking=jsonl")
    found.note(parent_run_id="the parent")
    return found


def evaluated(sweep: SweepFolder, number: int, status: str = FINISHED) -> Path:
    """A run of a job, with results."""
    job = sweep.jobs[number]
    place = RunDirectory.create(job.config, job.overrides)
    values = np.array([50.0, 60.0, 70.0]) + number
    result = {"accuracy": 60.0 + number, "ci95": 1.0, "episodes": 3, "method": "m"}
    results = {"fewshot": {KEY: {**result, "transductive": False}}, "efficiency": {}}
    (place.path / "results.json").write_text(json.dumps(results))
    write_episodes(place.path, {"last": {KEY: values}})
    place.write_status(status)
    place.release()
    job.note(run=str(place.path), started=1.0, ended=2.0, status=status)
    return place.path


def reported(sweep: SweepFolder) -> list[dict[str, str]]:
    with (sweep.report / "runs.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_what_has_finished_is_reported_and_all_jobs_are_counted(
    sweep: SweepFolder, store: Any
) -> None:
    for number, status in enumerate((FINISHED, FINISHED, FAILED, INTERRUPTED)):
        evaluated(sweep, number, status)
    said: list[str] = []
    report_sweep(sweep, poll(sweep), store, said.append, figures=False)
    rows = [(row["configuration"], row["seed"], row["accuracy"]) for row in reported(sweep)]
    assert rows == [("ablation=A1", "4", "60.0"), ("ablation=A1", "5", "61.0")]
    ((run_id, counts, files, note),) = store.given
    assert run_id == "the parent"
    assert counts == {"sweep/jobs": 4, "sweep/finished": 2, "sweep/failed": 2}
    assert {path.name for path, _ in files} == {
        "runs.csv", "summary.csv", "comparisons.csv", "report.md", "report.html", "report.json",
        "results.tex", "preview.tex", "sweep.json", "code.diff",
    }  # fmt: skip
    assert {folder for _, folder in files} == {"report"}
    assert all(path.is_file() for path, _ in files)
    assert note is not None
    assert "ablation=A1" in note
    assert any(str(sweep.report / "report.html") in text for text in said)


def test_figures_stand_in_a_folder_of_their_own(
    sweep: SweepFolder, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def one(found: Any, records: Sequence[Any]) -> Any:
        seen.append(len(records))
        return iter([Drawing("first", "First", "", Figure(figsize=(1, 1)))])

    monkeypatch.setattr(figures, "figures_of_sweep", one)
    evaluated(sweep, 0)
    report_sweep(sweep, poll(sweep), store, print, figures=True)
    assert seen == [1]
    placed = {path.name: folder for path, folder in store.given[0][2]}
    assert placed["first.png"] == "report/figures"
    assert placed["report.md"] == "report"


def test_before_any_job_has_finished_only_the_counts_are_told(
    sweep: SweepFolder, store: Any
) -> None:
    evaluated(sweep, 0, FAILED)
    said: list[str] = []
    report_sweep(sweep, poll(sweep), store, said.append, figures=False)
    assert store.given == [
        ("the parent", {"sweep/jobs": 4, "sweep/finished": 0, "sweep/failed": 1}, [], None)
    ]
    assert "no job is finished yet" in said[-1]
    assert not sweep.report.exists()


@pytest.mark.parametrize("finished", [True, False])
def test_without_a_parent_run_the_report_stays_on_disk(
    finished: bool, sweep: SweepFolder, store: Any
) -> None:
    sweep.note(parent_run_id=None)
    if finished:
        evaluated(sweep, 0)
    report_sweep(sweep, poll(sweep), store, print, figures=False)
    assert store.given == []
    assert (sweep.report / "report.md").exists() is finished


def test_what_the_store_has_not_got_is_sent_first(
    sweep: SweepFolder, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(report, "deliver_sweep", lambda *given: order.append("runs"))
    plain = store.report
    monkeypatch.setattr(store, "report", lambda *given: (order.append("parent"), plain(*given)))
    evaluated(sweep, 0)
    report_sweep(sweep, poll(sweep), store, print, figures=False)
    assert order == ["runs", "parent"]


def test_a_report_says_how_the_sweep_is_done_once_more(sweep: SweepFolder, store: Any) -> None:
    again = "sseg-nase -m ablation=A1,A2 seed=4,5 tracking=jsonl"
    assert again_of(sweep) == again
    evaluated(sweep, 0)
    report_sweep(sweep, poll(sweep), store, print, figures=False)
    assert f"\n{again}\n" in (sweep.report / "report.md").read_text()
    sweep.jobs[0].overrides.append("seed=6")  # no grid any more
    assert again_of(sweep) is None


def test_a_note_is_no_longer_than_a_page_takes(
    sweep: SweepFolder, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sseg_nase.reporting import tables

    monkeypatch.setattr(tables, "markdown", lambda *given: "x" * (LONGEST_NOTE + 1))
    evaluated(sweep, 0)
    report_sweep(sweep, poll(sweep), store, print, figures=False)
    assert store.given[0][3] == "x" * LONGEST_NOTE


def test_a_look_at_a_sweep_draws_its_figures(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, bool]] = []
    monkeypatch.setattr(
        report, "report_sweep", lambda sweep, *given, figures: asked.append((sweep.path, figures))
    )
    code = report.report(load(["task=report", f"sweep={sweep.path}"]), print)
    assert (code, asked) == (0, [(sweep.path, True)])


@pytest.mark.parametrize(
    ("path", "folder"),
    [("r/report.md", "report"), ("r/figures/a.png", "report/figures"), ("r/a/b/c", "report/a/b")],
)
def test_where_a_file_of_a_report_stands(path: str, folder: str) -> None:
    assert artifact_folder(Path(path), Path("r")) == folder
