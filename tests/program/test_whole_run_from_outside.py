"""A family, an operator, a data set, a self-supervised and a few-shot method of other packages.

Those of docs/extending/, each one file and one YAML, all in one run: composed, trained, logged, in
MLflow, reported, resumed and replayed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sseg_nase.config.compose import load, stored
from sseg_nase.nets.building import asked_for
from sseg_nase.run import run
from sseg_nase.rundir.config import read_config
from sseg_nase.stages.replaying import replayed
from sseg_nase.training.interruption import Interrupted, Interruption
from tests.support.examples import DOCS, installed, page

PAGES = ("backbone", "operator", "dataset", "ssl-method", "few-shot")
CHOSEN = {
    "backbone.name": "twins",
    "dataset.name": "stripes",
    "ssl.name": "vicreg",
    "evaluation.method": "farthest",
}
GIVEN = [
    *["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "curriculum=natural"],
    *["backbone=twins", "backbone.width=6", "ssl=vicreg", "dataset=stripes"],
    *["ssl.projection_hidden=16", "ssl.projection_dim=8", "ssl.distillation_weight=1"],
    *["evolution=sseg", "evolution.operators=[mirror]"],
    *["sparsity=nase", "sparsity.min_channels=2", "sparsity.round_to=1"],
    *["pretrain.epochs=5", "pretrain.images_per_epoch=32"],
    *["evaluation=farthest", "evaluation.queries=3", "evaluation.shots=[1]"],
    *["evaluation.episodes=5", "tracking=mlflow", "tracking.model=false"],
]  # 2 steps an epoch

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # what MLflow stands on is full of them
    pytest.mark.skipif(not DOCS.exists(), reason="the documentation is not there"),
]


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the YAML of these pages, which are installed."""
    pages = (page(f"extending/{name}.md") for name in PAGES)
    with installed("".join(pages), tmp_path / "installed", monkeypatch) as folder:
        yield folder


def lines(directory: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def in_mlflow(uri: str) -> list[tuple[Any, dict[str, list[float]]]]:
    """Every run of the store with its metrics."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("sseg-nase")
    return [
        (each, {
            name: [row.value for row in client.get_metric_history(each.info.run_id, name)]
            for name in each.data.metrics
        })
        for each in client.search_runs([experiment.experiment_id], order_by=["start_time"])
    ]  # fmt: skip


def test_all_of_them_in_one_run(
    conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    given = [*GIVEN, f"tracking.uri={uri}"]
    place = f"paths.output_dir={tmp_path / 'whole'}"
    whole = run(load([*given, place, "report.at_end=true"], conf), given)

    # The configuration that the run has kept names what comes from outside.
    config = stored(whole / "config.yaml")
    assert (config.backbone.name, config.dataset.name) == ("twins", "stripes")
    assert (config.ssl.name, config.evaluation.settings) == ("vicreg", {"order": 2})
    # Trained and logged.
    told = Counter(event["kind"] for event in lines(whole, "events.jsonl"))
    assert told["epoch"] == 5
    assert told["metrics"] > 0
    mutations = lines(whole, "mutations.jsonl")
    made = {mutation["kind"] for mutation in mutations if mutation["accepted"]}
    assert made == {"MIRROR", "PRUNE"}
    results = json.loads((whole / "results.json").read_text())
    ((key, found),) = results["fewshot"].items()
    assert (key, found["method"]) == ("stripes/val/5w1s", "farthest/cl2n")
    # Reported.
    report = (whole / "report" / "report.md").read_text()
    for name in ("stripes", "farthest", "vicreg", "twins", "mirrored", "MIRROR"):
        assert name in report, name
    # Replayed.
    seed, *_, last = replayed(whole)[1]
    assert seed == asked_for(read_config(whole))
    assert last.to_dict() == json.loads((whole / "architecture.json").read_text())
    assert last != seed

    # Resumed: stopped in the third epoch, it ends as the one that was not.
    asked = iter([*[False] * 6, *[True] * 1000])
    elsewhere = f"paths.output_dir={tmp_path / 'stopped'}"
    with monkeypatch.context() as patched:
        patched.setattr(Interruption, "is_requested", lambda self: next(asked))
        with pytest.raises(Interrupted):
            run(load([*given, elsewhere], conf), given)
    (stopped,) = (tmp_path / "stopped" / "debug").iterdir()
    again = [f"resume={stopped}"]
    assert run(load([*given, elsewhere, *again], conf), again) == stopped
    states = [
        torch.load(each / "checkpoints" / "last.pt", weights_only=True) for each in (whole, stopped)
    ]
    for part in ("student", "teacher"):
        assert states[0][part].keys() == states[1][part].keys()
        assert all(torch.equal(states[0][part][n], states[1][part][n]) for n in states[0][part])
    assert json.loads((stopped / "results.json").read_text())["fewshot"] == results["fewshot"]

    # In MLflow: a run each, with what was chosen, every mutation and the accuracy.
    recorded = in_mlflow(uri)
    assert len(recorded) == 2
    codes = {"PRUNE": 3.0, "MIRROR": 7.0}
    for one, metrics in recorded:
        assert one.info.status == "FINISHED"
        assert {name: one.data.params[name] for name in CHOSEN} == CHOSEN
        assert metrics["mutation/kind"] == [codes[mutation["kind"]] for mutation in mutations]
        accuracy = metrics["fewshot/stripes/val/5w1s/accuracy"]
        assert accuracy == [pytest.approx(found["accuracy"])]
