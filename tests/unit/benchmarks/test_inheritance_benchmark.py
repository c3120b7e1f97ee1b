"""`benchmarks/inheritance.py`: which candidates are compared, and what is concluded of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import inheritance
from sseg_nase.config.compose import load
from sseg_nase.search import Candidate, Cost, Log, Objectives, Scored

# Generations of two, one of which is passed on: the final population is 1 (the best before the
# last generation's only one) and 3.
ABOUT = {"strategy": {"name": "genetic", "population": 2, "elites": 1}}
VALUES = (10.0, 30.0, 20.0, 25.0)
MACS = 1e12  # of an epoch of a candidate


def a_search(folder: Path, more: float, macs: float) -> None:
    search = folder / "searches" / "one"
    search.mkdir(parents=True)
    wanted = Objectives({"accuracy": "max"})
    with Log.open(search / "candidates.jsonl", wanted, ABOUT) as log:
        for number, value in enumerate(VALUES):
            log.ask([Candidate(number, {"x": number}, str(number))])
            cost = Cost(30, 5, macs)
            log.tell(Scored(log.candidates[number], {"accuracy": value + more}, cost, run="0"))
    (search / "status.json").write_text('{"status": "FINISHED"}')


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The command lines; each epoch from scratch is worth two points, inheritance six."""
    lines: list[dict[str, str]] = []

    def call(command: list[str], **_: object) -> None:
        load(command[3:])
        said = dict(line.split("=", 1) for line in command[3:])
        lines.append(said)
        epochs, seed = int(said["pretrain.epochs"]), int(said["seed"])
        more = 2 * epochs + 6 * (said["search.inherit"] == "true") + seed
        a_search(Path(said["paths.output_dir"].strip("'")), more, epochs * MACS)

    monkeypatch.setattr(subprocess, "run", call)
    return lines


def test_final_populations_are_compared_at_equal_accuracy(
    called: list[dict[str, str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert inheritance.main([str(out), "--seeds", "0", "2", "--parallel", "1"]) == 0
    asked = [(one["search.inherit"], one["pretrain.epochs"], one["seed"]) for one in called]
    of_a_seed = [("true", "2"), ("false", "2"), ("false", "4"), ("false", "8")]
    assert asked == [(*arm, seed) for seed in ("0", "2") for arm in of_a_seed]
    assert {one["search.final_seeds"] for one in called} == {"0"}
    written = (out / "inheritance.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in written[2:6]]
    assert [row[:2] for row in rows] == [
        ["inherited", "2"], ["from scratch", "2"], ["from scratch", "4"], ["from scratch", "8"],
    ]  # fmt: skip
    # (30 + 25) / 2 + 4 + 6 + the mean of the seeds, ± t(1) · √2 / √2.
    assert rows[0][2:] == ["38.50 ± 12.71", "41.00 ± 12.71", "8.000", "2.0"]
    assert rows[3][2:] == ["44.50 ± 12.71", "47.00 ± 12.71", "32.000", "2.0"]
    # 32.5, 36.5 and 44.5 from scratch: a quarter of the way from 16 to 32 T, by its logarithm.
    assert written[-1].startswith("Inherited weights reach 38.50 % with 0.42 of")
    kept = json.loads((out / "inheritance.json").read_text())
    assert kept["searches"][0] == {
        "inherit": True, "epochs": 2,
        "results": [
            {"mean": 37.5, "best": 40.0, "training_macs": 8e12, "minutes": 2.0},
            {"mean": 39.5, "best": 42.0, "training_macs": 8e12, "minutes": 2.0},
        ],
    }  # fmt: skip

    before = len(called)
    assert inheritance.main([str(out), "--seeds", "0", "2", "--parallel", "1"]) == 0
    assert len(called) == before


CURVE = [(8.0, 30.0), (32.0, 40.0), (16.0, 38.0)]


@pytest.mark.parametrize(
    ("accuracy", "told"),
    [
        (34.0, "reach 34.00 % with 0.35 of the"),  # half of the way from 8 to 16: 11.3
        (38.0, "reach 38.00 % with 0.25 of the"),
        (40.0, "reach 40.00 % with 0.12 of the"),  # the most that was tried
        (30.0, "reach 30.00 % with 0.50 or more of the"),  # the least that was tried
        (20.0, "reach 20.00 % with 0.50 or more of the"),
        (41.0, "with less than 0.12 of the training macs from scratch: with all of those it is 40"),
    ],
)
def test_the_conclusion_says_no_more_than_was_measured(accuracy: float, told: str) -> None:
    assert told in inheritance.conclusion(4.0, accuracy, CURVE)


def test_a_search_whose_last_candidates_failed_is_named(tmp_path: Path) -> None:
    with Log.open(tmp_path / "candidates.jsonl", Objectives({"accuracy": "max"}), ABOUT) as log:
        log.ask([Candidate(0, {"x": 0}, "0")])
        log.tell(Scored(log.candidates[0], error="no memory"))
    with pytest.raises(SystemExit, match="its last generation"):
        inheritance.result_of(tmp_path)
