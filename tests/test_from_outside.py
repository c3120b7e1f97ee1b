"""A data set and a few-shot method of somebody's package, each in one file with one YAML."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sseg_nase.config import options
from sseg_nase.config.compose import load, stored
from sseg_nase.config.groups.dataset import DatasetConfig
from sseg_nase.config.groups.evaluation import MethodConfig
from sseg_nase.config.options import load_packages
from sseg_nase.errors import UserError
from sseg_nase.files import read_json
from sseg_nase.run import run

STRIPES = '''
"""Stripes, whose direction is the class."""

from dataclasses import dataclass
from typing import Annotated

from sseg_nase.config.groups.dataset import InMemory
from sseg_nase.config.options import option, register


@register("dataset", "stripes")
@dataclass(frozen=True)
class Stripes(InMemory):
    each: Annotated[int, option(least=2)]  # images of a class
    reader = f"{__name__}:read"
    splits = ("train", "val")


def read(dataset, split):
    import numpy as np

    from sseg_nase.data.store import ImageStore

    rng = np.random.default_rng(dataset.splits.index(split))
    angles = np.repeat(np.linspace(0, np.pi, 5, endpoint=False) + rng.random() / 9, dataset.each)
    across = np.arange(dataset.image_size)
    phase = np.cos(angles)[:, None, None] * across + np.sin(angles)[:, None, None] * across[:, None]
    waves = 127 * np.sin(phase + rng.random((len(angles), 1, 1)) * 6) + 127
    return ImageStore.from_arrays(
        np.repeat(waves.astype(np.uint8)[..., None], dataset.channels, axis=3),
        np.repeat(np.arange(5), dataset.each),
        [f"{split} {number}" for number in range(5)],
        source="drawn", layout="stripes", split=split, sample=False, notices=[],
    )
'''

FARTHEST = '''
"""The class whose farthest support image is nearest."""

from dataclasses import dataclass
from typing import Annotated

from sseg_nase.config.groups.evaluation import MethodConfig
from sseg_nase.config.options import option, register


@register("evaluation.method", "farthest")
@dataclass(frozen=True)
class Farthest(MethodConfig):
    order: Annotated[float, option(least=1, most=4)]
    made_by = f"{__name__}:method"

    def wrong(self):
        if self.order == 3:
            yield "evaluation.settings.order=3: of all orders not this one."


def method():
    import torch

    from sseg_nase.fewshot.methods import Method

    def scores(support, query, evaluation):
        episodes, ways, shots, size = support.shape
        far = torch.cdist(query, support.flatten(1, 2), p=evaluation.settings["order"])
        return -far.unflatten(2, (ways, shots)).amax(3)

    def entries(s):
        return (s.support + s.queries) * s.features + 2 * s.queries * s.support

    return Method(scores, lambda evaluation: "farthest", entries)
'''

YAMLS = {
    "dataset": (
        "stripes",
        "defaults: [_shared, _self_]\nname: stripes\nsplit_by: classes\neach: 9\n",
    ),
    "evaluation": (
        "farthest",
        "defaults: [fewshot, _self_]\nmethod: farthest\nsettings: {order: 2}\n",
    ),
}
GIVEN = ["dataset=stripes", "evaluation=farthest"]
TINY = [
    *["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "tracking=jsonl"],
    *["curriculum=natural", "evolution=none", "sparsity=none", "pretrain.epochs=2"],
    *["evaluation.queries=3", "evaluation.shots=[1]", *GIVEN],
]


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The config folder of a package that is installed, which is forgotten afterwards."""
    about = tmp_path / "somebodys-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: somebodys\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[sseg_nase.options]\nstripes = somebodys_stripes\nfarthest = somebodys_farthest\n"
    )
    (tmp_path / "somebodys_stripes.py").write_text(STRIPES)
    (tmp_path / "somebodys_farthest.py").write_text(FARTHEST)
    for group, (name, text) in YAMLS.items():
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / f"{name}.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    known = {base: dict(options._OPTIONS[base]) for base in (DatasetConfig, MethodConfig)}
    load_packages.cache_clear()
    yield tmp_path / "conf"
    options._OPTIONS.update(known)
    for module in ("somebodys_stripes", "somebodys_farthest"):
        sys.modules.pop(module, None)
    for each in (*options._CACHES, load_packages, options.imported):
        each.cache_clear()


@pytest.mark.slow
def test_they_are_composed_trained_on_judged_by_reported_and_gone_on_with(conf: Path) -> None:
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
