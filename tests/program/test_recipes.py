"""The recipes as experiments: what they consist of, and that they run, at the smallest size."""

from __future__ import annotations

import json

import pytest

from sseg_nase.config.compose import load
from sseg_nase.config.sequence import stages_of
from sseg_nase.config.validation import cautions
from sseg_nase.run import run

TINY = ["debug=tiny", "dataset=digits", "hardware=cpu", "hardware.precision=32-true"]
TINY += ["tracking=jsonl", "backbone.channels=[8,8,8,8]", "evaluation.test_views=2"]


def test_the_recipe_with_labels_grows_a_classifier_and_goes_on_with_episodes() -> None:
    config = load(["experiment=sseg_nase_labels"])
    linear, episodes = (stage.finetune for stage in stages_of(config))
    assert (linear.name, linear.evolve, linear.optimizer) == ("linear", True, "sgd")
    assert (episodes.name, episodes.evolve, episodes.optimizer) == ("prototypical", False, "adam")
    assert linear.views.crop_scale == episodes.views.crop_scale == [0.35, 1.0]
    assert config.evaluation.split == "val"
    assert cautions(config) == []
    taught = load(
        ["experiment=sseg_nase_labels", "finetune.teacher=x", "finetune.linear.feature_weight=1"]
    )
    assert taught.finetune.teacher == "x"
    assert stages_of(taught)[0].finetune.feature_weight == 1


def test_the_recipe_without_labels_sees_no_label() -> None:
    config = load(["experiment=sseg_nase_unlabeled"])
    assert (config.curriculum.levels, config.finetune.name) == (["NATURAL"], "none")
    assert (config.views.hue, config.views.grey) == (0.2, 0.3)
    assert config.evaluation.split == "val"
    assert cautions(config) == []


@pytest.mark.parametrize("hardware", ["auto", "rtx3060"])
@pytest.mark.parametrize("recipe", ["sseg_nase_labels", "sseg_nase_unlabeled"])
def test_the_recipes_for_a_gpu_are_the_same_for_longer(recipe: str, hardware: str) -> None:
    small, large = (
        load([f"experiment={name}", f"hardware={hardware}"]) for name in (recipe, f"{recipe}_gpu")
    )
    assert cautions(large) == []
    assert large.hardware.batch_size == 512
    assert (large.evolution, large.backbone, large.views) == (
        small.evolution, small.backbone, small.views,
    )  # fmt: skip
    if recipe == "sseg_nase_labels":
        of_small, of_large = (stages_of(config)[0].finetune for config in (small, large))
        assert of_large.epochs > 2 * of_small.epochs
        assert (of_large.optimizer, of_large.evolve) == (of_small.optimizer, True)
    else:
        assert large.pretrain.epochs > 2 * small.pretrain.epochs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "further"),
    [
        (
            "labels",
            [
                "finetune.linear.epochs=10",
                "finetune.linear.warmup_epochs=1",
                "finetune.prototypical.epochs=1",
                "finetune.prototypical.episodes_per_epoch=4",
                "finetune.queries=3",
                "finetune.validation_episodes=10",
                "hardware.batch_size=256",
            ],
        ),
        ("unlabeled", ["pretrain.epochs=10", "scheduler.warmup_epochs=1"]),
    ],
)
def test_a_recipe_runs(recipe: str, further: list[str]) -> None:
    folder = run(load([f"experiment=sseg_nase_{recipe}", *TINY, *further]))
    results = json.loads((folder / "results.json").read_text())
    assert results["mutations"] == 2  # two convolutions more in every stage
    assert results["fewshot_views"].keys() == results["fewshot"].keys()
    seen = {source for source, count in results["images_seen"].items() if count}
    assert seen == {"real_labeled" if recipe == "labels" else "real_unlabeled"}
