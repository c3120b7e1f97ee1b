"""The same scores as easyfsl, where it is installed, on the same embeddings and episodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sseg_nase.data.episodes import sample_episodes
from sseg_nase.fewshot.classifiers import matching_scores, prototype_scores

methods = pytest.importorskip("easyfsl.methods", reason="easyfsl is not installed")

WAYS = 5


class NoContext(nn.Module):
    """In place of the LSTM over the support: nothing is added to an embedding."""

    def forward(self, support: Tensor) -> tuple[Tensor, None]:
        return torch.cat((support, support), dim=-1) * 0, None


class Matching(methods.MatchingNetworks):  # type: ignore[misc]
    """Easyfsl's attention on the embeddings themselves."""

    def encode_query_features(self, features: Tensor) -> Tensor:
        return features


def episodes(shots: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Support `[E, N, K, ...]` and query `[E, M, ...]` of one list."""
    features = torch.randn(8 * 30, *shape, generator=torch.Generator().manual_seed(shots))
    listed = sample_episodes(
        np.split(np.arange(8 * 30), 8),
        dataset="random",
        split="val",
        ways=WAYS,
        shots=shots,
        queries=6,
        episodes=20,
        seed=0,
    )
    support, query = (features[torch.tensor(x)] for x in (listed.support, listed.query))
    return support, query.flatten(1, 2)


def easyfsls(model: Any, support: Tensor, query: Tensor) -> Tensor:
    """Scores of one episode after the other."""
    labels = torch.arange(WAYS).repeat_interleave(support.shape[2])
    scores = []
    with torch.no_grad():
        for s, q in zip(support.flatten(1, 2), query, strict=True):
            model.process_support_set(s, labels)
            scores.append(model(q))
    return torch.stack(scores)


@pytest.mark.parametrize("shots", [1, 5])
def test_prototypical_networks(shots: int) -> None:
    """Easyfsl takes the distance, we its square."""
    support, query = episodes(shots, (64,))
    theirs = easyfsls(methods.PrototypicalNetworks(nn.Identity()), support, query)
    ours = prototype_scores(support, query, "euclidean")
    assert torch.allclose(-ours.neg().sqrt(), theirs, atol=1e-4)


@pytest.mark.parametrize("shots", [1, 5])
def test_matching_networks(shots: int) -> None:
    """Theirs does not normalise queries, which for ours is a temperature; and it adds 1e-6."""
    support, query = episodes(shots, (64,))
    query = 10 * nn.functional.normalize(query, dim=-1)
    model = Matching(nn.Identity(), feature_dimension=64, support_encoder=NoContext())
    theirs = easyfsls(model, support, query)
    ours = matching_scores(support, query, 0.1)
    assert torch.allclose((ours.exp() + 1e-6).log(), theirs, atol=1e-4)
