from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from sseg_nase.fewshot.transport import power_transform, sinkhorn, transport_scores

OPTIONS = {
    "power": 0.5,
    "entropy": 0.1,
    "uniform": True,
    "scalings": 20,
    "updates": 20,
    "update_rate": 0.2,
}


def clustered(
    E: int, N: int, K: int, counts: list[int], D: int, seed: int = 0, noise: float = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positive features of E episodes, with `counts` queries of the classes; and their labels."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(E, N, D))
    labels = np.repeat(np.arange(N), counts)
    support = centres[:, :, None] + noise * rng.normal(size=(E, N, K, D))
    query = centres[:, labels] + noise * rng.normal(size=(E, len(labels), D))
    return *(torch.from_numpy(np.maximum(x, 0)) for x in (support, query)), torch.from_numpy(labels)


def one_pt_map(support: np.ndarray, query: np.ndarray, **o: float) -> np.ndarray:
    """One episode by the paper's algorithm in loops: `[M, N]` shares of the queries."""
    N, K, _ = support.shape

    def transformed(vectors: list[np.ndarray]) -> list[np.ndarray]:
        powered = [np.sign(v) * (np.abs(v) + 1e-6) ** o["power"] for v in vectors]
        return [v / np.sqrt((v**2).sum()) for v in powered]

    def centred(vectors: list[np.ndarray], around: list[np.ndarray]) -> list[np.ndarray]:
        moved = [v - sum(around) / len(around) for v in vectors]
        return [v / np.sqrt((v**2).sum()) for v in moved]

    support_, query_ = transformed([x for way in support for x in way]), transformed(list(query))
    labelled = centred(support_, support_)
    queries = centred(query_, query_ if o["uniform"] else support_)
    centres = [sum(labelled[n * K : (n + 1) * K]) / K for n in range(N)]
    share = [1.0] * N

    def plan() -> np.ndarray:
        kernel = np.array(
            [[np.exp(-((q - c) ** 2).sum() / o["entropy"]) for c in centres] for q in queries]
        )
        for _ in range(int(o["scalings"]) if o["uniform"] else 0):
            row = [1 / sum(kernel[m, n] * share[n] for n in range(N)) for m in range(len(queries))]
            for n in range(N):
                column = sum(row[m] * kernel[m, n] for m in range(len(queries)))
                share[n] = len(queries) / N / column
        found = kernel * share
        return found / found.sum(1, keepdims=True)

    for _ in range(int(o["updates"])):
        assigned = plan()
        for n in range(N):
            total = sum(labelled[n * K : (n + 1) * K])
            total = total + sum(a * q for a, q in zip(assigned[:, n], queries, strict=True))
            mean = total / (K + assigned[:, n].sum())
            centres[n] = centres[n] + o["update_rate"] * (mean - centres[n])
    return plan()


@pytest.mark.parametrize(("N", "K", "counts"), [(5, 1, [3] * 5), (3, 4, [1, 6, 2]), (2, 2, [2, 2])])
@pytest.mark.parametrize(
    "changed",
    [{}, {"uniform": False}, {"power": 1.0, "update_rate": 1.0}, {"updates": 0}],
)
def test_all_at_once_equals_one_episode_at_a_time(
    N: int, K: int, counts: list[int], changed: dict[str, float]
) -> None:
    options = {**OPTIONS, "scalings": 5, "updates": 4, **changed}
    support, query, _ = clustered(4, N, K, counts, 12)
    scores = transport_scores(support, query, **options)
    for x, q, found in zip(support.numpy(), query.numpy(), scores, strict=True):
        assert np.allclose(found.exp(), one_pt_map(x, q, **options), atol=1e-9)


def test_the_plan_has_its_marginals_and_its_optimum() -> None:
    """It costs at most entropy · M log N more than the cheapest assignment, which scipy finds."""
    cost = torch.rand(6, 12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = torch.ones(6, 4, dtype=torch.float64)
    plan, _ = sinkhorn(cost, start, entropy=0.05, scalings=5_000)
    assert torch.allclose(plan.sum(2), torch.ones(6, 12, dtype=torch.float64))
    assert torch.allclose(plan.sum(1), torch.full((6, 4), 3.0, dtype=torch.float64))
    for found, costs in zip(plan, cost, strict=True):
        repeated = np.repeat(costs.numpy(), 3, axis=1)
        least = repeated[linear_sum_assignment(repeated)].sum()
        assert least <= float((found * costs).sum()) <= least + 0.05 * 12 * np.log(4)


@pytest.mark.parametrize("entropy", [0.01, 0.1, 10.0])
def test_extreme_costs_stay_finite(entropy: float) -> None:
    """All queries at the first class, and the others as far as unit vectors can be."""
    cost = torch.tensor([0.0, 4, 4, 4]).expand(2, 8, 4)
    start = torch.ones(2, 4, dtype=torch.float64)
    plan, columns = sinkhorn(cost, start, entropy=entropy, scalings=500)
    assert torch.isfinite(columns).all()
    assert torch.allclose(plan, torch.full((2, 8, 4), 0.25, dtype=torch.float64), atol=1e-6)


def test_the_power_transform_keeps_signs() -> None:
    features = torch.tensor([[4.0, -9.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[2.0, -3.0, 0.0]], dtype=torch.float64) / 13**0.5
    assert torch.allclose(power_transform(features, 0.5), expected, atol=1e-3)


@pytest.mark.parametrize("K", [1, 5])
def test_equal_shares_help_where_they_hold_and_hurt_where_they_do_not(K: int) -> None:
    def accuracy(counts: list[int], uniform: bool) -> float:
        support, query, truth = clustered(100, 5, K, counts, 32, noise=1.2)
        scores = transport_scores(support, query, **{**OPTIONS, "uniform": uniform})
        return float((scores.argmax(-1) == truth).double().mean())

    assert accuracy([15] * 5, True) > accuracy([15] * 5, False) + 0.005
    assert accuracy([55, 5, 5, 5, 5], True) < accuracy([55, 5, 5, 5, 5], False) - 0.3


@pytest.mark.parametrize("uniform", [True, False])
def test_half_dead_and_dead_features_stay_finite(uniform: bool) -> None:
    support, query = torch.zeros(2, 5, 1, 8), torch.zeros(2, 10, 8)
    support[0, 0] = 1
    scores = transport_scores(support, query, **{**OPTIONS, "uniform": uniform})
    assert torch.isfinite(scores).all()
