"""The few-shot rule of `task=evaluate` in NumPy: normalisation, prototypes and scores.

Each function equals the one of its name in `sseg_nase.fewshot.classifiers`; tests hold them
together. Computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

SMALLEST = 1e-12  # a length below it is taken as this, as torch's `normalize` does


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), SMALLEST)
    return unit


def _centred(features: np.ndarray, mean: np.ndarray | None) -> np.ndarray:
    assert mean is not None, "CL2N needs the mean of the base split"
    return _unit(features - mean)


NORMALIZATIONS: Mapping[str, Callable[[np.ndarray, np.ndarray | None], np.ndarray]] = {
    "cl2n": _centred,
    "l2n": lambda features, mean: _unit(features),
    "none": lambda features, mean: features,
}


def cosine(prototypes: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Cosine similarity of `[N, D]` and `[M, D]`: `[M, N]` in [-1, 1]."""
    similarity: np.ndarray = _unit(query) @ _unit(prototypes).T
    return similarity


def euclidean(prototypes: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Negative squared distance of `[N, D]` and `[M, D]`: `[M, N]`, ≤ 0."""
    centre = prototypes.mean(axis=0)
    prototypes, query = prototypes - centre, query - centre
    q, p = (np.square(rows).sum(axis=1) for rows in (query, prototypes))
    nearness: np.ndarray = np.minimum(2 * query @ prototypes.T - q[:, None] - p[None], 0)
    return nearness


METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cosine": cosine,
    "euclidean": euclidean,
}


def softmax(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities of `scores / temperature` along the last axis."""
    scaled = (scores - scores.max(axis=-1, keepdims=True)) / temperature
    raised = np.exp(scaled)
    probabilities: np.ndarray = raised / raised.sum(axis=-1, keepdims=True)
    return probabilities
