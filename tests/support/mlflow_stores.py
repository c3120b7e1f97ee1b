"""MLflow stores and runs for the tests here."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from sseg_nase.tracking import Dataset, RunInfo


def client_of(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MlflowClient(tracking_uri=uri)


def run_info(directory: Path, **changes: Any) -> RunInfo:
    directory.mkdir(exist_ok=True)
    config = directory / "config.yaml"
    config.write_text("seed: 0\n")
    settings: dict[str, Any] = {
        "directory": directory,
        "name": "ablation=A7",
        "experiment": "trial",
        "config_file": config,
        "total_epochs": 3,
        "params": {"seed": 0, "optimizer.lr": 1e-3},
        "datasets": (Dataset("digits/val", "0a" * 16, "evaluate, select", 900),),
    }
    return RunInfo(**{**settings, **changes})


def datasets_of(run: Any) -> list[tuple[str, str, str, str]]:
    """Name, digest, roles and profile of what MLflow says that a run was made with."""
    return [
        (one.dataset.name, one.dataset.digest, one.tags[0].value, one.dataset.profile)
        for one in run.inputs.dataset_inputs
    ]


DATASETS = [("digits/val", "0a" * 16, "evaluate, select", '{"images": 900}')]


def mutation(index: int = 0, step: int = 4, kind: str = "GROW") -> dict[str, Any]:
    shape = {"blocks": 3, "channels": [16, 32, 64], "params": 23584, "macs": 10}
    return {
        "index": index,
        "epoch": 1,
        "step": step,
        "kind": kind,
        "target": {"block": 3},
        "trigger": {"plateau": True},
        "before": shape,
        "after": {**shape, "blocks": 4},
        "function_delta": 0.0,
        "loss_before": 5.0,
        "loss_after": 5.1,
        "fitness": 0.1,
        "seconds": 0.5,
        "accepted": True,
        "measured": None,
    }


def only_run(uri: str, experiment: str = "trial") -> Any:
    client = client_of(uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert len(found) == 1
    return found[0]


def refuse(*arguments: Any, **more: Any) -> None:
    raise ConnectionError("the server went away")
