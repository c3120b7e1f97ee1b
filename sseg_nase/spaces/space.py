"""A search space as a product of choices, with hard caps on what a point may cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from random import Random
from typing import Any, NamedTuple, TypeVar

from sseg_nase.errors import UserError, did_you_mean
from sseg_nase.spaces.choice import Choice, Point, Value
from sseg_nase.spaces.graph import Graph

TRIES = 200  # before a space is walked through in order
WALKABLE = 200_000  # points; a larger space is only sampled
Self = TypeVar("Self", bound="Space")


class Encoding(NamedTuple):
    """A point in another form: `decode(encode(point))` is the point, or one with the same code."""

    encode: Callable[[Point], Any]
    decode: Callable[[Any], dict[str, Value]]


@dataclass(frozen=True)
class Space:
    """What may be built: one value per choice, and no more of a cost than its cap.

    Every point that a space gives out is within the caps. Subclasses say which points are the same
    function (`key`) and what a point costs (`costs`), which is counted without weights.
    """

    name: str
    choices: tuple[Choice, ...]
    caps: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [choice.name for choice in self.choices]
        if not names:
            raise UserError(f"Space {self.name} has no choices. Give at least one.")
        if len(set(names)) < len(names):
            raise UserError(f"Space {self.name} names a choice twice: {', '.join(names)}.")

    # What a subclass may say.

    def key(self, point: Point) -> str:
        """Return the canonical key: points that are the same function share it."""
        return self.to_json(point)

    def costs(self, point: Point) -> Mapping[str, float]:
        """Return what can be counted before anything is built, such as params and macs."""
        return {}

    def kind(self, point: Point) -> Value:
        """Return which kind of point it is, where kinds have choices of their own."""
        return ""

    @property
    def levels(self) -> int:
        """How many levels of complexity there are: the last is the whole space."""
        return 1

    @property
    def kinds(self) -> tuple[Value, ...]:
        """The kinds of points that there are, where kinds have choices of their own."""
        return ()

    def part(self, level: int, kinds: Sequence[Value] | None = None) -> Space:
        """Return what there is at a level, of some kinds; its points are points of the whole."""
        return self

    def active(self, point: Point) -> list[str]:
        """Return the choices that say anything at this point."""
        return [choice.name for choice in self.choices]

    def graph(self, point: Point) -> Graph:
        """Return the network of a point as a graph. Raises `UserError` where there is none."""
        raise UserError(f"Space {self.name} has no graphs. Use a kernel or encoding without them.")

    @property
    def encodings(self) -> dict[str, Encoding]:
        """Every form a point can take, by name."""
        return {
            "json": Encoding(self.to_json, self.from_json),
            "one_hot": Encoding(self.one_hot, self.from_one_hot),
        }

    # What follows.

    @property
    def size(self) -> int | None:
        """How many points there are as written, caps aside; None for a continuum."""
        sizes = [choice.size for choice in self.choices]
        return None if None in sizes else prod(size or 0 for size in sizes)

    def encoding(self, name: str) -> Encoding:
        """Return an encoding by name. Raises `UserError` with those that there are."""
        known = self.encodings
        if name not in known:
            near = did_you_mean(name, known)
            raise UserError(f"Space {self.name} has encodings {', '.join(known)}; no {name}.{near}")
        return known[name]

    def check(self, point: Mapping[str, object]) -> dict[str, Value]:
        """Return the point in the order of the choices. Raises `UserError`, also above a cap."""
        names = [choice.name for choice in self.choices]
        for name in point:
            if name not in names:
                near = did_you_mean(str(name), names)
                raise UserError(f"Space {self.name} has no choice {name!r}.{near}")
        for name in names:
            if name not in point:
                raise UserError(f"The point lacks {name}. It has {', '.join(point) or 'nothing'}.")
        found = {choice.name: choice.check(point[choice.name]) for choice in self.choices}
        for name, cost in self.costs(found).items():
            if cost > self.caps.get(name, cost):
                raise UserError(
                    f"The point has {name} = {_amount(cost)}; at most {_amount(self.caps[name])}."
                )
        return found

    def allows(self, point: Point) -> bool:
        """Whether a point of this space is within all caps."""
        if not self.caps:
            return True
        costs = self.costs(point)
        return all(costs[name] <= cap for name, cap in self.caps.items())

    def under(self: Self, caps: Mapping[str, float]) -> Self:
        """Return this space with hard caps on costs.

        Raises `UserError` for a cost that is not counted, and, naming the smallest network, for
        caps that nothing meets.
        """
        counted = self.costs(self._any(Random(0)))
        for name in caps:
            if name not in counted:
                known = ", ".join(counted) or "nothing"
                near = did_you_mean(name, counted)
                raise UserError(f"Space {self.name} counts {known}; it cannot cap {name}.{near}")
        capped = replace(self, caps=dict(caps))
        if caps and capped._smallest() is None:
            wanted = " and ".join(f"{name} ≤ {_amount(cap)}" for name, cap in caps.items())
            least = "; ".join(self._least(name) for name in caps)
            raise UserError(f"Nothing in space {self.name} has {wanted}: {least}. Raise the caps.")
        return capped

    def sample(self, rng: Random) -> dict[str, Value]:
        """Return any point within the caps, uniformly over the points as written."""
        for _ in range(TRIES):
            point = self._any(rng)
            if self.allows(point):
                return point
        if self.size is not None and self.size <= WALKABLE:
            return rng.choice(list(self.points()))
        point = self._smallest() or {}  # `under` has made sure that there is one
        for _ in range(TRIES):
            point = self.mutate(point, rng)
        return point

    def neighbours(self, point: Point) -> list[dict[str, Value]]:
        """Return the points within the caps that differ by one step in one choice."""
        active = set(self.active(point))
        near = (
            {**point, choice.name: value}
            for choice in self.choices
            if choice.name in active
            for value in choice.neighbours(point[choice.name])
        )
        return [other for other in near if self.allows(other)]

    def mutate(self, point: Point, rng: Random, rate: float | None = None) -> dict[str, Value]:
        """Return the point with one choice changed, or each with probability `rate`.

        The point itself comes back where nothing changed, or where nothing within the caps is near.
        """
        for _ in range(TRIES):
            other = dict(point)
            if rate is None:
                choice = self.choices[int(rng.random() * len(self.choices))]
                other[choice.name] = choice.mutate(point[choice.name], rng)
            else:
                for choice in self.choices:
                    if rng.random() < rate:
                        other[choice.name] = choice.mutate(point[choice.name], rng)
            if self.allows(other):
                return other
        return dict(point)

    def crossover(self, one: Point, other: Point, rng: Random) -> dict[str, Value]:
        """Return a child with each value from either parent; a parent where the caps allow none."""
        for _ in range(TRIES):
            child = {name: (one if rng.random() < 0.5 else other)[name] for name in one}
            if self.allows(child):
                return child
        return dict(one)

    def points(self, start: int = 0) -> Iterator[dict[str, Value]]:
        """Yield every point within the caps, in order, the last choice running fastest.

        `start`: how many points as written are passed over. Raises `UserError` for a continuum,
        and where the caps leave next to nothing of a large space.
        """
        if self.size is None:
            endless = ", ".join(choice.name for choice in self.choices if choice.size is None)
            raise UserError(f"Space {self.name} cannot be enumerated: {endless} is a continuum.")
        grids, passed = [choice.grid(1) for choice in self.choices], 0
        for number in range(start, self.size):
            point: dict[str, Value] = {}
            for choice, options in zip(reversed(self.choices), reversed(grids), strict=True):
                number, position = divmod(number, len(options))
                point[choice.name] = options[position]
            point = {choice.name: point[choice.name] for choice in self.choices}
            if self.allows(point):
                passed = 0
                yield point
            elif (passed := passed + 1) > WALKABLE:
                raise UserError(
                    f"Space {self.name} has {self.size:.3g} points, and of {passed:,} in a row "
                    "none is within search.caps: it cannot be enumerated. Loosen the caps, or "
                    "choose a strategy that samples, such as strategy=evolution."
                )

    def index(self, point: Point) -> int:
        """Return the position of a point among the points as written."""
        number = 0
        for choice in self.choices:
            options = choice.grid(1)
            number = number * len(options) + options.index(point[choice.name])
        return number

    # Encodings.

    def to_json(self, point: Point) -> str:
        """Return the one way to write a point as JSON: in the order of the choices, no blanks."""
        return _json({choice.name: point[choice.name] for choice in self.choices})

    def from_json(self, text: str) -> dict[str, Value]:
        """Return the point that `to_json` wrote. Raises `UserError`."""
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{text!r} is no JSON object with one value per choice.")
        return self.check(found)

    def one_hot(self, point: Point) -> list[float]:
        """Return numbers from 0 to 1: one per option, one per range."""
        return [number for c in self.choices for number in c.encode(point[c.name])]

    def from_one_hot(self, code: list[float]) -> dict[str, Value]:
        """Return the point of a `one_hot` code."""
        point, at = {}, 0
        for choice in self.choices:
            point[choice.name] = choice.decode(list(code[at : at + choice.width]))
            at += choice.width
        return point

    # Within.

    def _any(self, rng: Random) -> dict[str, Value]:
        return {choice.name: choice.sample(rng) for choice in self.choices}

    def _smallest(self) -> dict[str, Value] | None:
        """Return a point within the caps; None where none is found."""
        if self.size is not None and self.size <= WALKABLE:
            return next(self.points(), None)
        found = self._descend(self._excess)
        return found if self.allows(found) else None

    def _excess(self, point: Point) -> float:
        """By how much a point is above the caps, as shares of these; 0 for one within them."""
        costs = self.costs(point)
        return sum(max(0.0, costs[name] / max(cap, 1e-9) - 1) for name, cap in self.caps.items())

    def _least(self, name: str) -> str:
        """Say which point has the least of a cost."""
        free = replace(self, caps={})
        if self.size is not None and self.size <= WALKABLE:
            point = min(free.points(), key=lambda p: self.costs(p)[name])
        else:
            point = free._descend(lambda p: self.costs(p)[name])
        least, active = _amount(self.costs(point)[name]), set(self.active(point))
        said = {key: value for key, value in point.items() if key in active}
        return f"the smallest has {name} = {least} ({_json(said)})"

    def _descend(self, excess: Callable[[Point], float]) -> dict[str, Value]:
        """Return where going down from some points ends, one choice at a time.

        From the best at random of each kind: from one kind nothing may lead down to another.
        """
        free, rng = replace(self, caps={}), Random(0)
        starts: dict[Value, tuple[float, dict[str, Value]]] = {}
        for point in (self._any(rng) for _ in range(TRIES)):
            kind, found = self.kind(point), (excess(point), point)
            if kind not in starts or found[0] < starts[kind][0]:
                starts[kind] = found
        ends = []
        for above, start in sorted(starts.values(), key=lambda each: each[0]):
            ends.append(free._down(excess, above, start))
            if ends[-1][0] <= 0:
                break
        return min(ends, key=lambda each: each[0])[1]

    def _down(
        self, excess: Callable[[Point], float], above: float, point: dict[str, Value]
    ) -> tuple[float, dict[str, Value]]:
        while above > 0:
            active = set(self.active(point))
            speaking = [choice for choice in self.choices if choice.name in active]
            far = ({**point, c.name: value} for c in speaking for value in c.few(9))
            lower = min([*self.neighbours(point), *far], key=excess)
            if (now := excess(lower)) >= above:
                break
            above, point = now, lower
        return above, point


def _json(values: Point) -> str:
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False)


def _amount(value: float) -> str:
    """Return a cost for people: counts whole, milliseconds with four digits."""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 10_000 else f"{value:.4g}"
