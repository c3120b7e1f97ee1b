"""A search of the program, killed with SIGKILL, goes on as if it had not been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import sseg_nase
from sseg_nase.config.compose import stored
from sseg_nase.rundir.status import status_of
from sseg_nase.search import Log
from sseg_nase.searches.parts import parts_of
from tests.support.small_search import CHOICES, QUIET, measured

ROOT = Path(sseg_nase.__file__).parents[1]


def begin(*overrides: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "sseg_nase", *overrides],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def results(path: Path) -> int:
    log = path / "candidates.jsonl"
    return log.read_bytes().count(b'"scored"') if log.exists() else 0


def the_search() -> Path | None:
    return next(Path("runs/searches").glob("*"), None) if Path("runs/searches").is_dir() else None


def killed_after(process: subprocess.Popen, count: int, pause: float = 0.0) -> None:
    """Kill it once the log has `count` results, and a while has passed."""
    while process.poll() is None:
        path = the_search()
        if path is not None and results(path) >= count:
            time.sleep(pause)
            break
        time.sleep(0.02)
    process.kill()
    process.communicate()


def of_its_jobs(path: Path) -> list[int]:
    """The processes of the jobs that are at work."""
    notes = [json.loads(note.read_text()) for note in path.glob("jobs/*/job.json")]
    return [note["pid"] for note in notes if "ended" not in note]


def told(path: Path) -> list:
    """What was asked for, and the accuracy of each: latencies differ from one time to the next."""
    log = Log.read(path / "candidates.jsonl")
    accuracy = [r.scores["accuracy"] for c in log.candidates if (r := log.result(c.number))]
    return [[dict(c.point) for c in log.candidates], accuracy]


@pytest.mark.slow  # two processes that import torch; quick ones are in test_search_jobs.py
def test_a_killed_search_is_gone_on_with(tmp_path: Path) -> None:
    slow = measured(tmp_path)
    mine = tmp_path / "mine.py"
    waits = "def measure(candidate):\n    import time\n    time.sleep(0.05)\n"
    mine.write_text(mine.read_text().replace("def measure(candidate):\n", waits), encoding="utf-8")
    given = ["task=search", CHOICES, *QUIET, *slow, "search.budget.candidates=12"]
    killed_after(begin(*given), 3)
    path = the_search()
    assert path is not None
    assert status_of(path)["status"] == "RUNNING"  # it had no time to say anything else
    before = (path / "candidates.jsonl").read_bytes()
    again = begin(f"resume={path}")
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert status_of(path)["status"] == "FINISHED"
    whole = (path / "candidates.jsonl").read_bytes()
    assert whole.startswith(before[: before.rindex(b"\n") + 1])
    assert results(path) == 12


STRATEGY = ("strategy=evolution", "strategy.population=2", "strategy.sample=2")
KILLS, CANDIDATES = 10, 8


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 2])
def test_killed_at_ten_moments_a_real_search_is_that_of_one_that_was_not(
    slots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same candidates and scores, same next ten suggestions, and nothing is trained twice."""
    rng = random.Random(slots)
    tiny = ["debug=tiny", "pretrain.epochs=2", "evaluation.episodes=20", *STRATEGY]
    given = ["task=search", CHOICES, *QUIET, *tiny, f"search.slots={slots}"]
    given += [f"search.at_once={slots}", f"search.budget.candidates={CANDIDATES}"]
    folders = []
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        process = begin(*given)
        # After so many results, and a while: also before it has a folder, and between two of them.
        moments = [min(CANDIDATES - 1, number * CANDIDATES // KILLS) for number in range(KILLS)]
        for count in moments if name == "killed" else ():
            killed_after(process, count, rng.uniform(0.0, 3.0))
            path = the_search()
            if path is None:
                process = begin(*given)
                continue
            if rng.random() < 0.5:  # its jobs die with it; else they are left at work
                for pid in of_its_jobs(path):
                    with suppress(ProcessLookupError):  # only just begun, or ended
                        os.kill(pid, signal.SIGKILL)
            process = begin(f"resume={path.absolute()}")
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said
        path = the_search()
        assert path is not None
        folders.append(path.absolute())
    whole, killed = folders
    assert told(killed) == told(whole)
    assert suggested(killed, 10) == suggested(whole, 10)
    runs = [r.run for r in Log.read(killed / "candidates.jsonl").told]
    assert len(set(runs)) == CANDIDATES
    assert len(list((killed.parents[1]).glob("*/*/results.json"))) == CANDIDATES
    for run in runs:
        lines = (Path(str(run)) / "events.jsonl").read_text().splitlines()
        epochs = [
            json.loads(line)["values"]["epoch"] for line in lines if '"kind": "epoch"' in line
        ]
        assert sorted(set(epochs)) == [0, 1]


def suggested(path: Path, count: int) -> list[dict]:
    """What the strategy would ask for next."""
    config = stored(path / "config.yaml")
    parts = parts_of(config)
    log = Log.read(path / "candidates.jsonl")
    found = parts.strategy(parts.space, log, count, config.seed)
    assert len(found) == count
    return [dict(one.point) for one in found]


@pytest.mark.slow
def test_epochs_of_a_promoted_candidate_are_those_that_it_has_not_seen(tmp_path: Path) -> None:
    given = ["debug=tiny", "evaluation.episodes=20", "search.budget.candidates=3", *QUIET]
    given += ["strategy=halving", "strategy.least=1", "strategy.most=3", "strategy.candidates=2"]
    given += ["strategy.eta=3", "task=search", CHOICES]
    process = begin(*given)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    path = the_search()
    assert path is not None
    log = Log.read(path / "candidates.jsonl")
    assert [s.error for s in log.told] == [None] * 3
    short, long = (log.told[number] for number in (log.candidates[2].parents[0], 2))
    assert long.cost.images == 2 * short.cost.images
    epochs = {}
    for scored in (short, long):
        lines = (Path(str(scored.run)) / "events.jsonl").read_text().splitlines()
        told = [json.loads(line) for line in lines]
        epochs[scored.run] = [t["values"]["epoch"] for t in told if t.get("kind") == "epoch"]
        results = json.loads((Path(str(scored.run)) / "results.json").read_text())
        assert results["training_macs"]["total"] >= scored.cost.training_macs
    assert list(epochs.values()) == [[0], [0, 1, 2]]
