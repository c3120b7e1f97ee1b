"""A run that is distilled from the classifier of another run."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sseg_nase import stages
from sseg_nase.config.compose import load
from sseg_nase.errors import UserError
from sseg_nase.finetune.loop import FineTuner
from sseg_nase.run import run
from sseg_nase.training import checkpoint
from sseg_nase.training.interruption import Interrupted

TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.precision=32-true",
    "hardware.batch_size=256",
    "tracking=jsonl",
    "ssl=none",
    "evolution=none",
    "sparsity=none",
    "finetune.validation_episodes=10",
    "evaluation.untrained_reference=false",
]


def results_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return found


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = ["finetune=linear", "finetune.epochs=1", "backbone.channels=[8,24]"]
    folder = tmp_path_factory.mktemp("teacher")
    return run(load([*TINY, *own, f"paths.output_dir={folder}"]))


def student(teacher: Path, *further: str) -> list[str]:
    own = ["backbone.channels=[8,16]", "finetune.epochs=2", "finetune.rotation=0.5"]
    own += [f"finetune.teacher={teacher}", "finetune.feature_weight=0.5", "finetune.ema_decay=0.5"]
    return [*TINY, "finetune=linear", *own, *further]


def test_a_distilled_run_tells_of_its_teacher_and_goes_on_bit_for_bit(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(load(student(teacher)))
    told, spent = results_of(whole)["teacher"], results_of(whole)["training_macs"]
    file = teacher / "checkpoints" / "finetune_best.pt"
    assert told["path"] == str(file)
    assert (
        told["training_macs"]
        == spent["teacher_run"]
        == results_of(teacher)["training_macs"]["total"]
    )
    images = results_of(whole)["images_seen"]["real_labeled"]
    assert (
        spent["teacher"]
        == images * told["macs"]
        == images * results_of(teacher)["architecture"]["macs"]
    )
    assert spent["total"] == sum(spent.values()) / 2
    lines = (whole / "events.jsonl").read_text().splitlines()
    assert any(f"finetune=linear is distilled from {file} (" in line for line in lines)
    data = json.loads((whole / "data.json").read_text())
    assert data["files"]["finetune.teacher"]["path"] == str(file)
    assert len(data["files"]["finetune.teacher"]["sha256"]) == 64

    steps, taken = FineTuner.step, 0

    def update(self: FineTuner) -> bool:
        nonlocal taken
        taken += 1
        if taken == 4:  # the first of the second epoch
            self.stop = lambda: True  # type: ignore[method-assign]
        return steps(self)

    with monkeypatch.context() as patched:
        patched.setattr(FineTuner, "step", update)
        with pytest.raises(Interrupted) as stopped:
            run(load(student(teacher)))
    resumed = run(load([f"resume={stopped.value.run_dir}"]))  # type: ignore[attr-defined]
    for name in ("finetune_best", "finetune_last"):
        one, other = (
            checkpoint.load(each / "checkpoints" / f"{name}.pt") for each in (resumed, whole)
        )
        for part in ("student", "average", "beside"):
            for key, tensor in other[part].items():
                assert torch.equal(one[part][key], tensor), key
    for key in ("fewshot", "training_macs", "teacher"):
        assert results_of(resumed)[key] == results_of(whole)[key]


def test_another_teacher_is_not_gone_on_with(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "teacher"
    shutil.copytree(teacher, copied)

    def stopped(self: FineTuner) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FineTuner, "fit", stopped)
        with pytest.raises(KeyboardInterrupt) as error:
            run(load(student(copied)))
    file = copied / "checkpoints" / "finetune_best.pt"
    checkpoint.save(file, {**checkpoint.load(file), "step": 99})
    with pytest.raises(UserError, match=r"finetune\.teacher: .* is another file than"):
        run(load([f"resume={error.value.run_dir}"]))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["finetune=prototypical", "finetune.teacher=x"], "choose finetune=linear"),
        (["finetune.teacher=x"], "choose finetune=linear"),
        (["finetune=[linear,prototypical]", "finetune.linear.teacher=x"], "write finetune.teacher"),
        (["finetune=linear", "finetune.distillation_temperature=3"], "without finetune.teacher"),
        (["finetune=[linear,r2d2]", "finetune.linear.feature_weight=1"],
         "finetune.linear.feature_weight=1.0: it has no effect without finetune.teacher"),
        (["finetune=linear", "finetune.teacher=x", "finetune.distillation_weight=0"], "nothing is"),
        (["finetune=linear", "finetune.teacher=x", "finetune.distillation_weight=2"], "at most 1"),
        (["finetune=r2d2", "finetune.rotation=1"], "finetune.rotation=1.0: it has no effect"),
        (["finetune=linear", "finetune.teacher="], "finetune.teacher= is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_distilled_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        load([*TINY, *overrides])
    assert said in str(error.value)


def test_a_teacher_must_fit(teacher: Path, tmp_path: Path) -> None:
    config = load(student(teacher))
    base = stages.labelled(config)

    def refused(given: Path) -> str:
        finetune = dataclasses.replace(config.finetune, teacher=str(given))
        with pytest.raises(UserError) as error:
            stages.classifier_of(dataclasses.replace(config, finetune=finetune), base)
        assert str(error.value).startswith(f"finetune.teacher={given}: ")
        return str(error.value)

    assert "there is no such file" in refused(tmp_path / "none.pt")
    state = checkpoint.load(teacher / "checkpoints" / "finetune_best.pt")
    other = tmp_path / "other.pt"

    def changed(**parts: Any) -> str:
        checkpoint.save(other, {**state, **parts})
        return refused(other)

    [key] = state["data"]["roles"]["finetune"]
    names = state["data"]["images"][key]["classes"]

    def classes(names: list[str]) -> dict[str, Any]:
        images = {key: {**state["data"]["images"][key], "classes": names}}
        return {**state["data"], "images": images}

    assert f"does not know {names[0]}" in changed(data=classes(["x", *names[1:]]))
    assert "in another order" in changed(data=classes(names[::-1]))
    assert "does not say of which classes" in changed(data={})
    grey = dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, channels=1))
    with pytest.raises(UserError, match=r"dataset\.channels=1: the network .* has in_channels=3"):
        stages.classifier_of(grey, base)
    untuned = {k: v for k, v in state.items() if k not in ("finetune", "options")}
    checkpoint.save(other, untuned)
    assert "holds no classifier" in refused(other)


def test_of_a_run_in_stages_the_classifier_teaches(teacher: Path, tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    shutil.copytree(teacher, staged)
    folder = staged / "checkpoints"
    (folder / "finetune_best.pt").rename(folder / "finetune_linear.pt")
    own = [
        "finetune=[linear,prototypical]",
        "finetune.linear.epochs=1",
        f"finetune.teacher={staged}",
    ]
    episodes = [
        "finetune.episodes_per_epoch=2",
        "finetune.prototypical.epochs=1",
        "finetune.queries=3",
    ]
    results = results_of(run(load([*TINY, *own, *episodes])))
    assert results["teacher"]["path"] == str(folder / "finetune_linear.pt")
    assert results["training_macs"]["teacher_run"] == results["teacher"]["training_macs"]
    assert results["training_macs"]["teacher"] > 0
