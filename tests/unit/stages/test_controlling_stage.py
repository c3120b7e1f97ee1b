"""The control of a run: the network that it began with, trained without mutations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sseg_nase import stages
from sseg_nase.config.compose import load
from sseg_nase.errors import UserError
from sseg_nase.finetune.loop import FineTuner
from sseg_nase.reporting.run_report import write_report
from sseg_nase.run import run
from sseg_nase.stages.evaluating import Evaluation
from sseg_nase.statistics import mean_ci95
from sseg_nase.tracking.console import gained
from sseg_nase.training import checkpoint
from sseg_nase.training.divergence import DivergenceError
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.loop import Trainer

SMALL = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.precision=32-true",
    "tracking=jsonl",
    "sparsity=none",
    "evolution=balanced",
    "evolution.expand_at=[0.5]",
    "backbone.channels=[8,8]",
    "pretrain.epochs=2",
    "evaluation.untrained_reference=false",
]
CONTROL = [*SMALL, "report.control=true"]
FIXED = [*(one for one in SMALL if "evolution" not in one), "evolution=none"]
TUNED = ["ssl=none", "finetune=[linear,prototypical]", "finetune.linear.evolve=true"]
TUNED += ["finetune.linear.epochs=2", "finetune.prototypical.epochs=1", "finetune.queries=3"]
TUNED += ["finetune.episodes_per_epoch=2", "hardware.batch_size=256"]
TUNED += ["finetune.validation_episodes=10"]


def results_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return found


@pytest.mark.slow
def test_a_run_with_control_is_that_run_and_one_without_evolution() -> None:
    both, alone = run(load(CONTROL)), run(load(FIXED))
    results, without = results_of(both), results_of(alone)
    assert results["mutations"] == 1
    assert results["fewshot_control"] == without["fewshot"]
    about = results["control"]
    assert about["params"] == without["architecture"]["params"] < results["architecture"]["params"]
    assert about["training_macs"] == without["training_macs"]["total"]
    assert results["training_macs"]["total"] != about["training_macs"]  # its own, and no other
    assert results["images_seen"] == without["images_seen"]
    one, other = (
        checkpoint.load(path / "checkpoints" / "last.pt") for path in (both / "control", alone)
    )
    for name, tensor in other["student"].items():
        assert torch.equal(one["student"][name], tensor), name
    for key, one in about["last_minus"].items():
        mean = results["fewshot"][key]["accuracy"] - results["fewshot_control"][key]["accuracy"]
        assert one["mean"] == pytest.approx(mean)
        assert any(f"last minus control, {key}: {one['mean']:+.2f}" in x for x in gained(results))
    # Its epochs are no epochs of the run.
    lines = [json.loads(line) for line in (both / "events.jsonl").read_text().splitlines()]
    assert [line["values"]["epoch"] for line in lines if line.get("kind") == "epoch"] == [0, 1]
    logged = [line.get("values") or {} for line in lines]
    assert any("fewshot_control/digits/val/5w1s/accuracy" in values for values in logged)
    text = next(path for path in write_report(both) if path.name == "report.md").read_text()
    assert "points** on digits val, 5-way 1-shot over the seed network" in text


def test_the_difference_is_paired() -> None:
    accuracies = [np.array([50.0, 60, 80]), np.array([40.0, 58, 70])]
    last, control = (Evaluation({}, {"d/val/5w1s": each}, {}) for each in accuracies)
    network = stages.Reached(stages.seed_backbone(load(SMALL)), macs=None)
    about = stages.compared(network, control, last)
    mean, ci95 = mean_ci95(np.array([10.0, 2, 10]))
    assert about["last_minus"]["d/val/5w1s"]["mean"] == pytest.approx(mean)
    assert about["last_minus"]["d/val/5w1s"]["ci95"] == pytest.approx(ci95)
    assert about["training_macs"] is None


@pytest.mark.slow
@pytest.mark.parametrize("further", [[], TUNED], ids=["pretrain", "finetune"])
def test_a_control_goes_on_bit_for_bit(further: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(load([*CONTROL, *further]))
    kind, name = (FineTuner, "step") if further else (Trainer, "step")
    step: Any = getattr(kind, name)
    per_run = 8  # of the run itself: 2 epochs of 4 steps; with labels 2 of 3, and one more
    stop_at = per_run + 3
    taken = 0

    def stopping(self: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == stop_at:
            self.stop = lambda: True
        return step(self)

    with monkeypatch.context() as patched:
        patched.setattr(kind, name, stopping)
        with pytest.raises(Interrupted) as stopped:
            run(load([*CONTROL, *further]))
    folder = stopped.value.run_dir  # type: ignore[attr-defined]
    assert (folder / "control" / "checkpoints").exists()
    resumed = run(load([f"resume={folder}"]))
    for key in ("fewshot", "fewshot_control", "control", "training_macs"):
        assert results_of(resumed)[key] == results_of(whole)[key], key


def test_a_control_that_fails_costs_the_run_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverges(*args: Any, **kwargs: Any) -> Any:
        raise DivergenceError("it diverged.")

    monkeypatch.setattr(stages.pipeline, "train_control", diverges)
    directory = run(load(CONTROL))
    assert "control" not in results_of(directory)
    assert gained(results_of(directory)) == []
    assert "the control is not trained: it diverged." in (directory / "events.jsonl").read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (FIXED, "nothing changes the network"),
        ([*FIXED, "ssl=none", "finetune=linear"], "nothing changes the network"),
        ([*SMALL, "task=evaluate", "checkpoint=x"], "no effect with task=evaluate"),
    ],
)
def test_a_control_that_would_be_the_run_again_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        load([*overrides, "report.control=true"])
    assert f"report.control=true: {said}" in str(error.value).replace("it has ", "")
