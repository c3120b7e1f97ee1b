"""Optimizers by name, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from sseg_nase.config.schema import OptimizerConfig, SchedulerConfig
from sseg_nase.nets.evolvable import ConvBlock


def _adamw(parameters: Iterable[dict[str, Any]], o: OptimizerConfig) -> torch.optim.Optimizer:
    assert o.betas is not None
    betas = (o.betas[0], o.betas[1])
    return torch.optim.AdamW(
        parameters, lr=o.lr, betas=betas, weight_decay=o.weight_decay, fused=True
    )


def _adam(parameters: Iterable[dict[str, Any]], o: OptimizerConfig) -> torch.optim.Optimizer:
    assert o.betas is not None
    betas = (o.betas[0], o.betas[1])
    return torch.optim.Adam(
        parameters, lr=o.lr, betas=betas, weight_decay=o.weight_decay, fused=True
    )


def _sgd(parameters: Iterable[dict[str, Any]], o: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=o.lr,
        momentum=o.momentum or 0.0,
        nesterov=bool(o.nesterov),
        weight_decay=o.weight_decay,
    )  # not fused: that asks for all momenta or none, and new channels have none


OPTIMIZERS: Mapping[
    str, Callable[[Iterable[dict[str, Any]], OptimizerConfig], torch.optim.Optimizer]
] = {"adamw": _adamw, "adam": _adam, "sgd": _sgd}


LR_RATIO = "lr_ratio"  # of a group of parameters: times the learning rate of the others


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Of every group, before a step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(LR_RATIO, 1)


def build_optimizer(module: nn.Module, optimizer: OptimizerConfig) -> torch.optim.Optimizer:
    """The configured optimizer over all parameters of `module`, in groups.

    Only weights decay: what has one axis, norms and biases, does not. The γ of a block that has
    just grown starts at 0 and is to leave it: that of residual blocks has `gamma_lr_ratio` times
    the learning rate.
    """
    gammas = {
        parameter
        for part in module.modules()
        if isinstance(part, ConvBlock) and part.residual
        for name, parameter in part.norm.named_parameters()
        if name == "weight"
    }
    decaying = [p for p in module.parameters() if p.dim() > 1]
    others = [p for p in module.parameters() if p.dim() <= 1 and p not in gammas]
    scaled = [p for p in module.parameters() if p in gammas]
    groups: list[dict[str, Any]] = [
        {"params": decaying},
        {"params": others, "weight_decay": 0.0},
        {"params": scaled, "weight_decay": 0.0, LR_RATIO: optimizer.gamma_lr_ratio},
    ]
    return OPTIMIZERS[optimizer.name]([g for g in groups if g["params"]], optimizer)


def _cosine(epoch: float, epochs: float, s: SchedulerConfig) -> float:
    assert s.final_ratio is not None
    cosine = 0.5 * (1 + math.cos(math.pi * min(epoch / max(epochs, 1e-9), 1.0)))
    return s.final_ratio + (1 - s.final_ratio) * cosine


def _step(epoch: float, epochs: float, s: SchedulerConfig) -> float:
    assert s.step_size is not None
    assert s.gamma is not None
    return s.gamma ** (int(epoch) // s.step_size)


def _constant(epoch: float, epochs: float, s: SchedulerConfig) -> float:
    return 1.0


def _constant_decay(epoch: float, epochs: float, s: SchedulerConfig) -> float:
    assert s.final_ratio is not None
    assert s.decay_share is not None
    left = max(0.0, 1 - epoch / max(epochs, 1e-9))
    return s.final_ratio + (1 - s.final_ratio) * min(1.0, left / s.decay_share)


SCHEDULES: Mapping[str, Callable[[float, float, SchedulerConfig], float]] = {
    "cosine": _cosine,
    "step": _step,
    "constant": _constant,
    "constant_decay": _constant_decay,
}


def lr_ratio(
    step: int,
    steps_per_epoch: int,
    epochs: int,
    scheduler: SchedulerConfig,
    *,
    mutated_at: int | None = None,
) -> float:
    """Share of the base learning rate at optimizer step `step` (from 0).

    Linear warm-up over `warmup_epochs`, then the schedule over the epochs that are left; after a
    mutation at step `mutated_at` a further linear warm-up over `rewarmup_steps`. A pure function:
    mutations and resumes need not carry it.
    """
    warmup = min(scheduler.warmup_epochs, epochs)
    epoch = step / steps_per_epoch
    if epoch < warmup:
        ratio = (step + 1) / (warmup * steps_per_epoch + 1)
    else:
        ratio = SCHEDULES[scheduler.name](epoch - warmup, epochs - warmup, scheduler)
    if mutated_at is None:
        return ratio
    return ratio * min(1.0, (step - mutated_at + 1) / (scheduler.rewarmup_steps + 1))
