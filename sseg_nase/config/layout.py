"""What can be configured: the folder of YAML groups, their options, and the keys of the schema."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sseg_nase.config.options import fields_of, until_registered
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError, did_you_mean

# Keys that are written otherwise on the command line: `from` can be no field in Python.
WRITTEN_AS = {
    "sweep.dir": "sweep",
    "search.dir": "search",
    "finetune.start": "finetune.from",
}

LAUNCHER = "hydra/launcher"

_PACKAGE = Path(__file__).resolve().parent.parent


def conf_dir() -> Path:
    """Return the folder of the YAML groups: beside the package in a checkout, else inside it."""
    for folder in (_PACKAGE.parent / "conf", _PACKAGE / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"the installation is incomplete: no conf folder beside {_PACKAGE}")


def groups(*further: Path) -> dict[str, tuple[str, ...]]:
    """Return the options of every config group in `conf/` and in `further` folders of that kind.

    Hydra's own groups are left out, and files whose names begin with `_`: what options share.
    """
    found: dict[str, set[str]] = {}
    for root in (conf_dir(), *further):
        for entry in os.scandir(root):
            if entry.is_dir() and entry.name != "hydra" and (options := _options_in(entry.path)):
                found.setdefault(entry.name, set()).update(options)
    return {group: tuple(sorted(found[group])) for group in sorted(found)}


def _options_in(folder: str) -> set[str]:
    """The files of a group's folder by the names that they have there, without their ending."""
    return {
        os.path.join(at, name)[len(folder) + 1 : -len(".yaml")].replace(os.sep, "/")
        for at, _, names in os.walk(folder)
        for name in names
        if name.endswith(".yaml") and not name.startswith("_")
    }


def launchers() -> tuple[str, ...]:
    """Return the options of `hydra/launcher`, which run the jobs of a sweep."""
    files = (conf_dir() / LAUNCHER).glob("*.yaml")
    return ("basic", *sorted(file.stem for file in files))


def unknown_option(group: str, name: str, options: typing.Sequence[str]) -> str:
    """Return the message for a choice that a group does not have."""
    return (
        f"{group}={name}: there is no such option; choose one of {', '.join(options)}."
        f"{did_you_mean(name, options)}"
    )


def group_option(group: str, name: str) -> dict[str, Any]:
    """Return the values of one group file, with those it inherits from files of its group.

    Raises `UserError` when the group has no such option.
    """
    options = _options_in(str(conf_dir() / group))
    if name not in options:
        raise UserError(unknown_option(group, name, sorted(options)))
    return dict(_merged_file(group, name))


def usual_of(group: str, name: str) -> dict[str, Any]:
    """Return the values of one group file; none for an option of another package."""
    return group_option(group, name) if name in _options_in(str(conf_dir() / group)) else {}


def is_section(kind: Any) -> bool:
    """Tell whether a field of this type holds further keys of the schema."""
    return dataclasses.is_dataclass(kind)


@until_registered
def key_types() -> Mapping[str, Any]:
    """Return the type of every dotted key that holds a value, such as `pretrain.epochs`.

    A dictionary stands there itself and with each key that it may have.
    """
    return dict(_leaves(Config, ""))


def holds(kind: Any, value: Any) -> bool:
    """Whether a stored value is of a type of the schema; null is, as older versions had it."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if value is None or kind is Any:
        return True
    if origin is list:
        return isinstance(value, list) and all(holds(inside[0], each) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(holds(inside[1], each) for each in value.values())
    if inside:  # Optional
        return holds(inside[0], value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is kind


def misfits(values: Mapping[str, Any], kind: Any = Config, prefix: str = "") -> Iterator[str]:
    """Yield the keys of a stored config whose values are of another type than the schema's.

    Keys that another version has, or lacks, are none.
    """
    for name, inner, _ in fields_of(kind):
        value = values.get(name)
        if not is_section(inner):
            if not holds(inner, value):
                yield prefix + name
        elif isinstance(value, dict):
            yield from misfits(value, inner, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name


@until_registered
def open_keys() -> frozenset[str]:
    """Return the dotted keys that hold a dictionary to which anybody may add, as `search.caps`."""
    kinds = key_types()
    mappings = {key for key, kind in kinds.items() if typing.get_origin(kind) is dict}
    return frozenset(mappings - {key.rpartition(".")[0] for key in kinds})


@until_registered
def path_keys() -> frozenset[str]:
    """Return the dotted keys whose text names a file or a folder, such as `paths.output_dir`."""
    return frozenset(_paths(Config, ""))


def _paths(kind: Any, prefix: str) -> Iterator[str]:
    for name, inner, accepted in fields_of(kind):
        if is_section(inner):
            yield from _paths(inner, f"{prefix}{name}.")
        elif "path" in accepted:
            yield prefix + name


def _leaves(kind: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, inner, accepted in fields_of(kind):
        if is_section(inner):
            yield from _leaves(inner, f"{prefix}{name}.")
            continue
        yield prefix + name, inner
        for key in accepted.get("keys", ()):
            yield f"{prefix}{name}.{key}", typing.get_args(inner)[1]


@cache
def _merged_file(group: str, name: str) -> Mapping[str, Any]:
    tree = OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{name}.yaml"))
    assert isinstance(tree, dict)
    merged: dict[str, Any] = {}
    for parent in tree.pop("defaults", []):
        if isinstance(parent, str) and parent != "_self_":  # else an option of another group
            merged |= _merged_file(group, parent)
    return merged | {str(key): value for key, value in tree.items()}
