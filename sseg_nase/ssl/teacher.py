"""The teacher: an exponential moving average of the student, matched by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sseg_nase.config.schema import SSLConfig

Network = TypeVar("Network", bound=nn.Module)


def make_teacher(student: Network) -> Network:
    """Return a frozen copy of `student` in eval mode.

    In eval mode it embeds an image by its own running statistics. Those move where it gives
    targets of a batch, within `batch_statistics(teacher, track=True)`, and nowhere else: the
    student's belong to other weights (see `ema_update`).
    """
    return copy.deepcopy(student).requires_grad_(False).eval()


@contextmanager
def batch_statistics(network: nn.Module, *, track: bool = False) -> Iterator[None]:
    """Context manager: every BN of `network` normalises with its batch, as in train mode.

    `track`: its running statistics follow; else what it has tracked stays as it is. All else stays
    in the mode it is in.
    """
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    for norm in norms:
        norm.training, norm.track_running_stats = True, track
    try:
        yield
    finally:
        for norm, (training, tracking) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = training, tracking


@contextmanager
def untracked(network: nn.Module) -> Iterator[None]:
    """Context manager: BN layers of `network` leave their running statistics as they are."""
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm) and part.training]
    before = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracking in zip(norms, before, strict=True):
            norm.track_running_stats = tracking


def _constant(decay: float, progress: float) -> float:
    return decay


def _cosine(decay: float, progress: float) -> float:
    return 1 - (1 - decay) * (math.cos(math.pi * progress) + 1) / 2


SCHEDULES: Mapping[str, Callable[[float, float], float]] = {
    "constant": _constant,
    "cosine": _cosine,
}


def ema_decay(step: int, steps: int, ssl: SSLConfig) -> float:
    """The teacher's decay after optimizer step `step` (from 0) of `steps`: a pure function.

    cosine: Grill et al. 2020, section 3.2: τ = 1 − (1 − τ_base) · (cos(πk/K) + 1)/2, which rises
    to 1.
    """
    return SCHEDULES[ssl.ema_schedule](ssl.ema_decay, min(1.0, step / max(1, steps)))


@torch.no_grad()
def ema_update(
    teacher: nn.Module, student: nn.Module, decay: float, *, own_statistics: bool = True
) -> None:
    """Move `teacher` towards `student` in place: θ_t ← decay·θ_t + (1 − decay)·θ_s, by name.

    Parameters are averaged and buffers copied. With `own_statistics` BN's are not: the student's
    are those of other weights, and the teacher has its own (see `batch_statistics`). Raises
    ValueError naming the tensors that only one of the two has, or whose shapes differ.
    """
    assert 0 <= decay <= 1
    averaged = _pair(dict(teacher.named_parameters()), dict(student.named_parameters()))
    copied = _pair(dict(teacher.named_buffers()), dict(student.named_buffers()))
    if own_statistics:
        copied = _pair(_shared_buffers(teacher), _shared_buffers(student))
    # The foreach functions refuse empty lists.
    if averaged[0]:
        torch._foreach_lerp_(averaged[0], averaged[1], 1 - decay)
    if copied[0]:
        torch._foreach_copy_(copied[0], copied[1])


def _shared_buffers(network: nn.Module) -> dict[str, Tensor]:
    """All buffers but BN's statistics, by name."""
    return {
        f"{path}.{name}" if path else name: buffer
        for path, part in network.named_modules()
        if not isinstance(part, _BatchNorm)
        for name, buffer in part.named_buffers(recurse=False)
    }


def _pair(
    teacher: Mapping[str, Tensor], student: Mapping[str, Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors of both in the order of the teacher's names."""
    differing = [
        *(f"only the teacher has {name}" for name in teacher if name not in student),
        *(f"only the student has {name}" for name in student if name not in teacher),
        *(
            f"{name} is {list(teacher[name].shape)} in the teacher and "
            f"{list(student[name].shape)} in the student"
            for name in teacher
            if name in student and teacher[name].shape != student[name].shape
        ),
    ]
    if differing:
        raise ValueError(f"Teacher and student do not match: {'; '.join(differing)}")
    return list(teacher.values()), [student[name] for name in teacher]
