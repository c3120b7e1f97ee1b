"""The network without a mutation, trained along while the mutation is on probation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sseg_nase.training.accumulation import Views
from sseg_nase.training.ledger import CONTROL
from sseg_nase.training.measurements import Probe
from sseg_nase.training.networks import Networks
from sseg_nase.training.optim import set_learning_rate


class Control:
    """Takes the steps of the training, on its batches and at its learning rate, with `networks`.

    They are no part of the training: its loss scale, statistics and processes know nothing of them.
    Between two steps there is nothing here but `networks`. Costs as much as the training itself.
    """

    def __init__(self, networks: Networks, probe: Probe) -> None:
        self.networks, self.probe = networks, probe
        self._gradients: list[Tensor] | None = None

    def differentiate(self, views: Sequence[Views], epoch: int, of: int) -> None:
        """Add the gradient of a batch's loss, one `of` so many that make a step."""
        losses = self.probe.differentiate(
            self.networks, epoch, views, of, part=CONTROL, tracks=True
        )
        if losses.memory is not None:
            self.networks.memory = losses.memory
        found = [p.grad for p in self.networks.learner.parameters() if p.grad is not None]
        if self._gradients is not None:
            torch._foreach_add_(found, self._gradients)
        self._gradients = found
        self.networks.learner.zero_grad(set_to_none=True)

    def step(self, lr: float, decay: float, epoch: int) -> None:
        """A step of optimizer and teacher."""
        assert self._gradients is not None
        optimizer = self.networks.optimizer
        for parameter, gradient in zip(
            self.networks.learner.parameters(), self._gradients, strict=True
        ):
            parameter.grad = gradient
        set_learning_rate(optimizer, lr)
        self.probe.prepare(self.networks, epoch)
        optimizer.step()
        self.skip()
        self.networks.follow(decay)

    def skip(self) -> None:
        """Forget the gradients: the training has skipped its step, too."""
        self.networks.optimizer.zero_grad(set_to_none=True)
        self._gradients = None
