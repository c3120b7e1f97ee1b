"""Candidates that begin with the weights of the closest one before, and are trained for some steps.

A chain of ConvBlocks takes its weights across by the maps of its mutations: GROW and WIDEN leave
the function unchanged, PRUNE is the masked network. Any other network takes over what corresponds
(`nets.inheritance`), which is as exact where widths alone differ. A head goes along with either.

A score depends on where the weights come from, so it is a score of the candidate in this search
alone: nothing of it is cached, and the answer is trained from scratch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sseg_nase.errors import UserError, shown
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.building import build, described
from sseg_nase.nets.description import Description
from sseg_nase.nets.inheritance import (
    carried,
    correspondence,
    head_correspondence,
    share,
    taken,
)
from sseg_nase.nets.maps import Tensors, carry, wires_of_head
from sseg_nase.nets.mutation import Mutation, fresh_state
from sseg_nase.nets.mutations.grow import grow
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.nets.mutations.widen import widen
from sseg_nase.search.log import Candidate, Cost, Scored
from sseg_nase.spaces.chains import chain_costs
from sseg_nase.spaces.networks import NetworkSpace

State = Mapping[str, Tensor]
# A new head on such a network.
MakeHead = Callable[[Description, torch.Generator], nn.Module]
# The network, its head and a seed -> scores and what the training, in place, took.
Train = Callable[[Backbone, nn.Module | None, int], tuple[Mapping[str, float], Cost]]


@dataclass(frozen=True)
class Inheritance:
    """A network, how many of its parameters are another's, by which mutations, and its head.

    Without `mutations` they correspond. `network.architecture` may have routed shortcuts
    where its description has plain ones: a channel then still meets the one that it met before.
    """

    network: Backbone
    params: int
    mutations: tuple[str, ...] = ()
    head: nn.Module | None = None


@dataclass(frozen=True)
class Kept:
    """What is kept of a trained candidate."""

    description: Description
    state: State
    head: State | None = None


class Inherited:
    """An evaluator that trains each candidate from the weights of the closest one before it.

    `train(network, head, seed)` trains in place and returns scores and cost; `head` is what
    `make_head(description, generator)` makes, with its parent's weights, and None without it. All
    weights are kept in `folder`, a file per candidate, so that a resumed search finds them: of the
    latest `most` candidates. Closest is the one of the same family from which most of the
    parameters come; of equal ones that of which least is left behind, then the latest. The scores
    say what was: `inherited_params`, their share of all, `inherited_share`, and `inherited_from`,
    the number of the donor, −1 for none; of the head they say nothing. Not `inherit`: each begins
    with weights of its own.
    """

    slots = 1

    def __init__(
        self,
        space: NetworkSpace,
        train: Train,
        folder: Path,
        seed: int = 0,
        *,
        most: int = 100,
        inherit: bool = True,
        make_head: MakeHead | None = None,
    ) -> None:
        self._space, self._train, self._folder, self._seed = space, train, folder, seed
        self._most, self._inherit, self._make_head = most, inherit, make_head
        self._queue: deque[Candidate] = deque()
        self._known: dict[int, Description] = {}

    def of(self, arm: str) -> Inherited:
        """Return an evaluator for the candidates of another log, with a pool of their own."""
        return Inherited(
            self._space,
            self._train,
            self._folder / arm,
            self._seed,
            most=self._most,
            inherit=self._inherit,
            make_head=self._make_head,
        )

    def start(self, candidate: Candidate) -> None:
        """Put a candidate in the queue."""
        self._queue.append(candidate)

    def result(self) -> Scored:
        """Train the candidate that has waited longest."""
        candidate = self._queue.popleft()
        started = time.perf_counter()
        try:
            donor, found = self.begin(candidate)
            scores, cost = self._train(found.network, found.head, self._seed + candidate.number)
            if self._inherit:
                self._keep(candidate.number, found)
        except UserError:
            raise
        except Exception as error:
            return Scored(candidate, error=f"{type(error).__name__}: {error}")
        told = {"inherited_params": float(found.params), "inherited_from": float(donor)}
        told["inherited_share"] = found.params / found.network.architecture.params
        cost = Cost(time.perf_counter() - started, cost.images, cost.training_macs)
        costs = self._space.costs(candidate.point)
        run = str(self._file(candidate.number)) if self._inherit else None
        return Scored(candidate, {**costs, **scores, **told}, cost, run)

    def begin(self, candidate: Candidate) -> tuple[int, Inheritance]:
        """Return the network before its training, with the number of the donor, −1 for none."""
        description = self._space.describe(candidate.point)
        seed = self._seed + candidate.number
        donor = self._donor(candidate.number, description)
        if donor is None:
            generator = torch.Generator().manual_seed(seed)
            network = build(description, generator=generator)
            head = _new_head(network.architecture, self._make_head, generator)
            return -1, Inheritance(network, 0, head=head)
        before, caps = self._load(donor), self._space.caps
        return donor, inherit(before, description, seed, caps=caps, make_head=self._make_head)

    def _donor(self, number: int, description: Description) -> int | None:
        """The closest of the pool; the oldest are thrown away here, where a killed search begins.

        So the pool of a candidate is that of the latest `most` before it, whenever it is evaluated.
        """
        files = {int(path.stem): path for path in self._folder.glob("[0-9]*.pt")}
        before = sorted(each for each in files if each < number)
        for old in before[: -self._most]:
            files[old].unlink()
        best: tuple[float, float, int] = (0.0, 0.0, -1)
        for earlier in before[-self._most :] if self._inherit else ():
            there = self._described(earlier)
            found = share(there, description)
            best = max(best, (found, found / there.params, earlier))
        return best[2] if best[0] > 0 else None

    def _described(self, number: int) -> Description:
        if number not in self._known:
            self._known[number] = self._load(number).description
        return self._known[number]

    def _file(self, number: int) -> Path:
        return self._folder / f"{number}.pt"

    def _keep(self, number: int, trained: Inheritance) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        network, head = trained.network, trained.head
        kept: dict[str, Any] = {"architecture": network.architecture.to_dict()}
        kept["state"] = _copied(network)
        if head is not None:
            kept["head"] = _copied(head)
        half = self._folder / f".{number}.pt.half"
        torch.save(kept, half)
        half.replace(self._file(number))

    def _load(self, number: int) -> Kept:
        path = self._file(number)
        try:
            kept: Any = torch.load(path, weights_only=True, mmap=True)
            return Kept(described(kept["architecture"]), kept["state"], kept.get("head"))
        except Exception as error:
            raise UserError(
                f"{shown(path)} holds no weights ({type(error).__name__}). Delete it: "
                "its children then begin without it."
            ) from error


def inherit(
    parent: Kept,
    after: Description,
    seed: int = 0,
    *,
    caps: Mapping[str, float] | None = None,
    make_head: MakeHead | None = None,
) -> Inheritance:
    """Return the network of `after` with what it can take from its parent, and its head.

    A chain is carried by mutations where these lead to it and cost no more than `caps`.
    """
    before, state = parent.description, parent.state
    generator = torch.Generator().manual_seed(seed)
    if isinstance(before, Architecture) and isinstance(after, Architecture):
        changes = mutations(before, state, after, seed)
        if changes is not None:
            became = _after(changes[-1]) if changes else before
            costs = chain_costs(became)
            if all(costs.get(name, 0) <= cap for name, cap in (caps or {}).items()):
                head = _new_head(became, make_head, generator)
                if head is not None and parent.head is not None:
                    head.load_state_dict(_head_carried(parent.head, changes, make_head))
                return replace(_carried(became, state, changes), head=head)
    network = build(after, generator=generator)
    head = _new_head(network.architecture, make_head, generator)
    if type(before) is not type(after) or before.name != after.name:
        return Inheritance(network, 0, head=head)
    maps = correspondence(before, after, state)
    network.load_state_dict(carried(maps, state, network.state_dict()))
    if head is not None and parent.head is not None:
        of_head = head_correspondence(before, after, state, head, parent.head)
        head.load_state_dict(carried(of_head, parent.head, head.state_dict()))
    return Inheritance(network, taken(maps, after), head=head)


def _new_head(
    description: Description, make_head: MakeHead | None, generator: torch.Generator
) -> nn.Module | None:
    if make_head is None:
        return None
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator, too
        return make_head(description, generator)


def _head_carried(state: State, changes: list[Mutation], make_head: MakeHead | None) -> State:
    for change in changes:
        head = _new_head(change.after, make_head, torch.Generator().manual_seed(change.seed))
        assert head is not None
        wires = wires_of_head(head, change.after.embedding_axis)
        maps = change.learner_maps(wires)
        state = carried({name: maps[name] for name in wires}, state, head.state_dict())
    return state


def mutations(
    before: Architecture, state: State, after: Architecture, seed: int = 0
) -> list[Mutation] | None:
    """Return PRUNE, WIDEN and GROW that lead from one chain to another; None where they do not.

    PRUNE keeps the channels whose convolutions are largest. Routed shortcuts do not count.
    """
    shared = len(before.blocks)
    if len(after.blocks) < shared or any(
        (a.pool, a.residual) != (b.pool, b.residual)
        for a, b in zip(after.blocks, before.blocks, strict=False)
    ):
        return None
    if any(block.pool or not block.residual for block in after.blocks[shared:]):
        return None
    if (before.resolution, before.in_channels) != (after.resolution, after.in_channels):
        return None
    found: list[Mutation] = []
    now, wanted = before, after.channels
    if any(want < have for want, have in zip(wanted, now.channels, strict=False)):
        kept = [
            _largest(state[f"blocks.{at}.conv.weight"], min(want, have))
            for at, (want, have) in enumerate(zip(wanted, now.channels, strict=False))
        ]
        found.append(prune(now, kept))
        now = _after(found[-1])
    if any(want > have for want, have in zip(wanted, now.channels, strict=False)):
        found.append(widen(now, None, channels=list(wanted[:shared]), seed=seed))
        now = _after(found[-1])
    for position in range(shared, len(wanted)):
        found.append(grow(now, out_channels=wanted[position], position=position, seed=seed))
        now = _after(found[-1])
    return found


def _after(change: Mutation) -> Architecture:
    """Of a chain, which no mutation makes another family."""
    assert isinstance(change.after, Architecture), change.after
    return change.after


def _largest(weight: Tensor, count: int) -> list[int]:
    norms = weight.flatten(1).norm(dim=1)
    return sorted(norms.argsort(descending=True, stable=True)[:count].tolist())


def _carried(became: Architecture, state: State, changes: list[Mutation]) -> Inheritance:
    ours = {name: torch.ones_like(t) if t.is_floating_point() else t for name, t in state.items()}
    for change in changes:
        fresh = fresh_state(change)
        nothing = {name: torch.zeros_like(tensor) for name, tensor in fresh.items()}
        bundle = {"network": Tensors(state, fresh), "taken": Tensors(ours, nothing)}
        state, ours = carry(change.maps, bundle).values()
    network = build(became)
    network.load_state_dict(dict(state))
    count = sum(int((ours[name] != 0).sum()) for name, _ in network.named_parameters())
    return Inheritance(network, count, tuple(change.label for change in changes))


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
