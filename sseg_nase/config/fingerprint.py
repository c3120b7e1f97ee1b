"""The fingerprint of a config and its flat view.

The same fingerprint means the same settings. They give the same result on the same kind of machine,
with the same versions, number of threads, code and images, which are no part of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sseg_nase.config.options import fields_of, is_group, null_before, until_registered
from sseg_nase.config.schema import Config, FinetuneConfig
from sseg_nase.config.sequence import OF_THE_RUN

# What changes where a run stands, how it is called or how fast it is, but not its result.
_WITHOUT_EFFECT = (
    "experiment_name",
    "resume",
    "runs",
    "report.",
    "export.",
    "predict.",
    "ui.",
    "support",
    "images",
    "paths.",
    "tracking.",
    "sweep.",
    "data.",
    "hardware.name",
    "hardware.num_workers",
    "evaluation.memory_mb",
    "pretrain.checkpoint_interval_epochs",
    "pretrain.keep_checkpoints",
    "curriculum.export",
)


# Keys that came later, with the values that say what no key said before.
_STRATEGY = (
    "generations", "patience", "min_delta", "level_generations", "most_share", "least_diversity",
    "immigrants", "promoted",
)  # fmt: skip
LATER: Mapping[str, Any] = {
    **dict.fromkeys(f"strategy.{key}" for key in _STRATEGY),
    "strategy.parts": 1,
    "dataset.path_column": "path",
    "dataset.label_column": "label",
    "dataset.sizes": "auto",
    "dataset.unlabeled": False,
    "space.settings.edition": 1,
    **dict.fromkeys(("finetune.patience", "finetune.clip_norm")),
    **dict.fromkeys(("finetune.min_delta", "finetune.cutmix", "finetune.dropout"), 0),
    "finetune.monitor": "val_accuracy",
    "search.inherit": True,
    "search.pool.max_models": 100,
}
# What a search is, which a run is not; of a search, what only changes how fast it goes.
_OF_SEARCH = ("search.", "space.", "strategy.", "evaluator.")
_OF_SPEED = ("search.dir", "search.slots", "strategy.kept_mb")


def flat(config: Config) -> dict[str, bool | int | float | str | None]:
    """Return every value by its dotted key, such as `pretrain.epochs`; a list as JSON text."""
    return flatten(dataclasses.asdict(config))


def flatten(values: Mapping[str, Any]) -> dict[str, bool | int | float | str | None]:
    """Return the values of nested dictionaries by their dotted keys; a list as JSON text."""
    found: dict[str, bool | int | float | str | None] = {}
    _flatten(values, "", found)
    return found


def decisive(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the flat `values` that change the result, not only its name or its speed."""
    idle = _OF_SPEED if values.get("task") == "search" else _OF_SEARCH
    without = (*_WITHOUT_EFFECT, *idle)
    return {key: value for key, value in values.items() if not key.startswith(without)}


def fingerprint(config: Config) -> str:
    """Return 16 hexadecimal digits that are equal for configs that ask for the same result.

    It is the same result on the same kind of machine, with the same versions, threads, code and
    images. A hash of every value except names, paths, tracking and what only changes the speed;
    the same in every process and Python version.
    """
    every = decisive({**_once_null(), **_once_null_in_stages(config), **flat(config)})
    kept = {k: v for k, v in every.items() if not _says_what_no_key_said(k, v)}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _says_what_no_key_said(key: str, value: Any) -> bool:
    """Whether a key that came later has the value that it had when there was none.

    Those of a stage of fine-tuning (`finetune.own.linear.epochs`) are those of `finetune`.
    """
    own = key.removeprefix("finetune.own.")
    if own != key:
        key = f"finetune.{own.partition('.')[2]}"
    return key in LATER and value in (None, LATER[key])


@until_registered
def _once_null() -> dict[str, None]:
    """The keys that only some options of this package have, which versions before held as null.

    So a run has the fingerprint that it had then.
    """
    groups = ((name, kind) for name, kind, _ in fields_of(Config) if is_group(kind))
    return {f"{name}.{key}": None for name, kind in groups for key in null_before(kind)}


def _once_null_in_stages(config: Config) -> dict[str, None]:
    """Those of each stage of fine-tuning."""
    keys = [key for key in null_before(FinetuneConfig) if key not in OF_THE_RUN]
    return {f"finetune.own.{stage}.{key}": None for stage in config.finetune.own for key in keys}


def _flatten(value: Any, key: str, found: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _flatten(inner, f"{key}.{name}" if key else name, found)
    else:
        found[key] = json.dumps(value) if isinstance(value, list) else value
