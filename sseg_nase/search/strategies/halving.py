"""Successive halving and Hyperband: many candidates cheaply, the better ones for longer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sseg_nase.errors import UserError
from sseg_nase.search.log import Candidate, Log
from sseg_nase.search.strategies.ask import Ask
from sseg_nase.search.strategies.settings import at_least
from sseg_nase.spaces.space import Space


@dataclass(frozen=True)
class Rungs:
    """The fidelities of one name, from `least` by factors of `eta` up to `most`."""

    name: str = "epochs"
    least: float = 1
    most: float = 27
    eta: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.most:
            raise UserError(f"least={self.least} must be above 0 and at most most={self.most}.")
        at_least(2, self, "eta")

    @property
    def values(self) -> list[float]:
        """Return the fidelities, rising; the last is `most`."""
        found = [self.most]
        while found[-1] / self.eta >= self.least:
            whole = isinstance(self.most, int) and found[-1] % self.eta == 0
            found.append(found[-1] // self.eta if whole else found[-1] / self.eta)
        return found[::-1]

    def fidelity(self, rung: int) -> dict[str, float]:
        """Return the fidelity of a rung, counted from 0."""
        return {self.name: self.values[rung]}


@dataclass(frozen=True)
class SuccessiveHalving:
    """Rounds: `candidates` on the least rung, the best 1/η of each on the next one.

    A promotion names the candidate it continues as its parent. After the last rung a round with
    new candidates begins. (Jamieson and Talwalkar, AISTATS 2016)
    """

    rungs: Rungs = field(default_factory=Rungs)
    candidates: int = 27

    def __post_init__(self) -> None:
        at_least(1, self, "candidates")

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return the next candidates; none while a rung waits for its results."""
        rounds = 0
        while True:
            bracket = Bracket(self.rungs, 0, self.candidates, f"round {rounds}")
            asked, over = bracket(space, log, count, seed)
            if asked or not over:
                return asked
            rounds += 1


@dataclass(frozen=True)
class Hyperband:
    """Successive halving from every rung in turn: many and short, or few and long.

    Li et al., JMLR 2018. With s + 1 rungs to go a bracket has ⌈(s_max + 1) / (s + 1) · ηˢ⌉
    candidates.
    """

    rungs: Rungs = field(default_factory=Rungs)

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return the next candidates; none while a rung waits for its results."""
        number, levels = 0, len(self.rungs.values)
        while True:
            first = number % levels
            s = levels - 1 - first
            size = -(-levels * self.rungs.eta**s // (s + 1))
            bracket = Bracket(self.rungs, first, size, f"bracket {number}")
            asked, over = bracket(space, log, count, seed)
            if asked or not over:
                return asked
            number += 1


@dataclass(frozen=True)
class Bracket:
    """One course of successive halving, from rung `first` with `size` candidates.

    Its candidates carry `label` in `how`.
    """

    rungs: Rungs
    first: int
    size: int
    label: str

    def __call__(
        self, space: Space, log: Log, count: int, seed: int
    ) -> tuple[list[Candidate], bool]:
        """Return the next candidates, and whether there will be no more."""
        ask = Ask(space, log, seed, self.rungs.fidelity(self.first))
        members = [c for c in log.candidates if c.how == self.label and not c.parents]
        if len(members) < self.size:
            asked = ask.fill(min(count, self.size - len(members)), self.label)
            if asked or not members:
                return asked, False
        for rung in range(self.first + 1, len(self.rungs.values)):
            if any(log.result(member.number) is None for member in members):
                return [], False
            fidelity = self.rungs.fidelity(rung)
            kept = best(log, members, max(1, len(members) // self.rungs.eta))
            members = []
            for member in kept:
                # An earlier bracket may have had the same one here: once is enough.
                further = log.find(member.key, fidelity)
                if further is not None:
                    members.append(further)
                elif len(ask) < count:
                    ask.suggest(member.point, self.label, [member.number], fidelity)
            if ask.candidates:
                return ask.candidates, False
        return [], all(log.result(member.number) is not None for member in members)


def best(log: Log, members: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return the `count` best members that have a usable result, the earliest of equal ones."""
    results = [r for m in members if (r := log.result(m.number)) is not None and log.is_usable(r)]
    ordered = sorted(results, key=log.value, reverse=True)
    return [result.candidate for result in ordered[:count]]
