"""Nearest neighbours and the linear probe against slow references and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from sseg_nase.classification import probes
from sseg_nase.classification.probes import best_probe, fit_probe, neighbour_shares

CLASSES, D = 4, 6


def drawn(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    centres = torch.randn(CLASSES, D, generator=torch.Generator().manual_seed(99))
    return centres[labels] + torch.randn(n, D, generator=generator), labels


@pytest.mark.parametrize("neighbours", [1, 5, 1000])
def test_the_nearest_images_vote(neighbours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "CHUNK", 7)  # whatever is compared at once
    (base, labels), (query, _) = drawn(40, 0), drawn(17, 1)
    found = neighbour_shares(
        base, labels, query, classes=CLASSES, neighbours=neighbours, temperature=0.2
    )
    for row, image in zip(found, query, strict=True):
        cosines = [float(F.cosine_similarity(image, other, dim=0)) for other in base]
        nearest = sorted(range(len(base)), key=lambda i: -cosines[i])[:neighbours]
        votes = [0.0] * CLASSES
        for i in nearest:
            votes[int(labels[i])] += math.exp(cosines[i] / 0.2)
        assert row.tolist() == pytest.approx([v / sum(votes) for v in votes], abs=1e-5)


@pytest.mark.parametrize("regularization", [0.5, 20.0])
def test_the_probe_is_the_logistic_regression_of_scikit_learn(regularization: float) -> None:
    (base, labels), (query, _) = drawn(120, 2), drawn(30, 3)
    base[:, 0] = query[:, 0] = 0.1  # does not vary
    scale = torch.tensor([1, 5, 0.1, 1, 1, 1])
    base, query = base * scale, query * scale
    probe = fit_probe(base, labels, classes=CLASSES, regularization=regularization)
    scaler = StandardScaler().fit(base.double().numpy())
    theirs = LogisticRegression(C=1 / regularization, tol=1e-10, max_iter=10_000)
    theirs.fit(scaler.transform(base.double().numpy()), labels.numpy())
    expected = theirs.predict_proba(scaler.transform(query.double().numpy()))
    assert np.allclose(probe.probabilities(query).numpy(), expected, atol=1e-5)


def test_a_class_without_images_is_none_of_the_likely_ones() -> None:
    base, labels = drawn(60, 4)
    probe = fit_probe(base, labels, classes=CLASSES + 1, regularization=1.0)
    shares = probe.probabilities(base)
    assert shares.shape == (60, CLASSES + 1)
    assert (shares.argmax(dim=1) == labels).float().mean() > 0.6
    assert shares[:, CLASSES].max() < 0.5


def test_the_regularization_is_the_one_that_does_best_on_what_was_held_out() -> None:
    (base, labels), (held, truth) = drawn(60, 5), drawn(200, 6)
    given = [1e-3, 3.0, 1e5]
    right = {
        one: int(
            (
                fit_probe(base, labels, classes=CLASSES, regularization=one)
                .probabilities(held)
                .argmax(1)
                == truth
            ).sum()
        )
        for one in given
    }
    probe, chosen = best_probe(base, labels, held, truth, classes=CLASSES, regularizations=given)
    assert chosen == max(given, key=lambda one: right[one])
    assert len(set(right.values())) > 1
    again = fit_probe(base, labels, classes=CLASSES, regularization=chosen)
    assert torch.equal(probe.weights, again.weights)
    # Of equally good ones the first.
    assert best_probe(
        base, labels, held, truth, classes=CLASSES, regularizations=[chosen * 1.0000001, chosen]
    )[1] == pytest.approx(chosen * 1.0000001, rel=1e-12)
