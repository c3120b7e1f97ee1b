"""What can be configured: the keys of the schema."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from sseg_nase.config.options import fields_of, until_registered
from sseg_nase.config.schema import Config

# Keys that are written otherwise on the command line: `from` can be no field in Python.
WRITTEN_AS = {
    "sweep.dir": "sweep",
    "search.dir": "search",
    "finetune.start": "finetune.from",
}


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
