"""Paths of a run: absolute in what it writes, found again when it is resumed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from sseg_nase.config.compose import continued, load
from sseg_nase.config.places import PLACES, place_of, settled, settled_overrides
from sseg_nase.errors import UserError

FOLDER = ["dataset=folder", "dataset.root=imgs", "backbone=resnet18", "ablation=A2"]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return Path.cwd()


def test_a_settled_config_means_the_same_everywhere(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config = load([*FOLDER, "backbone.weights=imagenet", "paths.output_dir=runs"])
    config = dataclasses.replace(
        config,
        paths=dataclasses.replace(config.paths, data_dir="~/data"),
        checkpoint="best.pt",
        resume="left as it is",
        runs=["LAST", "runs/one"],
    )
    found = settled(config)
    assert found.dataset.root == str(here / "imgs")
    assert found.paths.data_dir == "/home/someone/data"
    assert found.paths.output_dir == str(here / "runs")
    assert found.checkpoint == str(here / "best.pt")
    assert found.backbone.weights == "imagenet"  # no file
    assert (found.run, found.report.output) == (None, None)
    assert found.resume == config.resume
    assert found.runs == ["LAST", str(here / "runs/one")]
    monkeypatch.chdir("/")
    assert settled(found) == found


def test_a_file_of_weights_is_a_place(here: Path) -> None:
    config = settled(load([*FOLDER, "backbone.weights=w.pt"]))
    assert config.backbone.weights == str(here / "w.pt")
    assert place_of(config, "backbone.weights") == str(here / "w.pt")
    assert place_of({"backbone": {"weights": "imagenet"}}, "backbone.weights") is None
    assert place_of({}, "dataset.root") is None


def test_overrides_are_kept_with_absolute_paths(here: Path) -> None:
    given = [*FOLDER, "++paths.output_dir=my runs", "seed=3"]
    config = settled(load([*FOLDER, "seed=3", "paths.output_dir=my runs"]))
    kept = settled_overrides(given, config)
    assert kept[:4] == ["dataset=folder", "backbone=resnet18", "ablation=A2", "seed=3"]
    assert sorted(kept[4:]) == sorted(
        [
            f"dataset.root={here}/imgs",
            f'paths.output_dir="{here}/my runs"',
            f"paths.data_dir={here}/data",  # always: its default depends on where we stand
        ]
    )
    assert not {"resume", "runs", "sweep.dir"} & set(PLACES)


# -- what resume=RUN_DIR stands for ----------------------------------------------------------------


@pytest.fixture
def run(here: Path) -> Path:
    place = here / "run"
    place.mkdir()
    (here / "there").mkdir()
    lines = ["seed=3", "dataset=cifar_fs", "optimizer.lr=0.5", "+paths.cache_dir=gone"]
    lines += ["paths.data_dir=there", "dataset.root=nowhere"]
    (place / "overrides.yaml").write_text(yaml.safe_dump(lines))
    return place


def test_a_resumed_run_has_its_overrides_but_for_those_given_again(run: Path) -> None:
    given = [f"resume={run}", "optimizer.lr=0.1", "dataset=omniglot"]
    assert continued(given) == ["seed=3", "paths.data_dir=there", "dataset.root=nowhere"]
    assert continued(["seed=1"]) == []
    assert continued([f"++resume={run}", "++seed=5"])[0] == "dataset=cifar_fs"


@pytest.mark.parametrize("folder", ["paths.data_dir", "paths.cache_dir"])
def test_a_folder_for_data_or_caches_counts_while_it_is_there(
    folder: str, here: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(here))
    for where, kept in (("there", True), ("gone", False), ("~/there", True)):
        line = f"{folder}='{where}'"
        (run / "overrides.yaml").write_text(yaml.safe_dump([line]))
        assert continued([f"resume={run}"]) == [line] * kept


def test_the_run_is_found_in_the_home_folder(
    here: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert "seed=3" in continued(["resume='~/run'"])


@pytest.mark.parametrize("content", [None, "", "{", "3", "null"])
def test_without_readable_overrides_there_are_none(content: str | None, run: Path) -> None:
    (run / "overrides.yaml").unlink()
    if content is not None:
        (run / "overrides.yaml").write_text(content)
    assert continued([f"resume={run}"]) == []
    assert continued(["resume=null"]) == []


def test_what_is_no_override_is_a_mistake(run: Path) -> None:
    with pytest.raises(UserError, match="an override is written key=value"):
        continued([f"resume={run}", "nonsense"])
