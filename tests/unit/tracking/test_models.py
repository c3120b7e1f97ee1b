"""The network of a run as a model of the store."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sseg_nase.tracking import Resumed, Tracker, models
from sseg_nase.tracking.delivery import send_missing
from sseg_nase.tracking.jsonl import JsonlSink
from sseg_nase.tracking.mlflow_sink import MlflowSink
from sseg_nase.tracking.models import OF_A_MODEL, OF_ARTIFACTS_TAG, log_model
from tests.support.mlflow_stores import client_of, only_run, refuse, run_info

FIGURES = {"headline/digits/val/5w1s": 54.97, "headline/params": 18_000.0}


def write_model(directory: Path, uuid: str = "first") -> None:
    """What a run keeps of its network: MLmodel, and a file in a folder."""
    described = dict.fromkeys(OF_A_MODEL, "said")
    described |= {"model_uuid": uuid, "artifact_path": "model", "more": "1"}
    (directory / "model" / "data").mkdir(parents=True, exist_ok=True)
    (directory / "model" / "MLmodel").write_text(yaml.safe_dump(described))
    (directory / "model" / "data" / "network.pt").write_bytes(uuid.encode())


def finished(
    uri: str, directory: Path, told: list[tuple[str, str]], *, resumed: Resumed | None = None
) -> MlflowSink:
    """A run that has told its figures, written its model and ended."""
    sink = MlflowSink(uri, "trial", required=True, notify=lambda *what: told.append(what))
    tracker = Tracker([JsonlSink(), sink])
    tracker.open(run_info(directory, resumed=resumed))
    tracker.metrics({"pretrain/loss": 3.0}, 0)
    tracker.metrics(FIGURES, 0)
    tracker.close("FINISHED")
    return sink


def models_of(uri: str) -> list[Any]:
    client = client_of(uri)
    experiment = client.get_experiment_by_name("trial").experiment_id
    return list(client.search_logged_models([experiment]))


def test_a_run_has_its_network_as_a_model_with_its_figures(tmp_path: Path, uri: str) -> None:
    told: list[tuple[str, str]] = []
    run_info(tmp_path / "run")
    write_model(tmp_path / "run")
    sink = finished(uri, tmp_path / "run", told)
    assert told == []
    assert sink.delivered
    client, run, [model] = client_of(uri), only_run(uri), models_of(uri)
    assert (model.name, str(model.status)) == ("model", "READY")
    assert model.source_run_id == run.info.run_id
    assert {one.key: one.value for one in model.metrics} == FIGURES
    assert {one.key: (one.dataset_name, one.dataset_digest) for one in model.metrics} == {
        "headline/digits/val/5w1s": ("digits/val", "0a" * 16),
        "headline/params": (None, None),
    }
    assert model.params == {"seed": "0", "optimizer.lr": "0.001"} == run.data.params
    assert [one.model_id for one in run.outputs.model_outputs] == [model.model_id]
    kept = client.list_logged_model_artifacts(model.model_id, "data")
    assert [one.path for one in kept] == ["data/network.pt"]
    # Neither its files nor its figures are there twice.
    artifacts = tmp_path / "mlruns" / run.info.run_id / "artifacts"
    assert not (artifacts / "model").exists()
    assert [one.path for one in client.list_artifacts(run.info.run_id, "model/data")] == [
        "model/data/network.pt"
    ]
    for key in FIGURES:
        assert len(client.get_metric_history(run.info.run_id, key)) == 1


def test_a_resumed_run_has_a_model_for_each_network_that_it_came_to(
    tmp_path: Path, uri: str
) -> None:
    told: list[tuple[str, str]] = []
    run_info(tmp_path / "run")
    write_model(tmp_path / "run")
    first = finished(uri, tmp_path / "run", told)
    finished(uri, tmp_path / "run", told, resumed=Resumed(first.run_id, 0, 0))
    assert len(models_of(uri)) == 1
    write_model(tmp_path / "run", "second")
    finished(uri, tmp_path / "run", told, resumed=Resumed(first.run_id, 0, 0))
    assert [one.tags["model_uuid"] for one in models_of(uri)] == ["second", "first"]
    assert told == []


@pytest.mark.parametrize(
    "method", ["create_logged_model", "log_model_artifacts", "finalize_logged_model"]
)
def test_a_model_that_did_not_arrive_is_sent_later(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from mlflow.tracking import MlflowClient

    told: list[tuple[str, str]] = []
    run_info(tmp_path / "run")
    write_model(tmp_path / "run")
    with monkeypatch.context() as away:
        away.setattr(MlflowClient, method, refuse)
        sink = finished(uri, tmp_path / "run", told)
    assert not sink.delivered
    assert "missing: 1," in told[-1][1]
    assert all(str(one.status) != "READY" for one in models_of(uri))
    again: dict[str, Any] = {"run_id": sink.run_id, "status": "FINISHED", "error": None}
    sent = send_missing(tmp_path / "run", uri, "trial", **again)
    assert sent.files == 2
    [model] = models_of(uri)
    assert str(model.status) == "READY"
    assert {one.key: one.value for one in model.metrics} == FIGURES
    assert len(only_run(uri).outputs.model_outputs) == 1
    assert send_missing(tmp_path / "run", uri, "trial", **again).files == 0


def test_a_run_without_a_model_and_a_damaged_one_cost_nothing(tmp_path: Path) -> None:
    assert log_model(None, "", tmp_path) == 0
    write_model(tmp_path)
    for damaged in ("{}", "[", "a: b", "1"):
        (tmp_path / "model" / "MLmodel").write_text(damaged)
        assert log_model(None, "", tmp_path) == 0


# -- servers that know no models -------------------------------------------------------------------


@pytest.fixture
def older() -> Iterator[str]:
    """A server that has runs, and nothing at the addresses of models."""

    class Older(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            info = {"run_id": "a-run", "experiment_id": "1", "status": "RUNNING"}
            known = self.path.partition("?")[0].endswith("/runs/get")
            content = json.dumps({"run": {"info": info, "data": {}}}).encode() if known else b"no"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815 - names of http.server

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Older)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_knows_no_models_keeps_it_with_the_run(
    tmp_path: Path, older: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    write_model(tmp_path)
    client, asked = client_of(older), list[tuple[Any, ...]]()
    for method in ("log_artifacts", "set_tag"):
        monkeypatch.setattr(MlflowClient, method, lambda self, *given: asked.append(given))
    assert log_model(client, "a-run", tmp_path) == 2
    files, (run, tag, text) = asked
    assert files == ("a-run", str(tmp_path / "model"), "model")
    assert (run, tag) == ("a-run", OF_ARTIFACTS_TAG)
    [described] = json.loads(text)
    assert set(described) == set(OF_A_MODEL)
    assert described["model_uuid"] == "first"


def test_another_refusal_is_no_such_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    def fail(*given: Any) -> int:
        raise MlflowException("the disk is full")

    write_model(tmp_path)
    monkeypatch.setattr(models, "_log", fail)
    with pytest.raises(MlflowException, match="disk is full"):
        log_model(None, "a-run", tmp_path)
