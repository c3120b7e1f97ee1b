from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sseg_nase.statistics import crossed_difference, holm, mean_ci95, mean_t95, paired_difference


def test_mean_and_ci_equal_the_written_out_formula() -> None:
    x = np.random.default_rng(0).uniform(0, 1, 600)
    mean = sum(x) / 600
    s = math.sqrt(sum((value - mean) ** 2 for value in x) / 599)
    assert mean_ci95(x) == pytest.approx((mean, 1.96 * s / math.sqrt(600)))


def test_two_values_by_hand() -> None:
    assert mean_ci95(np.array([0.4, 0.6])) == pytest.approx((0.5, 1.96 * 0.1))


def test_the_interval_holds_the_mean_95_times_in_100() -> None:
    x = np.random.default_rng(1).normal(0.5, 0.1, (2_000, 200))
    inside = [abs(mean - 0.5) <= ci for mean, ci in map(mean_ci95, x)]
    assert 0.93 < np.mean(inside) < 0.97


def test_a_paired_difference_equals_the_written_out_t_test() -> None:
    rng = np.random.default_rng(2)
    a = rng.uniform(0, 1, 50)
    b = a + rng.normal(0.01, 0.05, 50)
    d = [x - y for x, y in zip(a, b, strict=True)]
    mean = sum(d) / 50
    error = math.sqrt(sum((value - mean) ** 2 for value in d) / 49) / math.sqrt(50)
    p = 2 * stats.t.sf(abs(mean / error), 49)
    assert paired_difference(a, b) == pytest.approx((mean, 1.96 * error, p))


def test_pairing_finds_what_two_intervals_hide() -> None:
    rng = np.random.default_rng(3)
    episode = rng.normal(0.5, 0.2, 100)
    a, b = episode + 0.02 + rng.normal(0, 0.01, 100), episode
    found = paired_difference(a, b)
    assert found.p_value < 1e-6
    assert found.ci95 < mean_ci95(a)[1] / 5


@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.5, 0.0)])
def test_constant_differences(shift: float, p: float) -> None:
    b = np.array([0.25, 0.5, 0.75])
    assert paired_difference(b + shift, b) == (shift, 0.0, p)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_a_mean_over_seeds_has_students_interval(n: int) -> None:
    x = np.random.default_rng(n).normal(60, 2, n)
    low, high = stats.t.interval(0.95, n - 1, x.mean(), stats.sem(x))
    mean, ci95 = mean_t95(x)
    assert (mean - ci95, mean + ci95) == pytest.approx((low, high))


def test_one_seed_has_no_interval() -> None:
    mean, ci95 = mean_t95(np.array([61.5]))
    assert mean == 61.5
    assert math.isnan(ci95)


def slow_holm(p: list[float]) -> list[float]:
    """Step down: the i-th smallest of m p-values is compared with alpha / (m - i)."""
    known = sorted(value for value in p if not math.isnan(value))
    adjusted = []
    for value in p:
        before = [q * (len(known) - i) for i, q in enumerate(known) if q <= value]
        adjusted.append(math.nan if math.isnan(value) else min(1.0, max(before)))
    return adjusted


@pytest.mark.parametrize("n", [0, 1, 2, 5, 40])
def test_holm_equals_the_slow_reference(n: int) -> None:
    rng = np.random.default_rng(n)
    p = rng.uniform(0, 1, n) ** 3
    p[rng.uniform(size=n) < 0.2] = np.nan
    assert holm(p) == pytest.approx(slow_holm(p.tolist()), nan_ok=True)


def test_holm_by_hand() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.005])
    assert holm(p) == pytest.approx([0.03, np.nan, 0.06, 0.06, 0.02], nan_ok=True)


def slow_crossed(x: np.ndarray) -> tuple[float, float, float, float]:
    """Mean, ci95, p and degrees from the sums of squares of a two-way layout, in plain loops."""
    S, E = x.shape
    grand = sum(x[s, e] for s in range(S) for e in range(E)) / (S * E)
    row = [sum(x[s]) / E for s in range(S)]
    column = [sum(x[:, e]) / S for e in range(E)]
    seed = E * sum((r - grand) ** 2 for r in row) / (S - 1)
    episode = S * sum((c - grand) ** 2 for c in column) / (E - 1)
    left = sum((x[s, e] - row[s] - column[e] + grand) ** 2 for s in range(S) for e in range(E))
    rest = left / ((S - 1) * (E - 1))
    total = max(seed + episode - rest, seed, episode, rest)
    degrees = total**2 / (seed**2 / (S - 1) + episode**2 / (E - 1) + rest**2 / ((S - 1) * (E - 1)))
    error = math.sqrt(total / (S * E))
    t = abs(grand) / error
    return grand, stats.t.ppf(0.975, degrees) * error, 2 * stats.t.sf(t, degrees), degrees


def crossed(
    rng: np.random.Generator, seeds: int, episodes: int, of_seed: float, of_episode: float
) -> np.ndarray:
    """Differences `[S, E]` without a true difference; effects as standard deviations."""
    return (
        rng.normal(0, 1, (seeds, episodes))
        + rng.normal(0, of_seed, (seeds, 1))
        + rng.normal(0, of_episode, (1, episodes))
    )


@pytest.mark.parametrize(("seeds", "episodes"), [(2, 2), (2, 30), (5, 20)])
@pytest.mark.parametrize("of_seed", [0.0, 1.0])
@pytest.mark.parametrize("of_episode", [0.0, 1.0])
def test_a_crossed_difference_equals_the_slow_reference(
    seeds: int, episodes: int, of_seed: float, of_episode: float
) -> None:
    rng = np.random.default_rng(seeds * episodes)
    x = 0.3 + crossed(rng, seeds, episodes, of_seed, of_episode)
    found = crossed_difference(x)
    assert found[:4] == pytest.approx(slow_crossed(x))
    assert found.episodes == paired_difference(x.mean(0), np.zeros(episodes))


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_episode"),
    [(3, 0.3, 0.0), (3, 1.0, 0.5), (5, 0.3, 0.5)],
)
def test_the_crossed_test_keeps_its_level_where_the_episodes_test_does_not(
    seeds: int, of_seed: float, of_episode: float
) -> None:
    rng = np.random.default_rng(4)
    found = [crossed_difference(crossed(rng, seeds, 80, of_seed, of_episode)) for _ in range(2_000)]
    assert 0.02 < np.mean([one.p_value < 0.05 for one in found]) < 0.08
    assert np.mean([abs(one.mean) > one.ci95 for one in found]) == np.mean(
        [one.p_value < 0.05 for one in found]
    )
    assert np.mean([one.episodes.p_value < 0.05 for one in found]) > 0.3


def test_the_crossed_test_finds_a_difference_that_all_seeds_show() -> None:
    x = 0.5 + crossed(np.random.default_rng(5), 3, 600, 0.02, 0.5)
    found = crossed_difference(x)
    assert found.p_value < 1e-3
    assert abs(found.mean - 0.5) < found.ci95


@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.5, 0.0)])
def test_constant_crossed_differences(shift: float, p: float) -> None:
    found = crossed_difference(np.full((3, 4), shift))
    assert found[:3] == (shift, 0.0, p)


def test_differences_of_interaction_alone_have_an_interval() -> None:
    found = crossed_difference(np.array([[1.5, -0.5], [-0.5, 1.5]]))
    assert found[:4] == pytest.approx(slow_crossed(np.array([[1.5, -0.5], [-0.5, 1.5]])))
    assert found.ci95 > 0
