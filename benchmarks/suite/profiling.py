"""`make bench ARGS=--profile`: what a training step of the program spends its time on."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from benchmarks.suite.child import begin_as_program, synchronize

STEPS, OPERATORS, LARGEST = 20, 8, 3
SIZES = (32, 84)
REST = "the rest"


class Ledger:
    """Seconds by name. What is counted inside something else is not counted there."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._names = [REST]
        self._since = time.perf_counter()
        self._thread = threading.get_ident()

    @contextmanager
    def counting(self, name: str) -> Iterator[None]:
        """Count what happens here under `name`; other threads run beside the step."""
        if threading.get_ident() != self._thread:
            yield
            return
        self._charge()
        self._names.append(name)
        try:
            yield
        finally:
            self._charge()
            self._names.pop()

    def _charge(self) -> None:
        synchronize()
        now = time.perf_counter()
        self.seconds[self._names[-1]] += now - self._since
        self._since = now

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, counted under `name`."""

        def counted(*arguments: Any, **named: Any) -> Any:
            with self.counting(name):
                return function(*arguments, **named)

        return counted

    def each(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` that gives an iterator, every item's making counted under `name`."""

        def items(*arguments: Any, **named: Any) -> Iterator[Any]:
            iterator = iter(function(*arguments, **named))
            following = self.counted(name, lambda: next(iterator, None))
            while (item := following()) is not None:
                yield item

        return items


def shares(size: int) -> tuple[float, list[tuple[str, float]]]:
    """Seconds of a step, and the share of each of its parts, the largest first."""
    from benchmarks.suite.pretraining import epochs, trainer
    from benchmarks.suite.setting import overrule
    from sseg_nase.training import networks

    # With the teacher, as the full method has it.
    watched = trainer(size, STEPS, "ssl.distillation_weight=0.5")
    work = epochs(watched, STEPS)
    work()
    ledger = Ledger()
    teacher = watched.state.networks.teacher
    assert teacher is not None
    overrule(watched.feed, epoch=ledger.each("feeding", watched.feed.epoch))
    overrule(watched.state.probe, views=ledger.counted("views", watched.state.probe.views))
    method = watched.method
    overrule(watched, method=replace(method, loss=ledger.counted("loss", method.loss)))
    overrule(watched.model, forward=ledger.counted("forward", watched.model.forward))
    overrule(teacher, forward=ledger.counted("teacher", teacher.forward))
    overrule(watched.fabric, backward=ledger.counted("backward", watched.fabric.backward))
    overrule(watched, step=ledger.counted("optimizer", watched.step))
    average = ledger.counted("teacher", networks.ema_update)
    with mock.patch.object(networks, "ema_update", average), ledger.counting(REST):
        work()
    whole = sum(ledger.seconds.values())
    largest = sorted(ledger.seconds.items(), key=lambda part: part[1], reverse=True)
    return whole / STEPS, [(name, seconds / whole) for name, seconds in largest]


def operators(size: int) -> str:
    """Torch's operators that take most of the time of an epoch."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.suite.pretraining import ours

    work = ours(size, STEPS)
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities) as profiled:
        work()
        synchronize()
    by = "self_device_time_total" if cuda else "self_cpu_time_total"
    found = sorted(profiled.key_averages(), key=lambda event: getattr(event, by), reverse=True)
    whole = sum(getattr(event, by) for event in found)
    return "\n".join(
        f"  {getattr(event, by) / whole:5.1%}  {event.key} ({event.count / STEPS:.3g} a step)"
        for event in found[:OPERATORS]
    )


def main() -> None:
    """Print both for every size."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's own words
    begin_as_program()
    from benchmarks.suite.setting import BATCH

    for size in SIZES:
        seconds, parts = shares(size)
        print(f"{size} px, batch {BATCH}: {1000 * seconds:.1f} ms a step. The largest costs:")
        for place, (name, share) in enumerate(parts[:LARGEST], 1):
            print(f"  {place}. {name} {share:.0%}")
        print("  then " + ", ".join(f"{name} {share:.1%}" for name, share in parts[LARGEST:]))
        print(f"Torch's operators, without the teacher:\n{operators(size)}\n")


if __name__ == "__main__":
    main()
