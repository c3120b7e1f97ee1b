from __future__ import annotations

import pytest
import torch

from sseg_nase.fewshot.classifiers import METRICS, NORMALIZATIONS, prototype_scores


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
