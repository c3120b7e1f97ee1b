"""The append-only record of a search, of which everything else is a function.

`candidates.jsonl` starts with a line that says its version and what the search wants. Then one line
per ask, with all candidates of it, and one line per result, in the order in which they happened. A
line counts once its newline is there: half a line, left by a process that was killed, is as if it
had never been begun.
"""

from __future__ import annotations

import json
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from sseg_nase.errors import UserError, shown
from sseg_nase.files import append_line, cut_torn_line, read_lines
from sseg_nase.finite import finite
from sseg_nase.search.objectives import Objectives, front
from sseg_nase.spaces.choice import Value

VERSION = 1
Fidelity = Mapping[str, float]


@dataclass(frozen=True)
class Candidate:
    """A point and the fidelity at which it is to be evaluated.

    `number`: its position in the log. `key`: of the space; equal functions share it. `parents`: the
    numbers of those it came from, `how` it did. `after`: how many results were known when it was
    asked for, so that every suggestion can be checked.
    """

    number: int
    point: Mapping[str, Value]
    key: str
    fidelity: Fidelity = field(default_factory=dict)
    parents: tuple[int, ...] = ()
    how: str = ""
    after: int = 0

    @property
    def asks(self) -> tuple[str, str]:
        """What is the same for candidates that would give the same answer."""
        return self.key, fidelity_key(self.fidelity)


@dataclass(frozen=True)
class Cost:
    """What an evaluation took: seconds, images seen in training, training macs."""

    seconds: float = 0.0
    images: float = 0.0
    training_macs: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.images + other.images,
            self.training_macs + other.training_macs,
        )


@dataclass(frozen=True)
class Scored:
    """What came out: `scores` by name, or the `error` that it failed with; never both.

    `run` is where its files are, `cached` whether the answer was known from an earlier search; its
    cost is then that of the first time.
    """

    candidate: Candidate
    scores: Mapping[str, float] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    run: str | None = None
    error: str | None = None
    cached: bool = False


class Log:
    """All candidates and results of one search, in memory and, with a `path`, on disk.

    Without a path nothing is written. `about` is plain data that must be the same when a search is
    resumed, such as the space, the strategy and the seed.
    """

    def __init__(self, objectives: Objectives, about: Mapping[str, Any] | None = None) -> None:
        self.objectives = objectives
        self.about = dict(about or {})
        self.candidates: list[Candidate] = []
        self.told: list[Scored] = []  # in the order in which they came
        self.spent = Cost()
        self._results: dict[int, Scored] = {}
        self._numbers: dict[tuple[str, str], int] = {}
        self._usable: dict[str, list[Scored]] = {}  # per fidelity, by number
        self._file: Path | None = None
        self._lock: FileLock | None = None

    # On disk.

    @classmethod
    def open(
        cls, path: Path, objectives: Objectives, about: Mapping[str, Any] | None = None
    ) -> Log:
        """Return the log in a file, new or resumed, as its only writer until `close`.

        Raises `UserError` where another process writes it, where it is of another search, and where
        a line of it is damaged.
        """
        log = cls(objectives, about)
        path.parent.mkdir(parents=True, exist_ok=True)
        log._lock = FileLock(path.parent / f".{path.name}.lock")
        try:
            log._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{shown(path)} is being written by another search. Wait for it."
            ) from None
        try:
            log._resume(path)
        except BaseException:
            log.close()
            raise
        log._file = path
        return log

    @classmethod
    def read(cls, path: Path) -> Log:
        """Return a log to look at, also while it is being written. Raises `UserError`."""
        lines = _lines(path)
        if not lines:
            raise UserError(f"{shown(path)} is no log of a search: it has no first line.")
        header = _header(path, lines[0])
        log = cls(Objectives(**header["objectives"]), header["about"])
        log._replay(path, lines[1:])
        return log

    def close(self) -> None:
        """Let another process write."""
        self._file = None
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What happens.

    def ask(self, candidates: Sequence[Candidate]) -> None:
        """Record what is to be evaluated. All of one call are on one line: they count together.

        Raises `ValueError` for a number out of turn and for what has been asked before.
        """
        new: set[tuple[str, str]] = set()
        for number, candidate in enumerate(candidates, start=len(self.candidates)):
            if candidate.number != number:
                raise ValueError(f"Candidate {candidate.number} is not the next, {number}.")
            if candidate.asks in self._numbers or candidate.asks in new:
                raise ValueError(f"Candidate {number} has been asked before: {candidate.key}.")
            new.add(candidate.asks)
        if candidates:
            self._write({"asked": [_plain(candidate) for candidate in candidates]})
            self._asked(candidates)

    def tell(self, scored: Scored) -> Scored:
        """Record a result and return it as it is recorded.

        A needed score that is missing or is no finite number makes it a failed one, with that as
        its reason. Raises `ValueError` for a candidate that is not pending.
        """
        number = scored.candidate.number
        if number in self._results or number >= len(self.candidates):
            raise ValueError(f"Candidate {number} is not pending.")
        scored = replace(self._checked(scored), candidate=self.candidates[number])
        line = {"number": number, "scores": dict(scored.scores), "cost": asdict(scored.cost)}
        line |= {"run": scored.run, "error": scored.error, "cached": scored.cached}
        self._write({"scored": line})
        self._told(scored)
        return scored

    # What strategies read.

    @property
    def pending(self) -> list[Candidate]:
        """What was asked for and has no result yet, by number."""
        if len(self._results) == len(self.candidates):
            return []
        return [c for c in self.candidates if c.number not in self._results]

    def result(self, number: int) -> Scored | None:
        """Return the result of a candidate; None while it is pending."""
        return self._results.get(number)

    def find(self, key: str, fidelity: Fidelity | None = None) -> Candidate | None:
        """Return the candidate with this key at this fidelity, pending or not."""
        number = self._numbers.get((key, fidelity_key(fidelity or {})))
        return None if number is None else self.candidates[number]

    def usable(self, fidelity: Fidelity | None = None) -> list[Scored]:
        """Return the results at one fidelity that did not fail and meet the caps, by number.

        By number, not by time: for the same set of results it is the same list.
        """
        return self._usable.get(fidelity_key(fidelity or {}), [])

    def is_usable(self, scored: Scored) -> bool:
        """Whether a result did not fail and meets the caps."""
        return scored.error is None and self.objectives.violation(scored.scores) == 0

    def value(self, scored: Scored) -> float:
        """Return the first goal's score, more being better."""
        return self.objectives.value(scored.scores)

    def best(self, fidelity: Fidelity | None = None) -> Scored | None:
        """Return the usable result with the best value, the earliest of equal ones."""
        return max(self.usable(fidelity), key=self.value, default=None)

    def front(self, fidelity: Fidelity | None = None) -> list[Scored]:
        """Return the usable results that no other dominates, by their first goal."""
        usable = self.usable(fidelity)
        losses = [self.objectives.losses(scored.scores) for scored in usable]
        return [usable[at] for at in front(np.array(losses))] if usable else []

    def lines(self) -> list[dict[str, Any]]:
        """Return what happened, as on disk, in an order that does not depend on timing."""
        results = (self._results.get(c.number) for c in self.candidates)
        return [_plain(c) for c in self.candidates] + [
            {"number": r.candidate.number, "scores": dict(r.scores), "error": r.error}
            for r in results
            if r is not None
        ]

    # Within.

    def _checked(self, scored: Scored) -> Scored:
        if scored.error is not None:
            return replace(scored, scores={})
        for name in self.objectives.needed:
            if name not in scored.scores:
                has = ", ".join(scored.scores) or "nothing"
                return replace(scored, scores={}, error=f"it gave no {name}, but {has}")
            if not finite(scored.scores[name]):
                return replace(scored, scores={}, error=f"{name} is {scored.scores[name]}")
        return replace(scored, scores={k: v for k, v in scored.scores.items() if finite(v)})

    def _asked(self, candidates: Sequence[Candidate]) -> None:
        for candidate in candidates:
            self._numbers[candidate.asks] = candidate.number
            self.candidates.append(candidate)

    def _told(self, scored: Scored) -> None:
        self._results[scored.candidate.number] = scored
        self.told.append(scored)
        self.spent += scored.cost
        if self.is_usable(scored):
            group = self._usable.setdefault(fidelity_key(scored.candidate.fidelity), [])
            insort(group, scored, key=lambda each: each.candidate.number)

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            append_line(self._file, line)

    def _resume(self, path: Path) -> None:
        header = {"version": VERSION, "objectives": self.objectives.to_json(), "about": self.about}
        header = json.loads(json.dumps(header))  # as it will be read back
        lines = _lines(path)
        if path.exists():
            cut_torn_line(path)
        if not lines:
            append_line(path, header)
            return
        there = _header(path, lines[0])
        for part in ("objectives", "about"):
            for name in sorted({*there[part], *header[part]}):
                old, new = there[part].get(name), header[part].get(name)
                if old != new:
                    raise UserError(
                        f"{shown(path)} is of another search: {name} is {old!r} there and {new!r} "
                        "here. Resume with the same, or start in another folder."
                    )
        self._replay(path, lines[1:])

    def _replay(self, path: Path, lines: Sequence[dict[str, Any]]) -> None:
        for number, line in enumerate(lines, start=2):
            try:
                if "asked" in line:
                    self._asked([_candidate(each) for each in line["asked"]])
                else:
                    self._told(self._scored(line["scored"]))
            except (KeyError, IndexError, TypeError) as error:
                raise UserError(f"{shown(path)}, line {number} is no ask and no result.") from error

    def _scored(self, line: Mapping[str, Any]) -> Scored:
        return Scored(
            self.candidates[line["number"]],
            line["scores"],
            Cost(**line["cost"]),
            line["run"],
            line["error"],
            line["cached"],
        )


def fidelity_key(fidelity: Fidelity) -> str:
    """Return one text per fidelity, whatever the order of its names."""
    return json.dumps(dict(fidelity), sort_keys=True) if fidelity else ""


def _plain(candidate: Candidate) -> dict[str, Any]:
    return {
        "number": candidate.number,
        "point": dict(candidate.point),
        "key": candidate.key,
        "fidelity": dict(candidate.fidelity),
        "parents": list(candidate.parents),
        "how": candidate.how,
        "after": candidate.after,
    }


def _candidate(line: Mapping[str, Any]) -> Candidate:
    return Candidate(**{**line, "parents": tuple(line["parents"])})


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a log; raise `UserError` for one that is no JSON object."""
    found = []
    try:
        for line in read_lines(path):
            if line.torn:
                break
            if line.value is None:
                raise UserError(f"{shown(path)}, line {line.number} is damaged: it {line.why}.")
            found.append(line.value)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read: {error.strerror}.") from error
    return found


def _header(path: Path, line: dict[str, Any]) -> dict[str, Any]:
    if line.get("version") != VERSION or not {"objectives", "about"} <= line.keys():
        raise UserError(
            f"{shown(path)} is no search log of version {VERSION}: its first line says "
            f"version {line.get('version')!r}."
        )
    return line
