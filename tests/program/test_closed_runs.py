"""Runs that are evaluated on a closed set: what they write, and when test is opened."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sseg_nase import stages
from sseg_nase.config.compose import load
from sseg_nase.config.groups.finetune import Classifier, FinetuneConfig
from sseg_nase.config.schema import Config
from sseg_nase.data.benchmarks import closed
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError
from sseg_nase.export.subject import prepared
from sseg_nase.finetune.learner import around
from sseg_nase.reporting.markdown import as_markdown
from sseg_nase.reporting.run_report import document
from sseg_nase.run import run
from sseg_nase.rundir.record import read_run
from sseg_nase.searches.jobs import scores_of
from sseg_nase.tracking.rows import result_tags
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint
from sseg_nase.training.interruption import Interrupted
from tests.support import closed_files as made

TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.precision=32-true",
    "tracking=jsonl",
    "dataset=cifar10",
    "dataset.image_size=16",
    "dataset.validation=0.2",
]
ALONE = ["ssl=none", "evolution=none", "sparsity=none", "finetune=classifier", "finetune.epochs=2"]
CLASSIFIED = [*ALONE, "evaluation=classification"]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.cifar10(tmp_path_factory.mktemp("closed"), train=20, test=3)


@pytest.fixture(autouse=True)
def here(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSEG_NASE_DATA", str(images))
    monkeypatch.setenv("SSEG_NASE_CACHE", str(tmp_path / "cache"))


def composed(*further: str) -> Config:
    return load([*TINY, *further])


def results_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return found


class Reader:
    """Counts how often test's file is read, and what was trained when it was."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[list[str]] = []
        read = closed.read_pickle

        def counted(path: Path) -> dict[str, Any]:
            if path.name == "test_batch":
                self.seen.append(sorted(each.name for each in Path.cwd().rglob("*.pt")))
            return read(path)

        monkeypatch.setattr(closed, "read_pickle", counted)


def test_a_classifier_is_evaluated_on_test_once_after_all_is_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = Reader(monkeypatch)
    directory = run(composed(*CLASSIFIED, "finetune.fraction=0.5", "evaluation.split=test"))
    assert reader.seen == [["finetune_best.pt", "finetune_last.pt"]]
    results = results_of(directory)
    assert results["fewshot"] == {}
    result = results["classification"]["cifar10/test/classification"]
    assert (result["images"], result["method"]) == (30, "classifier")
    assert 0 <= result["accuracy"] <= result["top_k"]["5"] <= 100
    rows = result["per_class"]
    assert [row["name"] for row in rows] == sorted(made.CIFAR10)
    assert result["recall"] == pytest.approx(result["accuracy"])  # as many images of each class
    for key in ("precision", "recall", "f1", "auc"):
        present = [row[key] for row in rows]
        assert len(present) == 10
        assert 0 <= result[key] <= 100
    assert np.mean([row["auc"] for row in rows]) == pytest.approx(result["auc"])
    assert np.shape(result["roc"]) == (2, 201)
    # What stands beside it says the same.
    with np.load(directory / "episodes.npz") as arrays:
        right = arrays["cifar10/test/classification"]
    assert right.shape == (30,)
    assert right.mean() == pytest.approx(result["accuracy"])
    with np.load(directory / "confusion.npz") as arrays:
        counts = arrays["cifar10/test/classification"]
        assert arrays["classes:cifar10/test"].tolist() == sorted(made.CIFAR10)
    assert counts.sum(1).tolist() == [3] * 10
    assert 100 * np.trace(counts) / 30 == pytest.approx(result["accuracy"])
    (stage,) = results["finetuning"]
    assert stage["labelled_images"] == 80  # half of 16 of each class
    assert results["images_seen"]["real_labeled"] == 2 * 80
    data = json.loads((directory / "data.json").read_text())
    assert data["roles"] == {
        "finetune": ["cifar10/train"],
        "select": ["cifar10/val"],
        "evaluate": ["cifar10/test"],
    }
    assert results["data"]["evaluated"]["cifar10/test"]["count"] == 30
    out = capsys.readouterr().out
    assert "cifar10/test/classification" in out
    assert "30 images, classifier" in out
    logged = (directory / "events.jsonl").read_text()
    assert "classification/cifar10/test/classification/f1" in logged
    # So do the report and what other rooms read of a run.
    record = read_run(directory)
    text = as_markdown(document(record), directory)
    said = [f"{result[key]:.2f}" for key in ("precision", "recall", "f1", "auc")]
    assert f"| 30 | {result['top_k']['5']:.2f} | {' | '.join(said)} | classifier |" in text
    assert all(f"| {name} | 3 |" in text for name in made.CIFAR10)
    assert "% on val images" in text
    assert result_tags(directory)["accuracy_classification"] == f"{result['accuracy']:.2f}"
    assert scores_of(results)["accuracy"] == result["accuracy"]
    # The checkpoint says the same again.
    best = f"checkpoint={directory}/checkpoints/finetune_best.pt"
    again = run(
        composed("evaluation=classification", "evaluation.split=test", "task=evaluate", best)
    )
    assert results_of(again)["classification"] == results["classification"]
    as_exported(directory, result, "cifar10/test/classification")


def as_exported(run: Path, result: dict[str, Any], key: str) -> None:
    """What is exported of a run is evaluated as the run was, image by image."""
    subject = prepared(composed("task=export", f"checkpoint={run}"), ["task=export"])
    (told,) = subject.metadata.about["accuracy"].items()
    assert told[0] == key
    assert told[1] == {
        "accuracy": pytest.approx(result["accuracy"]),
        "ci95": pytest.approx(result["ci95"]),
        "images": result["images"],
    }
    turned = subject.evaluate(
        np.zeros((len(subject.store), subject.network.architecture.features)).astype(np.float32)
    )
    assert turned[key].mean() == pytest.approx(10)  # all are taken for one class
    assert len(subject.accuracies[key]) == result["images"]


@pytest.mark.parametrize("how", [pytest.param("knn", marks=pytest.mark.slow), "linear_probe"])
def test_a_network_that_has_seen_no_label_is_evaluated_by_its_embeddings(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(monkeypatch)
    directory = run(
        composed("ablation=A2", f"evaluation={how}", "evaluation.split=test", "pretrain.epochs=2")
    )
    assert [len(trained) for trained in reader.seen] == [2]
    results = results_of(directory)
    key = f"cifar10/test/{how}"
    for section in ("classification", "classification_best", "classification_untrained"):
        result = results[section][key]
        assert result["method"].startswith({"knn": "knn/20/l2n"}.get(how, "linear_probe/1"))
        assert result["accuracy"] > 20  # classes are told apart by their brightness
    assert set(results["best"]["minus_last"]) == {key}
    assert results["images_seen"]["real_labeled"] == 0
    assert results["data"]["compared"] == {"cifar10/train": 160}
    assert (directory / "embeddings.npz").exists()
    as_exported(directory, results["classification"][key], key)


@pytest.mark.slow
def test_the_report_of_a_closed_set_has_its_roc_curves() -> None:
    directory = run(composed("ablation=A2", "pretrain.epochs=1", "report.at_end=true"))
    report = (directory / "report" / "report.md").read_text()
    assert "figures/roc.png" in report
    assert "Classes of cifar10/val/knn" in report
    curves = (directory / "report" / "figures" / "roc.svg").read_text()
    assert all(f'id="{network}"' in curves for network in ("untrained", "best", "last"))
    assert "WARNING" not in (directory / "events.jsonl").read_text()


def test_val_is_evaluated_without_opening_test(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(monkeypatch)
    directory = run(composed(*CLASSIFIED, "evaluation.untrained_reference=false"))
    assert reader.seen == []
    assert set(results_of(directory)["classification"]) == {"cifar10/val/classification"}


def tuned(config: Config, folder: Path, **options: Any) -> stages.Reached:
    before = stages.Reached(stages.seed_backbone(config))
    return stages.fine_tune(config, before, Sink(), folder, **options)


def test_going_on_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    config = composed(*CLASSIFIED, "finetune.samples=50", "finetune.mixup=0.4")
    whole = tuned(config, tmp_path / "whole")
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked in (2, 5)

    folder, state = tmp_path / "parts", None
    for _ in range(2):
        with pytest.raises(Interrupted):
            tuned(config, folder, state=state, stop=stop)
        state = checkpoint.load(folder / "checkpoints" / "finetune_last.pt")
    parts = tuned(config, folder, state=state)
    assert (parts.step, parts.macs, parts.tuned) == (whole.step, whole.macs, whole.tuned)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(parts.network.state_dict()[name], tensor), name


def test_a_classifier_is_evaluated_by_its_loss_on_val_too(tmp_path: Path) -> None:
    config = composed(*CLASSIFIED, "finetune.patience=1", "finetune.monitor=val_loss")
    base, val = (stages.images_of(config, config.dataset, split) for split in ("train", "val"))
    backbone, generator = stages.seed_backbone(config), torch.Generator().manual_seed(0)
    learner = around(backbone, config.finetune, len(base.class_names), generator).eval()
    with torch.no_grad():
        learner.head.weight.mul_(300)  # one that is sure of something
        images = stages.evaluating.normalize(val.batch(np.arange(len(val))))
        logits = learner.head(learner.backbone(images)).double()
        truth = torch.from_numpy(val.labels)
        expected = torch.nn.functional.cross_entropy(logits, truth).item()
    accuracy, _, loss = stages.classifying.ByVal(config, base)(learner, torch.device("cpu"))
    assert loss == pytest.approx(expected, rel=1e-4)
    assert accuracy == pytest.approx(100 * (logits.argmax(1) == truth).double().mean().item())
    # It is what is watched, and told after every epoch.
    told: list[Any] = []

    class Kept(Sink):
        def event(self, kind: str, values: Any) -> None:
            if kind == "finetune":
                told.append(values["val_loss"])

    stages.fine_tune(config, stages.Reached(backbone), Kept(), tmp_path)
    state = checkpoint.load(tmp_path / "checkpoints" / "finetune_last.pt")["finetune"]
    assert state["watched"] == min(told)


@pytest.mark.slow
def test_the_best_epoch_is_that_of_most_val_images_right(tmp_path: Path) -> None:
    config = composed(*CLASSIFIED, "finetune.epochs=3")
    reached = tuned(config, tmp_path)
    store = stages.images_of(config, config.dataset, "val")
    embedded = torch.cat(
        [
            reached.backbone(stages.evaluating.normalize(store.batch([i]))).detach()
            for i in range(len(store))
        ]
    )
    predicted = reached.network.head(embedded).argmax(1).numpy()  # type: ignore[union-attr,operator]
    (told,) = reached.tuned
    assert told["val_accuracy"] == pytest.approx(100 * np.mean(predicted == store.labels))


def test_what_is_learned_from_does_not_depend_on_the_network() -> None:
    def part(options: FinetuneConfig, seed: int, store: ImageStore) -> ImageStore:
        assert isinstance(options, Classifier)
        return stages.classifying.labelled_part(store, options, seed)

    parts = []
    for further in ((), ("backbone=conv4", "optimizer.lr=0.1")):
        config = composed(*CLASSIFIED, "finetune.fraction=0.25", *further)
        parts.append(part(config.finetune, 0, stages.labelled(config)))
    assert parts[0].counts().tolist() == [4] * 10
    assert np.array_equal(parts[1].images, parts[0].images)
    base = stages.labelled(config)
    seeded = part(config.finetune, 1, base)
    assert not np.array_equal(seeded.images, parts[0].images)
    options = dataclasses.replace(config.finetune, fraction=1.0)
    assert len(part(options, 0, base)) == 160


def test_a_checkpoint_without_a_classifier_is_refused() -> None:
    config = composed("task=evaluate", "evaluation=classification", "checkpoint=x.pt")
    tasks, plain = stages.tasks_of(config), stages.seed_backbone(config)
    with pytest.raises(UserError, match=r"checkpoint=x\.pt holds no classifier for the 10 classes"):
        stages.check_classifier(stages.Reached(plain), config, tasks)
    options = composed(*CLASSIFIED).finetune
    for classes, fits in ((7, False), (10, True)):
        reached = stages.Reached(around(plain, options, classes, torch.Generator()))
        if fits:
            stages.check_classifier(reached, config, tasks)
            continue
        with pytest.raises(UserError, match="holds another head for the 10 classes"):
            stages.check_classifier(reached, config, tasks)


def test_a_class_of_test_that_was_not_trained_on_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "svhn"
    for split, classes in (("train", (0, 1)), ("test", (0, 1, 2))):
        for label in classes:
            for number in range(4):
                made.image(base / split / str(label) / f"{number}.png", 10 * label + number)
    config = composed("dataset=svhn", f"dataset.root={base}", "evaluation.split=test")
    task = stages.ClosedTask(config, config.dataset)
    assert not task.opened
    with pytest.raises(UserError, match="The class 2 is in test and not in train"):
        task.evaluate(stages.seed_backbone(config), torch.device("cpu"))


def test_a_class_of_val_that_was_not_trained_on_is_said_before_training(tmp_path: Path) -> None:
    base = tmp_path / "svhn"
    for split, classes in (("train", (0, 1)), ("val", (0, 2))):
        for label in classes:
            for number in range(4):
                made.image(base / split / str(label) / f"{number}.png", 10 * label + number)
    config = composed("dataset=svhn", f"dataset.root={base}", "evaluation.split=val")
    with pytest.raises(UserError, match="The class 2 is in val and not in train"):
        stages.tasks_of(config)


def test_a_split_that_is_missing_is_said_before_training(tmp_path: Path) -> None:
    base = tmp_path / "svhn" / "train"
    for label in range(2):
        for number in range(4):
            made.image(base / str(label) / f"{number}.png", 10 * label + number)
    config = composed("dataset=svhn", f"dataset.root={base.parent}", "evaluation.split=test")
    with pytest.raises(UserError, match="has no test split"):
        stages.tasks_of(config)
