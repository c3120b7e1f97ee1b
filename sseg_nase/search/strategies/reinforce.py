"""REINFORCE (Williams, 1992) with one table of probabilities per choice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sseg_nase.errors import UserError
from sseg_nase.search.log import Candidate, Log
from sseg_nase.search.strategies.ask import Ask
from sseg_nase.spaces.choice import Choice, Value
from sseg_nase.spaces.space import Space

STEPS = 10  # of a continuum
DRAWS = 100  # of a point within the caps


@dataclass(frozen=True)
class Reinforce:
    """∇θ = Σ ∇ log π(value) · (reward − b), b ← decay · b + (1 − decay) · reward; Adam ascends.

    Each ask learns the policy from the whole log, in the order of numbers: of each point from the
    choices that say anything there. Of kinds of networks one is drawn first, and then a network of
    it within the caps; else kinds would be as frequent as their networks are small.
    """

    learning_rate: float = 0.1
    baseline_decay: float = 0.9

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate={self.learning_rate} must be above 0.")
        if not 0 <= self.baseline_decay < 1:
            raise UserError(f"baseline_decay={self.baseline_decay} must be from 0 to below 1.")

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return the next candidates, sampled from the policy."""
        ask = Ask(space, log, seed)
        values = [choice.grid(STEPS) for choice in space.choices]
        shares = self.policy(space, log)

        kinds = space.kinds

        def draw() -> dict[str, Value]:
            kind: Value | None = None
            for _ in range(DRAWS * max(1, len(kinds))):
                point = {
                    choice.name: ask.rng.choices(options, share[: len(options)])[0]
                    for choice, options, share in zip(space.choices, values, shares, strict=True)
                }
                if kind is None and (not kinds or space.kind(point) in kinds):
                    kind = space.kind(point)
                if space.kind(point) == kind and space.allows(point):
                    return point
            of_kind = space if kind is None else space.part(space.levels, [kind])
            return of_kind.sample(ask.rng)

        while len(ask) < count and (ask.try_often(draw, "policy") or ask.suggest_any()):
            pass
        return ask.candidates

    def policy(self, space: Space, log: Log) -> np.ndarray:
        """Return the probabilities `[choices, values]`; rows of fewer values end in zeros."""
        sizes = [len(choice.grid(STEPS)) for choice in space.choices]
        logits = np.where(np.arange(max(sizes)) < np.array(sizes)[:, None], 0.0, -np.inf)
        theta, first, second = (np.zeros_like(logits) for _ in range(3))
        rows, baseline = np.arange(len(sizes)), 0.0
        for step, scored in enumerate(log.usable(), start=1):
            reward = log.value(scored)
            baseline = reward if step == 1 else baseline
            point = scored.candidate.point
            gradient = -_softmax(logits + theta)
            gradient[rows, [_place(c, point[c.name]) for c in space.choices]] += 1.0
            active = set(space.active(point))
            gradient[[choice.name not in active for choice in space.choices]] = 0.0
            gradient *= reward - baseline
            baseline = self.baseline_decay * baseline + (1 - self.baseline_decay) * reward
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            rate = self.learning_rate / (1 - 0.9**step)
            theta = theta + rate * first / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        return _softmax(logits + theta)


def _place(choice: Choice, value: Value) -> int:
    """Return the place of a value, or of the nearest one, among the choice's values."""
    options = choice.grid(STEPS)
    if value in options:
        return options.index(value)
    code = choice.encode(value)
    return min(
        range(len(options)),
        key=lambda at: sum(
            abs(a - b) for a, b in zip(choice.encode(options[at]), code, strict=True)
        ),
    )


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(1, keepdims=True)
    return shares
