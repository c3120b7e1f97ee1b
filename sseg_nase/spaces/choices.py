"""A space of any named values: what tuning a program's settings needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sseg_nase.errors import UserError
from sseg_nase.spaces.choice import Choice, Integers, Options, Reals
from sseg_nase.spaces.space import Space

RANGE = re.compile(r"\s*(\w+)\s*\(\s*([^,()]+?)\s*,\s*([^,()]+?)\s*\)\s*")
ACCEPTED = "a list such as [0.1, 0.2], uniform(low, high), loguniform(low, high) or int(low, high)"


def choices_space(given: Mapping[str, str | Sequence[object]], name: str = "choices") -> Space:
    """Return the product of choices, such as `{"lr": "loguniform(1e-4, 1e-2)", "k": [1, 5]}`.

    A value is a list, `uniform(low, high)`, `loguniform(low, high)` or `int(low, high)`, bounds
    included. Raises `UserError` with the key and what is accepted.
    """
    return Space(name, tuple(_choice(key, value) for key, value in given.items()))


def _choice(key: str, value: str | Sequence[object]) -> Choice:
    if isinstance(value, str):
        return _range(key, value)
    if not isinstance(value, Sequence):
        raise UserError(f"{key}: {value!r} is no choice. Accepted: {ACCEPTED}.")
    for option in value:
        if isinstance(option, bool) or not isinstance(option, int | float | str):
            raise UserError(f"{key}: {option!r} is neither a number nor a text.")
    return Options(key, tuple(value))  # type: ignore[arg-type]


def _range(key: str, text: str) -> Choice:
    found = RANGE.fullmatch(text)
    if found is None or found[1] not in ("uniform", "loguniform", "int"):
        raise UserError(f"{key}: {text!r} is no choice. Accepted: {ACCEPTED}.")
    kind, *bounds = found.groups()
    try:
        if kind == "int":
            return Integers(key, int(bounds[0]), int(bounds[1]))
        return Reals(key, float(bounds[0]), float(bounds[1]), log=kind == "loguniform")
    except UserError:
        raise
    except ValueError as error:
        numbers = "whole numbers" if kind == "int" else "numbers"
        raise UserError(f"{key}: the bounds of {text!r} must be {numbers}.") from error
