from __future__ import annotations

import dataclasses
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sseg_nase.config.compose import load
from sseg_nase.errors import UserError
from sseg_nase.files import write_json
from sseg_nase.rundir.directory import RunDirectory
from sseg_nase.rundir.lock import held
from sseg_nase.rundir.status import FAILED, FINISHED, INTERRUPTED, RUNNING, end_dead, status_of
from sseg_nase.sweeps import deliver as module
from sseg_nase.sweeps.deliver import deliver_run, deliver_sweep
from sseg_nase.sweeps.folder import Planned, SweepFolder, create
from sseg_nase.tracking import RunInfo
from sseg_nase.tracking.delivery import Delivery, Undelivered
from sseg_nase.tracking.jsonl import JsonlSink

AWAY = "http://127.0.0.1:9"
STORE = "sqlite:///store.db"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was handed to the store, which takes everything."""
    calls: list[dict[str, Any]] = []

    def take(directory: Path, uri: str, experiment: str, **more: Any) -> Delivery:
        calls.append({"directory": directory, "uri": uri, "experiment": experiment, **more})
        known = more["run_id"] is not None
        return Delivery(more["run_id"] or "new", not known, 1234, 5, True, ())

    monkeypatch.setattr(module, "send_missing", take)
    return calls


def ended(*overrides: str, status: str = FINISHED, **fields: Any) -> Path:
    """The directory of a run that has told one figure."""
    place = RunDirectory.create(load(["hardware=cpu", *overrides]), overrides)
    sink = JsonlSink()
    sink.open(RunInfo(place.path, "name", "trial", place.path / "config.yaml", 1))
    sink.metrics({"pretrain/loss": 1.0}, 1)
    place.write_status(status)
    place.release()
    write_json(place.path / "status.json", {**status_of(place.path), **fields})
    return place.path


def task(*overrides: str) -> tuple[int, list[str]]:
    said: list[str] = []
    return module.deliver(load(["task=deliver", *overrides]), said.append), said


def test_a_run_is_sent_to_its_own_store_and_says_so_no_longer(sent: list[dict[str, Any]]) -> None:
    uri = f"sqlite:///{Path.cwd()}/own.db"
    run = ended(tracking_uri=uri, undelivered=True, status=FAILED, error="out of memory")
    code, said = task(f"run={run}")
    assert code == 0
    assert said == [f"{run}: 1,234 metric rows and 5 files sent to MLflow at {uri}"]
    assert sent == [
        {
            "directory": run,
            "uri": uri,
            "experiment": "sseg-nase",
            "run_id": None,
            "status": FAILED,
            "error": "out of memory",
            "parent_run_id": None,
        }
    ]
    now = status_of(run)
    assert "undelivered" not in now
    assert now["tracker_run_id"] == "new"
    assert (now["status"], now["error"]) == (FAILED, "out of memory")


@pytest.mark.parametrize("name", ["mlflow", "jsonl"])
def test_a_store_that_is_named_wins(sent: list[dict[str, Any]], name: str) -> None:
    run = ended(f"tracking={name}", tracker_run_id="known", tracking_uri="sqlite:////elsewhere.db")
    task(f"run={run}", f"tracking.uri={STORE}", "tracking.experiment=later")
    assert (sent[0]["uri"], sent[0]["experiment"]) == (f"sqlite:///{Path.cwd()}/store.db", "later")
    assert status_of(run)["tracking_uri"] == sent[0]["uri"]


def test_the_whole_way_to_a_store(capfd: pytest.CaptureFixture[str]) -> None:
    run = ended("tracking=jsonl")
    code, said = task(f"run={run}", f"tracking.uri={STORE}")
    assert code == 0
    assert "1 metric rows and " in said[0]
    assert task(f"run={run}", f"tracking.uri={STORE}")[1] == [
        f"{run}: nothing is missing in MLflow at sqlite:///{Path.cwd()}/store.db"
    ]
    assert task(f"run={run}")[0] == 0  # it has a store now
    assert capfd.readouterr() == ("", "")


def test_a_store_that_is_still_away() -> None:
    run = ended("tracking=server", f"tracking.uri={AWAY}", undelivered=True)
    before = status_of(run)
    code, said = task(f"run={run}")
    assert code == 1
    assert len(said) == 1
    assert f"MLflow at {AWAY} does not take it" in said[0]
    assert status_of(run) == before


def test_a_run_without_a_store_says_how_to_name_one(sent: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"tracking=jsonl.*tracking\.uri=sqlite:///FILE"):
        deliver_run(ended("tracking=jsonl"))
    assert sent == []


def test_a_run_that_is_going_on_is_refused(sent: list[dict[str, Any]]) -> None:
    run = ended(status=RUNNING)
    with held(run), pytest.raises(UserError, match="still going on in another process"):
        deliver_run(run)
    write_json(run / "status.json", {**status_of(run), "status": FINISHED})
    with held(run), pytest.raises(UserError, match="still going on in another process"):
        deliver_run(run)
    assert sent == []


def test_a_run_whose_process_died_is_interrupted(sent: list[dict[str, Any]]) -> None:
    run = ended(status=RUNNING, tracking_uri="sqlite:////x.db")
    deliver_run(run)
    assert sent[0]["status"] == INTERRUPTED
    assert status_of(run)["status"] == INTERRUPTED
    assert "undelivered" not in status_of(run)


def test_what_died_may_have_told_more_than_has_arrived() -> None:
    with_store, without = ended(status=RUNNING, tracking_uri="sqlite:////x.db"), ended()
    end_dead(with_store, INTERRUPTED, "gone")
    write_json(without / "status.json", {**status_of(without), "status": RUNNING})
    end_dead(without, INTERRUPTED, "gone")
    assert status_of(with_store)["undelivered"] is True
    assert "undelivered" not in status_of(without)


def _no_config(run: Path) -> None:
    (run / "config.yaml").unlink()


def _no_events(run: Path) -> None:
    (run / "events.jsonl").unlink()


def _no_status(run: Path) -> None:
    (run / "status.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_config, "not the directory of a run"),
        (_no_events, "told nothing"),
        (_no_status, "told nothing"),
    ],
)
def test_what_is_no_run_is_refused(
    sent: list[dict[str, Any]], change: Callable[[Path], None], message: str
) -> None:
    run = ended()
    change(run)
    with pytest.raises(UserError, match=message):
        deliver_run(run)
    assert sent == []


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    """Five jobs: delivered, two undelivered, one that is going on, one without a run."""
    config = load(["hardware=cpu"])
    planned = [
        Planned(n, f"seed={n}", "all", f"{n:016}", (), dataclasses.replace(config, seed=n))
        for n in range(5)
    ]
    found = create(
        tmp_path / "runs",
        planned,
        title="seeds",
        shared=[],
        settings=config.sweep,
        tracking=config.tracking,
        code={"commit": None},
        diff=None,
    )
    states: list[dict[str, Any]] = [
        {},
        {"undelivered": True},
        {"undelivered": True, "tracker_run_id": "known"},
        {"status": RUNNING},
    ]
    for number, fields in enumerate(states):
        found.jobs[number].note(run=str(ended(f"seed={number}", **fields)))
    found.note(parent_run_id="the parent")
    return found


def test_of_a_sweep_those_that_need_it_are_sent(
    sent: list[dict[str, Any]], sweep: SweepFolder
) -> None:
    code, said = task(f"sweep={sweep.path}")
    assert code == 0
    assert [call["directory"] for call in sent] == [sweep.jobs[n].run for n in (1, 2)]
    assert {call["parent_run_id"] for call in sent} == {"the parent"}
    assert len(said) == 2
    sent.clear()
    assert deliver_sweep(sweep, said.append) == 0
    assert sent == []
    assert task(f"sweep={sweep.path}", f"tracking.uri={STORE}")[0] == 0
    assert len(sent) == 3


def test_a_sweep_whose_store_is_away_is_tried_once(
    monkeypatch: pytest.MonkeyPatch, sweep: SweepFolder
) -> None:
    calls = []

    def away(directory: Path, *arguments: Any, **more: Any) -> Delivery:
        calls.append(directory)
        raise Undelivered("MLflow at x does not take it: gone.")

    monkeypatch.setattr(module, "send_missing", away)
    code, said = task(f"sweep={sweep.path}")
    assert code == 1
    assert len(calls) == 1
    assert "2 runs are not delivered" in said[0]


def test_one_broken_run_keeps_no_other_back(sent: list[dict[str, Any]], sweep: SweepFolder) -> None:
    assert sweep.jobs[1].run is not None
    (sweep.jobs[1].run / "config.yaml").write_text("nothing")
    code, said = task(f"sweep={sweep.path}")
    assert code == 1
    assert "not delivered: " in said[0]
    assert [call["directory"] for call in sent] == [sweep.jobs[2].run]


def test_a_run_that_has_begun_again_is_passed_over(
    sent: list[dict[str, Any]], sweep: SweepFolder
) -> None:
    """It says how it ended before, until it is told otherwise; that is no failure."""
    run = sweep.jobs[1].run
    assert run is not None
    with held(run):
        code, said = task(f"sweep={sweep.path}")
    assert code == 0
    assert [call["directory"] for call in sent] == [sweep.jobs[2].run]
    assert len(said) == 1


def test_how_many_are_left_is_counted_from_the_one_that_was_refused(
    monkeypatch: pytest.MonkeyPatch, sweep: SweepFolder
) -> None:
    calls = []

    def away(directory: Path, *arguments: Any, **more: Any) -> Delivery:
        calls.append(directory)
        if len(calls) == 2:
            raise Undelivered("MLflow at x does not take it: gone.")
        return Delivery("new", True, 1, 1, True, ())

    monkeypatch.setattr(module, "send_missing", away)
    code, said = task(f"sweep={sweep.path}", f"tracking.uri={STORE}")
    assert (code, len(calls)) == (1, 2)
    assert "2 runs are not delivered" in said[-1]


def test_a_run_goes_where_it_went_before_not_where_its_config_says(
    sent: list[dict[str, Any]],
) -> None:
    run = ended("tracking=server", "tracking.uri=http://127.0.0.1:8", tracking_uri=AWAY)
    deliver_run(run)
    assert sent[0]["uri"] == AWAY


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (Delivery("a", False, 0, 0, False, ()), "nothing is missing in MLflow at "),
        (Delivery("a", False, 0, 2, False, ()), "0 metric rows and 2 files sent to MLflow at "),
        (Delivery("a", False, 3, 0, False, ()), "3 metric rows and 0 files sent to MLflow at "),
        (Delivery("a", False, 0, 0, True, ()), "0 metric rows and 0 files sent to MLflow at "),
    ],
)
@pytest.mark.parametrize("gone", [(), (Path("a.pt"), Path("b.pt"))])
def test_what_was_sent_is_said(sent: Delivery, said: str, gone: tuple[Path, ...]) -> None:
    text = module._in_words(dataclasses.replace(sent, gone=gone), "http://host:1")
    lost = " (gone from the disk: a.pt, b.pt)" if gone else ""
    assert text == f"{said}http://host:1{lost}"


def test_a_copy_is_not_sent_into_the_run_of_the_original(
    sent: list[dict[str, Any]], tmp_path: Path
) -> None:
    run = ended(tracking_uri="sqlite:////x.db", tracker_run_id="original")
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    deliver_run(copy)
    deliver_run(run)
    assert [call["run_id"] for call in sent] == [None, "original"]
    now = status_of(copy)
    assert (now["tracker_run_id"], now["directory"]) == ("new", str(copy))
    deliver_run(copy)
    assert sent[-1]["run_id"] == "new"  # it has one of its own now


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=deliver"], r"Add run=RUN_DIR, or sweep=DIR"),
        (["task=deliver", "run=a", "sweep.dir=b"], r"run=a: not together with sweep=b"),
        (["task=deliver", "run=a", "tracking=jsonl"], "nothing can be delivered there"),
        (["run=a"], r"add task=replay or task=deliver or leave it out"),
        (["task=deliver", "run=a", "checkpoint=c"], "no effect with task=deliver"),
        (["sweep.dir=a"], "task=deliver"),
        (["task=deliver", "run=a", "sweep.watch=true"], "no effect with task=deliver"),
    ],
)
def test_what_does_not_fit_together_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(overrides)


def test_a_run_on_another_machine_is_left_alone(sent: list[dict[str, Any]]) -> None:
    run = ended(status=RUNNING, process={"host": f"not-{socket.gethostname()}", "pid": 1})
    with pytest.raises(UserError, match="still going on, on not-"):
        deliver_run(run)
    assert status_of(run)["status"] == RUNNING
    assert sent == []


def test_status_json_says_it_only_where_it_is_so() -> None:
    place = RunDirectory.create(load(["hardware=cpu"]), [])
    place.write_status(FINISHED, undelivered=True)
    assert json.loads((place.path / "status.json").read_text())["undelivered"] is True
    place.write_status(FINISHED)
    assert "undelivered" not in place.status()
    place.release()
    assert yaml.safe_load((place.path / "config.yaml").read_text())["task"] == "pipeline"
