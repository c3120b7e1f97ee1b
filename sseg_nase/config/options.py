"""The options of config groups: one frozen dataclass each, registered under the names it has.

A group's type is its base class, which has the fields that all options have; the class of an option
adds its own, and says what is wrong with their values. Which one a section is, its `name` tells.
Options of other packages are registered in the same way, in a module that the package names as an
entry point of the group `sseg_nase.options`, of a family of backbones `sseg_nase.families`:

    @register("optimizer", "lion")
    @dataclass(frozen=True)
    class Lion(OptimizerConfig):
        betas: Annotated[list[float], option(least=0, most=0.99999)]
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Annotated, Any, ClassVar, Optional, TypeVar

from sseg_nase import packages
from sseg_nase.errors import UserError

T = TypeVar("T")
Field = tuple[str, Any, Mapping[str, Any]]  # name, type, accepted values

ANY = "*"  # where an option is registered that every name is one of which no other option has

_GROUPS: dict[str, Any] = {}  # the base class of every group
_TOLD_BY: dict[Any, str] = {}  # of a base class the key that tells which option a section is
_OPTIONS: dict[Any, dict[str, Any]] = {}  # of a base class its options, by name
_CACHES: list[Any] = []


def option(
    *,
    choices: Sequence[Any] | None = None,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    keys: tuple[str, ...] | None = None,
    path: str | None = None,
    text: str | None = None,
    question: str | None = None,
) -> dict[str, Any]:
    """Return the values a field accepts, to stand beside its type in `Annotated`.

    Choices and bounds hold for every item of a list and every value of a dictionary; `keys` are
    the keys a dictionary may have; `path` says in words which file or folder a text names,
    `text` what else it is; `question` is what is asked where it is needed and not given. A text
    without choices is never empty.
    """
    accepted = {
        "choices": choices,
        "least": least,
        "above": above,
        "most": most,
        "keys": keys,
        "path": path,
        "text": text,
        "question": question,
    }
    return {key: value for key, value in accepted.items() if value is not None}


def filled(value: Optional[T], key: str) -> T:
    """Return the value of a key that is not null any more where this is called.

    It was fitted before, or the checks have asked for it; `AssertionError` where neither was done.
    """
    if value is None:
        raise AssertionError(f"{key} is null here: it is fitted, or asked for, before")
    return value


@dataclasses.dataclass(frozen=True)
class Checked:
    """A section that says itself what is wrong with it.

    `once_null`: versions before options had classes stored its keys with all other options of its
    group, as null. `title`: what reports call it; where it is empty, by its name.
    """

    once_null: ClassVar[bool] = True
    title: ClassVar[str] = ""

    def wrong(self) -> Iterator[str]:
        """Yield a sentence for everything that is wrong with the values taken together."""
        return iter(())


@dataclasses.dataclass(frozen=True)
class Option(Checked):
    """What the options of groups have that are told by a name.

    `off`: the name of the one in a group that does nothing, where there is one.
    """

    name: str
    off: ClassVar[str] = "none"


def group(name: str, *, told_by: str = "name") -> Callable[[type[T]], type[T]]:
    """Make the class the base of all options of the group of that name, its first key in YAML.

    `told_by` is the key whose value says which of them a section is.
    """

    def known(base: type[T]) -> type[T]:
        _GROUPS[name], _TOLD_BY[base], _OPTIONS[base] = base, told_by, {}
        return base

    return known


def register(group: str, *names: str) -> Callable[[type[T]], type[T]]:
    """Make the frozen dataclass the option of `group` that has these names.

    Raises `ValueError` where there is no such group, where the class does not inherit from the
    group's, and for a name that is taken.
    """

    def known(cls: type[T]) -> type[T]:
        base = _GROUPS.get(group)
        if base is None:
            raise ValueError(f"{group}: there is no such group; there are {', '.join(_GROUPS)}.")
        if not (dataclasses.is_dataclass(cls) and issubclass(cls, base)):
            raise ValueError(f"{cls.__name__}: an option of {group} is a {base.__name__}.")
        for name in names:
            if _OPTIONS[base].get(name, cls) is not cls:
                raise ValueError(f"{group}={name}: there is an option of that name already.")
            _OPTIONS[base][name] = cls
        for each in _CACHES:
            each.cache_clear()
        return cls

    return known


@cache
def load_packages() -> None:
    """Let the packages that are installed register their options, once in a process.

    Raises `UserError` where the module of one cannot be imported.
    """
    for group in (packages.OPTIONS, packages.FAMILIES):
        packages.load(group)


class OrOfPackages(Sequence[str]):
    """The choices that there are, and the names of what packages have in a group of entry points.

    These are read when somebody asks, and nothing is imported.
    """

    def __init__(self, own: tuple[str, ...], group: str) -> None:
        self.own, self.group = own, group

    @property
    def _all(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.own, *packages.names_in(self.group))))

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, index: Any) -> Any:
        return self._all[index]


@cache
def imported(target: str) -> Any:
    """Return what MODULE:NAME names: what an option is made by, which `--help` does not import.

    Raises `UserError` where it cannot be imported.
    """
    module, _, name = target.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{target}: an option is made by this, and it cannot be imported ({error}). Mend the "
            "package that it is from, or uninstall it."
        ) from error


def until_registered(function: Callable[..., T]) -> Callable[..., T]:
    """Remember what the function returns, until a further option is registered."""
    remembered = cache(function)
    _CACHES.append(remembered)
    return remembered


def is_group(kind: Any) -> bool:
    """Tell whether a type is the base class of a group's options."""
    return isinstance(kind, type) and kind in _OPTIONS


def told_by(kind: Any) -> str:
    """Return the key that tells which option of a group, given by its base class, a section is."""
    return _TOLD_BY[kind]


def options_of(kind: Any) -> Mapping[str, Any]:
    """Return the classes of the options of a group, given by its base class, by their names."""
    return {name: cls for name, cls in _OPTIONS[kind].items() if name != ANY}


def option_of(kind: Any, name: Any) -> Any:
    """Return the class of one option of a group; the group's own where there is none."""
    named = _OPTIONS[kind]
    return named.get(name, named.get(ANY, kind)) if isinstance(name, str) else kind


def off_in(group: str) -> str:
    """Return the name of the option of a group that does nothing, where there is one."""
    off: str = getattr(_GROUPS.get(group), "off", Option.off)
    return off


def title_of(kind: Any, name: str) -> str:
    """Return what reports call an option of a group, given by its base class."""
    return vars(option_of(kind, name)).get("title") or name


def names_with(cls: Any) -> tuple[str, ...]:
    """Return the names of the options that are of a class."""
    several = (each for kind in _OPTIONS for each in options_of(kind).items())
    return tuple(name for name, kind in several if issubclass(kind, cls))


def having(kind: Any, key: str) -> list[str]:
    """Return the names of those options of a group, given by its base class, that have a key.

    Without those that train nothing, which have the keys of another for nothing.
    """
    named = {**options_of(kind), "another": _OPTIONS[kind].get(ANY)}
    effective = {n: cls for n, cls in named.items() if cls and getattr(cls, "trains", True)}
    return [n for n, cls in effective.items() if any(key == f[0] for f in fields_of(cls))]


def of_this_package(cls: Any) -> bool:
    """Tell whether a class of options comes with this program."""
    return bool(cls.__module__.startswith("sseg_nase."))


@until_registered
def null_before(kind: Any) -> tuple[str, ...]:
    """Return the keys of options of this package that versions before held as null elsewhere.

    Of a group, given by its base class: its keys but sections and dictionaries.
    """
    own = {cls for cls in filter(of_this_package, _OPTIONS[kind].values()) if cls.once_null}
    several = (field for cls in own for field in fields_of(cls))
    kept = (
        n for n, kind, _ in several if typing.get_origin(kind) is not dict and not _nested(kind)
    )
    return tuple(sorted(set(kept)))


@until_registered
def fields_of(kind: Any) -> tuple[Field, ...]:
    """Return name, type and accepted values of every field of a schema dataclass.

    Of a group, given by its base class, those of all of its options: what only some of them have
    may be null, and is of any type where they do not agree on it.
    """
    if not is_group(kind):
        return tuple(_own_fields(kind))
    several = list(dict.fromkeys(_OPTIONS[kind].values()))
    named = {"text": "a name"} if ANY in _OPTIONS[kind] else option(choices=tuple(options_of(kind)))
    found: dict[str, Field] = {}
    for cls in (kind, *several):
        for name, inner, accepted in _own_fields(cls):
            if name == _TOLD_BY[kind]:
                accepted = named
            known = found.setdefault(name, (name, inner, accepted))
            if known[1] not in (inner, Any):
                inside = {_without_null(known[1]), _without_null(inner)}
                agreed = Optional[inside.pop()] if len(inside) == 1 else Any
                found[name] = name, agreed, known[2]
    shared = set.intersection(*({f[0] for f in _own_fields(cls)} for cls in several or [kind]))
    return tuple(
        (n, inner if n in shared or _nested(inner) else _or_null(inner), accepted)
        for n, inner, accepted in found.values()
    )


def _nested(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind)


def _own_fields(kind: Any) -> Iterator[Field]:
    hints: dict[str, Any] = {}
    for cls in reversed(kind.__mro__):
        hints |= _said_in(cls)
    for name, hint in hints.items():
        if typing.get_origin(hint) is ClassVar:
            continue
        annotated = typing.get_origin(hint) is Annotated
        inner, accepted = typing.get_args(hint) if annotated else (hint, {})
        yield name, inner, accepted


@cache
def _said_in(cls: type) -> dict[str, Any]:
    """The types that stand in a class itself: read once, not with every class that inherits it."""
    own = {key: vars(cls)[key] for key in ("__annotations__", "__module__") if key in vars(cls)}
    return typing.get_type_hints(type(cls.__name__, (), own), include_extras=True)


def _or_null(kind: Any) -> Any:
    return kind if kind is Any or typing.get_origin(kind) is dict else Optional[kind]


def _without_null(kind: Any) -> Any:
    inside = [one for one in typing.get_args(kind) if one is not type(None)]
    return inside[0] if type(None) in typing.get_args(kind) and len(inside) == 1 else kind
