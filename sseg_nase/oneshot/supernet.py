"""A supernet of a search space: its network with a mixed operation wherever a point chooses one.

    network, gates = supernet(NB201(width=8, cells=1))
    picks = derive(space.containing().scores(gates.scores()), allowed)
    derived = choose(space, network, picks)   # with the weights it had

A supernet is a description like any other, so it is counted, built and stored like any other. What
it contains, and which of its networks is which point, is what the space says: `containing`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch

from sseg_nase.errors import UserError
from sseg_nase.nets.description import Description
from sseg_nase.nets.mixed import MixedOperation
from sseg_nase.nets.mutation import carry_network
from sseg_nase.nets.mutations.choose import Choice
from sseg_nase.nets.mutations.choose import choose as choose_of
from sseg_nase.nets.plan import IMAGE
from sseg_nase.nets.searched import SearchedArchitecture, SearchedNetwork
from sseg_nase.oneshot.gates import Gates
from sseg_nase.spaces.networks import NetworkSpace


def described_supernet(space: NetworkSpace, *, partial: int = 1) -> SearchedArchitecture:
    """The supernet as data. Raises `UserError` for a space that has none.

    `partial`: mix only one in so many channels (PC-DARTS).
    """
    nodes = space.containing(partial).nodes
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
    choices = {gate: len(found) for gate, found in space.containing().gates.items()}
    gates = Gates(choices, _edges(architecture) if edges else None, generator=generator)
    attach(network, gates)
    return network, gates


def attach(network: torch.nn.Module, gates: Gates | None) -> None:
    """Let all mixed operations of `network` read `gates`; None: none, all candidates alike."""
    for module in network.modules():
        if isinstance(module, MixedOperation):
            module.gates[:] = [] if gates is None else [gates]


def kept_bytes(network: SearchedNetwork, device: torch.device, *, channels_last: bool) -> int:
    """Memory of the maps that a forward pass keeps for gradients, per image."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    copied = copy.deepcopy(network).to(device).to(memory_format=layout).train()
    architecture, images = network.architecture, 2
    shape = images, architecture.in_channels, architecture.resolution, architecture.resolution
    own = {tensor.untyped_storage().data_ptr() for tensor in copied.state_dict().values()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made = copied(torch.zeros(shape, device=device))
    del made  # it lived until all was counted, so that no memory was given away twice
    return sum(size for place, size in kept.items() if place not in own) // images


def compute_again(network: torch.nn.Module, again: bool) -> None:
    """Whether mixed operations compute their candidates again for gradients: less memory."""
    for module in network.modules():
        if isinstance(module, MixedOperation):
            module.again = again


def choosing(space: NetworkSpace, supernet: Description, picks: Mapping[str, int]) -> Choice:
    """The mutation from a supernet of `space` to the network of `picks`."""
    containing = space.containing()
    after = space.describe(containing.point(picks))
    return choose_of(supernet, after, containing.operations(picks))


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


def _edges(architecture: SearchedArchitecture) -> dict[str, tuple[str, ...]]:
    """The gates of the edges into each node that sums some, told apart by these gates."""
    found = {}
    for node in architecture.nodes:
        read = [architecture.nodes[source] for source in node.inputs if source != IMAGE]
        gates = tuple(str(dict(each.options)["gate"]) for each in read if each.op == "mixed")
        if gates:
            found["+".join(gates)] = gates
    return found
