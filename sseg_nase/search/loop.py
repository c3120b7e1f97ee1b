"""The search itself: ask a strategy, evaluate, record, until the budget or the space ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from sseg_nase.errors import UserError
from sseg_nase.search.budget import Budget
from sseg_nase.search.log import Candidate, Log, Scored
from sseg_nase.spaces.space import Space

# Space, log, how many, seed -> the next candidates. None of them while others are pending: wait for
# a result. None of them while nothing is: the search is over.
Strategy = Callable[[Space, Log, int, int], list[Candidate]]
# Failures in a row after which it is not the points that are at fault. What fails costs no training
# macs, so a budget of these alone would never end it.
FAILURES_ALIKE, FAILURES = 10, 100


class Evaluator(Protocol):
    """What measures candidates, `slots` of them at a time. It never gives a test score."""

    @property
    def slots(self) -> int:
        """How many candidates may be in work at once."""

    def start(self, candidate: Candidate) -> None:
        """Begin with a candidate, or put it in the queue."""

    def result(self) -> Scored:
        """Wait for a candidate that was started, and return what came out, failed ones too."""


def search(
    space: Space,
    strategy: Strategy,
    evaluator: Evaluator,
    log: Log,
    budget: Budget,
    *,
    seed: int = 0,
    at_once: int = 1,
    cache: Mapping[tuple[str, str], Scored] | None = None,
    told: Callable[[Scored], None] = lambda scored: None,
) -> Log:
    """Run or resume the search in `log` until the budget or the candidates of the strategy end.

    With `at_once` 1 a slot that becomes free gets a new candidate at once; with more, that many are
    asked for together, after all before them are done, and no more than the budget is enough for at
    the mean cost so far. What is pending in the log is evaluated first, so a killed search resumes
    as if it had not been killed. `cache` holds scores that are known already: see `known_scores`.
    `told` hears of each result once it is in the log. Raises `UserError` where many in a row fail
    (`FAILURES`, or `FAILURES_ALIKE` for the same reason): what they share is at fault.
    """
    if budget.endless and space.size is None:
        raise UserError(f"Space {space.name} never ends. Give a budget, such as candidates=100.")
    waiting, running = deque(log.pending), 0
    failed: list[str] = []
    while True:
        while running < evaluator.slots:
            if not waiting and (at_once == 1 or not running):
                count = min(at_once, budget.left(log, evaluator.slots))
                waiting.extend(_ask(space, strategy, log, count, seed))
            if not waiting:
                break
            candidate = waiting.popleft()
            if cache and candidate.asks in cache:
                told(log.tell(replace(cache[candidate.asks], candidate=candidate, cached=True)))
            else:
                evaluator.start(candidate)
                running += 1
        if not running:
            return log
        result = log.tell(evaluator.result())
        told(result)
        running -= 1
        failed = [] if result.error is None else [*failed, result.error]
        _check_failures(failed)


def known_scores(logs: Iterable[Log], recipe: str) -> dict[tuple[str, str], Scored]:
    """Return what earlier searches have measured, for `search(cache=…)`.

    Only of logs whose `about["recipe"]` is the same: data, split, training, seed and version of the
    code belong to it. Failed evaluations are tried again.
    """
    return {
        scored.candidate.asks: scored
        for log in logs
        if log.about.get("recipe") == recipe
        for scored in log.told
        if scored.error is None
    }


def _check_failures(failed: Sequence[str]) -> None:
    """Raise `UserError` where what failed last, in a row, shows that all of it will."""
    last = failed[-FAILURES_ALIKE:]
    alike = len(last) == FAILURES_ALIKE and len(set(last)) == 1
    if alike or len(failed) >= FAILURES:
        count, how = (FAILURES_ALIKE, " for one reason") if alike else (len(failed), "")
        raise UserError(
            f"search: {count} candidates in a row have failed{how}: mend it, and resume. The last: "
            f"{last[-1]}"
        )


def _ask(space: Space, strategy: Strategy, log: Log, count: int, seed: int) -> list[Candidate]:
    """Record and return the next candidates; whoever made the strategy, none is above a cap."""
    if count < 1:
        return []
    asked = strategy(space, log, count, seed)
    for candidate in asked:
        if not space.allows(candidate.point):
            raise ValueError(f"Candidate {candidate.number} is above a cap: {candidate.key}.")
    log.ask(asked)
    return asked
