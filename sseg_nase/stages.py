"""The steps of a run: pretrain, evaluate, and drawing the curriculum."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from sseg_nase.config.compose import dataset_choice
from sseg_nase.config.schema import Config, DatasetConfig
from sseg_nase.data.benchmarks import load_split
from sseg_nase.data.curriculum.difficulty import difficulty
from sseg_nase.data.curriculum.render import render
from sseg_nase.data.episodes import EpisodeList, sample_episodes
from sseg_nase.data.feed import CurriculumFeed
from sseg_nase.data.random import derive
from sseg_nase.data.store import ImageStore
from sseg_nase.data.views import normalize
from sseg_nase.fewshot.evaluation import embed, evaluate_episodes
from sseg_nase.fewshot.statistics import mean_ci95
from sseg_nase.files import replacing, write_text
from sseg_nase.hardware.complexity import count_macs, count_params
from sseg_nase.hardware.latency import latency_ms
from sseg_nase.hardware.memory import peak_memory_mb
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN, Learner, ProjectionHead
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint
from sseg_nase.training.events import Callback, Event
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


def seed_learner(config: Config) -> Learner:
    """The untrained seed network with its projection head: a function of config and seed."""
    b = config.backbone
    architecture = Architecture.seed(
        b.channels,
        resolution=config.dataset.image_size,
        kernel_size=b.kernel_size,
        activation=b.activation,
        batch_norm=b.batch_norm,
        pooling=b.pooling,
        residual=b.residual,
        embedding=b.embedding,
    )
    generator = torch.Generator().manual_seed(derive(config.seed, "weights"))
    backbone = EvolvableCNN(architecture, generator=generator)
    head = ProjectionHead(
        architecture.features,
        config.ssl.projection_hidden,
        config.ssl.projection_dim,
        generator=generator,
    )
    return Learner(backbone, head)


class Checkpoints(Callback):
    """Keeps `last.pt` every few epochs and `best.pt`: the lowest loss at the latest level.

    Losses of different levels do not compare, so a new level starts a new best.
    """

    def __init__(self, folder: Path, interval: int, extra: dict[str, Any]) -> None:
        self.folder, self.interval, self.extra = folder, interval, extra
        self.best: tuple[int, float] | None = None

    def on(self, event: Event, trainer: Trainer) -> None:
        """Save after epochs, and at the end."""
        if event is Event.EPOCH_END and trainer.means is not None:
            score = (-trainer.feed.schedule.index, trainer.means.contrastive)
            if self.best is None or score < self.best:
                self.best = score
                self._save("best.pt", trainer)
            if (trainer.progress.epoch + 1) % self.interval == 0:
                self._save("last.pt", trainer)
        if event is Event.FIT_END:
            self._save("last.pt", trainer)

    def _save(self, name: str, trainer: Trainer) -> None:
        checkpoint.save(self.folder / name, {**trainer.state_dict(), **self.extra})


class ArchitectureMetrics(Callback):
    """Tells `arch/*` at the start and after every accepted mutation."""

    def on(self, event: Event, trainer: Trainer) -> None:
        """Log when the architecture is new."""
        history = trainer.progress.history
        if event is Event.FIT_START or (event is Event.MUTATION and history[-1].accepted):
            architecture = trainer.networks.architecture
            removed = sum(
                len(channels)
                for record in history
                if record.accepted and record.kind == "PRUNE"
                for channels in record.target["removed"].values()
            )
            width = sum(architecture.channels)
            trainer.sink.metrics(
                {
                    "arch/params": architecture.params,
                    "arch/macs": architecture.macs(),
                    "arch/blocks": len(architecture.blocks),
                    "arch/width": max(architecture.channels),
                    "arch/sparsity": removed / (width + removed),
                },
                trainer.progress.step,
            )


def pretrain(
    config: Config,
    learner: Learner,
    fabric: Fabric,
    sink: Sink,
    folder: Path,
    extra: dict[str, Any],
) -> Trainer:
    """Train `learner` on the curriculum, with evolution and pruning as configured."""
    levels = config.curriculum.levels
    natural = images_of(config, config.dataset, "train") if "NATURAL" in levels else None
    batch_size = config.hardware.batch_size
    assert batch_size is not None
    feed = CurriculumFeed(
        config.curriculum,
        natural=natural,
        image_size=config.dataset.image_size,
        batch_size=batch_size,
        images_per_epoch=config.pretrain.images_per_epoch,
        epochs=config.pretrain.epochs,
        seed=config.seed,
        device=fabric.device,
    )
    interventions: list[Intervention] = []
    if config.sparsity.enabled:
        interventions.append(Sparsify(config.sparsity, config.pretrain, config.seed))
    if config.evolution.enabled:
        interventions.append(Evolve(config.evolution, config.seed))
    checkpoints = Checkpoints(
        folder / "checkpoints", config.pretrain.checkpoint_interval_epochs, extra
    )
    trainer = Trainer(
        config,
        learner=learner,
        feed=feed,
        fabric=fabric,
        interventions=interventions,
        callbacks=[ArchitectureMetrics(), checkpoints],
        sink=sink,
    )
    trainer.fit()
    return trainer


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

    def judge(self, backbone: nn.Module, device: torch.device) -> dict[str, dict[str, Any]]:
        """Accuracy in percent per episode list, under the keys of `results.json`."""
        evaluation = self.config.evaluation

        def features(store: ImageStore) -> torch.Tensor:
            return embed(
                backbone,
                store,
                batch_size=evaluation.batch_size,
                device=device,
                preprocess=normalize,
            )

        embedded = features(self.store)
        mean = None if self.base is None else features(self.base).mean(0)
        results = {}
        for episodes in self.episodes:
            accuracies = 100 * evaluate_episodes(
                embedded,
                episodes,
                mean=mean,
                normalize=evaluation.normalize,
                metric=evaluation.metric,
            )
            accuracy, ci95 = mean_ci95(accuracies)
            results[episodes.key] = {
                "accuracy": accuracy,
                "ci95": ci95,
                "episodes": len(episodes),
                "method": f"{evaluation.method}/{evaluation.metric}/{evaluation.normalize}",
                "transductive": False,
            }
        return results


def fewshot_tasks(config: Config) -> list[FewShotTask]:
    """The tasks of `evaluation.datasets`, built before training so that mistakes show first."""
    names = config.evaluation.datasets or [config.dataset.name]
    choices = [
        config.dataset if name == config.dataset.name else dataset_choice(name) for name in names
    ]
    return [FewShotTask(config, dataset) for dataset in choices]


def evaluate(
    tasks: list[FewShotTask], backbone: EvolvableCNN, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Judge `backbone` on every task."""
    backbone.to(device)
    return {key: value for task in tasks for key, value in task.judge(backbone, device).items()}


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
        drawn = images(level, max(PREVIEW_ROWS * PREVIEW_COLUMNS, DIFFICULTY_IMAGES))
        sheet = drawn[: PREVIEW_ROWS * PREVIEW_COLUMNS]
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
