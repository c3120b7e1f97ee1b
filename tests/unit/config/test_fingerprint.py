from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from sseg_nase.config.compose import load
from sseg_nase.config.fingerprint import fingerprint, flat
from sseg_nase.config.layout import key_types, open_keys
from tests.support.other_options import having

PLAIN = load()


def test_it_is_the_same_in_every_process() -> None:
    program = (
        "from sseg_nase.config.compose import load\n"
        "from sseg_nase.config.fingerprint import fingerprint\n"
        "print(fingerprint(load()))"
    )
    for hash_seed in ("1", "2"):
        said = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout.strip() == fingerprint(PLAIN)
    assert len(fingerprint(PLAIN)) == 16


@pytest.mark.parametrize(
    "override",
    [
        "experiment_name=other",
        "paths.data_dir=elsewhere",
        "paths.output_dir=elsewhere",
        "paths.cache_dir=elsewhere",
        "tracking=jsonl",
        "tracking.experiment=other",
        "hardware.num_workers=7",
        "pretrain.checkpoint_interval_epochs=3",
        "pretrain.keep_checkpoints=3",
    ],
)
def test_it_leaves_out_what_does_not_change_the_result(override: str) -> None:
    changed = load([override])
    assert changed != PLAIN
    assert fingerprint(changed) == fingerprint(PLAIN)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "ablation=A3",
        "dataset=cifar_fs",
        "hardware.batch_size=32",
        "curriculum.images.BASIC=4999",
        "evaluation.shots=[1]",
        "optimizer.lr=0.002",
        "sparsity.ratio=0.4",
    ],
)
def test_it_changes_with_what_changes_the_result(override: str) -> None:
    assert fingerprint(load([override])) != fingerprint(PLAIN)


NAMES_PLACES_AND_SPEED = {
    "experiment_name",
    "resume",
    "resume_overrides",
    "runs",
    "support",
    "images",
    "hardware.name",
    "hardware.num_workers",
    "evaluation.memory_mb",
    "pretrain.checkpoint_interval_epochs",
    "pretrain.keep_checkpoints",
    "curriculum.export",
}
OF_SEARCH = ("search.", "space.", "strategy.", "evaluator.")
TAKEN_HOME = ("export.", "predict.", "ui.")
THEIR_SECTIONS = ("report.", "paths.", "tracking.", "sweep.", "data.", *TAKEN_HOME, *OF_SEARCH)
DICTIONARIES = {"curriculum.images", *open_keys()}


def another(value: Any) -> Any:
    """Another value of the same type, whatever the key accepts."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, *(value[-1:] or ["x"])]
    return "x" if value is None else f"{value}x"


def changed(section: Any, key: str) -> Any:
    name, _, rest = key.partition(".")
    old = section[name] if isinstance(section, dict) else getattr(section, name)
    new = changed(old, rest) if rest else another(old)
    if isinstance(section, dict):
        return {**section, name: new}
    return dataclasses.replace(section, **{name: new})


@pytest.mark.parametrize("key", sorted(set(key_types()) - DICTIONARIES))
def test_every_key_of_the_schema_changes_it_but_names_places_and_speed(key: str) -> None:
    same = key in NAMES_PLACES_AND_SPEED or key.startswith(THEIR_SECTIONS)
    config = having(PLAIN, key)
    assert (fingerprint(changed(config, key)) == fingerprint(config)) == same


@pytest.mark.parametrize(
    ("key", "same"),
    [
        ("strategy.name", False),
        ("search.at_once", False),
        ("search.slots", True),
        ("strategy.kept_mb", True),
    ],
)
def test_of_a_search_it_changes_with_what_is_searched(key: str, same: bool) -> None:
    search = load(["task=search", "space=nb201", "strategy=darts"])
    assert (fingerprint(changed(search, key)) == fingerprint(search)) == same


@pytest.mark.parametrize(("task", "key"), [("evaluate", "checkpoint"), ("replay", "run")])
def test_it_changes_with_what_a_task_reads(task: str, key: str) -> None:
    first, second = (fingerprint(load([f"task={task}", f"{key}={path}"])) for path in "ab")
    assert first != second


def test_it_does_not_depend_on_how_a_number_is_written() -> None:
    assert fingerprint(load(["optimizer.lr=1e-2"])) == fingerprint(load(["optimizer.lr=0.010"]))
    assert fingerprint(load(["ssl.temperature=1"])) == fingerprint(load(["ssl.temperature=1.0"]))


def test_the_flat_view_holds_every_key_with_a_scalar() -> None:
    values = flat(PLAIN)
    of_others = {key for key in key_types() if having(PLAIN, key) is not PLAIN}
    assert {"optimizer.momentum", "scheduler.gamma"} <= of_others
    assert set(values) == set(key_types()) - DICTIONARIES - of_others
    assert values["pretrain.epochs"] == PLAIN.pretrain.epochs
    assert values["curriculum.images.BASIC"] == 5000
    assert json.loads(str(values["backbone.channels"])) == [16, 32, 64]
    assert all(isinstance(value, (bool, int, float, str, type(None))) for value in values.values())
