"""The keys that name files and folders: made absolute once, so that a run finds them again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from sseg_nase.config.commands import override
from sseg_nase.config.layout import path_keys
from sseg_nase.config.schema import Config
from sseg_nase.home import expanded

# `imagenet` as backbone.weights names no file. Paths decide no result: what lies there does, and
# is compared by its checksum.
PLACES = tuple(sorted(path_keys() - {"resume", "runs", "sweep.dir", "search.dir"}))
NAMES: Mapping[str, tuple[str, ...]] = {"backbone.weights": ("imagenet",)}
# FILE.py:NAME or MODULE:NAME, what a search takes from a file of the user's own.
TARGETS = ("space.target", "strategy.target", "evaluator.target")
# Without it a run would look somewhere else for its images when it is resumed.
ALWAYS = ("paths.data_dir",)


def settled(config: Config) -> Config:
    """Return `config` with absolute paths: it means the same wherever it is read."""
    for key in PLACES:
        value = place_of(config, key)
        if value is not None:
            config = _with(config, key, str(expanded(key, value).absolute()))
    for key in TARGETS:
        if (target := place_of(config, key)) is not None:
            config = _with(config, key, _settled_target(key, target))
    if config.runs is not None:
        runs = [name if name == "LAST" else str(Path(name).absolute()) for name in config.runs]
        config = dataclasses.replace(config, runs=runs)
    return config


def settled_overrides(overrides: Sequence[str], config: Config) -> list[str]:
    """Return overrides with the paths of a `settled` config, to be resumed with in any folder.

    What was not overridden is added where its default depends on the folder or the environment.
    """
    given = {key_of(text) for text in overrides}
    places = (*PLACES, *TARGETS)
    kept = [text for text in overrides if key_of(text) not in (*places, "runs")]
    for key in places:
        value = place_of(config, key)
        if value is not None and (key in given or key in ALWAYS):
            kept.append(override(key, value))
    return kept


def _settled_target(key: str, target: str) -> str:
    where, _colon, name = target.rpartition(":")
    return f"{expanded(key, where).absolute()}:{name}" if where.endswith(".py") else target


def still_there(text: str, value: object) -> bool:
    """Whether a stored override of a folder for data or caches still names one.

    On another machine these are where the environment, or `conf/`, says.
    """
    folders = ("paths.data_dir", "paths.cache_dir")
    return key_of(text) not in folders or Path(str(value)).expanduser().exists()


def place_of(config: Config | Mapping[str, Any], key: str) -> str | None:
    """Return the path under a dotted key; None where there is none, or a name in its place."""
    value: Any = config
    for part in key.split("."):
        if (
            value is None
        ):  # an older version has stored no such section, or an option has no such key
            return None
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
    return None if not value or value in NAMES.get(key, ()) else str(value)


def key_of(text: str) -> str:
    """Return the key of `key=value`, whatever stands before it."""
    return text.lstrip("+~").partition("=")[0]


def keys_given(overrides: Sequence[str]) -> set[str]:
    """Return the keys that overrides give; `search.caps={params: 9}` gives `search.caps.params`."""
    found = set[str]()
    for text in overrides:
        found.add(key := key_of(text))
        if "{" in text:
            value = OverridesParser.create().parse_override(text).value()
            found |= {f"{key}.{name}" for name in value} if isinstance(value, dict) else set()
    return found


def _with(config: Config, key: str, value: str) -> Config:
    section, _, name = key.rpartition(".")
    change: dict[str, Any] = {name: value}
    if section:
        change = {section: dataclasses.replace(getattr(config, section), **change)}
    return dataclasses.replace(config, **change)
