"""What a run writes of every few-shot method, by running the program."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sseg_nase.config.compose import load
from sseg_nase.config.validation import cautions
from sseg_nase.fewshot.methods import METHODS
from sseg_nase.run import run

TINY = (
    "debug=tiny",
    "ablation=A1",
    "tracking=jsonl",
    "hardware=cpu",
    "evaluation.untrained_reference=false",
    "evaluation.shots=[2]",
)
KEY = "digits/val/5w2s"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ran(*overrides: str) -> tuple[Path, dict[str, Any]]:
    directory = run(load([*TINY, *overrides]))
    results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    return directory, results["fewshot"][KEY]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("queries", ["balanced", "dirichlet"])
def test_every_method_gives_accuracies_and_is_named(method: str, queries: str) -> None:
    _, result = ran(f"evaluation.method={method}", f"evaluation.query_balance={queries}")
    label = {
        "prototype": "prototype/cosine",
        "sinkhorn": "sinkhorn/uniform" if queries == "balanced" else "sinkhorn/free",
    }.get(method, method)
    ending = "" if queries == "balanced" else "/dirichlet2"
    assert result["method"] == f"{label}/cl2n{ending}"
    assert result["transductive"] is (method == "sinkhorn")
    assert result["queries"] == queries
    assert result["top_k"] == {}
    assert result["accuracy"] > 40  # untrained, on digits; 20 is chance


def test_classes_and_further_accuracies_agree_with_each_other() -> None:
    directory, result = ran("evaluation.top_k=[2,3]", "evaluation.query_balance=dirichlet")
    assert result["accuracy"] < result["top_k"]["2"] < result["top_k"]["3"] < 100
    with np.load(directory / "confusion.npz", allow_pickle=False) as arrays:
        counts, names = arrays[KEY], arrays["classes:digits/val"].tolist()
    assert counts.sum() == 20 * 25
    assert 100 * np.trace(counts) / counts.sum() == pytest.approx(result["accuracy"])
    with (directory / "per_class.csv").open(newline="", encoding="utf-8") as lines:
        rows = {row["name"]: float(row["accuracy"]) for row in csv.DictReader(lines)}
    assert list(rows) == names
    worst, best = min(rows, key=rows.__getitem__), max(rows, key=rows.__getitem__)
    assert result["worst_class"] == {"name": worst, "accuracy": rows[worst]}
    assert result["best_class"] == {"name": best, "accuracy": rows[best]}


def test_augmented_support_is_evaluated_alike_in_any_batches() -> None:
    overrides = ("views.flip=0", "views.crop_scale=[0.6,1]")
    plain = ran(*overrides)[1]
    augmented = ran(*overrides, "evaluation.support_augmentations=3")[1]
    other = ran(*overrides, "evaluation.support_augmentations=3", "evaluation.batch_size=7")[1]
    assert augmented["method"] == "prototype/cosine/cl2n/3views"
    assert augmented["accuracy"] != plain["accuracy"]
    assert abs(augmented["accuracy"] - plain["accuracy"]) < 20
    assert other["accuracy"] == pytest.approx(augmented["accuracy"], abs=0.5)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("evaluation.ridge.regularization=2", ["evaluation.ridge", "method=ridge"]),
        ("evaluation.method=ridge evaluation.metric=euclidean", ["metric", "method=prototype"]),
        ("evaluation.dirichlet_alpha=1", ["dirichlet_alpha", "query_balance=dirichlet"]),
        ("evaluation.method=ridge evaluation.ridge.regularization=2", []),
        ("evaluation.metric=euclidean", []),
        ("evaluation.query_balance=dirichlet evaluation.dirichlet_alpha=1", []),
    ],
)
def test_options_without_effect_are_told(overrides: str, said: list[str]) -> None:
    found = cautions(load(overrides.split()))
    assert len(found) == bool(said)
    for part in said:
        assert part in found[0]
