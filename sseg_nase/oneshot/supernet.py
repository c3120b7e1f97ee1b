"""A supernet of a search space: its network with a mixed operation wherever a point chooses one.

    network, gates = supernet(NB201(width=8, cells=1))
    point = chosen_point(space, gates.best())
    derived = choose(space, network, gates.best())   # with the weights it had

A supernet is a description like any other, so it is counted, built and stored like any other. The
space is not asked for anything new: a point whose values are `Mixture`s gives the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sseg_nase.errors import UserError
from sseg_nase.nets import ops
from sseg_nase.nets.mixed import MixedOperation, Mixture
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


def choose(
    space: NetworkSpace, network: SearchedNetwork, picks: Mapping[str, int]
) -> SearchedNetwork:
    """The network of the chosen point with the supernet's weights, in the same mode.

    It computes what the supernet does with these `picks` alone. Raises `UserError` where only part
    of the channels was mixed: its weights do not fit.
    """
    derived = space.describe(chosen_point(space, picks))
    assert isinstance(derived, SearchedArchitecture)
    like = next(network.parameters())
    found = SearchedNetwork(derived).to(device=like.device, dtype=like.dtype)
    sources = chosen_names(network.architecture, derived, picks)
    state: dict[str, Tensor] = network.state_dict()
    for name, tensor in found.state_dict().items():
        given = state[sources[name]]
        if given.shape != tensor.shape:
            raise UserError(
                f"The weights of {name} were of {tuple(given.shape)} in the supernet, of which "
                f"only a part of the channels was mixed, and are of {tuple(tensor.shape)} in the "
                "network that was chosen. Train it from scratch."
            )
    found.load_state_dict({name: state[source] for name, source in sources.items()})
    return found.train(network.training)


def chosen_names(
    supernet: SearchedArchitecture, derived: SearchedArchitecture, picks: Mapping[str, int]
) -> dict[str, str]:
    """For every tensor of the derived network the supernet's that it continues."""
    number_of = {}
    for node in supernet.nodes:
        if node.op == "mixed":
            gate = str(dict(node.options)["gate"])
            number_of[node.block, node.module] = picks[gate]
    with torch.device("meta"):
        names = SearchedNetwork(derived).state_dict()
    found = {}
    for name in names:
        blocks, block, module, rest = name.split(".", 3)
        chosen = number_of.get((block, module))
        path = [blocks, block, module]
        if chosen is not None:
            path += ["candidates", str(chosen)]
        found[name] = ".".join([*path, rest])
    return found


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
