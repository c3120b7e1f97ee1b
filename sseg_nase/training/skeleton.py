"""The loop that every training of networks is: epochs of batches, of which some make a step.

    for epoch in what is left:
        begin_epoch
        for batch in what is left of it:
            differentiate
            every accumulated batch: prepare, optimizer, follow → stepped    # unless it is skipped
                asked to stop → interrupted, `Interrupted`
        close_epoch

What is trained, on what, and what happens between two epochs is left to the subclasses.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sseg_nase.training.divergence import Guard, tell_skipped
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.state import State


class Loop(ABC):
    """A training of `state`, batch by batch.

    `accumulation` batches make a step, of the last ones of an epoch as many as are left. `stop` is
    asked after every step. Raises `Interrupted` where it says so, and `DivergenceError` within the
    epoch in which losses or weights stop being finite, or explode, before anything is saved.
    """

    state: State
    guard: Guard
    optimizer: torch.optim.Optimizer
    device: torch.device
    batches_per_epoch: int
    accumulation: int = 1
    images: int = 0  # of this epoch, since this process started or resumed it
    sums_in: torch.dtype = torch.float32
    stop: Callable[[], bool]

    def fit(self) -> None:
        """Train for all epochs that are left."""
        state, progress = self.state, self.state.progress
        first = progress.epoch
        while progress.epoch < state.epochs:
            self.train_epoch()
            self.close_epoch()
        if progress.step == 0:
            self.guard.check_skipped(f"by {state.position()}", most=0)
        if progress.epoch > first:
            tell_skipped(state.sink, state.what, progress.step, progress.skipped)

    def train_epoch(self) -> None:
        """Train on what is left of an epoch, and leave the sums of its figures in the progress."""
        state, progress, batches = self.state, self.state.progress, self.batches_per_epoch
        self.begin_epoch()
        sums = torch.tensor(progress.sums, dtype=self.sums_in, device=self.device)
        self.began, self.images = time.perf_counter(), 0
        for index, batch in enumerate(self.batches(), progress.batch):
            progress.batch = index
            whole = index + 1 == batches or (index + 1) % self.accumulation == 0
            of = min(self.accumulation, batches - index + index % self.accumulation)
            figures = self.differentiate(batch, of, last=whole)
            sums += figures
            self.guard.saw(figures[0])
            if not whole:
                continue
            if self.guard.at_every_step:
                self.guard.check_losses(sums.tolist(), f"at {state.position(progress.step + 1)}")
            if self.step():
                self.stepped(figures, sums)
            if self.stop():
                progress.batch, progress.sums = index + 1, sums.tolist()
                self.check(progress.sums)
                self.interrupted()
                raise Interrupted
        progress.batch, progress.sums = batches, sums.tolist()

    def step(self) -> bool:
        """A step of the optimizer; False where the scaler of 16-mixed skips it.

        Then nothing has changed but the scale and what the forward passes track, and no step is
        counted: neither by the schedules nor by what follows the weights.
        """
        progress = self.state.progress
        self.prepare()
        taken = self.guard.took(self.optimizer.step)
        self.optimizer.zero_grad(set_to_none=True)
        if not taken:
            progress.skipped += 1
            self.guard.check_skipped(f"at {self.state.position(progress.step + 1)}")
            return False
        self.follow()
        progress.step += 1
        return True

    def check(self, losses: Sequence[float]) -> None:
        """Raise `DivergenceError` unless what is to be kept, or saved, is finite."""
        self.guard.check_losses(losses, f"in {self.state.position()}")
        self.guard.check_state(self.tensors(), f"in {self.state.position()}")

    def check_epoch(self, losses: Sequence[float], loss: float) -> None:
        """`check` after an epoch of this mean `loss`, and warn of what may explode."""
        self.check(losses)
        doubt = self.guard.check_epoch(loss, self.parts(), f"in {self.state.position()}")
        if doubt is not None:
            self.state.sink.event("warning", {"text": doubt})

    @property
    def images_per_second(self) -> float:
        """Since this process started or resumed the epoch."""
        return self.images / (time.perf_counter() - self.began)

    # -- left to the subclasses --------------------------------------------------------------

    @abstractmethod
    def begin_epoch(self) -> None:
        """Make what is trained ready."""

    @abstractmethod
    def batches(self) -> Iterable[Any]:
        """The batches of the epoch that are left."""

    @abstractmethod
    def differentiate(self, batch: Any, of: int, *, last: bool) -> Tensor:
        """Add the gradient of a batch's loss, one `of` so many; its figures, the loss first.

        `last`: a step follows. Counts the batch as seen, and its images in `images`.
        """

    @abstractmethod
    def prepare(self) -> None:
        """Set the learning rate of the next step, and treat the gradients."""

    @abstractmethod
    def follow(self) -> None:
        """Move the averages of the weights, after a step that is not counted yet."""

    @abstractmethod
    def stepped(self, figures: Tensor, sums: Tensor) -> None:
        """Report a step that was taken."""

    @abstractmethod
    def close_epoch(self) -> object:
        """Do all that comes between two epochs, and let the next one begin."""

    @abstractmethod
    def interrupted(self) -> None:
        """Save, so that training resumes after the last step."""

    @abstractmethod
    def tensors(self) -> Mapping[str, Any]:
        """What is saved, which must be finite."""

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """What is trained, by name."""
