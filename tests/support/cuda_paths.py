"""Trainings of seconds for the CUDA paths, and interventions that do as they are told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from sseg_nase.config.compose import load
from sseg_nase.config.schema import Config
from sseg_nase.stages.pretraining import trainer_of
from sseg_nase.tracking.sink import Sink
from sseg_nase.training.events import Callback, Event
from sseg_nase.training.loop import Trainer
from sseg_nase.training.state import Pretraining
from sseg_nase.training.surgery import Decision, Intervention
from tests.support.fake_cuda import Fake

TINY = [
    "debug=tiny",
    "hardware=rtx3060",
    "hardware.batch_size=16",
    "hardware.gradient_accumulation_steps=1",
    "hardware.precision=bf16-mixed",  # of the first steps of 16-mixed most are skipped
    "pretrain.images_per_epoch=32",
]  # 2 batches an epoch
HEADS = ["ssl.projection_hidden=16", "ssl.projection_dim=8"]


def config_of(*overrides: str) -> Config:
    """To be called where there is a CUDA device."""
    heads = [] if "ssl=prototype_pairs" in overrides else HEADS
    return load([*TINY, *heads, *overrides])


def trainer(
    *overrides: str,
    callbacks: Sequence[Callback] = (),
    state: Any = None,
    interventions: Sequence[Intervention] | None = None,
) -> Trainer:
    """A training with a CUDA device."""
    one = trainer_of(config_of(*overrides), list(callbacks), Sink(), state, lambda: False)
    if interventions is not None:
        one.surgery.interventions = list(interventions)
    return one


class Waits(Callback):
    """What made the host wait in each step that is no epoch's first and tells nobody anything."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        self.steps: list[Counter[str]] = []
        self._before: Counter[str] | None = None

    def on(self, event: Event, state: Pretraining) -> None:
        if event in (Event.EPOCH_START, Event.EPOCH_END):
            self._before = None
        if event is not Event.AFTER_STEP:
            return
        now = Counter(self.fake.waits)
        told = state.progress.step % state.config.tracking.interval_steps == 0
        if self._before is not None and not told:
            self.steps.append(now - self._before)
        self._before = now


class InTurn:
    """An intervention that wants each of `decisions` after an epoch of its own."""

    name = "in_turn"

    def __init__(self, *decisions: Callable[[Pretraining], Decision]) -> None:
        self.decisions = list(decisions)

    def observe(self, state: Pretraining) -> None:
        """Nothing."""

    def decide(self, state: Pretraining) -> Decision:
        if not self.decisions:
            return Decision(None, {"reason": "done"})
        return self.decisions.pop(0)(state)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""
