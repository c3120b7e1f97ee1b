"""The steps of a run: pretrain, evaluate, and drawing the curriculum."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import nn

from sseg_nase.config.compose import dataset_choice
from sseg_nase.config.schema import (
    HEADED,
    BackboneConfig,
    Config,
    DatasetConfig,
    EvaluationConfig,
    FinetuneConfig,
    ViewsConfig,
)
from sseg_nase.data.benchmarks import load_split
from sseg_nase.data.curriculum.difficulty import difficulty
from sseg_nase.data.curriculum.render import render
from sseg_nase.data.episodes import EpisodeList, sample_episodes
from sseg_nase.data.feed import CurriculumFeed
from sseg_nase.data.grey import of_channels
from sseg_nase.data.placement import place
from sseg_nase.data.random import derive
from sseg_nase.data.store import ImageStore
from sseg_nase.data.views import normalize
from sseg_nase.errors import UserError
from sseg_nase.evolution.replay import ReplayError, replay
from sseg_nase.fewshot.confusion import Confusion
from sseg_nase.fewshot.evaluation import embed, embed_views, evaluate_episodes
from sseg_nase.fewshot.statistics import mean_ci95
from sseg_nase.files import replacing, write_text
from sseg_nase.finetune.judging import method_of
from sseg_nase.finetune.learner import METHODS as FINETUNING_METHODS
from sseg_nase.finetune.learner import EpisodeLearner, around, fits
from sseg_nase.finetune.loop import FineTuner
from sseg_nase.hardware.complexity import count_macs, count_params
from sseg_nase.hardware.latency import latency_ms
from sseg_nase.hardware.memory import enforce_memory_cap, peak_memory_mb
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.building import build, configured
from sseg_nase.nets.evolvable import Learner
from sseg_nase.ssl.methods import make_learner
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
SOURCES = ("synthetic", "real_unlabeled", "real_labeled")  # of the images a network has seen
BACKBONE_OF_OLD = {
    "in_channels": 3,
    **dict.fromkeys(("pooled_blocks", "stem", "patch_size", "weights")),
}


def images_of(config: Config, dataset: DatasetConfig, split: str) -> ImageStore:
    """The images of `split`, at the size and with the channels that the run works with."""
    own = config.dataset
    return load_split(
        dataclasses.replace(dataset, image_size=own.image_size, channels=own.channels),
        split,
        data_dir=Path(config.paths.data_dir).expanduser(),
        cache_dir=Path(config.paths.cache_dir).expanduser(),
        workers=config.hardware.num_workers or 0,
    )


def seed_backbone(config: Config, tell: Callable[[str], None] = lambda note: None) -> Backbone:
    """The network that a run starts from: a function of config, seed and `backbone.weights`.

    `tell` is told what of the weights was loaded. Raises `UserError` where they do not fit.
    """
    generator = torch.Generator().manual_seed(derive(config.seed, "weights"))
    return _seed_backbone(config, generator, tell)


def seed_learner(config: Config) -> Learner:
    """`seed_backbone` with what its self-supervised method puts upon it."""
    generator = torch.Generator().manual_seed(derive(config.seed, "weights"))
    backbone = _seed_backbone(config, generator, lambda note: None)
    return make_learner(backbone, config.ssl, generator)


def _seed_backbone(
    config: Config, generator: torch.Generator, tell: Callable[[str], None]
) -> Backbone:
    architecture = configured(config.backbone, config.dataset.image_size)
    backbone = build(architecture, generator=generator)
    if config.backbone.weights:
        from sseg_nase.nets.weights import load_weights  # here, because it loads torchvision

        tell(load_weights(backbone, config.backbone.weights))
    return backbone


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
        channels=config.dataset.channels,
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
        channels=config.dataset.channels,
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


@dataclass(frozen=True)
class Reached:
    """What training has come to.

    `step`: optimizer steps; `images_seen` by source; `history`: the mutations, as their records.
    """

    network: Backbone | EpisodeLearner
    step: int = 0
    images_seen: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(SOURCES, 0))
    history: Sequence[dict[str, Any]] = ()

    @property
    def backbone(self) -> Backbone:
        """The network that gives embeddings."""
        network = self.network
        return network.backbone if isinstance(network, EpisodeLearner) else network


def stored(path: Path, config: Config) -> Reached:
    """What the checkpoint at `path`, or of the run in the folder `path`, holds.

    A fine-tuned head comes with its backbone. Raises `UserError` for what is no checkpoint, and
    where its network is not one for `config`.
    """
    path = path.expanduser()
    if path.is_dir():
        tuned, last = (path / "checkpoints" / f"{name}.pt" for name in ("finetune_best", "last"))
        path = tuned if tuned.exists() else last
    network: Backbone | EpisodeLearner = checkpoint.backbone_for(path, config)
    state = checkpoint.load(path)
    if "finetune" in state:
        assert isinstance(network, Backbone)
        options = state["options"]
        options = FinetuneConfig(**{**options, "views": ViewsConfig(**options["views"])})
        network = around(network, options, state["classes"], torch.Generator())
        try:
            network.load_state_dict(state["student"])
        except RuntimeError as error:
            raise checkpoint.not_belonging(path, error) from error
    return Reached(network, state["step"], state["images_seen"], state["history"])


def fine_tune(
    config: Config,
    before: Reached,
    sink: Sink,
    folder: Path,
    *,
    state: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Reached:
    """Train the backbone of `before` on the labelled base images; what did best on val episodes.

    `state`: of the checkpoint to go on from. Checkpoints with `extra` go to `folder`. `stop` is
    asked after every step; when it says so, `Interrupted` is raised after a checkpoint. One device
    trains, however many there are. Raises `UserError` for images without labels, or too few of a
    class.
    """
    hardware, size = config.hardware, config.dataset.image_size
    fabric = distributed.build_fabric(hardware.accelerator, 1, hardware.precision)
    store = labelled(config)
    images, _, notes = place(
        store,
        0,
        image_size=size,
        channels=config.dataset.channels,
        data=config.data,
        hardware=hardware,
        device=fabric.device,
    )
    for note in notes:
        sink.event("message", {"text": note})
    assert images is not None
    selection = FewShotTask(selection_config(config), config.dataset)

    def validate(learner: EpisodeLearner) -> tuple[float, float]:
        (result,) = selection.judge(learner, fabric.device).results.values()
        return result["accuracy"], result["ci95"]

    def reached(progress: Mapping[str, Any]) -> dict[str, Any]:
        seen = dict(before.images_seen)
        seen["real_labeled"] += progress["images_seen"]
        step = before.step + progress["step"]
        return {"step": step, "images_seen": seen, "history": list(before.history)}

    def save(name: str, saved: dict[str, Any]) -> None:
        about = {"options": dataclasses.asdict(config.finetune), "classes": len(store.class_names)}
        payload = {**saved, **about, **reached(saved["finetune"]), **(extra or {})}
        checkpoint.save(folder / "checkpoints" / f"finetune_{name}.pt", payload)

    generator = torch.Generator().manual_seed(derive(config.seed, "head"))
    learner = around(before.backbone, config.finetune, len(store.class_names), generator)
    tuner = FineTuner(
        config,
        learner=learner,
        base=store,
        images=images,
        fabric=fabric,
        validate=validate,
        save=save,
        sink=sink,
        first_step=before.step,
        stop=stop,
    )
    if state is not None:
        tuner.load_state_dict(state)
    tuner.fit()
    best = checkpoint.load(folder / "checkpoints" / "finetune_best.pt")
    learner.load_state_dict(best["student"])
    return Reached(learner.eval(), **reached(dataclasses.asdict(tuner.progress)))


def selection_config(config: Config) -> Config:
    """`config` with the episodes by which fine-tuning chooses its best network.

    Of the val classes, judged as the network is trained, and others than those of the results.
    """
    options = config.finetune
    method = FINETUNING_METHODS[options.name].judged_by
    plain = options.name == "linear"  # which knows no scores of episodes
    evaluation = dataclasses.replace(
        config.evaluation,
        split="val",
        shots=[options.shots],
        query_balance="balanced",
        episodes=options.validation_episodes,
        seed=derive(config.evaluation.seed, "selection"),
        method=method,
        metric=options.metric or "cosine",
        normalize="l2n" if plain else "none",
        support_augmentations=0,
        top_k=[],
    )
    return dataclasses.replace(config, evaluation=evaluation)


def labelled(config: Config) -> ImageStore:
    """The base split, which must have classes. Raises `UserError` where it has one at most."""
    store = images_of(config, config.dataset, "train")
    if len(store.class_names) < 2:
        raise UserError(
            f"dataset={config.dataset.name}: finetune={config.finetune.name} needs labels, and the "
            f"train split has {len(store.class_names)} class. Give a folder per class, or choose "
            "finetune=none."
        )
    return store


class Judgement(NamedTuple):
    """What a network is worth, under the keys of `results.json`.

    `results`: accuracy and interval in percent per episode list; `accuracies`: of every episode in
    percent, float64 `[episodes]`; `confusions`: which class was taken for which.
    """

    results: dict[str, dict[str, Any]]
    accuracies: dict[str, np.ndarray]
    confusions: dict[str, Confusion]


class FewShotTask:
    """One dataset's episode lists with the images they need, ready to judge any backbone."""

    def __init__(self, config: Config, dataset: DatasetConfig) -> None:
        self.config = config
        evaluation = config.evaluation
        self.store = images_of(config, dataset, evaluation.split)
        self.base = images_of(config, dataset, "train") if evaluation.normalize == "cl2n" else None
        alpha = evaluation.dirichlet_alpha if evaluation.query_balance == "dirichlet" else None
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
                dirichlet_alpha=alpha,
            )
            for shots in evaluation.shots
        ]

    def judge(self, trained: Backbone | EpisodeLearner, device: torch.device) -> Judgement:
        """How `trained` does on the episode lists. Every image is embedded once."""
        evaluation = self.config.evaluation
        learner = trained if isinstance(trained, EpisodeLearner) else None
        backbone = trained.backbone if isinstance(trained, EpisodeLearner) else trained
        network = backbone.for_inference()

        def features(store: ImageStore) -> torch.Tensor:
            return embed(
                network,
                store,
                batch_size=evaluation.batch_size,
                device=device,
                preprocess=normalize,
            )

        def read(indices: torch.Tensor) -> torch.Tensor:
            return normalize(self.store.batch(indices.cpu()).to(device))

        method = method_of(learner, evaluation, read)
        if evaluation.method == "maml":
            embedded = torch.arange(len(self.store), dtype=torch.float32, device=device)[:, None]
        else:
            embedded = features(self.store)
        mean = None if self.base is None else features(self.base).mean(0)
        of_support = self._augmented(network, embedded, device)
        judged = Judgement({}, {}, {})
        for episodes in self.episodes:
            one = evaluate_episodes(
                embedded,
                episodes,
                method,
                evaluation,
                mean=mean,
                classes=len(self.store.class_names),
                support_features=of_support,
            )
            accuracies = 100 * one.accuracies
            accuracy, ci95 = mean_ci95(accuracies)
            confusion = Confusion(one.confusion, self.store.class_names)
            judged.accuracies[episodes.key] = accuracies
            judged.confusions[episodes.key] = confusion
            judged.results[episodes.key] = {
                "accuracy": accuracy,
                "ci95": ci95,
                "episodes": len(episodes),
                "method": _protocol(method.label(evaluation), evaluation),
                "transductive": method.transductive,
                "queries": evaluation.query_balance,
                "top_k": {str(k): 100 * share for k, share in one.top_k.items()},
                **confusion.extremes(),
            }
        return judged

    def _augmented(
        self, network: nn.Module, embedded: torch.Tensor, device: torch.device
    ) -> torch.Tensor | None:
        """Embeddings of the store's images in a support: the mean with those of their views."""
        config, count = self.config, self.config.evaluation.support_augmentations
        if count == 0:
            return None
        chosen = np.unique(np.concatenate([e.support.reshape(-1) for e in self.episodes]))
        views = embed_views(
            network,
            self.store,
            chosen,
            config.views,
            count=count,
            image_size=config.dataset.image_size,
            seed=config.evaluation.seed,
            batch_size=config.evaluation.batch_size,
            device=device,
        )
        rows = torch.from_numpy(chosen).to(embedded.device)
        return embedded.index_copy(0, rows, (embedded[rows] + count * views) / (count + 1))


def _protocol(method: str, evaluation: EvaluationConfig) -> str:
    """The method with what is done to features, support and queries, as results tell it."""
    parts = [method, evaluation.normalize]
    if evaluation.support_augmentations:
        parts.append(f"{evaluation.support_augmentations}views")
    if evaluation.query_balance == "dirichlet":
        parts.append(f"dirichlet{evaluation.dirichlet_alpha:g}")
    return "/".join(parts)


def fewshot_tasks(config: Config) -> list[FewShotTask]:
    """The tasks of `evaluation.datasets`, built before training so that mistakes show first."""
    names = config.evaluation.datasets or [config.dataset.name]
    choices = [
        config.dataset if name == config.dataset.name else dataset_choice(name) for name in names
    ]
    return [FewShotTask(config, dataset) for dataset in choices]


def evaluate(
    tasks: list[FewShotTask], trained: Backbone | EpisodeLearner, device: torch.device
) -> Judgement:
    """Judge `trained` on every task."""
    trained.to(device)
    judged = Judgement({}, {}, {})
    for task in tasks:
        part = task.judge(trained, device)
        judged.results.update(part.results)
        judged.accuracies.update(part.accuracies)
        judged.confusions.update(part.confusions)
    return judged


def judge_before_tuning(
    tasks: list[FewShotTask], reached: Reached, device: torch.device
) -> Judgement:
    """Judge a network that is not fine-tuned; a method that needs a head gets an untrained one."""
    config, network = tasks[0].config, reached.network
    if config.evaluation.method in HEADED:
        generator = torch.Generator().manual_seed(derive(config.seed, "head"))
        network = around(reached.backbone, config.finetune, config.finetune.ways, generator)
    return evaluate(tasks, network, device)


def check_head(reached: Reached, config: Config) -> None:
    """Raise `UserError` where `evaluation.method` needs a head that is not in the checkpoint."""
    method, ways = config.evaluation.method, config.evaluation.ways
    head = reached.network.head if isinstance(reached.network, EpisodeLearner) else None
    if method not in HEADED or fits(head, method, ways):
        return
    has = "no head of it" if head is None else "another head"
    raise UserError(
        f"evaluation.method={method}: checkpoint={config.checkpoint} holds {has} for "
        f"evaluation.ways={ways}. Give RUN/checkpoints/finetune_best.pt of a run with "
        f"finetune={method}, or choose another evaluation.method."
    )


def evaluate_best(
    tasks: list[FewShotTask],
    path: Path,
    last: Backbone,
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
    backbone: Backbone, resolution: int, device: torch.device
) -> dict[str, float | int | str]:
    """Params, MACs, FLOPs at `resolution`, latency in ms and peak memory in MB of a forward."""
    channels = backbone.architecture.in_channels
    macs = count_macs(backbone, resolution, channels)
    latencies = {
        f"latency_ms_b{batch}": latency_ms(
            backbone,
            resolution,
            batch,
            repeats=LATENCY_REPEATS,
            warmup=3,
            device=device,
            in_channels=channels,
        )
        for batch in LATENCY_BATCHES
    }
    return {
        "params": count_params(backbone),
        "macs": macs,
        "flops": 2 * macs,
        "resolution": resolution,
        **latencies,
        "peak_memory_mb": peak_memory_mb(backbone, resolution, 1, in_channels=channels),
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
        # A run of before there were other backbones says nothing of them.
        backbone = BackboneConfig(**{**BACKBONE_OF_OLD, **config["backbone"]})
        seed = configured(backbone, config["dataset"]["image_size"])
        seed.summary()
    except (yaml.YAMLError, KeyError, TypeError, AssertionError) as error:
        raise _damaged(path, error) from error
    if task != "pipeline":
        raise UserError(
            f"run={path.parent}: its task was {task}, so it mutated nothing. Give the folder of "
            "the run that trained the network."
        )
    if not isinstance(seed, Architecture):
        raise UserError(
            f"run={path.parent}: its backbone is {seed.name}, which does not evolve: there is "
            "nothing to replay."
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
        drawn = render(level, indices, seed=config.seed, image_size=size, device="cpu")
        return of_channels(drawn, config.dataset.channels)

    rows = []
    for level in levels:
        drawn = images(level, DIFFICULTY_IMAGES)
        sheet = images(level, PREVIEW_ROWS * PREVIEW_COLUMNS)  # of all classes, where there are any
        sheet = nn.functional.pad(sheet, (1, 1, 1, 1), value=255)
        lines = [torch.cat(list(line), dim=2) for line in sheet.split(PREVIEW_COLUMNS)]
        lines = [line for line in lines if line.shape[2] == lines[0].shape[2]]
        picture = torch.cat(lines, dim=1).expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
        with replacing(folder / f"preview_{level}.png") as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
        parts = difficulty(drawn.expand(-1, 3, -1, -1))
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
