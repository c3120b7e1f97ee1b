"""The loop alone: a line fitted by gradient descent, in steps of several batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sseg_nase.tracking.sink import Sink
from sseg_nase.training.distributed import build_fabric
from sseg_nase.training.divergence import DivergenceError, Guard
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.skeleton import Loop
from sseg_nase.training.state import Progress, State

BATCHES = 5
FABRIC = build_fabric("cpu", 1, "32-true")


class Line(Loop):
    """Fits y = 2x; `log` has what was called, and `average` follows the weight."""

    def __init__(self, *, epochs: int = 2, stop: Callable[[], bool] = lambda: False) -> None:
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.network.weight)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1)
        self.state = State("the line", epochs, Sink(), Progress(sums=[0.0]))
        self.device, self.batches_per_epoch, self.accumulation = torch.device("cpu"), BATCHES, 2
        self.guard = Guard(FABRIC, self.parts(), steps_per_epoch=3, what="the line")
        self.stop = stop
        self.average = torch.zeros(1)
        self.log: list[Any] = []
        self.followed: list[int] = []
        self.spoiled: int | None = None
        self.saved: dict[str, Any] = {}
        self.losses: list[float] = []

    def begin_epoch(self) -> None:
        self.log.append("begin")

    def batches(self) -> Iterator[Tensor]:
        for index in range(self.state.progress.batch, BATCHES):
            yield torch.full((1, 1), 1.0 + index)

    def differentiate(self, batch: Tensor, of: int, *, last: bool) -> Tensor:
        self.log.append((self.state.progress.batch, of, last))
        loss = (self.network(batch) - 2 * batch).square().mean()
        if self.spoiled == self.state.progress.batch:
            loss = loss * torch.nan
        (loss / of).backward()
        self.images += 1
        return loss.detach()[None]

    def prepare(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = 0.01 / (1 + self.state.progress.step)

    def follow(self) -> None:
        self.average = 0.5 * self.average + 0.5 * self.network.weight.detach()[0]
        self.followed.append(self.state.progress.step)

    def stepped(self, figures: Tensor, sums: Tensor) -> None:
        self.log.append("step")

    def close_epoch(self) -> None:
        progress = self.state.progress
        self.check_epoch(progress.sums, progress.sums[0] / BATCHES)
        self.log.append("close")
        self.losses.append(progress.sums[0])
        progress.epoch, progress.batch, progress.sums = progress.epoch + 1, 0, [0.0]

    def interrupted(self) -> None:
        self.saved = {"weight": self.network.weight.detach().clone(), "average": self.average}

    def tensors(self) -> dict[str, Any]:
        return {"weight": self.network.weight}

    def parts(self) -> dict[str, nn.Module]:
        return {"line": self.network}


def test_batches_are_accumulated_and_the_last_group_is_as_large_as_what_is_left() -> None:
    one = Line(epochs=1)
    one.fit()
    assert one.log == [
        *("begin", (0, 2, False), (1, 2, True), "step", (2, 2, False), (3, 2, True), "step"),
        *((4, 1, True), "step", "close"),
    ]
    assert (one.state.progress.epoch, one.state.progress.step, one.images) == (1, 3, 5)
    assert one.network.weight.item() > 0
    assert one.average.item() > 0


@pytest.mark.parametrize("groups", [[[1, 2], [3, 4], [5]], [[1, 2, 3], [4, 5]]])
def test_a_training_is_what_a_plain_loop_computes(groups: list[list[int]]) -> None:
    one = Line()
    one.accumulation = len(groups[0])
    one.fit()
    weight = average = 0.0
    for step, group in enumerate(groups * 2):
        gradient = sum(2 * x * (weight * x - 2 * x) for x in group) / len(group)
        weight -= 0.01 / (1 + step) * gradient
        average = 0.5 * average + 0.5 * weight
    assert one.network.weight.item() == pytest.approx(weight, rel=1e-5)
    assert one.average.item() == pytest.approx(average, rel=1e-5)
    assert one.followed == list(range(2 * len(groups)))  # steps that were counted before
    assert (one.state.progress.epoch, len(one.losses)) == (2, 2)


@pytest.mark.parametrize("steps", range(1, 7))
def test_an_interrupted_loop_resumes_to_the_same_weights(steps: int) -> None:
    whole = Line()
    whole.fit()
    asked = iter(range(1, 99))
    first = Line(stop=lambda: next(asked) == steps)
    with pytest.raises(Interrupted):
        first.fit()
    assert first.state.progress.step == steps
    second = Line()
    second.network.load_state_dict({"weight": first.saved["weight"]})
    second.average, second.state.progress = first.saved["average"], first.state.progress
    second.fit()
    assert torch.equal(second.network.weight, whole.network.weight)
    assert torch.equal(second.average, whole.average)
    assert second.state.progress == whole.state.progress
    assert first.losses + second.losses == whole.losses


def test_a_skipped_step_counts_as_none_and_nothing_follows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = Line(epochs=1)
    took, turns = one.guard.took, iter([False, True, True])
    monkeypatch.setattr(one.guard, "took", lambda step: next(turns) and took(step))
    one.fit()
    assert (one.state.progress.step, one.state.progress.skipped) == (2, 1)
    assert one.log.count("step") == 2
    assert all(parameter.grad is None for parameter in one.network.parameters())


class Told(Sink):
    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def event(self, kind: str, values: Any) -> None:
        self.events.append((kind, values))


def overflowing(one: Line, steps: int) -> Line:
    """The scaler of 16-mixed skips the first `steps`, each time at half of its scale."""
    scaler, step = SimpleNamespace(_scale=torch.tensor(1024.0)), one.optimizer.step
    scaler.get_scale = scaler._scale.item
    turns = iter([True] * steps)
    one.guard.scaler = scaler
    one.optimizer.step = (  # type: ignore[method-assign]
        lambda: scaler._scale.mul_(0.5) if next(turns, False) else step()
    )
    return one


def test_steps_that_are_all_skipped_end_the_training() -> None:
    one = overflowing(Line(epochs=9), 99)
    with pytest.raises(DivergenceError, match=r"at step 1, epoch 2.* the last 4 steps were all"):
        one.fit()
    assert (one.state.progress.step, one.state.progress.skipped) == (0, 4)
    one = overflowing(Line(epochs=1), 99)  # too few to say so before its end
    with pytest.raises(DivergenceError, match=r"by epoch 2, after step 0: the last 3 steps"):
        one.fit()


def test_skipped_steps_are_told_at_the_end_of_a_training() -> None:
    for skipped in (0, 2):
        one = overflowing(Line(), skipped)
        one.state.sink = told = Told()
        one.fit()
        said = [(kind, values["skipped"], values["steps"]) for kind, values in told.events]
        assert said == ([("skipped", 2, 4)] if skipped else [])
        told.events.clear()
        one.fit()  # nothing is left to be trained, and it has been said
        assert told.events == []


def test_what_may_explode_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Line(epochs=1)
    one.state.sink = told = Told()
    monkeypatch.setattr(one.guard, "check_epoch", lambda *given: "a doubt")
    one.fit()
    assert told.events == [("warning", {"text": "a doubt"})]


def test_a_loop_diverges_at_the_step_in_which_it_happens_and_saves_nothing() -> None:
    one = Line(stop=lambda: one.state.progress.step == 2)
    one.spoiled = 2
    with pytest.raises(DivergenceError, match=r"the line diverged at step 2, epoch 1: the loss"):
        one.fit()
    assert one.saved == {}
    assert one.state.progress.step == 1


def test_weights_that_are_not_finite_are_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """No loss shows it: the step that was taken last has spoiled them."""
    one = Line(stop=lambda: True)
    spoil = one.network.weight.data.fill_
    monkeypatch.setattr(one, "stepped", lambda figures, sums: spoil(torch.nan))
    with pytest.raises(DivergenceError, match="not finite are weight"):
        one.fit()
    assert one.saved == {}
