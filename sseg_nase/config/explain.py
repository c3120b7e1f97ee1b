"""Hydra's and OmegaConf's errors, said in one sentence with the nearest valid key or option."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Union

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sseg_nase.config.commands import argument
from sseg_nase.config.conf_files import LAUNCHER, groups, launchers, unknown_option
from sseg_nase.config.layout import key_types, open_keys
from sseg_nase.config.options import off_in
from sseg_nase.errors import UserError

_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
}
# Options with a second place in the config, beside that of their group.
PLACED = ("views@finetune.views",)
LONGEST_VALUE = 80  # characters of a value that is no text, in a message
_HYDRAS_ADVICE = re.compile(r" To append to your (?:config|default list) use \S+")
_PLURALS = {int: "whole numbers", float: "numbers", str: "words"}


@contextmanager
def explaining(overrides: Sequence[str], *further: Path) -> Iterator[None]:
    """Turn a failed composition of `overrides` into one `UserError` that names the mistake.

    `further` are config folders beside `conf/` (Hydra's `--config-dir`).
    """
    _refuse_what_composes(overrides, *further)
    try:
        yield
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError, OverflowError) as error:
        options = groups(*further)
        mistakes = [said for text in overrides if (said := mistake(text, options))]
        if not mistakes and not isinstance(error, (HydraException, OmegaConfBaseException)):
            raise
        raise UserError(listed(mistakes or [one_line(error)])) from error


def _refuse_what_composes(overrides: Sequence[str], *further: Path) -> None:
    """Refuse what Hydra composes, or advises against, into something that nobody means."""
    _refuse_removed(overrides)
    options = groups(*further) | {LAUNCHER: launchers()}
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            continue  # said when it is composed
        key, place = override.key_or_group, override.package
        if place is not None and f"{key}@{place}" not in PLACED:
            places = [key, *(each for each in PLACED if each.startswith(f"{key}@"))]
            raise UserError(
                f"{text}: {key} has no such place; write {' or '.join(f'{p}=...' for p in places)}."
            )
        staged = text.startswith("finetune=")  # in a sweep: a job with several stages
        mixed = any(isinstance(value, list) for value in _values(override))
        if key in options and mixed and not staged:
            raise UserError(
                f"{text}: {key} is one option, and a list would mix several; choose one of "
                f"{', '.join(options[key])}. Commas without brackets, and -m, run one after the "
                "other."
            )
        if key == LAUNCHER and (wrong := _wrong_option(override, launchers())):
            raise UserError(wrong)


def _refuse_removed(overrides: Sequence[str]) -> None:
    """Refuse `~group` and `~key` of what every run has: taken away, it would be missing."""
    for text in overrides:
        group = text[1:].partition("=")[0]
        if not text.startswith("~"):
            continue
        if group in key_types() and not _can_lack(group):
            raise UserError(f"{text}: {group} cannot be taken away; give it a value, {group}=...")
        if group not in _sections():
            continue
        options = groups().get(group, ())
        off = off_in(group)
        remedies = [f"write {group}={off}"] if off in options else []
        remedies += [f"choose one of {', '.join(options)}"] if options else []
        remedy = f"; {', or '.join(remedies)}" if remedies else ""
        raise UserError(f"{text}: every run has {group}.*, it cannot be taken away{remedy}.")


def listed(mistakes: Sequence[str]) -> str:
    """Return one message for all of the mistakes, one line each."""
    if len(mistakes) == 1:
        return mistakes[0]
    return "\n  ".join([f"{len(mistakes)} mistakes:", *mistakes])


def mistake(text: str, options: dict[str, tuple[str, ...]]) -> str | None:
    """Return what is wrong with one override, taken alone, or None."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        return _grammar(text)
    key = override.key_or_group
    if not key:
        return f"{text}: an override is written key=value, such as ablation=A7 (see --help)."
    if key.split(".")[0].split("/")[0] == "hydra":
        return None
    if key in options:
        return _wrong_option(override, options[key])
    return _wrong_value(override, options)


def unknown_key(key: str, known_groups: Sequence[str] = ()) -> str:
    """Return the message for a key that the schema does not have."""
    parent = key.rpartition(".")[0]
    siblings = _children(parent)
    there = f" {parent} has: {', '.join(siblings)}." if parent and siblings else ""
    near = _nearest(key, known_groups)
    return f"{key}: there is no such key.{there}" + (f" Did you mean '{near}'?" if near else "")


def wrong_type(key: str, value: Any) -> str:
    """Return the message for a value that the key's type does not take."""
    types_by_key = key_types()
    name = key.split("[")[0]
    if name not in types_by_key:
        inner = _children(name)
        return f"{name}={value}: this is a section; it has {', '.join(inner)}."
    return f"{name}={shown(value)}: {described(types_by_key[name])} is needed."


def described(kind: Any) -> str:
    """Return what a type of the schema takes, in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        words = ("null" if one is type(None) else described(one) for one in arguments)
        return " or ".join(words)
    if origin is list:
        example = "[a,b]" if arguments[0] is str else "[1,2]"
        return f"a list of {_PLURALS[arguments[0]]} such as {example}"
    if origin is dict:
        return f"{{name: value}} with {_PLURALS.get(arguments[1], 'values')}"
    return f"{_NAMES[kind]} ({kind.__name__})"


def one_line(error: BaseException) -> str:
    """Return the text of a Hydra or OmegaConf error on one line, with the key it is about."""
    if isinstance(error, OmegaConfBaseException):
        text = str(error).partition("\n")[0]
        return f"{error.full_key}: {text}" if error.full_key else text
    text = " ".join(str(error).partition("Config search path")[0].split())
    text = _HYDRAS_ADVICE.sub("", text)
    cause = one_line(error.__cause__) if error.__cause__ is not None else ""
    return f"{text} {cause}".strip()


def _grammar(text: str) -> str:
    key, equals, value = text.partition("=")
    if value.startswith("glob("):
        return f'{text}: a pattern needs quotes: {key}=glob("A[12]"), in single quotes as a whole.'
    if not equals or not key:
        return f"{text}: an override is written key=value, such as ablation=A7 (see --help)."
    if value.startswith(("[", "{", '"', "'")):
        return f"{text}: the value of {key} cannot be read; check its brackets and quotes."
    name = key.lstrip("+~")
    if not name.isascii():  # Hydra's keys are
        return unknown_key(name, tuple(groups()))
    options = groups().get(name, ())
    if options or "str" not in str(key_types().get(name, str)):  # no text is meant
        example = ",".join(options[:2]) or "0,1"
        return (
            f"{text}: the value of {key} cannot be read; between several values, in a sweep, "
            f"stands one comma, such as {key}={example}."
        )
    return f"{text}: the value needs quotes: write {argument(key, value)} with all its quotes."


def _wrong_option(override: Override, options: tuple[str, ...]) -> str | None:
    group, line = override.key_or_group, override.input_line
    if override.is_add() or override.is_force_add():
        return f"{line}: choose an option without a plus sign, {str(line).lstrip('+')}."
    if override.is_delete():
        return None
    for value in _values(override):
        for name in value if isinstance(value, list) else [value]:
            if name not in options:
                return unknown_option(group, shown(name), options)
    return None


def _wrong_value(override: Override, options: dict[str, tuple[str, ...]]) -> str | None:
    key, line = override.key_or_group, override.input_line
    known = key_types()
    if (entry := _entry(key)) is not None:
        values = [] if override.is_delete() else _values(override)
        unfit = (value for value in values if not fits(entry, value))
        return next((f"{key}={shown(v)}: {described(entry)} is needed." for v in unfit), None)
    if key not in known:
        if not _children(key):
            return unknown_key(key, tuple(options))
        if "/" not in key and not isinstance(override.value(), dict):
            return wrong_type(key, override.value())
        return None
    if override.is_add():
        return f"{line}: the key exists already; write {str(line).lstrip('+')}."
    if override.is_delete():  # of an entry of a dictionary: Hydra says what is wrong with it
        return None
    for value in _values(override):
        if not fits(known[key], value):
            return wrong_type(key, value)
    return None


def _entry(key: str) -> Any:
    """Return the type of an entry that may be added, such as search.caps.params; else None."""
    for holder in open_keys():
        inner, rest = typing.get_args(key_types()[holder])[1], key.removeprefix(f"{holder}.")
        if rest != key and (inner is Any or "." not in rest):
            return inner
    return None


def fits(kind: Any, value: Any) -> bool:
    """Whether a type of the schema takes a value; of a dictionary, each value in it, too."""
    try:
        OmegaConf.structured(_holder(kind)).value = value
    except (OmegaConfBaseException, OverflowError):  # a float has no room for any whole number
        return False
    inner = typing.get_args(kind)[1] if typing.get_origin(kind) is dict else None
    return inner is None or all(fits(inner, item) for item in value.values())


def has_type(kind: Any, value: Any) -> bool:
    """Whether a value is of a type of the schema as it stands, nothing being left to convert."""
    if isinstance(value, str) and (value == MISSING or "${" in value):
        return False
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union:
        return any(has_type(each, value) for each in inner)
    if origin is list:
        return type(value) is list and all(has_type(inner[0], item) for item in value)
    if origin is dict:
        keys_fit = type(value) is dict and all(has_type(inner[0], key) for key in value)
        return keys_fit and all(has_type(inner[1], item) for item in value.values())
    return type(value) is kind


@cache
def _holder(kind: Any) -> type:
    """Return a dataclass with one field of this type: OmegaConf converts as in the real one."""
    return dataclasses.make_dataclass("Holder", [("value", kind, dataclasses.field(default="???"))])


def _values(override: Override) -> list[Any]:
    if not override.is_sweep_override():
        return [override.value()]
    if not override.is_discrete_sweep() or isinstance(override._value, Glob):
        return []  # a pattern chooses from the options that there are
    parser = OverridesParser.create()
    texts = override.sweep_string_iterator()
    return [parser.parse_override(f"{override.key_or_group}={text}").value() for text in texts]


def _children(section: str) -> list[str]:
    prefix = f"{section}."
    inner = [key[len(prefix) :] for key in key_types() if key.startswith(prefix)]
    return list(dict.fromkeys(name.split(".")[0] for name in inner))


def _nearest(key: str, known_groups: Sequence[str]) -> str | None:
    """Return the nearest key: first among its siblings, then by last name, then by whole name."""
    parent, _, name = key.rpartition(".")
    siblings = _children(parent) if parent else [*known_groups, *_roots()]
    if near := difflib.get_close_matches(name, siblings, 1, 0.6):
        return f"{parent}.{near[0]}" if parent else near[0]
    by_name: dict[str, str] = {}
    for full in sorted(key_types(), key=lambda full: full.count(".")):
        by_name.setdefault(full.rpartition(".")[2], full)
    if near := difflib.get_close_matches(name, by_name, 1, 0.7):
        return by_name[near[0]]
    if parent and siblings:
        return None
    near = difflib.get_close_matches(key, [*key_types(), *known_groups], 1, 0.5)
    return near[0] if near else None


def _can_lack(key: str) -> bool:
    """Whether a run does without this key: an entry of a dictionary, or a group that adds to it."""
    optional = type(None) in typing.get_args(key_types()[key])
    return key.rpartition(".")[0] in key_types() or (optional and key in groups())


def _sections() -> set[str]:
    return {key.split(".")[0] for key in key_types() if "." in key}


def _roots() -> list[str]:
    return list(dict.fromkeys(key.split(".")[0] for key in key_types()))


def shown(value: Any) -> str:
    """Return a value for a message, as it is typed: what is very long is cut."""
    typed = {None: "null", True: "true", False: "false"}
    text = typed[value] if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
