"""Two processes at the global batch of one: the same decisions, the same network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sseg_nase.config.compose import load
from sseg_nase.run import run
from sseg_nase.training import checkpoint

# With this seed no two channels are so nearly alike that rounding decides which is pruned.
TINY = ["debug=tiny", "seed=1", "hardware=cpu", "hardware.precision=32-true", "tracking=jsonl"]
EQUAL = 1e-4  # relative: sums over ranks are rounded otherwise than sums over a batch


def trained(*overrides: str) -> tuple[Path, list[dict[str, Any]], list[dict[str, Any]]]:
    """Run directory, epochs, mutations."""
    given = [*TINY, *overrides]
    directory = run(load(given), given)
    lines = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    epochs = [line["values"] for line in lines if line["kind"] == "epoch"]
    text = (directory / "mutations.jsonl").read_text()
    return directory, epochs, [json.loads(line) for line in text.splitlines()]


def weights(state: dict[str, Any]) -> torch.Tensor:
    tensors = [t for t in state["student"].values() if t.is_floating_point()]
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.parametrize(
    "overrides",
    [
        ["ablation=A7", "evolution.operators=[grow]", "evolution.rollback_grace_epochs=1"],
        pytest.param(
            ["ablation=A6", "evolution.operators=[grow]", "hardware.gradient_accumulation_steps=3"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_processes_train_as_one(overrides: list[str]) -> None:
    one, epochs, mutations = trained(*overrides, "hardware.batch_size=16")
    two, epochs2, mutations2 = trained(*overrides, "hardware.batch_size=8", "hardware.devices=2")
    assert {"GROW", "PRUNE"} <= {m["kind"] for m in mutations}
    for key in ("epoch", "step", "kind", "target", "after", "accepted"):
        assert [m[key] for m in mutations] == [m[key] for m in mutations2], key
    for name in ("loss", "gap"):
        ours, theirs = ([epoch[name] for epoch in each] for each in (epochs2, epochs))
        if theirs[0] is not None:
            # A gap is a small difference of large vectors.
            assert ours == pytest.approx(theirs, rel=EQUAL if name == "loss" else 10 * EQUAL)
    results = [json.loads((d / "results.json").read_text()) for d in (one, two)]
    assert results[0]["architecture"] == results[1]["architecture"]
    assert results[0]["images_seen"] == results[1]["images_seen"]
    first, second = (checkpoint.load(d / "checkpoints" / "last.pt") for d in (one, two))
    apart = weights(first) - weights(second)
    assert apart.norm() <= 1e-2 * weights(first).norm()
