"""An ensemble of small neural networks, all trained at once in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sseg_nase.errors import UserError
from sseg_nase.search.predictors.base import Predict, features
from sseg_nase.spaces.choice import Point
from sseg_nase.spaces.space import Space


@dataclass(frozen=True)
class Ensemble:
    """`members` networks with `hidden` ReLU layers of `width`, which differ in their first weights.

    Trained on the mean absolute error with Adam over `steps` passes. Mean and spread are those over
    the members (White et al., BANANAS, AAAI 2021).
    """

    members: int = 5
    hidden: int = 2
    width: int = 32
    steps: int = 150
    learning_rate: float = 0.01
    weight_decay: float = 1e-3
    encoding: str = "one_hot"

    def __post_init__(self) -> None:
        for name in ("members", "hidden", "width", "steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1.")

    def fit(
        self, space: Space, points: Sequence[Point], targets: np.ndarray, seed: int = 0
    ) -> Predict:
        """Learn from `points` with their `targets` `[n]`; `seed` gives the first weights."""
        X, y = features(space, points, self.encoding), np.asarray(targets, dtype=float)
        middle, level, scale = X.mean(0), y.mean(), y.std() or 1.0
        weights = self._train(X - middle, (y - level) / scale, np.random.default_rng(seed))

        def predict(others: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
            outputs = _forward(features(space, others, self.encoding) - middle, weights)[-1]
            each = outputs[:, :, 0] * scale + level
            return each.mean(0), each.std(0)

        return predict

    def _train(
        self, X: np.ndarray, y: np.ndarray, rng: np.random.Generator
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return weights `[members, in, out]` and biases `[members, 1, out]` of every layer."""
        sizes = [X.shape[1], *[self.width] * self.hidden, 1]
        flat = []
        for into, out in pairwise(sizes):
            flat.append(rng.normal(0, np.sqrt(2 / into), (self.members, into, out)))
            flat.append(np.zeros((self.members, 1, out)))
        first, second = [np.zeros_like(w) for w in flat], [np.zeros_like(w) for w in flat]
        for step in range(1, self.steps + 1):
            gradients = _gradients(X, y, _layers(flat))
            rate = self.learning_rate * (1 + np.cos(np.pi * step / self.steps)) / 2
            for at, gradient in enumerate(gradients):
                first[at] += 0.1 * (gradient - first[at])
                second[at] += 0.001 * (gradient**2 - second[at])
                size = np.sqrt(second[at] / (1 - 0.999**step)) + 1e-8
                flat[at] -= rate * (first[at] / (1 - 0.9**step) / size)
                if at % 2 == 0:
                    flat[at] *= 1 - rate * self.weight_decay
        return _layers(flat)


def _layers(flat: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _forward(X: np.ndarray, layers: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Return the input and every layer's output, `[members, n, width]`; the last is linear."""
    outputs = [np.broadcast_to(X, (len(layers[0][0]), *X.shape))]
    for number, (weight, bias) in enumerate(layers, start=1):
        linear = outputs[-1] @ weight + bias
        outputs.append(linear if number == len(layers) else np.maximum(linear, 0.0))
    return outputs


def _gradients(
    X: np.ndarray, y: np.ndarray, layers: list[tuple[np.ndarray, np.ndarray]]
) -> list[np.ndarray]:
    """Return the gradients of each member's mean absolute error, in the order of `flat`."""
    outputs = _forward(X, layers)
    back = np.sign(outputs[-1] - y[None, :, None]) / len(y)
    found: list[np.ndarray] = []
    for number in reversed(range(len(layers))):
        found = [outputs[number].swapaxes(1, 2) @ back, back.sum(1, keepdims=True), *found]
        back = (back @ layers[number][0].swapaxes(1, 2)) * (outputs[number] > 0)
    return found
