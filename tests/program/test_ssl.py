"""Every self-supervised method through the whole program on tiny data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sseg_nase.config.compose import load
from sseg_nase.config.validation import cautions
from sseg_nase.run import run
from sseg_nase.ssl.methods import METHODS
from sseg_nase.training import checkpoint

TINY = ["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "tracking=jsonl"]
SMALL = ["ssl.projection_hidden=32", "ssl.projection_dim=16"]
OPTIONS = {
    "simclr": SMALL,
    "byol": SMALL,
    "prototype_pairs": [],
    "barlow_twins": SMALL,
    "dino": [*SMALL, "ssl.prototypes=24"],
}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def ran(method: str, *overrides: str) -> tuple[dict[str, Any], list[dict[str, Any]], list[Any]]:
    """The last checkpoint, the mutations and the epochs of a run."""
    given = [*TINY, f"ssl={method}", *OPTIONS[method], *overrides]
    directory: Path = run(load(given), given)
    assert json.loads((directory / "status.json").read_text())["status"] == "FINISHED"
    path = directory / "mutations.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    events = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    epochs = [event["values"] for event in events if event["kind"] == "epoch"]
    state = checkpoint.load(directory / "checkpoints" / "last.pt")
    return state, [json.loads(line) for line in lines], epochs


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_with_evolution_and_sparsity(method: str) -> None:
    state, mutations, epochs = ran(method, "ablation=A7")
    kinds = {record["kind"] for record in mutations}
    assert "PRUNE" in kinds
    assert kinds & {"GROW", "WIDEN"}
    for record in mutations:
        if record["kind"] == "GROW":
            assert record["function_delta"] < 1e-12
    assert all(epoch["gap"] > 0 for epoch in epochs)
    target, memory = method in ("byol", "dino"), method == "dino"
    assert (state["teacher_head"] is not None) == target
    assert bool(state["memory"]) == memory
    features = state["student"].get("head.fc1.weight", torch.zeros(0, 0)).shape[1]
    if target:
        assert state["teacher_head"]["fc1.weight"].shape[1] == features
    for name, tensor in state["student"].items():
        assert tensor.isfinite().all(), name


@pytest.mark.parametrize("method", ["byol", "dino"])
def test_a_method_keeps_its_target_without_distillation(method: str) -> None:
    given = [*TINY, f"ssl={method}", *OPTIONS[method], "ablation=A6"]
    assert cautions(load(given)) == []
    state, mutations, epochs = ran(method, "ablation=A6")
    assert state["teacher"] is not None
    assert state["teacher_head"] is not None
    assert all(epoch["gap"] > 0 for epoch in epochs)
    assert mutations


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        pytest.param(
            "byol",
            ["hardware.gradient_checkpointing=true", "hardware.channels_last=false"],
            marks=pytest.mark.slow,
        ),
        ("byol", ["backbone.batch_norm=false", "optimizer=sgd", "ssl.projection_layers=3"]),
        ("dino", ["hardware.gradient_checkpointing=true", "ssl.local_views=1"]),
        pytest.param(
            "dino",
            ["backbone.embedding=flatten", "ssl.local_size=1", "evolution.grow_mode=fresh"],
            marks=pytest.mark.slow,
        ),
        ("dino", ["ssl.local_views=0", "hardware.precision=bf16-mixed"]),
        ("prototype_pairs", ["backbone.embedding=flatten", "evolution.widen_mode=zero"]),
        ("prototype_pairs", ["ssl.views=2", "ablation=A3", "curriculum.perturbation=0.05"]),
        pytest.param(
            "barlow_twins",
            ["hardware.gradient_accumulation_steps=2", "ssl.projection_layers=2"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "dino",
            ["dataset.channels=1", "evolution.rollback_grace_epochs=1"],
            marks=pytest.mark.slow,
        ),
        (
            "byol",
            ["backbone=conv4", "evolution=none", "sparsity=none", "ssl.ema_schedule=constant"],
        ),
    ],
)
def test_options_of_methods_run_end_to_end(method: str, overrides: list[str]) -> None:
    ran(method, *overrides)


@pytest.mark.parametrize("method", ["byol", "dino"])
def test_recomputed_activations_give_the_same_network(method: str) -> None:
    plain, _, _ = ran(method, "pretrain.epochs=2")
    recomputed, _, _ = ran(method, "pretrain.epochs=2", "hardware.gradient_checkpointing=true")
    for part in ("student", "teacher", "teacher_head", "memory"):
        assert plain[part].keys() == recomputed[part].keys()
        assert all(torch.equal(plain[part][name], t) for name, t in recomputed[part].items())


@pytest.mark.parametrize("method", ["byol", "dino"])
@pytest.mark.slow
def test_two_processes_train_a_method_as_one(method: str) -> None:
    calm = ["ablation=A7", "seed=1", "optimizer=sgd", "optimizer.lr=0.01", "pretrain.epochs=4"]
    one = ran(method, *calm, "hardware.batch_size=16")
    two = ran(method, *calm, "hardware.batch_size=8", "hardware.devices=2")
    assert [m["target"] for m in one[1]] == [m["target"] for m in two[1]]
    for name in ("loss", "gap"):
        ours, theirs = ([epoch[name] for epoch in each[2]] for each in (two, one))
        assert ours == pytest.approx(theirs, rel=1e-3)
