"""The loop alone: a line fitted by gradient descent, in steps of several batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
        self.spoiled: int | None = None
        self.saved: dict[str, Any] = {}

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

    def stepped(self, figures: Tensor, sums: Tensor) -> None:
        self.log.append("step")

    def close_epoch(self) -> None:
        progress = self.state.progress
        self.check_epoch(progress.sums, progress.sums[0] / BATCHES)
        self.log.append("close")
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


def test_a_loop_diverges_at_the_step_in_which_it_happens_and_saves_nothing() -> None:
    one = Line(stop=lambda: one.state.progress.step == 2)
    one.spoiled = 2
    with pytest.raises(DivergenceError, match=r"the line diverged at step 2, epoch 1: the loss"):
        one.fit()
    assert one.saved == {}
    assert one.state.progress.step == 1
