"""When the architecture changes: the triggers, seen from outside."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

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
    losses: list[float],
    levels: list[str] | None = None,
    channels: list[tuple[int, ...]] | None = None,
) -> list[str]:
    """The reason given after each epoch of those losses, levels and widths."""
    evolve = Evolve(SETTINGS, seed=0)
    found = Decision(None, {"reason": "plateau"})
    evolve._fittest = lambda trainer, trigger: found  # the triggers are what is tested
    given = []
    for epoch, loss in enumerate(losses):
        level = levels[epoch] if levels else "BASIC"
        widths = channels[epoch] if channels else (16, 32)
        trainer: Any = SimpleNamespace(
            means=EpochMeans(level, widths, loss, loss, None, 1.0),
            progress=SimpleNamespace(epoch=epoch, history=[]),
            config=SimpleNamespace(pretrain=SimpleNamespace(epochs=100)),
        )
        evolve.observe(trainer)
        given.append(evolve.decide(trainer).trigger["reason"])
    return given


def test_a_plateau_is_seen_when_the_window_is_full() -> None:
    assert reasons([5.0, 4.0, 4.0, 4.0]) == ["no plateau"] * 3 + ["plateau"]


def test_losses_of_an_earlier_level_do_not_count() -> None:
    levels = ["BASIC", "BASIC", "TEXTURE", "TEXTURE", "TEXTURE"]
    assert reasons([4.0] * 5, levels) == ["no plateau"] * 4 + ["plateau"]


def test_losses_of_an_earlier_architecture_do_not_count() -> None:
    channels = [(16, 32)] * 3 + [(12, 32)] * 4
    expected = ["no plateau"] * 2 + ["plateau"] + ["no plateau"] * 2 + ["plateau"] * 2
    assert reasons([4.0] * 7, channels=channels) == expected
