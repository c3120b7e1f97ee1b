"""Growth in a fixed order: when, what, and that a stopped run goes on with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sseg_nase import stages
from sseg_nase.config.compose import load
from sseg_nase.config.options import options_of
from sseg_nase.config.schema import EvolutionConfig
from sseg_nase.evolution.replay import replay
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.building import build
from sseg_nase.ssl.methods import make_learner
from sseg_nase.training import checkpoint
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.interventions import Evolve
from sseg_nase.training.networks import Workshop
from sseg_nase.training.order import ORDERS, Expand
from sseg_nase.training.state import PretrainingProgress
from sseg_nase.training.surgery import Decision
from tests.support.small_state import state_of
from tests.unit.training.test_going_on import TINY, Told, after, same, whole

SEED = Architecture.seed([4, 5, 6], resolution=16)
WIDE = Architecture.seed([4] * 5, resolution=32)
UNEVEN = Architecture.seed([4, 4, 6], resolution=16, pooled_blocks=1)
CONFIG = load(["evolution=balanced"])
EVOLUTION = CONFIG.evolution


def decided(
    epochs: int, *, busy: Sequence[int] = (), start: Architecture = SEED, **settings: Any
) -> list[tuple[int, Decision]]:
    """What is decided after every epoch, counted from 1, but the last and the `busy` ones."""
    evolution = dataclasses.replace(EVOLUTION, **settings)
    expand, architecture, found = Expand(evolution, 7), start, []
    for epoch in range(epochs - 1):
        if epoch + 1 in busy:
            continue
        learner = make_learner(build(architecture), CONFIG.ssl, torch.Generator())
        networks = Workshop(CONFIG, torch.device("cpu")).around(learner)
        progress = PretrainingProgress(epoch=epoch)
        decision = expand.decide(state_of(epochs=epochs, networks=networks, progress=progress))
        found.append((epoch + 1, decision))
        if decision.mutation is not None:
            architecture = decision.mutation.after
        state, expand = expand.state_dict(), Expand(evolution, 7)
        expand.load_state_dict(state)
    return found


def grown(decisions: list[tuple[int, Decision]]) -> dict[int, list[int]]:
    """Blocks per stage after the epochs in which the network grew."""
    return {
        epoch: [len(stage) for stage in decision.mutation.after.stages]
        for epoch, decision in decisions
        if decision.mutation is not None
    }


def test_every_stage_gets_one_block_more_at_each_share_of_the_epochs() -> None:
    decisions = decided(40)
    assert grown(decisions) == {12: [2, 2, 2], 16: [3, 3, 3]}
    reasons = {epoch: decision.trigger["reason"] for epoch, decision in decisions}
    assert reasons[11] == reasons[13] == reasons[39] == "no expansion is due"
    assert reasons[20] == "every stage has 3 blocks or more"
    first, second = (d for _, d in decisions if d.mutation is not None)
    assert first.trigger == {"reason": "an expansion is due", "expansion": 1, "of": 3}
    assert first.mutation is not None
    assert second.mutation is not None
    assert first.mutation.target["seed"] != second.mutation.target["seed"]
    assert (first.grace, first.fitness) == (0, None)  # there is nothing to prove
    assert grown(decided(40, blocks_per_stage=2)) == {12: [2, 2, 2]}
    assert grown(decided(40, expand_at=[0.6])) == {24: [2, 2, 2]}
    assert UNEVEN.stages == ((0,), (1, 2))
    assert grown(decided(40, start=UNEVEN)) == {12: [2, 3], 16: [3, 3]}


def test_an_expansion_that_was_missed_is_made_up_for_but_not_late() -> None:
    assert grown(decided(40, busy=[12, 13])) == {14: [2, 2, 2], 16: [3, 3, 3]}
    assert grown(decided(40, busy=range(12, 17))) == {17: [2, 2, 2], 18: [3, 3, 3]}
    late = decided(40, busy=range(12, 24))
    assert grown(late) == {24: [2, 2, 2]}  # 0.6 of the epochs
    reasons = [decision.trigger["reason"] for epoch, decision in late if epoch > 24]
    assert reasons[:3] == [
        *["an expansion is due, but over 60% of the epochs are done"] * 2,
        "no expansion is due",
    ]
    assert grown(decided(3)) == {1: [2, 2, 2], 2: [3, 3, 3]}  # so few epochs


def test_an_expansion_over_a_cap_is_refused_in_words() -> None:
    decisions = decided(40, max_blocks=8)
    assert grown(decisions) == {12: [2, 2, 2]}
    assert decisions[15][1].trigger["reason"] == (
        "the expansion is over a cap: blocks 9 over the cap of 8"
    )


def test_an_order_by_its_name() -> None:
    known = options_of(EvolutionConfig)
    assert {name: ORDERS[kind] for name, kind in known.items()} == {
        "trials": Evolve,
        "balanced": Expand,
        "random": Expand,
    }


def test_stages_are_drawn() -> None:
    """As many blocks at the same time as in the balanced order."""
    drawn = grown(decided(40, order="random", start=WIDE, max_blocks=15))
    assert {epoch: sum(stages) for epoch, stages in drawn.items()} == {12: 10, 16: 15}
    assert all(stages != [number] * 5 for number, stages in enumerate(drawn.values(), 2))
    *_, (_, last) = (
        (epoch, decision)
        for epoch, decision in decided(40, order="random")
        if decision.trigger["reason"] != "no expansion is due"
    )
    assert last.trigger["reason"] == "the stages have 3 blocks or more on average"
    fewer = grown(decided(40, order="random", blocks_per_stage=2, start=UNEVEN))
    assert [sum(stages) for stages in fewer.values()] == [4]  # 2 stages, of 3 blocks before


def test_a_stopped_run_grows_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    small = ["backbone=seed_wide", "backbone.channels=[4,6]", "pretrain.epochs=5"]
    config = load([*TINY, *small, "evolution=balanced", "ablation=A5", "scheduler=constant_decay"])
    reference, told = whole(config, tmp_path / "whole")
    history = reference.progress.history
    assert [(r.kind, r.epoch, r.accepted) for r in history] == [
        ("GROW", 1, True),
        ("GROW", 2, True),
    ]
    assert all(r.function_delta is not None and r.function_delta < 1e-6 for r in history)
    assert all(r.loss_after == pytest.approx(r.loss_before, rel=1e-5) for r in history)
    start = Architecture.seed([4, 6], resolution=16, activation="leaky_relu")
    final = Architecture.seed([4, 6], resolution=16, activation="leaky_relu", blocks_per_stage=3)
    assert replay(start, [record.to_dict() for record in history])[-1] == final
    assert reference.networks.architecture == final
    assert reference.networks.teacher is not None
    assert reference.networks.teacher.architecture == final
    again = Told()
    with pytest.raises(Interrupted):  # between the two
        stages.pretrain(config, again, tmp_path / "stopped", stop=after(5))
    state = checkpoint.load(tmp_path / "stopped" / "checkpoints" / "last.pt")
    assert [len(state["history"]), state["interventions"]["evolution"]] == [1, {"rounds": 1}]
    same(stages.pretrain(config, again, tmp_path / "stopped", state=state), reference)
    assert again.metrics_told == told.metrics_told
