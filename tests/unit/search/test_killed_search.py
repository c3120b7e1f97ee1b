"""A search killed at any moment resumes to the log of one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sseg_nase
from sseg_nase.search import Log
from tests.support.killed_search import STRATEGIES, run
from tests.support.synthetic import ACCURACY, SPACE

ROOT = Path(sseg_nase.__file__).parents[1]
CANDIDATES = 60


def begin(path: Path, strategy: str, slots: int, at_once: int) -> subprocess.Popen:
    """Start the search, and return when its imports are done."""
    child = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.support.killed_search",
            *map(str, (path, strategy, slots, at_once, CANDIDATES)),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "begins\n"
    return child


def check(tmp_path: Path, strategy: str, slots: int, at_once: int, kills: int) -> None:
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    run(whole, strategy, slots, at_once, CANDIDATES)
    rng, lengths = random.Random(strategy), []
    for _ in range(kills):
        child = begin(killed, strategy, slots, at_once)
        time.sleep(rng.uniform(0.0, 0.08))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        lengths.append(killed.read_bytes().count(b"\n") if killed.exists() else 0)
    assert lengths == sorted(lengths)  # nothing that was recorded is lost
    run(killed, strategy, slots, at_once, CANDIDATES)
    assert killed.read_bytes() == whole.read_bytes()
    one, other = Log.read(whole), Log.read(killed)
    assert len(one.told) == len(one.candidates) == CANDIDATES
    following = STRATEGIES[strategy](SPACE, one, 10, 11)
    assert following == STRATEGIES[strategy](SPACE, other, 10, 11)
    assert following
    assert Log.read(killed).objectives == ACCURACY


def test_a_search_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    check(tmp_path, "evolution", slots=2, at_once=1, kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", list(STRATEGIES))
@pytest.mark.parametrize(("slots", "at_once"), [(1, 1), (2, 1), (2, 5)])
def test_killed_at_ten_random_moments(
    tmp_path: Path, strategy: str, slots: int, at_once: int
) -> None:
    check(tmp_path, strategy, slots, at_once, kills=10)
