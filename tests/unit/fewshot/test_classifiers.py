from __future__ import annotations

import math

import pytest
import torch

from sseg_nase.fewshot.classifiers import (
    METRICS,
    NORMALIZATIONS,
    matching_scores,
    prototype_scores,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_normalizations_equal_a_slow_loop() -> None:
    features, mean = normal(7, 5), normal(5, seed=1)
    for row, centred, plain, same in zip(
        features,
        NORMALIZATIONS["cl2n"](features, mean),
        NORMALIZATIONS["l2n"](features, None),
        NORMALIZATIONS["none"](features, None),
        strict=True,
    ):
        moved = [f - m for f, m in zip(row.tolist(), mean.tolist(), strict=True)]
        length = sum(value**2 for value in moved) ** 0.5
        assert centred.tolist() == pytest.approx([value / length for value in moved])
        length = sum(value**2 for value in row.tolist()) ** 0.5
        assert plain.tolist() == pytest.approx([value / length for value in row.tolist()])
        assert torch.equal(same, row)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("E", "N", "K", "M", "D"), [(3, 5, 1, 10, 8), (2, 4, 5, 7, 16)])
def test_scores_equal_a_slow_loop(metric: str, E: int, N: int, K: int, M: int, D: int) -> None:
    support, query = normal(E, N, K, D) + 3, normal(E, M, D, seed=1) + 3
    scores = prototype_scores(support, query, metric)
    assert scores.shape == (E, M, N)
    for e in range(E):
        for m in range(M):
            for n in range(N):
                prototype = sum(support[e, n, k] for k in range(K)) / K
                q = query[e, m]
                expected = {
                    "cosine": (q @ prototype) / (q.norm() * prototype.norm()),
                    "euclidean": -((q - prototype) ** 2).sum(),
                }[metric]
                assert scores[e, m, n].item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize(("E", "N", "K", "M", "D"), [(3, 5, 1, 10, 8), (2, 4, 5, 7, 16)])
def test_matching_equals_a_slow_loop(
    temperature: float, E: int, N: int, K: int, M: int, D: int
) -> None:
    support, query = normal(E, N, K, D) + 1, normal(E, M, D, seed=1) + 1
    scores = matching_scores(support, query, temperature)
    for e in range(E):
        for m in range(M):
            attention = {}
            for n in range(N):
                for k in range(K):
                    q, x = query[e, m], support[e, n, k]
                    cosine = float(q @ x / (q.norm() * x.norm()))
                    attention[n, k] = math.exp(cosine / temperature)
            total = sum(attention.values())
            for n in range(N):
                share = sum(attention[n, k] for k in range(K)) / total
                assert scores[e, m, n].item() == pytest.approx(math.log(share))


def test_matching_has_the_gradients_of_its_parameters() -> None:
    inputs = [normal(2, 3, 2, 4), normal(2, 5, 4, seed=1), normal(1, seed=2).abs() + 0.5]
    assert torch.autograd.gradcheck(matching_scores, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("metric", METRICS)
def test_prototype_has_the_gradients_of_its_features(metric: str) -> None:
    inputs = [normal(2, 3, 2, 4).requires_grad_(), normal(2, 5, 4, seed=1).requires_grad_()]
    assert torch.autograd.gradcheck(lambda s, q: prototype_scores(s, q, metric), inputs)


def test_euclidean_survives_a_large_common_offset() -> None:
    support, query = normal(1, 5, 5, 64), normal(1, 75, 64, seed=1)
    exact = prototype_scores(support, query, "euclidean")
    moved = prototype_scores((support + 300).float(), (query + 300).float(), "euclidean")
    assert torch.allclose(moved.double(), exact, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("metric", METRICS)
def test_dead_features_score_alike(metric: str) -> None:
    scores = prototype_scores(torch.zeros(1, 3, 2, 4), torch.zeros(1, 6, 4), metric)
    assert torch.equal(scores, torch.zeros(1, 6, 3))


def test_cl2n_without_a_mean_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="base split"):
        NORMALIZATIONS["cl2n"](normal(2, 3), None)
