"""What strategies share that follow a predictor: targets, and which points to predict for."""

from __future__ import annotations

from collections.abc import Sequence

from sseg_nase.search.log import Log, Scored
from sseg_nase.search.strategies.ask import Ask
from sseg_nase.spaces.choice import Value


def best_of(log: Log, scored: Sequence[Scored], count: int) -> list[Scored]:
    """Return the `count` best results, earlier ones first where they are equal."""
    return sorted(scored, key=log.value, reverse=True)[:count]


def pool(
    ask: Ask, best: Sequence[Scored], mutations: int, randoms: int
) -> list[tuple[dict[str, Value], str, list[int]]]:
    """Return a pool of new points for a predictor to choose from, with how each was made.

    Mutations are of `best`, each as often as the others; a mutation that is not new mutates again.
    """
    found: dict[str, tuple[dict[str, Value], str, list[int]]] = {}
    for number in range(mutations if best else 0):
        parent = best[number % len(best)].candidate
        point = ask.space.mutate(parent.point, ask.rng)
        if not ask.is_new(point):
            point = ask.space.mutate(point, ask.rng)
        if ask.is_new(point):
            found.setdefault(ask.space.key(point), (point, "mutation", [parent.number]))
    for _ in range(randoms):
        point = ask.space.sample(ask.rng)
        if ask.is_new(point):
            found.setdefault(ask.space.key(point), (point, "chosen of random ones", []))
    return list(found.values())
