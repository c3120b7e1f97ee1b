"""From the scores of candidates to a network: the best that is allowed, not the best and then none.

    picks = derive(containing.scores(gates.scores()), allowed)

A hard cap on params, macs, latency or skip connections is held by rejection: networks are looked at
from the highest score downward until one is allowed (a penalty in the loss guarantees nothing).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from sseg_nase.errors import UserError

TRIES = 20_000
MOST_MEASURED = 30  # networks, in a derivation
NEVER = float("-inf")  # the score of what is not to be derived
SKIPS = ("skip_connect", "identity")

Picks = dict[str, int]  # by decision of the space, the number of its alternative


def ranked(scores: Mapping[str, Sequence[float]]) -> Iterator[Picks]:
    """Yield every combination once, by descending sum of its scores; of equal ones the first.

    What has the score −∞ is in none. Every combination has one parent: the last decision that is
    not at its best goes one up. So each is reached once, from one that is no worse.
    """
    names = list(scores)
    orders = [
        sorted(
            (number for number, score in enumerate(each) if score > NEVER),
            key=lambda number, each=each: -each[number],  # type: ignore[misc]
        )
        for each in scores.values()
    ]
    lost = [  # by rank, how much less than the best
        [each[order[0]] - each[number] for number in order]
        for each, order in zip(scores.values(), orders, strict=True)
    ]
    waiting = [(0.0, (0,) * len(names))]
    while waiting:
        total, ranks = heapq.heappop(waiting)
        yield {n: order[rank] for n, order, rank in zip(names, orders, ranks, strict=True)}
        last = max((at for at, rank in enumerate(ranks) if rank), default=0)
        for at in range(last, len(names)):
            rank = ranks[at] + 1
            if rank < len(orders[at]):
                more = total + lost[at][rank] - lost[at][rank - 1]
                heapq.heappush(waiting, (more, (*ranks[:at], rank, *ranks[at + 1 :])))


def derive(
    scores: Mapping[str, Sequence[float]],
    allowed: Callable[[Picks], bool],
    *,
    latency: Callable[[Picks], float | None] = lambda picks: None,
    most: float = math.inf,
    tries: int = TRIES,
) -> Picks:
    """The combination with the highest sum of scores that is `allowed`.

    `latency` measures one that is, in ms, where it can be: a table only says what it should take.
    One that takes more than `most` is passed over. Raises `UserError`.
    """
    measured: list[float] = []
    for picks in itertools.islice(ranked(scores), tries):
        if not allowed(picks):
            continue
        took = latency(picks)
        if took is None or took <= most:
            return picks
        measured.append(took)
        if len(measured) == MOST_MEASURED:
            raise UserError(
                f"search.caps.latency_ms={most:g}: the {MOST_MEASURED} networks that the gates "
                "prefer, of those that take no more by search.latency, took more when they were "
                f"measured whole, the fastest of them {min(measured):.3g} ms. Raise the cap, leave "
                "the machine to this search, or name a new table, which is then measured."
            )
    raise UserError(
        f"Of the {tries:,} networks that the gates prefer, or all, none is within search.caps and "
        "strategy.max_skips: raise these, or let the search be cheaper from the start "
        "(strategy=proxyless strategy.latency_weight=0.1)."
    )


def skips(operations: Mapping[str, str]) -> int:
    """How many of the operations are skip connections."""
    return sum(operation in SKIPS for operation in operations.values())
