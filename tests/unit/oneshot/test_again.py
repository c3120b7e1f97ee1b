"""Mixed operations that are computed again for gradients: less memory, and nothing else changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from sseg_nase.nets.mixed import MixedOperation
from sseg_nase.oneshot.curvature import largest_eigenvalue
from sseg_nase.oneshot.gates import Gates
from sseg_nase.oneshot.supernet import attach, compute_again, kept_bytes, supernet
from sseg_nase.spaces import Darts, NetworkSpace, Tiny
from sseg_nase.spaces.nb201 import NB201
from sseg_nase.ssl.teacher import untracked
from tests.support.small_supernet import CPU, finished, training_of

SPACE = NB201(width=8, cells=1, resolution=8)
CELLS: Any = {"cells": 3, "width": 4, "resolution": 8}
SPACES = [SPACE, Darts(**CELLS), Tiny(**CELLS)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(space: NetworkSpace, partial: int) -> list[tuple[torch.nn.Module, Gates]]:
    """The same supernet twice; the second one computes again."""
    network, gates = supernet(space, partial=partial, edges=partial > 1, generator=seeded())
    network.to(memory_format=torch.channels_last)
    other, copied = copy.deepcopy((network, gates))
    attach(other, copied)
    compute_again(other, True)
    return [(network, gates), (other, copied)]


def images() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=seeded(1)).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("partial", [1, 2])
@pytest.mark.parametrize(
    "space", [SPACE, Darts(cells=3, width=4, resolution=8), Tiny(cells=3, width=4, resolution=8)]
)
def test_results_gradients_and_statistics_are_the_same_bit_for_bit(
    space: NetworkSpace, partial: int, tracking: bool
) -> None:
    found = []
    for network, gates in pair(space, partial):
        network.train()
        if tracking:
            y = network(images())
        else:
            with untracked(network):
                y = network(images())
        y.square().sum().backward()  # what is computed again is as it was, not as it is now
        gradients = [p.grad for p in (*network.parameters(), *gates.parameters())]
        found.append([y.detach(), *network.buffers(), *(g for g in gradients if g is not None)])
        states = [(m.momentum, m.track_running_stats) for m in norms_of(network)]
        assert set(states) == {(0.1, True)}
    plain, again = found
    assert len(plain) == len(again)
    assert all(map(torch.equal, plain, again))


def norms_of(network: torch.nn.Module) -> list[torch.nn.BatchNorm2d]:
    return [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_a_part_of_what_would_be_kept_is() -> None:
    (plain, _), (again, _) = pair(SPACE, 1)
    sizes = [kept_bytes(each, CPU, channels_last=True) for each in (plain, again)]
    assert 0 < sizes[1] < 0.4 * sizes[0]
    before = [p.clone() for p in plain.state_dict().values()]
    kept_bytes(plain, CPU, channels_last=True)
    assert all(map(torch.equal, plain.state_dict().values(), before))


def kept_by(network: torch.nn.Module, x: Tensor) -> list[int]:
    """Bytes of everything that is kept for gradients."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = network(x)
    own = {p.untyped_storage().data_ptr() for p in network.state_dict().values()}
    assert y.requires_grad
    return [size for place, size in kept.items() if place not in own]


def test_an_edge_keeps_five_maps() -> None:
    """The input, its ReLU, two convolutions' outputs and the pooled map; no term of the sum."""
    (network, _), _ = pair(SPACE, 1)
    first = next(m for m in network.modules() if isinstance(m, MixedOperation))
    x = torch.randn(2, 8, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    assert kept_by(first, x).count(x.untyped_storage().nbytes()) == 5


def test_what_is_kept_is_counted_per_image() -> None:
    (network, _), _ = pair(SPACE, 1)
    per_image = kept_bytes(network, CPU, channels_last=True)
    assert 6 * per_image == pytest.approx(sum(kept_by(network, images())), rel=0.02)


def test_the_curvature_in_the_gates_is_the_same() -> None:
    found = []
    for network, gates in pair(SPACE, 1):
        network.double().train()
        gates.double()

        def loss(network: torch.nn.Module = network) -> Tensor:
            with untracked(network):
                value: Tensor = network(images().double()).square().mean()
                return value

        alphas = list(gates.parameters())
        found.append(largest_eigenvalue(alphas, loss, seeded(3), iterations=5))
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    assert found[0] != 0


@pytest.mark.parametrize("strategy", ["darts", "pc_darts"])
def test_a_search_is_the_same_and_says_which_it_is(strategy: str) -> None:
    plain = finished(training_of(strategy, kept_mb=None))
    again = training_of(strategy, kept_mb=0)
    assert (plain.computes_again, again.computes_again) == (False, True)
    assert plain.kept_mb == again.kept_mb > 0
    assert not training_of(strategy, kept_mb=1 + int(plain.kept_mb)).computes_again
    finished(again)
    flags = {m.again for m in again.learner.modules() if isinstance(m, MixedOperation)}
    assert flags == {True}
    for one, other in zip(plain.records, again.records, strict=True):
        assert one["scores"] == other["scores"]
        assert one["gates"] == other["gates"]
    after = training_of(strategy, kept_mb=0)
    after.load_state_dict(again.state_dict())
    assert {m.again for m in after.learner.modules() if isinstance(m, MixedOperation)} == {True}


def test_paths_that_are_sampled_keep_little_anyway() -> None:
    assert training_of("enas").kept_mb == 0
    assert not training_of("enas").computes_again
