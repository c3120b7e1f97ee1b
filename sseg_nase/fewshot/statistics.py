"""Means, confidence intervals and paired comparisons over episodes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class PairedDifference(NamedTuple):
    """Mean of a − b with its 95 % confidence interval (±) and the paired t-test's p-value."""

    mean: float
    ci95: float
    p_value: float


def mean_ci95(x: np.ndarray) -> tuple[float, float]:
    """Return the mean of `x` `[n]`, n ≥ 2, and 1.96·s/√n (s with n − 1), in the unit of `x`."""
    x = np.asarray(x, dtype=np.float64)
    assert x.ndim == 1
    assert len(x) >= 2
    return float(x.mean()), float(1.96 * x.std(ddof=1) / np.sqrt(len(x)))


def paired_difference(a: np.ndarray, b: np.ndarray) -> PairedDifference:
    """Compare two methods on the same episode list: `a` and `b` `[n]`, n ≥ 2, in their unit.

    The p-value is two-sided. Differences that are all the same leave nothing to test: it is then
    1 where they are zero and 0 where they are not.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a.shape == b.shape
    difference = a - b
    mean, ci95 = mean_ci95(difference)
    if np.ptp(difference) == 0:
        return PairedDifference(mean, ci95, float(mean == 0))
    from scipy import stats  # half a second to import, and only comparisons need it

    return PairedDifference(mean, ci95, float(stats.ttest_rel(a, b).pvalue))
