"""A data set, a few-shot method and one of fine-tuning of docs/extending/, each in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sseg_nase.config import options
from sseg_nase.config.compose import load, stored
from sseg_nase.config.groups.dataset import DatasetConfig
from sseg_nase.config.groups.evaluation import MethodConfig
from sseg_nase.config.groups.finetune import FinetuneConfig
from sseg_nase.config.sequence import stages_of
from sseg_nase.errors import UserError
from sseg_nase.files import read_json
from sseg_nase.finetune.learner import around
from sseg_nase.nets.building import build, configured
from sseg_nase.run import run
from tests.support.examples import installed, page

GIVEN = ["dataset=stripes", "evaluation=farthest"]
TINY = [
    *["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "tracking=jsonl"],
    *["curriculum=natural", "evolution=none", "sparsity=none", "pretrain.epochs=2"],
    *["evaluation.queries=3", "evaluation.shots=[1]", *GIVEN],
]


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the YAML of these pages, which are installed."""
    pages = (page(f"extending/{name}.md") for name in ("dataset", "few-shot", "fine-tuning"))
    with installed("".join(pages), tmp_path / "installed", monkeypatch) as folder:
        yield folder


@pytest.mark.slow
def test_they_are_composed_trained_on_evaluated_with_reported_and_resumed(conf: Path) -> None:
    first = run(load([*TINY, "report.at_end=true"], conf), TINY)
    results = read_json(first / "results.json")
    assert results is not None
    (key, found), *_ = results["fewshot"].items()
    assert key.startswith("stripes/val/")
    assert found["method"] == "farthest/cl2n"
    told = [json.loads(line) for line in (first / "events.jsonl").read_text().splitlines()]
    assert any(event["kind"] == "metrics" for event in told)
    report = (first / "report" / "report.md").read_text()
    assert "stripes" in report
    assert "farthest" in report
    config = stored(first / "config.yaml")
    assert config.dataset == load(TINY, conf).dataset
    assert config.evaluation.settings == {"order": 2}
    # A run that has stopped half way, resumed without a word about the folder of configs.
    longer = [f"resume={first}", "pretrain.epochs=3", "resume_overrides=true"]
    again = run(load(longer), longer)
    assert again == first
    assert (read_json(first / "results.json") or {})["images_seen"] != results["images_seen"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["dataset.each=1"], r"dataset\.each=1: it must be at least 2"),
        (["evaluation.settings.order=9"], r"settings\.order=9: it must be at most 4"),
        (["evaluation.settings.order=x"], r"settings\.order=x: a number \(float\) is needed"),
        (["evaluation.settings.ordr=2"], r"settings\.ordr=2: .*=farthest takes no such .* order"),
        (["evaluation.settings.order=3"], "of all orders not this one"),
        (["evaluation.method=ridge"], r"settings\.order=2: .*=ridge takes no such .* none there"),
        (["evaluation.method=nearest"], "choose one of prototype, .*, farthest"),
        (["evaluation.datasets=[strips]"], "choose one of cifar_fs, .*stripes.*'stripes'"),
    ],
)
def test_what_is_wrong_with_their_keys_is_said(conf: Path, given: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load([*TINY, *given], conf)


def test_a_method_of_fine_tuning_has_its_head_and_its_keys(conf: Path) -> None:
    given = ["ssl=none", "evolution=none", "sparsity=none"]
    tuned = load([*given, "finetune=[linear,scaled]", "finetune.first=2"], conf)
    linear, scaled = stages_of(tuned)
    assert not hasattr(linear.finetune, "first")
    backbone = build(configured(tuned.backbone, 16))
    learner = around(backbone, scaled.finetune, 7, torch.Generator())
    assert [weight.item() for weight in learner.head.parameters()] == [2]
    with pytest.raises(UserError, match=r"metric=cosine: it has no effect with finetune=scaled"):
        load([*given, "finetune=scaled", "finetune.metric=cosine"], conf)


def test_an_option_that_says_what_evaluates_it_in_the_old_words_is_understood(conf: Path) -> None:
    load(["finetune=scaled"], conf)  # which imports the package
    scaled = options.options_of(FinetuneConfig)["scaled"]
    assert scaled.evaluated_by == "prototype"
    with pytest.deprecated_call(match=r"Older\.judged_by is called evaluated_by"):

        class Older(scaled):
            judged_by = "matching"

    assert Older.evaluated_by == "matching"


def test_a_setting_that_is_missing_is_asked_for(conf: Path) -> None:
    given = [*(one for one in TINY if one != "evaluation=farthest"), "evaluation.method=farthest"]
    with pytest.raises(UserError, match=r"settings\.order: .*=farthest needs a value"):
        load(given, conf)


def test_what_an_option_is_made_by_is_there_and_is_named_where_it_is_not() -> None:
    for kind, key in ((DatasetConfig, "reader"), (MethodConfig, "made_by")):
        for cls in options.options_of(kind).values():
            if not getattr(cls, "headed", False):
                assert callable(options.imported(getattr(cls, key)))
    with pytest.raises(UserError, match=r"^sseg_nase\.errors:nothing: an option is made by this"):
        options.imported("sseg_nase.errors:nothing")
