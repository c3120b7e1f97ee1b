from __future__ import annotations

from random import Random

import numpy as np
import pytest

from sseg_nase.errors import UserError
from sseg_nase.search.predictors import (
    Ensemble,
    GaussianProcess,
    GradientBoosting,
    Ridge,
    correlate,
    features,
    kernels,
    normal_scores,
    rank_correlation,
)
from sseg_nase.search.predictors.mlp import _forward, _gradients, _layers
from tests.support.synthetic import SPACE, accuracy

RNG = Random(0)
POINTS = [SPACE.sample(RNG) for _ in range(80)]
VALUES = np.array([accuracy(point) for point in POINTS])


@pytest.mark.parametrize(
    ("predictor", "least"),
    [
        (Ridge(), 0.8),
        (GaussianProcess(), 0.8),
        (GaussianProcess("wl"), 0.4),
        (Ensemble(), 0.75),
        (Ensemble(encoding="paths"), 0.4),
        (GradientBoosting(), 0.7),
    ],
    ids=repr,
)
def test_predictors_rank_what_they_have_not_seen(predictor, least: float) -> None:
    found = rank_correlation(predictor, SPACE, POINTS, VALUES, folds=3)
    assert found.spearman > least
    assert 0 < found.kendall < found.spearman
    assert found == rank_correlation(predictor, SPACE, POINTS, VALUES, folds=3)
    mean, spread = predictor.fit(SPACE, POINTS[:40], VALUES[:40])(POINTS[40:])
    assert mean.shape == spread.shape == (40,)
    assert (spread >= 0).all()
    assert abs(mean.mean() - VALUES[40:].mean()) < 3  # in the targets' own unit


def test_cross_validation_never_learns_from_what_it_is_tried_on() -> None:
    class Memory:
        """Knows by heart what it has learned, and nothing else."""

        def fit(self, space, points, targets, seed=0):
            known = {space.to_json(p): t for p, t in zip(points, targets, strict=True)}
            return lambda others: (
                np.array([known.get(space.to_json(p), 0.0) for p in others]),
                np.zeros(len(others)),
            )

    distinct = list({SPACE.to_json(p): p for p in POINTS}.values())
    values = np.array([accuracy(point) for point in distinct])
    assert rank_correlation(Memory(), SPACE, distinct, values) == (0.0, 0.0)
    for folds in (1, 41):
        with pytest.raises(UserError, match=f"folds={folds} must be from 2 to 40"):
            rank_correlation(Ridge(), SPACE, POINTS, VALUES, folds)


def test_correlations_are_one_for_the_same_order_and_zero_for_none() -> None:
    assert correlate(np.array([1, 2, 9]), np.array([0.1, 0.2, 0.3])) == pytest.approx((1, 1))
    assert correlate(np.array([3, 2, 1]), np.array([0.1, 0.2, 0.3])) == pytest.approx((-1, -1))
    assert correlate(np.ones(3), np.arange(3)) == (0.0, 0.0)


def test_normal_scores_keep_the_order_alone() -> None:
    scores = normal_scores([10.0, 90.0, 91.0, 91.0])
    assert scores[0] < scores[1] < scores[2] == scores[3]
    assert normal_scores([1, 2, 3]).tolist() == pytest.approx(normal_scores([1, 5, 900]).tolist())


def test_ridge_is_the_solution_of_the_penalised_least_squares() -> None:
    X = features(SPACE, POINTS, "one_hot")
    X, y = X - X.mean(0), VALUES - VALUES.mean()
    found = Ridge(2.0).fit(SPACE, POINTS, VALUES)(POINTS)[0] - VALUES.mean()
    wide = np.vstack([X, np.sqrt(2.0) * np.eye(X.shape[1])])
    weights = np.linalg.lstsq(wide, np.append(y, np.zeros(X.shape[1])), rcond=None)[0]
    assert found == pytest.approx(X @ weights)


def test_a_gaussian_process_is_sure_where_it_has_been() -> None:
    points = [SPACE.canonical(p) for p in POINTS[:30]]
    noiseless = np.array([sum(len(str(op)) for op in point.values()) for point in points])
    predict = GaussianProcess().fit(SPACE, points, noiseless)
    mean, spread = predict(points)
    assert np.abs(mean - noiseless).max() < 1.0
    assert spread.max() < predict(POINTS[40:])[1].min()
    with pytest.raises(UserError, match="kernel='rbf' is none of hamming, wl"):
        GaussianProcess("rbf")


def test_the_ensembles_gradients_are_those_of_the_loss() -> None:
    """Against central differences of the summed mean absolute errors."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(7, 3)), rng.normal(size=7)
    flat = [rng.normal(size=shape) for shape in [(2, 3, 4), (2, 1, 4), (2, 4, 1), (2, 1, 1)]]

    def loss() -> float:
        return float(np.abs(_forward(X, _layers(flat))[-1][:, :, 0] - y).mean(1).sum())

    for tensor, gradient in zip(flat, _gradients(X, y, _layers(flat)), strict=True):
        for place in np.ndindex(tensor.shape):
            kept = tensor[place]
            tensor[place] = kept + 1e-6
            above = loss()
            tensor[place] = kept - 1e-6
            below = loss()
            tensor[place] = kept
            assert gradient[place] == pytest.approx((above - below) / 2e-6, abs=1e-5)


def test_members_differ_and_the_seed_decides() -> None:
    fit = Ensemble(steps=20).fit
    one, again = (fit(SPACE, POINTS, VALUES, seed=3)(POINTS[:5]) for _ in range(2))
    assert (one[0] == again[0]).all()
    assert (one[0] != fit(SPACE, POINTS, VALUES, seed=4)(POINTS[:5])[0]).any()
    assert one[1].min() > 0
    with pytest.raises(UserError, match="members=0"):
        Ensemble(members=0)


def test_few_results_do_not_make_a_gaussian_process_believe_in_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the likelihood alone it takes a length so short that no point tells of another."""
    found: dict[str, float] = {}
    for name in ("prior", "none"):
        if name == "none":
            monkeypatch.setitem(kernels.PRIORS, "hamming", lambda space: np.zeros(5))
        each = []
        for seed in range(12):
            chosen = np.random.default_rng(seed).permutation(80)
            values = VALUES + np.random.default_rng(seed).normal(0, 6, 80)
            known, rest = chosen[:12], chosen[12:]
            targets = normal_scores(values[known])
            predict = GaussianProcess().fit(SPACE, [POINTS[at] for at in known], targets)
            each.append(correlate(predict([POINTS[at] for at in rest])[0], VALUES[rest]).spearman)
        found[name] = float(np.mean(each))
    assert found["prior"] > found["none"] + 0.02
