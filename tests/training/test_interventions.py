"""When the architecture changes: the triggers, seen from outside."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from sseg_nase.config.compose import load
from sseg_nase.training.interventions import Evolve
from sseg_nase.training.loop import Decision, EpochMeans

SETTINGS = dataclasses.replace(
    load([]).evolution,
    plateau_window_size=2,
    plateau_threshold=0.1,
    smoothing=0.0,
    burn_in_epochs=0,
    cooldown_epochs=0,
)


def reasons(
    losses: list[float], levels: list[str] | None = None, accepted: dict[int, bool] | None = None
) -> list[str]:
    """The reason given after each epoch; `accepted`: mutations tried after an epoch."""
    evolve = Evolve(SETTINGS, seed=0)
    found = Decision(None, {"reason": "plateau"})
    evolve._fittest = lambda trainer, trigger: found  # the triggers are what is tested
    given = []
    history: list[Any] = []
    for epoch, loss in enumerate(losses):
        trainer: Any = SimpleNamespace(
            means=EpochMeans(levels[epoch] if levels else "BASIC", loss, loss, None, 1.0),
            progress=SimpleNamespace(epoch=epoch, history=history),
            config=SimpleNamespace(pretrain=SimpleNamespace(epochs=100)),
        )
        given.append(evolve.decide(trainer).trigger["reason"])
        if accepted and epoch in accepted:
            record: Any = SimpleNamespace(epoch=epoch, accepted=accepted[epoch], kind="PRUNE")
            history.append(record)
            evolve.settled(record)
    return given


def test_a_plateau_is_seen_when_the_window_is_full() -> None:
    assert reasons([5.0, 4.0, 4.0, 4.0]) == ["no plateau"] * 3 + ["plateau"]


def test_losses_of_an_earlier_level_do_not_count() -> None:
    levels = ["BASIC", "BASIC", "TEXTURE", "TEXTURE", "TEXTURE"]
    assert reasons([4.0] * 5, levels) == ["no plateau"] * 4 + ["plateau"]


@pytest.mark.parametrize(("accepted", "waits"), [(True, 2), (False, 0)])
def test_losses_of_an_earlier_architecture_do_not_count(accepted: bool, waits: int) -> None:
    given = reasons([4.0] * 8, accepted={2: accepted})
    assert given[2] == "plateau"
    assert given[3:] == ["no plateau"] * waits + ["plateau"] * (5 - waits)
