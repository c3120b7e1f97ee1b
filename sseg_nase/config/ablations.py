"""The ablations: what each file in `conf/ablation/` leaves of the method, and what it is called.

The files are all there is to an ablation: names, switches, the table of `--help` and what reports
call by its name are read from them. The first comment of a file begins with its name in words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sseg_nase.config.conf_files import conf_dir, parsed, read_values, usual_of

GROUP = "ablation"
_OVERRIDE = re.compile(r"override /(\w+)")


class Switches(NamedTuple):
    """Which parts of the method are on."""

    ssl: bool
    evolution: bool
    sparsity: bool
    progression: bool
    distillation: bool


WORDS = Switches("ssl", "evolution", "sparsity", "curriculum", "distillation")  # type: ignore[arg-type]


class Ablation(NamedTuple):
    """`title`: its name in words."""

    title: str
    switches: Switches


def ablations(*further: Path) -> dict[str, Ablation]:
    """Return those in `conf/`, and in `further` config folders, by name and in order.

    Raises `UserError` for a file that cannot be read.
    """
    found: dict[str, Ablation] = {}
    for root in (conf_dir(), *further):
        found |= _in(root)
    return found


@cache
def _in(root: Path) -> Mapping[str, Ablation]:
    found: dict[str, Ablation] = {}
    for file in sorted((root / GROUP).glob("[!_]*.yaml")):
        text = file.read_text(encoding="utf-8")
        comments = (line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
        words = next((line for line in comments if not line.startswith("@")), "")
        title = re.split(r"[:.]", words)[0].strip()
        found[file.stem] = Ablation(title, _switches(parsed(text, file)))
    return found


def switches_of(config: Mapping[str, Any]) -> Switches:
    """Return which parts of the method a config, as plain data, has switched on."""

    def at(section: str, key: str) -> Any:
        found = config.get(section)
        return found.get(key) if isinstance(found, Mapping) else None

    trained = (at("ssl", "name") or "none") != "none"
    return Switches(
        ssl=trained,
        evolution=bool(at("evolution", "enabled")),
        sparsity=bool(at("sparsity", "enabled")),
        progression=bool(at("curriculum", "progression")),
        distillation=trained and (at("ssl", "distillation_weight") or 0) > 0,
    )


def table(known: Mapping[str, Ablation]) -> str:
    """Return the table of `--help`: a line per ablation, a column per part."""
    title = max(map(len, (one.title for one in known.values())), default=0)
    name = max(map(len, known), default=0)
    lines = [f"{'':{name}}  {'':{title}}  {'  '.join(map(str, WORDS))}".rstrip()]
    for key, one in known.items():
        marks = (
            f"{'yes' if on else '-':^{len(str(word))}}"
            for on, word in zip(one.switches, WORDS, strict=True)
        )
        lines.append(f"{key:{name}}  {one.title:{title}}  {'  '.join(marks)}".rstrip())
    return "\n".join(lines)


def _switches(difference: Mapping[str, Any]) -> Switches:
    """Of the full method, which `conf/config.yaml` composes, with an ablation's difference."""
    chosen = {**_of_the_full_method(), **_choices(difference)}
    config: dict[str, Any] = {}
    for group in ("ssl", "evolution", "sparsity", "curriculum"):
        # An option from elsewhere is what its own file says: here only its name is known.
        values = usual_of(group, chosen[group]) or {"name": chosen[group]}
        config[group] = values | (difference.get(group) or {})
    return switches_of(config)


@cache
def _of_the_full_method() -> Mapping[str, str]:
    return _choices(read_values(conf_dir() / "config.yaml"))


def _choices(tree: Mapping[str, Any]) -> dict[str, str]:
    """The options of groups that a file's list of defaults chooses."""
    found = {}
    for entry in tree.get("defaults", []):
        for group, option in entry.items() if isinstance(entry, Mapping) else ():
            overridden = _OVERRIDE.fullmatch(group)
            found[overridden[1] if overridden else group] = option
    return found
