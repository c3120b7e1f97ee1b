"""Which run is the latest one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from sseg_nase.errors import UserError
from sseg_nase.reporting.selection import comparable, latest_run, named_runs

TRAINED: dict[str, Any] = {
    "task": "pipeline",
    "ssl": {"name": "simclr"},
    "pretrain": {"epochs": 3},
    "finetune": {"name": "none", "start": None},
}


def a_run(folder: Path, at: float, status: str = "FINISHED", **config: Any) -> Path:
    """A run whose results were written at `at`, whatever its name says."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(TRAINED | config))
    (folder / "status.json").write_text(json.dumps({"status": status}))
    (folder / "results.json").write_text(json.dumps({"fewshot": {}}))
    os.utime(folder / "results.json", (at, at))
    return folder


def test_the_latest_run_is_the_one_that_has_finished_last(tmp_path: Path) -> None:
    a_run(tmp_path / "b" / "3", 1000)
    latest = a_run(tmp_path / "a" / "1", 3000)
    a_run(tmp_path / "c" / "2", 2000)
    for number, status in enumerate(("RUNNING", "FAILED", "INTERRUPTED")):
        a_run(tmp_path / "d" / str(number), 9000, status)
    assert named_runs(["LAST"], tmp_path) == [latest]
    assert latest_run(tmp_path) == latest_run(str(tmp_path), pretrained=True) == latest


@pytest.mark.parametrize(
    "config",
    [
        {"task": "evaluate"},
        {"ssl": {"name": "none"}},
        {"pretrain": {"epochs": 0}},
        {"finetune": {"name": "maml", "start": "runs/x"}},
    ],
)
def test_a_run_that_has_pretrained_nothing_is_passed_over(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    newer = a_run(tmp_path / "a" / "2", 2000, **config)
    with pytest.raises(UserError, match="no finished run that has pretrained"):
        latest_run(tmp_path, pretrained=True)
    older = a_run(tmp_path / "a" / "1", 1000)
    assert latest_run(tmp_path) == newer
    assert latest_run(tmp_path, pretrained=True) == older


def test_runs_that_have_not_finished_are_left_out_of_a_comparison(tmp_path: Path) -> None:
    warned: list[str] = []
    fine = a_run(tmp_path / "a" / "1", 1000)
    running = a_run(tmp_path / "a" / "2", 1000, "RUNNING")
    of_before = a_run(tmp_path / "a" / "3", 1000)
    (of_before / "status.json").unlink()  # nothing says that it has not finished
    assert comparable([fine, running, of_before], warned.append) == [fine, of_before]
    (text,) = warned
    assert "is RUNNING" in text
