"""What one run says, as data frames: for its tables, for CSV and for JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sseg_nase.reporting.document import framed
from sseg_nase.rundir.mutations import MUTATION_KEYS
from sseg_nase.rundir.record import RunRecord, Values
from sseg_nase.rundir.results import EpisodeResult, episode_results

if TYPE_CHECKING:
    import pandas as pd

RESULT_COLUMNS = (
    "key", "dataset", "split", "ways", "shots", "network", "accuracy", "ci95", "episodes",
    "method", "transductive", "top_k",
)  # fmt: skip
COUNTS = ("blocks", "channels", "params", "macs")
MUTATION_COLUMNS = tuple(
    column
    for key in MUTATION_KEYS
    for column in ([f"{key}_{count}" for count in COUNTS] if key in ("before", "after") else [key])
)
EPOCH_COLUMNS = (
    "stage", "epoch", "level", "blocks", "params", "loss", "gap", "accuracy", "val_accuracy",
    "val_ci95", "best", "images_per_second",
)  # fmt: skip
STAGES = {"epoch": "pretrain", "finetune": "finetune"}  # by the events that tell of epochs


def results_of(record: RunRecord) -> list[EpisodeResult]:
    """All accuracies of a run, list by list."""
    found = episode_results(record.results)
    keys = list(dict.fromkeys(one.key for one in found))
    return sorted(found, key=lambda one: keys.index(one.key))


def results_frame(results: Sequence[EpisodeResult]) -> pd.DataFrame:
    """A row per accuracy: results.csv. `top_k` is JSON text."""

    def row(one: EpisodeResult) -> dict[str, Any]:
        dataset, split, list_ = [*one.key.split("/"), "", ""][:3]
        ways, _, shots = list_.removesuffix("s").partition("w")
        about = {"dataset": dataset, "split": split, "ways": ways, "shots": shots}
        return {**one._asdict(), **about, "top_k": json.dumps(one.top_k) if one.top_k else ""}

    return framed(map(row, results), RESULT_COLUMNS)


def mutations_frame(record: RunRecord) -> pd.DataFrame:
    """A row per mutation: mutations.csv. What has parts of its own is JSON text."""

    def row(mutation: Values) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in MUTATION_KEYS:
            value = mutation.get(key)
            if key in ("before", "after"):
                found |= {f"{key}_{count}": _flat((value or {}).get(count)) for count in COUNTS}
            else:
                found[key] = _flat(value)
        return found

    return framed(map(row, record.mutations), MUTATION_COLUMNS)


def epochs_frame(record: RunRecord) -> pd.DataFrame:
    """A row per epoch: epochs.csv. Of pretraining, then of fine-tuning; epochs count from 0."""
    return framed(_epochs(record), EPOCH_COLUMNS)


def _epochs(record: RunRecord) -> Iterator[dict[str, Any]]:
    for kind, stage in STAGES.items():
        for values in record.events.get(kind, ()):
            known = {key: values[key] for key in EPOCH_COLUMNS if key in values}
            several = values.get("of", 1) > 1
            yield {**known, "stage": f"{stage}_{values['method']}" if several else stage}


def _flat(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
