"""A Gaussian process on points, with the kernel's setting and the noise by marginal likelihood.

The length of the Hamming kernel has a prior, which few results do not outweigh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular

from sseg_nase.errors import UserError
from sseg_nase.search.predictors.base import Predict
from sseg_nase.search.predictors.kernels import KERNELS, PRIORS
from sseg_nase.spaces.choice import Point
from sseg_nase.spaces.space import Space

NOISES = (1e-3, 1e-2, 0.1, 0.3, 1.0)  # variances, beside a signal variance of 1


@dataclass(frozen=True)
class GaussianProcess:
    """`kernel`: `hamming`, for any space, or `wl`, for spaces with graphs."""

    kernel: str = "hamming"

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise UserError(f"kernel={self.kernel!r} is none of {', '.join(KERNELS)}.")

    def fit(
        self, space: Space, points: Sequence[Point], targets: np.ndarray, seed: int = 0
    ) -> Predict:
        """Learn from `points` with their `targets` `[n]`; `seed` plays no part."""
        y = np.asarray(targets, dtype=float)
        level, scale = y.mean(), y.std() or 1.0
        y = (y - level) / scale
        kernel = KERNELS[self.kernel]
        setting, lower = _most_likely(kernel(space, points, points), y, PRIORS[self.kernel](space))
        alpha = cho_solve((lower, True), y)
        signal = max(float(y @ alpha) / len(y), 1e-12)

        def predict(others: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
            across = kernel(space, points, others)[setting]
            mean = across.T @ alpha
            seen = (solve_triangular(lower, across, lower=True) ** 2).sum(0)
            variance = signal * np.maximum(1.0 - seen, 1e-12)
            return mean * scale + level, np.sqrt(variance) * scale

        return predict


def _most_likely(
    kernels: Sequence[np.ndarray], y: np.ndarray, priors: np.ndarray
) -> tuple[int, np.ndarray]:
    """Return which kernel explains `y` best, and the Cholesky factor of it with its noise.

    `priors`: the log density of each, before there is any `y`.

    The signal variance yᵀK⁻¹y / n, which maximises the likelihood, is put in.
    """
    best, found = -np.inf, None
    for setting, kernel in enumerate(kernels):
        for noise in NOISES:
            try:
                lower = cholesky(kernel + noise * np.eye(len(y)), lower=True)
            except LinAlgError:  # points that are alike, and too little noise
                continue
            fit = float(y @ cho_solve((lower, True), y)) / len(y)
            likelihood = -0.5 * len(y) * np.log(max(fit, 1e-12)) - np.log(np.diag(lower)).sum()
            if (credible := likelihood + priors[setting]) > best:
                best, found = credible, (setting, lower)
    assert found is not None, "a kernel with a noise of 1 is positive definite"
    return found
