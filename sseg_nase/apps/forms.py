"""From what is chosen and typed on the page to the arguments of `sseg-nase`, and what is wrong."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from sseg_nase.config.commands import override
from sseg_nase.config.compose import load, spelled_out, unchecked
from sseg_nase.config.keys import Key, keys_of
from sseg_nase.config.multirun import split
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError

# Hydra composes for one thread at a time, and every open page has threads of its own.
_composing = threading.Lock()
# Sections of other pages, or of none: where the page itself is served.
ELSEWHERE = ("ui",)


@dataclass(frozen=True)
class Wanted:
    """What is to be started.

    `choices`: options by their group, several in a sweep; `values`: by key, what is to be changed,
    plain data or text as on the command line (`Raw`); `further`: overrides as they were typed;
    `several`: a sweep.
    """

    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    further: Sequence[str] = ()
    several: bool = False

    def overrides(self) -> list[str]:
        """Return the overrides of the command line."""
        chosen = [f"{group}={','.join(names)}" for group, names in self.choices.items() if names]
        return [*chosen, *(written(k, v) for k, v in self.values.items()), *self.further]

    def arguments(self) -> list[str]:
        """Return what stands behind `sseg-nase`."""
        return [*(["-m"] if self.several else []), *self.overrides()]


class Raw(str):
    """A value as it is written on the command line, such as `[1,5]` or `null`."""


def written(key: str, value: Any) -> str:
    """Return `key=value` for the command line."""
    return f"{key}={value}" if isinstance(value, Raw) else override(key, value)


def shown(value: Any) -> str:
    """Return a value as text of the command line."""
    return override("", value)[1:]


def keys(wanted: Wanted, config_dirs: Sequence[str] = ()) -> list[Key]:
    """Return the keys that the chosen options have, with the values that these give them.

    Of several options of a group, in a sweep, the first. Raises `UserError`.
    """
    first = {group: names[:1] for group, names in wanted.choices.items()}
    found = _keys(tuple(Wanted(first).overrides()), tuple(config_dirs))
    return [key for key in found if key.section not in ELSEWHERE]


class Checked(NamedTuple):
    """What the command itself would say: its `problem`, or None; of a sweep the jobs' names."""

    problem: str | None
    jobs: Sequence[str] = ()


def check(wanted: Wanted, config_dirs: Sequence[str] = ()) -> Checked:
    """Compose it as the command does, and see what is wrong with it."""
    return _checked(tuple(wanted.overrides()), wanted.several, tuple(config_dirs))


def composed(overrides: Sequence[str]) -> Config:
    """Return a config. Raises `UserError`."""
    with _composing:
        return load(overrides)


@lru_cache(maxsize=64)
def _keys(overrides: tuple[str, ...], config_dirs: tuple[str, ...]) -> list[Key]:
    with _composing:
        return keys_of(unchecked(overrides, *map(Path, config_dirs)))


@lru_cache(maxsize=64)
def _checked(overrides: tuple[str, ...], several: bool, config_dirs: tuple[str, ...]) -> Checked:
    from sseg_nase.sweeps.launch import NOTHING  # here, because it imports much
    from sseg_nase.sweeps.plan import plan

    further = [Path(folder) for folder in config_dirs]
    with _composing:
        try:
            if not several:
                load(overrides, *further)
                return Checked(None)
            if not overrides:
                return Checked(NOTHING)
            _, _, jobs = split(spelled_out(overrides, multirun=True))
            return Checked(None, [job.label for job in plan(jobs, *further)[1]])
        except UserError as error:
            return Checked(str(error))
