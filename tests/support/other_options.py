"""A config whose sections are other options of their groups, without composing it."""

from __future__ import annotations

import dataclasses
from typing import Any

from sseg_nase.config.conf_files import group_option, groups
from sseg_nase.config.groups.dataset import Closed
from sseg_nase.config.members import chosen
from sseg_nase.config.options import fields_of, is_group
from sseg_nase.config.schema import Config

GROUPS = {name: kind for name, kind, _ in fields_of(Config) if is_group(kind)}
OWN = {"name": "own", "target": "mine.py:Mine", "settings": {}}  # no file: nothing is usual for it


def having(config: Config, key: str) -> Config:
    """`config`; where its option has no such key, with the values of one in conf/ that has it."""
    group, _, name = key.partition(".")
    before: Any = getattr(config, group)
    if group not in GROUPS or not name or hasattr(before, name.partition(".")[0]):
        return config
    # A classifier of a closed set last: it needs such a data set.
    options = sorted(groups()[group], key=lambda option: option == "classifier")
    for values in (*(group_option(group, option) for option in options), OWN):
        kind = chosen(GROUPS[group], values)
        names = [each for each, *_ in fields_of(kind)]
        if name in names:
            # What its file leaves to the rest of the config is as it was.
            own = {each: value for each, value in values.items() if "${" not in str(value)}
            kept = {each: own.get(each, getattr(before, each, None)) for each in names}
            section = kind(**kept)
            if isinstance(section, Closed):  # which is evaluated as such
                usual = dataclasses.replace(config.evaluation, name="knn", datasets=[section.name])
                config = dataclasses.replace(config, evaluation=usual)
            return dataclasses.replace(config, **{group: section})
    raise AssertionError(f"{key}: no option has it")


def type_of(config: Config, key: str) -> Any:
    """The type of a key in the options of `config`."""
    kind: Any = Config
    section: Any = config
    for name in key.split("."):
        kind = next(inner for each, inner, _ in fields_of(type(section)) if each == name)
        section = getattr(section, name)
    return kind
