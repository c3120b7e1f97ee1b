"""Ridge regression: the line that every other predictor has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sseg_nase.search.predictors.base import Predict, features
from sseg_nase.spaces.choice import Point
from sseg_nase.spaces.space import Space


@dataclass(frozen=True)
class Ridge:
    """w = (XᵀX + penalty · I)⁻¹ Xᵀy on centred features. The spread is that of its residuals."""

    penalty: float = 1.0
    encoding: str = "one_hot"

    def fit(
        self, space: Space, points: Sequence[Point], targets: np.ndarray, seed: int = 0
    ) -> Predict:
        """Learn from `points` with their `targets` `[n]`."""
        X, y = features(space, points, self.encoding), np.asarray(targets, dtype=float)
        middle, level = X.mean(0), y.mean()
        X = X - middle
        weights = np.linalg.solve(X.T @ X + self.penalty * np.eye(X.shape[1]), X.T @ (y - level))
        spread = float(np.std(y - level - X @ weights))

        def predict(others: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
            mean = (features(space, others, self.encoding) - middle) @ weights + level
            return mean, np.full(len(mean), spread)

        return predict
