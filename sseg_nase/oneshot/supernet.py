"""A supernet of a search space: its network with a mixed operation wherever a point chooses one.

    network, gates = supernet(NB201(width=8, cells=1))
    picks = derive(gates.scores(), allowed)
    derived = choose(space, network, picks)   # with the weights it had

A supernet is a description like any other, so it is counted, built and stored like any other. The
space is not asked for anything new: a point whose values are `Mixture`s gives the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sseg_nase.errors import UserError
from sseg_nase.nets import ops
from sseg_nase.nets.description import Description
from sseg_nase.nets.mixed import MixedOperation, Mixture
from sseg_nase.nets.mutation import carry_network
from sseg_nase.nets.mutations.choose import Choice
from sseg_nase.nets.mutations.choose import choose as choose_of
from sseg_nase.nets.plan import IMAGE
from sseg_nase.nets.searched import SearchedArchitecture, SearchedNetwork
from sseg_nase.oneshot.gates import Gates
from sseg_nase.spaces.choice import Options, Value
from sseg_nase.spaces.networks import NetworkSpace


def described_supernet(space: NetworkSpace, *, partial: int = 1) -> SearchedArchitecture:
    """The supernet as data. Raises `UserError` for a space that chooses more than operations.

    `partial`: mix only one in so many channels (PC-DARTS).
    """
    point: dict[str, Any] = {}
    for choice in space.choices:
        values = getattr(choice, "values", ())
        if not isinstance(choice, Options) or not all(value in ops.OPERATIONS for value in values):
            raise UserError(
                f"Space {space.name}: its choice {choice.name} is not one of operations, so that "
                "there is no network that contains all of them. Search it with strategy=…, or take "
                "a space of operations alone, such as space=nb201."
            )
        point[choice.name] = Mixture(choice.name, tuple(str(v) for v in values), partial)
    nodes = tuple(space.plan(point).nodes)
    return SearchedArchitecture(
        "searched", space.resolution, space.in_channels, nodes, space.name, "supernet"
    )


def supernet(
    space: NetworkSpace,
    *,
    partial: int = 1,
    edges: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[SearchedNetwork, Gates]:
    """The supernet, and its gates. `edges`: edges into the same node are weighed, too."""
    architecture = described_supernet(space, partial=partial)
    network = SearchedNetwork(architecture, generator=generator)
    choices = {choice.name: len(_values(choice)) for choice in space.choices}
    gates = Gates(choices, _edges(architecture) if edges else None, generator=generator)
    attach(network, gates)
    return network, gates


def attach(network: torch.nn.Module, gates: Gates | None) -> None:
    """Let all mixed operations of `network` read `gates`; None: none, all candidates alike."""
    for module in network.modules():
        if isinstance(module, MixedOperation):
            module.gates[:] = [] if gates is None else [gates]


def chosen_point(space: NetworkSpace, picks: Mapping[str, int]) -> dict[str, Value]:
    """The point of `space` that has the candidate `picks` of every choice."""
    return {choice.name: _values(choice)[picks[choice.name]] for choice in space.choices}


def choosing(space: NetworkSpace, supernet: Description, picks: Mapping[str, int]) -> Choice:
    """The mutation from a supernet of `space` to the network of `picks`."""
    point = chosen_point(space, picks)
    return choose_of(supernet, space.describe(point), {name: str(op) for name, op in point.items()})


def choose(
    space: NetworkSpace, network: SearchedNetwork, picks: Mapping[str, int]
) -> SearchedNetwork:
    """The network of the chosen point with the supernet's weights, in the same mode.

    It computes what the supernet does with these `picks` alone. Raises `UserError` where only part
    of the channels was mixed: its weights do not fit.
    """
    mutation = choosing(space, network.architecture, picks)
    for name, source in mutation.sources.items():
        if source is None:
            raise UserError(
                f"The network that was chosen has no weights for {name}: only a part of the "
                "channels was mixed. Train it from scratch."
            )
    assert isinstance(mutation.after, SearchedArchitecture)
    like = next(network.parameters())
    found = SearchedNetwork(mutation.after).to(device=like.device, dtype=like.dtype)
    found.load_state_dict(carry_network(mutation, network.state_dict()))
    return found.train(network.training)


def _values(choice: Any) -> tuple[Value, ...]:
    assert isinstance(choice, Options), choice
    return choice.values


def _edges(architecture: SearchedArchitecture) -> dict[str, tuple[str, ...]]:
    """The gates of the edges into each node that sums some, told apart by these gates."""
    found = {}
    for node in architecture.nodes:
        read = [architecture.nodes[source] for source in node.inputs if source != IMAGE]
        gates = tuple(str(dict(each.options)["gate"]) for each in read if each.op == "mixed")
        if gates:
            found["+".join(gates)] = gates
    return found
