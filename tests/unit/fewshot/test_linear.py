from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from sseg_nase.fewshot.linear import linear_scores, logistic_scores, ridge_scores

# E, N, K, M, D: more features than images, fewer, one shot, two ways.
SHAPES = [
    (3, 5, 1, 10, 64),
    (4, 5, 5, 20, 32),
    (3, 5, 8, 15, 7),
    (2, 2, 3, 4, 16),
    (2, 20, 5, 9, 9),
]


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def episodes(shape: tuple[int, ...], scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Support and query of classes that overlap."""
    E, N, K, M, D = shape
    centres = normal(E, N, 1, D, seed=1)
    support = centres + normal(E, N, K, D, seed=2)
    query = centres[:, torch.arange(M) % N, 0] + normal(E, M, D, seed=3)
    length = support.norm(dim=-1).mean() / scale
    return support / length + 0.1, query / length + 0.1


def labels(N: int, K: int) -> np.ndarray:
    return np.repeat(np.arange(N), K)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("regularization", [0.01, 1.0, 50.0])
def test_ridge_equals_sklearns(shape: tuple[int, ...], regularization: float) -> None:
    _, N, K, _, _ = shape
    support, query = episodes(shape)
    scores = ridge_scores(support, query, regularization, 3.0)
    for x, q, found in zip(support, query, scores, strict=True):
        ridge = Ridge(alpha=regularization, fit_intercept=False, solver="svd")
        ridge.fit(x.flatten(0, 1).numpy(), np.eye(N)[labels(N, K)])
        assert np.allclose(found, 3 * ridge.predict(q.numpy()), atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 3, 2, 4, 10), (2, 3, 4, 4, 5)])
def test_ridge_has_the_gradients_of_its_parameters(shape: tuple[int, ...]) -> None:
    support, query = episodes(shape)
    regularization, scale = (torch.tensor(x, dtype=torch.float64) for x in (0.7, 2.0))
    inputs = [x.requires_grad_() for x in (support, query, regularization, scale)]
    assert torch.autograd.gradcheck(ridge_scores, inputs)


def test_ridge_in_float32_resolves_a_small_regularization() -> None:
    support, query = episodes((3, 5, 5, 10, 64), scale=30)
    exact = ridge_scores(support, query, 1e-3)
    found = ridge_scores(support.float(), query.float(), 1e-3)
    assert torch.allclose(found.double(), exact, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("regularization", "scale"), [(1.0, 1.0), (0.01, 1.0), (10.0, 4.0), (1, 30)]
)
def test_logistic_equals_sklearns(
    shape: tuple[int, ...], regularization: float, scale: float
) -> None:
    _, N, K, _, _ = shape
    support, query = episodes(shape, scale)
    scores = logistic_scores(support, query, regularization)
    for x, q, found in zip(support, query, scores, strict=True):
        # Of two classes scikit-learn has one vector, the difference of ours.
        C = (2 if N == 2 else 1) / regularization
        expected = LogisticRegression(C=C, tol=1e-9, solver="newton-cg")
        expected.fit(x.flatten(0, 1).numpy(), labels(N, K))
        assert np.allclose(found, expected.predict_log_proba(q.numpy()), atol=1e-3)


def test_an_episode_is_fitted_as_if_it_were_alone() -> None:
    easy, hard = episodes((2, 5, 5, 10, 16), scale=0.1), episodes((2, 5, 5, 10, 16), scale=50)
    support, query = (torch.cat(both) for both in zip(easy, hard, strict=True))
    together = logistic_scores(support, query, 0.1)
    alone = torch.cat(
        [logistic_scores(s[None], q[None], 0.1) for s, q in zip(support, query, strict=True)]
    )
    assert torch.allclose(together, alone, atol=1e-9)


@pytest.mark.parametrize("scores", [logistic_scores, ridge_scores])
def test_dead_features_score_alike(scores: object) -> None:
    found = scores(torch.zeros(2, 5, 3, 8), torch.zeros(2, 4, 8), 1.0)  # type: ignore[operator]
    assert torch.equal(found, found[:1, :1, :1].expand(2, 4, 5))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("steps", "lr", "momentum", "weight_decay"),
    [(1, 0.01, 0.9, 0.001), (100, 0.01, 0.9, 0.001), (30, 1.0, 0.0, 0.1), (50, 0.5, 0.5, 0.0)],
)
def test_linear_equals_torchs_sgd(
    shape: tuple[int, ...], steps: int, lr: float, momentum: float, weight_decay: float
) -> None:
    _, N, K, _, D = shape
    support, query = episodes(shape)
    options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    scores = linear_scores(support, query, steps=steps, **options)
    truth = torch.from_numpy(labels(N, K))
    for x, q, found in zip(support, query, scores, strict=True):
        layer = torch.nn.Linear(D, N, dtype=torch.float64)
        for parameter in layer.parameters():
            torch.nn.init.zeros_(parameter)
        optimizer = torch.optim.SGD(layer.parameters(), **options)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(x.flatten(0, 1)), truth).backward()
            optimizer.step()
        with torch.no_grad():
            assert torch.allclose(found, layer(q).log_softmax(-1), atol=1e-9)
