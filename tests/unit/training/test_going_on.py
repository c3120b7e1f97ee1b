"""Stopping anywhere and going on changes nothing: bit for bit, in one process."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sseg_nase import stages
from sseg_nase.config.compose import load
from sseg_nase.config.schema import Config
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.loop import Trainer

TINY = [
    "debug=tiny",
    "evolution.operators=[grow]",
    "hardware=cpu",
    "hardware.precision=32-true",
    "tracking.interval_steps=1",
    "hardware.gradient_accumulation_steps=3",  # 4 batches an epoch: the last group is smaller
    "evolution.rollback_grace_epochs=1",
]


class Told(Sink):
    """Remembers what it is told, without times."""

    def __init__(self) -> None:
        self.metrics_told: dict[tuple[str, int], float] = {}

    def metrics(self, values: Any, step: int) -> None:
        timeless = ("pretrain/images_per_second", "hardware/memory_mb")
        for name in values.keys() - timeless:
            assert (name, step) not in self.metrics_told, (name, step)
            self.metrics_told[name, step] = values[name]


def after(steps: int) -> Callable[[], bool]:
    counter = itertools.count(1)
    return lambda: next(counter) == steps


def timeless(record: Any) -> dict[str, Any]:
    line = {**record.to_dict(), "seconds": None}
    (line["measured"] or {}).pop("latency", None)
    return line


def same(first: Trainer, second: Trainer) -> None:
    a, b = first.networks.state(), second.networks.state()
    assert first.networks.architecture == second.networks.architecture
    for ours, theirs in (
        (a.student, b.student),
        (a.teacher or {}, b.teacher or {}),
        (a.teacher_head or {}, b.teacher_head or {}),
        (a.memory, b.memory),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert a.moments.keys() == b.moments.keys()
    for name, moments in a.moments.items():
        assert moments.keys() == b.moments[name].keys()
        assert all(torch.equal(moments[key], b.moments[name][key]) for key in moments)
    history = [list(map(timeless, t.progress.history)) for t in (first, second)]
    assert history[0] == history[1]
    ours, theirs = (dataclasses.replace(t.progress, history=[]) for t in (first, second))
    assert ours == theirs


def whole(config: Config, folder: Path) -> tuple[Trainer, Told]:
    told = Told()
    return stages.pretrain(config, told, folder), told


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_stopped_after_any_step_goes_on_as_if_it_had_not_been(
    optimizer: str, tmp_path: Path
) -> None:
    config = load([*TINY, f"optimizer={optimizer}", "ablation=A7"])
    reference, told = whole(config, tmp_path / "whole")
    assert {"GROW", "PRUNE"} <= {record.kind for record in reference.progress.history}
    for steps in range(1, reference.progress.step, 3 if optimizer == "adamw" else 5):
        folder, again = tmp_path / f"after-{steps}", Told()
        with pytest.raises(Interrupted):
            stages.pretrain(config, again, folder, stop=after(steps))
        state = checkpoint.load(folder / "checkpoints" / "last.pt")
        assert state["step"] == steps
        same(stages.pretrain(config, again, folder, state=state), reference)
        assert again.metrics_told == told.metrics_told


SMALL = ["ssl.projection_hidden=16", "ssl.projection_dim=8"]
METHODS = {
    "byol": SMALL,
    "prototype_pairs": [],
    "barlow_twins": SMALL,
    "dino": [*SMALL, "ssl.prototypes=12", "ssl.local_views=2"],
}


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(
            m, marks=[pytest.mark.slow] if m in ("barlow_twins", "prototype_pairs") else []
        )
        for m in METHODS
    ],
)
def test_every_method_goes_on_as_if_it_had_not_been_stopped(method: str, tmp_path: Path) -> None:
    config = load([*TINY, "ablation=A7", f"ssl={method}", *METHODS[method]])
    reference, told = whole(config, tmp_path / "whole")
    kinds = {record.kind for record in reference.progress.history}
    assert "PRUNE" in kinds
    assert kinds & {"GROW", "WIDEN"}
    state = reference.networks.state()
    assert (state.teacher_head is not None) == (method in ("byol", "dino"))
    if method == "dino":
        assert state.memory["centre"].any()
    for steps in (1, 4, reference.progress.step - 2):
        folder, again = tmp_path / f"after-{steps}", Told()
        with pytest.raises(Interrupted):
            stages.pretrain(config, again, folder, stop=after(steps))
        saved = checkpoint.load(folder / "checkpoints" / "last.pt")
        same(stages.pretrain(config, again, folder, state=saved), reference)
        assert again.metrics_told == told.metrics_told


def test_a_checkpoint_from_before_there_were_targets_goes_on(tmp_path: Path) -> None:
    config = load([*TINY, "ablation=A7"])
    reference, _ = whole(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        stages.pretrain(config, Told(), tmp_path, stop=after(5))
    state = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    held = [state] if state["probation"] is None else [state, state["probation"]["old"]]
    for networks in held:
        assert networks.pop("teacher_head") is None
        assert networks.pop("memory") == {}
    same(stages.pretrain(config, Told(), tmp_path, state=state), reference)


def test_a_run_stopped_after_every_step_of_its_own_goes_on(tmp_path: Path) -> None:
    """The best network, too, is kept as of the beginning of its epoch, to repeat it from there."""
    config = load([*TINY, "ablation=A7"])
    reference, told = whole(config, tmp_path / "whole")
    again, state = Told(), None
    for _ in range(reference.progress.step):
        with pytest.raises(Interrupted):
            stages.pretrain(config, again, tmp_path, state=state, stop=after(1))
        state = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
        assert json.loads(json.dumps(state["history"])) == state["history"]
    same(stages.pretrain(config, again, tmp_path, state=state), reference)
    assert again.metrics_told == told.metrics_told
    places = [
        [
            checkpoint.load(folder / "checkpoints" / "best.pt")[key]
            for key in ("epoch", "batch", "sums")
        ]
        for folder in (tmp_path, tmp_path / "whole")
    ]
    assert places[0] == places[1] == [places[0][0], 0, [0.0] * 3]


def test_a_mutation_that_fails_its_probation_is_undone(tmp_path: Path) -> None:
    # A tolerance below any rise: whatever the mutation, the older network is preferred.
    config = load([*TINY, "ablation=A7", "sparsity.rollback_grace_epochs=1"])
    evolution = dataclasses.replace(config.evolution, rollback_tolerance=-0.9)
    sparsity = dataclasses.replace(config.sparsity, rollback_tolerance=-0.9)
    config = dataclasses.replace(config, evolution=evolution, sparsity=sparsity)
    trainer, _ = whole(config, tmp_path)
    assert len(trainer.progress.history) >= 2
    assert not any(record.accepted for record in trainer.progress.history)
    assert all("rollback" in record.trigger for record in trainer.progress.history)
    assert trainer.networks.architecture.channels == (16, 32, 64)
    state = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    assert [record["accepted"] for record in state["history"]] == [False] * len(state["history"])
