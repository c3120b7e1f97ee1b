"""The store as a sweep sees it: its parent run, runs known by their fingerprint, one warning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sseg_nase.config.groups.tracking import TrackingConfig
from sseg_nase.config.members import restored
from sseg_nase.errors import UserError
from sseg_nase.rundir.status import FAILED, FINISHED, INTERRUPTED
from sseg_nase.tracking import sweeps as module
from sseg_nase.tracking.sweeps import ASKED_TAG, SweepStore
from tests.support.mlflow_stores import client_of, refuse


def store_at(uri: str | None, warned: list[str], **changes: Any) -> SweepStore:
    settings = {"name": "mlflow", "uri": uri, "required": False, **changes}
    tracking = restored(TrackingConfig, {**settings, "experiment": "trial", "interval_steps": 1})
    return SweepStore(tracking, warned.append)


@pytest.fixture
def warned() -> list[str]:
    return []


@pytest.fixture
def store(uri: str, warned: list[str]) -> SweepStore:
    return store_at(uri, warned)


def run_of(uri: str, start: int, status: str | None = None, **tags: str) -> str:
    client = client_of(uri)
    experiment = client.get_experiment_by_name("trial").experiment_id
    run = client.create_run(experiment, start_time=start, tags=tags)
    if status is not None:
        client.set_terminated(run.info.run_id, status)
    return str(run.info.run_id)


def test_the_parent_is_begun_once_and_gone_on_with(uri: str, store: SweepStore) -> None:
    first = store.begin(None, "seeds at http://bob:S3cret-Pw@host", {"sweep": "s"})
    assert first is not None
    run = client_of(uri).get_run(first)
    assert run.info.run_name == "seeds at http://host"
    assert run.data.tags["sweep"] == "s"
    assert run.data.tags["mlflow.source.name"] == "sseg-nase"
    store.end(first, FINISHED, None)
    assert store.begin(first, "seeds", {}) == first
    assert client_of(uri).get_run(first).info.status == "RUNNING"


def test_a_parent_that_the_store_lacks_becomes_a_new_one(
    uri: str, store: SweepStore, warned: list[str]
) -> None:
    begun = store.begin("0" * 32, "seeds", {})
    assert begun is not None
    assert begun != "0" * 32
    assert client_of(uri).get_run(begun).info.status == "RUNNING"
    assert warned == []


def test_runs_are_known_by_what_was_asked_for_the_latest_first(uri: str, store: SweepStore) -> None:
    tags = {ASKED_TAG: "abc", "directory": "/runs/one"}
    old = run_of(uri, 1000, "FINISHED", **tags)
    new = run_of(uri, 3000, "KILLED", **tags, **{"mlflow.source.git.commit": "f00"})
    middle = run_of(uri, 2000, "FAILED", **tags)
    run_of(uri, 4000, "FINISHED", **{**tags, ASKED_TAG: "another"})
    run_of(uri, 5000, "FINISHED", **{ASKED_TAG: "abc"})  # of no folder
    going = run_of(uri, 500, **tags)
    found = store.known("abc")
    assert [run.run_id for run in found] == [new, middle, old, going]
    assert [run.status for run in found] == [INTERRUPTED, FAILED, FINISHED, "RUNNING"]
    assert [run.commit for run in found] == ["f00", None, None, None]
    assert {run.directory for run in found} == {Path("/runs/one")}
    assert [run.run_id for run in store.running()] == [going]


def test_a_status_that_is_not_ours_is_no_end() -> None:
    class Run:
        class info:  # noqa: N801 - MLflow's name
            run_id, status = "a", "SCHEDULED"

        class data:  # noqa: N801 - MLflow's name
            tags = {"directory": "/runs/one"}  # noqa: RUF012

    assert module._known(Run).status == "RUNNING"


@pytest.mark.parametrize(
    ("status", "stored"),
    [(FINISHED, "FINISHED"), (FAILED, "FAILED"), (INTERRUPTED, "KILLED")],
)
def test_the_end_of_a_run_that_could_not_say_so(
    uri: str, store: SweepStore, status: str, stored: str
) -> None:
    run_id = run_of(uri, 1000)
    error = None if status == FINISHED else "lost at http://bob:S3cret-Pw@host " + "x" * 9000
    store.end(run_id, status, error)
    run = client_of(uri).get_run(run_id)
    assert run.info.status == stored
    said = run.data.tags.get("error")
    assert said == (error and ("lost at http://host " + "x" * 9000)[:499])


def test_figures_files_and_a_text_stay_with_the_parent(
    uri: str, store: SweepStore, tmp_path: Path
) -> None:
    run_id = run_of(uri, 1000)
    table = tmp_path / "table.csv"
    table.write_text("a,b\n")
    store.report(run_id, {"seeds@mean": 61.5}, [(table, "report")], "**all**: 61.5")
    client = client_of(uri)
    run = client.get_run(run_id)
    assert run.data.metrics == {"seeds_mean": 61.5}
    assert run.data.tags["mlflow.note.content"] == "**all**: 61.5"
    assert [file.path for file in client.list_artifacts(run_id, "report")] == ["report/table.csv"]
    other = run_of(uri, 1000)
    store.report(other, {}, [], None)
    assert "mlflow.note.content" not in client.get_run(other).data.tags


def test_a_store_that_fails_is_warned_about_once_and_stops_nothing(
    store: SweepStore, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store._client, "search_runs", refuse)
    assert store.known("abc") == []
    assert store.running() == []
    assert store.begin(None, "seeds", {}) is None
    store.end("a", FINISHED, None)
    (said,) = warned
    assert "the server went away" in said
    assert "The sweep goes on" in said


def test_a_refusal_of_a_known_parent_is_no_reason_for_a_second_one(
    uri: str, store: SweepStore, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    def failing(*arguments: Any, **more: Any) -> None:
        raise MlflowException("it broke")

    monkeypatch.setattr(store._client, "update_run", failing)
    assert store.begin("0" * 32, "seeds", {}) is None
    assert len(warned) == 1
    client = client_of(uri)
    assert client.search_runs([client.get_experiment_by_name("trial").experiment_id]) == []


def test_a_store_that_cannot_be_opened(tmp_path: Path, warned: list[str]) -> None:
    broken = tmp_path / "broken.db"
    broken.write_text("once upon a time")
    uri = f"sqlite:///{broken}"
    with pytest.raises(UserError, match="is not a SQLite database"):
        store_at(uri, warned, required=True)
    assert warned == []
    store = store_at(uri, warned)
    assert (store.known("abc"), store.begin(None, "x", {})) == ([], None)
    (said,) = warned
    assert f"MLflow at {uri} cannot be used" in said


def test_without_mlflow_everything_answers_with_nothing(tmp_path: Path, warned: list[str]) -> None:
    store = store_at(None, warned, name="jsonl", required=True)
    assert (store.known("abc"), store.running(), store.begin(None, "x", {})) == ([], [], None)
    store.end("a", FINISHED, None)
    assert warned == []
    assert list(tmp_path.iterdir()) == []
