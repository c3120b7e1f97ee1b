"""The steps of a run: pretrain, evaluate, and drawing the curriculum."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import nn

from sseg_nase.config.compose import dataset_choice
from sseg_nase.config.schema import BackboneConfig, Config, DatasetConfig
from sseg_nase.data.benchmarks import load_split
from sseg_nase.data.curriculum.difficulty import difficulty
from sseg_nase.data.curriculum.render import render
from sseg_nase.data.episodes import EpisodeList, sample_episodes
from sseg_nase.data.feed import CurriculumFeed
from sseg_nase.data.placement import place
from sseg_nase.data.random import derive
from sseg_nase.data.store import ImageStore
from sseg_nase.data.views import normalize
from sseg_nase.errors import UserError
from sseg_nase.evolution.replay import ReplayError, replay
from sseg_nase.fewshot.evaluation import embed, evaluate_episodes
from sseg_nase.fewshot.statistics import mean_ci95
from sseg_nase.files import replacing, write_text
from sseg_nase.hardware.complexity import count_macs, count_params
from sseg_nase.hardware.latency import latency_ms
from sseg_nase.hardware.memory import enforce_memory_cap, peak_memory_mb
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN, Learner, ProjectionHead
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint, distributed
from sseg_nase.training.callbacks import ArchitectureMetrics, Checkpoints, MemoryWatch
from sseg_nase.training.events import Callback
from sseg_nase.training.interruption import Interrupted
from sseg_nase.training.interventions import Evolve, Sparsify
from sseg_nase.training.loop import Intervention, Trainer

LATENCY_BATCHES = (1, 64)
LATENCY_REPEATS = 15
PREVIEW_ROWS, PREVIEW_COLUMNS = 6, 10
DIFFICULTY_IMAGES = 500


def images_of(config: Config, dataset: DatasetConfig, split: str) -> ImageStore:
    """The images of `split`, at the size that the run works with."""
    return load_split(
        dataclasses.replace(dataset, image_size=config.dataset.image_size),
        split,
        data_dir=Path(config.paths.data_dir).expanduser(),
        cache_dir=Path(config.paths.cache_dir).expanduser(),
        workers=config.hardware.num_workers or 0,
    )


def seed_architecture(backbone: BackboneConfig, image_size: int) -> Architecture:
    """The seed network as data: what every mutation of a run started from."""
    return Architecture.seed(
        backbone.channels,
        resolution=image_size,
        kernel_size=backbone.kernel_size,
        activation=backbone.activation,
        batch_norm=backbone.batch_norm,
        pooling=backbone.pooling,
        residual=backbone.residual,
        embedding=backbone.embedding,
    )


def seed_learner(config: Config) -> Learner:
    """The untrained seed network with its projection head: a function of config and seed."""
    architecture = seed_architecture(config.backbone, config.dataset.image_size)
    generator = torch.Generator().manual_seed(derive(config.seed, "weights"))
    backbone = EvolvableCNN(architecture, generator=generator)
    head = ProjectionHead(
        architecture.features,
        config.ssl.projection_hidden,
        config.ssl.projection_dim,
        generator=generator,
    )
    return Learner(backbone, head)


def pretrain(
    config: Config,
    sink: Sink,
    folder: Path,
    *,
    state: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Trainer:
    """Train the seed network on the curriculum, with evolution and pruning as configured.

    `state`: of the checkpoint to go on from. Checkpoints with `extra` go to `folder`. `stop` is
    asked after every step; when it says so, `Interrupted` is raised after a checkpoint.
    """
    checkpoints = Checkpoints(
        folder / "checkpoints", config.pretrain.checkpoint_interval_epochs, extra or {}
    )
    callbacks = [ArchitectureMetrics(), MemoryWatch(), checkpoints]
    hardware = config.hardware
    with distributed.workers(
        _pretrain_along, config, state, devices=hardware.devices, accelerator=hardware.accelerator
    ):
        trainer = _trainer(config, callbacks, sink, state, lambda: distributed.any_rank(stop()))
        trainer.fit()
    return trainer


def _pretrain_along(rank: int, config: Config, state: dict[str, Any] | None) -> None:
    """What the other processes do: the same training on their share, telling nobody."""
    trainer = _trainer(config, [], Sink(), state, lambda: distributed.any_rank(False))
    enforce_memory_cap(trainer.fabric.device, config.hardware.max_memory_gb)
    with suppress(Interrupted):
        trainer.fit()


def _trainer(
    config: Config,
    callbacks: list[Callback],
    sink: Sink,
    state: dict[str, Any] | None,
    stop: Callable[[], bool],
) -> Trainer:
    curriculum, hardware = config.curriculum, config.hardware
    levels = curriculum.levels
    fabric = distributed.build_fabric(hardware.accelerator, hardware.devices, hardware.precision)
    natural, drawn_bytes, notes = place(
        images_of(config, config.dataset, "train") if "NATURAL" in levels else None,
        sum(number for level, number in curriculum.images.items() if level in levels),
        image_size=config.dataset.image_size,
        data=config.data,
        hardware=hardware,
        device=fabric.device,
    )
    for note in notes:
        sink.event("message", {"text": note})
    assert hardware.batch_size is not None
    feed = CurriculumFeed(
        curriculum,
        natural=natural,
        image_size=config.dataset.image_size,
        batch_size=hardware.batch_size * hardware.devices,
        images_per_epoch=config.pretrain.images_per_epoch,
        epochs=config.pretrain.epochs,
        seed=config.seed,
        device=fabric.device,
        drawn_bytes=drawn_bytes,
        part=(fabric.global_rank, hardware.devices),
    )
    interventions: list[Intervention] = []
    if config.sparsity.enabled:
        interventions.append(Sparsify(config.sparsity, config.pretrain, config.seed))
    if config.evolution.enabled:
        interventions.append(Evolve(config.evolution, config.seed))
    trainer = Trainer(
        config,
        learner=seed_learner(config),
        feed=feed,
        fabric=fabric,
        interventions=interventions,
        callbacks=callbacks,
        sink=sink,
        stop=stop,
    )
    if state is not None:
        trainer.load_state_dict(state)
    return trainer


class Judgement(NamedTuple):
    """What a network is worth, under the keys of `results.json`.

    `results`: accuracy and interval in percent per episode list; `accuracies`: of every episode in
    percent, float64 `[episodes]`.
    """

    results: dict[str, dict[str, Any]]
    accuracies: dict[str, np.ndarray]


class FewShotTask:
    """One dataset's episode lists with the images they need, ready to judge any backbone."""

    def __init__(self, config: Config, dataset: DatasetConfig) -> None:
        self.config = config
        evaluation = config.evaluation
        self.store = images_of(config, dataset, evaluation.split)
        self.base = images_of(config, dataset, "train") if evaluation.normalize == "cl2n" else None
        self.episodes: list[EpisodeList] = [
            sample_episodes(
                self.store.class_indices,
                class_names=self.store.class_names,
                dataset=dataset.name,
                split=evaluation.split,
                ways=evaluation.ways,
                shots=shots,
                queries=evaluation.queries,
                episodes=evaluation.episodes,
                seed=evaluation.seed,
            )
            for shots in evaluation.shots
        ]

    def judge(self, backbone: EvolvableCNN, device: torch.device) -> Judgement:
        """How `backbone` does on the episode lists. Every image is embedded once."""
        evaluation, network = self.config.evaluation, backbone.for_inference()

        def features(store: ImageStore) -> torch.Tensor:
            return embed(
                network,
                store,
                batch_size=evaluation.batch_size,
                device=device,
                preprocess=normalize,
            )

        embedded = features(self.store)
        mean = None if self.base is None else features(self.base).mean(0)
        judged = Judgement({}, {})
        for episodes in self.episodes:
            accuracies = 100 * evaluate_episodes(
                embedded,
                episodes,
                mean=mean,
                normalize=evaluation.normalize,
                metric=evaluation.metric,
                memory_mb=evaluation.memory_mb,
            )
            accuracy, ci95 = mean_ci95(accuracies)
            judged.accuracies[episodes.key] = accuracies
            judged.results[episodes.key] = {
                "accuracy": accuracy,
                "ci95": ci95,
                "episodes": len(episodes),
                "method": f"{evaluation.method}/{evaluation.metric}/{evaluation.normalize}",
                "transductive": False,
            }
        return judged


def fewshot_tasks(config: Config) -> list[FewShotTask]:
    """The tasks of `evaluation.datasets`, built before training so that mistakes show first."""
    names = config.evaluation.datasets or [config.dataset.name]
    choices = [
        config.dataset if name == config.dataset.name else dataset_choice(name) for name in names
    ]
    return [FewShotTask(config, dataset) for dataset in choices]


def evaluate(tasks: list[FewShotTask], backbone: EvolvableCNN, device: torch.device) -> Judgement:
    """Judge `backbone` on every task."""
    backbone.to(device)
    judged = Judgement({}, {})
    for task in tasks:
        results, accuracies = task.judge(backbone, device)
        judged.results.update(results)
        judged.accuracies.update(accuracies)
    return judged


def evaluate_best(
    tasks: list[FewShotTask],
    path: Path,
    last: EvolvableCNN,
    judged: Judgement,
    device: torch.device,
) -> tuple[dict[str, int], Judgement]:
    """Where in training the network of best.pt at `path` was, its size, and its judgement.

    `judged` is that of `last`, the run's last network: the same network is not judged again. The
    epoch counts from 0, as in mutations.jsonl. Raises `UserError` for what is no checkpoint.
    """
    state = checkpoint.load(path)
    best = checkpoint.backbone_of(path)
    size = best.architecture.summary()
    about = {key: int(state[key]) for key in ("epoch", "step")}
    about |= {key: int(size[key]) for key in ("params", "macs")}
    # The step alone does not tell: a mutation may have been rolled back since.
    same = best.architecture == last.architecture and all(
        torch.equal(tensor, last.state_dict()[name].cpu())
        for name, tensor in best.state_dict().items()
    )
    return about, judged if same else evaluate(tasks, best, device)


def efficiency(
    backbone: EvolvableCNN, resolution: int, device: torch.device
) -> dict[str, float | int | str]:
    """Params, MACs, FLOPs at `resolution`, latency in ms and peak memory in MB of a forward."""
    macs = count_macs(backbone, resolution)
    latencies = {
        f"latency_ms_b{batch}": latency_ms(
            backbone, resolution, batch, repeats=LATENCY_REPEATS, warmup=3, device=device
        )
        for batch in LATENCY_BATCHES
    }
    return {
        "params": count_params(backbone),
        "macs": macs,
        "flops": 2 * macs,
        "resolution": resolution,
        **latencies,
        "peak_memory_mb": peak_memory_mb(backbone, resolution, 1),
        "device": str(device.type),
    }


def replayed(folder: Path) -> tuple[list[dict[str, Any]], list[Architecture]]:
    """The records of the run in `folder`, and every architecture rebuilt from them and its config.

    Needs config.yaml and mutations.jsonl alone; the last architecture must be the one of
    architecture.json where the run has come to write it. Raises `UserError`.
    """
    seed = _seed_of(folder / "config.yaml")
    path = folder / "mutations.jsonl"
    records = _records_of(path)
    try:
        architectures = replay(seed, records)
    except ReplayError as error:
        raise UserError(
            f"run={folder}: {path.name}, {error}. Log and config.yaml do not belong together: one "
            "was changed after the run, or the run was resumed with another backbone."
        ) from error
    final = folder / "architecture.json"
    if final.exists() and _architecture_of(final) != architectures[-1]:
        raise UserError(
            f"run={folder}: {final.name} is not the architecture after the last of "
            f"{len(records)} mutations, {architectures[-1].summary()}. It was changed after the "
            f"run, or {path.name} is not complete."
        )
    return records, architectures


def _seed_of(path: Path) -> Architecture:
    text = _text_of(path)
    try:
        config = yaml.safe_load(text)
        task = config["task"]
        seed = seed_architecture(
            BackboneConfig(**config["backbone"]), config["dataset"]["image_size"]
        )
        seed.summary()
    except (yaml.YAMLError, KeyError, TypeError, AssertionError) as error:
        raise _damaged(path, error) from error
    if task != "pipeline":
        raise UserError(
            f"run={path.parent}: its task was {task}, so it mutated nothing. Give the folder of "
            "the run that trained the network."
        )
    return seed


def _records_of(path: Path) -> list[dict[str, Any]]:
    records = []
    for index, line in enumerate(_text_of(path).splitlines()):
        try:
            record = json.loads(line)
            found = record["index"]
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error, f", mutation {index}") from error
        if found != index:
            raise UserError(
                f"run={path.parent}: {path.name} holds mutation {found} where mutation {index} "
                "belongs. Lines are missing or were moved; the log is needed whole."
            )
        records.append(record)
    return records


def _architecture_of(path: Path) -> Architecture:
    text = _text_of(path)
    try:
        return Architecture.from_dict(json.loads(text))
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise _damaged(path, error) from error


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"run={path.parent}: {path.name} cannot be read ({error.strerror}). Give the folder "
            "of a run, <paths.output_dir>/<experiment_name>/<id>."
        ) from error
    except UnicodeDecodeError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception, where: str = "") -> UserError:
    what = f"{type(error).__name__}: {' '.join(str(error).split())}"  # YAML's span several lines
    return UserError(
        f"run={path.parent}: {path.name}{where} is damaged ({what}). Restore the file as the run "
        "wrote it."
    )


def draw_curriculum(config: Config, folder: Path) -> list[dict[str, Any]]:
    """Write `preview_<LEVEL>.png` per level and the difficulty table `difficulty.md`."""
    from PIL import Image

    levels = config.curriculum.levels
    natural = images_of(config, config.dataset, "train") if "NATURAL" in levels else None
    size = config.dataset.image_size

    def images(level: str, count: int) -> torch.Tensor:
        if level == "NATURAL":
            assert natural is not None
            chosen = torch.linspace(0, len(natural) - 1, min(count, len(natural))).long()
            return natural.batch(chosen)
        indices = torch.arange(count)
        return render(level, indices, seed=config.seed, image_size=size, device="cpu")

    rows = []
    for level in levels:
        drawn = images(level, DIFFICULTY_IMAGES)
        sheet = images(level, PREVIEW_ROWS * PREVIEW_COLUMNS)  # of all classes, where there are any
        sheet = nn.functional.pad(sheet, (1, 1, 1, 1), value=255)
        lines = [torch.cat(list(line), dim=2) for line in sheet.split(PREVIEW_COLUMNS)]
        lines = [line for line in lines if line.shape[2] == lines[0].shape[2]]
        picture = torch.cat(lines, dim=1).permute(1, 2, 0).contiguous().numpy()
        with replacing(folder / f"preview_{level}.png") as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
        parts = difficulty(drawn)
        rows.append(
            {
                "level": level,
                "images": len(drawn),
                "edge_density": parts.edge_density.mean().item(),
                "colour_variance": parts.colour_variance.mean().item(),
                "high_frequency": parts.high_frequency.mean().item(),
                "difficulty": parts.score.mean().item(),
            }
        )
    header = list(rows[0])
    table = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in rows:
        cells = [f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()]
        table.append("| " + " | ".join(cells) + " |")
    write_text(folder / "difficulty.md", "\n".join(table) + "\n")
    return rows
