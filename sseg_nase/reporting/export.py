"""What one run says, as flat lines for CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sseg_nase.finite import finite
from sseg_nase.reporting.record import RunRecord
from sseg_nase.tracking.jsonl import MUTATION_KEYS

# The networks of a run in the order of their making, with their section of results.json.
NETWORKS: Mapping[str, str] = {
    "untrained": "fewshot_untrained",
    "pretrained": "fewshot_pretrained",
    "best": "fewshot_best",
    "last": "fewshot",
    "views": "fewshot_views",
    "control": "fewshot_control",
}
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


class Result(NamedTuple):
    """One network on one episode list; accuracies in percent, None where that is not known."""

    key: str
    network: str
    accuracy: float
    ci95: float | None
    episodes: int | None
    method: str
    transductive: bool
    top_k: Mapping[str, float]


def results_of(record: RunRecord) -> list[Result]:
    """All accuracies of a run, list by list."""
    found = [
        Result(
            key=key,
            network=network,
            accuracy=value["accuracy"],
            ci95=value["ci95"] if finite(value.get("ci95")) else None,
            episodes=value["episodes"] if finite(value.get("episodes")) else None,
            method=str(value.get("method", "")),
            transductive=bool(value.get("transductive")),
            top_k=value["top_k"] if isinstance(value.get("top_k"), dict) else {},
        )
        for network, section in NETWORKS.items()
        for key, value in record.section(section).items()
        if isinstance(value, dict) and finite(value.get("accuracy"))
    ]
    keys = list(dict.fromkeys(one.key for one in found))
    return sorted(found, key=lambda one: keys.index(one.key))


def result_lines(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """The lines of results.csv."""
    for one in results:
        dataset, split, list_ = [*one.key.split("/"), "", ""][:3]
        ways, _, shots = list_.removesuffix("s").partition("w")
        about = {"dataset": dataset, "split": split, "ways": ways, "shots": shots}
        yield {**one._asdict(), **about, "top_k": json.dumps(one.top_k) if one.top_k else ""}


def mutation_lines(record: RunRecord) -> Iterator[dict[str, Any]]:
    """The lines of mutations.csv; what has parts of its own is JSON text."""
    for mutation in record.mutations:
        line: dict[str, Any] = {}
        for key in MUTATION_KEYS:
            value = mutation.get(key)
            if key in ("before", "after"):
                line |= {f"{key}_{count}": _flat((value or {}).get(count)) for count in COUNTS}
            else:
                line[key] = _flat(value)
        yield line


def epoch_lines(record: RunRecord) -> Iterator[dict[str, Any]]:
    """The lines of epochs.csv: of pretraining, then of fine-tuning; epochs count from 0."""
    for kind, stage in STAGES.items():
        for values in record.events.get(kind, ()):
            known = {key: values[key] for key in EPOCH_COLUMNS if key in values}
            several = values.get("of", 1) > 1
            yield {**known, "stage": f"{stage}_{values['method']}" if several else stage}


def as_csv(columns: Sequence[str], lines: Iterator[dict[str, Any]]) -> str:
    """The lines as CSV, in full precision; empty where something is not known."""
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    return text.getvalue()


def _flat(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
