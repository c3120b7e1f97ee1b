"""What a space says of the network that contains all of its networks: see `oneshot.supernet`.

Its mixed operations read *gates*, each of which has some candidate operations. What is decided are
the *decisions* of the space, each for itself: one of its alternatives settles some of the point's
choices, and with them which candidate of some gates is computed, or that a gate's edge is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sseg_nase.nets.mixed import DROPPED
from sseg_nase.nets.plan import Node
from sseg_nase.spaces.choice import Value


class Alternative(NamedTuple):
    """`values` of the choices, and the candidates `picks` of the gates (or `DROPPED`).

    `derived`: whether gates that are weighed against each other may lead to it.
    """

    values: Mapping[str, Value]
    picks: Mapping[str, int]
    derived: bool = True


@dataclass(frozen=True)
class Containing:
    """`nodes` of the supernet; by gate its candidates; by decision its alternatives."""

    nodes: tuple[Node, ...]
    gates: Mapping[str, tuple[str, ...]]
    decisions: Mapping[str, tuple[Alternative, ...]]

    def point(self, picks: Mapping[str, int]) -> dict[str, Value]:
        """The values that the alternatives `picks`, by decision, settle."""
        return {
            name: value
            for decision, number in picks.items()
            for name, value in self.decisions[decision][number].values.items()
        }

    def candidates(self, picks: Mapping[str, int]) -> dict[str, int]:
        """By gate, the number of the candidate that these alternatives have, or `DROPPED`."""
        return {
            gate: number
            for decision, alternative in picks.items()
            for gate, number in self.decisions[decision][alternative].picks.items()
        }

    @property
    def one_by_one(self) -> bool:
        """Whether every decision is one gate, and its alternatives are that gate's candidates."""
        return all(
            [dict(each.picks) for each in self.decisions.get(name, ())]
            == [{name: number} for number in range(len(candidates))]
            for name, candidates in self.gates.items()
        )

    def operations(self, picks: Mapping[str, int]) -> dict[str, str | None]:
        """By gate, the operation that these alternatives have; None: its edge is dropped."""
        return {
            gate: None if number == DROPPED else self.gates[gate][number]
            for gate, number in self.candidates(picks).items()
        }

    def scores(self, gates: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
        """By decision, the sum over the gates that each alternative keeps of their scores.

        `gates`: by gate, the score of each candidate. −∞ where it is not to be derived.
        """
        return {
            decision: [
                sum(gates[gate][n] for gate, n in each.picks.items() if n != DROPPED)
                if each.derived
                else float("-inf")
                for each in alternatives
            ]
            for decision, alternatives in self.decisions.items()
        }
