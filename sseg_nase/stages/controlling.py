"""A control of a run: what its evolution is compared with (report.control)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from sseg_nase.config.groups.finetune import Linear
from sseg_nase.config.schema import Config
from sseg_nase.config.sequence import stages_of, with_stages
from sseg_nase.stages.evaluating import Evaluation
from sseg_nase.stages.finetuning import fine_tune, reached_by, stage_reached, tuning_stages
from sseg_nase.stages.pretraining import pretrain
from sseg_nase.stages.setup import Reached
from sseg_nase.stages.teaching import OtherRun
from sseg_nase.statistics import paired_difference
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint

FOLDER = "control"  # in the run's


class Told(Sink):
    """Passes on warnings, and where the control is, to `sink`: nothing else is the run's own."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Tell of epochs and warnings, in words."""
        if kind == "warning":
            self.sink.event("message", {"text": f"control: {values.get('text')}"})
        if kind in ("epoch", "finetune"):
            text = f"control: epoch {values['epoch'] + 1}, loss {values['loss']:.4f}"
            self.sink.event("message", {"text": text})


def unchanged(config: Config) -> Config:
    """`config`, in which nothing changes the network."""
    evolution = dataclasses.replace(config.evolution, enabled=False)
    sparsity = dataclasses.replace(config.sparsity, enabled=False)
    config = dataclasses.replace(config, evolution=evolution, sparsity=sparsity)
    stages = [
        dataclasses.replace(each, finetune=dataclasses.replace(each.finetune, evolve=False))
        for each in stages_of(config)
    ]
    return with_stages(config, stages) if stages else config


def train_control(
    config: Config,
    before: Reached,
    sink: Sink,
    folder: Path,
    *,
    pretrained: bool,
    resumed: bool = False,
    extra: dict[str, Any] | None = None,
    teacher: OtherRun | None = None,
    stop: Callable[[], bool] = lambda: False,
    at_once: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Reached:
    """Train `before`, what the run began with, as the run did, but without any mutation.

    On the same images, in the same order, for as many steps. Checkpoints go to `folder`, from which
    it is resumed where `resumed`; all else is as for `pretrain` and `fine_tune`.
    """
    config, quiet = unchanged(config), Told(sink)

    def there(name: str) -> dict[str, Any] | None:
        path = folder / "checkpoints" / f"{name}.pt"
        return checkpoint.resumable(path) if resumed and path.exists() else None

    reached, tuning = before, there("finetune_last")
    if pretrained:
        trained = pretrain(config, quiet, folder, state=there("last"), extra=extra, stop=stop)
        progress = trained.progress
        reached = Reached(
            trained.networks.learner.backbone,
            progress.step,
            progress.images_seen,
            macs=trained.ledger.state(),
            epochs=progress.epoch,
            name="the control",
        )
    stage, configs, stages = stage_reached(tuning, config), stages_of(config), tuning_stages(config)
    if stage is None:
        return reached
    if stage.number:
        reached = reached_by(stages[stage.number - 1], configs[stage.number - 1], folder)
    for now in stages[stage.number :]:
        reached = fine_tune(
            configs[now.number],
            reached,
            quiet,
            folder,
            stage=now,
            state=tuning if now == stage else None,
            extra=extra,
            teacher=teacher if isinstance(configs[now.number].finetune, Linear) else None,
            stop=stop,
            at_once=at_once,
        )
    return reached


def compared(control: Reached, evaluated: Evaluation, last: Evaluation) -> dict[str, Any]:
    """What results.json tells of a control: its size, its cost, and what evolution gave.

    `last_minus`: per episode list the paired difference of the run's last network and the control,
    in points.
    """
    architecture = control.backbone.architecture.summary()
    kept = ("blocks", "channels", "params", "macs", "resolution")
    return {
        **{key: architecture[key] for key in kept},
        "training_macs": None if control.macs is None else sum(control.macs.values()),
        "last_minus": {
            key: paired_difference(last.accuracies[key], accuracies)._asdict()
            for key, accuracies in evaluated.accuracies.items()
        },
    }
