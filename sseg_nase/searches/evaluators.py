"""Evaluators that train nothing, from the configuration: proxy, predicted.

Neither sees a test image: zero-cost scores take a batch of `train`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sseg_nase.config.groups.evaluator import OfPredictor, OfProxies
from sseg_nase.config.schema import Config
from sseg_nase.data.random import derive
from sseg_nase.errors import UserError
from sseg_nase.files import write_text
from sseg_nase.rundir.names import CANDIDATES
from sseg_nase.search import Log, Predicted, Proxy, predictors
from sseg_nase.search.evaluators.tabular import TEST
from sseg_nase.search.loop import Strategy
from sseg_nase.search.predictors import Predictor
from sseg_nase.search.strategies.screened import Screened, ScreenedByPredictor
from sseg_nase.searches.analysis import fullest
from sseg_nase.searches.folder import SearchFolder
from sseg_nase.spaces import NetworkSpace
from sseg_nase.spaces.space import Space

if TYPE_CHECKING:
    from torch import Tensor

PREDICTORS: Mapping[str, Callable[[], Predictor]] = {
    "ridge": predictors.Ridge,
    "gp": predictors.GaussianProcess,
    "mlp": predictors.Ensemble,
    "boosting": predictors.GradientBoosting,
}
COUNTED = ("params", "macs")  # what a space says of a point without a network
SCREENING = {"batch": 64, "draws": 1}  # as evaluator=proxy has them
LEARNT_FROM = "learnt_from.jsonl"


def refuse_test_scores(names: Mapping[str, object], key: str) -> None:
    """Raise `UserError` for a score of test classes among the goals or the caps."""
    for name in names:
        if TEST.search(name):
            raise UserError(
                f"{key}: {name} is a test score, which a search must not see. Evaluate its answer "
                "afterwards with task=evaluate evaluation.split=test."
            )


def of_networks(config: Config, space: Space, key: str) -> NetworkSpace:
    """Return the space. Raises `UserError` where its points describe no network."""
    if not isinstance(space, NetworkSpace):
        raise UserError(
            f"{key}: the points of space={config.space.name} describe no network; choose a space "
            "of networks, such as space=nb201."
        )
    return space


def check_proxies(config: Config) -> None:
    """Raise `UserError` for a zero-cost score that there is not."""
    from sseg_nase.search.proxies import named_score

    for name in config.evaluator.proxies if isinstance(config.evaluator, OfProxies) else ():
        named_score(name)


def batch_of(config: Config, size: int) -> tuple[Tensor, Tensor]:
    """Return `size` images `[B, C, S, S]` in [-1, 1] of train, with labels `[B]` from 0 upwards.

    As many of every class as possible, no image twice; the same for the same seed. Raises
    `UserError` where train has fewer different ones.
    """
    import torch

    from sseg_nase.data.views import normalize
    from sseg_nase.stages import images_of

    store = images_of(config, config.dataset, "train")
    rng = np.random.default_rng(derive(config.seed, "zero-cost batch"))
    _, once = np.unique(store.hashes, return_index=True)
    mixed = rng.permutation(once)
    labels = store.labels[mixed]
    # The first of every class, then the second, and so on.
    order = np.argsort(labels, kind="stable")
    place = np.empty(len(labels), dtype=int)
    starts = np.searchsorted(labels[order], labels[order])
    place[order] = np.arange(len(labels)) - starts
    chosen = mixed[np.argsort(place, kind="stable")][:size]
    if len(chosen) < size:
        raise UserError(
            f"A batch of {size} images for zero-cost scores: train of dataset="
            f"{config.dataset.name} has {len(chosen)} different ones. Set evaluator.batch to as "
            "many at most."
        )
    _, classes = np.unique(store.labels[chosen], return_inverse=True)
    return normalize(store.batch(chosen)).contiguous(), torch.from_numpy(classes).long()


def proxy(config: Config, space: Space) -> Proxy:
    """Return the evaluator of zero-cost scores. Raises `UserError`."""
    asked = config.evaluator
    assert isinstance(asked, OfProxies)
    networks = of_networks(config, space, "evaluator=proxy")
    images, labels = batch_of(config, asked.batch)
    return Proxy(networks, asked.proxies, images, labels, range(asked.draws))


def learnt_from(config: Config, choices: Mapping[str, str], folder: Path | None = None) -> Log:
    """Return the log that `evaluator=predicted` learns from.

    Once a search has begun in `folder` it is a copy there: it stays the same, whatever becomes of
    the other search. Raises `UserError` for a search in another space.
    """
    asked = config.evaluator
    assert isinstance(asked, OfPredictor)
    copy = None if folder is None else folder / LEARNT_FROM
    if copy is not None and copy.exists():
        return Log.read(copy)
    path = SearchFolder(Path(asked.learnt_from)).path / CANDIDATES
    log = Log.read(path)
    if log.about.get("choices") != dict(choices):
        raise UserError(
            f"evaluator.learnt_from={asked.learnt_from}: that search was in another space, or with "
            "other settings of it. Name one with the same space and choices."
        )
    refuse_test_scores(log.objectives.goals, f"evaluator.learnt_from={asked.learnt_from}")
    if copy is not None:
        text = path.read_text(encoding="utf-8")
        write_text(copy, text[: text.rindex("\n") + 1])
        return Log.read(copy)
    return log


def predicted(config: Config, space: Space, known: Log) -> Predicted:
    """Return the evaluator that asks a predictor. Raises `UserError`."""
    assert isinstance(config.evaluator, OfPredictor)
    predictor = PREDICTORS[config.evaluator.predictor]()
    return Predicted(space, predictor, known, config.seed, fullest(known))


def screened(strategy: Strategy, config: Config, space: Space) -> Strategy:
    """Return the strategy behind the screen that `search.screen` names. Raises `UserError`."""
    name, factor = config.search.screen, config.search.screen_factor
    if name is None:
        return strategy
    if name in PREDICTORS:
        return ScreenedByPredictor(strategy, PREDICTORS[name](), factor)
    if name in COUNTED:
        return Screened(strategy, lambda point: float(space.costs(point)[name]), factor)
    from sseg_nase.search.proxies import SCORES, measure

    if name not in SCORES:
        known = ", ".join([*SCORES, *PREDICTORS])
        raise UserError(
            f"search.screen={name}: it is no zero-cost score and no predictor. There are {known}."
        )
    networks = of_networks(config, space, f"search.screen={name}")
    images, labels = batch_of(config, SCREENING["batch"])

    def score(point: Mapping[str, int | float | str]) -> float:
        found = measure([name], networks.describe(point), images, labels, range(SCREENING["draws"]))
        return found[name]

    return Screened(strategy, score, factor)
