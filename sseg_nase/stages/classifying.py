"""What a network is worth on a closed set, whose test has the classes of the training.

Test images are opened when a network is evaluated on them, and not before: what was trained, and
what was chosen on val, is fixed by then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sseg_nase.classification.metrics import Classified, classified, mean_roc
from sseg_nase.classification.probes import best_probe, neighbour_shares
from sseg_nase.config.groups.evaluation import CLASSIFIER, EPISODES, NEIGHBOURS, PROBE
from sseg_nase.config.groups.finetune import Classifier
from sseg_nase.config.schema import Config, DatasetConfig
from sseg_nase.data.benchmarks import available_splits
from sseg_nase.data.labelled_part import part_of
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError
from sseg_nase.fewshot.evaluation import NotFiniteError, normalized, spread_doubt
from sseg_nase.finetune.learner import EpisodeLearner
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.heads import LinearHead
from sseg_nase.rundir.confusion import Confusion
from sseg_nase.rundir.results import LAST, ClassResult
from sseg_nase.stages.evaluating import (
    Evaluation,
    Task,
    chosen_embeddings,
    embedded_by,
    fewshot_tasks,
)
from sseg_nase.stages.setup import Reached, images_of
from sseg_nase.statistics import mean_ci95

TOP = (5,)
TEST = "test"


class Scored(NamedTuple):
    """Scores float64 `[n, C]` of images; `method`: what gave them; `embedded` `[n, D]`.

    `mean`: that of train, `[D]`, where embeddings are centred.
    """

    scores: np.ndarray
    method: str
    embedded: Tensor
    mean: Tensor | None = None


class ClosedTask:
    """A split of a closed set with what classifies it, ready to evaluate any backbone.

    Raises `UserError` where the split is not there; only test waits to be opened.
    """

    def __init__(self, config: Config, dataset: DatasetConfig) -> None:
        self.config, self.dataset, self.split = config, dataset, config.evaluation.split
        self.images_key = f"{dataset.name}/{self.split}"
        self.key = f"{self.images_key}/{config.evaluation.name}"
        self.train = images_of(config, dataset, "train")
        self.opened = False
        paths = config.paths
        splits = available_splits(
            dataset,
            data_dir=Path(paths.data_dir).expanduser(),
            cache_dir=Path(paths.cache_dir).expanduser(),
        )
        if self.split != TEST or self.split not in splits:
            truth_of(self.store, self.train)  # what is missing is said now

    @cached_property
    def store(self) -> ImageStore:
        """The images that are evaluated."""
        store = images_of(self.config, self.dataset, self.split)
        self.opened = True
        return store

    def stores(self) -> list[tuple[str, str, ImageStore]]:
        """The images that are known by now: their role, key and store."""
        known = []
        if self.config.evaluation.name != CLASSIFIER:
            known.append(("compare", f"{self.dataset.name}/train", self.train))
        return [*known, *([("evaluate", self.images_key, self.store)] if self.opened else [])]

    def evaluate(
        self, trained: Backbone | EpisodeLearner, device: torch.device, views: int = 1
    ) -> Evaluation:
        """How `trained` classifies the split. Raises `NotFiniteError` where no figure can be taken.

        With several `views` an embedding is the mean of theirs.
        """
        truth = truth_of(self.store, self.train)
        scored = self._scored(trained, device, views)
        if not np.isfinite(scored.scores).all():
            raise NotFiniteError("the scores of the classes are not finite")
        names = self.train.class_names
        figures = classified(scored.scores, truth, names, TOP)
        right = 100 * figures.right.astype(np.float64)
        accuracy, ci95 = mean_ci95(right)
        confusion = Confusion(figures.confusion, names)
        result = ClassResult(
            key=self.key,
            network=LAST,
            accuracy=accuracy,
            ci95=ci95,
            images=len(right),
            method=scored.method,
            top_k={str(k): 100 * share for k, share in figures.top_k.items()},
            precision=100 * figures.precision,
            recall=100 * figures.recall,
            f1=100 * figures.f1,
            auc=None if figures.auc is None else 100 * figures.auc,
        )
        curve = mean_roc(truth[:, None] == np.arange(len(names)), scored.scores)
        section = result.as_section(
            doubts=_doubts(scored, figures, names),
            per_class=[
                {
                    "name": one.name,
                    "images": one.images,
                    "precision": 100 * one.precision,
                    "recall": 100 * one.recall,
                    "f1": 100 * one.f1,
                    "auc": None if one.auc is None else 100 * one.auc,
                }
                for one in figures.classes
            ],
            roc=None if curve is None else [[round(x, 4) for x in row] for row in curve.tolist()],
            classes=confusion.extremes(),
        )
        shown = chosen_embeddings(self.store, scored.embedded, self.images_key)
        return Evaluation(
            {self.key: section}, {self.key: right}, {self.key: confusion}, shown, scored.mean
        )

    def _scored(
        self, trained: Backbone | EpisodeLearner, device: torch.device, views: int
    ) -> Scored:
        backbone = trained.backbone if isinstance(trained, EpisodeLearner) else trained
        network = backbone.for_inference()

        def embedded(store: ImageStore) -> Tensor:
            return embedded_by(network, store, self.config.evaluation, device, views)

        head = trained.head if isinstance(trained, EpisodeLearner) else None
        suffix = f"/tta{views}" if views > 1 else ""
        return self.scored(embedded(self.store), embedded, head, suffix)

    def scored(
        self,
        found: Tensor,
        embedded: Callable[[ImageStore], Tensor],
        head: nn.Module | None,
        suffix: str = "",
    ) -> Scored:
        """What classifies images with the embeddings `found` `[n, D]`, and how.

        `embedded` gives those of train and val, where they are wanted. `suffix`: of the method.
        """
        evaluation, classes = self.config.evaluation, len(self.train.class_names)
        if evaluation.name == CLASSIFIER:
            assert head is not None  # checked before
            return Scored(head_scores(head, found), f"classifier{suffix}", found)
        base = embedded(self.train)
        mean = base.mean(0) if evaluation.normalize == "cl2n" else None
        centre = None if mean is None else mean.cpu()
        base, query = (normalized(each, mean, evaluation) for each in (base, found))
        labels = torch.from_numpy(self.train.labels).to(found.device)
        suffix = f"/{evaluation.normalize}{suffix}"
        if evaluation.name == NEIGHBOURS:
            options = evaluation.knn
            shares = neighbour_shares(
                base,
                labels,
                query,
                classes=classes,
                neighbours=options.neighbours,
                temperature=options.temperature,
            )
            method = f"{NEIGHBOURS}/{options.neighbours}{suffix}"
            return Scored(shares.double().cpu().numpy(), method, query, centre)
        held_store = images_of(self.config, self.dataset, "val")
        probe, regularization = best_probe(
            base,
            labels,
            normalized(embedded(held_store), mean, evaluation),
            torch.from_numpy(truth_of(held_store, self.train)).to(found.device),
            classes=classes,
            regularizations=evaluation.linear_probe.regularization,
        )
        scores = probe.probabilities(query).cpu().numpy()
        return Scored(scores, f"{PROBE}/{regularization:g}{suffix}", query, centre)


def is_closed(config: Config) -> bool:
    """Whether networks are evaluated on the classes that they were trained on."""
    return config.evaluation.name != EPISODES


def tasks_of(config: Config) -> Sequence[Task]:
    """What networks are evaluated on, made before training so that mistakes show first."""
    if is_closed(config):
        return [ClosedTask(config, config.dataset)]
    return fewshot_tasks(config)


def check_classifier(reached: Reached, config: Config, tasks: Sequence[Task]) -> None:
    """Raise `UserError` where a checkpoint has no classifier of the classes of a closed set."""
    head = reached.network.head if isinstance(reached.network, EpisodeLearner) else None
    for task in tasks:
        if not isinstance(task, ClosedTask) or config.evaluation.name != CLASSIFIER:
            continue
        classes = len(task.train.class_names)
        if not classifies(head, classes):
            has = "no classifier" if head is None else "another head"
            raise UserError(
                f"evaluation=classification: checkpoint={config.checkpoint} holds {has} for the "
                f"{classes} classes of dataset={config.dataset.name}. Give "
                "RUN/checkpoints/finetune_best.pt of a run with finetune=classifier, or choose "
                "evaluation=knn or evaluation=linear_probe."
            )


def truth_of(store: ImageStore, train: ImageStore) -> np.ndarray:
    """The classes of `store`'s images by their numbers in `train`, int64 `[n]`.

    Raises `UserError` for a class that was not trained on.
    """
    numbers = {name: number for number, name in enumerate(train.class_names)}
    if unknown := [name for name in store.class_names if name not in numbers]:
        raise UserError(
            f"The class {unknown[0]} is in {store.manifest.get('split')} and not in train of "
            f"{store.manifest.get('source')}: a closed set has the same classes in both. Remove "
            "it, or add images of it to train."
        )
    return np.array([numbers[name] for name in store.class_names], dtype=np.int64)[store.labels]


@torch.no_grad()
def head_scores(head: nn.Module, embedded: Tensor) -> np.ndarray:
    """Probabilities float64 `[n, C]` of embeddings `[n, D]` by a trained classifier."""
    return head(embedded).double().softmax(dim=-1).cpu().numpy()


def classifies(head: nn.Module | None, classes: int) -> bool:
    """Whether a head is a classifier of that many classes."""
    return isinstance(head, LinearHead) and head.out_features == classes


def labelled_part(store: ImageStore, options: Classifier, seed: int) -> ImageStore:
    """The images of `store` that `finetune.fraction` or `samples` lets a classifier see."""
    if options.fraction == 1 and not options.samples:
        return store
    chosen = part_of(
        store.class_indices,
        store.class_names,
        fraction=options.fraction,
        samples=options.samples,
        seed=seed,
    )
    described = {
        key: store.manifest[key] for key in ("source", "layout", "split") if key in store.manifest
    }
    return ImageStore.from_arrays(
        store.images[chosen], store.labels[chosen], store.class_names, **described
    )


class ByVal:
    """Evaluates a classifier while it is trained: by how many of the val images it gets right, and
    by the mean of −log p of the true class."""

    def __init__(self, config: Config, train: ImageStore) -> None:
        self.config = config
        self.store = images_of(config, config.dataset, "val")
        self.truth = truth_of(self.store, train)

    def __call__(self, learner: EpisodeLearner, device: torch.device) -> tuple[float, float, float]:
        """Accuracy in percent, its 95 % interval, and the loss in nats. Raises `NotFiniteError`."""
        network = learner.backbone.for_inference()
        embedded = embedded_by(network, self.store, self.config.evaluation, device)
        scores = head_scores(learner.head, embedded)
        if not np.isfinite(scores).all():
            raise NotFiniteError(
                "the network that is fine-tuned cannot be evaluated: the scores of the classes are "
                "not finite"
            )
        of_truth = scores[np.arange(len(scores)), self.truth]
        loss = -np.log(np.maximum(of_truth, np.finfo(np.float64).tiny)).mean()
        accuracy, ci95 = mean_ci95(100.0 * (scores.argmax(axis=1) == self.truth))
        return accuracy, ci95, float(loss)


def _doubts(scored: Scored, figures: Classified, names: tuple[str, ...]) -> list[str]:
    found = []
    if (doubt := spread_doubt(scored.embedded)) is not None:
        found.append(doubt)
    taken = np.flatnonzero(figures.confusion.sum(0))
    if len(taken) == 1 and len(names) > 1:
        found.append(f"every image is taken for '{names[taken[0]]}'")
    return found
