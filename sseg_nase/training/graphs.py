"""CUDA graphs: what a step computes between the views and the optimizer, as one launch.

Small networks are launch-bound: forward and backward pass of the seed network are over a hundred
launches of microseconds. They are recorded once and then replayed, on the views of each step. What
is recorded has fixed addresses: views are copied in, losses and gradients read where they lie, and
weights, statistics and teacher change in place. A mutation makes other networks, which are recorded
again; so is every epoch, that no memory is kept while mutations are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sseg_nase.config.schema import Config
from sseg_nase.ssl.methods import Losses, method_of

EAGER_STEPS = 3  # before a recording: libraries choose their algorithms in them
Views = Sequence[Sequence[Tensor]]
Compute = Callable[[Views], Losses]


class Graph(Protocol):
    """What was recorded once, to be replayed at every step."""

    def record(self, work: Callable[[], Losses]) -> Losses:
        """Note what `work` asks the device for, which does nothing yet; return its results."""

    def replay(self) -> None:
        """Do it, with what lies in the same memory now."""


class CudaGraph:
    """By CUDA."""

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()

    def record(self, work: Callable[[], Losses]) -> Losses:
        """What other threads do meanwhile is theirs."""
        stream = torch.cuda.Stream()
        with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            return work()

    def replay(self) -> None:
        """Do it, with what lies in the same memory now."""
        self.graph.replay()


def why_not(config: Config, *, batches: int) -> str | None:
    """Why a step of pretraining cannot be replayed, if so. `batches`: that it is made of."""
    if config.hardware.devices > 1:
        return "there are several devices"
    if batches > 1:
        return "hardware.accumulate=plain adds up the gradients of several batches"
    if config.hardware.compile:
        value = str(config.hardware.compile).lower()
        return f"with hardware.compile={value} the networks change within their time"
    if method_of(config.ssl).memory(config.ssl):
        return f"ssl={config.ssl.name} changes more from step to step than its networks"
    return None


@dataclass(frozen=True)
class _Recorded:
    """A graph, and what it reads and writes."""

    graph: Graph
    views: list[list[Tensor]]
    losses: Losses
    gradients: list[tuple[nn.Parameter, Tensor]]


class Replayed:
    """Calls a computation, and replays it once it has been called often enough.

    `new`: makes a graph. `refused` is told, once, why there is none.
    """

    def __init__(
        self, new: Callable[[], Graph], refused: Callable[[str], None] = lambda why: None
    ) -> None:
        self.new, self.refused = new, refused
        self.possible = True
        self.forget()

    def forget(self) -> None:
        """Let what is recorded go, and its memory."""
        self._recorded: _Recorded | None = None
        self._learner: nn.Module | None = None
        self._calls = 0

    def __call__(self, compute: Compute, learner: nn.Module, views: Views) -> Losses:
        """`compute(views)`, which adds to no gradient of `learner` but sets them all."""
        if learner is not self._learner:
            self.forget()
            self._learner = learner
        self._calls += 1
        if not self.possible or self._calls <= EAGER_STEPS:
            return compute(views)
        if self._recorded is None:
            self._recorded = self._record(compute, learner, views)
        if self._recorded is None:
            return compute(views)
        recorded = self._recorded
        for mine, given in zip(recorded.views, views, strict=True):
            torch._foreach_copy_(mine, list(given))
        recorded.graph.replay()
        for parameter, gradient in recorded.gradients:
            parameter.grad = gradient
        return recorded.losses

    def _record(self, compute: Compute, learner: nn.Module, views: Views) -> _Recorded | None:
        mine = [[view.clone() for view in part] for part in views]
        parameters = [each for each in learner.parameters() if each.requires_grad]
        assert all(each.grad is None for each in parameters), "they would be added to"
        try:
            graph = self.new()
            losses = graph.record(lambda: compute(mine))
        except RuntimeError as error:  # an operation that asks the device, or needs a generator
            self.possible = False
            for each in parameters:
                each.grad = None
            self.refused(str(error).partition("\n")[0])
            return None
        gradients = [(each, each.grad) for each in parameters if each.grad is not None]
        return _Recorded(graph, mine, losses, gradients)
