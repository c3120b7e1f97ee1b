"""When, for how long, where and with which code runs were made: one line of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sseg_nase.finite import finite
from sseg_nase.reporting.document import Code, Text
from sseg_nase.rundir.environment import read_environment
from sseg_nase.rundir.events import span
from sseg_nase.tracking.console import duration

MOST_NAMED = 3  # machines, or commits


def made(runs: Sequence[Path], seconds: Mapping[str, Any] | None = None) -> Text | None:
    """The line; None where no run tells when it was.

    `seconds`: of the stages of a run that is alone.
    """
    spans = [
        (began, ended)
        for began, ended in map(span, runs)
        if began is not None and ended is not None
    ]
    if not spans:
        return None
    began, ended = min(first for first, _ in spans), max(last for _, last in spans)
    spent = duration(sum(last - first for first, last in spans))
    when, took = moment(began), spent
    if len(runs) > 1:
        when, took = f"{when} to {moment(ended)}", f"{spent} of runs in all"
    parts = ", ".join(f"{name} {duration(s)}" for name, s in (seconds or {}).items() if finite(s))
    known = [found for run in runs if (found := read_environment(run)) is not None]
    where = list(dict.fromkeys(map(machine, known)))
    commits = list(dict.fromkeys(code for found in known for code in _code(found)))
    line: list[str] = [f"{when}, {took}{f' ({parts})' if parts else ''}"]
    if where:
        line.append(f", on {_several(where)}")
    for number, commit in enumerate(commits[:MOST_NAMED]):
        line += [", " if number else ", commit ", Code(commit)]
    if len(commits) > MOST_NAMED:
        line.append(f" and {len(commits) - MOST_NAMED} more")
    return tuple(line)


def moment(seconds: float) -> str:
    """A point in time, in the time zone of this machine."""
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def machine(environment: Mapping[str, Any]) -> str:
    """The device that did the work, by environment.json."""
    if environment.get("gpu"):
        return str(environment["gpu"])
    return f"{environment.get('processor')} ({environment.get('threads')} threads)"


def _code(environment: Mapping[str, Any]) -> Iterator[str]:
    stated = environment.get("code")
    if isinstance(stated, dict) and stated.get("commit") is not None:
        yield f"{str(stated['commit'])[:12]}{'+changes' if stated.get('changed') else ''}"


def _several(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{'; '.join(names[:MOST_NAMED])}{more}"
