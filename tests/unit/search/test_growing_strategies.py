"""Progressive search and TPE."""

from __future__ import annotations

import sys

import pytest

from sseg_nase.errors import UserError
from sseg_nase.search import Budget, Candidate, Function, Log, Objectives, Scored, search
from sseg_nase.search.strategies import PNAS, TPE, RandomSearch
from sseg_nase.spaces import NB201, Chain, choices_space
from sseg_nase.spaces.cells import PNAS as GROWING

WANTED = Objectives({"accuracy": "max"})
CELLS = GROWING(steps=3, cells=1, width=4)


def measured(candidate: Candidate) -> dict[str, float]:
    point = candidate.point
    values = [str(v) for n, v in point.items() if n.endswith((".a", ".b"))]
    active = values[: 2 * int(point["steps"])]
    return {"accuracy": float(sum(v == "sep_conv_5x5" for v in active) + int(point["steps"]))}


def test_progressive_search_grows_the_best_of_every_size() -> None:
    strategy = PNAS(beam=6, starts=12, expansions=16, members=2)
    log = search(CELLS, strategy, Function(measured), Log(WANTED), Budget(candidates=100))
    sizes = [int(candidate.point["steps"]) for candidate in log.candidates]
    assert sizes == [1] * 12 + [2] * 6 + [3] * 6  # and then it is over
    for candidate in log.candidates[12:]:
        (parent,) = (log.candidates[number] for number in candidate.parents)
        assert int(parent.point["steps"]) == int(candidate.point["steps"]) - 1
        best = sorted(
            (s for s in log.told if s.candidate.point["steps"] == parent.point["steps"]),
            key=log.value,
            reverse=True,
        )[:6]
        assert parent.number in {scored.candidate.number for scored in best}
        assert len({c.key for c in log.candidates}) == 24


def test_asking_one_by_one_is_asking_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = PNAS(beam=4, starts=6, expansions=8, members=2)
    one = search(CELLS, strategy, Function(measured), Log(WANTED), Budget(candidates=10), at_once=1)
    all_ = search(
        CELLS, strategy, Function(measured), Log(WANTED), Budget(candidates=10), at_once=5
    )
    keys = [[c.key for c in log.candidates] for log in (one, all_)]
    assert keys[0] == keys[1]


def test_the_next_size_waits_for_all_of_this_one() -> None:
    strategy = PNAS(beam=4, starts=4, expansions=8, members=2)
    log = Log(WANTED)
    log.ask(strategy(CELLS, log, 4, 0))
    for candidate in log.candidates[:3]:
        log.tell(Scored(candidate, measured(candidate)))
    assert strategy(CELLS, log, 4, 0) == []
    log.tell(Scored(log.candidates[3], measured(log.candidates[3])))
    assert len(strategy(CELLS, log, 4, 0)) == 4


def test_the_first_size_ends_where_it_has_no_more_networks() -> None:
    chain = Chain(most=2, widths=(4, 8), resolution=8)
    strategy = PNAS(beam=4, starts=50, expansions=8, members=2)
    scores = Function(lambda candidate: {"accuracy": float(candidate.number)})
    log = search(chain, strategy, scores, Log(WANTED), Budget(candidates=100))
    depths = [candidate.point["depth"] for candidate in log.candidates]
    assert depths == [1] * 4 + [2] * 4


def test_spaces_that_do_not_grow_are_refused() -> None:
    for space in (NB201(), choices_space({"n": "int(1, 3)"})):
        with pytest.raises(UserError, match="Use space pnas or chain"):
            PNAS()(space, Log(WANTED), 1, 0)


def test_tpe_without_optuna_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'sseg-nase\[tpe\]'"):
        TPE()(NB201(), Log(WANTED), 1, 0)


def test_tpe_finds_what_is_good_and_repeats_nothing() -> None:
    pytest.importorskip("optuna")
    space = choices_space({"lr": "loguniform(1e-4, 1)", "n": "int(1, 20)", "k": ["a", "b", "c"]})

    def score(candidate: Candidate) -> dict[str, float]:
        point = candidate.point
        return {"accuracy": -abs(float(point["n"]) - 15) - (point["k"] != "b") * 10.0}

    logs = [
        search(space, strategy, Function(score), Log(WANTED), Budget(candidates=40), seed=1)
        for strategy in (TPE(), RandomSearch())
    ]
    late = [sum(log.value(s) for s in log.told[-15:]) for log in logs]
    assert late[0] > late[1]
    assert len({candidate.key for candidate in logs[0].candidates}) == 40
    log = Log(WANTED)
    log.ask(logs[0].candidates[:12])
    for scored in logs[0].told[:11]:
        log.tell(scored)
    asked = TPE()(space, log, 3, 1)  # with one pending
    assert asked == TPE()(space, log, 3, 1)
    assert len({candidate.key for candidate in asked}) == 3


def test_tpe_ends_with_the_space() -> None:
    pytest.importorskip("optuna")
    space = choices_space({"k": ["a", "b", "c"], "n": [1, 2]})
    scores = Function(lambda candidate: {"accuracy": float(candidate.point["n"])})
    log = search(space, TPE(starts=2), scores, Log(WANTED), Budget(candidates=50))
    assert len(log.candidates) == 6
