from __future__ import annotations

import numpy as np
import pytest

from sseg_nase.errors import UserError
from sseg_nase.search.objectives import (
    Objectives,
    crowding,
    front,
    hypervolume,
    knee,
    non_dominated_sort,
    soft_target,
    weighted_sum,
)


def test_directions_and_caps() -> None:
    wanted = Objectives({"accuracy": "max", "macs": "min"}, {"latency": 10, "energy": 4})
    scores = {"accuracy": 90.0, "macs": 5.0, "latency": 15.0, "energy": 4.0}
    assert wanted.value(scores) == 90.0
    assert wanted.losses(scores) == (-90.0, 5.0)
    assert wanted.violation(scores) == pytest.approx(0.5)
    assert wanted.needed == ("accuracy", "macs", "latency", "energy")
    assert Objectives({"loss": "min"}).value({"loss": 2.0}) == -2.0
    assert Objectives(**wanted.to_json()) == wanted
    for wrong, said in [({}, "needs a goal"), ({"a": "up"}, "'up' is neither max nor min")]:
        with pytest.raises(UserError, match=said):
            Objectives(wrong)


def ranks_by_hand(losses: np.ndarray) -> list[int]:
    left, ranks, rank = set(range(len(losses))), [0] * len(losses), 0
    while left:
        now = {
            i
            for i in left
            if not any(
                (losses[j] <= losses[i]).all() and (losses[j] < losses[i]).any() for j in left
            )
        }
        for i in now:
            ranks[i] = rank
        left, rank = left - now, rank + 1
    return ranks


@pytest.mark.parametrize("goals", [1, 2, 3, 4])
def test_ranks_and_fronts_are_those_of_the_definition(goals: int) -> None:
    rng = np.random.default_rng(goals)
    for _ in range(10):
        losses = rng.integers(0, 6, (25, goals)).astype(float)
        assert non_dominated_sort(losses).tolist() == ranks_by_hand(losses)
        members = {tuple(row) for row in losses[np.array(ranks_by_hand(losses)) == 0]}
        found = front(losses)
        assert {tuple(row) for row in losses[found]} == members
        assert len(found) == len(members)  # of equal rows one


def test_feasible_beats_infeasible_and_less_violation_more() -> None:
    losses = np.array([[9.0, 9.0], [1.0, 1.0], [0.0, 0.0], [5.0, 5.0]])
    ranks = non_dominated_sort(losses, np.array([0.0, 0.1, 0.2, 0.0]))
    assert ranks.tolist() == [1, 2, 3, 0]


def test_crowding_is_infinite_at_the_ends_and_sums_gaps_between() -> None:
    losses = np.array([[0.0, 10.0], [1.0, 4.0], [4.0, 2.0], [10.0, 0.0]])
    assert crowding(losses).tolist() == pytest.approx(
        [np.inf, 4 / 10 + 8 / 10, 9 / 10 + 4 / 10, np.inf]
    )
    assert crowding(np.array([[1.0, 5.0]])).tolist() == [np.inf]
    flat = np.column_stack([np.arange(4.0), np.ones(4)])
    assert np.isfinite(crowding(flat)[1:3]).sum() >= 1


def volume_by_counting(losses: np.ndarray, side: int) -> float:
    cells = np.stack(np.meshgrid(*[np.arange(side)] * losses.shape[1], indexing="ij"), -1)
    covered = (losses[:, None] <= cells.reshape(1, -1, losses.shape[1])).all(-1).any(0)
    return float(covered.sum())


@pytest.mark.parametrize("goals", [1, 2, 3])
def test_the_hypervolume_is_exact(goals: int) -> None:
    """On whole numbers it is the number of unit cells that are dominated."""
    rng = np.random.default_rng(goals)
    for count in (1, 2, 5, 20):
        for _ in range(5):
            losses = rng.integers(0, 9, (count, goals)).astype(float)
            assert hypervolume(losses, [8.0] * goals) == volume_by_counting(losses, 8)
    assert hypervolume(np.empty((0, goals)), [1.0] * goals) == 0.0
    assert hypervolume(np.full((1, goals), 2.0), [1.0] * goals) == 0.0
    with pytest.raises(UserError, match="up to 3 goals; there are 4"):
        hypervolume(np.zeros((1, 4)), [1.0] * 4)


def test_the_knee_is_farthest_below_the_line_between_the_ends() -> None:
    losses = np.array([[0.0, 100.0], [1.0, 30.0], [5.0, 20.0], [10.0, 0.0]])
    assert knee(losses) == 1
    assert knee(losses[:1]) == 0
    with pytest.raises(UserError, match="2 goals; there are 3"):
        knee(np.zeros((2, 3)))


def test_scalarisations() -> None:
    assert weighted_sum(np.array([[1.0, 2.0], [3.0, 4.0]]), [2, 1]).tolist() == [4.0, 10.0]
    assert soft_target(80.0, 50.0, 50.0) == 80.0
    assert soft_target(80.0, 100.0, 50.0) == pytest.approx(80 * 2**-0.07)
