from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from sseg_nase.data.episodes import EpisodeList, sample_episodes
from sseg_nase.errors import UserError


def split_of(sizes: list[int], seed: int = 0) -> list[np.ndarray]:
    images = np.random.default_rng(seed).permutation(sum(sizes))
    return np.split(images, np.cumsum(sizes)[:-1])


def draw(class_indices: list[np.ndarray], **changed: object) -> EpisodeList:
    options: dict = {
        "dataset": "cifar_fs",
        "split": "val",
        "ways": 5,
        "shots": 1,
        "queries": 15,
        "episodes": 50,
        "seed": 0,
    }
    return sample_episodes(class_indices, **{**options, **changed})


def same(a: EpisodeList, b: EpisodeList) -> bool:
    return np.array_equal(a.support, b.support) and np.array_equal(a.query, b.query)


@pytest.mark.parametrize(
    ("sizes", "ways", "shots", "queries"),
    [
        ([600] * 16, 5, 1, 15),
        ([20, 33, 57, 20, 41, 100], 5, 5, 15),
        ([4, 4], 2, 1, 3),
        ([9] * 7, 7, 4, 5),
        ([3, 2, 1_000], 3, 1, 1),
    ],
)
def test_every_episode_is_a_task_without_replacement(
    sizes: list[int], ways: int, shots: int, queries: int
) -> None:
    class_indices = split_of(sizes)
    episodes = draw(class_indices, ways=ways, shots=shots, queries=queries)
    assert episodes.support.shape == (50, ways, shots)
    assert episodes.query.shape == (50, ways, queries)
    assert (episodes.ways, episodes.shots, episodes.queries) == (ways, shots, queries)
    assert len(episodes) == 50
    for e in range(50):
        assert len(set(episodes.classes[e])) == ways
        for n, c in enumerate(episodes.classes[e]):
            images = [*episodes.support[e, n], *episodes.query[e, n]]
            assert len(set(images)) == shots + queries
            assert set(images) <= set(class_indices[c])


def test_every_choice_is_equally_likely() -> None:
    class_indices = split_of([4, 5, 6, 7])
    episodes = draw(class_indices, ways=2, shots=1, queries=2, episodes=24_000)
    pairs = Counter(map(tuple, episodes.classes.tolist()))
    assert len(pairs) == 12
    assert all(abs(count / 2_000 - 1) < 0.1 for count in pairs.values())
    for c, images in enumerate(class_indices):
        chosen = episodes.classes == c
        drawn = np.concatenate((episodes.support[chosen], episodes.query[chosen]), axis=1)
        for place in range(3):
            counts = np.array([(drawn[:, place] == image).sum() for image in images])
            assert np.abs(counts * len(images) / len(drawn) - 1).max() < 0.1


def test_ordered_triples_are_equally_likely() -> None:
    episodes = draw(split_of([4]), ways=1, shots=1, queries=2, episodes=24_000)
    drawn = np.concatenate((episodes.support, episodes.query), axis=2)[:, 0]
    triples = Counter(map(tuple, drawn.tolist()))
    assert len(triples) == 24
    assert all(abs(count / 1_000 - 1) < 0.15 for count in triples.values())


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"dataset": "minimagenet"},
        {"split": "test"},
        {"queries": 14},
        {"episodes": 51},
        {"shots": 2},
        {"ways": 4},
    ],
)
def test_a_fixed_function_of_its_arguments(changed: dict) -> None:
    class_indices = split_of([60] * 10)
    first = draw(class_indices)
    assert same(first, draw(class_indices))
    other = draw(class_indices, **changed)
    few = min(first.ways, other.ways)
    assert not np.array_equal(first.classes[:, :few], other.classes[:50, :few])


def test_the_same_numbers_in_every_process_for_ever() -> None:
    program = (
        "import numpy as np; from sseg_nase.data.episodes import sample_episodes\n"
        "e = sample_episodes(np.split(np.arange(60), 6), dataset='digits', split='val', ways=3,"
        " shots=1, queries=2, episodes=2, seed=7)\n"
        "print(e.classes.tolist(), e.support.tolist(), e.query.tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert outputs == {
        "[[3, 4, 2], [3, 5, 2]]"
        " [[[37], [48], [22]], [[33], [59], [28]]]"
        " [[[31, 30], [47, 41], [26, 21]], [[36, 38], [52, 50], [20, 27]]]"
    }


def test_the_list_is_read_only_and_names_itself() -> None:
    episodes = draw(split_of([20] * 6), shots=5)
    assert episodes.key == "cifar_fs/val/5w5s"
    with pytest.raises(ValueError, match="read-only"):
        episodes.support[0, 0, 0] = 1


def test_too_few_classes_are_refused() -> None:
    with pytest.raises(UserError, match=r"evaluation\.ways=5.*'val'.*'cifar_fs'.*4 classes"):
        draw(split_of([20] * 4))


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        draw(split_of([20, 15, 30, 12, 30]), class_names=["ant", "bee", "cat", "dog", "elk"])
    message = str(caught.value)
    for part in ("'dog'", "12 images", "'val'", "2 classes", "evaluation.shots", "16"):
        assert part in message
    assert "evaluation.queries" in message


@pytest.mark.parametrize("alpha", [0.1, 1.0, 2.0, 100.0])
def test_unbalanced_episodes_are_tasks_without_replacement(alpha: float) -> None:
    class_indices = split_of([90, 85, 120, 81, 300, 95])
    episodes = draw(class_indices, dirichlet_alpha=alpha, shots=5)
    assert episodes.query.shape == (50, 5, 15)
    assert episodes.counts is not None
    assert (episodes.counts >= 0).all()
    assert (episodes.counts.sum(axis=1) == 75).all()
    for e in range(50):
        queries, labels = episodes.query[e].reshape(-1), episodes.labels[e]
        for n, c in enumerate(episodes.classes[e]):
            own = queries[labels == n]
            assert len(own) == episodes.counts[e, n]
            images = [*episodes.support[e, n], *own]
            assert len(set(images)) == 5 + len(own)
            assert set(images) <= set(class_indices[c])


@pytest.mark.parametrize("alpha", [0.5, 2.0, 7.0])
def test_counts_are_those_of_a_dirichlet_distribution(alpha: float) -> None:
    """Means, variances and covariances; rounding adds up to a twelfth of a query squared."""
    options = {"shots": 1, "queries": 60, "ways": 3, "episodes": 20_000}
    counts = draw(split_of([200] * 3), dirichlet_alpha=alpha, **options).counts
    assert counts is not None
    mean, covariance = counts.mean(axis=0), np.cov(counts.T)
    assert np.allclose(mean, 60, atol=1.5)
    expected = 180**2 * (np.eye(3) / 3 - 1 / 9) / (3 * alpha + 1)
    assert np.allclose(covariance, expected, rtol=0.05, atol=1)


def test_unbalanced_episodes_are_a_fixed_function_of_their_arguments() -> None:
    class_indices = split_of([100] * 10)
    first = draw(class_indices, dirichlet_alpha=2.0)
    assert same(first, draw(class_indices, dirichlet_alpha=2.0))
    for changed in ({"dirichlet_alpha": 1.0}, {"dirichlet_alpha": 2.0, "seed": 1}, {}):
        assert not same(first, draw(class_indices, **changed))
    small = draw([np.arange(40) + 40 * c for c in range(4)], ways=3, queries=3, dirichlet_alpha=2.0)
    assert small.counts is not None
    assert small.classes[:2].tolist() == [[0, 1, 3], [2, 1, 0]]
    assert small.counts[:4].tolist() == [[3, 6, 0], [3, 3, 3], [4, 2, 3], [4, 4, 1]]
    assert small.query[0].tolist() == [[31, 6, 21], [66, 73, 60], [76, 77, 50]]


def test_the_labels_of_balanced_queries() -> None:
    episodes = draw(split_of([20] * 6), ways=3, queries=2)
    assert episodes.counts is None
    assert episodes.labels.tolist() == [[0, 0, 1, 1, 2, 2]] * 50


def test_too_few_images_for_unbalanced_queries_are_refused() -> None:
    draw(split_of([76] * 5), dirichlet_alpha=2.0)
    with pytest.raises(UserError) as caught:
        draw(split_of([76, 76, 75, 80, 76]), dirichlet_alpha=2.0)
    for part in ("query_balance=dirichlet", "76", "class '2'", "75 images", "shots + 5 * queries"):
        assert part in str(caught.value)


def test_an_empty_class_is_refused() -> None:
    with pytest.raises(UserError, match=r"class '1'.* 0 images"):
        draw([np.arange(20), np.arange(0), np.arange(20, 40)], ways=2)
