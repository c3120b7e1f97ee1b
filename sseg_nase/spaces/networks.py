"""What spaces of networks have in common: a point becomes a description, and costs follow."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from random import Random
from typing import Any

from sseg_nase.config.commands import override
from sseg_nase.errors import UserError, did_you_mean
from sseg_nase.nets.description import Description
from sseg_nase.nets.mixed import Mixture
from sseg_nase.nets.ops import OPERATIONS, same_definition
from sseg_nase.nets.plan import IMAGE, Plan
from sseg_nase.nets.searched import SearchedArchitecture
from sseg_nase.spaces.choice import Choice, Options, Point, Value
from sseg_nase.spaces.containing import Alternative, Containing
from sseg_nase.spaces.graph import Graph
from sseg_nase.spaces.space import TRIES, Encoding, Space

OF_IMAGES = ("resolution", "in_channels")  # settings


@dataclass(frozen=True)
class NetworkSpace(Space):
    """Networks for images `[in_channels, resolution, resolution]`.

    Subclasses give `plan`, the operations of a point, and, where points can be the same network,
    `canonical`: the one way to write each. Params, macs and memory are counted without weights.
    """

    name: str = "networks"
    choices: tuple[Choice, ...] = ()
    resolution: int = 32
    in_channels: int = 3

    def __post_init__(self) -> None:
        if self.resolution < 1 or self.in_channels not in (1, 3):
            raise UserError(
                f"Space {self.name}: resolution={self.resolution} must be at least 1, and "
                f"in_channels={self.in_channels} 1 or 3."
            )
        if not self.choices:  # a part of them may be given: fewer operations, say
            object.__setattr__(self, "choices", self._choices())
        super().__post_init__()

    # What a subclass says.

    def _choices(self) -> tuple[Choice, ...]:
        """Return the choices, made from the settings."""
        raise NotImplementedError

    def plan(self, point: Point) -> Plan:
        """Return the operations of a point's network."""
        raise NotImplementedError

    def canonical(self, point: Point) -> dict[str, Value]:
        """Return the one way to write this network. Choices that say nothing have their first."""
        active = set(self.active(point))
        return {c.name: point[c.name] if c.name in active else c.few(2)[0] for c in self.choices}

    def containing(self, partial: int = 1) -> Containing:
        """Return the network that contains all: a mixed operation wherever a point chooses one.

        `partial`: only one in so many channels is mixed. Raises `UserError` for a space that
        chooses more than operations, and does not say how one network contains all of that.
        """
        point: dict[str, Any] = {}
        gates, decisions = {}, {}
        for choice in self.choices:
            values = getattr(choice, "values", ())
            if not isinstance(choice, Options) or not all(v in OPERATIONS for v in values):
                raise self.has_no_supernet(f"its choice {choice.name} is not one of operations")
            gates[choice.name] = tuple(str(v) for v in values)
            point[choice.name] = Mixture(choice.name, gates[choice.name], partial)
            decisions[choice.name] = tuple(
                Alternative({choice.name: value}, {choice.name: number})
                for number, value in enumerate(values)
            )
        return Containing(tuple(self.plan(point).nodes), gates, decisions)

    def has_no_supernet(self, why: str) -> UserError:
        """What is raised where no network contains all of the space's."""
        return UserError(
            f"Space {self.name}: {why}, so that there is no network that contains all of them. "
            "Search it with strategy=…, or take a space whose networks are in one, such as "
            "space=nb201, space=darts or space=tiny."
        )

    # What follows.

    def describe(self, point: Point) -> Description:
        """Return the network of a point as data, from which it is built. No weight is made."""
        nodes = tuple(self.plan(point).nodes)
        text = self.to_json(point)
        return SearchedArchitecture(
            "searched", self.resolution, self.in_channels, nodes, self.name, text
        )

    def overrides(self, point: Point) -> list[str]:
        """Return the overrides with which a run trains the network of a point, and nothing else."""
        return [
            "backbone=searched",
            override("backbone.space", self.text),
            override("backbone.point", self.to_json(point)),
            "evolution=none",
            "sparsity=none",
        ]

    @property
    def text(self) -> str:
        """The name and, in brackets, the settings that are not the usual ones: see `named_space`.

        Not those that a run has from its data set.
        """
        kept = [each for each in fields(self) if each.name not in (*NO_SETTINGS, *OF_IMAGES)]
        values = ((each, getattr(self, each.name)) for each in kept)
        given = [f"{each.name}={value!r}" for each, value in values if value != each.default]
        return f"{self.name}({', '.join(given)})" if given else self.name

    def key(self, point: Point) -> str:
        """Return the canonical point as JSON."""
        return self.to_json(self.canonical(point))

    def costs(self, point: Point) -> Mapping[str, float]:
        """Return params, macs and memory (bytes in float32, one image) of the network itself."""
        found = self.describe(point)
        assert isinstance(found, SearchedArchitecture)
        return found.count()._asdict()

    def graph(self, point: Point) -> Graph:
        """Return operations as nodes between input and output."""
        nodes = self.plan(self.canonical(point)).nodes
        edges = [(s + 1 if s != IMAGE else 0, n + 1) for n, x in enumerate(nodes) for s in x.inputs]
        edges.append((len(nodes), len(nodes) + 1))
        return Graph(("input", *(node.op for node in nodes), "output"), tuple(edges))

    def mutate(self, point: Point, rng: Random, rate: float | None = None) -> dict[str, Value]:
        """As in any space, by choices that say something; what leaves the network is tried again.

        Without `rate` the point itself comes back only where nothing else was found.
        """
        key, active = self.key(point), set(self.active(point))
        speaking = [choice for choice in self.choices if choice.name in active]
        for _ in range(TRIES):
            other = dict(point)
            if rate is None:
                choice = speaking[int(rng.random() * len(speaking))]
                other[choice.name] = choice.mutate(point[choice.name], rng)
            else:
                other = super().mutate(point, rng, rate)
            if self.key(other) != key and self.allows(other):
                return other
        return dict(point)

    def neighbours(self, point: Point) -> list[dict[str, Value]]:
        """As in any space; every other network once."""
        found = {self.key(point): dict(point)}
        for other in super().neighbours(point):
            found.setdefault(self.key(other), other)
        return list(found.values())[1:]

    @property
    def encodings(self) -> dict[str, Encoding]:
        """JSON, one-hot, a short text, and nested by the parts of the names."""
        return {
            **super().encodings,
            "string": Encoding(self.to_string, self.from_string),
            "hierarchical": Encoding(self.nested, self.from_nested),
        }

    def to_string(self, point: Point) -> str:
        """Return the values in the order of the choices: `a|b|c`."""
        return "|".join(str(point[choice.name]) for choice in self.choices)

    def from_string(self, text: str) -> dict[str, Value]:
        """Return the point that `to_string` wrote. Raises `UserError`."""
        parts = text.split("|")
        if len(parts) != len(self.choices):
            raise UserError(
                f"{text!r} has {len(parts)} values; space {self.name} has {len(self.choices)}: "
                f"{', '.join(choice.name for choice in self.choices)}."
            )
        found: dict[str, object] = {}
        for choice, part in zip(self.choices, parts, strict=True):
            typed = {str(value): value for value in choice.grid(2)}
            found[choice.name] = typed.get(part, part)
        return self.check(found)

    def nested(self, point: Point) -> dict[str, Any]:
        """Return the values by the parts of their names: `normal.0.op` is `["normal"]["0"]["op"]`.

        A value beside parts of its name stands under the empty name.
        """
        tree: dict[str, Any] = {}
        for choice in self.choices:
            at = tree
            for part in choice.name.split("."):
                at = at.setdefault(part, {})
            at[""] = point[choice.name]
        return _without_lonely(tree)

    def from_nested(self, code: Mapping[str, Any]) -> dict[str, Value]:
        """Return the point of a nested code. Raises `UserError`."""
        return self.check(dict(_flat(code, ())))

    def read(self, given: str | Mapping[str, object]) -> dict[str, Value]:
        """Return a point from JSON, from `to_string`'s text or from plain data, checked."""
        if not isinstance(given, str):
            return self.check(given)
        if given.lstrip().startswith("{"):
            return self.from_json(given)
        return self.encoding("string").decode(given)

    def largest(self, name: str = "params") -> dict[str, Value]:
        """Return a point with as much of a cost as is found: a line to beat under the same caps.

        One of every kind is changed, a step in one choice at a time, until nothing has more.
        """
        rng = Random(0)
        parts = [self.part(self.levels, [kind]) for kind in self.kinds] or [self]
        ends = [part._climbed(part.sample(rng), name) for part in parts]  # type: ignore[attr-defined]
        return max(ends, key=lambda point: self.costs(point)[name])

    def _climbed(self, point: dict[str, Value], name: str) -> dict[str, Value]:
        for _ in range(TRIES):
            near = max(self.neighbours(point), key=lambda p: self.costs(p)[name], default=point)
            if self.costs(near)[name] <= self.costs(point)[name]:
                break
            point = near
        return point


def _without_lonely(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if set(tree) == {""}:
        return tree[""]
    return {name: _without_lonely(below) for name, below in tree.items()}


def _flat(tree: Any, at: tuple[str, ...]) -> list[tuple[str, Any]]:
    if not isinstance(tree, Mapping):
        return [(".".join(at), tree)]
    return [
        pair for name, below in tree.items() for pair in _flat(below, (*at, name) if name else at)
    ]


SPACES: dict[str, Callable[..., NetworkSpace]] = {}
NO_SETTINGS = ("name", "choices", "caps", "latency")


def register_space(name: str, make: Callable[..., NetworkSpace]) -> None:
    """Add a space of networks. Raises `UserError` for a name in use."""
    if not same_definition(SPACES.get(name, make), make):
        raise UserError(f"Space {name} is registered already. Choose another name.")
    SPACES[name] = make


def named_space(text: str, **settings: Any) -> NetworkSpace:
    """Return a space by its name and, in brackets, its settings: `darts(cells=4, width=8)`.

    `settings` are those that come from elsewhere; those in the text win. Raises `UserError`.
    """
    name, given = _parsed(text)
    if name not in SPACES:
        raise UserError(
            f"There is no space {name!r}.{did_you_mean(name, SPACES)} Known: {', '.join(SPACES)}."
        )
    make = SPACES[name]
    given = {**settings, **given}
    known = [each.name for each in fields(make) if each.name not in NO_SETTINGS]  # type: ignore[arg-type]
    for key in given:
        if key not in known:
            raise UserError(
                f"Space {name} has no setting {key!r}.{did_you_mean(key, known)} It has "
                f"{', '.join(known)}."
            )
    try:
        return make(**given)
    except TypeError as error:
        raise UserError(f"Space {text!r}: a setting has another type ({error}).") from error


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, {}
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
            values = {str(k.arg): ast.literal_eval(k.value) for k in tree.keywords}
            return tree.func.id, {
                key: tuple(v) if isinstance(v, list) else v for key, v in values.items()
            }
    except (SyntaxError, ValueError):
        pass
    raise UserError(f"{text!r} is no space. Give a name, or one with settings: darts(cells=4).")
