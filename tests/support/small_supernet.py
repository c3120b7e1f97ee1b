"""A supernet that trains in a moment, on images whose classes can be told apart."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import torch

from sseg_nase.config.conf_files import group_option
from sseg_nase.config.options import options_of as options_of_group
from sseg_nase.config.schema import SSLConfig, StrategyConfig, ViewsConfig
from sseg_nase.data.store import ImageStore
from sseg_nase.oneshot.images import halves
from sseg_nase.oneshot.objectives import Labels, Objective, SelfSupervised
from sseg_nase.oneshot.training import OneShotTraining
from sseg_nase.spaces.nb201 import NB201

SPACE = NB201(width=4, cells=1, resolution=8, counts="network")
SMALL: dict[str, Any] = {"images": None, "epochs": 2, "batch_size": 8, "weight_lr": 0.05}
OF: dict[str, dict[str, Any]] = {
    "darts": {"order": "second"},
    "pc_darts": {"partial": 2, "warmup_epochs": 0},
    "proxyless": {"warmup_epochs": 0, "alpha_interval": 1},
    "enas": {"samples": 3, "controller_steps": 1, "controller_samples": 2},
    "random_sharing": {"samples": 3},
}
CPU = torch.device("cpu")


@cache
def option_of(group: str, kind: Any, name: str) -> Any:
    """An option of conf, as its file has it: to compose the whole takes seconds."""
    return kind(**group_option(group, name))


@cache
def images() -> ImageStore:
    rng = np.random.default_rng(0)
    labels = np.arange(32) % 2
    pixels = rng.integers(0, 120, (32, 8, 8, 3)) + 110 * labels[:, None, None, None]
    return ImageStore.from_arrays(pixels, labels, ["dark", "light"])


def options_of(strategy: str, **given: Any) -> Any:
    options = option_of("strategy", options_of_group(StrategyConfig)[strategy], strategy)
    return dataclasses.replace(options, **{**SMALL, **OF[strategy], **given})


def training_of(strategy: str, *, seed: int = 0, **given: Any) -> OneShotTraining:
    """`given`: of the strategy, but for `space`, `latencies`, `ssl` and `stop`."""
    own = {name: given.pop(name) for name in ("latencies", "stop") if name in given}
    space, ssl = given.pop("space", SPACE), given.pop("ssl", None)
    options = options_of(strategy, **given)
    views = option_of("views", ViewsConfig, "simclr")
    objective: Objective = Labels(2, views, 8)
    if ssl is not None:
        method = option_of("ssl", options_of_group(SSLConfig)[ssl], ssl)
        objective = SelfSupervised(method, views, 8, options.parts)
    parts = halves(images(), images=None, batch_size=options.batch_size, seed=seed, device=CPU)
    return OneShotTraining(space, options, objective, parts, seed, CPU, **own)


def finished(training: OneShotTraining) -> OneShotTraining:
    while training.more:
        training.train_epoch()
        training.close_epoch()
    return training
