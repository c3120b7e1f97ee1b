"""Kinds of mutations, and what is told of them: to people, in metrics and in figures.

Records hold a kind by its name alone. Who reads them asks here, and needs to know no operator: one
registers itself when its module is imported. Those of this package are imported when first asked
for, and those that installed packages name as entry points `sseg_nase.operators`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from sseg_nase import packages
from sseg_nase.errors import UserError, did_you_mean

OWN = "sseg_nase.nets.mutations"  # by name: it stands above those who read records

_KINDS: dict[str, Kind] = {}


class Kind:
    """One kind of mutation.

    `name` stands in records, `code` for it in metrics. `colour` (one of figures' own by its name,
    or any that Matplotlib knows) and `marker` are its mark in figures. `removes`: the new network
    is to compute what the old one does without the channels that are gone, which is verified, and
    it is measured what they cost; a kind that removes is not one that takes turns in growing.
    """

    name: str
    code: int
    colour: str
    marker: str
    removes: bool = False

    def describe(self, target: Mapping[str, Any]) -> str:
        """What a record's `target` says was changed, in words; blocks count from 1."""
        return json.dumps(target)

    def removed(self, target: Mapping[str, Any]) -> int:
        """How many channels a record's `target` says were removed."""
        return 0


def register(kind: Kind) -> None:
    """Let `kind` be known. Raises `UserError` where its name or its code stands for another one."""
    for other in _KINDS.values():
        if type(other).__qualname__ != type(kind).__qualname__ and (
            other.name == kind.name or other.code == kind.code
        ):
            raise UserError(
                f"mutation kind {kind.name} (code {kind.code}): {other.name} has the code "
                f"{other.code}; choose a name and a code that are not in use"
            )
    _KINDS[kind.name] = kind


def kinds() -> Mapping[str, Kind]:
    """Every kind that is known, by name."""
    import_module(OWN)
    _load_packages()
    return dict(sorted(_KINDS.items(), key=lambda item: item[1].code))


@cache
def _load_packages() -> None:
    packages.load(packages.OPERATORS)


def kind_of(name: str) -> Kind:
    """The kind of that name. Raises `UserError`."""
    known = kinds()
    if name not in known:
        raise UserError(
            f"mutation kind '{name}': accepted {', '.join(known)}.{did_you_mean(name, known)}"
        )
    return known[name]
