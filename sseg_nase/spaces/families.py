"""A genome of network types, each with choices of its own: what the genetic search walks.

The types are the registered backbones that tell a genome, and a point says the keys of one: its
network is that of `backbone=NAME` with these keys. One of your own takes part by being registered,
as a backbone (`nets/families/`) or by `register_family`.

What a point says of its training (`trains`) is the second part of the genome, and no part of the
network: one network at two learning rates is two candidates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from hashlib import sha256
from random import Random
from typing import Any, get_args

from sseg_nase.config.commands import override
from sseg_nase.config.groups.backbone import BackboneConfig, Planned
from sseg_nase.config.options import fields_of, options_of, until_registered
from sseg_nase.errors import UserError, did_you_mean
from sseg_nase.nets.description import Description
from sseg_nase.nets.genome import FILTERS, UNITS, Genome
from sseg_nase.nets.plan import Plan
from sseg_nase.nets.searched import SearchedArchitecture
from sseg_nase.spaces.choice import Choice, Integers, Options, Point, Value
from sseg_nase.spaces.family import FAMILIES, LEVELS, Family, Limits
from sseg_nase.spaces.first_families import FIRST
from sseg_nase.spaces.networks import NetworkSpace, register_space
from sseg_nase.spaces.space import TRIES

MOST = 50  # layers
TYPE, LAYERS, TRAINING = "type", "layers", "training"
TYPE_RATE = 0.2  # of the rate of the other genes
LAYERS_AT = {1: 3, 2: 5}  # at most, at a level below the last
# The second part of the genome, by the stage that it is about, and the keys that it sets.
RATES = Options(f"{TRAINING}.lr", (0.1, 0.01, 0.001, 0.0001))
OPTIMIZERS = Options(f"{TRAINING}.optimizer", ("sgd", "adam", "adamw"))
DROPOUT = Options(f"{TRAINING}.dropout", (0.0, 0.1, 0.2, 0.3, 0.5))
TRAININGS: Mapping[str, tuple[Options, ...]] = {
    "": (),
    "pretrain": (RATES, OPTIMIZERS),
    "finetune": (RATES, Options(f"{TRAINING}.optimizer", ("sgd", "adam"))),
    "classifier": (RATES, OPTIMIZERS, DROPOUT),
}
TUNING_KEYS = {
    "optimizer": ("finetune.optimizer",),
    "lr": ("finetune.lr_encoder", "finetune.lr_head"),
}
TRAINING_KEYS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "pretrain": {"optimizer": ("optimizer",), "lr": ("optimizer.lr",)},
    "finetune": TUNING_KEYS,
    "classifier": {**TUNING_KEYS, "dropout": ("finetune.dropout",)},
}


@dataclass(frozen=True)
class Families(NetworkSpace):
    """All network types up to a level of complexity, 3 being everything.

    `edition` 2: the registered backbones; 1: those of searches from before, whose points say other
    networks. `types`: only these; empty, all. `most`: layers of those that count them. `trains`:
    the stage whose learning rate and optimizer are chosen, too: pretrain, finetune, or none;
    classifier is finetune=classifier (or linear), of which dropout is chosen, too.
    """

    name: str = "families"
    level: int = LEVELS
    most: int = 8
    types: tuple[str, ...] = ()
    edition: int = 1
    trains: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.level <= LEVELS or not 2 <= self.most <= MOST:
            raise UserError(
                f"Space {self.name}: level={self.level} is 1 to {LEVELS}, most={self.most} is 2 to "
                f"{MOST}."
            )
        if self.edition not in (1, 2):
            raise UserError(f"Space {self.name}: edition={self.edition} is 1 or 2.")
        if self.trains not in TRAININGS:
            named = ", ".join(filter(None, TRAININGS))
            raise UserError(f"Space {self.name}: trains={self.trains!r} is one of {named}, or ''.")
        known = self._known()
        for name in self.types:
            if name not in known:
                raise UserError(
                    f"There is no family {name!r}.{did_you_mean(name, known)} Known: "
                    f"{', '.join(known)}."
                )
        # Those of now: a family that is registered later changes no space that is in use.
        every = self.edition == 2  # so that points of all levels say the same choices
        types = self.types or tuple(
            f.name for f in known.values() if every or f.from_level <= self.level
        )
        object.__setattr__(self, "types", types)
        super().__post_init__()

    def _known(self) -> dict[str, Family]:
        if self.edition == 1:
            return {**FIRST, **FAMILIES}
        return {
            **{name: of.family for name, of in registered_at(self.resolution).items()},
            **FAMILIES,
        }

    @property
    def limits(self) -> Limits:
        """What this level allows."""
        most = min(LAYERS_AT.get(self.level, self.most), self.most)
        if self.level == 1:
            return Limits(most, FILTERS[:4], UNITS[:4], simple=True)
        return Limits(most)

    @property
    def levels(self) -> int:
        """How many levels of complexity there are: those up to its own."""
        return self.level if self.edition == 2 else 1

    @property
    def kinds(self) -> tuple[Value, ...]:
        """The network types at this level that have a network within the caps."""
        (types,) = (choice for choice in self.choices if choice.name == TYPE)
        return tuple(kind for kind in types.grid(2) if self._fits(kind))

    def _fits(self, kind: Value) -> bool:
        """Whether a type has a network within the caps: remembered, as it may take a search."""
        asked = self.text, self.resolution, self.in_channels, kind, *sorted(self.caps.items())
        if asked not in _FITS:
            _FITS[asked] = not self.caps or self._down_from_first(kind) <= 0
        return _FITS[asked]

    def _first(self, kind: Value) -> dict[str, Value]:
        """The first values of a type, which are the smallest of most genes."""
        return {c.name: c.few(2)[0] for c in self.choices} | {TYPE: kind}

    def _down_from_first(self, kind: Value) -> float:
        """How far a type is above the caps where going down from its first values ends."""
        first, free = self._first(kind), replace(self.part(self.level, [kind]), caps={})
        return free._down(self._excess, self._excess(first), first)[0]

    def _smallest(self) -> dict[str, Value] | None:
        """As in any space; first of all the first values of each type, which are the smallest."""
        for kind in self.choices[0].grid(2):
            if self.allows(first := self._first(kind)):
                return first
        return super()._smallest()

    def part(self, level: int, kinds: Sequence[Value] | None = None) -> Families:
        """Return what the space is at a level, of some types; its points are the whole's, too."""
        one = level == self.level or self.edition == 1
        found = self if one else replace(self, level=level, choices=())
        if kinds is None:
            return found
        these = Options(TYPE, tuple(kinds))
        return replace(found, choices=tuple(these if c.name == TYPE else c for c in found.choices))

    def _choices(self) -> tuple[Choice, ...]:
        known = self._known()
        now = [name for name in self.types if known[name].from_level <= self.level]
        if not now:
            raise UserError(
                f"Space {self.name}: none of types={list(self.types)} takes part at "
                f"level={self.level}."
            )
        found: list[Choice] = [Options(TYPE, tuple(now))]
        registered: Mapping[str, Registered] = {}
        if self.edition == 2:
            registered = registered_at(self.resolution)
        for name in self.types:
            if name in registered:
                choices = registered[name].choices(self.level, self.limits.most, self.most)
            else:
                choices = known[name].choices(self.limits)
            for choice in choices:
                found.append(replace(choice, name=f"{name}.{choice.name}"))  # type: ignore[type-var]
        return (*found, *TRAININGS[self.trains])

    # What a point says.

    def own(self, point: Point) -> dict[str, Value]:
        """Return the values of the point's own family, by the family's own names."""
        return _below(point, str(point[TYPE]))

    def training(self, point: Point) -> dict[str, Value]:
        """Return what the point says of its training: `lr`, `optimizer`, `dropout`."""
        return _below(point, TRAINING)

    def trained_like(self, point: Point, other: Point) -> dict[str, Value]:
        """Return the network of a point with the training of another one."""
        return {**point, **{f"{TRAINING}.{n}": v for n, v in self.training(other).items()}}

    def kind(self, point: Point) -> str:
        """Return the network type."""
        return str(point[TYPE])

    def active(self, point: Point) -> list[str]:
        """Return the type, the choices of its layers that there are, and those of the training."""
        own, start = self.own(point), f"{point[TYPE]}."
        names = [TYPE]
        for name in own:
            head = name.partition(".")[0]
            if not head.isdigit() or int(head) < int(own[LAYERS]):
                names.append(start + name)
        return [*names, *(choice.name for choice in TRAININGS[self.trains])]

    def key(self, point: Point) -> str:
        """Return `network_key` and, where the training is chosen, too, what the point says of it.

        Genes that change nothing do not count.
        """
        said = (f"{name}={value}" for name, value in self.training(point).items())
        return " ".join((self.network_key(point), *said))

    def network_key(self, point: Point) -> str:
        """Return the type and a hash of all operations: the same for every training."""
        nodes = json.dumps([astuple(node) for node in self.plan(point).nodes])
        return f"{point[TYPE]} {sha256(nodes.encode()).hexdigest()[:20]}"

    def plan(self, point: Point) -> Plan:
        """Return the operations of the point's family."""
        if (backbone := self.backbone(point)) is not None:
            found: Plan = backbone.plan(self.resolution)
            return found
        plan = Plan()
        self._known()[self.kind(point)].plan(plan, self.own(point), self.resolution)
        return plan

    def backbone(self, point: Point) -> Planned | None:
        """Return the option of `backbone` that a point says; None where its type is none."""
        if self.edition == 1 or self.kind(point) in FAMILIES:
            return None
        registered = registered_at(self.resolution)[self.kind(point)]
        return registered.option(self.own(point), self.in_channels)

    def describe(self, point: Point) -> Description:
        """Return the network of a point as data: that of the registered backbone, where it is."""
        backbone = self.backbone(point)
        if backbone is None:
            return super().describe(point)
        return SearchedArchitecture.configured(backbone, self.resolution)

    def overrides(self, point: Point) -> list[str]:
        """Return the overrides with which a run trains the network of a point, as the point says.

        They name the registered backbone and its keys.
        """
        found = super().overrides(point)
        if (backbone := self.backbone(point)) is not None:
            keys = (name for name, *_ in fields_of(type(backbone)) if name not in NOT_CHOSEN)
            said = [override(f"backbone.{key}", getattr(backbone, key)) for key in keys]
            found = [f"backbone={backbone.name}", *said, *found[3:]]
        for name, value in self.training(point).items():
            found += [override(key, value) for key in TRAINING_KEYS[self.trains][name]]
        return found

    # How points change.

    def sample(self, rng: Random) -> dict[str, Value]:
        """Return any type, each as often, and then any of its networks within the caps.

        Drawn together, the types would be as frequent as their networks are small.
        """
        kinds = self.kinds
        if len(kinds) < 2:
            return super().sample(rng)
        return self.part(self.level, [rng.choice(kinds)]).sample(rng)

    def _any(self, rng: Random) -> dict[str, Value]:
        """Any type, then any of its networks; genes that say nothing have their first value."""
        return self.canonical(super()._any(rng))

    def mutate(self, point: Point, rng: Random, rate: float | None = None) -> dict[str, Value]:
        """Return the point with each gene that says something changed with probability `rate`.

        The type changes with a fifth of it, and brings any genes of its own; a number of layers
        changes by one, and all lists with it. Without `rate` exactly one gene changes, the type a
        fifth as often as any other. The point itself comes back where nothing changed.
        """
        key, named = self.key(point), {choice.name: choice for choice in self.choices}
        active = self.active(point)
        weights = [TYPE_RATE if name == TYPE else 1.0 for name in active]
        for _ in range(TRIES):
            if rate is None:
                chosen = rng.choices(active, weights)
            else:
                pairs = zip(active, weights, strict=True)
                chosen = [name for name, weight in pairs if rng.random() < rate * weight]
            other = dict(point)
            # The numbers of layers last: the lists that they move have their new values then.
            for name in sorted(chosen, key=lambda each: each.endswith(f".{LAYERS}")):
                if name == TYPE:
                    if others := [kind for kind in self.kinds if kind != point[TYPE]]:
                        other = self._of_type(other, rng.choice(others), rng)
                    break
                if name.endswith(f".{LAYERS}") and isinstance(named[name], Integers):
                    self._lengthen(other, name, rng)
                elif named[name].size != 1:
                    other[name] = named[name].mutate(other[name], rng)
            other = self.canonical(other)
            if self.allows(other) and (not chosen or self.key(other) != key):
                return other
        return dict(point)

    def crossover(self, one: Point, other: Point, rng: Random) -> dict[str, Value]:
        """Return a child: one cut for all lists of a family, each other gene from either parent.

        Its layers up to the cut are those of `one`, the rest those of `other`, in whose number they
        are. Of two types only the training fits together: the child is a mutation of one of them
        whose training has each value from either.
        """
        if one[TYPE] != other[TYPE]:
            parent = one if rng.random() < 0.5 else other
            names = (choice.name for choice in TRAININGS[self.trains])
            mixed = {name: (one if rng.random() < 0.5 else other)[name] for name in names}
            return self.mutate({**parent, **mixed}, rng)
        start = f"{one[TYPE]}."
        for _ in range(TRIES):
            child = {n: (one if rng.random() < 0.5 else other)[n] for n in one}
            if (layers := f"{start}{LAYERS}") in one:
                child[layers] = other[layers]
                cut = rng.randint(1, min(int(one[layers]), int(other[layers])))
                for name in one:
                    if (at := _layer(name, start)) is not None:
                        child[name] = (one if at < cut else other)[name]
            child = self.canonical(child)
            if self.allows(child):
                return child
        return dict(one)

    def _of_type(self, point: Point, kind: Value, rng: Random) -> dict[str, Value]:
        """The point as another type, with any of its networks, and the same training."""
        any_one = self.part(self.level, [kind]).sample(rng)
        fresh = {name: value for name, value in any_one.items() if name.startswith(f"{kind}.")}
        return {**point, **fresh, TYPE: kind}

    def _lengthen(self, point: dict[str, Value], name: str, rng: Random) -> None:
        """Add a layer with any genes at any place, or take one away; the lists follow."""
        (choice,) = (c for c in self.choices if c.name == name)
        near = choice.neighbours(point[name])
        if not near:
            return
        start, have = name.removesuffix(LAYERS), int(point[name])
        want = int(near[int(rng.random() * len(near))])
        place = rng.randrange(max(have, want))
        before = dict(point)
        for gene in self.choices:
            at = _layer(gene.name, start)
            if at is None or at < place or at >= want:
                continue
            if want > have and at == place:
                point[gene.name] = gene.sample(rng)
            else:
                source = at - 1 if want > have else at + 1
                point[gene.name] = before[f"{start}{source}.{gene.name.rpartition('.')[2]}"]
        point[name] = want


_FITS: dict[tuple[Any, ...], bool] = {}  # by all that decides on it
NOT_CHOSEN = ("name", "in_channels", "imports")  # what all backbones have


@dataclass(frozen=True)
class Registered:
    """A backbone that tells a genome, and its option."""

    name: str
    kind: type[Planned]
    genome: Genome

    @property
    def family(self) -> Family:
        """Its name and level: its choices and operations follow from the option."""
        return Family(self.name, lambda limits: (), lambda *_: None, self.genome.level)

    def choices(self, level: int, most: int, longest: int) -> tuple[Choice, ...]:
        """Return its choices: at a level `most` layers, of as many genes as for the `longest`.

        Where it takes no part at the level they are those of all levels.
        """
        genome = self.genome
        below = genome.below.get(level, {})
        most = longest if level < genome.level else most
        return tuple(self._choices(below, most, longest))

    def _choices(self, below: Mapping[str, Any], most: int, longest: int) -> Iterator[Choice]:
        genome = self.genome
        if genome.lists:
            least, limit = genome.layers
            yield Integers(LAYERS, least, max(least, min(most, limit)))
            for layer in range(min(longest, limit)):
                for key, values in genome.lists.items():
                    yield _choice(f"{layer}.{key}", below.get(key, values), most)
        for key, values in genome.one.items():
            yield _choice(key, below.get(key, values), most)

    def option(self, own: Mapping[str, Value], in_channels: int) -> Planned:
        """Return the option with the values of a point's own genes."""
        genome, values = self.genome, dict[str, Any](self.genome.fixed)
        for key in genome.lists:
            values[key] = [own[f"{layer}.{key}"] for layer in range(int(own[LAYERS]))]
        values |= {key: own[key] for key in genome.one}
        for key, kind, _ in fields_of(self.kind):
            if kind is bool:
                values[key] = bool(values[key])
            elif get_args(kind) == (bool,):
                values[key] = [bool(value) for value in values[key]]
        return self.kind(name=self.name, in_channels=in_channels, imports=None, **values)


@until_registered
def registered_at(image_size: int) -> Mapping[str, Registered]:
    """Return the backbones that tell a genome for images of this size, by name."""
    return {
        name: Registered(name, kind, genome)
        for name, kind in options_of(BackboneConfig).items()
        if issubclass(kind, Planned) and (genome := kind.genome(image_size)) is not None
    }


def _choice(name: str, values: Sequence[Value], most: int) -> Choice:
    if isinstance(values, range):
        return Integers(name, values[0], max(values[0], min(values[-1], most)))
    return Options(name, tuple(values))


def _below(point: Point, name: str) -> dict[str, Value]:
    start = f"{name}."
    return {n.removeprefix(start): v for n, v in point.items() if n.startswith(start)}


def _layer(name: str, start: str) -> int | None:
    """The number of the layer that a gene of a family is about; None where it is about all."""
    head = name.removeprefix(start).partition(".")[0]
    return int(head) if name.startswith(start) and head.isdigit() else None


register_space("families", Families)
