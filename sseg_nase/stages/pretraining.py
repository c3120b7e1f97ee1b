"""Self-supervised training on the curriculum, with evolution and pruning."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sseg_nase.config.options import filled
from sseg_nase.config.schema import Config
from sseg_nase.data.feed import CurriculumFeed
from sseg_nase.data.placement import place
from sseg_nase.evolution.selection import refusals
from sseg_nase.hardware.determinism import deterministic
from sseg_nase.hardware.memory import enforce_memory_cap
from sseg_nase.nets.evolvable import Learner
from sseg_nase.rundir.names import CHECKPOINTS
from sseg_nase.stages.setup import check_sizes, images_of, seed_learner
from sseg_nase.stages.teaching import guide_of
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint, distributed
from sseg_nase.training.callbacks import ArchitectureMetrics, Checkpoints, MemoryWatch
from sseg_nase.training.divergence import DivergenceError, explained
from sseg_nase.training.events import Callback
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.interventions import Sparsify
from sseg_nase.training.loop import Trainer
from sseg_nase.training.order import ORDERS
from sseg_nase.training.state import Pretraining
from sseg_nase.training.surgery import Intervention


def pretrain(
    config: Config,
    sink: Sink,
    folder: Path,
    *,
    state: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Pretraining:
    """Train the seed network on the curriculum, with evolution and pruning as configured.

    Returns the training at its end. `state`: of the checkpoint to go on from. Checkpoints with
    `extra` go to `folder`. `stop` is asked after every step; when it says so, `Interrupted` is
    raised after a checkpoint. Raises `UserError` where training diverges: with the keys to change,
    and how to resume.
    """
    checkpoints = Checkpoints(
        folder / CHECKPOINTS,
        config.pretrain.checkpoint_interval_epochs,
        extra or {},
        keep=config.pretrain.keep_checkpoints,
    )
    callbacks = [ArchitectureMetrics(), MemoryWatch(), checkpoints]
    hardware = config.hardware
    try:
        with distributed.workers(
            _pretrain_along,
            config,
            state,
            devices=hardware.devices,
            accelerator=hardware.accelerator,
        ):
            trainer = trainer_of(
                config, callbacks, sink, state, lambda: distributed.any_rank(stop())
            )
            trainer.fit()
    except DivergenceError as error:
        raise explained(error, config, folder, "last") from error
    return trainer.state


def _pretrain_along(rank: int, config: Config, state: dict[str, Any] | None) -> None:
    """What the other processes do: the same training on their share, telling nobody."""
    with deterministic(config.hardware.deterministic), suppress(Interrupted):
        trainer = trainer_of(config, [], Sink(), state, lambda: distributed.any_rank(False))
        enforce_memory_cap(trainer.device, config.hardware.max_memory_gb)
        trainer.fit()


def interventions_of(config: Config) -> list[Intervention]:
    """What changes the network between the epochs of a training, `pretrain.epochs` in all."""
    interventions: list[Intervention] = []
    if config.sparsity.enabled:
        interventions.append(
            Sparsify(config.sparsity, config.evolution, config.pretrain, config.seed)
        )
    if config.evolution.enabled:
        interventions.append(ORDERS[type(config.evolution)](config.evolution, config.seed))
    return interventions


def trainer_of(
    config: Config,
    callbacks: list[Callback],
    sink: Sink,
    state: dict[str, Any] | None,
    stop: Callable[[], bool],
    learner: Learner | None = None,
) -> Trainer:
    """The loop of this process with all that it needs, where `state` left off.

    `learner`: what is trained; without one, that of the configuration.
    """
    curriculum, hardware = config.curriculum, config.hardware
    levels = curriculum.levels
    fabric = distributed.build_fabric(hardware.accelerator, hardware.devices, hardware.precision)
    natural, drawn_bytes, notes = place(
        images_of(config, config.dataset, config.dataset.natural) if "NATURAL" in levels else None,
        sum(number for level, number in curriculum.images.items() if level in levels),
        image_size=config.dataset.image_size,
        channels=config.dataset.channels,
        data=config.data,
        hardware=hardware,
        device=fabric.device,
    )
    for note in notes:
        sink.event("message", {"text": note})
    images = filled(hardware.batch_size, "hardware.batch_size")
    exact = hardware.accumulate == "exact"
    micro = (hardware.gradient_accumulation_steps or 1) if exact else 1
    feed = CurriculumFeed(
        curriculum,
        natural=natural,
        image_size=config.dataset.image_size,
        channels=config.dataset.channels,
        batch_size=images * hardware.devices * micro,
        images_per_epoch=config.pretrain.images_per_epoch,
        epochs=config.pretrain.epochs,
        seed=config.seed,
        device=fabric.device,
        drawn_bytes=drawn_bytes,
        part=(fabric.global_rank, hardware.devices),
        micro=micro,
    )
    learner = learner or seed_learner(config)
    schedule = config.pretrain.image_sizes
    check_sizes("pretrain.image_sizes", schedule, learner.backbone.architecture)
    guide = guide_of(config)
    trainer = Trainer(
        config,
        learner=learner,
        feed=feed,
        fabric=fabric,
        interventions=interventions_of(config),
        callbacks=callbacks,
        sink=sink,
        stop=stop,
        guide=None if guide is None else guide.reached.backbone,
    )
    if config.evolution.enabled:
        for why in refusals(trainer.state.networks.architecture, config.evolution.operators):
            sink.event("message", {"text": why})
    if state is not None:
        with checkpoint.taken_up("last.pt"):
            trainer.load_state_dict(state)
    return trainer
