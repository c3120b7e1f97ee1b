"""Figures of a classification against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as theirs

from sseg_nase.classification.metrics import auc, classified, mean_roc, roc, thinned


def drawn(
    seed: int, n: int = 200, classes: int = 7, coarse: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `[n, classes]` and classes; `coarse`: with equal scores."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, n)
    scores = random.gamma(1.0, size=(n, classes))
    scores[np.arange(n), truth] += random.gamma(1.0, size=n)
    if coarse:
        scores = np.round(scores) + 1
    return scores / scores.sum(axis=1, keepdims=True), truth


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_figure_is_that_of_scikit_learn(seed: int, coarse: bool) -> None:
    scores, truth = drawn(seed, coarse=coarse)
    names = [f"class {n}" for n in range(7)]
    found = classified(scores, truth, names, ks=(2, 5))
    predicted = scores.argmax(axis=1)
    assert found.right.mean() == pytest.approx(theirs.accuracy_score(truth, predicted))
    assert np.array_equal(found.confusion, theirs.confusion_matrix(truth, predicted))
    every = theirs.precision_recall_fscore_support(truth, predicted, zero_division=0)
    for place, one in enumerate(found.classes):
        assert one.name == names[place]
        figures = (one.precision, one.recall, one.f1, one.images)
        assert figures == pytest.approx([row[place] for row in every])
        area = theirs.roc_auc_score(truth == place, scores[:, place])
        assert one.auc == pytest.approx(area)
    mean = theirs.precision_recall_fscore_support(
        truth, predicted, average="macro", zero_division=0
    )
    assert (found.precision, found.recall, found.f1) == pytest.approx(mean[:3])
    area = theirs.roc_auc_score(truth, scores, multi_class="ovr", average="macro")
    assert found.auc == pytest.approx(area)
    if not coarse:  # of equal scores they count all
        for k in (2, 5):
            assert found.top_k[k] == pytest.approx(theirs.top_k_accuracy_score(truth, scores, k=k))


def test_of_equal_scores_the_first_class_counts() -> None:
    """One by one: sorted by score, then by number."""
    scores, truth = drawn(4, coarse=True)
    found = classified(scores, truth, [""] * 7, ks=(1, 3))
    for k in (1, 3):
        among = [
            label in sorted(range(7), key=lambda c, row=row: (-row[c], c))[:k]  # type: ignore[misc]
            for row, label in zip(scores, truth, strict=True)
        ]
        assert found.top_k[k] == pytest.approx(np.mean(among))
    assert found.top_k[1] == pytest.approx(found.right.mean())


def test_classes_that_do_not_occur_have_no_figure_and_no_part_in_means() -> None:
    truth = np.array([0, 0, 1, 1, 1])
    scores = np.eye(5)[[0, 1, 1, 1, 3]] + 0.01
    found = classified(scores, truth, list("abcde"))
    predicted = scores.argmax(axis=1)
    mean = theirs.precision_recall_fscore_support(
        truth, predicted, average="macro", zero_division=0
    )
    assert (found.precision, found.recall, found.f1) == pytest.approx(mean[:3])
    assert [one.auc is None for one in found.classes] == [False, False, True, True, True]
    assert found.auc == pytest.approx(np.mean([one.auc for one in found.classes[:2]]))
    assert found.top_k == {}  # five of five always hold the true one
    alone = classified(scores[:2], truth[:2], list("abcde"))
    assert alone.auc is None


@pytest.mark.parametrize("coarse", [False, True])
def test_the_roc_curve_is_that_of_scikit_learn(coarse: bool) -> None:
    scores, truth = drawn(5, coarse=coarse)
    positives = truth[:, None] == np.arange(7)
    curves = []
    for label in range(7):
        false, true, _ = theirs.roc_curve(
            positives[:, label], scores[:, label], drop_intermediate=False
        )
        found = roc(positives[:, label], scores[:, label])
        assert np.allclose(found, [false, true])
        area = np.trapezoid(found[1], found[0])
        assert area == pytest.approx(auc(positives[:, label], scores[:, label]))
        curves.append([np.interp(x, false, true) for x in np.linspace(0, 1, 201)])
    mean = mean_roc(positives, scores)
    assert mean is not None
    assert mean.shape == (2, 201)
    assert np.allclose(mean[1, 1:], np.mean(curves, axis=0)[1:])
    assert mean_roc(np.ones((4, 2), bool), np.ones((4, 2))) is None
    assert thinned(roc(positives[:, 0], scores[:, 0]), 3)[0].tolist() == [0, 0.5, 1]
