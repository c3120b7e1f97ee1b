"""The network of a run as a model of MLflow: it loads, takes tables, and classifies as we do."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from sseg_nase.config.compose import load
from sseg_nase.data.views import normalize
from sseg_nase.errors import UserError
from sseg_nase.run import run
from sseg_nase.runtime import FewShotClassifier
from sseg_nase.stages import Evaluation, FewShotTask, results, seed_backbone
from sseg_nase.stages.served import TorchEmbedder, metadata_of, write_model
from sseg_nase.tracking import Sink

TINY = ["debug=tiny", "hardware=cpu", "hardware.threads=1", "dataset=digits"]
TINY += ["dataset.image_size=8", "backbone.channels=[4,6]", "evaluation.shots=[5]"]


def encoded(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def task() -> FewShotTask:
    config = load(TINY)
    return FewShotTask(config, config.dataset)


@pytest.fixture(scope="module")
def mean(task: FewShotTask) -> torch.Tensor:
    evaluated = task.evaluate(seed_backbone(task.config), torch.device("cpu"))
    assert evaluated.mean is not None
    return evaluated.mean


@pytest.fixture(scope="module")
def model(task: FewShotTask, mean: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what mlflow stands on is full of deprecations
        from mlflow import pyfunc

        folder = tmp_path_factory.mktemp("run")
        write_model(folder, task.config, seed_backbone(task.config), mean, task.store, "x")
        return pyfunc.load_model(str(folder / "model"))


def table(task: FewShotTask, episode: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """An episode as the model takes it, and the images of it, support first."""
    [episodes] = task.episodes
    support, query = episodes.support[episode], episodes.query[episode]
    labels = [f"way {way}" for way, chosen in enumerate(support) for _ in chosen]
    indices = np.concatenate([support.reshape(-1), query.reshape(-1)])
    images = np.asarray(task.store.images)[indices]
    rows = {"image": [encoded(one) for one in images]}
    rows["label"] = labels + [None] * query.size  # type: ignore[assignment]
    return pd.DataFrame(rows), images


def test_the_mean_is_that_of_the_base_split(task: FewShotTask, mean: torch.Tensor) -> None:
    assert task.base is not None
    network = seed_backbone(task.config).for_inference()
    with torch.inference_mode():
        base = network(normalize(task.base.batch(np.arange(len(task.base)))))
    torch.testing.assert_close(mean, base.mean(0))


@pytest.mark.filterwarnings("ignore")
def test_images_become_features_and_labels_those_of_the_classifier(
    task: FewShotTask, mean: torch.Tensor, model: Any
) -> None:
    rows, images = table(task)
    backbone = seed_backbone(task.config)
    metadata = metadata_of(task.config, backbone, mean, 1.0, {})
    embedder = TorchEmbedder(backbone.for_inference(), metadata)
    found = model.predict(rows[["image"]])
    np.testing.assert_allclose(found, embedder(images), atol=1e-6)
    classifier = FewShotClassifier(embedder)
    taught = rows["label"].notna().sum()
    for name in rows["label"][:taught].unique():
        classifier.add(name, images[:taught][rows["label"][:taught] == name])
    named = model.predict(rows)
    assert named["label"].tolist() == classifier.predict(images[taught:]).names
    assert named.index.tolist() == list(range(taught, len(rows)))
    with pytest.raises(UserError, match="rows without a label are those to be named"):
        model.predict(rows[:taught])


@pytest.mark.filterwarnings("ignore")
def test_the_model_says_what_it_takes(model: Any) -> None:
    assert model.metadata.get_input_schema().input_names() == ["image", "label"]
    example = model.input_example
    assert model.predict(example).shape == (2, 6)
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="image"):
        model.predict(pd.DataFrame({"picture": [b""]}))


def test_a_model_that_cannot_be_written_costs_the_run_nothing(
    task: FewShotTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Place(Sink):
        run_id = None
        said: ClassVar[list[str]] = []
        kept: ClassVar[list[Path]] = []

        def event(self, kind: str, values: Any) -> None:
            self.said.append(f"{kind}: {values['text']}")

        def artifact(self, path: Path, folder: str | None = None) -> None:
            self.kept.append(path)

    def refuse(*given: Any) -> None:
        raise OSError("full")

    monkeypatch.setattr(results, "write_model", refuse)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()
    tracking = dataclasses.replace(task.config.tracking, model=True, checkpoints=True)
    this = SimpleNamespace(
        config=dataclasses.replace(task.config, tracking=tracking),
        directory=tmp_path,
        sink=Place(),
        warn=lambda text: Place.said.append(f"warning: {text}"),
    )
    backbone = seed_backbone(task.config)
    results.keep(this, tracking, backbone, Evaluation({}, {}, {}), task.store)  # type: ignore[arg-type]
    said = "tracking.model=true: the model is not written: full"
    assert Place.said == [f"warning: {said}"]
    assert Place.kept == [tmp_path / "checkpoints" / "last.pt"]


LOADED = """
import json, sys
import pandas as pd
from mlflow import pyfunc
model = pyfunc.load_model(f"runs:/{sys.argv[1]}/model")
print(json.dumps(model.predict(model.input_example).tolist()))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_finished_run_is_loaded_in_another_process(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    given = [*TINY, "tracking=mlflow", f"tracking.uri={store}", "tracking.checkpoints=true"]
    given += [f"paths.output_dir={tmp_path / 'runs'}", "report.at_end=false"]
    folder = run(load(given), given)
    status = json.loads((folder / "status.json").read_text())
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store)
    kept = [one.path for one in client.list_artifacts(status["tracker_run_id"], "checkpoints")]
    assert kept == ["checkpoints/best.pt", "checkpoints/last.pt"]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, status["tracker_run_id"]],
        env={"MLFLOW_TRACKING_URI": store, "PYTHONPATH": ":".join(sys.path), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    features = json.loads(done.stdout.splitlines()[-1])
    assert np.shape(features)[0] == 2
    assert np.isfinite(features).all()
    # It is in the tab of models, and can be registered from there.
    run_id = status["tracker_run_id"]
    experiment = client.get_run(run_id).info.experiment_id
    [logged] = client.search_logged_models([experiment])
    assert logged.source_run_id == run_id
    headline = {one.key: one.value for one in logged.metrics}
    assert headline["headline/digits/val/5w5s"] > 20
    client.create_registered_model("ours")
    version = client.create_model_version("ours", f"models:/{logged.model_id}", run_id)
    assert client.get_model_version_download_uri("ours", version.version) == (
        logged.artifact_location
    )
