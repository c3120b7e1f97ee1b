"""The network of a run as a model of MLflow: in the tab *Models*, and ready to be registered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sseg_nase.rundir.names import MODEL

# MLflow's tag by which its UI knows a folder of a run's artifacts as a model, with so much of what
# stands in its MLmodel: as servers of MLflow 2 keep models.
OF_ARTIFACTS_TAG = "mlflow.log-model.history"
OF_A_MODEL = (
    *("artifact_path", "flavors", "mlflow_version", "model_uuid", "run_id", "signature"),
    "utc_time_created",
)
UUID_TAG = "model_uuid"  # of a model in the store: which writing of `model/` it is
FIGURES = "headline/"  # of a run: those of the network that its results are headed by
NO_MODELS = "ENDPOINT_NOT_FOUND"


def has_model(directory: Path) -> bool:
    """Whether a run's folder has a `model/` that can be read."""
    return _described(directory / MODEL) is not None


def log_model(client: Any, run_id: str, directory: Path) -> int:
    """Keep `model/` of a run's folder as a model of the store, with the run's headline figures.

    Returns how many files were sent: none where the store has it, or there is none that can be
    read. A server that knows no models yet keeps the files with the run.
    """
    folder = directory / MODEL
    described = _described(folder)
    if described is None:
        return 0
    from mlflow.exceptions import MlflowException

    try:
        return _log(client, run_id, folder, str(described["model_uuid"]))
    except MlflowException as error:
        if error.error_code != NO_MODELS:
            raise
    client.log_artifacts(run_id, str(folder), MODEL)
    client.set_tag(run_id, OF_ARTIFACTS_TAG, json.dumps([described]))
    return _count(folder)


def _log(client: Any, run_id: str, folder: Path, uuid: str) -> int:
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    of_run = f"name = '{MODEL}' AND source_run_id = '{run_id}'"
    known = client.search_logged_models([experiment], of_run)
    model = next((one for one in known if one.tags.get(UUID_TAG) == uuid), None)
    if model is None:
        tags, params = {UUID_TAG: uuid}, dict(run.data.params)
        model = client.create_logged_model(experiment, MODEL, run_id, tags=tags, params=params)
    elif model.status == LoggedModelStatus.READY:
        return 0
    client.log_model_artifacts(model.model_id, str(folder))
    outputs = run.outputs.model_outputs if run.outputs is not None else []
    if model.model_id not in {one.model_id for one in outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    _log_figures(client, run, model.model_id)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return _count(folder)


def _log_figures(client: Any, run: Any, model_id: str) -> None:
    """Give the model what the run has: told in the same way, the run has it once.

    An accuracy, `headline/digits/val/5w1s`, says which data set of the run it is of.
    """
    from mlflow.entities import Metric

    run_id, figures = run.info.run_id, list[Metric]()
    used = [one.dataset for one in run.inputs.dataset_inputs] if run.inputs is not None else []
    for key in sorted(key for key in run.data.metrics if key.startswith(FIGURES)):
        last = max(
            client.get_metric_history(run_id, key), key=lambda one: (one.step, one.timestamp)
        )
        of = next((one for one in used if key.startswith(f"{FIGURES}{one.name}/")), None)
        name, digest = (None, None) if of is None else (of.name, of.digest)
        figures.append(Metric(key, last.value, last.timestamp, last.step, model_id, name, digest))
    if figures:
        client.log_batch(run_id, metrics=figures)


def _described(folder: Path) -> Mapping[str, Any] | None:
    """What MLmodel says; None where the run has no model, or one that cannot be read."""
    try:
        said = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
        return {key: said[key] for key in OF_A_MODEL}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


def _count(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))
