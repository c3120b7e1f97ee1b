"""Pages that are generated when the documentation is built: the command line and every key.

A hook of MkDocs: `on_config` puts the pages into the navigation, `on_files` writes them.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from sseg_nase import _HOMES
from sseg_nase.cli import help_text
from sseg_nase.config.compose import register
from sseg_nase.config.conf_files import conf_dir, group_option, groups
from sseg_nase.config.layout import is_section
from sseg_nase.config.options import fields_of, is_group, option_of
from sseg_nase.config.schema import Config

PLACE = "reference/config"
# A key of YAML with its value and, behind it, its comment.
KEY = re.compile(r"^( *)([\w.]+):(?: (.*?))?(?:(?<= )# (.*))?$")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put one page for every section of the configuration into the navigation."""
    (reference,) = (entry["Reference"] for entry in config.nav or () if "Reference" in entry)
    (pages,) = (e["Configuration"] for e in reference if isinstance(e, dict))
    pages[:] = [f"{PLACE}/index.md", *(f"{PLACE}/{name}.md" for name in sections())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Write the pages."""
    register()
    written = {f"{PLACE}/{name}.md": page(name) for name in sections()}
    written |= {f"{PLACE}/index.md": overview(), "reference/cli.md": command_line()}
    for path, text in written.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the docstrings of all public names into the page that asks for them."""
    names = (
        f"::: sseg_nase.{module}.{called or name}"
        for name, (module, _, called) in ((n, h.partition(":")) for n, h in _HOMES.items())
    )
    return markdown.replace("<!-- every name -->", "\n\n".join(names))


@cache
def sections() -> Mapping[str, Any]:
    """The sections of a config with their types, by name."""
    return {name: kind for name, kind, _ in fields_of(Config) if is_section(kind)}


def command_line() -> str:
    """The page of the command line."""
    return (
        "# Command line\n\nThe same text is printed by `sseg-nase --help`.\n\n"
        f"```text\n{help_text().strip()}\n```\n\nExit codes: 0 done, 1 a failure of the program, 2 "
        "a mistake in what was asked for, 130 interrupted.\n"
    )


def overview() -> str:
    """The page of the keys that are in no section, with links to the sections."""
    kept = {name: (k, a) for name, k, a in fields_of(Config) if not is_section(k)}
    rows = table(main_file(), kept, comments("config.yaml"))
    links = "\n".join(f"- [{name}]({name}.md)" for name in sections())
    lines = [
        "# Configuration: all keys\n",
        "Generated from the schema and from `conf/`. `sseg-nase --cfg job` shows the values of one",
        f"command.\n\n## Sections\n\n{links}\n\n## Keys in no section\n",
    ]
    return "\n".join([*lines, *rows]) + "\n"


@cache
def main_file() -> Mapping[str, Any]:
    """The values in `conf/config.yaml`."""
    values = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))
    return dict(values)


def page(name: str) -> str:
    """The page of one section: of a group all its options, first what they share."""
    kind, options = sections()[name], groups().get(name, ())
    lines = [f"# {name}", ""]
    if not options:
        values, said = main_file()[name], comments("config.yaml").get(name, {})
        return "\n".join([*lines, *table(values, known(kind), said, f"{name}.")]) + "\n"
    for option in options:
        values = group_option(name, option)
        cls = option_of(kind, values.get("name")) if is_group(kind) else kind
        said = merged_comments(name, option)
        lines += [f"## {name}={option}", ""]
        if about := head(name, option):
            lines += [about, ""]
        lines += [*table(values, known(cls), said, f"{name}."), ""]
    return "\n".join(lines)


def known(kind: Any) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """Type and accepted values of every field of a section, by name."""
    return {name: (inner, accepted) for name, inner, accepted in fields_of(kind)}


def table(
    values: Mapping[str, Any],
    fields: Mapping[str, tuple[Any, Mapping[str, Any]]],
    said: Mapping[str, Any],
    prefix: str = "",
) -> list[str]:
    """A table of keys: default, what is accepted, what it means."""
    rows = list(of_keys(values, fields, said, prefix))
    if not rows:
        return ["It has no keys."]
    return ["| key | default | accepted | |", "|---|---|---|---|", *rows]


def of_keys(
    values: Mapping[str, Any],
    fields: Mapping[str, tuple[Any, Mapping[str, Any]]],
    said: Mapping[str, Any],
    prefix: str,
) -> Iterator[str]:
    """The rows of such a table."""
    for key, value in values.items():
        if key not in fields or key == "name":
            continue
        inner, accepted = fields[key]
        told = said.get(key, "")
        if is_section(inner):
            if isinstance(value, Mapping):
                further = told if isinstance(told, Mapping) else {}
                yield from of_keys(value, known(inner), further, f"{prefix}{key}.")
            continue
        text = told if isinstance(told, str) else ""
        cells = (f"`{prefix}{key}`", shown(value), accepts(inner, accepted), text)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def shown(value: Any) -> str:
    """A default as the command line writes it."""
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=1000).splitlines()[0]}`"


def accepts(kind: Any, accepted: Mapping[str, Any]) -> str:
    """What a key accepts, in words."""
    inside = typing.get_args(kind)
    optional = type(None) in inside
    one = next((k for k in inside if k is not type(None)), kind) if optional else kind
    several = typing.get_origin(one) is list
    words = {int: "whole number", float: "number", bool: "true, false", str: "text"}
    one = typing.get_args(one)[0] if several else one
    text = words.get(one, "settings" if typing.get_origin(one) is dict else "any value")
    if "choices" in accepted:
        text = ", ".join(f"`{choice}`" for choice in accepted["choices"])
    elif told := accepted.get("path") or accepted.get("text"):
        text = told.rstrip(",")
    bounds = [
        f"{sign} {accepted[key]}"
        for key, sign in (("above", ">"), ("least", "≥"), ("most", "≤"))
        if key in accepted
    ]
    return " ".join([*(["list of"] if several else []), text, *bounds]) + ", null" * optional


def head(group: str, option: str) -> str:
    """The comment at the head of an option's file."""
    text = (conf_dir() / group / f"{option}.yaml").read_text(encoding="utf-8")
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    return " ".join(line for line in lines if not line.startswith("@package"))


def merged_comments(group: str, option: str) -> dict[str, Any]:
    """The comments of an option's keys, with those of the files it inherits from."""
    path = conf_dir() / group / f"{option}.yaml"
    tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    found: dict[str, Any] = {}
    for parent in tree.get("defaults", []):
        if isinstance(parent, str) and parent != "_self_":
            found |= merged_comments(group, parent)
    return found | comments(f"{group}/{option}.yaml")


@cache
def comments(name: str) -> dict[str, Any]:
    """The comment behind every key of a file in `conf/`; of a section those of its keys."""
    found: dict[str, Any] = {}
    inside: list[tuple[int, dict[str, Any]]] = [(-1, found)]
    for line in (conf_dir() / name).read_text(encoding="utf-8").splitlines():
        matched = KEY.match(line)
        if matched is None:
            continue
        depth, key, value, comment = len(matched[1]), matched[2], matched[3], matched[4]
        while inside[-1][0] >= depth:
            inside.pop()
        if value or comment is None:
            inside[-1][1].setdefault(key, comment or {})
        if not (value or "").strip():
            below: dict[str, Any] = {}
            inside[-1][1][key] = below
            inside.append((depth, below))
        elif comment:
            inside[-1][1][key] = comment
    return found
