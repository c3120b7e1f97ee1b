"""What a network is worth: few-shot accuracy, size and speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from sseg_nase.config.groups.evaluation import MATCHING, MethodConfig
from sseg_nase.config.options import filled, option_of
from sseg_nase.config.schema import (
    Config,
    DatasetConfig,
    EvaluationConfig,
)
from sseg_nase.data.episodes import EpisodeList, sample_episodes
from sseg_nase.data.random import derive
from sseg_nase.data.store import ImageStore
from sseg_nase.data.views import normalize
from sseg_nase.errors import UserError
from sseg_nase.fewshot.evaluation import (
    NotFiniteError,
    doubts,
    embed,
    embed_views,
    evaluate_episodes,
    normalized,
)
from sseg_nase.fewshot.fixed_views import view
from sseg_nase.finetune.head_methods import method_of
from sseg_nase.finetune.learner import EpisodeLearner, around, fits
from sseg_nase.hardware.complexity import count_macs, count_params
from sseg_nase.hardware.energy import energy
from sseg_nase.hardware.latency import latency_ms
from sseg_nase.hardware.memory import peak_memory_mb
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.heads import AttentionMLP
from sseg_nase.rundir.confusion import Confusion
from sseg_nase.rundir.embeddings import Embeddings, chosen_images
from sseg_nase.rundir.results import BEST, LAST, EpisodeResult, accuracies_of
from sseg_nase.stages.fitting import evaluated_datasets, room_of, what_fits
from sseg_nase.stages.setup import Reached, images_of
from sseg_nase.statistics import mean_ci95, paired_difference
from sseg_nase.training import checkpoint

LATENCY_BATCHES = (1, 64)
LATENCY_REPEATS = 15


class Evaluation(NamedTuple):
    """What a network is worth, under the keys of `results.json`.

    `results`: accuracy and interval in percent per episode list; `accuracies`: of every episode in
    percent, float64 `[episodes]`; `confusions`: which class was taken for which; `embeddings`: of
    some images of the first list, where the method takes embeddings; `mean` float32 `[features]`
    of the first data set's base split, where features are centred by it.
    """

    results: dict[str, dict[str, Any]]
    accuracies: dict[str, np.ndarray]
    confusions: dict[str, Confusion]
    embeddings: Embeddings | None = None
    mean: torch.Tensor | None = None


class FewShotTask:
    """One dataset's episode lists with the images they need: any backbone is evaluated on them."""

    def __init__(self, config: Config, dataset: DatasetConfig) -> None:
        self.config = config
        evaluation = config.evaluation
        self.store = images_of(config, dataset, evaluation.split)
        self.base = images_of(config, dataset, "train") if evaluation.normalize == "cl2n" else None
        alpha = evaluation.dirichlet_alpha if evaluation.query_balance == "dirichlet" else None
        self.episodes: list[EpisodeList] = [
            self._sampled(dataset, shots, alpha)
            for shots in filled(evaluation.shots, "evaluation.shots")
        ]

    def _sampled(self, dataset: DatasetConfig, shots: int, alpha: float | None) -> EpisodeList:
        evaluation = self.config.evaluation
        try:
            return sample_episodes(
                self.store.class_indices,
                class_names=self.store.class_names,
                dataset=dataset.name,
                split=evaluation.split,
                ways=filled(evaluation.ways, "evaluation.ways"),
                shots=shots,
                queries=filled(evaluation.queries, "evaluation.queries"),
                episodes=evaluation.episodes,
                seed=evaluation.seed,
                dirichlet_alpha=alpha,
            )
        except UserError as error:
            room = room_of(self.store, evaluation.split, dataset.name)
            fits = what_fits(evaluation, [room])
            raise UserError(
                f"{error} All that fits at once: {fits}" if fits else str(error)
            ) from error

    def evaluate(
        self, trained: Backbone | EpisodeLearner, device: torch.device, views: int = 1
    ) -> Evaluation:
        """How `trained` does on the episode lists. Every image is embedded once, or `views` times.

        With several `views` an embedding is the mean of theirs, for support, queries and the mean
        of the base split alike. Raises `NotFiniteError` where no accuracy can be taken.
        """
        evaluation = self.config.evaluation
        learner = trained if isinstance(trained, EpisodeLearner) else None
        backbone = trained.backbone if isinstance(trained, EpisodeLearner) else trained
        network = backbone.for_inference()

        def features(store: ImageStore) -> torch.Tensor:
            return embedded_by(network, store, evaluation, device, views)

        def read(indices: torch.Tensor) -> torch.Tensor:
            return normalize(self.store.batch(indices.cpu()).to(device))

        method = method_of(learner, evaluation, read, self.config.hardware.precision)
        adapts = option_of(MethodConfig, evaluation.method).adapts  # it looks at the images
        if adapts:
            embedded = torch.arange(len(self.store), dtype=torch.float32, device=device)[:, None]
        else:
            embedded = features(self.store)
        mean = None if self.base is None else features(self.base).mean(0)
        of_support = self._augmented(network, embedded, device)
        looked_at: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        if not adapts:
            looked_at = embedded, normalized(embedded, mean, evaluation)
        shown = looked_at[1]
        centre = None if mean is None else mean.cpu()
        evaluated = Evaluation({}, {}, {}, mean=centre)
        if shown is not None:
            evaluated = evaluated._replace(
                embeddings=chosen_embeddings(self.store, shown, self.images_key)
            )
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
            evaluated.accuracies[episodes.key] = accuracies
            evaluated.confusions[episodes.key] = confusion
            result = EpisodeResult(
                key=episodes.key,
                network=LAST if views == 1 else "views",
                accuracy=accuracy,
                ci95=ci95,
                episodes=len(episodes),
                method=_protocol(method.label(evaluation), evaluation, views),
                transductive=method.transductive,
                top_k={str(k): 100 * share for k, share in one.top_k.items()},
            )
            evaluated.results[episodes.key] = result.as_section(
                queries=evaluation.query_balance,
                doubts=doubts(*looked_at, one.accuracies, evaluation),
                classes=confusion.extremes(),
            )
        return evaluated

    @property
    def images_key(self) -> str:
        """The data set and split that are evaluated."""
        return self.episodes[0].key.rpartition("/")[0]

    def stores(self) -> list[tuple[str, str, ImageStore]]:
        """The images that it needs: their role, key and store."""
        found = [("evaluate", self.images_key, self.store)]
        if self.base is not None:
            found.append(("centre", f"{self.images_key.partition('/')[0]}/train", self.base))
        return found

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


class Task(Protocol):
    """What a network is evaluated on: few-shot episodes, or the classes of a closed set.

    `images_key`: the data set and split that the images are of.
    """

    config: Config

    @property
    def images_key(self) -> str:
        """The data set and split that are evaluated."""

    def stores(self) -> list[tuple[str, str, ImageStore]]:
        """The images that it needs, as far as they are open: role, key and store."""

    def evaluate(
        self, trained: Backbone | EpisodeLearner, device: torch.device, views: int = 1
    ) -> Evaluation:
        """How `trained` does. Raises `NotFiniteError` where no accuracy can be taken."""


def embedded_by(
    network: nn.Module,
    store: ImageStore,
    evaluation: EvaluationConfig,
    device: torch.device,
    views: int = 1,
) -> torch.Tensor:
    """Embeddings float32 `[n, D]` of all images of `store`; of several views their mean."""

    def of(number: int) -> torch.Tensor:
        return embed(
            network,
            store,
            batch_size=evaluation.batch_size,
            device=device,
            preprocess=lambda raw: view(normalize(raw), number),
        )

    return torch.stack([of(number) for number in range(views)]).mean(0)


def chosen_embeddings(store: ImageStore, evaluated: torch.Tensor, images_key: str) -> Embeddings:
    """What a picture of the embeddings `evaluated` `[n, D]` of `store` shows."""
    chosen = chosen_images(store.labels)
    rows = evaluated[torch.from_numpy(chosen)]
    names, labels = np.unique(store.labels[chosen], return_inverse=True)
    shown = tuple(store.class_names[name] for name in names)
    return Embeddings(rows.cpu().numpy(), labels, shown, images_key)


def _protocol(method: str, evaluation: EvaluationConfig, views: int = 1) -> str:
    """The method with what is done to features, support and queries, as results tell it."""
    parts = [method, evaluation.normalize]
    if evaluation.support_augmentations:
        parts.append(f"{evaluation.support_augmentations}views")
    if views > 1:  # test-time augmentation
        parts.append(f"tta{views}")
    if evaluation.query_balance == "dirichlet":
        parts.append(f"dirichlet{evaluation.dirichlet_alpha:g}")
    return "/".join(parts)


def fewshot_tasks(config: Config) -> list[FewShotTask]:
    """The tasks of `evaluation.datasets`, built before training so that mistakes show first."""
    return [FewShotTask(config, dataset) for dataset in evaluated_datasets(config)]


def evaluate(
    tasks: Sequence[Task], reached: Reached, device: torch.device, views: int = 1
) -> Evaluation:
    """Evaluate a network on every task, by so many `views` of every image.

    Raises `NotFiniteError` where no accuracy can be taken.
    """
    reached.network.to(device)
    evaluated = Evaluation({}, {}, {})
    for task in tasks:
        part = evaluate_named(task, reached, device, views)
        mean = part.mean if task is tasks[0] else evaluated.mean
        evaluated = evaluated._replace(
            embeddings=evaluated.embeddings or part.embeddings, mean=mean
        )
        evaluated.results.update(part.results)
        evaluated.accuracies.update(part.accuracies)
        evaluated.confusions.update(part.confusions)
    return evaluated


def evaluate_named(
    task: Task, reached: Reached, device: torch.device, views: int = 1
) -> Evaluation:
    """`task.evaluate`; its `NotFiniteError` says which network and which images."""
    try:
        return task.evaluate(reached.network, device, views)
    except NotFiniteError as error:
        raise NotFiniteError(
            f"{reached.name} cannot be evaluated on dataset {task.images_key}: {error}. If its "
            "training diverged, give a checkpoint from before that, or train again with a lower "
            "learning rate or with hardware.precision=32-true."
        ) from error


def evaluate_before_tuning(
    tasks: Sequence[Task], reached: Reached, device: torch.device
) -> Evaluation:
    """Evaluate a network that is not fine-tuned; where a method needs a head, it is untrained."""
    config = tasks[0].config
    if option_of(MethodConfig, config.evaluation.method).headed:
        generator = torch.Generator().manual_seed(derive(config.seed, "head"))
        ways = filled(config.finetune.ways, "finetune.ways")
        headed = around(reached.backbone, config.finetune, ways, generator)
        reached = dataclasses.replace(reached, network=headed)
    return evaluate(tasks, reached, device)


def doubted(results: Mapping[str, Any]) -> list[str]:
    """What the results of a run say against their own accuracies, a warning each."""
    networks = {LAST: "the last network", BEST: "the best network"}
    return [
        f"{key}, {name}: {doubt}. Its accuracy means little."
        for network, name in networks.items()
        for key, result in accuracies_of(results, network).items()
        for doubt in result["doubts"]
    ]


def check_head(reached: Reached, config: Config) -> None:
    """Raise `UserError` where `evaluation.method` needs a head that is not in the checkpoint."""
    method = config.evaluation.method
    ways = filled(config.evaluation.ways, "evaluation.ways")
    head = reached.network.head if isinstance(reached.network, EpisodeLearner) else None
    normalize = config.evaluation.normalize
    if method == MATCHING and isinstance(head, AttentionMLP) and normalize != "none":
        raise UserError(
            f"evaluation.normalize={normalize}: the attention in checkpoint={config.checkpoint} "
            "was trained on features as they are; set evaluation.normalize=none."
        )
    if not option_of(MethodConfig, method).headed or fits(head, method, ways):
        return
    has = "no head of it" if head is None else "another head"
    raise UserError(
        f"evaluation.method={method}: checkpoint={config.checkpoint} holds {has} for "
        f"evaluation.ways={ways}. Give RUN/checkpoints/finetune_best.pt of a run with "
        f"finetune={method}, or choose another evaluation.method."
    )


def evaluate_best(
    tasks: Sequence[Task],
    path: Path,
    last: Backbone,
    evaluated: Evaluation,
    device: torch.device,
) -> tuple[dict[str, Any], Evaluation]:
    """Where in training the network of best.pt at `path` was, its size, and its evaluation.

    `evaluated` is that of `last`, the run's last network: the same network is not evaluated again.
    The epoch counts from 0, as in mutations.jsonl. `minus_last`: per episode list the paired
    difference of the accuracies, in points. Raises `UserError` for what is no checkpoint.
    """
    state = checkpoint.load(path)
    best = checkpoint.backbone_of(path)
    size = best.architecture.summary()
    about: dict[str, Any] = {key: int(state[key]) for key in ("epoch", "step")}
    about |= {key: size[key] for key in ("blocks", "channels", "params", "macs")}
    # The step alone does not tell: a mutation may have been rolled back since.
    same = best.architecture == last.architecture and all(
        torch.equal(tensor, last.state_dict()[name].cpu())
        for name, tensor in best.state_dict().items()
    )
    found = evaluated
    if not same:
        found = evaluate(tasks, Reached(best, name=f"checkpoint={path}"), device)
    differences = {
        key: paired_difference(found.accuracies[key], accuracies)._asdict()
        for key, accuracies in evaluated.accuracies.items()
    }
    return {**about, "minus_last": differences}, found


def efficiency(
    backbone: Backbone, resolution: int, device: torch.device
) -> dict[str, float | int | str | None]:
    """Params, MACs, FLOPs at `resolution`, latency in ms and peak memory in MB of a forward.

    A latency is None where the clock is too coarse for one.
    """
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
        **energy(backbone, resolution, device, in_channels=channels),
        "device": str(device.type),
    }
