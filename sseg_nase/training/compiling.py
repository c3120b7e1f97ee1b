"""hardware.compile=auto: networks that last are compiled where their steps are faster for it.

Which is faster is measured, on copies: what is trained stays as it is, bit for bit. Compiled
networks round otherwise than plain ones, so the choice is a part of the training's state.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from sseg_nase.hardware.memory import unwatched
from sseg_nase.training.distributed import ranks, same_everywhere
from sseg_nase.training.fabric import DYNAMO
from sseg_nase.training.ledger import CHECKS, Ledger
from sseg_nase.training.measurements import Probe
from sseg_nase.training.networks import Networks

# In the first ones torch compiles, and libraries choose their algorithms.
WARMUP_STEPS, TIMED_STEPS = 3, 10

Step = Callable[[], None]


@dataclass(frozen=True)
class Choice:
    """What was chosen for the networks that are what they are since epoch `since`, and why.

    Median milliseconds of forward and backward pass of a batch; where torch could not compile the
    networks, `refused` says why instead.
    """

    since: int
    compiled: bool
    plain_ms: float | None = None
    compiled_ms: float | None = None
    refused: str | None = None

    def text(self) -> str:
        """Return one line for people."""
        if self.refused is not None:
            return f"hardware.compile=auto: plain, because torch cannot compile: {self.refused}"
        return (
            f"hardware.compile=auto: {'compiled' if self.compiled else 'plain'}; forward and "
            f"backward pass of a batch take {self.compiled_ms:.3g} ms compiled, "
            f"{self.plain_ms:.3g} ms plain"
        )


def choose(
    networks: Networks,
    probe: Probe,
    *,
    epoch: int,
    since: int,
    stop: Callable[[], bool] = lambda: False,
) -> Choice | None:
    """Measure both ways on copies of `networks`, and return which is faster: the same everywhere.

    On one batch that is not trained on, in the training's precision and parts. All processes must
    ask together; the first one decides. Takes as long as torch compiles, and memory as a step.
    `stop` is asked after every pass; when it says so, nothing is chosen: None.
    """
    timing = Probe(probe.config, probe.feed, probe.workshop, probe.fabric, Ledger())
    device = probe.fabric.device
    with unwatched(device), _generators_kept(device):
        (parts,) = timing.batches(epoch, 1)
        plain, compiled = (timing.workshop.restored(networks.state_dict()) for _ in range(2))

        def step_of(one: Networks) -> Step:
            one.learner.train()

            def step() -> None:
                timing.differentiate(one, epoch, parts, part=CHECKS, tracks=True)

            return step

        compiled.compile()
        try:
            found = medians((step_of(plain), step_of(compiled)), device, stop)
        except RuntimeError as error:
            if ranks() > 1 or isinstance(error, torch.cuda.OutOfMemoryError):
                raise  # the other processes wait for this one
            return Choice(since, False, refused=str(error).partition("\n")[0])
        finally:
            if DYNAMO in sys.modules:
                torch.compiler.reset()  # what was compiled for copies that are gone
    if found is None:
        return None
    plain_ms, compiled_ms = found
    return same_everywhere(Choice(since, compiled_ms < plain_ms, plain_ms, compiled_ms))


def medians(
    steps: Sequence[Step], device: torch.device, stop: Callable[[], bool]
) -> list[float] | None:
    """Return the median milliseconds of each of `steps`, taken in turn; None when `stop` says so.

    What else the machine does meanwhile then slows all of them.
    """
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(WARMUP_STEPS + TIMED_STEPS):
        for step, taken in zip(steps, times, strict=True):
            taken.append(_seconds(step, device))
            if stop():
                return None
    return [1000 * statistics.median(taken[WARMUP_STEPS:]) for taken in times]


@contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    """All global generators are afterwards as before: compilers draw examples from them."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _seconds(step: Step, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
