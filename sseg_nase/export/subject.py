"""What is exported: a network with all that is to be said of it, measured once for all files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sseg_nase.config.groups.evaluation import PROTOTYPE
from sseg_nase.config.options import filled
from sseg_nase.config.schema import Config
from sseg_nase.data.episodes import EpisodeList, sample_episodes
from sseg_nase.data.random import derive
from sseg_nase.data.store import ImageStore
from sseg_nase.data.views import normalize
from sseg_nase.errors import UserError, shown
from sseg_nase.export.calibration import calibration_error, fitted_temperature
from sseg_nase.export.origin import as_trained, run_id, run_of
from sseg_nase.fewshot.evaluation import embed, evaluate_episodes, normalized
from sseg_nase.fewshot.methods import METHODS
from sseg_nase.finetune.learner import EpisodeLearner
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.own import registered_by
from sseg_nase.runtime.metadata import Metadata
from sseg_nase.stages import FewShotTask, Reached, check_classifier, fitted, images_of, stored
from sseg_nase.stages.classifying import ClosedTask, is_closed, truth_of
from sseg_nase.stages.served import metadata_of
from sseg_nase.statistics import mean_ci95
from sseg_nase.training import checkpoint
from sseg_nase.version import __version__

CPU = torch.device("cpu")
CALIBRATING = 200  # episodes of base classes that the temperature is fitted on
Features = Callable[[ImageStore], np.ndarray]


@dataclass(frozen=True)
class Subject:
    """A network on the CPU as it is used, with what is said of it.

    `base` are the images that it may be calibrated on; `accuracies` of the episodes in percent, by
    the key of their list; `evaluate` gives those of other features float32 `[n, D]` of `store`.
    `graph` holds the ONNX file of this very network once there is one: more than one form uses it.
    """

    network: Backbone
    metadata: Metadata
    base: ImageStore
    store: ImageStore
    accuracies: dict[str, np.ndarray]
    evaluate: Callable[[np.ndarray], dict[str, np.ndarray]]
    run: Path | None
    graph: dict[str, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)


def prepared(config: Config, overrides: Sequence[str], *, evaluated: bool = True) -> Subject:
    """The network of `config.checkpoint`, its base mean, temperature and accuracy.

    Without `evaluated` the accuracy is left out, for who only wants to predict. Raises `UserError`
    for what is wrong with the checkpoint or the images.
    """
    path = Path(filled(config.checkpoint, "checkpoint")).expanduser()
    if not path.exists():
        raise UserError(f"checkpoint={shown(path)}: there is no such file or folder.")
    config = as_trained(config, overrides)
    registered_by("backbone.imports", config.backbone.imports)
    config, _ = fitted(dataclasses.replace(config, task="evaluate"))
    reached = stored(path, config)
    network = reached.backbone.for_inference()
    evaluation = config.evaluation

    def features(store: ImageStore) -> torch.Tensor:
        return embed(
            network, store, batch_size=evaluation.batch_size, device=CPU, preprocess=normalize
        )

    base = images_of(config, config.dataset, "train")
    base_features = features(base)
    mean = base_features.mean(0) if evaluation.normalize == "cl2n" else None
    scores, labels, calibrated = _calibrating(config, base, base_features, mean)
    temperature = fitted_temperature(scores, labels)
    evaluating: _OnEpisodes | _OnClosedSet | None = None
    if evaluated and is_closed(config):
        evaluating = _OnClosedSet(config, reached, features, base_features)
    elif evaluated:
        evaluating = _OnEpisodes(config, features, mean, temperature)
    run = run_of(path)
    architecture = reached.backbone.architecture
    about = {
        "version": __version__,
        "architecture": architecture.to_dict(),
        "params": architecture.params,
        "macs": architecture.macs(),
        "run": None if run is None else run.name,
        "run_id": run_id(run),
        "checkpoint": checkpoint.file_of(path).name,
        "accuracy": {} if evaluating is None else evaluating.told,
        "calibration": {
            **calibrated,
            "calibration_error": calibration_error(scores, labels, temperature),
        },
    }
    metadata = metadata_of(config, reached.backbone, mean, temperature, about)
    if evaluating is None:
        return Subject(network, metadata, base, base, {}, lambda embedded: {}, run)
    accuracies, evaluate = evaluating.accuracies, evaluating.evaluate
    return Subject(network, metadata, base, evaluating.store, accuracies, evaluate, run)


class _OnEpisodes:
    """How a network does on the episodes of its run: `told` by their list, as in export.json."""

    def __init__(
        self,
        config: Config,
        features: Callable[[ImageStore], torch.Tensor],
        mean: torch.Tensor | None,
        temperature: float,
    ) -> None:
        self.config, self.mean = config, mean
        self.task = FewShotTask(config, config.dataset)
        self.store = self.task.store
        embedded = features(self.store)
        self.accuracies = self.evaluate(embedded.numpy())
        as_evaluated = normalized(embedded, mean, config.evaluation)
        self.told: dict[str, Any] = {}
        for episodes in self.task.episodes:
            accuracy, ci95 = mean_ci95(self.accuracies[episodes.key])
            own, true = _scores(as_evaluated, episodes, config)
            self.told[episodes.key] = {
                "accuracy": accuracy,
                "ci95": ci95,
                "episodes": len(episodes),
                "calibration_error": calibration_error(own, true, temperature),
            }

    def evaluate(self, embedded: np.ndarray) -> dict[str, np.ndarray]:
        """The accuracies of the episodes with other features of the images, in percent."""
        found: dict[str, np.ndarray] = {}
        for episodes in self.task.episodes:
            one = evaluate_episodes(
                torch.from_numpy(np.ascontiguousarray(embedded)),
                episodes,
                METHODS[PROTOTYPE],
                self.config.evaluation,
                mean=self.mean,
                classes=len(self.store.class_names),
            )
            found[episodes.key] = 100 * one.accuracies
        return found


class _OnClosedSet:
    """How a network does on the images of a closed set, by the evaluation of its run.

    An image counts as an episode does: 100 where it is taken for its class, else 0. The classifier
    is no part of what is exported: what is, embeds. Raises `UserError` where there is none.
    """

    def __init__(
        self,
        config: Config,
        reached: Reached,
        features: Callable[[ImageStore], torch.Tensor],
        base: torch.Tensor,
    ) -> None:
        self.task = ClosedTask(config, config.dataset)
        check_classifier(reached, config, [self.task])
        network = reached.network
        self.head = network.head if isinstance(network, EpisodeLearner) else None
        self.store, self.train, self.base, self.features = (
            self.task.store,
            self.task.train,
            base,
            features,
        )
        self.truth = truth_of(self.store, self.train)
        self.accuracies = self.evaluate(features(self.store).numpy())
        accuracy, ci95 = mean_ci95(self.accuracies[self.task.key])
        self.told = {self.task.key: {"accuracy": accuracy, "ci95": ci95, "images": len(self.store)}}

    def evaluate(self, embedded: np.ndarray) -> dict[str, np.ndarray]:
        """By image, 100 or 0, with other features of the images; train has the network's own."""

        def known(store: ImageStore) -> torch.Tensor:
            return self.base if store is self.train else self.features(store)

        found = torch.from_numpy(np.ascontiguousarray(embedded))
        scores = self.task.scored(found, known, self.head).scores
        return {self.task.key: 100.0 * (scores.argmax(axis=1) == self.truth)}


def _calibrating(
    config: Config, base: ImageStore, features: torch.Tensor, mean: torch.Tensor | None
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Scores `[E, M, N]` and labels `[E, M]` of episodes of base classes, and which these are.

    As many ways and shots as are evaluated, or what the base classes allow.
    """
    evaluation, smallest = config.evaluation, int(base.counts().min())
    classes = len(base.class_names)
    if classes < 2 or smallest < 2:
        raise UserError(
            f"dataset={config.dataset.name}: its train split has {classes} classes, the smallest "
            f"of {smallest} images; confidences are fitted on episodes of it, which need two "
            "classes of two images. Add images."
        )
    ways = min(filled(evaluation.ways, "evaluation.ways"), classes)
    asked = filled(evaluation.shots, "evaluation.shots")
    shots = sorted({min(shots, smallest - 1) for shots in asked})
    queries = filled(evaluation.queries, "evaluation.queries")
    found = []
    for count in shots:
        episodes = sample_episodes(
            base.class_indices,
            dataset=config.dataset.name,
            split="train",
            ways=ways,
            shots=count,
            queries=min(queries, smallest - count),
            episodes=CALIBRATING,
            seed=derive(evaluation.seed, "calibration"),
        )
        found.append(_scores(normalized(features, mean, evaluation), episodes, config))
    scores = np.concatenate([each.reshape(-1, ways) for each, _ in found])
    labels = np.concatenate([each.reshape(-1) for _, each in found])
    about = {"split": "train", "ways": ways, "shots": shots, "episodes": CALIBRATING}
    return scores, labels, about


def _scores(
    features: torch.Tensor, episodes: EpisodeList, config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """Scores `[E, M, N]` by prototypes of normalised features, and the ways `[E, M]`."""
    support = features[torch.tensor(episodes.support)]
    query = features[torch.tensor(episodes.query)].flatten(1, 2)
    scores = METHODS[PROTOTYPE].scores(support, query, config.evaluation)
    return scores.double().numpy(), episodes.labels
