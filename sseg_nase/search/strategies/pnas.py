"""Progressive search (Liu et al., ECCV 2018): beams of growing networks, ordered by a surrogate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np

from sseg_nase.errors import UserError
from sseg_nase.search.log import Candidate, Log, Scored
from sseg_nase.search.predictors.base import normal_scores
from sseg_nase.search.predictors.mlp import Ensemble
from sseg_nase.search.strategies.ask import Ask
from sseg_nase.search.strategies.settings import at_least
from sseg_nase.spaces.choice import Integers, Value
from sseg_nase.spaces.networks import NetworkSpace
from sseg_nase.spaces.space import TRIES, Space


@dataclass(frozen=True)
class PNAS:
    """Evaluate `starts` networks of the smallest size, then of every next one the `beam` best.

    A size is a value of a whole-number choice, by default the first that the space has (`steps` of
    pnas, `depth` of chain). Networks of the next size are those of this one's `beam` best with all
    new choices filled in, `expansions` times for each at random; the surrogate is fitted to all
    smaller ones, so it never predicts more than one size further. The paper has a beam of 256 and
    starts with all 136 of the first size. Networks of the greatest size end the search.
    """

    beam: int = 16
    starts: int = 32
    expansions: int = 64
    members: int = 5
    size: str | None = None

    def __post_init__(self) -> None:
        at_least(2, self, "beam", "starts", "members")
        at_least(1, self, "expansions")

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return the next candidates; none while those of a smaller size are pending."""
        space, sizes = self._checked(space)
        ask = Ask(space, log, seed)
        for size in range(sizes.low, sizes.high + 1):
            asked = [c for c in log.candidates if c.point[sizes.name] == size]
            missing = (self.starts if size == sizes.low else self.beam) - len(asked)
            if missing > 0:
                self._suggest(ask, space, sizes, size, min(count, missing), seed)
                if ask.candidates:
                    return ask.candidates
            if any(log.result(candidate.number) is None for candidate in asked):
                return []  # the next size is chosen with the whole of this one
        return []

    def _checked(self, space: Space) -> tuple[NetworkSpace, Integers]:
        whole = {c.name: c for c in space.choices if isinstance(c, Integers)}
        sizes = whole.get(self.size or next(iter(whole), ""))
        if sizes is None or not isinstance(space, NetworkSpace):
            raise UserError(
                f"pnas grows networks by a whole-number choice, and space {space.name} has "
                f"{', '.join(whole) or 'none'}. Use space pnas or chain, or another strategy."
            )
        return space, sizes

    def _suggest(
        self, ask: Ask, space: NetworkSpace, sizes: Integers, size: int, count: int, seed: int
    ) -> None:
        # What belongs to a size follows from the seed and from smaller sizes alone, so that asking
        # for it one by one gives the same as asking for all of it.
        rng = Random(f"{seed} pnas {size}")
        points: Iterator[tuple[dict[str, Value], tuple[int, ...]]]
        if size == sizes.low:
            points = ((point, ()) for point in self._smallest(space, sizes, rng))
        else:
            known = [
                scored
                for scored in ask.log.usable()
                if int(scored.candidate.point[sizes.name]) < size
            ]
            points = iter(self._grown(space, ask.log, sizes, size, known, rng))
        how = "first size" if size == sizes.low else "expansion"
        for point, parents in points:
            if len(ask) == count:
                break
            ask.suggest(point, how, parents)

    def _smallest(
        self, space: NetworkSpace, sizes: Integers, rng: Random
    ) -> Iterator[dict[str, Value]]:
        for _ in range(self.starts * TRIES):
            point = space.canonical({**space.sample(rng), sizes.name: sizes.low})
            if space.allows(point):
                yield point

    def _grown(
        self,
        space: NetworkSpace,
        log: Log,
        sizes: Integers,
        size: int,
        known: list[Scored],
        rng: Random,
    ) -> list[tuple[dict[str, Value], tuple[int, ...]]]:
        """Return networks of the next size, the most promising first."""
        last = [s for s in known if s.candidate.point[sizes.name] == size - 1]
        found: dict[str, tuple[dict[str, Value], tuple[int, ...]]] = {}
        for scored in sorted(last, key=log.value, reverse=True)[: self.beam]:
            parent = scored.candidate
            old = set(space.active(parent.point)) - {sizes.name}
            for _ in range(self.expansions):
                kept = {name: parent.point[name] for name in old}
                point = space.canonical({**space.sample(rng), **kept, sizes.name: size})
                if space.allows(point):
                    found.setdefault(space.key(point), (point, (parent.number,)))
        grown = list(found.values())
        if not grown or len(known) < 2:
            return grown
        predict = Ensemble(members=self.members, encoding="one_hot").fit(
            space,
            [scored.candidate.point for scored in known],
            normal_scores([log.value(scored) for scored in known]),
            seed=rng.getrandbits(32),
        )
        means, _ = predict([point for point, _ in grown])
        return [grown[at] for at in np.argsort(-means, kind="stable")]
