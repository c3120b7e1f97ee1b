"""Several methods of fine-tuning, one after the other, in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sseg_nase.config.compose import load, overrides_of, spelled_out
from sseg_nase.config.multirun import expand
from sseg_nase.config.sequence import stages_of
from sseg_nase.errors import UserError
from sseg_nase.finetune.loop import FineTuner
from sseg_nase.reporting.figures.trajectory import states
from sseg_nase.reporting.provenance import provenance
from sseg_nase.run import run
from sseg_nase.rundir.record import read_run
from sseg_nase.tracking.console import finetune_line
from sseg_nase.training import checkpoint
from sseg_nase.training.divergence import DivergenceError
from sseg_nase.training.interruption import Interrupted

ALONE = ["ssl=none", "evolution=none", "sparsity=none"]
TWO = "finetune=[linear,prototypical]"
TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.precision=32-true",
    "hardware.batch_size=64",
    "tracking=jsonl",
    "ssl=none",
    "sparsity=none",
    "evolution=balanced",
    "evolution.expand_at=[0.5]",
    "backbone.channels=[8,16]",
    "finetune.linear.evolve=true",
    "finetune.validation_episodes=10",
    "finetune.episodes_per_epoch=4",
    "finetune.tasks_per_step=2",
    "finetune.queries=3",
    "evaluation.untrained_reference=false",
    TWO,
    "finetune.linear.epochs=2",
    "finetune.prototypical.epochs=1",
    "finetune.linear.ema_decay=0.5",
]


def results_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return found


def test_a_stage_has_its_own_settings_and_those_without_a_name() -> None:
    config = load(
        [
            *ALONE,
            TWO,
            "finetune.linear.epochs=7",
            "finetune.linear.views.flip=0.25",
            "finetune.optimizer=sgd",
            "finetune.queries=3",
        ]
    )
    linear, prototypical = (stage.finetune for stage in stages_of(config))
    assert (linear.name, prototypical.name) == ("linear", "prototypical")
    assert (linear.epochs, prototypical.epochs) == (7, 60)
    assert (linear.optimizer, prototypical.optimizer) == ("sgd", "sgd")
    assert (prototypical.queries, prototypical.episodes_per_epoch) == (3, 1000)
    assert not {"queries", "episodes_per_epoch", "metric"} & vars(linear).keys()
    assert (linear.views.flip, prototypical.views.flip) == (0.25, 0.5)
    assert config.finetune.name == "prototypical"
    again = overrides_of(config)
    assert load(again) == config
    assert [line for line in again if "own" in line] == [
        "++finetune.own.linear.epochs=7", "++finetune.own.linear.views.flip=0.25"
    ]  # fmt: skip
    # What only some methods have goes to those, also where the last one does not have it.
    turned = load([*ALONE, "finetune=[matching,r2d2,linear]", "finetune.scale=3"])
    assert [vars(stage.finetune).get("scale") for stage in stages_of(turned)] == [3, 3, None]
    usual = load([*ALONE, "finetune=[matching,linear]"])
    assert [vars(stage.finetune).get("scale") for stage in stages_of(usual)] == [10, None]
    assert stages_of(load(ALONE)) == []
    alone = load([*ALONE, "finetune=linear"])
    assert stages_of(alone) == [alone]
    assert load([*ALONE, "finetune=[linear]"]) == alone


def test_a_sweep_takes_sequences_among_its_values() -> None:
    jobs = expand(spelled_out(["finetune=linear,[linear,r2d2]"], multirun=True))
    methods = [[s.finetune.name for s in stages_of(load([*ALONE, *job]))] for job in jobs]
    assert methods == [["linear"], ["linear", "r2d2"]]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["finetune=[linear,linear]"], "none twice"),
        (["finetune=[linear,none]"], "none is no method"),
        (["finetune=[linear,protypical]"], "prototypical"),
        (["finetune=linear", "finetune.linear.epochs=3"], "write finetune.epochs"),
        ([TWO, "finetune.maml.epochs=3"], "none of the stages"),
        ([TWO, "finetune.linear.epoch=3"], "'finetune.linear.epochs'"),
        ([TWO, "finetune.linear.epochs=0"], "finetune.linear.epochs=0"),
        ([TWO, "finetune.linear.epochs=x"], "finetune.linear.epochs=x"),
        ([TWO, "finetune.linear.scale=3"], "finetune.linear.scale=3: it has no effect"),
        ([TWO, "finetune.inner_lr=1"], "finetune.prototypical.inner_lr=1.0"),
        ([TWO, "finetune.linear.from=x"], "is for the first one"),
        ([TWO, "finetune.linear.name=maml"], "after its name"),
        ([TWO, "finetune.linear=3"], "no such key"),
        ([TWO, "finetune.prototypical.freeze=encoder"], "finetune.prototypical.freeze=encoder"),
        (["finetune=r2d2", "finetune.sequence=[linear,maml]"], "ends with another"),
    ],
)
def test_what_is_no_sequence_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        load([*ALONE, *overrides])
    assert said in str(error.value)


def test_a_run_in_stages_that_grows_in_the_first() -> None:
    whole = run(load(TINY))
    results = results_of(whole)
    assert [one["method"] for one in results["finetuning"]] == ["linear", "prototypical"]
    assert [one["epochs"] for one in results["finetuning"]] == [2, 1]
    assert {"finetune_linear", "finetune_prototypical"} <= set(results["seconds"])
    spent = results["training_macs"]
    assert spent["total"] == sum(n for part, n in spent.items() if part != "total")
    assert {"finetune_linear", "finetune_prototypical", "checks"} < set(spent)
    assert spent["finetune_prototypical"] == results["finetuning"][1]["macs"] > 0
    seen = results["images_seen"]["real_labeled"]
    assert seen == sum(one["images_seen"] for one in results["finetuning"])
    record = read_run(whole)
    told = [(line["number"], line["epoch"]) for line in record.events["finetune"]]
    assert told == [(0, 0), (0, 1), (1, 0)]
    assert "2 of 2, prototypical, epoch 1/1" in finetune_line(record.events["finetune"][-1])
    assert provenance(whole, results).method == "base classifier, then ProtoNet"
    last = checkpoint.load(whole / "checkpoints" / "finetune_best.pt")
    assert last["step"] > results["finetuning"][0]["steps"]
    kept = checkpoint.load(whole / "checkpoints" / "finetune_linear.pt")
    assert kept["step"] == results["finetuning"][0]["steps"]

    # What it became is told, drawn and replayed.
    assert results["mutations"] == 1
    assert [(state.end, len(state.channels)) for state in states(record)] == [(1, 2), (3, 4)]
    replayed = run(load(["task=replay", f"run={whole}", "tracking=jsonl"]))
    grown = json.loads((replayed / "architecture.json").read_text())
    assert grown == json.loads((whole / "architecture.json").read_text())


@pytest.mark.slow
def test_every_stage_goes_on_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(load(TINY))
    _same(_stopped(monkeypatch, 0, 3), whole)
    _same(_stopped(monkeypatch, 0, 17), whole)  # when it has grown
    _same(_stopped(monkeypatch, 1, 1), whole)


@pytest.mark.slow
def test_a_run_that_is_killed_between_two_stages_goes_on_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run(load(TINY))
    fit = FineTuner.fit

    def killed(self: FineTuner) -> None:
        if self.about["number"] == 1:
            raise KeyboardInterrupt
        fit(self)

    with monkeypatch.context() as patched:
        patched.setattr(FineTuner, "fit", killed)
        with pytest.raises(KeyboardInterrupt) as stopped:
            run(load(TINY))
    _same(run(load([f"resume={stopped.value.run_dir}"])), whole)


def _stopped(monkeypatch: pytest.MonkeyPatch, stage: int, stop_at: int) -> Path:
    """A run that was stopped after step `stop_at` of `stage`, resumed."""
    steps, taken = FineTuner.step, 0

    def update(self: FineTuner) -> bool:
        nonlocal taken
        taken += self.about["number"] == stage
        if taken == stop_at:
            self.stop = lambda: True  # type: ignore[method-assign]
        return steps(self)

    with monkeypatch.context() as patched:
        patched.setattr(FineTuner, "step", update)
        with pytest.raises(Interrupted) as stopped:
            run(load(TINY))
    return run(load([f"resume={stopped.value.run_dir}"]))  # type: ignore[attr-defined]


def _same(resumed: Path, whole: Path) -> None:
    one, other = (
        checkpoint.load(each / "checkpoints" / "finetune_best.pt") for each in (resumed, whole)
    )
    for name, tensor in other["student"].items():
        assert torch.equal(one["student"][name], tensor), name
    for key in ("fewshot", "finetuning", "training_macs", "images_seen"):
        assert results_of(resumed)[key] == results_of(whole)[key], key


def test_a_stage_is_named_where_it_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverges(self: FineTuner) -> None:
        raise DivergenceError(f"{self.guard.what} diverged.")

    monkeypatch.setattr(FineTuner, "fit", diverges)
    with pytest.raises(UserError) as error:
        run(load([*TINY, "finetune.linear.lr_head=0.5"]))
    assert "fine-tuning with linear diverged" in str(error.value)
    assert "finetune.linear.lr_head=0.5 (try 0.001)" in str(error.value)


@pytest.mark.slow
def test_a_run_is_not_resumed_in_a_stage_that_it_does_not_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit = FineTuner.fit

    def stopped_after(self: FineTuner) -> None:
        fit(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FineTuner, "fit", stopped_after)
        with pytest.raises(KeyboardInterrupt) as stopped:
            run(load(TINY), spelled_out(TINY))
    there = [f"resume={stopped.value.run_dir}", "resume_overrides=true"]
    with pytest.raises(UserError, match="has come to fine-tuning with linear as stage 1"):
        run(load([*there, "finetune=[prototypical,linear]"]))
    with pytest.raises(UserError, match=r"finetune\.linear\.epochs=1: the run .* has trained"):
        run(load([*there, "finetune.linear.epochs=1"]))
