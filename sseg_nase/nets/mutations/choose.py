"""CHOOSE: of every mixed operation of a supernet one candidate stays, the others go.

What is left computes what the supernet does with these candidates alone. Weights, moments and
teacher go across by the map of every other mutation: a tensor of the derived network continues that
of the candidate in its place, and those of the losing candidates continue in none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sseg_nase.kinds import register
from sseg_nase.nets.description import Description
from sseg_nase.nets.maps import ChannelMap, TensorMap
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.operator import Operator
from sseg_nase.nets.plan import IMAGE

KIND = "CHOOSE"
MIXED = "mixed"  # the operation of several candidates: see nets/mixed.py
NOTHING = ("none", "zero")
Place = tuple[str, str]  # block and module


@dataclass(frozen=True)
class Choice(Mutation):
    """A CHOOSE. `sources`: per tensor of `after` the supernet's that it continues, None for none.

    `gone`: the supernet's tensors that nothing continues.
    """

    sources: Mapping[str, str | None] = field(default_factory=dict)
    gone: tuple[str, ...] = ()

    @cached_property
    def maps(self) -> dict[str, TensorMap]:
        """One map per tensor of the new network; what is gone has one, too, under its old name.

        No tensor of the new network has that name, so that `carry` knows it and takes it nowhere.
        """
        kept = {
            name: self._map(self._source(name), wires)
            for name, wires in self.after.wiring().items()
        }
        return kept | {name: TensorMap(name) for name in self.gone}

    def _source(self, name: str) -> str | None:
        return self.sources[name]


def choose(before: Description, after: Description, chosen: Mapping[str, str | None]) -> Choice:
    """CHOOSE: `after` is the network of `before` that has the operation `chosen` of every gate.

    None is chosen where nothing of a gate is kept: its edge is gone. Where the supernet mixes a
    part of the channels only (PC-DARTS), its candidates do not fit: their tensors are newly
    initialised. Raises `ValueError` where `after` does not follow from `before`.
    """
    mixed: dict[Place, tuple[str, int | None, bool]] = {}
    others: dict[Place, str] = {}
    for node in _nodes(before):
        options = dict(node.options)
        if node.op != MIXED:
            others[node.block, node.module] = node.op
            continue
        gate, names = str(options["gate"]), str(options["choices"]).split("|")
        if gate not in chosen:
            raise ValueError(f"of the gate {gate} nothing is chosen")
        op = chosen[gate]
        if op is not None and op not in names:
            raise ValueError(f"{gate} has no candidate {op}; it has {', '.join(names)}")
        partial = int(options.get("partial", 1)) > 1
        number = None if op is None else names.index(op)
        mixed[node.block, node.module] = gate, number, partial
    if unknown := sorted({*chosen} - {gate for gate, _, _ in mixed.values()}):
        raise ValueError(f"there is no gate {', '.join(unknown)}")
    continued = _continued(before, after)
    for node in _nodes(after):
        place = continued[node.block, node.module]
        wanted = chosen[mixed[place][0]] if place in mixed else others.get(place)
        # A sum of which nothing is left computes zeros.
        if wanted is None or (node.op != wanted and node.op not in NOTHING):
            raise ValueError(f"{node.place} is {node.op} and not {wanted or 'in the supernet'}")
    for place, (gate, _, _) in mixed.items():
        if place not in continued.values() and chosen[gate] not in (None, *NOTHING):
            raise ValueError(f"{'.'.join(place)} is gone, of which {chosen[gate]} was chosen")
    known = before.wiring().keys()
    sources: dict[str, str | None] = {}
    for name in after.wiring():
        blocks, block, module, rest = name.split(".", 3)
        block, module = continued[block, module]
        _, number, partial = mixed.get((block, module), ("", None, False))
        path = [blocks, block, module, *([] if number is None else ["candidates", str(number)])]
        source = ".".join([*path, rest])
        if source not in known:
            raise ValueError(f"{name} continues {source}, which the supernet does not have")
        sources[name] = None if partial else source
    spaces = [ChannelMap.same(before.in_channels)]
    spaces += [ChannelMap.same(width) for width in after.axes.values()]
    gone = tuple(name for name in known if name not in {*sources.values()})
    target = {"chosen": dict(chosen), "network": after.to_dict()}
    return Choice(
        KIND, target, before, after, (), tuple(spaces), label=KIND, sources=sources, gone=gone
    )


def _continued(before: Description, after: Description) -> dict[Place, Place]:
    """By place in `after`, where in the supernet the node stands that it continues.

    Edges are renamed when some are gone: a mixed operation is known by what it stands between.
    """
    between: dict[Any, list[Place]] = {}
    for node, ends in zip(_nodes(before), _ends(before), strict=True):
        if node.op == MIXED:
            between.setdefault((node.block, *ends), []).append((node.block, node.module))
    found = {}
    for node, ends in zip(_nodes(after), _ends(after), strict=True):
        place = node.block, node.module
        there = between.get((node.block, *ends), [])
        found[place] = there[0] if len(there) == 1 else place
    return found


def _ends(description: Description) -> list[tuple[frozenset[str], frozenset[str]]]:
    """Per node, the places that it reads and those that read it."""
    nodes = _nodes(description)
    readers: list[set[str]] = [set() for _ in nodes]
    for node in nodes:
        for source in node.inputs:
            if source != IMAGE:
                readers[source].add(node.place)
    reads = [frozenset("" if s == IMAGE else nodes[s].place for s in node.inputs) for node in nodes]
    return [(one, frozenset(other)) for one, other in zip(reads, readers, strict=True)]


def _nodes(description: Description) -> Any:
    """Its operations; none where it is of another kind."""
    return getattr(description, "nodes", ())


class Choose(Operator):
    """Gates have been trained: the candidates that win stay."""

    name, code = KIND, 4
    colour, marker = "purple", "D"

    def refuses(self, before: Description) -> str | None:
        """Why nothing can be chosen; None: there are mixed operations."""
        if any(node.op == MIXED for node in _nodes(before)):
            return None
        return f"{self.name}: {before.name} has no mixed operations to choose from"

    def rebuild(self, target: Mapping[str, Any], before: Description) -> Mutation:
        """From the operations that the record names, and the network that it describes."""
        if (why := self.refuses(before)) is not None:
            raise ValueError(why)
        described: Any = type(before)
        after = described.from_dict(target["network"])
        return choose(before, after, target["chosen"])

    def describe(self, target: Mapping[str, Any]) -> str:
        """Which operation every gate has that is kept."""
        chosen = target.get("chosen")
        if not isinstance(chosen, Mapping):
            return super().describe(target)
        return ", ".join(f"{gate}: {op}" for gate, op in chosen.items() if op is not None)


register(Choose())
