"""Own images at the first try: what is open is fitted to them and said, what is given is obeyed."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from sseg_nase import UserError, evaluate, load_config, load_network, open_dataset
from sseg_nase.config.compose import continued, defaults, load
from sseg_nase.config.fingerprint import fingerprint
from sseg_nase.config.groups.dataset import OwnImages
from sseg_nase.config.options import names_with
from sseg_nase.data.benchmarks.dealing import class_counts
from sseg_nase.files import read_json, write_json
from sseg_nase.run import run
from sseg_nase.stages.fitting import Room, episodes_that_fit, fitted, what_fits

TINY = ["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "tracking=jsonl"]
USUAL = defaults().evaluation


def photos(root: Path, counts: Sequence[int], suffix: str = ".jpg", first: int = 0) -> Path:
    """A folder per class with as many noisy pictures of it."""
    rng = np.random.default_rng(len(counts) + first)
    for number, count in enumerate(counts, first):
        folder = root / f"class {number:02d}"
        folder.mkdir(parents=True)
        colour = rng.integers(0, 256, 3)
        for image in range(count):
            pixels = colour + rng.normal(0, 90, (20, 24, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(
                folder / f"{image}{suffix}"
            )
    return root


def own(root: Path | str, *more: str, kind: str = "folder") -> list[str]:
    return [*TINY, f"dataset={kind}", f"dataset.root={root}", *more]


def events(folder: Path, kind: str) -> list[str]:
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    values = [json.loads(line) for line in lines]
    return [value["values"]["text"] for value in values if value["kind"] == kind]


def ran(overrides: list[str]) -> tuple[Path, dict[str, Any]]:
    folder = run(load(overrides), overrides)
    results = read_json(folder / "results.json")
    assert results is not None
    return folder, dict(results)


def test_a_dozen_photos_of_a_dozen_things_run_at_the_first_try(tmp_path: Path) -> None:
    folder, results = ran(own(photos(tmp_path / "photos", [12] * 12)))
    assert set(results["fewshot"]) == {"folder/val/3w1s", "folder/val/3w5s"}
    assert results["images_seen"]["real_unlabeled"] > 0
    said = "\n".join(events(folder, "message"))
    assert "12 classes are dealt: train 6, val 3, test 3" in said
    assert "evaluation.ways=3 evaluation.queries=7: val of dataset=folder has 3 classes" in said
    assert "curriculum.max_epochs_per_level=1" in said
    stored = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    kept = {key: stored["evaluation"][key] for key in ("ways", "shots", "queries")}
    assert kept == {"ways": 3, "shots": [1, 5], "queries": 7}
    assert stored["finetune"]["ways"] == 5  # without effect, as ever
    values = load([*own(tmp_path / "photos"), *(f"evaluation.{k}={v}" for k, v in kept.items())])
    values = fitted(values)[0]
    assert results["fingerprint"] == fingerprint(dataclasses.replace(values, resume=None))


@pytest.mark.parametrize(
    ("counts", "lists", "said"),
    [
        ([12, 12, 12], {"2w1s", "2w5s"}, "3 classes are dealt: train 1, val 2"),
        ([12, 12], {"2w1s"}, "other images of the same classes"),
        ([4] * 12, {"3w1s"}, "evaluation.shots=[1] evaluation.queries=3"),
        ([3, 12, 40, 7, 9, 10, 2, 15, 30, 5, 6, 8], {"3w1s"}, "images (ways, shots"),
        ([2] * 4, {"2w1s"}, "evaluation.queries=1"),
    ],
    ids=["three", "two", "four-images", "unequal", "two-images"],
)
def test_few_and_unequal_classes_run(
    tmp_path: Path, counts: list[int], lists: set[str], said: str
) -> None:
    folder, results = ran(own(photos(tmp_path / "photos", counts), "report.at_end=false"))
    assert {key.rpartition("/")[2] for key in results["fewshot"]} == lists
    assert results["images_seen"]["real_unlabeled"] > 0
    assert said in "\n".join(events(folder, "message"))


def test_two_classes_are_halved_image_by_image(tmp_path: Path) -> None:
    config = load_config(own(photos(tmp_path / "photos", [5, 6], ".png")))
    train, val = open_dataset(config, "train"), open_dataset(config, "val")
    assert (train.counts().tolist(), val.counts().tolist()) == ([2, 3], [3, 3])
    assert train.class_names == val.class_names
    everything = {
        image.tobytes()
        for store in (train, val)
        for image in store.batch(range(len(store))).numpy()
    }
    assert len(everything) == 11  # no image in both, none lost


def test_folders_with_splits_and_lists_run_too(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val")):
        photos(tmp_path / "splits" / split, [8] * 4, first=10 * number)
    _, results = ran(
        [*TINY, "dataset=folder", "dataset.root=splits", "pretrain.epochs=1", "curriculum=natural"]
    )
    assert set(results["fewshot"]) == {"folder/val/4w1s"}  # 5 shots would leave 3 queries
    photos(tmp_path / "photos", [12] * 6)
    with Path("list.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows([p, p.parent.name] for p in sorted(Path("photos").rglob("*.jpg")))
    _, results = ran(own("list.csv", "pretrain.epochs=1", "curriculum=natural", kind="csv"))
    assert set(results["fewshot"]) == {"csv/val/2w1s", "csv/val/2w5s"}


@pytest.mark.slow
def test_fine_tuning_is_fitted_to_train_and_to_val(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", [5] * 8)
    short = ["finetune.epochs=1", "finetune.episodes_per_epoch=2", "finetune.validation_episodes=2"]
    none = ["ssl=none", "evolution=none", "sparsity=none", *short]
    folder, _ = ran(own(root, "finetune=prototypical", *none))
    stored = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    kept = {key: stored["finetune"][key] for key in ("ways", "shots", "queries")}
    assert kept == {"ways": 4, "shots": 1, "queries": 4}
    maml = ["finetune=maml", "evaluation.method=maml", "evaluation.normalize=none"]
    for given in ([], ["finetune.ways=2"], ["evaluation.ways=2"]):
        config, _ = fitted(load(own(root, *maml, *none, *given)))
        assert config.finetune.ways == config.evaluation.ways == 2
    linear, _ = fitted(load(own(root, "finetune=linear", *none[:3])))
    assert not hasattr(linear.finetune, "queries")


def test_what_is_given_is_never_changed(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", [12] * 12)
    config, _ = fitted(load(own(root, "evaluation.ways=2", "evaluation.shots=[2]")))
    evaluation = config.evaluation
    assert (evaluation.ways, evaluation.shots, evaluation.queries) == (2, [2], 10)
    config, notes = fitted(load(own(root, "evaluation.queries=7", "evaluation.ways=3")))
    assert config.evaluation.shots == [1, 5]
    assert not any("evaluation." in note for note in notes)
    config, notes = fitted(load(own(root, "dataset.split_fractions=[0.5,0.5,0]")))
    assert config.evaluation.ways == 5
    assert not any("dealt" in note for note in notes)


@pytest.mark.parametrize(
    "given",
    [
        ["evaluation.ways=5"],
        ["evaluation.queries=15"],
        ["evaluation.shots=[1,5]", "evaluation.queries=15"],
        ["evaluation.shots=[12]"],
        ["evaluation.ways=9", "evaluation.shots=[1,5]", "evaluation.queries=15"],
        ["evaluation.ways=3", "evaluation.query_balance=dirichlet", "evaluation.queries=15"],
    ],
)
def test_a_refusal_ends_with_settings_that_run(tmp_path: Path, given: list[str]) -> None:
    overrides = own(photos(tmp_path / "photos", [12] * 12), "ablation=A1", *given)
    with pytest.raises(UserError) as refused:
        ran(overrides)
    settings = re.search(r"evaluation\.ways=\d+ \S+ evaluation\.queries=\d+", str(refused.value))
    assert settings is not None, refused.value
    remedy = shlex.split(settings[0])
    replaced = {text.partition("=")[0] for text in remedy}
    ran([*(o for o in overrides if o.partition("=")[0] not in replaced), *remedy])


def test_one_class_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is one class"):
        ran(own(photos(tmp_path / "photos", [9])))


def test_images_without_class_folders_are_refused_in_words_or_pretrained_on(
    tmp_path: Path,
) -> None:
    root = photos(tmp_path / "photos", [9])
    overrides = own(root / "class 00")
    with pytest.raises(UserError, match=r"no class folders.*evaluation\.datasets=\[digits\]"):
        ran(overrides)
    assert "digits/val/5w1s" in ran([*overrides, "evaluation.datasets=[digits]"])[1]["fewshot"]


def test_a_run_goes_on_with_the_values_it_began_with(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", [12] * 12)
    overrides = own(root, "evaluation.untrained_reference=false")
    folder, results = ran(overrides)
    write_json(folder / "status.json", {"status": "INTERRUPTED", "error": None})
    (folder / "results.json").unlink()
    again = [f"resume={folder}"]
    went_on = run(load([*again, *continued(again)]), again)
    assert went_on == folder
    after = read_json(folder / "results.json")
    assert after is not None
    assert (after["fewshot"], after["fingerprint"]) == (results["fewshot"], results["fingerprint"])


def test_no_benchmark_is_fitted() -> None:
    config = load(["debug=tiny"])
    assert fitted(config) == (config, [])
    for name in ("cifar_fs", "minimagenet", "omniglot"):
        config = load([f"dataset={name}"])
        assert (config.evaluation.ways, config.evaluation.queries) == (5, 15)
        assert config.curriculum.name == "synthetic"
    # Who asks for it gets it.
    config, notes = fitted(load(["evaluation.ways=null", "evaluation.queries=null"]))
    assert (config.evaluation.ways, config.evaluation.queries) == (5, 15)
    assert notes == []


@pytest.mark.parametrize("kind", names_with(OwnImages))
def test_own_images_are_trained_on_unless_something_else_is_said(kind: str) -> None:
    grey = ["backbone.in_channels=1"] if kind == "sketch" else []
    chosen = [f"dataset={kind}", "dataset.root=somewhere", *grey]
    assert "NATURAL" in load(chosen).curriculum.levels
    assert load(["curriculum=synthetic", *chosen]).curriculum.name == "synthetic"
    assert load(["experiment=cifar_fs_32", *chosen]).curriculum.name == "natural"
    for ablation, progression in (("A2", False), ("A7", True)):
        config = load([*chosen, f"ablation={ablation}"])
        assert "NATURAL" in config.curriculum.levels
        assert config.curriculum.progression is progression


def test_what_is_not_trained_on_is_said(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", [12] * 12)
    drawn, _ = ran(own(root, "curriculum=synthetic"))
    assert any(
        text.startswith("the 72 images of train are not trained on: curriculum=synthetic")
        for text in events(drawn, "message")
    )
    short, results = ran(own(root, "pretrain.epochs=3"))
    assert results["images_seen"]["real_unlabeled"] == 0
    (said,) = (text for text in events(short, "message") if "are perhaps not trained on" in text)
    assert any("used no image of train" in text for text in events(short, "warning"))
    remedy = re.search(r"Set (.*), or curriculum=natural", said)
    assert remedy is not None
    mended, results = ran(own(root, *remedy[1].split()))
    assert results["images_seen"]["real_unlabeled"] > 0
    said_nothing = [t for t in events(mended, "message") if "not trained on" in t]
    assert not said_nothing
    assert not events(mended, "warning")
    untrained, _ = ran(own(root, "ablation=A1"))
    assert any("ssl=none trains nothing" in text for text in events(untrained, "message"))
    assert not any("NATURAL" in text for text in events(untrained, "message"))


def test_a_network_is_evaluated_by_hand_on_own_images(tmp_path: Path) -> None:
    overrides = own(photos(tmp_path / "photos", [6] * 4), "curriculum=natural", "pretrain.epochs=1")
    folder, results = ran(overrides)
    evaluated = evaluate(load_network(folder), load_config(overrides))
    for key, result in evaluated.results.items():
        assert result["accuracy"] == pytest.approx(results["fewshot"][key]["accuracy"])


def test_how_many_classes_go_where() -> None:
    for classes in range(3, 400):
        train, val, test = class_counts(classes)
        assert train + val + test == classes
        assert train >= 1
        assert val >= 2
        assert test >= 2 or (test == 0 and classes < 6)
        assert classes < 6 or train >= 2
    assert class_counts(12) == (6, 3, 3)
    assert class_counts(100) == (64, 16, 20)


def test_episodes_that_fit_do_and_no_more_is_given_away_than_needed() -> None:
    open_ = dataclasses.replace(USUAL, ways=None, shots=None, queries=None)
    for classes in range(2, 8):
        for images in range(2, 25):
            fit = episodes_that_fit(open_, USUAL, [Room(classes, images, "there")])
            assert fit.ways == min(5, classes)
            assert fit.shots is not None
            assert fit.queries is not None
            assert max(fit.shots) + fit.queries == images or (
                fit.queries == 15 and max(fit.shots) + 15 < images
            )
            assert fit.shots == ([1, 5] if images >= 10 else [1])
    with pytest.raises(UserError, match="needs 2 of every class"):
        episodes_that_fit(open_, USUAL, [Room(3, 1, "there")])
    with pytest.raises(UserError, match="two classes at least"):
        episodes_that_fit(open_, USUAL, [Room(1, 20, "there")])
    assert what_fits(USUAL, [Room(3, 1, "there")]) == ""
