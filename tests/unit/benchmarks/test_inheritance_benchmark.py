"""`benchmarks/inheritance.py`: which networks are trained again, and what is concluded of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks import inheritance
from sseg_nase.config.compose import load
from sseg_nase.search import Candidate, Cost, Log, Objectives, Scored
from sseg_nase.searches.parts import parts_of

# Generations of two, one of which is passed on: the final population is 1, the best before the
# last generation, and 3, that generation's only one.
ABOUT = {"strategy": {"name": "genetic", "population": 2, "elites": 1}}
VALUES = (10.0, 30.0, 20.0, 25.0)
WANTED = Objectives({"accuracy": "max"})


def a_search(folder: Path, lines: list[str], more: float) -> None:
    search = folder / "searches" / "one"
    search.mkdir(parents=True)
    space = parts_of(load(lines), lines).space
    rng, points = Random(0), dict[str, Any]()
    while len(points) < len(VALUES):
        point = space.sample(rng)
        points[space.key(point)] = point
    with Log.open(search / "candidates.jsonl", WANTED, ABOUT) as log:
        for number, (key, value) in enumerate(zip(points, VALUES, strict=True)):
            log.ask([Candidate(number, points[key], key)])
            scores = {"accuracy": value + more}
            log.tell(Scored(log.candidates[number], scores, Cost(30, 5, 1e12), run="0"))
    (search / "status.json").write_text('{"status": "FINISHED"}')


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines of the searches."""
    lines: list[list[str]] = []

    def call(command: list[str], **_: object) -> None:
        lines.append(command[3:])
        said = dict(line.split("=", 1) for line in command[3:])
        folder = Path(said["paths.output_dir"].strip("'"))
        a_search(folder, command[3:], float(said["seed"]))

    monkeypatch.setattr(subprocess, "run", call)
    return lines


class InThisProcess:
    """A pool of processes without one."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *given: object) -> Any:
        class Done:
            def result(self) -> Any:
                return function(*given)

        return Done()


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """The epochs and points that are trained from scratch; each epoch is worth four points."""
    asked: list[tuple[int, str]] = []

    class Evaluator:
        slots = 1

        def __init__(self, config: Any, space: Any, folder: Path) -> None:
            assert config.search.inherit is False
            assert config.hardware.accelerator == "cpu"
            self.epochs, self.space = config.finetune.epochs, space
            self.waiting: list[Candidate] = []

        def start(self, candidate: Candidate) -> None:
            self.waiting.append(candidate)

        def result(self) -> Scored:
            one = self.waiting.pop(0)
            asked.append((self.epochs, one.key))
            first = one.number == 0
            return Scored(one, {"accuracy": 4.0 * self.epochs + (18 if first else 10)})

    monkeypatch.setattr(inheritance, "inherited", Evaluator)
    monkeypatch.setattr(inheritance, "ProcessPoolExecutor", InThisProcess)
    return asked


def test_a_final_population_is_trained_again_from_scratch(
    called: list[list[str]], again: list[tuple[int, str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = [str(tmp_path), str(out), "--seeds", "0", "2", "--parallel", "1", "--epochs", "1"]
    given += ["--scratch", "4", "2", "--candidates", "7", "--also", "search.caps.macs=1000000"]
    assert inheritance.main(given) == 0
    assert [line[-1] for line in called] == ["seed=0", "seed=2"]
    for lines in called:
        assert {"finetune.epochs=1", "search.budget.candidates=7", "search.final_seeds=0",
                "search.caps.macs=1000000", "evaluator=inherited"} <= {*lines}  # fmt: skip
    search = out / "inherited-1-0" / "searches" / "one"
    keys = [one.key for one in Log.read(search / "candidates.jsonl").candidates]
    assert again == [(epochs, keys[n]) for epochs in (2, 2, 4, 4) for n in (1, 3)]

    written = (out / "inheritance.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in written[2:5]]
    # (30 + 25) / 2 + the mean of the seeds, ± t(1) · √2 / √2; of the last generation 25 + it.
    assert rows[0] == ["inherited", "1", "28.50 ± 12.71", "", "26.00 ± 12.71", ""]
    assert rows[1][:3] == ["from scratch", "2", "22.00 ± 0.00"]
    assert rows[1][3:] == ["+6.50 ± 12.71", "18.00 ± 0.00", "+8.00 ± 12.71"]
    assert rows[2][:3] == ["from scratch", "4", "30.00 ± 0.00"]
    # 22 and 30 from scratch: 6.5 / 8 of the way from 2 to 4 epochs, by their logarithm.
    assert written[-2].startswith("final population: Inherited weights reach 28.50 % with 0.28 of")
    assert written[-1].startswith("last generation: Inherited weights reach 26.00 % with 0.25 of")
    kept = json.loads((out / "inheritance.json").read_text())
    assert kept["final_populations"][0] == {
        "seed": 0, "0": [30.0, 25.0], "2": [26.0, 18.0], "4": [34.0, 26.0],
    }  # fmt: skip

    before = len(called), len(again)
    assert inheritance.main(given) == 0
    assert (len(called), len(again)) == before


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


def test_a_search_whose_last_candidates_failed_is_named() -> None:
    log = Log(WANTED, ABOUT)
    log.ask([Candidate(0, {"x": 0}, "0")])
    log.tell(Scored(log.candidates[0], error="no memory"))
    with pytest.raises(SystemExit, match="last generation"):
        inheritance.final_population(log)
