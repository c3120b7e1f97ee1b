"""One run: a composed config, a directory, a tracker, and an ending that is always recorded."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric import Fabric

from sseg_nase import stages
from sseg_nase.config.compose import hardware_profiles
from sseg_nase.config.fingerprint import fingerprint, flat
from sseg_nase.config.schema import Config, HardwareConfig
from sseg_nase.errors import UserError
from sseg_nase.files import write_json, write_text
from sseg_nase.hardware.profiles import resolve
from sseg_nase.nets.evolvable import EvolvableCNN
from sseg_nase.tracking import RunInfo, Sink, build_tracker
from sseg_nase.tracking.console import print_summary
from sseg_nase.tracking.mlflow_sink import ui_command
from sseg_nase.tracking.sink import FAILED, FINISHED, INTERRUPTED
from sseg_nase.training import checkpoint

RUNNING = "RUNNING"
NAME_LENGTH = 120
UNNAMED = ("paths.", "tracking", "hydra", "experiment_name=")


@dataclass
class Run:
    """What the tasks share. `config` is the effective one: its hardware values are concrete."""

    config: Config
    directory: Path
    sink: Sink
    fabric: Fabric
    name: str
    notes: list[str]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where networks and images go."""
        return self.fabric.device

    def open(self, total_epochs: int = 0) -> None:
        """Tell the tracker about the run. Done after the inputs are known to be good."""
        effective = {f"effective/{k}": v for k, v in flat_scalars(self.config.hardware).items()}
        params = {
            key: value
            for key, value in flat(self.config).items()
            if value is not None and not key.startswith(("paths.", "tracking.", "hardware."))
        }
        self.sink.open(
            RunInfo(
                directory=self.directory,
                name=self.name,
                experiment=self.config.experiment_name,
                config_file=self.directory / "config.yaml",
                total_epochs=total_epochs,
                params={**params, **effective},
                tags={"fingerprint": fingerprint(self.config), "task": self.config.task},
            )
        )
        for note in self.notes:
            self.sink.event("message", {"text": note})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Name and time a stage."""
        self.sink.event("stage", {"stage": name})
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 3)


def run(config: Config, overrides: Sequence[str] = ()) -> Path:
    """Run one config and return its directory.

    `status.json` there says RUNNING, FINISHED, FAILED (with the error) or INTERRUPTED. Raises
    `UserError` for the user's mistakes; anything else that is raised is ours.
    """
    hardware, notes = resolve(config.hardware, hardware_profiles())
    config = dataclasses.replace(config, hardware=hardware)
    directory = _new_directory(config, overrides)
    sink = build_tracker(config.tracking)
    this = Run(config, directory, sink, _fabric(hardware), run_name(config, overrides), notes)
    try:
        TASKS[config.task](this)
    except KeyboardInterrupt:
        _end(this, INTERRUPTED, "interrupted")
        raise
    except UserError as error:
        _end(this, FAILED, str(error))
        raise
    except BaseException as error:
        _end(this, FAILED, f"{type(error).__name__}: {error}", traceback.format_exc())
        error.run_dir = directory  # type: ignore[attr-defined]  # where the entry point points to
        raise
    return directory


def pipeline(this: Run) -> None:
    """Pretrain, evaluate, report."""
    config = this.config
    learner = stages.seed_learner(config)
    tasks = stages.fewshot_tasks(config)
    trained = config.ssl.name != "none" and config.pretrain.epochs > 0
    this.open(config.pretrain.epochs if trained else 0)
    results: dict[str, Any] = {}
    if config.evaluation.untrained_reference:
        with this.stage("untrained"):
            results["fewshot_untrained"] = stages.evaluate(tasks, learner.backbone, this.device)
    images_seen = {"synthetic": 0, "real_unlabeled": 0, "real_labeled": 0}
    step, mutations = 0, list[dict[str, Any]]()
    if trained:
        with this.stage("pretrain"):
            extra = {"fingerprint": fingerprint(config), "tracker_run_id": this.sink.run_id}
            trainer = stages.pretrain(
                config, learner, this.fabric, this.sink, this.directory, extra
            )
        learner, step = trainer.networks.learner, trainer.progress.step
        images_seen = trainer.progress.images_seen
        mutations = [record.to_dict() for record in trainer.progress.history]
    _judge(this, learner.backbone, tasks, results, step, images_seen, mutations)


def evaluate(this: Run) -> None:
    """Judge the network in `checkpoint`, without any training."""
    config = this.config
    assert config.checkpoint is not None
    path = Path(config.checkpoint).expanduser()
    backbone = checkpoint.backbone_of(path)
    trained_at, size = backbone.architecture.resolution, config.dataset.image_size
    if backbone.architecture.embedding == "flatten" and trained_at != size:
        raise UserError(
            f"dataset.image_size={size}: the network in checkpoint={path} has a flattened "
            f"embedding and takes {trained_at} px only; set dataset.image_size={trained_at}."
        )
    backbone.architecture = dataclasses.replace(backbone.architecture, resolution=size)
    tasks = stages.fewshot_tasks(config)
    this.open()
    seen = checkpoint.load(path)
    _judge(this, backbone, tasks, {}, seen["step"], seen["images_seen"], seen["history"])


def curriculum(this: Run) -> None:
    """Draw a preview picture per level and the difficulty table."""
    this.open()
    with this.stage("curriculum"):
        rows = stages.draw_curriculum(this.config, this.directory)
    for path in sorted(this.directory.glob("preview_*.png")):
        this.sink.artifact(path, "curriculum")
    this.sink.artifact(this.directory / "difficulty.md", "curriculum")
    for row in rows:
        text = f"{row['level']}: difficulty {row['difficulty']:.4f} over {row['images']} images"
        this.sink.event("message", {"text": text})
    _end(this, FINISHED)


TASKS: Mapping[str, Callable[[Run], None]] = {
    "pipeline": pipeline,
    "evaluate": evaluate,
    "curriculum": curriculum,
}


def _judge(
    this: Run,
    backbone: EvolvableCNN,
    tasks: list[stages.FewShotTask],
    results: dict[str, Any],
    step: int,
    images_seen: dict[str, int],
    mutations: list[dict[str, Any]],
) -> None:
    """Evaluate, write `architecture.json` and `results.json`, and end the run."""
    with this.stage("evaluate"):
        fewshot = stages.evaluate(tasks, backbone, this.device)
    with this.stage("efficiency"):
        costs = stages.efficiency(backbone, this.config.dataset.image_size, this.device)
    results = {
        "schema": 1,
        "fingerprint": fingerprint(this.config),
        "status": FINISHED,
        "seconds": this.seconds,
        "architecture": backbone.architecture.summary(),
        "fewshot": fewshot,
        **results,
        "efficiency": costs,
        "mutations": sum(record["accepted"] for record in mutations),
        "images_seen": images_seen,
    }
    for key, value in fewshot.items():
        figures = {f"fewshot/{key}/{part}": value[part] for part in ("accuracy", "ci95")}
        this.sink.metrics(figures, step)
    logged = ("params", "macs", "latency_ms_b1", "latency_ms_b64", "peak_memory_mb")
    this.sink.metrics({f"efficiency/{key}": float(costs[key]) for key in logged}, step)
    write_json(this.directory / "architecture.json", backbone.architecture.to_dict())
    write_json(this.directory / "results.json", results)
    _end(this, FINISHED)
    stored = this.config.tracking.name != "jsonl"
    print_summary(results, mutations, ui_command(this.config.tracking.uri) if stored else None)


def run_name(config: Config, overrides: Sequence[str]) -> str:
    """What was overridden, or the experiment's name when nothing was."""
    shown = [o for o in overrides if not o.lstrip("+~").startswith(UNNAMED)]
    return " ".join(shown)[:NAME_LENGTH] or config.experiment_name


def flat_scalars(section: Any) -> dict[str, str | int | float | bool]:
    """The scalar fields of a config section that have a value."""
    values = dataclasses.asdict(section).items()
    return {key: value for key, value in values if isinstance(value, str | int | float | bool)}


def _new_directory(config: Config, overrides: Sequence[str]) -> Path:
    base = Path(config.paths.output_dir).expanduser().absolute() / config.experiment_name
    directory = base / f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    try:
        directory.mkdir(parents=True)
        write_text(
            directory / "config.yaml", yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
        )
        write_text(directory / "overrides.yaml", yaml.safe_dump(list(overrides)))
        write_json(directory / "status.json", {"status": RUNNING, "error": None})
    except OSError as error:
        raise UserError(
            f"paths.output_dir={config.paths.output_dir}: cannot be written "
            f"({error.strerror}: {error.filename}). Set paths.output_dir to a folder of yours."
        ) from error
    return directory


def _fabric(hardware: HardwareConfig) -> Fabric:
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    if hardware.accelerator == "cuda" and hardware.max_memory_gb is not None:
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, hardware.max_memory_gb / total))
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # our notes say what it says
    precision: Any = hardware.precision
    return Fabric(accelerator=hardware.accelerator, devices=hardware.devices, precision=precision)


def _end(this: Run, status: str, error: str | None = None, trace: str | None = None) -> None:
    value = {"status": status, "error": error}
    write_json(this.directory / "status.json", {**value, "traceback": trace} if trace else value)
    this.sink.close(status, error)
