"""What a search wants: scores with a direction, hard caps, and the geometry of several goals.

Every function below `Objectives` works on losses `[n, d]`, all to be minimised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sseg_nase.errors import UserError

DIRECTIONS = {"max": -1.0, "min": 1.0}


@dataclass(frozen=True)
class Objectives:
    """Goals by name, each `max` or `min`, and caps on scores that only an evaluation can tell.

    The first goal is the one that strategies for a single objective follow. Caps on what can be
    counted without weights (params, macs) belong to the space: see `Space.under`.
    """

    goals: Mapping[str, str]
    caps: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.goals:
            raise UserError("A search needs a goal, such as {'accuracy': 'max'}.")
        for name, direction in self.goals.items():
            if direction not in DIRECTIONS:
                raise UserError(f"Goal {name}: {direction!r} is neither max nor min.")

    @property
    def needed(self) -> tuple[str, ...]:
        """The scores that an evaluation must give."""
        return tuple(dict.fromkeys((*self.goals, *self.caps)))

    def value(self, scores: Mapping[str, float]) -> float:
        """Return the first goal's score, turned so that more is better."""
        name, direction = next(iter(self.goals.items()))
        return -DIRECTIONS[direction] * scores[name]

    def losses(self, scores: Mapping[str, float]) -> tuple[float, ...]:
        """Return every goal's score, turned so that less is better."""
        return tuple(DIRECTIONS[way] * scores[name] for name, way in self.goals.items())

    def violation(self, scores: Mapping[str, float]) -> float:
        """Return by how much the caps are exceeded in all, relative to each cap; 0 within them."""
        return sum(max(0.0, scores[n] - cap) / (abs(cap) or 1.0) for n, cap in self.caps.items())

    def to_json(self) -> dict[str, Any]:
        """Return plain data, from which `Objectives(**data)` is the same again."""
        return {"goals": dict(self.goals), "caps": dict(self.caps)}


def weighted_sum(losses: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Return one number per row of `losses` `[n, d]`. It finds only convex parts of a front."""
    sums: np.ndarray = np.asarray(losses, dtype=float) @ np.asarray(weights, dtype=float)
    return sums


def soft_target(value: float, cost: float, target: float, exponent: float = -0.07) -> float:
    """Return value · (cost / target)^exponent, to be maximised (MnasNet, Tan et al., CVPR 2019)."""
    return value * float((cost / target) ** exponent)


def dominates(losses: np.ndarray, violations: np.ndarray | None = None) -> np.ndarray:
    """Return `[n, n]`: whether row i dominates row j.

    Feasible beats infeasible, less violation beats more, else no loss is larger and one is smaller
    (Deb et al., NSGA-II, 2002).
    """
    losses = np.asarray(losses, dtype=float)
    one, other = losses[:, None, :], losses[None, :, :]
    better = np.logical_and((one <= other).all(-1), (one < other).any(-1))
    if violations is None:
        return better
    excess = np.asarray(violations, dtype=float)
    less, same = excess[:, None] < excess[None, :], excess[:, None] == excess[None, :]
    dominated: np.ndarray = less | (same & better)
    return dominated


def front(losses: np.ndarray) -> np.ndarray:
    """Return the indices of the rows that no other dominates, by their first loss.

    Of equal rows the first stays.
    """
    losses = np.asarray(losses, dtype=float)
    kept: list[int] = []
    # Sorted, a row can only be dominated by one before it.
    for row in np.lexsort(losses.T[::-1]):
        if not kept or not (losses[kept] <= losses[row]).all(-1).any():
            kept.append(int(row))
    return np.array(kept, dtype=int)


def non_dominated_sort(losses: np.ndarray, violations: np.ndarray | None = None) -> np.ndarray:
    """Return the rank of every row: 0 for the front, 1 for the front without rank 0, and so on."""
    over = dominates(losses, violations)
    waiting = over.sum(0)
    ranks = np.full(len(over), -1)
    rank = 0
    while (ranks < 0).any():
        now = np.flatnonzero((waiting == 0) & (ranks < 0))
        ranks[now] = rank
        waiting = waiting - over[now].sum(0)
        rank += 1
    return ranks


def crowding(losses: np.ndarray) -> np.ndarray:
    """Return the crowding distance of the rows of one front: ∞ at the ends, gaps in [0, 1] summed.

    A goal in which all rows are equal counts for nothing.
    """
    losses = np.asarray(losses, dtype=float)
    n, d = losses.shape
    distance = np.zeros(n)
    for goal in range(d):
        order = np.argsort(losses[:, goal], kind="stable")
        at = losses[order, goal]
        span = at[-1] - at[0]
        distance[order[[0, -1]]] = np.inf
        if span > 0:
            distance[order[1:-1]] += (at[2:] - at[:-2]) / span
    return distance


def hypervolume(losses: np.ndarray, reference: Sequence[float]) -> float:
    """Return the volume that the rows dominate up to `reference`; exact, for 1, 2 or 3 goals.

    A row that is not better than the reference in every goal adds nothing.
    """
    bound = np.asarray(reference, dtype=float)
    losses = np.asarray(losses, dtype=float).reshape(-1, len(bound))
    if len(bound) > 3:
        raise UserError(f"The hypervolume is exact for up to 3 goals; there are {len(bound)}.")
    inside = losses[(losses < bound).all(-1)]
    return _volume(inside, bound) if len(inside) else 0.0


def _volume(losses: np.ndarray, bound: np.ndarray) -> float:
    if len(bound) == 1:
        return float(bound[0] - losses.min())
    if len(bound) == 2:  # the strips under a staircase
        order = np.lexsort((losses[:, 1], losses[:, 0]))
        height = np.minimum.accumulate(losses[order, 1])
        ends = np.append(losses[order, 0][1:], bound[0])
        return float(((ends - losses[order, 0]) * (bound[1] - height)).sum())
    order = np.argsort(losses[:, 2], kind="stable")  # slabs, each with the plane of those below
    levels = np.append(losses[order, 2], bound[2])
    return sum(
        float(levels[at + 1] - levels[at]) * _volume(losses[order[: at + 1], :2], bound[:2])
        for at in range(len(order))
        if levels[at + 1] > levels[at]
    )


def knee(losses: np.ndarray) -> int:
    """Return the row of a two-goal front that is farthest below the line between its ends.

    Both goals count from 0 to 1 over the front. With one or two rows it is the first.
    """
    losses = np.asarray(losses, dtype=float)
    if losses.shape[1] != 2:
        raise UserError(f"A knee is defined for 2 goals; there are {losses.shape[1]}.")
    low, span = losses.min(0), np.ptp(losses, axis=0)
    scaled = (losses - low) / np.where(span > 0, span, 1.0)
    return int(np.argmin(scaled.sum(1)))
