"""Optimizers by their options, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import singledispatch
from typing import Any

import torch
from torch import nn

from sseg_nase.config.groups.optimizer import SGD, Adam, AdamW, OptimizerConfig
from sseg_nase.config.groups.scheduler import (
    Constant,
    ConstantDecay,
    Cosine,
    SchedulerConfig,
    Step,
)
from sseg_nase.config.options import imported
from sseg_nase.nets.evolvable import ConvBlock

Groups = Iterable[dict[str, Any]]  # of parameters


@singledispatch
def stepping(options: OptimizerConfig, parameters: Groups) -> torch.optim.Optimizer:
    """The optimizer that an option of this package stands for."""
    raise TypeError(
        f"optimizer={options.name}: nothing builds it; name a function in "
        f"{type(options).__name__}.made_by"
    )


@stepping.register
def _(options: AdamW, parameters: Groups) -> torch.optim.Optimizer:
    o, betas = options, (options.betas[0], options.betas[1])
    return torch.optim.AdamW(
        parameters, lr=o.lr, betas=betas, weight_decay=o.weight_decay, fused=True
    )


@stepping.register
def _(options: Adam, parameters: Groups) -> torch.optim.Optimizer:
    o, betas = options, (options.betas[0], options.betas[1])
    return torch.optim.Adam(
        parameters, lr=o.lr, betas=betas, weight_decay=o.weight_decay, fused=True
    )


@stepping.register
def _(options: SGD, parameters: Groups) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
    )  # not fused: that asks for all momenta or none, and new channels have none


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
    make = imported(optimizer.made_by) if optimizer.made_by else stepping
    made: torch.optim.Optimizer = make(optimizer, [g for g in groups if g["params"]])
    return made


@singledispatch
def course(options: SchedulerConfig, epoch: float, epochs: float) -> float:
    """The share of the learning rate at `epoch` of `epochs`, counted from the end of the warm-up.

    By the option of `scheduler`, where it is one of this package.
    """
    raise TypeError(
        f"scheduler={options.name}: nothing computes it; name a function in "
        f"{type(options).__name__}.made_by"
    )


@course.register
def _(options: Cosine, epoch: float, epochs: float) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * min(epoch / max(epochs, 1e-9), 1.0)))
    return options.final_ratio + (1 - options.final_ratio) * cosine


@course.register
def _(options: Step, epoch: float, epochs: float) -> float:
    return options.gamma ** (int(epoch) // options.step_size)


@course.register
def _(options: Constant, epoch: float, epochs: float) -> float:
    return 1.0


@course.register
def _(options: ConstantDecay, epoch: float, epochs: float) -> float:
    left = max(0.0, 1 - epoch / max(epochs, 1e-9))
    return options.final_ratio + (1 - options.final_ratio) * min(1.0, left / options.decay_share)


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
        share = imported(scheduler.made_by) if scheduler.made_by else course
        ratio = float(share(scheduler, epoch - warmup, epochs - warmup))
    if mutated_at is None:
        return ratio
    return ratio * min(1.0, (step - mutated_at + 1) / (scheduler.rewarmup_steps + 1))
