"""Pretraining end to end: feeding, two views, forward, backward, step of the seed network."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from benchmarks.suite.child import Work
from benchmarks.suite.setting import BATCH, device, loader, overrule, pictures, plain, program
from sseg_nase.config.schema import Config
from sseg_nase.hardware.profiles import cores
from sseg_nase.nets import depthwise, fused
from sseg_nase.stages.pretraining import trainer_of
from sseg_nase.stages.setup import images_of, seed_learner
from sseg_nase.tracking.sink import Sink
from sseg_nase.training.loop import Trainer
from sseg_nase.training.state import PretrainingProgress

# SimCLR alone on images in memory that come with the installation.
SETTING = (
    "dataset=digits",
    "curriculum=natural",
    "ssl.distillation_weight=0",
    "evolution=none",
    "sparsity=none",
    "pretrain.epochs=1",
)


def config(size: int, steps: int, *overrides: str) -> Config:
    """Of a run of one epoch of `steps` steps."""
    images = f"pretrain.images_per_epoch={steps * BATCH}"
    return program(*SETTING, f"dataset.image_size={size}", images, *overrides)


def trainer(size: int, steps: int, *overrides: str) -> Trainer:
    """The program's own, telling nobody."""
    return trainer_of(config(size, steps, *overrides), [], Sink(), None, lambda: False)


def epochs(trainer: Trainer, steps: int) -> Work:
    """Train the same epoch every round."""

    def work() -> float:
        trainer.state.progress = PretrainingProgress()
        trainer.fit()
        return steps * BATCH

    return work


def ours(size: int, steps: int = 24) -> Work:
    """The program's training."""
    return epochs(trainer(size, steps), steps)


def accumulated(size: int, accumulate: str, batch: int = 24, parts: int = 4) -> Work:
    """The program's training in steps of `parts` times `batch` images, with the teacher."""
    steps = max(1, 6144 // (batch * parts)) if size < 64 else max(1, 1536 // (batch * parts))
    given = config(
        size,
        1,
        "ssl.distillation_weight=0.5",
        f"hardware.batch_size={batch}",
        f"hardware.gradient_accumulation_steps={parts}",
        f"hardware.accumulate={accumulate}",
        f"pretrain.images_per_epoch={steps * batch * parts}",
    )
    bare = trainer_of(given, [], Sink(), None, lambda: False)

    def work() -> float:
        bare.state.progress = PretrainingProgress()
        bare.fit()
        return float(steps * batch * parts)

    return work


def ready_made(size: int, steps: int = 24) -> Work:
    """The same training on one batch whose views are made already."""
    bare = trainer(size, steps)
    batch = next(iter(bare.feed.epoch(0)))
    views = bare.state.probe.views(batch.images, 0, first=batch.first, of=batch.of)
    overrule(bare.feed, epoch=lambda *_, **__: itertools.repeat(batch, steps))
    overrule(bare.state.probe, views=lambda *_, **__: views)
    return epochs(bare, steps)


def step(size: int, backbone: str, steps: int = 6) -> Work:
    """The program's training of a network by its name in conf/backbone."""
    return epochs(trainer(size, steps, f"backbone={backbone}"), steps)


def step_in_turn(size: int, backbone: str) -> Work:
    """The same with torch's operators alone, batch norm, activation and pooling in turn."""
    for module in (fused, depthwise):
        overrule(module, computed_here=lambda _: False)
    return step(size, backbone)


def lightly(size: int, steps: int | None = None) -> Work:
    """Lightly's transform in DataLoader workers, its loss, and the same network in float32.

    An epoch has many batches per worker: filling the workers' queue at its start costs it little.
    """
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform

    steps = steps or 8 * cores()
    same = config(size, steps)
    seed = seed_learner(same)
    learner = nn.Sequential(plain(seed.backbone), seed.head).to(device())
    criterion = NTXentLoss(temperature=same.ssl.temperature)
    optimizer = torch.optim.AdamW(
        learner.parameters(), lr=same.optimizer.lr, weight_decay=same.optimizer.weight_decay
    )
    store = images_of(same, same.dataset, "train")
    images = pictures(store.batch(range(len(store))))
    transform = SimCLRTransform(input_size=size, cj_strength=0.5, min_scale=0.2)
    batches = loader(images, transform, steps)

    def work() -> float:
        for view1, view2 in batches:
            z1 = learner(view1.to(device(), non_blocking=True))
            z2 = learner(view2.to(device(), non_blocking=True))
            optimizer.zero_grad()
            criterion(z1, z2).backward()
            optimizer.step()
        return steps * BATCH

    return work
