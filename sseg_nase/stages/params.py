"""What a table of runs compares: the settings that have an effect in a run, short."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from sseg_nase.config.fingerprint import flat
from sseg_nase.config.groups.evaluation import CLOSED_SETS, MethodConfig
from sseg_nase.config.options import options_of
from sseg_nase.config.schema import Config
from sseg_nase.tracking.sink import Param

# No params of the method; those of `hardware` are recorded as they took effect.
UNRECORDED = (
    *("paths.", "tracking.", "hardware.", "data.", "sweep.", "report."),
    *("export.", "predict.", "ui."),
)
OF_SEARCH = ("search.", "space.", "strategy.", "evaluator.")  # no params of a run that is none
TOLD_BY = ("evolution.enabled", "sparsity.enabled", "finetune.name")


def params_of(config: Config) -> dict[str, Param]:
    """Return the settings by their dotted keys, and those of `hardware` as `effective/…`.

    Left out are nulls and whole sections without effect in this run, such as `evolution` where it
    is switched off; a list is its members with commas between them.
    """
    idle = tuple(_idle(config))
    told = {
        key: _short(value)
        for key, value in flat(config).items()
        if value is not None and (key in TOLD_BY or not key.startswith(idle))
    }
    hardware = dataclasses.asdict(config.hardware).items()
    effective = {key: value for key, value in hardware if isinstance(value, Param)}
    return {**told, **{f"effective/{key}": value for key, value in effective.items()}}


def _idle(config: Config) -> Iterator[str]:
    """What keys without effect begin with."""
    yield from UNRECORDED
    if config.task != "search":
        yield from OF_SEARCH
    if not config.evolution.enabled:
        yield "evolution."
    if not config.sparsity.enabled:
        yield "sparsity."
    if not config.finetune.trains:
        yield "finetune."
    used = (config.evaluation.method, config.evaluation.name)
    for name in (*options_of(MethodConfig), *CLOSED_SETS):
        if name not in used:
            yield f"evaluation.{name}."


def _short(value: Param) -> Param:
    """A list, which is JSON here, on one line: MLflow draws JSON with a line for each member."""
    if not isinstance(value, str) or not value.startswith("["):
        return value
    try:
        members: list[Any] = json.loads(value)
    except ValueError:  # a text of the user's
        return value
    if not members or any(isinstance(one, list | dict) for one in members):
        return value
    return ", ".join(str(one) for one in members)
