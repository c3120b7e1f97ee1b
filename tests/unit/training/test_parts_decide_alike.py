"""What a run decides does not depend on the parts that its batches come in."""

from __future__ import annotations

import pytest

from sseg_nase.config.compose import load
from sseg_nase.evolution.history import MutationRecord
from sseg_nase.stages.pretraining import trainer_of
from sseg_nase.tracking.sink import Sink

# BN normalises with a part, so networks with it train otherwise in parts: this method has no head.
ALIKE = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.precision=32-true",
    "ablation=A7",
    "ssl=prototype_pairs",
    "backbone.batch_norm=false",
    "pretrain.epochs=4",
    "sparsity.start_epoch=3",
]
WHOLE = ["hardware.batch_size=16"]
PARTS = [
    "hardware.batch_size=4",
    "hardware.gradient_accumulation_steps=4",
    "hardware.accumulate=exact",
]


def decided(*overrides: str) -> list[MutationRecord]:
    one = trainer_of(load([*ALIKE, *overrides]), [], Sink(), None, lambda: False)
    one.fit()
    return one.state.progress.history


@pytest.mark.slow
def test_a_run_in_parts_makes_the_mutations_of_the_run_in_whole_batches() -> None:
    """With one effective batch, as the profiles of small cards have it in parts."""
    whole, parts = decided(*WHOLE), decided(*PARTS)
    assert {record.kind for record in whole} > {"PRUNE"}
    for a, b in zip(whole, parts, strict=True):
        for name in ("kind", "epoch", "step", "target", "accepted", "before", "after"):
            assert getattr(a, name) == getattr(b, name), name
        assert b.loss_after == pytest.approx(a.loss_after, rel=1e-3)
        assert (a.fitness is None) == (b.fitness is None)
        if a.fitness is not None:
            assert b.fitness == pytest.approx(a.fitness, rel=0.05, abs=1e-4)
