"""Figures of a classification, all from its scores and the true classes.

As scikit-learn has them: a mean over classes is over those that occur, as the true class or as a
prediction, and precision, recall or F1 that would be 0/0 is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

POINTS = 201  # of a ROC curve that is kept


@dataclass(frozen=True)
class ClassFigures:
    """One class against all others; shares in [0, 1].

    `images`: how many are of it; `auc`: the area under its ROC curve, None where no image, or
    every image, is of it.
    """

    name: str
    images: int
    precision: float
    recall: float
    f1: float
    auc: float | None


@dataclass(frozen=True)
class Classified:
    """How a classification did: shares in [0, 1], and means over classes.

    `right` of every image, bool `[n]`; `top_k` by k; `confusion` int64 `[C, C]`, images by true
    class (row) and predicted class; `auc` one class against the others.
    """

    right: np.ndarray
    top_k: dict[int, float]
    confusion: np.ndarray
    classes: tuple[ClassFigures, ...]
    precision: float
    recall: float
    f1: float
    auc: float | None


def classified(
    scores: np.ndarray, truth: np.ndarray, names: Sequence[str], ks: Sequence[int] = (5,)
) -> Classified:
    """The figures of scores float `[n, C]`, the highest for the predicted class; n ≥ 1.

    `truth` int64 `[n]` in 0 … C − 1, `names` of the C classes. Of equal scores the first counts. A
    k of C or more is left out, for the true class is always among them.
    """
    n, C = scores.shape
    assert truth.shape == (n,)
    assert len(names) == C
    predicted = scores.argmax(axis=1)
    own = scores[np.arange(n), truth]
    earlier = np.arange(C) < truth[:, None]
    before = (scores > own[:, None]) | ((scores == own[:, None]) & earlier)
    rank = before.sum(axis=1)
    confusion = np.bincount(truth * C + predicted, minlength=C * C).reshape(C, C)
    of_class, taken, hits = confusion.sum(1), confusion.sum(0), np.diagonal(confusion)
    precision, recall = _shares(hits, taken), _shares(hits, of_class)
    f1 = _shares(2 * hits, of_class + taken)
    aucs = [auc(truth == c, scores[:, c]) for c in range(C)]
    occurring = (of_class + taken) > 0
    known = [one for one in aucs if one is not None]
    return Classified(
        right=predicted == truth,
        top_k={k: float((rank < k).mean()) for k in ks if k < C},
        confusion=confusion,
        classes=tuple(
            ClassFigures(name, int(count), float(p), float(r), float(f), area)
            for name, count, p, r, f, area in zip(
                names, of_class, precision, recall, f1, aucs, strict=True
            )
        ),
        precision=float(precision[occurring].mean()),
        recall=float(recall[occurring].mean()),
        f1=float(f1[occurring].mean()),
        auc=sum(known) / len(known) if known else None,
    )


def _shares(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    return np.divide(parts, wholes, out=np.zeros(len(parts)), where=wholes > 0)


def auc(positive: np.ndarray, scores: np.ndarray) -> float | None:
    """P(score of a positive > score of a negative), equal scores half: the area under the ROC.

    `positive` bool `[n]`, `scores` `[n]`; None unless there are both. By ranks (Mann and Whitney).
    """
    from scipy.stats import rankdata  # a fifth of all that a program would import at its start

    count = int(positive.sum())
    if count in (0, len(positive)):
        return None
    won = rankdata(scores)[positive].sum() - count * (count + 1) / 2
    return float(won / (count * (len(positive) - count)))


def roc(positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The ROC curve, float64 `[2, points]`: false and true positive rate, from (0, 0) to (1, 1).

    A point for every threshold between different scores; needs positives and negatives.
    """
    order = np.argsort(-scores, kind="stable")
    falling, hits = scores[order], positive[order]
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)  # of equal scores
    true = np.cumsum(hits)[last]
    false = last + 1 - true
    rates = np.stack((false / false[-1], true / true[-1]))
    return np.concatenate((np.zeros((2, 1)), rates), axis=1)


def thinned(curve: np.ndarray, points: int = POINTS) -> np.ndarray:
    """A ROC curve at `points` false positive rates, evenly spaced; `[2, points]`."""
    rates = np.linspace(0, 1, points)
    return np.stack((rates, np.interp(rates, curve[0], curve[1])))


def mean_roc(positives: np.ndarray, scores: np.ndarray) -> np.ndarray | None:
    """The mean over classes of the thinned ROC curves of each against the others.

    `positives` bool and `scores`, `[n, C]`; None where no class has both kinds of images.
    """
    curves = [
        thinned(roc(positives[:, c], scores[:, c]))
        for c in range(scores.shape[1])
        if 0 < positives[:, c].sum() < len(scores)
    ]
    return np.mean(curves, axis=0) if curves else None
