"""`task=report` of one run, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sseg_nase.rundir.status import FINISHED
from sseg_nase.tracking.mlflow_sink import MlflowSink
from sseg_nase.tracking.sink import RunInfo
from tests.unit.reporting.test_comparison import Cli, cli  # noqa: F401  # a fixture
from tests.unit.reporting.test_report_run import FILES, _few_figures, a_run  # noqa: F401  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore")  # what MLflow stands on is full of them


def status(run: Path, **said: Any) -> None:
    (run / "status.json").write_text(json.dumps({"status": "FINISHED", "error": None, **said}))


def test_one_run_is_reported_in_its_own_folder(cli: Cli) -> None:  # noqa: F811
    run = a_run(Path("runs/quickstart/one").absolute())
    code, shown, said = cli("task=report", "runs=LAST")
    assert (code, shown) == (0, "")
    assert {path.name for path in (run / "report").iterdir()} == FILES
    assert f"report: {run / 'report' / 'report.html'}" in said
    assert f"MLflow: this run has no MLflow run; the files stay in {run / 'report'}" in said
    status(run, status="RUNNING")
    code, _, said = cli("task=report", f"runs={run}", "report.output=else/where", "tracking=jsonl")
    assert code == 0
    page = Path("else/where/report.md").read_text()
    assert "This run is RUNNING by its status.json, but nothing holds it" in page
    assert "MLflow: not used (tracking=jsonl)" in said


def test_a_store_that_is_gone_is_said_and_not_made_anew(cli: Cli) -> None:  # noqa: F811
    run = a_run(Path("runs/quickstart/one").absolute())
    gone = Path("gone.db").absolute()
    for uri in (f"sqlite:///{gone}", "http://127.0.0.1:9"):
        status(run, tracking_uri=uri, tracker_run_id="abc")
        code, _, said = cli("task=report", "runs=LAST")
        assert code == 0
        (line,) = (line for line in said.splitlines() if "MLflow" in line)
        assert f"{uri} does not take it: " in line
        assert f"The files stay in {run / 'report'}." in line
        assert "Traceback" not in said
    assert not gone.exists()


def test_the_report_goes_to_the_run_that_mlflow_has(cli: Cli) -> None:  # noqa: F811
    run = a_run(Path("runs/quickstart/one").absolute())
    uri = f"sqlite:///{Path('mlflow.db').absolute()}"
    sink = MlflowSink(uri, "tests", required=True)
    sink.open(RunInfo(run, "one", "tests", run / "config.yaml", 1))
    run_id = sink.run_id
    sink.close(FINISHED)
    status(run, tracking_uri=uri, tracker_run_id=run_id)
    code, _, said = cli("task=report", "runs=LAST")
    assert (code, f"files attached to run {run_id} at {uri}" in said) == (0, True), said
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    stored = {Path(file.path).name for file in client.list_artifacts(run_id, "report")}
    assert stored == FILES
    pictures = {Path(file.path).name for file in client.list_artifacts(run_id, "report/figures")}
    assert pictures == {"first.png", "first.svg", "first.pdf"}
    assert client.get_run(run_id).info.status == "FINISHED"
