"""One dimension of a search space: a list of options, a range of integers, a range of reals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Protocol

from sseg_nase.errors import UserError, did_you_mean

Value = int | float | str
Point = Mapping[str, Value]


class Choice(Protocol):
    """One dimension of a space. All randomness comes from the generator that is passed."""

    @property
    def name(self) -> str:
        """The key in a point."""

    @property
    def size(self) -> int | None:
        """How many values there are; None for a continuum."""

    @property
    def width(self) -> int:
        """How many numbers `encode` gives."""

    @property
    def unit(self) -> float:
        """What makes the L1 distance of two encodings at most 1."""

    def check(self, value: object) -> Value:
        """Return `value` where it is one of this choice's; raise `UserError` otherwise."""

    def sample(self, rng: Random) -> Value:
        """Return any value."""

    def mutate(self, value: Value, rng: Random) -> Value:
        """Return another value, near this one where there is an order."""

    def neighbours(self, value: Value) -> list[Value]:
        """Return the values one step away."""

    def grid(self, steps: int) -> list[Value]:
        """Return all values, of a continuum `steps` of them, evenly spaced."""

    def few(self, steps: int) -> list[Value]:
        """Return all options, or about `steps` values of a range, its ends among them."""

    def encode(self, value: Value) -> list[float]:
        """Return `width` numbers in [0, 1]."""

    def decode(self, code: list[float]) -> Value:
        """Return the value of an encoding."""


@dataclass(frozen=True)
class Options:
    """A list of values without an order."""

    name: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise UserError(f"{self.name} has no values. List at least one.")
        if len({_distinct(v) for v in self.values}) < len(self.values):
            raise UserError(f"{self.name} lists a value twice: {list(self.values)}.")

    @property
    def size(self) -> int:
        """How many values there are."""
        return len(self.values)

    @property
    def width(self) -> int:
        """One number per value."""
        return len(self.values)

    @property
    def unit(self) -> float:
        """Two different values differ in two places."""
        return 0.5

    def check(self, value: object) -> Value:
        """Return the value; raise `UserError` with what there is."""
        for known in self.values:
            if _distinct(known) == _distinct(value):
                return known
        near = did_you_mean(value, map(str, self.values)) if isinstance(value, str) else ""
        raise UserError(f"{self.name}={value!r} is none of {list(self.values)}.{near}")

    def sample(self, rng: Random) -> Value:
        """Return any value."""
        return self.values[int(rng.random() * len(self.values))]

    def mutate(self, value: Value, rng: Random) -> Value:
        """Return any other value; the same where there is only one."""
        if len(self.values) == 1:
            return value
        at = int(rng.random() * (len(self.values) - 1))
        return self.values[at + (at >= self.values.index(value))]

    def neighbours(self, value: Value) -> list[Value]:
        """Return all other values."""
        return [other for other in self.values if other != value]

    def grid(self, steps: int) -> list[Value]:
        """Return all values."""
        return list(self.values)

    def few(self, steps: int) -> list[Value]:
        """Return all values."""
        return list(self.values)

    def encode(self, value: Value) -> list[float]:
        """Return one-hot numbers."""
        return [1.0 if other == value else 0.0 for other in self.values]

    def decode(self, code: list[float]) -> Value:
        """Return the value with the largest number."""
        return self.values[max(range(len(code)), key=code.__getitem__)]


class _Range:
    """What ranges have in common: their encoding."""

    @property
    def width(self) -> int:
        """One number."""
        return 1

    @property
    def unit(self) -> float:
        """The encoding is between 0 and 1 already."""
        return 1.0


@dataclass(frozen=True)
class Integers(_Range):
    """Whole numbers from `low` to `high`, both included."""

    name: str
    low: int
    high: int

    def __post_init__(self) -> None:
        _check_bounds(self.name, self.low, self.high, log=False)

    @property
    def size(self) -> int:
        """How many values there are."""
        return self.high - self.low + 1

    def check(self, value: object) -> int:
        """Return the value; raise `UserError` with the bounds."""
        if isinstance(value, int) and not isinstance(value, bool) and self._holds(value):
            return value
        raise UserError(f"{self.name}={value!r} is no whole number from {self.low} to {self.high}.")

    def sample(self, rng: Random) -> int:
        """Return any value."""
        return rng.randint(self.low, self.high)

    def mutate(self, value: Value, rng: Random) -> int:
        """Return another value, a fifth of the range away at most."""
        reach = max(1, self.size // 5)
        low, high = max(self.low, int(value) - reach), min(self.high, int(value) + reach)
        if low == high:
            return int(value)
        other = rng.randint(low, high - 1)
        return other + (other >= int(value))

    def neighbours(self, value: Value) -> list[Value]:
        """Return the next smaller and the next larger one."""
        return [other for other in (int(value) - 1, int(value) + 1) if self._holds(other)]

    def grid(self, steps: int) -> list[Value]:
        """Return all values."""
        return list(range(self.low, self.high + 1))

    def few(self, steps: int) -> list[Value]:
        """Return some values from end to end, evenly spaced."""
        return list(dict.fromkeys(self.decode([at / (steps - 1)]) for at in range(steps)))

    def encode(self, value: Value) -> list[float]:
        """Return where in the range it is, from 0 to 1."""
        return [(int(value) - self.low) / max(1, self.high - self.low)]

    def decode(self, code: list[float]) -> int:
        """Return the nearest value."""
        return round(self.low + code[0] * (self.high - self.low))

    def _holds(self, value: int) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Reals(_Range):
    """Real numbers from `low` to `high`; with `log`, evenly spread over orders of magnitude."""

    name: str
    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        _check_bounds(self.name, self.low, self.high, self.log)

    @property
    def size(self) -> int | None:
        """A continuum, but for a single number."""
        return 1 if self.low == self.high else None

    def check(self, value: object) -> float:
        """Return the value; raise `UserError` with the bounds."""
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and self.low <= value <= self.high
        ):
            return float(value)
        raise UserError(f"{self.name}={value!r} is no number from {self.low} to {self.high}.")

    def sample(self, rng: Random) -> float:
        """Return any value."""
        return self.decode([rng.random()])

    def mutate(self, value: Value, rng: Random) -> float:
        """Return a value near this one: normal with a fifth of the range, reflected at the ends."""
        moved = self.encode(value)[0] + rng.gauss(0.0, 0.2)
        folded = abs(moved) % 2.0
        return self.decode([2.0 - folded if folded > 1.0 else folded])

    def neighbours(self, value: Value) -> list[Value]:
        """Return the values a tenth of the range below and above, as far as they are within it."""
        at = self.encode(value)[0]
        return [self.decode([to]) for to in (at - 0.1, at + 0.1) if -1e-9 <= to <= 1 + 1e-9]

    def grid(self, steps: int) -> list[Value]:
        """Return `steps` values from end to end, evenly spaced; with 1, the middle."""
        if self.size == 1:
            return [self.low]
        if steps == 1:
            return [self.decode([0.5])]
        return [self.decode([step / (steps - 1)]) for step in range(steps)]

    def few(self, steps: int) -> list[Value]:
        """Return some values from end to end, evenly spaced."""
        return self.grid(steps)

    def encode(self, value: Value) -> list[float]:
        """Return where in the range it is, from 0 to 1."""
        low, high, at = (self._scaled(v) for v in (self.low, self.high, float(value)))
        return [(at - low) / (high - low) if high > low else 0.0]

    def decode(self, code: list[float]) -> float:
        """Return the value at that place of the range."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        at = low + code[0] * (high - low)
        return min(self.high, max(self.low, math.exp(at) if self.log else at))

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else value


def _check_bounds(name: str, low: float, high: float, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise UserError(f"{name} goes from {low} to {high}. The first must not be the larger one.")
    if log and low <= 0:
        raise UserError(f"{name} is logarithmic and starts at {low}. It must start above 0.")


def _distinct(value: object) -> tuple[str, object]:
    """1, 1.0 and True are equal in Python, and are not the same value of a choice."""
    kind = "number" if type(value) in (int, float) else type(value).__name__
    return kind, value
