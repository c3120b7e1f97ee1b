"""Predictors: from points with known values to a mean and a spread for others.

Every predictor is its settings; `fit` returns the function that predicts. `rank_correlation` says
whether one is worth its name.
"""

from sseg_nase.search.predictors.base import (
    Predict,
    Predictor,
    RankCorrelation,
    correlate,
    features,
    normal_scores,
    rank_correlation,
)
from sseg_nase.search.predictors.boosting import GradientBoosting
from sseg_nase.search.predictors.gp import GaussianProcess
from sseg_nase.search.predictors.mlp import Ensemble
from sseg_nase.search.predictors.ridge import Ridge

__all__ = [
    "Ensemble",
    "GaussianProcess",
    "GradientBoosting",
    "Predict",
    "Predictor",
    "RankCorrelation",
    "Ridge",
    "correlate",
    "features",
    "normal_scores",
    "rank_correlation",
]
