"""From scores to probabilities: one temperature, fitted by likelihood, and how far it is off."""

from __future__ import annotations

import math

import numpy as np

from sseg_nase.runtime.rule import softmax

LEAST, MOST = 1e-4, 1e4  # in units of the spread of the scores
STEPS = 80  # of the golden section, far below what float64 tells apart
BINS = 15


def log_loss(scores: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Mean −log of the probability of the true class; scores `[..., N]`, labels `[...]`."""
    scaled = scores / temperature
    scaled = scaled - scaled.max(axis=-1, keepdims=True)
    own = np.take_along_axis(scaled, labels[..., None], axis=-1)[..., 0]
    return float((np.log(np.exp(scaled).sum(axis=-1)) - own).mean())


def fitted_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T > 0 with the least `log_loss` of softmax(scores / T); Guo et al. 2017.

    The loss is convex in 1 / T, so it has one valley in log T, which a golden section finds.
    """
    spread = float(scores.std(axis=-1).mean()) or 1.0
    low, high = math.log(LEAST * spread), math.log(MOST * spread)
    ratio = (math.sqrt(5) - 1) / 2

    def loss(at: float) -> float:
        return log_loss(scores, labels, math.exp(at))

    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = loss(a), loss(b)
    for _ in range(STEPS):
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = loss(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = loss(b)
    return math.exp((low + high) / 2)


def calibration_error(scores: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Expected calibration error in [0, 1]: mean |accuracy − confidence| over 15 equal bins.

    Weighted by how many fall into each (Naeini et al. 2015).
    """
    probabilities = softmax(scores, temperature)
    confidence = probabilities.max(axis=-1).reshape(-1)
    right = (probabilities.argmax(axis=-1) == labels).reshape(-1)
    which = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(which, weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))
