from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sseg_nase.rundir.results import (
    BEST,
    LAST,
    EpisodeResult,
    episode_result,
    episode_results,
    read_results,
    write_results,
)

KEY = "digits/val/5w1s"
ONE = EpisodeResult(KEY, LAST, 61.5, 0.75, 600, "prototype/cosine/none", True, {"2": 80.0})


def test_a_result_comes_back_from_the_file_as_it_was(tmp_path: Path) -> None:
    ends = {"worst_class": {"name": "3", "accuracy": 1.0}}
    told = ONE.as_section(queries="balanced", doubts=["odd"], classes=ends)
    assert list(told) == [
        "accuracy", "ci95", "episodes", "method", "transductive", "queries", "doubts", "top_k",
        "worst_class",
    ]  # fmt: skip
    write_results(tmp_path, {"fewshot": {KEY: told}, "fewshot_best": {KEY: told}})
    found = read_results(tmp_path)
    assert found is not None
    assert episode_results(found) == [ONE._replace(network=BEST), ONE]
    assert episode_results(found, (LAST,)) == [ONE]


@pytest.mark.parametrize("value", [None, [], {}, {"accuracy": None}, {"accuracy": "60"}])
def test_what_holds_no_accuracy_is_no_result(value: Any) -> None:
    assert episode_result(KEY, LAST, value) is None
    assert episode_results({"fewshot": {KEY: value}}) == []


def test_an_older_version_has_not_said_everything() -> None:
    found = episode_result(KEY, LAST, {"accuracy": 60.0, "ci95": float("nan")})
    assert found == EpisodeResult(KEY, LAST, 60.0, None, None, "", False, {})
