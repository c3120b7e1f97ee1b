from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import stdev
from typing import Any

import pytest
import torch
from torch import Tensor

from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN
from sseg_nase.nets.mutations.grow import grow
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.nets.mutations.widen import widen
from sseg_nase.sparsity.importance import (
    channel_importance,
    importance_of,
    makers,
    normalized,
    sensitivity,
)

CHANNELS = (3, 5, 4)


def network(**options: object) -> EvolvableCNN:
    architecture = Architecture.seed(CHANNELS, resolution=8, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    net = EvolvableCNN(architecture, generator=generator).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(
                0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            )
    return net


def losses(net: EvolvableCNN, batches: int = 3) -> Iterator[Tensor]:
    for seed in range(batches):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)
        yield net(x).square().sum(1).sin().mean()


def slowly(net: EvolvableCNN, kind: str, batches: int, coupled: bool) -> list[list[float]]:
    """One number after the other."""
    scores = [[0.0] * channels for channels in net.architecture.channels]
    for loss in losses(net, batches):
        net.zero_grad()
        loss.backward()
        for block, layers in zip(scores, net.blocks, strict=True):
            for parameter in layers.parameters():
                for channel in range(len(block)):
                    for weight, gradient in zip(
                        parameter[channel].flatten().tolist(),
                        parameter.grad[channel].flatten().tolist(),
                        strict=True,
                    ):
                        block[channel] += abs(weight * gradient if kind == "taylor" else weight)
    net.zero_grad()
    scores = [[score / batches for score in block] for block in scores]
    for number, layers in enumerate(net.blocks):
        if not (coupled and layers.residual and number):  # an image has no score to add
            continue
        for channel in range(len(scores[number])):
            for source, score in enumerate(scores[number - 1]):
                if layers.routing is not None:
                    scores[number][channel] += abs(layers.routing[channel, source].item()) * score
                elif channel == source:
                    scores[number][channel] += score
    return scores


@pytest.mark.parametrize("kind", ["taylor", "magnitude"])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("batches", [1, 3])
def test_scores_against_a_slow_loop(
    kind: str, batch_norm: bool, residual: bool, coupled: bool, batches: int
) -> None:
    net = network(batch_norm=batch_norm, residual=residual)
    scores = channel_importance(net, losses(net, batches), kind=kind, coupled=coupled)
    for block, expected in zip(scores, slowly(net, kind, batches, coupled), strict=True):
        assert block.tolist() == pytest.approx(expected, rel=1e-5)
        assert (block >= 0).all()


@pytest.mark.parametrize("residual", [True, False])
def test_errors_are_those_of_the_means_over_batches(residual: bool) -> None:
    """Of what is coupled, too: not the errors of the parts, which vary together."""
    net = network(residual=residual)
    found = [torch.autograd.grad(loss, makers(net)) for loss in losses(net, 4)]
    scores, errors = importance_of(net, iter(found))
    alone = [importance_of(net, [one]) for one in found]
    for block in range(len(CHANNELS)):
        for channel, error in enumerate(errors[block].tolist()):
            values = [one.scores[block][channel].item() for one in alone]
            assert scores[block][channel].item() == pytest.approx(math.fsum(values) / 4)
            assert error == pytest.approx(stdev(values) / 2, rel=1e-4)
        assert errors[block].any()
    assert all(block.isnan().all() for one in alone for block in one.errors)
    _, none = importance_of(net, iter(found), kind="magnitude")
    assert all(not block.any() for block in none)


@pytest.mark.parametrize("kind", ["taylor", "magnitude"])
@pytest.mark.parametrize("change", [{"channels": 11}, {"channels": 7, "mode": "zero"}])
def test_scores_follow_a_routed_shortcut(kind: str, change: dict[str, Any]) -> None:
    """After WIDEN and PRUNE a shortcut is a matrix: copies share their source's score."""
    net = network(residual=True)
    net.become(widen(net.architecture, 1, **change))
    net.become(prune(net.architecture, [[0, 2], [1, 3, 4, 5, 6], [1, 2, 3]]))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1  # a new channel that nobody uses yet would score 0 either way
    assert all(layers.routing is not None for layers in net.blocks)
    scores = channel_importance(net, losses(net), kind=kind)
    for block, expected in zip(scores, slowly(net, kind, 3, coupled=True), strict=True):
        assert block.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_silent_branch_is_worth_what_its_shortcut_carries() -> None:
    """Right after a preserving GROW the new block's own channels are worth little or nothing."""
    net = network()
    net.become(grow(net.architecture, out_channels=6))
    with torch.no_grad():
        net.blocks[3].norm.bias.zero_()
    own = channel_importance(net, losses(net), coupled=False)
    coupled = channel_importance(net, losses(net))
    assert not own[3].any()
    assert torch.equal(coupled[3][:4], own[2])
    assert not coupled[3][4:].any()
    assert all(torch.equal(a, b) for a, b in zip(coupled[:3], own[:3], strict=True))


def test_random_scores_are_never_coupled() -> None:
    net = network(residual=True)
    first, second = (
        channel_importance(net, losses(net), kind="random", coupled=coupled)
        for coupled in (True, False)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_taylor_finds_the_channel_that_nobody_uses() -> None:
    net = network()
    with torch.no_grad():
        net.blocks[1].conv.weight[:, 2] = 0
    scores = channel_importance(net, losses(net))
    assert scores[0][2] == 0
    assert (scores[0][:2] > 0).all()


def test_random_scores_follow_their_seed() -> None:
    net = network()
    first, again, other = (
        channel_importance(net, losses(net), kind="random", seed=seed) for seed in (1, 1, 2)
    )
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        assert (a > 0).all()
    assert [len(a) for a in first] == list(CHANNELS)


def test_random_scores_do_not_depend_on_the_fan_in() -> None:
    """Otherwise the wide blocks' channels would all score alike, and random is not random."""
    net = EvolvableCNN(Architecture.seed([60, 60], resolution=8)).double()
    narrow, wide = channel_importance(net, losses(net, 1), kind="random", seed=0)
    variation = [(scores.std() / scores.mean()).item() for scores in (narrow, wide)]
    assert variation[1] == pytest.approx(variation[0], rel=0.4)
    assert min(variation) > 0.2


@pytest.mark.parametrize("kind", ["taylor", "magnitude", "random"])
def test_the_network_is_left_as_it_was(kind: str) -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for number, parameter in enumerate(net.parameters()):
        parameter.grad = torch.full_like(parameter, number) if number % 2 else None
    global_state = torch.get_rng_state()
    channel_importance(net, losses(net), kind=kind)
    assert torch.equal(torch.get_rng_state(), global_state)
    for number, parameter in enumerate(net.parameters()):
        if number % 2:
            assert (parameter.grad == number).all()
        else:
            assert parameter.grad is None
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_without_losses_there_is_no_importance() -> None:
    with pytest.raises(AssertionError, match="at least one batch"):
        channel_importance(network(), [])


def test_normalized_blocks_have_root_mean_square_one() -> None:
    scores = [torch.tensor([3.0, 4.0]), torch.tensor([100.0, 0.0, 100.0]), torch.zeros(2)]
    first, second, silent = normalized(scores)
    assert first.tolist() == pytest.approx([3 / 12.5**0.5, 4 / 12.5**0.5])
    assert second.square().mean().item() == pytest.approx(1)
    assert silent.tolist() == [0, 0]


def test_sensitivity_is_the_mean_over_channels() -> None:
    assert sensitivity([torch.tensor([1.0, 3.0]), torch.tensor([5.0])]) == [2.0, 5.0]
