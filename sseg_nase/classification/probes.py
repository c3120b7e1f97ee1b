"""Classifiers on frozen embeddings of a closed set: nearest neighbours, and a linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sseg_nase.fewshot.linear import fit_logistic

CHUNK = 1024  # queries compared at once
CONSTANT = 1e-10  # standard deviation over mean of what does not vary but for rounding


def neighbour_shares(
    base: Tensor,
    labels: Tensor,
    query: Tensor,
    *,
    classes: int,
    neighbours: int,
    temperature: float,
) -> Tensor:
    """Share of every class `[M, classes]` in the votes of the nearest images of `base` `[n, D]`.

    The `neighbours` of highest cosine with query `[M, D]` vote for their `labels` int64 `[n]`, each
    by exp(cosine / `temperature`) (Wu et al. 2018, section 3.4); all of them where there are fewer.
    """
    base = F.normalize(base, dim=-1)
    truth = F.one_hot(labels, classes).to(base.dtype)
    shares = []
    for part in F.normalize(query, dim=-1).split(CHUNK):
        cosines, nearest = (part @ base.T).topk(min(neighbours, len(base)), dim=-1)
        votes = (cosines / temperature).softmax(dim=-1)
        shares.append((votes[..., None] * truth[nearest]).sum(dim=1))
    return torch.cat(shares)


class Probe(NamedTuple):
    """A linear classifier of standardised embeddings: `weights` `[C, D]`, `intercept` `[C]`.

    `mean` and `std` `[D]` are those of what it was fitted to; all in float64.
    """

    weights: Tensor
    intercept: Tensor
    mean: Tensor
    std: Tensor

    def probabilities(self, query: Tensor) -> Tensor:
        """Of query `[M, D]`: float64 `[M, C]`."""
        inputs = (query.double() - self.mean) / self.std
        return (inputs @ self.weights.T + self.intercept).softmax(dim=-1)


def fit_probe(base: Tensor, labels: Tensor, *, classes: int, regularization: float) -> Probe:
    """Multinomial logistic regression on `base` `[n, D]`, standardised; `labels` int64 `[n]`.

    The weights minimise the summed cross-entropy + λ/2·‖W‖², as scikit-learn's with C = 1/λ; the
    intercepts are free. Features that do not vary stay 0.
    """
    exact = base.double()
    mean, std = exact.mean(dim=0), exact.std(dim=0, correction=0)
    std = torch.where(std > CONSTANT * mean.abs(), std, torch.ones_like(std))
    root = regularization**0.5
    inputs = F.pad((exact - mean) / std / root, (0, 1), value=1.0)
    fitted = fit_logistic(inputs[None], F.one_hot(labels, classes).T.double())[0]
    return Probe(fitted[:, :-1] / root, fitted[:, -1], mean, std)


def best_probe(
    base: Tensor,
    labels: Tensor,
    held: Tensor,
    truth: Tensor,
    *,
    classes: int,
    regularizations: Sequence[float],
) -> tuple[Probe, float]:
    """The probe of the λ with most of `held` `[M, D]` right, `truth` int64 `[M]`, and that λ.

    Of equally good ones the first.
    """
    assert regularizations
    best: tuple[Probe, float] | None = None
    most = -1
    for regularization in regularizations:
        probe = fit_probe(base, labels, classes=classes, regularization=regularization)
        right = int((probe.probabilities(held).argmax(dim=-1) == truth).sum())
        if right > most:
            best, most = (probe, regularization), right
    assert best is not None
    return best
