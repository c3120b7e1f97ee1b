"""The params of a run: what has an effect in it, and short."""

from __future__ import annotations

import dataclasses

import pytest

from sseg_nase.config.compose import load
from sseg_nase.stages.params import params_of


def sections(*overrides: str) -> tuple[dict[str, object], set[str]]:
    """The params, and what their keys begin with."""
    params = params_of(load(list(overrides)))
    return dict(params), {key.rpartition(".")[0] for key in params}


def test_what_has_no_effect_is_left_out() -> None:
    full, of_full = sections("ablation=A7", "debug=tiny")
    bare, _ = sections("ablation=A1", "debug=tiny")
    assert {"evolution", "sparsity", "optimizer", "backbone"} <= of_full
    assert "finetune.views" not in of_full
    assert (bare["evolution.enabled"], bare["sparsity.enabled"]) == (False, False)
    assert bare["finetune.name"] == full["finetune.name"] == "none"
    for section in ("evolution", "sparsity", "finetune"):
        assert len([key for key in bare if key.startswith(f"{section}.")]) == 1
    hidden = ("paths", "tracking", "report", "ui", "export", "search", "space", "strategy")
    assert not {key.partition(".")[0] for key in full} & {*hidden, "hardware"}
    assert full["effective/devices"] == 1


@pytest.mark.parametrize("method", ["prototype", "ridge"])
def test_of_the_methods_that_evaluate_the_one_that_does_is_told(method: str) -> None:
    params, _ = sections("debug=tiny", f"evaluation.method={method}")
    assert ("evaluation.ridge.regularization" in params) == (method == "ridge")
    assert "evaluation.sinkhorn.power" not in params
    assert "evaluation.knn.neighbours" not in params
    assert "evaluation.shots" in params


def test_a_closed_set_tells_how_it_is_evaluated() -> None:
    params, _ = sections("dataset=cifar10", "evaluation=knn")
    assert "evaluation.knn.neighbours" in params
    assert "evaluation.linear_probe.regularization" not in params


def test_fine_tuning_tells_its_settings() -> None:
    params, _ = sections("debug=tiny", "finetune=linear")
    assert params["finetune.name"] == "linear"
    assert "finetune.epochs" in params


def test_a_search_tells_its_own() -> None:
    _, found = sections(
        "task=search", "debug=tiny", "space=overrides", "search.choices={seed: [0,1]}"
    )
    assert {"strategy", "search.budget"} <= found


def test_lists_are_on_one_line() -> None:
    params, _ = sections("debug=tiny", "backbone.channels=[16,32,64]")
    assert params["backbone.channels"] == "16, 32, 64"
    assert params["evaluation.datasets"] == "digits"
    assert params["evaluation.top_k"] == "[]"
    config = load(["debug=tiny"])
    for text in ("[a", '[{"a": 1}]', "[[1, 2], [3]]"):
        named = dataclasses.replace(config, experiment_name=text)
        assert params_of(named)["experiment_name"] == text
