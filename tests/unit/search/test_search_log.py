from __future__ import annotations

import json
from pathlib import Path

import pytest

from sseg_nase.errors import UserError
from sseg_nase.search import Candidate, Cost, Log, Objectives, Scored

ACCURACY = Objectives({"accuracy": "max"})


def candidate(number: int, key: str | None = None, **more: object) -> Candidate:
    return Candidate(number, {"a": number}, key or f"k{number}", **more)


def filled(path: Path) -> Log:
    log = Log.open(path, ACCURACY, {"seed": 3})
    log.ask([candidate(0), candidate(1, parents=(0,), how="mutation", fidelity={"epochs": 2})])
    log.tell(Scored(log.candidates[0], {"accuracy": 0.1 + 0.2}, Cost(1.5, 200, 1e9), "runs/0"))
    log.ask([candidate(2, after=1)])
    log.tell(Scored(log.candidates[1], error="out of memory"))
    return log


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "search" / "candidates.jsonl"
    with filled(path) as log:
        for again in (Log.read(path),):
            assert again.candidates == log.candidates
            assert again.told == log.told
            assert again.lines() == log.lines()
            assert again.spent == log.spent == Cost(1.5, 200, 1e9)
    with Log.open(path, ACCURACY, {"seed": 3}) as again:
        assert again.candidates == log.candidates
        assert again.told == log.told
        assert [c.number for c in again.pending] == [2]


def test_a_line_that_was_being_written_is_as_if_never_begun(tmp_path: Path) -> None:
    """Cut anywhere, next to each end of a line above all: the log goes on, and ends whole."""
    path = tmp_path / "candidates.jsonl"
    filled(path).close()
    content = path.read_bytes()
    whole = Log.read(path)
    ends = [at for at, byte in enumerate(content) if byte == ord("\n")]
    for end in {*range(0, len(content), 23), *ends, *(e + 1 for e in ends), *(e + 2 for e in ends)}:
        path.write_bytes(content[:end])
        with Log.open(path, ACCURACY, {"seed": 3}) as log:
            if len(log.candidates) < 2:
                log.ask(whole.candidates[:2])
            for scored, next_one in zip(whole.told, (2, None), strict=True):
                if log.result(scored.candidate.number) is None:
                    log.tell(scored)
                if next_one is not None and len(log.candidates) == next_one:
                    log.ask(whole.candidates[2:])
        assert path.read_bytes() == content, end


def test_one_writer_and_any_reader(tmp_path: Path) -> None:
    path = tmp_path / "candidates.jsonl"
    with filled(path):
        with pytest.raises(UserError, match="being written by another search"):
            Log.open(path, ACCURACY, {"seed": 3})
        assert len(Log.read(path).candidates) == 3
    Log.open(path, ACCURACY, {"seed": 3}).close()


def test_a_log_of_another_search_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "candidates.jsonl"
    filled(path).close()
    with pytest.raises(UserError, match="seed is 3 there and 4 here"):
        Log.open(path, ACCURACY, {"seed": 4})
    with pytest.raises(UserError, match="goals is"):
        Log.open(path, Objectives({"macs": "min"}), {"seed": 3})
    Log.open(path, ACCURACY, {"seed": 3}).close()  # neither kept it locked


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x", "line 3 is damaged"),
        ("[1]", "line 3 is damaged"),
        ('{"neither": 1}', "line 3 is no ask and no result"),
        ('{"scored": {"number": 99}}', "line 3 is no ask and no result"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "candidates.jsonl"
    filled(path).close()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:], ""]))
    for look in (Log.read, lambda p: Log.open(p, ACCURACY, {"seed": 3})):
        with pytest.raises(UserError, match=said):
            look(path)


def test_a_log_of_another_version_or_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "candidates.jsonl"
    with pytest.raises(UserError, match="has no first line"):
        Log.read(path)
    path.write_text(json.dumps({"version": 2}) + "\n")
    with pytest.raises(
        UserError, match="no search log of version 1: its first line says version 2"
    ):
        Log.open(path, ACCURACY)


def test_nothing_is_asked_or_told_twice() -> None:
    log = Log(ACCURACY)
    log.ask([candidate(0)])
    for wrong, said in [
        ([candidate(2)], "not the next, 1"),
        ([candidate(1, "k0")], "asked before"),
        ([candidate(1, "k"), candidate(2, "k")], "asked before"),
    ]:
        with pytest.raises(ValueError, match=said):
            log.ask(wrong)
    assert len(log.candidates) == 1
    log.ask([candidate(1, "k0", fidelity={"epochs": 2})])  # at another fidelity it is another
    log.tell(Scored(log.candidates[0], {"accuracy": 1.0}))
    with pytest.raises(ValueError, match="not pending"):
        log.tell(Scored(log.candidates[0], {"accuracy": 1.0}))
    with pytest.raises(ValueError, match="not pending"):
        log.tell(Scored(candidate(7), {"accuracy": 1.0}))


def test_what_is_no_figure_is_a_failure_with_its_reason() -> None:
    log = Log(Objectives({"accuracy": "max", "latency": "min"}))
    log.ask([candidate(number) for number in range(4)])
    nan, inf = float("nan"), float("inf")
    for number, (scores, said) in enumerate(
        [
            ({"accuracy": nan, "latency": 1.0}, "accuracy is nan"),
            ({"accuracy": 1.0, "latency": inf}, "latency is inf"),
            ({"accuracy": 1.0}, "it gave no latency, but accuracy"),
            ({"accuracy": 1.0, "latency": 2.0, "other": nan}, None),
        ]
    ):
        recorded = log.tell(Scored(log.candidates[number], scores))
        assert recorded.error == said
        assert bool(recorded.scores) is (said is None)
    assert [s.candidate.number for s in log.usable()] == [3]
    assert log.usable()[0].scores == {"accuracy": 1.0, "latency": 2.0}


def test_results_are_read_by_number_whatever_the_order_they_came_in() -> None:
    log = Log(Objectives({"loss": "min"}, {"latency": 10}))
    log.ask([candidate(number) for number in range(4)])
    for number, loss, latency in [(3, 1.0, 9), (0, 2.0, 10), (2, 0.5, 10.5), (1, 1.0, 1)]:
        log.tell(Scored(log.candidates[number], {"loss": loss, "latency": latency}))
    assert [s.candidate.number for s in log.usable()] == [0, 1, 3]  # 2 is above the cap
    assert [s.candidate.number for s in log.told] == [3, 0, 2, 1]
    best = log.best()
    assert best is not None
    assert best.candidate.number == 1  # the earliest of equal ones


def test_the_front_is_what_no_other_dominates() -> None:
    log = Log(Objectives({"accuracy": "max", "macs": "min"}, {"latency": 5}))
    assert log.front() == []
    log.ask([candidate(number) for number in range(5)])
    for number, (accuracy, macs, latency) in enumerate(
        [(80.0, 2.0, 1), (70.0, 3.0, 1), (90.0, 9.0, 1), (60.0, 1.0, 1), (99.0, 0.5, 6)]
    ):
        scores = {"accuracy": accuracy, "macs": macs, "latency": latency}
        log.tell(Scored(log.candidates[number], scores))
    assert [s.candidate.number for s in log.front()] == [2, 0, 3]  # 4 is above the cap


def test_fidelities_are_not_mixed() -> None:
    log = Log(ACCURACY)
    log.ask([candidate(0, fidelity={"epochs": 1}), candidate(1, fidelity={"epochs": 9})])
    log.tell(Scored(log.candidates[0], {"accuracy": 90.0}))
    log.tell(Scored(log.candidates[1], {"accuracy": 50.0}))
    assert log.best() is None
    assert log.best({"epochs": 9}).candidate.number == 1
    assert log.find("k0") is None
    assert log.find("k0", {"epochs": 1}) == log.candidates[0]
