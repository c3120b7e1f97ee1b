"""The files of `conf/` and of config folders beside it: groups, their options, values.

Neither Hydra nor the schema is imported, which take most of the time of `--help`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sseg_nase.errors import UserError, did_you_mean

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


def read_values(file: Path) -> Mapping[str, Any]:
    """Return what a file of `conf/` says, as OmegaConf reads it before it resolves `${...}`.

    Raises `UserError` where it cannot be read, or is no YAML of keys and values.
    """
    try:
        return parsed(file.read_text(encoding="utf-8"), file)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from error


def parsed(text: str, file: Path) -> Mapping[str, Any]:
    """`read_values` of a text that was read from `file`."""
    try:
        tree = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise _unreadable(file, error) from error
    if tree is not None and not isinstance(tree, Mapping):
        raise _unreadable(file, ValueError(f"it holds {type(tree).__name__}, no keys"))
    return tree or {}


def _unreadable(file: Path, error: Exception) -> UserError:
    why = " ".join(str(error).split())
    return UserError(f"{file}: this config file cannot be read ({why}); mend or remove it.")


# The parser of libyaml, where PyYAML was built with it, takes a tenth of the time.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as OmegaConf reads it: 1e-3 is a number, dates are texts, no key stands twice."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> Any:
        """Refuse a key that stands twice."""
        keys = [key.value for key, _ in node.value]
        for key in {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(
                "while constructing a mapping", node.start_mark, f"found duplicate key {key}"
            )
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789"),
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if not tag.endswith(":timestamp")]
    for first, forms in _Loader.yaml_implicit_resolvers.items()
}


def unknown_option(group: str, name: str, options: Sequence[str]) -> str:
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


@cache
def _merged_file(group: str, name: str) -> Mapping[str, Any]:
    tree = dict(read_values(conf_dir() / group / f"{name}.yaml"))
    merged: dict[str, Any] = {}
    for parent in tree.pop("defaults", []):
        if isinstance(parent, str) and parent != "_self_":  # else an option of another group
            merged |= _merged_file(group, parent)
    return merged | {str(key): value for key, value in tree.items()}
