"""`benchmarks/families.py`: what stands beside a search, and when test is opened."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import families
from sseg_nase.config.compose import load
from sseg_nase.nets.building import configured
from sseg_nase.rundir.episodes import write_episodes
from sseg_nase.search import Candidate, Cost, Log, Objectives, Scored
from sseg_nase.statistics import crossed_difference

IMAGES = 50
# Images of 50 that are right: of what the search trained, and of what is fixed, by its rate.
RIGHT = {"answer": 40, "random search": 38}
OF_RATE = {"0.001": 30, "0.003": 36, "0.01": 33}


def a_run(folder: Path, right: int, seed: int, **settings: Any) -> Path:
    run = folder / "snas" / "run"
    run.mkdir(parents=True)
    found = 100.0 * (np.arange(IMAGES) < right)
    write_episodes(
        run, {"last": {"x/val/classifier": 0 * found}, "best": {"x/val/classifier": found}}
    )
    results = {
        "status": "FINISHED",
        "architecture": {"params": 20_000, "macs": 2_000_000, "channels": [8]},
        "training_macs": {"total": 30e9}, "seconds": {"finetune": 60, "evaluate": 30},
    }  # fmt: skip
    (run / "results.json").write_text(json.dumps(results))
    config = {"seed": seed, "backbone": {"name": "cnn"}, "finetune": {"epochs": 4, **settings}}
    (run / "config.yaml").write_text(json.dumps(config))
    (run / "status.json").write_text('{"status": "FINISHED"}')
    return run


def a_search(folder: Path) -> None:
    """With two contenders of two seeds each."""
    search = folder / "searches" / "one"
    search.mkdir(parents=True)
    with Log.open(search / "candidates.jsonl", Objectives({"accuracy": "max"})) as log:
        log.ask([Candidate(0, {"x": 1}, "1")])
        log.tell(Scored(log.candidates[0], {"accuracy": 70}, Cost(60, 5, 7e9), run="0"))
    contenders = []
    with Log.open(search / "final.jsonl", Objectives({"accuracy": "max"})) as log:
        for role, right in RIGHT.items():
            numbers = []
            for seed in (5, 6):
                number = len(log.candidates)
                run = a_run(folder / "of" / str(number), right + seed - 5, seed, lr_encoder=0.02)
                log.ask([Candidate(number, {"x": role}, role, {"seed": seed})])
                log.tell(Scored(log.candidates[-1], {"accuracy": 1}, Cost(), run=str(run)))
                numbers.append(number)
            contenders.append({"role": role, "trainings": numbers})
    (search / "answer.json").write_text(json.dumps({"contenders": contenders}))
    (search / "status.json").write_text('{"status": "FINISHED"}')


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The command lines; a fixed network is as right as its rate says, one more on test."""
    lines: list[dict[str, str]] = []

    def call(command: list[str], **_: object) -> None:
        said = dict(line.split("=", 1) for line in command[3:])
        lines.append(said)
        folder = Path(said["paths.output_dir"].strip("'"))
        if said.get("task") is None:
            a_search(folder)
        elif said["task"] == "pipeline":
            seed = int(said["seed"])
            a_run(folder, OF_RATE[said["finetune.lr_encoder"]] + 3 * (seed - 5), seed)
        else:
            tested = Path(said["checkpoint"].strip("'")).parent.parent
            a_run(folder, round(families.accuracy_of(tested) / 100 * IMAGES) + 1, 0)

    monkeypatch.setattr(subprocess, "run", call)
    return lines


def rows_of(path: Path) -> dict[str, list[str]]:
    lines = path.read_text().splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: row for row in rows}


def test_all_are_trained_before_test_is_opened_and_compared_by_image(
    called: list[dict[str, str]], tmp_path: Path
) -> None:
    assert families.main([str(tmp_path), str(tmp_path / "out"), "--parallel", "1"]) == 0
    tasks = [said.get("task", "search") for said in called]
    assert tasks == ["search"] + ["pipeline"] * 8 + ["evaluate"] * 8
    assert [said["evaluation.split"] for said in called if "checkpoint" in said] == ["test"] * 8
    assert len({said["checkpoint"] for said in called if "checkpoint" in said}) == 8
    fixed = [said for said in called if said.get("task") == "pipeline"]
    assert {said["finetune.epochs"] for said in fixed} == {"4"}
    settings = families.Settings(tmp_path, tmp_path, "fashion_mnist", (), 1)
    wide = families.as_large("ResNet", 20_000, settings).partition("channels=")[2]
    assert {said.get("backbone.channels", wide) for said in fixed} == {wide}
    assert [said["finetune.lr_head"] for said in fixed if said["seed"] == "6"] == ["0.003"] * 2
    rows = rows_of(tmp_path / "out" / "families.md")
    assert list(rows) == ["answer", "random search", "ResNet", "MobileNetV2"]
    assert rows["answer"][2:6] == ["20,000", "2.00", "0.030", "1.5"]
    assert rows["answer"][6].startswith("81.00 ± ")  # 40 and 41 of 50
    assert rows["answer"][7].startswith("83.00 ± ")
    assert rows["answer"][8] == ""
    assert rows["random search"][8].startswith("+4.00 ± ")
    # 41 and 42 images of test against 37 and 40, over seeds and images.
    ours, theirs = (
        100.0 * (np.arange(IMAGES) < np.array(right)[:, None]) for right in ((41, 42), (37, 40))
    )
    apart = crossed_difference(ours - theirs)
    assert rows["ResNet"][8].startswith(f"+6.00 ± {apart.ci95:.2f} (p ")
    kept = json.loads((tmp_path / "out" / "families.json").read_text())["fashion_mnist"]
    assert kept["search"] == {"training_macs": 7e9, "minutes": 1.0}
    assert kept["networks"][0]["test"] == [82.0, 84.0]

    before = len(called)
    kept_by = ["--results", str(tmp_path / "kept.json")]
    assert families.main([str(tmp_path), str(tmp_path / "out"), "--parallel", "1", *kept_by]) == 0
    assert len(called) == before
    assert (tmp_path / "kept.json").exists()


@pytest.mark.parametrize("name", list(families.FIXED))
@pytest.mark.parametrize("params", [20_000, 150_000, 700_000])
def test_a_fixed_network_is_as_large_as_the_answer(name: str, params: int, tmp_path: Path) -> None:
    settings = families.Settings(tmp_path, tmp_path, "fashion_mnist", (), 2)
    given = families.as_large(name, params, settings)
    config = load(settings.lines("", *given.split()))
    found = configured(config.backbone, config.dataset.image_size).params
    assert found == pytest.approx(params, rel=0.15)  # channels are whole numbers


def test_what_stopped_is_resumed_and_what_failed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "out" / "search" / "searches" / "one"
    run.mkdir(parents=True)
    (run / "status.json").write_text('{"status": "INTERRUPTED"}')
    called: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: called.append(command))
    with pytest.raises(SystemExit, match=r"output\.txt"):
        families.main([str(tmp_path), str(tmp_path / "out")])
    assert called[0][3:] == [f"resume='{run}'"]
