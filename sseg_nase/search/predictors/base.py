"""What a predictor is, and how well its order agrees with the true one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from sseg_nase.errors import UserError
from sseg_nase.spaces.choice import Point
from sseg_nase.spaces.space import Space

# Points -> mean [n] and standard deviation [n] of their targets.
Predict = Callable[[Sequence[Point]], tuple[np.ndarray, np.ndarray]]


class Predictor(Protocol):
    """The settings of a model of scores."""

    def fit(
        self, space: Space, points: Sequence[Point], targets: np.ndarray, seed: int = 0
    ) -> Predict:
        """Learn from `points` with their `targets` `[n]`, and return what predicts."""


class RankCorrelation(NamedTuple):
    """Agreement of two orders: from −1, reversed, over 0, unrelated, to 1, the same."""

    spearman: float
    kendall: float


def features(space: Space, points: Sequence[Point], encoding: str) -> np.ndarray:
    """Return the points in a numeric encoding of their space, `[n, f]`."""
    encode = space.encoding(encoding).encode
    return np.array([encode(point) for point in points], dtype=float)


def normal_scores(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return `values` `[n]` as quantiles of a standard normal: their order stays, no tail does.

    Accuracies have a long lower tail, which a model would otherwise spend itself on.
    """
    from scipy.special import ndtri
    from scipy.stats import rankdata

    scores: np.ndarray = ndtri((rankdata(values) - 0.5) / len(values))
    return scores


def correlate(predicted: np.ndarray, true: np.ndarray) -> RankCorrelation:
    """Return the rank correlations of `[n]` with `[n]`; 0 where one of them is constant."""
    from scipy.stats import kendalltau, spearmanr

    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return RankCorrelation(0.0, 0.0)
    spearman, kendall = spearmanr(predicted, true), kendalltau(predicted, true)
    return RankCorrelation(float(spearman.statistic), float(kendall.statistic))


def rank_correlation(
    predictor: Predictor,
    space: Space,
    points: Sequence[Point],
    targets: np.ndarray,
    folds: int = 5,
    seed: int = 0,
) -> RankCorrelation:
    """Return the rank correlation by cross-validation, the mean over `folds`.

    The predictor learns `normal_scores` of the targets, as strategies have it do. No point takes
    part in predicting itself. Raises `UserError` for folds of fewer than two points.
    """
    targets = np.asarray(targets, dtype=float)
    if not 2 <= folds <= len(points) // 2:
        raise UserError(
            f"folds={folds} must be from 2 to {len(points) // 2}, half of the {len(points)} points."
        )
    parts = np.array_split(np.random.default_rng(seed).permutation(len(points)), folds)
    found = []
    for part in parts:
        rest = np.setdiff1d(np.arange(len(points)), part)
        predict = predictor.fit(
            space, [points[at] for at in rest], normal_scores(targets[rest]), seed
        )
        found.append(correlate(predict([points[at] for at in part])[0], targets[part]))
    return RankCorrelation(*(float(mean) for mean in np.mean(found, axis=0)))
