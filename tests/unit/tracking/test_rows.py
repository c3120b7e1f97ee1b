from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from sseg_nase.tracking import rows as module
from sseg_nase.tracking.jsonl import JsonlSink
from sseg_nase.tracking.rows import Row, Rows, Steps, recorded_rows, result_tags
from sseg_nase.tracking.sink import Resumed
from tests.support.mlflow_stores import mutation, run_info

MUTATIONS = [mutation(0, step=3), mutation(1, step=3, kind="PRUNE"), mutation(2, step=9)]


def flat(found: Any) -> list[Row]:
    return [row for line in found for row in line]


@pytest.mark.parametrize("seed", range(5))
def test_steps_are_a_set(seed: int) -> None:
    chosen = random.Random(seed)
    reference = {chosen.randrange(60) for _ in range(10)}
    steps = Steps(reference)
    for _ in range(200):
        step = chosen.randrange(60)
        assert steps.add(step) == (step not in reference)
        reference.add(step)


def test_what_is_told_and_what_is_recorded_are_the_same_rows(tmp_path: Path) -> None:
    live, sink = Rows(), JsonlSink()
    sink.open(run_info(tmp_path))
    told: list[Row] = []
    for step in range(10):
        values = {"pretrain/loss": 1.0 / (step + 1), "odd name@": step}
        sink.metrics(values, step)
        told += live.metrics(values, step, 0)
        for each in [m for m in MUTATIONS if m["step"] == step]:
            sink.event("mutation", each)
            told += live.mutation(each, 0)
    found = flat(recorded_rows(tmp_path, Rows()))
    assert [(key, value, step) for key, value, _, step in found] == [
        (key, value, step) for key, value, _, step in told
    ]
    assert [row[3] for row in found if row[0] == "mutation/kind"] == [3, 4, 9]


def test_times_nulls_a_torn_line_and_what_is_stored(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    lines = [
        {"time": 10.5, "kind": "metrics", "step": 1, "values": {"a": 1.0, "b": None}},
        {"time": 11.25, "kind": "epoch", "values": {"epoch": 0}},
        {"time": 12.001, "kind": "metrics", "step": 2, "values": {"a": 2.0, "b": 3}},
    ]
    events.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"time": 13, "ki')
    found = flat(recorded_rows(tmp_path, Rows({"a": [2]})))
    assert [(key, at, step) for key, _, at, step in found] == [
        ("a", 10500, 1),
        ("b", 10500, 1),
        ("b", 12001, 2),
    ]
    assert math.isnan(found[1][1])


def test_what_a_resumed_run_tells_again_counts_once(tmp_path: Path) -> None:
    for resumed in (None, Resumed(None, 2, 1)):
        sink = JsonlSink()
        sink.open(run_info(tmp_path, resumed=resumed))
        for step in range(0 if resumed is None else 3, 5):
            sink.metrics({"loss": step + (0.0 if resumed is None else 0.5)}, step)
        for index in range(0 if resumed is None else 1, 2):
            sink.event("mutation", mutation(index, step=2 + index))
    found = flat(recorded_rows(tmp_path, Rows()))
    losses = [(step, value) for key, value, _, step in found if key == "loss"]
    assert losses == [(step, float(step)) for step in range(5)]
    assert [row[3] for row in found if row[0] == "mutation/index"] == [2, 3]
    before = flat(recorded_rows(tmp_path, Rows(), Resumed(None, 2, 1)))
    assert [row[3] for row in before if row[0] == "loss"] == [0, 1, 2]
    assert [row[3] for row in before if row[0] == "mutation/index"] == [2]


def test_names_are_cleaned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.clean_key("a@b") is module.clean_key("a@b")


def test_results_become_what_a_table_is_sorted_by(tmp_path: Path) -> None:
    assert result_tags(tmp_path) == {}
    figure = {"accuracy": 55.744, "ci95": 0.651, "method": "prototype/cosine/cl2n"}
    results = {
        "fewshot": {"digits/val/5w1s": figure, "other/val/5w1s": {**figure, "accuracy": 1.0}},
        "architecture": {"params": 1234, "macs": 5678},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    tags = result_tags(tmp_path)
    note = tags.pop("mlflow.note.content")
    assert tags == {"dataset": "digits", "accuracy_5w1s": "55.74", "params": "1234"}
    assert "**digits/val/5w1s**: 55.74 ± 0.65 % (prototype/cosine/cl2n)" in note
    assert "1,234 params, 5,678 MACs" in note


def test_figures_of_a_mutation_stand_under_their_names() -> None:
    figures = {"function_delta": 0.5, "loss_before": 5.0, "loss_after": 4.0}
    found = {key: value for key, value, _, _ in Rows().mutation(mutation(7, step=3) | figures, 0)}
    assert found == {
        "mutation/index": 7,
        "mutation/kind": 1,
        **{f"mutation/{key}": value for key, value in figures.items()},
    }


def test_steps_are_sorted_and_know_the_last() -> None:
    steps = Steps([5, 1, 3, 5])
    assert steps.last == 5
    assert [steps.add(step) for step in (1, 2, 3, 4, 5, 6)] == [
        False,
        True,
        False,
        True,
        False,
        True,
    ]
    assert (steps.last, Steps().last) == (6, -1)


def test_what_the_store_has_is_found_under_its_own_name() -> None:
    rows = Rows({"odd name_": [1, 2]})
    assert rows.metrics({"odd name@": 5.0}, 2, 0) == []
    assert rows.metrics({"odd name@": 5.0, "b": 1}, 3, 7) == [
        ("odd name_", 5.0, 7, 3),
        ("b", 1.0, 7, 3),
    ]


def test_a_figure_that_a_mutation_lacks_is_left_out() -> None:
    found = Rows().mutation(mutation(0) | {"loss_before": None, "function_delta": None}, 0)
    assert {row[0] for row in found} == {
        "mutation/index",
        "mutation/kind",
        "mutation/loss_after",
    }


@pytest.mark.parametrize(("kind", "code"), [("GROW", 1), ("WIDEN", 2), ("PRUNE", 3), ("CHOOSE", 4)])
def test_kinds_of_mutations_are_numbers(kind: str, code: int) -> None:
    found = Rows().mutation(mutation(0, kind=kind), 0)
    assert [row[1] for row in found if row[0] == "mutation/kind"] == [code]


def test_results_without_a_size_and_with_a_data_set_in_parts(tmp_path: Path) -> None:
    figure = {"accuracy": 5.0, "ci95": 1.0, "method": "m"}
    results = {"fewshot": {"a/val/5w1s": figure, "a/val/5w5s": figure, "b/val/5w9s": figure}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    tags = result_tags(tmp_path)
    note = tags.pop("mlflow.note.content")
    assert tags == {"dataset": "a", "accuracy_5w1s": "5.00", "accuracy_5w5s": "5.00"}
    assert note.count("**") == 6
    assert "params" not in note
