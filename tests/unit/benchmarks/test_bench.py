"""The machinery of the benchmark, with sides that take no time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import commits
from benchmarks.suite import evaluation
from benchmarks.suite.__main__ import main
from benchmarks.suite.profiling import REST, Ledger
from benchmarks.suite.rows import Row, Side, all_rows
from benchmarks.suite.runner import Found, Round, entry

MACHINE = {"accelerator": "cpu", "gpu": None, "cpu": "c", "cores": 2, "threads": 2, "torch": "2"}


def row(name: str, ours: Side, theirs: Side, **more: Any) -> Row:
    return Row(name, more.pop("unit", "images/s"), "a fake", ours, theirs, **more)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    return {found["name"]: found for found in json.loads((folder / "results.json").read_text())}


def test_two_processes_take_turns(tmp_path: Path) -> None:
    said = tmp_path / "said"

    def side(seconds: float, items: int) -> Side:
        given = {"seconds": seconds, "items": items, "said": os.fspath(said)}
        return Side("tests.support.sides.resting", given)

    rest = row("fake/rest", side(0.05, 10), side(0.2, 10), package="torch", module="torch")
    assert main(["--rounds", "3"], [rest], tmp_path) == 0
    found = read(tmp_path)["fake/rest"]
    assert set(found) >= {"name", "ours", "peer", "unit", "ratio", "peer_version"}
    assert 1.5 < found["ratio"] < 8
    assert 10 < found["peer"] <= 50
    assert len(found["ours_rounds"]) == len(found["peer_rounds"]) == found["rounds"] == 3
    assert 5 < found["ours_peak_mb"] < 1000
    assert found["peer_version"].startswith("torch 2")
    lines = said.read_text().splitlines()
    ours, peer = lines[0].split()[0], lines[2].split()[0]
    assert ours != peer
    turns = [ours, peer] * 4  # one of each to warm up
    assert lines == [f"{who} {what}" for who in turns for what in ("begins", "ends")]


@pytest.mark.slow
def test_earlier_entries_stay_and_missing_peers_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    side = Side("tests.support.sides.spinning")
    (tmp_path / "results.json").write_text(
        json.dumps(
            [
                entry(row(name, side, side), Found([Round(7, 1)]), Found([Round(2, 1)]), MACHINE)
                for name in ("fake/earlier", "fake/again")
            ]
        )
    )
    rows = [
        row("fake/again", side, side, unit="% of a step", package="torch", module="torch"),
        row("fake/skipped", side, side, package="nowhere", module="no_such_module"),
        row("fake/failing", Side("tests.support.sides.failing"), side),
    ]
    assert main(["--rounds", "1", "--only", "fake"], rows, tmp_path) == 1
    said = capsys.readouterr().out
    assert "fake/skipped skipped: nowhere is not installed (pip install -e '.[bench]')" in said
    assert "RuntimeError: no such data" in said
    found = read(tmp_path)
    assert list(found) == ["fake/earlier", "fake/again"]
    assert found["fake/earlier"]["ours"] == 7
    assert found["fake/again"]["ours"] == 10_000, "ours is set up as the program"
    assert found["fake/again"]["peer"] == 0, "a library's side is not"
    table = (tmp_path / "results.md").read_text()
    assert "| fake/earlier | 7 images/s | 2 | 3.5 × |" in table
    assert "fake/skipped skipped" in table
    assert "fake/failing" not in table


@pytest.mark.parametrize(
    ("unit", "ratio", "aim", "shown"),
    [
        ("images/s", 0.5, {"ratio": 3.0}, "≥ 3 × ✗"),
        ("images/s", 0.5, {"limit": 4.0}, "≥ 4 images/s"),
        ("s", 2.0, {"limit": 0.1}, "≤ 0.1 s ✗"),
        ("s", 2.0, {"ratio": 2.0}, "≥ 2 ×"),
        ("MB", 3.0, {"limit": 10.0}, "≤ 10 MB"),
    ],
)
def test_less_is_better_for_costs(
    unit: str, ratio: float, aim: dict[str, float], shown: str
) -> None:
    from benchmarks.suite.results import asked

    ours, peer = Found([Round(4, 1)] * 3, 10.0), Found([Round(16, 2)] * 3, 30.0)
    one = row("fake", Side(""), Side(""), unit=unit, **aim)
    found = entry(one, ours, peer, MACHINE)
    assert found["ratio"] == ratio
    assert asked(found) == shown


def test_names_on_a_gpu_are_other_names() -> None:
    found = Found([Round(1, 1)])
    machine = MACHINE | {"accelerator": "cuda", "gpu": "a card"}
    assert entry(row("fake", Side(""), Side("")), found, found, machine)["name"] == "fake@cuda"


def test_rows_have_names_of_their_own_and_sides_that_exist() -> None:
    import importlib

    rows = all_rows()
    assert len({one.name for one in rows}) == len(rows)
    for one in rows:
        for side in (one.ours, one.theirs):
            module, _, function = side.function.partition(".")
            found = importlib.import_module(f"benchmarks.suite.{module}")
            assert callable(getattr(found, function))


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--only", "kornia"]) == 0
    assert capsys.readouterr().out.split() == ["views/32px/kornia", "views/84px/kornia"]
    assert main(["--list", "--only", "no such row"]) == 2


def test_ledger_counts_inner_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def spend(seconds: float) -> int:
        nonlocal now
        now += seconds
        return 1

    clock = SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr("benchmarks.suite.profiling.time", clock)
    ledger = Ledger()
    with ledger.counting("outer"):
        spend(2)
        ledger.counted("inner", spend)(5)
        items = ledger.each("items", lambda: map(spend, (1, 1, 1)))
        for _ in items():
            spend(0.5)
    spend(4)
    with ledger.counting("outer"):
        spend(1)
    assert ledger.seconds == {"outer": 4.5, "inner": 5, "items": 3, REST: 4}


def test_our_side_of_an_evaluation_needs_nothing_that_a_run_would_fit() -> None:
    assert evaluation.ours(2)() == 2


@pytest.mark.slow
def test_a_commit_is_measured_with_its_own_code(tmp_path: Path) -> None:
    folder = tmp_path / "laid_out"
    commits.lay_out("HEAD", folder)
    assert commits.run(folder, "evolvable", 32, 1).wall > 0
    shutil.rmtree(folder / "sseg_nase")  # another one is installed
    with pytest.raises(subprocess.CalledProcessError):
        commits.run(folder, "evolvable", 32, 1)
