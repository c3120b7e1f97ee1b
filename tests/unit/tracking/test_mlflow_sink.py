from __future__ import annotations

import errno
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sseg_nase.config.groups.tracking import TrackingConfig
from sseg_nase.config.members import restored
from sseg_nase.errors import UserError
from sseg_nase.files import StorageError
from sseg_nase.tracking import Resumed, RunInfo, Tracker, build_tracker
from sseg_nase.tracking import mlflow_sink as module
from sseg_nase.tracking.jsonl import JsonlSink
from sseg_nase.tracking.mlflow_sink import (
    MlflowSink,
    clean_param,
    is_server,
    reason,
    resolve_uri,
    shown,
    ui_command,
)
from sseg_nase.tracking.rows import clean_key
from tests.support.mlflow_stores import (
    DATASETS,
    client_of,
    datasets_of,
    mutation,
    only_run,
    refuse,
    run_info,
)

RUN_IN_A_PROCESS = """
import sys
from pathlib import Path
from sseg_nase.tracking import RunInfo
from sseg_nase.tracking.mlflow_sink import MlflowSink

folder, name = Path(sys.argv[1]), sys.argv[2]
directory = folder / name
directory.mkdir()
(directory / "config.yaml").write_text("seed: 0\\n")
sink = MlflowSink(f"sqlite:///{folder / 'mlflow.db'}", "together", required=True)
run = RunInfo(directory, name, "together", directory / "config.yaml", 1, {"seed": 0})
print("ready", flush=True)
sys.stdin.readline()
sink.open(run)
for step in range(20):
    sink.metrics({"pretrain/loss": 1.0 / (step + 1), "arch/params": 100}, step)
sink.close("FINISHED")
"""


def tracking(**changes: Any) -> TrackingConfig:
    settings: dict[str, Any] = {
        "name": "mlflow",
        "uri": None,
        "experiment": "trial",
        "required": False,
        "interval_steps": 1,
    }
    tracking: TrackingConfig = restored(TrackingConfig, {**settings, **changes})
    return tracking


def small_loop(tracker: Tracker, run: RunInfo) -> None:
    tracker.open(run)
    for epoch in range(run.total_epochs):
        for step in range(4):
            total = 4 * epoch + step
            tracker.progress(epoch, step + 1, 4, {"loss": 1.0})
            tracker.metrics({"pretrain/loss": 5.0 - 0.1 * total, "arch/params": 23584}, total)
        tracker.event("epoch", {"epoch": epoch, "loss": 5.0})
    tracker.event("mutation", mutation())
    (run.directory / "results.json").write_text("{}")
    tracker.artifact(run.directory / "results.json")
    tracker.metrics({"fewshot/digits/test/5w1s/accuracy": 61.5}, 12)
    tracker.close("FINISHED")


def closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def test_a_loop_through_a_tracker_ends_in_one_finished_run(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = build_tracker(tracking(), console=False)
    small_loop(tracker, run_info(tmp_path / "run"))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")

    client, run = client_of(uri), only_run(uri)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "ablation=A7"
    assert run.info.run_id == tracker.run_id
    assert run.data.params == {"seed": "0", "optimizer.lr": "0.001"}
    losses = client.get_metric_history(run.info.run_id, "pretrain/loss")
    assert [(row.step, row.value) for row in losses] == [
        (step, pytest.approx(5.0 - 0.1 * step)) for step in range(12)
    ]
    assert all(abs(row.timestamp / 1000 - time.time()) < 600 for row in losses)
    assert run.data.metrics["fewshot/digits/test/5w1s/accuracy"] == 61.5
    assert run.data.metrics["mutation/kind"] == 1
    assert run.data.metrics["mutation/loss_after"] == 5.1
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names == {"config.yaml", "mutations.jsonl", "results.json"}
    assert run.info.artifact_uri.startswith((tmp_path / "mlruns").as_uri())
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["kind"] == "metrics" for line in lines) == 13


def test_a_fresh_store_is_made_where_a_relative_address_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sink = MlflowSink("sqlite:///a b/store.db", "trial", required=True)
    monkeypatch.chdir("/")
    sink.open(run_info(tmp_path / "run"))
    sink.close("FINISHED")
    assert capfd.readouterr() == ("", "")
    run = only_run(f"sqlite:///{tmp_path}/a b/store.db")
    kept = tmp_path / "a b" / "mlruns" / run.info.run_id / "artifacts" / "config.yaml"
    assert kept.read_text() == "seed: 0\n"


@pytest.mark.parametrize(
    ("status", "stored"),
    [("FINISHED", "FINISHED"), ("FAILED", "FAILED"), ("INTERRUPTED", "KILLED")],
)
def test_status_and_error(tmp_path: Path, uri: str, status: str, stored: str) -> None:
    sink = MlflowSink(uri, "trial", required=True)
    sink.open(run_info(tmp_path / "run", tags={"mlflow.source.git.commit": "abc"}))
    sink.close(status, "out of memory\n" * 1000 if status == "FAILED" else None)
    run = only_run(uri)
    assert run.info.status == stored
    assert run.info.end_time is not None
    assert run.data.tags["mlflow.source.git.commit"] == "abc"
    assert run.data.tags.get("error", "").startswith("out of" if status == "FAILED" else "")
    assert ("error" in run.data.tags) == (status == "FAILED")


def test_many_long_and_odd_params_and_many_rows(tmp_path: Path, uri: str) -> None:
    params: dict[str, Any] = {f"group.key{index}": index for index in range(230)}
    params |= {"long": "x" * 9000, "paths@[0]=(a,b)": True}
    sink = MlflowSink(uri, "trial", required=True, flush_seconds=0.05)
    sink.open(run_info(tmp_path / "run", params=params))
    for step in range(1300):
        sink.metrics({"pretrain/loss": step, "pretrain/lr": 0.1}, step)
    sink.metrics({"pretrain/loss": float("nan"), "odd": float("inf")}, 1300)
    sink.close("FINISHED")
    client, run = client_of(uri), only_run(uri)
    assert len(run.data.params) == 232
    assert len(run.data.params["long"]) == 499
    assert run.data.params["paths__0___a_b_"] == "True"
    history = client.get_metric_history(run.info.run_id, "pretrain/loss")
    assert [row.step for row in history] == list(range(1301))
    assert len(client.get_metric_history(run.info.run_id, "pretrain/lr")) == 1300


def test_a_name_has_one_value_per_step(tmp_path: Path, uri: str) -> None:
    sink = MlflowSink(uri, "trial", required=True)
    sink.open(run_info(tmp_path / "run"))
    sink.metrics({"pretrain/loss": 1.0}, 3)
    sink.metrics({"pretrain/loss": 2.0, "pretrain/lr": 0.1}, 3)
    sink.event("mutation", mutation(0, step=3, kind="WIDEN"))
    sink.event("mutation", mutation(1, step=3, kind="PRUNE"))
    sink.close("FINISHED")
    client, run = client_of(uri), only_run(uri)
    rows = {
        key: [(row.step, row.value) for row in client.get_metric_history(run.info.run_id, key)]
        for key in ("pretrain/loss", "pretrain/lr", "mutation/kind")
    }
    assert rows == {
        "pretrain/loss": [(3, 1.0)],
        "pretrain/lr": [(3, 0.1)],
        "mutation/kind": [(3, 2.0), (4, 3.0)],
    }


def test_a_resumed_run_goes_on_without_repeating_rows(tmp_path: Path, uri: str) -> None:
    first = MlflowSink(uri, "trial", required=True)
    first.open(run_info(tmp_path / "run"))
    for step in (0, 1, 2, 5):
        first.metrics({"pretrain/loss": step}, step)
    first.close("INTERRUPTED")

    second = MlflowSink(uri, "trial", required=True)
    params = {"seed": 1, "resumed": True}
    second.open(run_info(tmp_path / "run", resumed=Resumed(first.run_id, 5, 0), params=params))
    assert second.run_id == first.run_id
    assert only_run(uri).info.status == "RUNNING"
    for step in range(8):
        second.metrics({"pretrain/loss": step}, step)
    second.close("FINISHED")
    run = only_run(uri)
    history = client_of(uri).get_metric_history(run.info.run_id, "pretrain/loss")
    assert sorted(row.step for row in history) == list(range(8))
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "0", "optimizer.lr": "0.001", "resumed": "True"}
    assert datasets_of(only_run(uri)) == DATASETS  # once


def test_a_resumed_run_is_found_by_its_directory_and_gets_what_did_not_arrive(
    tmp_path: Path, uri: str
) -> None:
    info = run_info(tmp_path / "run")
    killed = Tracker([JsonlSink(), MlflowSink(uri, "trial", required=True, flush_seconds=3600)])
    killed.open(info)  # nothing is ever delivered: as if killed within the first interval
    for step in (1, 2, 3):
        killed.metrics({"pretrain/loss": 10.0 + step}, step)
    for index in (0, 1):
        killed.event("mutation", mutation(index=index, step=2))
    resumed = run_info(tmp_path / "run", resumed=Resumed(None, 2, 1))
    again = Tracker([JsonlSink(), MlflowSink(uri, "trial", required=True)])
    again.open(resumed)
    assert again.run_id == killed.run_id
    again.event("mutation", mutation(index=1, step=3))
    for step in (3, 4):
        again.metrics({"pretrain/loss": 20.0 + step}, step)
    again.close("FINISHED")
    run = only_run(uri)
    client = client_of(uri)
    rows = {
        key: [(row.step, row.value) for row in client.get_metric_history(run.info.run_id, key)]
        for key in ("pretrain/loss", "mutation/index")
    }
    assert rows == {
        "pretrain/loss": [(1, 11.0), (2, 12.0), (3, 23.0), (4, 24.0)],
        "mutation/index": [(2, 0.0), (3, 1.0)],
    }
    lines = (tmp_path / "run" / "mutations.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 1]


def test_a_run_to_resume_that_the_store_lacks_becomes_a_new_one(tmp_path: Path, uri: str) -> None:
    told: list[tuple[str, str]] = []
    sink = MlflowSink(uri, "trial", required=True, notify=lambda *what: told.append(what))
    sink.open(run_info(tmp_path / "run", resumed=Resumed("0" * 32, 0, 0)))
    sink.close("FINISHED")
    assert [kind for kind, _ in told] == ["warning"]
    assert "does not have the run that is resumed" in told[0][1]
    assert only_run(uri).info.run_id == sink.run_id


def test_a_deleted_experiment_is_named(tmp_path: Path, uri: str) -> None:
    client = client_of(uri)
    client.delete_experiment(client.create_experiment("trial"))
    with pytest.raises(UserError, match=r"'trial' is deleted there.*tracking\.required=false"):
        MlflowSink(uri, "trial", required=True).open(run_info(tmp_path / "run"))


@pytest.mark.parametrize("name", ["mlflow", "server"])
def test_an_unreachable_server_that_is_required_is_refused(tmp_path: Path, name: str) -> None:
    address = f"http://me:secret@127.0.0.1:{closed_port()}"
    tracker = build_tracker(tracking(name=name, uri=address, required=True), console=False)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"refused.*required=false.*tracking=jsonl") as refused:
        tracker.open(run_info(tmp_path / "run"))
    assert time.monotonic() - began < 5
    assert "secret" not in str(refused.value)
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["values"]["status"] == "FAILED"


def test_an_unreachable_server_that_is_not_required_leaves_everything_in_jsonl(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"http://127.0.0.1:{closed_port()}"
    tracker = build_tracker(tracking(name="server", uri=address))
    assert tracker.delivered
    small_loop(tracker, run_info(tmp_path / "run", resumed=Resumed("kept", 0, 0)))
    assert tracker.run_id == "kept"
    assert not tracker.delivered
    out = capsys.readouterr().out
    assert out.count("WARNING") == 1
    assert str(tmp_path / "run" / "events.jsonl") in out
    text = (tmp_path / "run" / "events.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert sum(line["kind"] == "metrics" for line in lines) == 13
    assert lines[-1]["values"]["status"] == "FINISHED"


def test_a_server_that_accepts_and_never_answers_is_given_up_soon(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(UserError, match=r"timed out|no answer"):
            MlflowSink(address, "trial", required=True).open(run_info(tmp_path / "run"))
        assert time.monotonic() - began < 6


@pytest.fixture
def stranger() -> Iterator[str]:
    """A web server that is not MLflow: it answers 404 to everything."""

    class NotFound(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_web_server_that_is_not_mlflow_is_refused(tmp_path: Path, stranger: str) -> None:
    with pytest.raises(UserError, match="404"):
        MlflowSink(stranger, "trial", required=True).open(run_info(tmp_path / "run"))


def opened(
    uri: str, directory: Path, told: list[tuple[str, str]], **settings: Any
) -> tuple[MlflowSink, Any]:
    sink = MlflowSink(
        uri,
        "trial",
        required=False,
        notify=lambda *what: told.append(what),
        flush_seconds=0.02,
        **settings,
    )
    sink.open(run_info(directory))
    assert sink._delivery is not None
    return sink, sink._delivery._client


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_store_that_comes_back_gets_what_it_missed(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    sink, client = opened(uri, tmp_path / "run", told)
    with monkeypatch.context() as away:
        away.setattr(client, "log_batch", refuse)
        for step in range(50):
            sink.metrics({"pretrain/loss": step}, step)
        wait_for(lambda: bool(told))
        assert sink.run_id is not None
    sink.metrics({"pretrain/loss": 50.0}, 50)
    sink.close("FINISHED")
    assert [kind for kind, _ in told] == ["warning", "message"]
    assert "the server went away" in told[0][1]
    assert "events.jsonl" in told[0][1]
    run = only_run(uri)
    history = client_of(uri).get_metric_history(run.info.run_id, "pretrain/loss")
    assert [row.step for row in history] == list(range(51))
    assert run.info.status == "FINISHED"


def test_a_store_that_stays_away_is_warned_about_once_and_memory_is_bounded(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    sink, client = opened(uri, tmp_path / "run", told, capacity=100)
    for method in ("log_batch", "log_artifact", "set_terminated"):
        monkeypatch.setattr(client, method, refuse)
    for step in range(500):
        sink.metrics({"pretrain/loss": step}, step)
    wait_for(lambda: bool(told))
    assert sink._delivery is not None
    assert len(sink._delivery._rows) <= 100
    sink.close("FINISHED")
    assert [kind for kind, _ in told] == ["warning", "message"]
    assert "run closed: no" in told[1][1]
    assert "task=deliver run=" in told[1][1]
    assert not sink.delivered


def test_what_gave_way_in_memory_is_sent_from_disk_when_the_store_is_back(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    sink = MlflowSink(
        uri,
        "trial",
        required=True,
        notify=lambda *what: told.append(what),
        flush_seconds=0.02,
        capacity=100,
    )
    tracker = Tracker([JsonlSink(), sink])
    tracker.open(run_info(tmp_path / "run"))
    assert sink._delivery is not None
    with monkeypatch.context() as away:
        away.setattr(sink._delivery._client, "log_batch", refuse)
        tracker.metrics({"pretrain/loss": 0.0}, 0)
        wait_for(lambda: bool(told))
        for step in range(1, 1500):
            tracker.metrics({"pretrain/loss": step, "pretrain/lr": 0.1}, step)
        for index in (0, 1):
            tracker.event("mutation", mutation(index, step=1499))
        assert len(sink._delivery._rows) == 100
    tracker.metrics({"pretrain/loss": 1500.0}, 1500)
    assert not tracker.delivered
    tracker.close("FINISHED")
    assert tracker.delivered
    assert [kind for kind, _ in told] == ["warning", "message"]
    client = client_of(uri)
    steps = {
        key: [row.step for row in client.get_metric_history(sink.run_id, key)]
        for key in ("pretrain/loss", "pretrain/lr", "mutation/index")
    }
    assert {key: sorted(found) for key, found in steps.items()} == {
        "pretrain/loss": list(range(1501)),
        "pretrain/lr": list(range(1, 1500)),
        "mutation/index": [1499, 1500],
    }


def test_a_file_that_is_gone_stops_nothing(tmp_path: Path, uri: str) -> None:
    told: list[tuple[str, str]] = []
    sink, _ = opened(uri, tmp_path / "run", told)
    sink.artifact(tmp_path / "nowhere.json")
    kept = tmp_path / "architecture.json"
    kept.write_text("{}")
    sink.artifact(kept, "final")
    sink.close("FINISHED")
    assert [kind for kind, _ in told] == ["warning", "message"]
    assert "nowhere.json" in told[0][1]
    run = only_run(uri)
    assert [file.path for file in client_of(uri).list_artifacts(run.info.run_id, "final")] == [
        "final/architecture.json"
    ]
    assert run.info.status == "FINISHED"


def test_telling_does_not_wait_for_the_store(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, client = opened(uri, tmp_path / "run", [])
    log_batch = client.log_batch

    all_told = threading.Event()

    def waiting(*arguments: Any, **more: Any) -> None:
        assert all_told.wait(60), "the teller waits for the store"
        log_batch(*arguments, **more)

    monkeypatch.setattr(client, "log_batch", waiting)
    for step in range(100):
        sink.metrics({"pretrain/loss": step}, step)
    all_told.set()
    sink.close("FINISHED")
    history = client_of(uri).get_metric_history(sink.run_id, "pretrain/loss")
    assert len(history) == 100


def start_together(folder: Path, count: int) -> list[tuple[int, str]]:
    """Start `count` processes that open one fresh store at the same moment."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RUN_IN_A_PROCESS, str(folder), f"run{index}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])},
        )
        for index in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=240) for process in processes]
    return [
        (process.returncode, out + err) for process, (out, err) in zip(processes, ends, strict=True)
    ]


@pytest.mark.parametrize("count", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_processes_that_start_at_once_on_a_fresh_store_all_finish(
    tmp_path: Path, count: int
) -> None:
    assert start_together(tmp_path, count) == [(0, "")] * count
    client = client_of(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("together").experiment_id])
    assert sorted(run.info.run_name for run in runs) == [f"run{index}" for index in range(count)]
    for run in runs:
        assert run.info.status == "FINISHED"
        assert len(client.get_metric_history(run.info.run_id, "pretrain/loss")) == 20


@pytest.mark.parametrize(
    "uri", ["mlflow.db", "./mlruns", "file:///x", "sqlite:///", "sqlite:///:memory:", "http://", ""]
)
def test_other_addresses_are_refused(uri: str) -> None:
    with pytest.raises(UserError, match=r"tracking\.uri=.*accepted are sqlite:///FILE"):
        resolve_uri(uri)


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = Path.cwd()
    assert resolve_uri(None) == f"sqlite:///{here}/mlflow.db"
    assert resolve_uri("sqlite:///sub/x.db") == f"sqlite:///{here}/sub/x.db"
    assert resolve_uri("sqlite:////srv/x.db") == "sqlite:////srv/x.db"
    assert resolve_uri("http://127.0.0.1:5000/") == "http://127.0.0.1:5000"
    assert is_server("https://mlflow.example.org")
    assert not is_server("sqlite:////srv/x.db")
    assert shown("https://me:secret@example.org/path") == "https://example.org/path"
    assert shown("sqlite:////srv/x.db") == "sqlite:////srv/x.db"


def test_ui_command() -> None:
    command = "mlflow ui --backend-store-uri sqlite:////srv/x.db --workers 1"
    assert ui_command("sqlite:////srv/x.db") == command
    assert "'sqlite:////a b/x.db'" in ui_command("sqlite:////a b/x.db")
    assert ui_command("http://me:secret@127.0.0.1:5000") == "http://127.0.0.1:5000"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("fewshot/cifar_fs/val/5w1s/accuracy", "fewshot/cifar_fs/val/5w1s/accuracy"),
        ("optimizer.lr", "optimizer.lr"),
        ("a@=[],()b", "a_______b"),
        ("/x//../y/", "x/y"),
        ("λ", "_"),
        ("..", "_"),
        ("k" * 400, "k" * 250),
    ],
)
def test_clean_key(name: str, key: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert clean_key(name) == key
    _validate_metric_name(key)


def test_clean_param() -> None:
    assert clean_param(0.001) == "0.001"
    assert clean_param("x" * 499) == "x" * 499
    assert clean_param("x" * 500) == "x" * 498 + "…"


def test_reason_is_one_sentence_without_secrets() -> None:
    error = ValueError("no route to http://me:secret@example.org/api\nsecond line")
    assert reason(error) == "no route to http://example.org/api."
    assert reason(ValueError()) == "ValueError."
    assert reason(ValueError("x" * 900)) == "x" * 300 + "…"


def test_the_server_needs_an_address() -> None:
    with pytest.raises(UserError, match=r"tracking\.uri=.*http://127"):
        build_tracker(tracking(name="server", uri="sqlite:///x.db"))


def test_jsonl_alone_imports_no_mlflow(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from sseg_nase.config.groups.tracking import OnlyFiles\n"
        "from sseg_nase.tracking import build_tracker\n"
        "assert build_tracker(OnlyFiles('jsonl', 'x', False, 1)).run_id is None\n"
        "assert not {'mlflow', 'torch'} & set(sys.modules)\n"
    )
    environment: Mapping[str, str] = {
        **os.environ,
        "PYTHONPATH": str(Path(module.__file__).parents[2]),
    }
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=environment)


# -- what waits, what is lost, and what is said of it ----------------------------------------------


def away_for(monkeypatch: pytest.MonkeyPatch, client: Any, name: str, times: int) -> list[int]:
    """Let a method of the client fail so often before it works; returns a list of its calls."""
    method, calls = getattr(client, name), list[int]()

    def failing(*arguments: Any, **more: Any) -> Any:
        calls.append(len(calls))
        return (refuse if len(calls) <= times else method)(*arguments, **more)

    monkeypatch.setattr(client, name, failing)
    return calls


def test_a_file_that_did_not_arrive_is_sent_again(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    sink, client = opened(uri, tmp_path / "run", told)
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"picture")
    away_for(monkeypatch, client, "log_artifact", 3)
    sink.artifact(picture, "pictures")
    wait_for(lambda: len(told) == 2)
    sink.close("FINISHED")
    assert sink.delivered
    assert [kind for kind, _ in told] == ["warning", "message"]
    assert told[1][1].endswith("answers again.")
    run = only_run(uri)
    assert [f.path for f in client_of(uri).list_artifacts(run.info.run_id, "pictures")] == [
        "pictures/picture.png"
    ]
    assert "config.yaml" in {f.path for f in client_of(uri).list_artifacts(run.info.run_id)}


def test_a_file_that_never_arrives_is_missing(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    sink, client = opened(uri, tmp_path / "run", told)
    wait_for(lambda: bool(client.list_artifacts(sink.run_id)))
    away_for(monkeypatch, client, "log_artifact", 10**6)
    sink.close("FINISHED")  # config.yaml, as it is now
    assert not sink.delivered
    assert "metric rows and files missing: 1, run closed: yes" in told[-1][1]


def test_the_config_is_with_the_run_from_its_beginning(tmp_path: Path, uri: str) -> None:
    sink, client = opened(uri, tmp_path / "run", [])
    wait_for(lambda: bool(client.list_artifacts(sink.run_id)))
    assert [file.path for file in client.list_artifacts(sink.run_id)] == ["config.yaml"]
    sink.close("FINISHED")


def test_what_stands_on_disk_alone_is_sent_although_the_first_try_fails(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    sink, client = opened(uri, tmp_path / "run", told, capacity=3)
    events = JsonlSink()
    events.open(run_info(tmp_path / "run"))
    assert sink._delivery is not None
    with sink._delivery._changed:  # the thread waits
        for step in range(10):
            for each in (events, sink):
                each.metrics({"pretrain/loss": step, "pretrain/lr": 1.0}, step)
        # A metric that fell behind at two steps is behind up to the later one.
        assert sink._delivery._behind == {"pretrain/loss": 8, "pretrain/lr": 7}
        calls = away_for(monkeypatch, client, "get_metric_history", 1)
    wait_for(lambda: len(calls) > 2)
    sink.close("FINISHED")
    assert sink.delivered, told
    for name in ("pretrain/loss", "pretrain/lr"):
        history = client_of(uri).get_metric_history(sink.run_id, name)
        assert sorted(row.step for row in history) == list(range(10)), name


def test_what_stands_on_disk_alone_is_missing_while_it_was_not_sent(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    sink, client = opened(uri, tmp_path / "run", told, capacity=1)
    wait_for(lambda: bool(client.list_artifacts(sink.run_id)))
    (tmp_path / "run" / "config.yaml").unlink()  # nothing else is to be sent
    away_for(monkeypatch, client, "get_metric_history", 10**6)
    sink.metrics({"a": 1.0, "b": 1.0}, 1)
    sink.close("FINISHED")
    assert not sink.delivered
    assert "missing: more than 0, run closed: yes" in told[-1][1]


def test_rows_that_wait_are_sent_in_their_order(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, client = opened(uri, tmp_path / "run", [])
    sent: list[int] = []
    away_for(monkeypatch, client, "log_batch", 3)  # an odd number of times
    failing = client.log_batch

    def noted(run_id: str, metrics: Any = (), **more: Any) -> None:
        failing(run_id, metrics=metrics, **more)
        sent.extend(metric.step for metric in metrics)

    monkeypatch.setattr(client, "log_batch", noted)
    for step in range(50):
        sink.metrics({"pretrain/loss": step}, step)
    wait_for(lambda: len(sent) >= 50)
    sink.close("FINISHED")
    assert sent == list(range(50))


@pytest.mark.parametrize("code", ["INVALID_PARAMETER_VALUE", "INTERNAL_ERROR"])
def test_what_the_store_refuses_is_not_sent_again_and_counted(
    code: str, tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2

    told: list[tuple[str, str]] = []
    sink, client = opened(uri, tmp_path / "run", told)
    log_batch, refused = client.log_batch, list[int]()

    def choosy(run_id: str, metrics: Any = (), **more: Any) -> None:
        if metrics and len(refused) < 2:
            refused.append(len(metrics))
            number = getattr(databricks_pb2, code)
            raise MlflowException("no such thing", error_code=number)
        log_batch(run_id, metrics=metrics, **more)

    monkeypatch.setattr(client, "log_batch", choosy)
    sink.metrics({"a": 1.0, "b": 2.0}, 1)
    wait_for(lambda: bool(refused))
    if code == "INTERNAL_ERROR":  # it may be over the next time
        wait_for(lambda: len(refused) == 2)
    refused.append(0)
    sink.close("FINISHED")
    run = only_run(uri)
    assert run.info.status == "FINISHED"
    if code == "INTERNAL_ERROR":
        assert run.data.metrics == {"a": 1.0, "b": 2.0}
        assert sink.delivered
    else:
        assert run.data.metrics == {}
        assert not sink.delivered
        assert [kind for kind, _ in told] == ["warning", "message"]
        assert "metric rows and files missing: 2, run closed: yes" in told[1][1]


def test_in_a_hurry_what_waits_is_left_for_later(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_IN_A_HURRY", 0.1)
    told: list[tuple[str, str]] = []
    sink, client = opened(uri, tmp_path / "run", told)
    go_on = threading.Event()
    set_terminated = client.set_terminated

    def slow(*arguments: Any, **more: Any) -> None:
        assert go_on.wait(60)
        set_terminated(*arguments, **more)

    monkeypatch.setattr(client, "set_terminated", slow)
    delivery = sink._delivery
    assert delivery is not None
    sink.hurry()
    began = time.monotonic()
    sink.close("INTERRUPTED")
    took = time.monotonic() - began
    go_on.set()
    delivery._thread.join(60)
    assert took < 30
    assert not sink.delivered
    ((kind, text),) = told
    assert kind == "warning"  # nothing was said before
    assert "missing: 0, run closed: no" in text


def test_a_rollback_is_no_second_mutation(tmp_path: Path, uri: str) -> None:
    sink, _ = opened(uri, tmp_path / "run", [])
    sink.event("mutation", mutation(0, step=4))
    sink.event("rollback", mutation(0, step=4))
    sink.close("FINISHED")
    history = client_of(uri).get_metric_history(sink.run_id, "mutation/index")
    assert [row.step for row in history] == [4]


def test_the_end_has_no_password(tmp_path: Path, uri: str) -> None:
    sink, _ = opened(uri, tmp_path / "run", [])
    evaluated = {"accuracy": 5.0, "ci95": 1.0, "method": "as in http://bob:S3cret-Pw@host"}
    results = {"fewshot": {"digits/val/5w1s": evaluated}}
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    sink.close("FAILED", "refused by http://bob:S3cret-Pw@host/x")
    tags = only_run(uri).data.tags
    assert tags["error"] == "refused by http://host/x"
    assert tags["mlflow.note.content"].endswith("(as in http://host)")


# -- which run it is -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run", "it's a run", "it's \"100%_\\"])
def test_a_run_is_found_by_its_folder_alone(tmp_path: Path, uri: str, name: str) -> None:
    client, experiment_id = module.open_store(uri, "trial")
    made = module.create_run(client, experiment_id, run_info(tmp_path / name))
    other = f"{name[:-1]}x"
    module.create_run(client, experiment_id, run_info(tmp_path / other))
    found = module.find_run(client, experiment_id, None, tmp_path / name)
    assert found is not None
    assert found.info.run_id == made
    assert module.find_run(client, experiment_id, None, tmp_path / "another") is None


@pytest.mark.parametrize("known", [True, False])
def test_a_run_that_was_deleted_is_not_gone_on_with(tmp_path: Path, uri: str, known: bool) -> None:
    first, client = opened(uri, tmp_path / "it's a run", [])
    first.close("INTERRUPTED")
    resumed = Resumed(first.run_id if known else None, 0, 0)
    second = MlflowSink(uri, "trial", required=True)
    second.open(run_info(tmp_path / "it's a run", resumed=resumed))
    second.close("INTERRUPTED")
    assert second.run_id == first.run_id
    client.delete_run(first.run_id)
    third = MlflowSink(uri, "trial", required=True)
    third.open(run_info(tmp_path / "it's a run", resumed=resumed))
    third.close("FINISHED")
    assert third.run_id != first.run_id
    assert only_run(uri).info.run_id == third.run_id


def test_a_store_that_fails_is_not_one_that_lacks_the_run(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    class Failing:
        def get_run(self, run_id: str) -> None:
            raise MlflowException("it broke")

    with pytest.raises(MlflowException, match="it broke"):
        module.find_run(Failing(), "1", "abc", tmp_path)


def test_an_experiment_that_another_process_makes_at_once_is_taken() -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, RESOURCE_ALREADY_EXISTS

    class Client:
        code, asked = RESOURCE_ALREADY_EXISTS, 0

        def get_experiment_by_name(self, name: str) -> Any:
            self.asked += 1
            found = types.SimpleNamespace(lifecycle_stage="active", experiment_id="7")
            return found if self.asked > 1 else None

        def create_experiment(self, name: str, artifact_location: str | None) -> str:
            raise MlflowException("there is one", error_code=self.code)

    assert module._experiment(Client(), "trial", None) == "7"
    broken = Client()
    broken.code = INTERNAL_ERROR
    with pytest.raises(MlflowException):
        module._experiment(broken, "trial", None)


def test_a_store_with_options_of_sqlite_lies_beside_its_file(tmp_path: Path, uri: str) -> None:
    client, experiment_id = module.open_store(f"{uri}?timeout=7", "trial")
    place = client.get_experiment(experiment_id).artifact_location
    assert place == (tmp_path / "mlruns").as_uri()
    assert (tmp_path / "mlflow.db.lock").exists()
    assert {path.name for path in tmp_path.glob("mlflow.db*")} == {"mlflow.db", "mlflow.db.lock"}


def test_the_home_folder_in_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert resolve_uri("sqlite:///~/x.db") == "sqlite:////home/someone/x.db"


def test_limits_that_the_user_has_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "7")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    module._load_mlflow()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"


@pytest.mark.parametrize("code", [401, 403])
def test_where_a_password_comes_from_is_said_to_whom_it_lacks(code: int) -> None:
    said = reason(ValueError(f"failed with error code {code} != 200"))
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in said


def test_a_full_disk_is_said_with_its_room() -> None:
    for error in (OSError(errno.ENOSPC, "no"), ValueError("database or disk is full")):
        assert f" are free in {Path.cwd()}." in reason(error)
    assert "are free" not in reason(OSError(errno.EACCES, "no"))


def test_a_warning_that_cannot_be_written_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: Any) -> None:
        raise StorageError(tmp_path, errno.ENOSPC)

    monkeypatch.setattr(JsonlSink, "event", full)
    address = f"http://bob:S3cret-Pw@127.0.0.1:{closed_port()}"
    tracker = build_tracker(tracking(name="server", uri=address), console=False)
    tracker.open(run_info(tmp_path / "run"))
    tracker.close("FINISHED")
    said = capsys.readouterr().err
    assert said.startswith(f"sseg-nase: MLflow at http://127.0.0.1:{address.rpartition(':')[2]}")
    assert "S3cret" not in said
