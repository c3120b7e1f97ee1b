"""Which labelled images a classifier may learn from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sseg_nase.data.labelled_part import part_of
from sseg_nase.errors import UserError

SIZES = (40, 7, 100)
NAMES = ("ant", "bee", "cat")
LABELS = np.repeat(range(3), SIZES)
INDICES = [np.flatnonzero(label == LABELS) for label in range(3)]


def part(fraction: float = 1.0, samples: int = 0, seed: int = 0, **changed: Any) -> np.ndarray:
    given: dict[str, Any] = {"class_indices": INDICES, "class_names": NAMES, **changed}
    return part_of(**given, fraction=fraction, samples=samples, seed=seed)


def counts(chosen: np.ndarray) -> list[int]:
    assert len(set(chosen.tolist())) == len(chosen)
    assert np.array_equal(chosen, np.sort(chosen))
    return np.bincount(LABELS[chosen], minlength=3).tolist()


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.01, [1, 1, 1]), (0.1, [4, 1, 10]), (0.2, [8, 1, 20]), (1, SIZES)]
)
def test_a_fraction_is_of_every_class(fraction: float, expected: list[int]) -> None:
    assert counts(part(fraction)) == list(expected)


def test_samples_are_spread_evenly_over_the_classes() -> None:
    assert counts(part(samples=21)) == [7, 7, 7]
    assert sorted(counts(part(samples=20))) == [6, 7, 7]
    odd = {tuple(counts(part(samples=20, seed=seed))) for seed in range(20)}
    assert len(odd) == 3  # which class gets less is drawn


def test_the_smaller_part_is_within_the_larger_and_the_seed_decides() -> None:
    for small, large in ((part(0.1), part(0.2)), (part(samples=4), part(samples=20))):
        assert set(small) < set(large)
    assert np.array_equal(part(0.1), part(0.1))
    assert set(part(0.1, seed=1)) != set(part(0.1))


def test_a_class_has_its_part_whatever_other_classes_there_are() -> None:
    alone = part(0.1, class_indices=INDICES[2:], class_names=NAMES[2:])
    assert set(alone) < set(part(0.1))


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (2, "there are 3 classes, and one image of each is needed; take 3 or more"),
        (30, "10 images of every class are needed, and 'bee' has 7; take 21 or less"),
    ],
)
def test_samples_that_are_not_there_are_refused(samples: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        part(samples=samples)
