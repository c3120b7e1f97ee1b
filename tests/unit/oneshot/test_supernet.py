"""A supernet and the networks within it."""

from __future__ import annotations

import json

import pytest
import torch

from sseg_nase.errors import UserError
from sseg_nase.nets.building import described
from sseg_nase.nets.searched import SearchedArchitecture
from sseg_nase.oneshot.supernet import (
    attach,
    choose,
    described_supernet,
    supernet,
)
from sseg_nase.spaces.nb201 import EDGES, NAMES, NB201, OPERATIONS

SPACE = NB201(width=4, cells=1, resolution=8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained_a_little(network: torch.nn.Module) -> None:
    """Its statistics and weights are not those of the start."""
    network.train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.randn(8, 3, 8, 8, generator=seeded(1)).double()).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("seed", range(6))
def test_the_chosen_network_computes_what_the_supernet_computes_with_it_alone(seed: int) -> None:
    network, gates = supernet(SPACE, generator=seeded())
    trained_a_little(network.double())
    generator = seeded(seed)
    picks = {name: int(torch.randint(5, (), generator=generator)) for name in NAMES}
    x = torch.randn(4, 3, 8, 8, generator=generator).double()
    for training in (False, True):
        derived = choose(SPACE, network.train(training), picks)
        assert derived.training is training
        with gates.picked(picks):
            torch.testing.assert_close(derived(x), network(x), rtol=1e-5, atol=1e-8)
    assert derived.architecture == SPACE.describe(SPACE.containing().point(picks))


def test_it_is_counted_stored_and_built_as_every_network() -> None:
    architecture = described_supernet(SPACE)
    again = described(json.loads(json.dumps(architecture.to_dict())))
    assert again == architecture
    network, gates = supernet(SPACE)
    trainable = [p for p in network.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trainable) == architecture.params
    assert not {id(p) for p in trainable} & {id(p) for p in gates.parameters()}
    largest = max(SPACE.describe(dict.fromkeys(NAMES, op)).macs() for op in OPERATIONS)
    assert isinstance(architecture, SearchedArchitecture)
    assert architecture.macs() > largest


def test_gates_are_shared_by_the_cells_and_reach_the_gradient() -> None:
    network, gates = supernet(SPACE, edges=True, generator=seeded())
    assert gates.names == tuple(sorted(NAMES))
    assert {frozenset(edges) for edges in gates.edges} == {
        frozenset(name for name, edge in zip(NAMES, EDGES, strict=True) if edge[1] == node)
        for node in (1, 2, 3)
    }
    network(torch.randn(4, 3, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gates.alphas)
    # Of the node with one edge the share is 1, whatever β is.
    reached = [p.grad is not None and float(p.grad.abs().sum()) > 0 for p in gates.betas]
    assert reached == [len(p) > 1 for p in gates.betas]


def test_without_gates_all_candidates_are_alike() -> None:
    network, gates = supernet(SPACE, generator=seeded())
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        for alpha in gates.alphas:
            alpha.zero_()
    mixed = network.eval()(x)
    attach(network, None)
    torch.testing.assert_close(network(x), mixed)


def test_weights_of_a_part_of_the_channels_are_refused() -> None:
    network, gates = supernet(SPACE, partial=2, generator=seeded())
    picks = dict.fromkeys(gates.names, OPERATIONS.index("nor_conv_3x3"))
    with pytest.raises(UserError, match="Train it from scratch"):
        choose(SPACE, network, picks)


def test_spaces_that_choose_more_than_operations_are_refused() -> None:
    from sseg_nase.spaces.chains import ENASMacro

    with pytest.raises(UserError, match=r"enas_macro: its choice 1\.skip\.0 is not one of oper"):
        supernet(ENASMacro(layers=2))
    with pytest.raises(UserError, match=r"4 channels .* divisible by 3.* that is: 3\."):
        supernet(SPACE, partial=3)
