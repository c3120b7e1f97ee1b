"""`benchmarks/growth_score.py`: its score, and that what it adds changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks import growth_score
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN


def slow_score(gradients: Tensor, others: Tensor, batch: int, damping: float) -> float:
    """The mean product of the scaled gradients of two different batches."""
    variance = batch * others.var(dim=0)
    scaled = gradients / (variance + damping * variance.mean()).sqrt()
    pairs = [
        float(scaled[i] @ scaled[j])
        for i in range(len(scaled))
        for j in range(len(scaled))
        if i != j
    ]
    return sum(pairs) / len(pairs)


def test_score_is_the_mean_product_of_two_batches_with_its_error() -> None:
    torch.manual_seed(0)
    gradients, others = torch.randn(6, 40).double() + 0.3, torch.randn(8, 40).double()
    found, error = growth_score.score(gradients, others)
    damping = growth_score.DAMPING
    assert found == pytest.approx(slow_score(gradients, others, growth_score.BATCH, damping))
    without = torch.tensor(
        [
            slow_score(
                torch.cat([gradients[:k], gradients[k + 1 :]]), others, growth_score.BATCH, damping
            )
            for k in range(6)
        ]
    )
    assert error == pytest.approx(float((5 / 6 * (without - without.mean()).square().sum()).sqrt()))


def test_noise_alone_scores_nothing() -> None:
    torch.manual_seed(0)
    scores = torch.tensor(
        [growth_score.score(torch.randn(8, 500), torch.randn(8, 500))[0] for _ in range(100)]
    )
    assert abs(float(scores.mean())) < 3 * float(scores.std()) / 10


def test_the_added_convolution_is_at_zero_and_is_reached_by_the_gradient() -> None:
    network = EvolvableCNN(Architecture.seed((4, 6), resolution=16, activation="leaky_relu"))
    head = nn.Linear(6, 3)
    x, y = torch.randn(8, 3, 16, 16), torch.randint(3, (8,))
    for position in (1, 2):
        wider = growth_score.added(network, position, 0).network
        assert torch.equal(wider.eval()(x), network.eval()(x))
        network.train()
        gradients = growth_score.added_gradients(network, head, position, [(x, y)] * 2)
        width = network.architecture.channels[position - 1]
        assert gradients.shape == (2, width * width * 9)
        assert gradients.abs().max() > 0
