"""The choices of a space as search.json has them: a report needs no more of the space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sseg_nase.spaces.choice import Choice, Integers, Options, Reals


def choices_of(plan: Mapping[str, Any]) -> list[Choice]:
    """Return the choices that `described` has told of, by their names."""
    found: list[Choice] = []
    for name, told in plan.items():
        if "values" in told:
            found.append(Options(name, tuple(told["values"])))
        elif "log" in told:
            found.append(Reals(name, told["low"], told["high"], told["log"]))
        elif told:
            found.append(Integers(name, told["low"], told["high"]))
    return found


def described(choice: Choice) -> dict[str, Any]:
    """Return a choice as search.json has it."""
    if isinstance(choice, Options):
        return {"values": list(choice.values)}
    if isinstance(choice, Reals):
        return {"low": choice.low, "high": choice.high, "log": choice.log}
    if isinstance(choice, Integers):
        return {"low": choice.low, "high": choice.high}
    return {}  # of a kind of the user's own, of which no figure can tell
