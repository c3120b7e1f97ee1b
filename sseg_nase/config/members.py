"""The sections of a composed or stored config as the options that they are.

A key exists only where the option has it. Composition refuses a key of another option; of a config
that an older version has stored, which had null there, it is dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from sseg_nase.config.explain import shown, wrong_type
from sseg_nase.config.options import fields_of, having, is_group, option_of, options_of, told_by
from sseg_nase.config.schema import Config, FinetuneConfig
from sseg_nase.errors import UserError, did_you_mean

MISSING = "???"  # OmegaConf's word for a key of the schema without a value
Tree = Mapping[str, Any]


def chosen(kind: Any, section: Any) -> Any:
    """Return the class of the option that `section` is; the group's where its name tells none."""
    return option_of(kind, section.get(told_by(kind)) if isinstance(section, Mapping) else None)


def without_unset(tree: Tree, kind: Any = Config) -> dict[str, Any]:
    """Return `tree` without the keys that have no value because other options have them.

    A null is none either, nor is an empty dictionary: options of one's own may say so of keys that
    only others have.
    """
    return _kept(tree, kind, lambda value: value is None or value == MISSING or value == {})


def upgraded(tree: Tree, kind: Any = Config) -> dict[str, Any]:
    """Return a stored config without the keys that its options do not have.

    Versions before stored the keys of all options of a group, null where they had no effect; of
    fine-tuning so of each stage of a sequence, too.
    """
    kept = _kept(tree, kind, lambda value: True)
    tuning = kept.get("finetune") if kind is Config else None
    own = tuning.get("own") if isinstance(tuning, dict) else None
    if isinstance(own, Mapping):
        kept["finetune"]["own"] = {
            name: upgraded(values, FinetuneConfig) if isinstance(values, Mapping) else values
            for name, values in own.items()
        }
    return kept


def restored(kind: Any, values: Tree) -> Any:
    """Return the option of a group, given by its base class, that plain data were made of."""
    return chosen(kind, values)(**upgraded(values, kind))


def _kept(tree: Tree, kind: Any, dropped: Any) -> dict[str, Any]:
    known = {name: inner for name, inner, _ in fields_of(kind)}
    own = {name for name, *_ in fields_of(chosen(kind, tree))} if is_group(kind) else set(known)
    return {
        key: _kept(value, known[key], dropped)
        if dataclasses.is_dataclass(known.get(key)) and isinstance(value, Mapping)
        else value
        for key, value in tree.items()
        if key in own or key not in known or not dropped(value)
    }


def of_others(kind: Any, tree: Tree, prefix: str = "") -> Iterator[str]:
    """Yield what is wrong with the keys of groups: of another option, without a value, unnamed."""
    if is_group(kind):
        yield from _of_another(kind, tree, prefix.rstrip("."))
    for name, inner, _ in fields_of(kind):
        if dataclasses.is_dataclass(inner) and isinstance(tree.get(name), Mapping):
            yield from of_others(inner, tree[name], f"{prefix}{name}.")


def _of_another(kind: Any, section: Tree, group: str) -> Iterator[str]:
    teller = told_by(kind)
    name = section.get(teller, MISSING)
    if name == MISSING or not isinstance(name, str):
        raise UserError(wrong_type(f"{group}.{teller}", None if name == MISSING else name))
    names, cls = tuple(options_of(kind)), option_of(kind, name)
    if cls is kind and name not in names:
        near = did_you_mean(name, names)
        yield f"{group}.{teller}={name}: choose one of {', '.join(names)}.{near}"
        return
    # What is written to choose an option: the name of its file, or the key that tells it.
    choice = group if teller == "name" else f"{group}.{teller}"
    fields = fields_of(cls)
    own = {field: inner for field, inner, _ in fields}
    accepted = {field: said for field, _, said in fields}
    wide = {field: inner for field, inner, _ in fields_of(kind)}
    for key in sorted(wide):
        value = section.get(key)
        value = None if value == MISSING else value
        if key not in own and value is not None:
            others = " or ".join(having(kind, key))
            yield (
                f"{group}.{key}={shown(value)}: it has no effect with {choice}={name}; "
                f"choose {choice}={others} or leave it out."
            )
        elif key in own and value is None and own[key] != wide[key]:
            said = accepted[key]
            needed = said.get("path") or said.get("text")
            what = f", {needed}".rstrip(",") if needed else ""
            without = f"{group}.{key}=null: {choice}={name} needs a value{what}."
            yield f"{choice}={name}: {said['question']}" if "question" in said else without
