"""What a training step asks the device for, counted at torch's dispatcher by part of the step.

An operator is a launch of a kernel, nearly: some are several, and kernels in Triton are not seen.
Operators that only make another view of a tensor, or room for one, are none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sseg_nase.training.events import Callback, Event
from sseg_nase.training.loop import Trainer
from sseg_nase.training.state import Pretraining

LAUNCH_NOTHING = (
    "alias", "detach", "detach_", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty",
    "new_empty_strided", "record_stream", "resize_",
)  # fmt: skip
PARTS = ("feed", "views", "forward", "backward", "optimizer", "teacher", "telling", "rest")


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.part, self.counting = "rest", False

    def __torch_dispatch__(
        self, func: Any, kinds: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if self.counting and not func.is_view and name not in LAUNCH_NOTHING:
            tensors = tree_leaves((args, kwargs, found))
            if any(isinstance(each, torch.Tensor) and each.is_cuda for each in tensors):
                self.counts[self.part] += 1
        return found

    @contextmanager
    def inside(self, part: str) -> Iterator[None]:
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def told(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            with self.inside(part):
                return function(*args, **kwargs)

        return called


class _Second(Callback):
    """Lets the operators of the second step be counted."""

    def __init__(self, operators: _Operators) -> None:
        self.operators, self.steps = operators, 0

    def on(self, event: Event, state: Pretraining) -> None:
        if event is Event.AFTER_STEP:
            self.steps += 1
            self.operators.counting = self.steps == 1


def operators_of_a_step(one: Trainer) -> Counter[str]:
    """How many a step of `one`, which is trained to its end, asks for in each of `PARTS`."""
    operators = _Operators()
    one.callbacks.append(_Second(operators))
    feed = one.feed.epoch

    def fed(*args: Any, **kwargs: Any) -> Iterator[Any]:
        batches = feed(*args, **kwargs)
        while (batch := operators.told("feed", next)(batches, None)) is not None:
            yield batch

    with ExitStack() as stack:
        for part, owner, name in (
            ("views", one.state.probe, "views_of"),
            ("forward", one, "_losses"),
            ("backward", one.fabric, "backward"),
            ("optimizer", one, "step"),
            ("teacher", one.state.networks, "follow"),
            ("telling", one, "_report"),
        ):
            new = operators.told(part, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, new))
        stack.enter_context(patch.object(one.feed, "epoch", fed))
        stack.enter_context(operators)
        one.fit()
    return operators.counts


def in_words(counts: Counter[str]) -> str:
    """By part, without those that ask for nothing."""
    return ", ".join(f"{part} {counts[part]}" for part in PARTS if counts[part])
