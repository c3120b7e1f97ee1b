"""Fine-tuning in stages: `finetune=[linear,prototypical]`, and the settings of each stage.

A key with the name of a stage (`finetune.linear.epochs=90`) is for that stage alone, a key without
one (`finetune.optimizer=sgd`) for every stage that has it. In a `Config` the settings of all
stages are complete, in `finetune.own`; `finetune` itself has those of the last stage, after which
the network is evaluated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sseg_nase.config.members import restored
from sseg_nase.config.options import fields_of, option_of, options_of
from sseg_nase.config.schema import Config, FinetuneConfig, ViewsConfig
from sseg_nase.errors import UserError, did_you_mean

Tree = Mapping[str, Any]
# Said once, for all stages; the teacher is that of finetune=linear.
OF_THE_RUN: Tree = {"sequence": [], "own": {}, "start": None, "teacher": None}
WRITTEN = "'finetune=[linear,prototypical]'"


def trained() -> tuple[str, ...]:
    """The names of the methods that train, of which stages are made."""
    return tuple(name for name, cls in options_of(FinetuneConfig).items() if cls.trains)


def stages_of(config: Config) -> list[Config]:
    """A config per stage of fine-tuning, in their order; none where nothing is fine-tuned."""
    if not config.finetune.trains:
        return []
    if not config.finetune.sequence:
        return [config]
    return [
        dataclasses.replace(config, finetune=finetune_of(config.finetune.own[name]))
        for name in config.finetune.sequence
    ]


def in_words(stage: Config, whole: Config) -> str:
    """What the keys of a stage begin with: `finetune`, or `finetune.linear` where it is one of
    several."""
    return f"finetune.{stage.finetune.name}" if whole.finetune.sequence else "finetune"


def with_stages(config: Config, stages: list[Config]) -> Config:
    """`config` with the settings of `stages`, which are those of `stages_of` in their order."""
    if not config.finetune.sequence:
        (alone,) = stages
        return dataclasses.replace(config, finetune=alone.finetune)
    own = {stage.finetune.name: plain(stage.finetune) for stage in stages}
    of_all = {key: getattr(config.finetune, key) for key in OF_THE_RUN}
    last = dataclasses.replace(stages[-1].finetune, **{**of_all, "own": own})
    return dataclasses.replace(config, finetune=last)


def plain(finetune: FinetuneConfig) -> dict[str, Any]:
    """The settings of one stage as plain data."""
    return _of_one(dataclasses.asdict(finetune))


def finetune_of(values: Tree) -> FinetuneConfig:
    """The settings of one stage, of what `plain` gave."""
    views = ViewsConfig(**values["views"])
    stage: FinetuneConfig = restored(FinetuneConfig, {**values, **OF_THE_RUN, "views": views})
    return stage


def completed(
    finetune: Tree, usual: Callable[[str], Tree], checked: Callable[[str, Tree], FinetuneConfig]
) -> dict[str, Any]:
    """The section `finetune` with complete settings of every stage, and no others.

    `usual`: what `conf/finetune` says of a method. `checked`: the settings of a stage from plain
    data. Raises `UserError` for a sequence, or for settings, that cannot be.
    """
    names, own = finetune.get("sequence") or [], finetune.get("own") or {}
    _check(finetune.get("name"), names, own)
    if not names:
        return dict(finetune)
    given, values_of = _of_one(finetune), {name: usual(name) for name in names}
    keys_of = {name: {f[0] for f in fields_of(option_of(FinetuneConfig, name))} for name in names}
    of_every = {field.name for field in dataclasses.fields(FinetuneConfig)}
    last = values_of[names[-1]]
    nobodys = given.keys() - set().union(*keys_of.values())  # refused as such, in the last stage
    stages: dict[str, dict[str, Any]] = {}
    for name in names:
        mine = keys_of[name] & given.keys()
        kept = {key for key in mine if key in of_every or given[key] != last.get(key)}
        if name == names[-1]:
            kept = mine | nobodys
        values = {key: value for key, value in values_of[name].items() if key in keys_of[name]}
        values |= {key: given[key] for key in kept} | {"name": name}
        stages[name] = plain(checked(name, _merged(values, own.get(name, {}))))
    of_all = {key: value for key, value in finetune.items() if key in OF_THE_RUN}
    return {**stages[names[-1]], **of_all, "own": stages}


def abridged(
    config: Config, usual: Callable[[str], Tree], checked: Callable[[str, Tree], FinetuneConfig]
) -> Config:
    """`config` with only those settings of its stages that `completed` would not give them."""
    if not config.finetune.sequence:
        return config
    bare = dataclasses.asdict(config.finetune) | {"own": {}}
    given = completed(bare, usual, checked)["own"]
    own = {name: _beyond(values, given[name]) for name, values in config.finetune.own.items()}
    own = {name: values for name, values in own.items() if values}
    return dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, own=own))


def _of_one(finetune: Tree) -> dict[str, Any]:
    return {key: value for key, value in finetune.items() if key not in OF_THE_RUN}


def _beyond(values: Tree, given: Tree) -> dict[str, Any]:
    """The entries of nested `values` that are not those of `given`."""
    found = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            if inner := _beyond(value, given[key]):
                found[key] = inner
        elif value != given[key]:
            found[key] = value
    return found


def _check(last: Any, names: Sequence[Any], own: Tree) -> None:
    if not names:
        if own:
            stage = next(iter(own))
            raise UserError(
                f"finetune.{stage}: these are settings of one of several stages, which are written "
                f"{WRITTEN}; with finetune={last} write finetune.epochs=90."
            )
        return
    for name in names:
        if name not in trained():
            raise UserError(
                f"finetune=[{','.join(names)}]: {name} is no method that trains; choose of "
                f"{', '.join(trained())}.{did_you_mean(name, trained())}"
            )
    if len(set(names)) != len(names) or len(names) < 2:
        raise UserError(
            f"finetune=[{','.join(names)}]: two methods or more are needed, and none twice, "
            "because settings are written with the name of their stage, such as "
            f"finetune.{names[0]}.epochs."
        )
    if last != names[-1]:
        raise UserError(
            f"finetune={last}: finetune.sequence=[{','.join(names)}] ends with another "
            f"method. For stages write {WRITTEN}; for finetune={last} alone add "
            "finetune.sequence=[] finetune.own={}."
        )
    for stage, values in own.items():
        if stage not in names:
            raise UserError(
                f"finetune.{stage}: it is none of the stages {', '.join(names)}; leave it out, or "
                f"add it to finetune=[{','.join(names)}]."
            )
        if not isinstance(values, Mapping):
            raise UserError(
                f"finetune.{stage}={values}: a stage has settings of its own, such as "
                f"finetune.{stage}.epochs=90."
            )
        if start := values.get("from", values.get("start")):
            raise UserError(
                f"finetune.{stage}.from={start}: a stage begins with what the one before it has "
                "reached; write finetune.from, which is for the first one."
            )
        if teacher := values.get("teacher"):
            raise UserError(
                f"finetune.{stage}.teacher={teacher}: write finetune.teacher, which is for the "
                "stage linear."
            )
        for key, meant in (("name", stage), ("sequence", []), ("own", {})):
            if values.get(key, meant) != meant:
                raise UserError(f"finetune.{stage}.{key}: a stage is one method, after its name.")


def _merged(values: Tree, own: Tree) -> dict[str, Any]:
    merged = dict(values)
    for key, value in own.items():
        inner = merged.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = _merged(inner, value)
        merged[key] = value
    return merged
