"""The fingerprint of a config (same fingerprint, same result) and its flat view."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from sseg_nase.config.schema import Config

# What changes where a run stands, how it is called or how fast it is, but not its result.
_WITHOUT_EFFECT = (
    "experiment_name",
    "paths.",
    "tracking.",
    "hardware.name",
    "hardware.num_workers",
    "pretrain.checkpoint_interval_epochs",
)


def flat(config: Config) -> dict[str, bool | int | float | str | None]:
    """Return every value by its dotted key, such as `pretrain.epochs`; a list as JSON text."""
    found: dict[str, bool | int | float | str | None] = {}
    _flatten(dataclasses.asdict(config), "", found)
    return found


def fingerprint(config: Config) -> str:
    """Return 16 hexadecimal digits that are equal for configs that give the same result.

    A hash of every value except names, paths, tracking and what only changes the speed; the same
    in every process and Python version.
    """
    decisive = {k: v for k, v in flat(config).items() if not k.startswith(_WITHOUT_EFFECT)}
    text = json.dumps(decisive, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _flatten(value: Any, key: str, found: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _flatten(inner, f"{key}.{name}" if key else name, found)
    else:
        found[key] = json.dumps(value) if isinstance(value, list) else value
