"""Gradient boosting of regression trees, from scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sseg_nase.search.predictors.base import Predict, features
from sseg_nase.spaces.choice import Point
from sseg_nase.spaces.space import Space


@dataclass(frozen=True)
class GradientBoosting:
    """Shallow trees, each on what the ones before left over. It gives no spread: that is 0."""

    trees: int = 200
    depth: int = 3
    learning_rate: float = 0.1
    encoding: str = "one_hot"

    def fit(
        self, space: Space, points: Sequence[Point], targets: np.ndarray, seed: int = 0
    ) -> Predict:
        """Learn from `points` with their `targets` `[n]`."""
        from sklearn.ensemble import GradientBoostingRegressor

        model = GradientBoostingRegressor(
            n_estimators=self.trees,
            max_depth=self.depth,
            learning_rate=self.learning_rate,
            subsample=0.8,
            random_state=seed,
        )
        model.fit(features(space, points, self.encoding), np.asarray(targets, dtype=float))

        def predict(others: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
            mean = model.predict(features(space, others, self.encoding))
            return mean, np.zeros(len(mean))

        return predict
