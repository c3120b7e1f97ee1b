from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sseg_nase.config.compose import load
from sseg_nase.errors import UserError
from sseg_nase.files import write_json
from sseg_nase.tracking import Resumed, RunInfo, Tracker
from sseg_nase.tracking import delivery as module
from sseg_nase.tracking.delivery import Delivery, Undelivered, attach, attached, send_missing
from sseg_nase.tracking.jsonl import JsonlSink
from sseg_nase.tracking.mlflow_sink import MlflowSink
from tests.support.mlflow_stores import (
    DATASETS,
    client_of,
    datasets_of,
    mutation,
    only_run,
    refuse,
    run_info,
)

HOUR = 3600.0


def deliver(directory: Path, uri: str, **changes: Any) -> Delivery:
    settings = {"run_id": None, "status": "FINISHED", "error": None}
    return send_missing(directory, uri, "trial", **{**settings, **changes})


def tell(tracker: Tracker, run: RunInfo, steps: range = range(20)) -> None:
    tracker.open(run)
    for step in steps:
        tracker.metrics({"pretrain/loss": 10.0 - step, "arch/params": 100}, step)
    for index in (0, 1):
        tracker.event("mutation", mutation(index, step=4))
    (run.directory / "results.json").write_text("{}")
    preview = run.directory / "preview.png"
    preview.write_bytes(b"picture")
    tracker.artifact(preview, "curriculum")


def age(directory: Path, seconds: float) -> None:
    """Let the run have told everything that long ago."""
    path = directory / "events.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["time"] = round(line["time"] - seconds, 3)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def rows_of(uri: str) -> dict[str, list[tuple[int, float]]]:
    client, run = client_of(uri), only_run(uri)
    return {
        key: sorted(
            (row.step, row.value) for row in client.get_metric_history(run.info.run_id, key)
        )
        for key in run.data.metrics
    }


EXPECTED = {
    "pretrain/loss": [(step, 10.0 - step) for step in range(20)],
    "arch/params": [(step, 100.0) for step in range(20)],
    "mutation/index": [(4, 0.0), (5, 1.0)],
    "mutation/kind": [(4, 1.0), (5, 1.0)],
    "mutation/function_delta": [(4, 0.0), (5, 0.0)],
    "mutation/loss_before": [(4, 5.0), (5, 5.0)],
    "mutation/loss_after": [(4, 5.1), (5, 5.1)],
}


def test_a_run_that_no_store_knows_is_created_as_it_was(tmp_path: Path, uri: str) -> None:
    client = client_of(uri)
    parent = client.create_run(client.create_experiment("trial")).info.run_id
    tracker = Tracker([JsonlSink()])
    info = run_info(tmp_path / "run", tags={"sweep": "s", "task": "x"}, parent_run_id=parent)
    tell(tracker, info)
    tracker.close("FAILED", "out of memory")
    age(info.directory, HOUR)
    first = json.loads((info.directory / "events.jsonl").read_text().splitlines()[0])["time"]

    sent = deliver(info.directory, uri, status="FAILED", error="out of memory")
    assert sent.created
    assert sent.rows == 50
    assert sent.files == 4  # config, mutations, results and the preview
    assert sent.gone == ()
    client.delete_run(parent)
    run = only_run(uri)
    assert run.info.run_id == sent.run_id
    assert run.info.run_name == "ablation=A7"
    assert run.data.params == {"seed": "0", "optimizer.lr": "0.001"}
    assert {run.data.tags[key] for key in ("sweep", "task", "error")} == {"s", "x", "out of memory"}
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["directory"] == str(info.directory)
    assert datasets_of(run) == DATASETS
    assert run.info.status == "FAILED"
    assert run.info.start_time == round(1000 * first)
    assert time.time() - run.info.end_time / 1000 > HOUR - 60
    assert rows_of(uri) == EXPECTED
    losses = client.get_metric_history(sent.run_id, "pretrain/loss")
    assert all(time.time() - row.timestamp / 1000 > HOUR - 60 for row in losses)
    assert [file.path for file in client.list_artifacts(sent.run_id, "curriculum")] == [
        "curriculum/preview.png"
    ]

    again = deliver(info.directory, uri, run_id=sent.run_id, status="FAILED")
    assert not again.anything
    assert deliver(info.directory, uri, run_id="0" * 32, status="FAILED").run_id == sent.run_id
    assert rows_of(uri) == EXPECTED


@pytest.mark.parametrize("seed", range(3))
def test_only_what_is_missing_is_sent(tmp_path: Path, uri: str, seed: int) -> None:
    info = run_info(tmp_path / "run")
    tracker = Tracker([JsonlSink(), MlflowSink(uri, "trial", required=True, flush_seconds=HOUR)])
    tell(tracker, info)  # nothing is delivered: as if killed
    chosen, client = random.Random(seed), client_of(uri)
    there = [step for step in range(20) if chosen.random() < 0.5]
    for step in there:
        client.log_metric(tracker.run_id, "pretrain/loss", 10.0 - step, step=step)
    client.log_artifact(tracker.run_id, str(info.config_file))
    client.log_text(tracker.run_id, "half of", "results.json")
    sent = deliver(info.directory, uri, status="INTERRUPTED")
    assert sent.run_id == tracker.run_id
    assert not sent.created
    assert sent.rows == 50 - len(there)
    assert sent.files == 3
    assert rows_of(uri) == EXPECTED
    assert only_run(uri).info.status == "KILLED"


def test_files_that_are_gone_are_named(tmp_path: Path, uri: str) -> None:
    info = run_info(tmp_path / "run")
    tell(Tracker([JsonlSink()]), info)
    (info.directory / "preview.png").unlink()
    assert deliver(info.directory, uri).gone == (info.directory / "preview.png",)


def test_a_parent_is_given_to_a_run_that_knows_of_none(tmp_path: Path, uri: str) -> None:
    info = run_info(tmp_path / "run")
    tell(Tracker([JsonlSink()]), info)
    deliver(info.directory, uri, parent_run_id="1" * 32)
    assert only_run(uri).data.tags["mlflow.parentRunId"] == "1" * 32


def test_a_store_that_fails_half_way_is_gone_on_with(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = run_info(tmp_path / "run")
    tell(Tracker([JsonlSink()]), info, range(2000))
    open_store = module.open_store

    def failing(*arguments: Any) -> Any:
        client, experiment_id = open_store(*arguments)
        log_batch, calls = client.log_batch, iter(range(100))

        def sometimes(*arguments: Any, **more: Any) -> None:
            (log_batch if next(calls) < 3 else refuse)(*arguments, **more)

        client.log_batch = sometimes
        return client, experiment_id

    with monkeypatch.context() as away:
        away.setattr(module, "open_store", failing)
        with pytest.raises(Undelivered, match="the server went away"):
            deliver(info.directory, uri)
    there = sum(map(len, rows_of(uri).values()))
    assert 0 < there < 4010
    assert deliver(info.directory, uri).rows == 4010 - there
    assert sum(map(len, rows_of(uri).values())) == 4010


def test_a_server_that_does_not_answer_takes_nothing(tmp_path: Path) -> None:
    info = run_info(tmp_path / "run")
    tell(Tracker([JsonlSink()]), info)
    with pytest.raises(Undelivered, match=r"http://127\.0\.0\.1:9 .*does not answer"):
        deliver(info.directory, "http://me:secret@127.0.0.1:9")


def test_what_is_not_finite_comes_back_as_nan(tmp_path: Path, uri: str) -> None:
    info = run_info(tmp_path / "run")
    tracker = Tracker([JsonlSink()])
    tracker.open(info)
    tracker.metrics({"pretrain/loss": math.inf}, 1)
    sent = deliver(info.directory, uri)
    [row] = client_of(uri).get_metric_history(sent.run_id, "pretrain/loss")
    assert math.isnan(row.value)


def test_times_and_params_are_those_that_were_told_first_and_last(tmp_path: Path, uri: str) -> None:
    info = run_info(tmp_path / "run", params={"seed": 0})
    JsonlSink().open(info)
    later = run_info(tmp_path / "run", params={"seed": 1, "epochs": 3}, tags={"again": "yes"})
    sink = JsonlSink()
    sink.open(dataclasses.replace(later, resumed=Resumed(None, 0, 0)))
    sink.close("FINISHED")
    events = info.directory / "events.jsonl"
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    for time_told, line in zip((100.0, 200.0, 300.5), lines, strict=True):
        line["time"] = time_told
    events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    deliver(info.directory, uri)
    run = only_run(uri)
    assert (run.info.start_time, run.info.end_time) == (100_000, 300_500)
    assert run.data.params == {"seed": "0", "epochs": "3"}  # as in the store, the first ones
    assert run.data.tags["again"] == "yes"


def test_a_run_that_is_there_gets_the_tags_and_params_that_it_lacks(
    tmp_path: Path, uri: str
) -> None:
    info = run_info(tmp_path / "run", tags={"sweep": "s"})
    tell(Tracker([JsonlSink()]), info)
    client = client_of(uri)
    experiment = client.create_experiment("trial")
    run_id = client.create_run(experiment).info.run_id
    client.log_param(run_id, "seed", 5)
    sent = deliver(info.directory, uri, run_id=run_id, status="FAILED", error="it broke")
    assert (sent.run_id, sent.created, sent.ended) == (run_id, False, True)
    run = only_run(uri)
    assert run.data.params == {"seed": "5", "optimizer.lr": "0.001"}
    assert (run.data.tags["sweep"], run.data.tags["error"]) == ("s", "it broke")
    assert run.data.tags["directory"] == str(info.directory)
    assert deliver(info.directory, uri, status="INTERRUPTED").anything  # it ended otherwise
    assert only_run(uri).info.status == "KILLED"


def test_files_are_kept_with_a_run_that_the_store_has(tmp_path: Path, uri: str) -> None:
    client = client_of(uri)
    run_id = client.create_run(client.create_experiment("trial")).info.run_id
    report = tmp_path / "report.html"
    report.write_text("<html>")
    attach(uri, run_id, [(report, "report")], {"export/onnx/bytes": 7.0})
    assert client.get_run(run_id).data.metrics == {"export/onnx/bytes": 7}
    assert [file.path for file in client.list_artifacts(run_id, "report")] == ["report/report.html"]
    with pytest.raises(Undelivered, match="does not take it"):
        attach(uri, "0" * 32, [(report, "report")])


def test_what_became_of_files_is_said(tmp_path: Path, uri: str) -> None:
    client = client_of(uri)
    run_id = client.create_run(client.create_experiment("trial")).info.run_id
    file = tmp_path / "network.onnx"
    file.write_text("")

    def said(*overrides: str, **status: str) -> str:
        write_json(tmp_path / "status.json", status)
        tracking = load(overrides).tracking
        return attached(tmp_path, [(file, "export")], tracking, tmp_path, {"x": 1.0})

    there = {"tracking_uri": uri, "tracker_run_id": run_id}
    assert said(**there) == f"1 files attached to run {run_id} at {uri}"
    assert client.get_run(run_id).data.metrics == {"x": 1}
    assert said("tracking=jsonl", **there).startswith(
        "not used (tracking=jsonl); the files stay in"
    )
    assert said(tracker_run_id=run_id).startswith("this run has no MLflow run; the files stay in")
    assert "does not take it" in said(tracking_uri=uri, tracker_run_id="0" * 32)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda lines: [], "does not say what run it is of"),
        (lambda lines: lines[1:], "does not say what run it is of"),
        (lambda lines: ["{", *lines], "line 1 is no JSON"),
        (lambda lines: ["[1]", *lines], "line 1 is no object"),
        (lambda lines: [*lines, '{"kind": "metrics", "time": 1}'], "has no values"),
        (lambda lines: [*lines, '{"kind": "metrics", "time": 1, "values": {"a": 1}}'], "'step'"),
        (lambda lines: [*lines, '{"kind": "artifact", "time": 1, "values": {}}'], "'folder'"),
        (lambda lines: [*lines, '{"kind": "mutation", "time": 1, "values": {}}'], "'index'"),
    ],
)
def test_damaged_events_are_named(
    change: Callable[[list[str]], list[str]], why: str, tmp_path: Path, uri: str
) -> None:
    run = run_info(tmp_path)
    tell(Tracker([JsonlSink()]), run, range(1))
    path = run.directory / "events.jsonl"
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))
    with pytest.raises(UserError, match=r"events\.jsonl is damaged \(.*Bring it back") as error:
        deliver(run.directory, uri)
    assert why in str(error.value)


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    gone = tmp_path / "gone.db"
    with pytest.raises(Undelivered, match=r"gone\.db is not there"):
        attach(f"sqlite:///{gone}", "0" * 32, [])
    assert not gone.exists()
    gone.write_text("once upon a time")
    with pytest.raises(Undelivered, match="is not a SQLite database"):
        attach(f"sqlite:///{gone}", "0" * 32, [])
