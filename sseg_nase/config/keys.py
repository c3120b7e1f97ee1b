"""Every key of a composed config with what a form needs: its type, bounds, value and comment."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sseg_nase.config.compose import CONFIG_NAME
from sseg_nase.config.conf_files import conf_dir, groups
from sseg_nase.config.layout import WRITTEN_AS, is_section
from sseg_nase.config.members import MISSING, chosen
from sseg_nase.config.options import fields_of, is_group, told_by
from sseg_nase.config.schema import Config

_LINE = re.compile(
    r"""(?P<indent>\s*)(?P<key>\w+):(?P<value>(?:\s+(?:'[^']*'|"[^"]*"|[^#\s]\S*))*)
                       (?:\s+\#\s*(?P<comment>.*))?$""",
    re.VERBOSE,
)
# Which of them a run is, is said by others: the groups' options, or the program itself.
_SAID_OTHERWISE = ("task", "ablation", "resume_overrides", "sweep.job", "finetune.own")


@dataclass(frozen=True)
class Key:
    """One key of a composed config.

    `name`: as it is written on the command line; `kind`: its type, `accepted`: as `option` says;
    `value`: None where there is none; `comment`: of its line in `conf/`, empty where it has none.
    """

    name: str
    kind: Any
    accepted: Mapping[str, Any]
    value: Any
    comment: str

    @property
    def section(self) -> str:
        """The part of the config that it stands in; empty for the keys beside the parts."""
        return self.name.partition(".")[0] if "." in self.name else ""

    @property
    def nullable(self) -> bool:
        """Whether null is one of its values."""
        return self.kind is Any or type(None) in typing.get_args(self.kind)


def keys_of(tree: Mapping[str, Any]) -> list[Key]:
    """Return the keys of a config as `compose.unchecked` gives it, in the order of the schema.

    Left out is what chooses an option of a group, which is written `group=option`.
    """
    return list(_keys(Config, tree, "", {}))


def first_comment(group: str, option: str) -> str:
    """Return what the file of an option says of it in its first comments; empty: nothing."""
    said: list[str] = []
    for line in _text(conf_dir() / group / f"{option}.yaml").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            said.append(line.lstrip("# ").rstrip())
    return " ".join(said)


def _keys(
    kind: Any, tree: Mapping[str, Any], prefix: str, comments: Mapping[str, str]
) -> Iterator[Key]:
    own = chosen(kind, tree) if is_group(kind) else kind
    teller = told_by(kind) if is_group(kind) else None
    for name, inner, accepted in fields_of(own):
        key = f"{prefix}{name}"
        value = tree.get(name)
        if key in _SAID_OTHERWISE or (name == teller and teller == "name"):
            continue
        if is_section(inner):
            values = value if isinstance(value, Mapping) else {}
            yield from _keys(inner, values, f"{key}.", comments or _comments(key, values))
            continue
        said = comments.get(name) or comments.get(key) or _of_config().get(key, "")
        written = WRITTEN_AS.get(key, key)
        yield Key(written, inner, accepted, None if value == MISSING else value, said)


def _comments(section: str, values: Mapping[str, Any]) -> Mapping[str, str]:
    """The comments of the file that a section was taken from, and of those that it inherits."""
    options = groups().get(section, ())
    name = str(values.get("name", ""))
    names = [name] if name in options else options  # where nothing tells which it is
    found: dict[str, str] = {}
    for each in names:
        found |= {f"{section}.{key}": said for key, said in _of_option(section, each).items()}
    return found or {"": ""}


@cache
def _of_option(group: str, name: str) -> Mapping[str, str]:
    text = _text(conf_dir() / group / f"{name}.yaml")
    found: dict[str, str] = {}
    for parent in (yaml.safe_load(text) or {}).get("defaults", []):
        if isinstance(parent, str) and parent != "_self_":
            found |= _of_option(group, parent)
    return {**found, **_in(text)}


@cache
def _of_config() -> Mapping[str, str]:
    return _in(_text(conf_dir() / f"{CONFIG_NAME}.yaml"))


def _in(text: str) -> dict[str, str]:
    """The comments behind the keys of a YAML text, by the dotted keys."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        if (read := _LINE.match(line)) is None:
            continue
        depth = len(read["indent"])
        above = [(deep, key) for deep, key in above if deep < depth] + [(depth, read["key"])]
        if read["comment"]:
            found[".".join(key for _, key in above)] = read["comment"].strip()
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # an option of another folder
        return ""
