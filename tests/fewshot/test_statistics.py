from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sseg_nase.fewshot.statistics import mean_ci95, paired_difference


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
