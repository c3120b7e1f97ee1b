from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sseg_nase.config.compose import load
from sseg_nase.config.sequence import trained
from sseg_nase.finetune.learner import (
    Matching,
    Prototypes,
    Ridge,
    around,
    cross_entropy,
    fits,
    squared_error,
)
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN

E, N, K, Q, D = 2, 3, 2, 4, 6


@pytest.fixture
def episodes() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Support `[E, N, K, D]`, queries `[E, N·Q, D]` and their classes `[N·Q]`."""
    generator = torch.Generator().manual_seed(0)
    support = torch.randn(E, N, K, D, generator=generator, dtype=torch.float64)
    query = torch.randn(E, N * Q, D, generator=generator, dtype=torch.float64)
    return support, query, torch.arange(N).repeat_interleave(Q)


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def negative_log_likelihood(probabilities: list[list[list[float]]], truth: torch.Tensor) -> float:
    """Mean over episodes and queries of −log p(true class)."""
    losses = [
        -math.log(of_query[int(label)])
        for of_episode in probabilities
        for of_query, label in zip(of_episode, truth, strict=True)
    ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_prototypical_loss(
    episodes: tuple[torch.Tensor, torch.Tensor, torch.Tensor], metric: str
) -> None:
    support, query, truth = (x.numpy() for x in episodes)

    def score(q: np.ndarray, c: np.ndarray) -> float:
        if metric == "euclidean":
            return -float(np.sum((q - c) ** 2))
        return float(q @ c / np.linalg.norm(q) / np.linalg.norm(c))

    expected = [
        [softmax([1.5 * score(q, support[e, n].mean(axis=0)) for n in range(N)]) for q in query[e]]
        for e in range(E)
    ]
    found = cross_entropy(Prototypes(metric, 1.5)(*episodes[:2]), episodes[2])
    assert found.item() == pytest.approx(negative_log_likelihood(expected, truth))


def test_the_matching_loss(episodes: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    support, query, truth = (x.numpy() for x in episodes)
    expected = []
    for e in range(E):
        shots = support[e].reshape(N * K, D)
        of_episode = []
        for q in query[e]:
            cosines = [7 * q @ s / np.linalg.norm(q) / np.linalg.norm(s) for s in shots]
            attention = softmax(cosines)
            of_episode.append([sum(attention[n * K : (n + 1) * K]) for n in range(N)])
        expected.append(of_episode)
    found = cross_entropy(Matching(7.0)(*episodes[:2]), episodes[2])
    assert found.item() == pytest.approx(negative_log_likelihood(expected, truth))


def test_the_ridge_loss(episodes: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    support, query, truth = (x.numpy() for x in episodes)
    head = Ridge(regularization=0.3, scale=2.0).double()
    with torch.no_grad():
        head.shift.fill_(0.7)
    expected = []
    for e in range(E):
        x = support[e].reshape(N * K, D)
        y = np.repeat(np.eye(N), K, axis=0)
        weights = np.linalg.inv(x.T @ x + 0.3 * np.eye(D)) @ x.T @ y
        expected.append([softmax(list(2 * q @ weights + 0.7)) for q in query[e]])
    loss = cross_entropy(head(*episodes[:2]), episodes[2])
    assert loss.item() == pytest.approx(negative_log_likelihood(expected, truth))
    loss.backward()
    # A shift of all classes alike changes no probability.
    assert head.log_regularization.grad.abs() > 1e-6
    assert head.scale.grad.abs() > 1e-6


def test_the_relation_loss() -> None:
    generator = torch.Generator().manual_seed(1)
    relations = torch.rand(E, N * Q, N, generator=generator)
    truth = torch.arange(N).repeat_interleave(Q)
    errors = [
        (relations[e, m, n].item() - float(n == truth[m])) ** 2
        for e in range(E)
        for m in range(N * Q)
        for n in range(N)
    ]
    assert squared_error(relations, truth).item() == pytest.approx(sum(errors) / len(errors))


@pytest.mark.parametrize(
    ("name", "head"),
    [*((name, None) for name in trained()), ("matching", "mlp"), ("relation", "mlp")],
)
def test_every_method_has_a_head_for_every_backbone(name: str, head: str | None) -> None:
    further = ["dataset=cifar10"] if name == "classifier" else []
    config = load([f"finetune={name}", *([f"finetune.head={head}"] if head else []), *further])
    for embedding in ("average", "flatten"):
        architecture = Architecture.seed((4, 8), resolution=16, embedding=embedding)
        generator = torch.Generator().manual_seed(0)
        backbone = EvolvableCNN(architecture, generator=generator)
        learner = around(backbone, config.finetune, 7, generator)
        features = torch.randn(2, 5, 3, architecture.features, generator=generator)
        query = torch.randn(2, 9, architecture.features, generator=generator)
        if name in ("linear", "classifier", "maml"):
            assert learner.head(query).shape == (2, 9, 5 if name == "maml" else 7)
        else:
            assert learner.head(features, query).shape == (2, 9, 5)
        assert fits(learner.head, "relation", 5) == (name == "relation")
        assert fits(learner.head, "maml", 5) == (name == "maml")
