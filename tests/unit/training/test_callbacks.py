"""What listens to training: the memory it sees, and the one warning per level."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sseg_nase.config.compose import load
from sseg_nase.hardware.memory import MemoryUse
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import callbacks
from sseg_nase.training.callbacks import MemoryWatch
from sseg_nase.training.events import Event
from sseg_nase.training.state import PretrainingProgress
from tests.support.small_state import state_of


class Notes(Sink):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.figures: list[tuple[int, dict[str, float]]] = []
        self.warnings: list[str] = []

    def metrics(self, values: Any, step: int) -> None:
        self.figures.append((step, dict(values)))

    def event(self, kind: str, values: Any) -> None:
        assert kind == "warning"
        self.warnings.append(values["text"])


def watched(
    monkeypatch: pytest.MonkeyPatch,
    uses: list[float | None],
    events: list[tuple[Event, int]],
    overrides: tuple[str, ...] = ("hardware.max_memory_gb=1",),
) -> Notes:
    """What is told of `events` (each with the step it comes at) when `uses` MiB are in use."""
    left = iter(uses)

    def use(device: torch.device, max_memory_gb: float | None) -> MemoryUse:
        return MemoryUse(next(left), None if max_memory_gb is None else 1024 * max_memory_gb)

    monkeypatch.setattr(callbacks, "memory_use", use)
    notes, watch, config = Notes(), MemoryWatch(), load(["hardware=cpu", *overrides])
    for event, step in events:
        progress = PretrainingProgress(step=step)
        watch.on(event, state_of(sink=notes, config=config, progress=progress))
    assert next(left, "none") == "none"
    return notes


def test_a_process_that_goes_on_gives_no_step_a_second_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One step an epoch: figures of mutations push those of epochs ahead."""
    monkeypatch.setattr(callbacks, "memory_use", lambda device, cap: MemoryUse(1.0, None))
    events = [(Event.EPOCH_END, 1), (Event.MUTATION, 1), (Event.MUTATION, 1), (Event.EPOCH_END, 2)]
    steps = []
    for stop in range(len(events) + 1):
        notes, watch = Notes(), MemoryWatch()
        for number, (event, step) in enumerate(events):
            if number == stop:
                saved, watch = watch.state_dict(), MemoryWatch()
                watch.load_state_dict(saved)
            watch.on(event, state_of(sink=notes, progress=PretrainingProgress(step=step)))
        steps.append([step for step, _ in notes.figures])
    assert steps == [[1, 2, 3, 4]] * len(steps)


def epochs(count: int) -> list[tuple[Event, int]]:
    return [(Event.EPOCH_END, 10 * (epoch + 1)) for epoch in range(count)]


def test_one_figure_after_every_epoch_and_mutation(monkeypatch: pytest.MonkeyPatch) -> None:
    around = [(event, 7) for event in Event if event not in (Event.EPOCH_END, Event.MUTATION)]
    events = [
        *around,
        (Event.EPOCH_END, 10),
        (Event.MUTATION, 10),
        (Event.MUTATION, 10),
        (Event.EPOCH_END, 20),
    ]
    notes = watched(monkeypatch, [1.0, 2.0, 3.0, 4.0], events)
    key = "hardware/memory_mb"
    # One value per step, so a mutation's stands at the next free one.
    assert notes.figures == [(10, {key: 1}), (11, {key: 2}), (12, {key: 3}), (20, {key: 4})]


@pytest.mark.parametrize(
    ("uses", "levels"),
    [
        ([100, 860, 100], []),
        ([880, 890, 100, 900], ["warning"]),
        ([880, 980, 990], ["warning", "critical"]),
        ([980, 900], ["critical"]),
    ],
)
def test_one_warning_per_level(
    monkeypatch: pytest.MonkeyPatch, uses: list[float | None], levels: list[str]
) -> None:
    notes = watched(monkeypatch, uses, epochs(len(uses)))
    assert [text.split(":")[0] for text in notes.warnings] == [f"memory is {x}" for x in levels]


def test_a_warning_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = watched(monkeypatch, [922], epochs(1)).warnings
    assert "922 of 1,024 MiB (90%) of hardware.max_memory_gb=1" in text
    assert "hardware.batch_size=128 with hardware.gradient_accumulation_steps=2 " in text
    assert "hardware.gradient_checkpointing=true " in text


def test_no_warning_where_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not watched(monkeypatch, [1e9], epochs(1), overrides=()).warnings
    unknown = watched(monkeypatch, [None], epochs(1))
    assert not unknown.figures
    assert not unknown.warnings
