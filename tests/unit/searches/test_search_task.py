from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sseg_nase.config.compose import continued, load
from sseg_nase.errors import DONE, UserError
from sseg_nase.reporting.selection import named_runs
from sseg_nase.rundir.status import status_of
from sseg_nase.search import Log
from sseg_nase.searches import inspection
from sseg_nase.searches.folder import looked_at
from sseg_nase.spaces import NB201
from tests.support.small_search import CHOICES, QUIET, measured, own, searched

OPTIONS = ("strategy=evolution", "strategy.population=3", "strategy.sample=2")


def log_of(path: Path) -> Log:
    return Log.read(path / "candidates.jsonl")


def begin(tmp_path: Path, *given: str, candidates: int = 6) -> Path:
    budget = f"search.budget.candidates={candidates}"
    return searched("task=search", CHOICES, *QUIET, *measured(tmp_path), *OPTIONS, budget, *given)


def searched_again(path: Path, *given: str) -> Path:
    """As the command line goes on with it."""
    resume = f"resume={path}"
    return searched(resume, *continued([resume, *given]), *given)


def test_a_search_is_a_folder_of_its_own(tmp_path: Path) -> None:
    path = begin(tmp_path)
    assert path.parent == tmp_path / "runs" / "searches"
    assert status_of(path)["status"] == "FINISHED"
    assert len(log_of(path).told) == 6
    lines = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    told = [line for line in lines if "search/best/accuracy" in str(line)]
    best = [line.get("values", line)["search/best/accuracy"] for line in told]
    assert len(best) == 6
    assert best == sorted(best)


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = begin(tmp_path, candidates=8)
    monkeypatch.setenv("STOPS", "4")
    with pytest.raises(KeyboardInterrupt) as stopped:
        begin(tmp_path, candidates=8)
    path = Path(stopped.value.run_dir)  # type: ignore[attr-defined]
    assert status_of(path)["status"] == "INTERRUPTED"
    assert [c.number for c in log_of(path).pending] == [4]
    monkeypatch.delenv("STOPS")
    monkeypatch.chdir(Path("/"))
    assert searched_again(path) == path  # its own overrides come with it, target included
    assert log_of(path).lines() == log_of(whole).lines()
    assert status_of(path)["status"] == "FINISHED"


def test_a_finished_search_goes_on_only_with_a_larger_budget(tmp_path: Path) -> None:
    path = begin(tmp_path, candidates=3)
    searched_again(path)
    assert len(log_of(path).told) == 3
    with pytest.raises(UserError, match=r"search\.budget\.candidates: 3 -> 5"):
        searched_again(path, "search.budget.candidates=5")
    searched_again(path, "search.budget.candidates=5", "resume_overrides=true")
    assert len(log_of(path).told) == 5


def test_a_finished_search_with_another_cap_is_another_search(tmp_path: Path) -> None:
    path = begin(tmp_path, candidates=3)
    with pytest.raises(UserError, match=r"search\.caps\.size: None -> 150"):
        searched_again(path, "search.caps={size: 150}")
    with pytest.raises(UserError, match="is of another search: caps"):
        searched_again(path, "search.caps={size: 150}", "resume_overrides=true")


def test_another_strategy_is_another_search(tmp_path: Path) -> None:
    path = begin(tmp_path, candidates=3)
    given = ("strategy.population=4", "search.budget.candidates=5", "resume_overrides=true")
    with pytest.raises(UserError, match="is of another search: strategy"):
        searched_again(path, *given)


def test_what_fails_is_recorded_and_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("FAILS", "1")
    path = begin(tmp_path, candidates=4)
    result = log_of(path).result(1)
    assert result is not None
    assert result.error == "ValueError: it was asked to fail"
    assert "FAILED" in capsys.readouterr().out
    code = inspection.status(load(["task=status", f"search={path}"]), print)
    shown = capsys.readouterr().out
    assert code == DONE
    assert "3 scored" in shown
    assert "1 failed" in shown
    assert "it was asked to fail" in shown


def test_a_search_without_any_score_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", "0")
    with pytest.raises(UserError, match=r"none of 1 candidates has a score.*asked to fail"):
        begin(tmp_path, candidates=1)


def test_caps_that_are_measured_keep_a_candidate_from_being_the_answer(tmp_path: Path) -> None:
    path = begin(tmp_path, "search.caps={size: 150}", candidates=6)
    log = log_of(path)
    assert {log.result(n).scores["size"] for n in range(6)} == {100, 200, 300}  # type: ignore[union-attr]
    assert {one.scores["size"] for one in log.usable()} == {100}


def test_caps_that_are_counted_hold_before_anything_is_measured(tmp_path: Path) -> None:
    mine = tmp_path / "cells.py"
    mine.write_text("def measure(c):\n    return {'accuracy': 1.0}\n", encoding="utf-8")
    given = ("task=search", *QUIET, "space=nb201", "evaluator.name=own")
    target = f"evaluator.target={mine}:measure"
    path = searched(*given, target, "search.caps={params: 400000}", "search.budget.candidates=9")
    costs = [NB201().costs(c.point)["params"] for c in log_of(path).candidates]
    assert len(costs) == 9
    assert max(costs) <= 400_000
    with pytest.raises(UserError, match="the smallest has params = 73,306"):
        searched(*given, target, "search.caps={params: 10}")


def test_strategy_space_and_evaluator_of_ones_own_from_one_file_and_a_yaml(tmp_path: Path) -> None:
    mine = own(tmp_path)
    further = tmp_path / "conf"
    for group, text in {
        "strategy": f"defaults: [random, _self_]\nname: own\ntarget: {mine}:greedy\n",
        "space": f"defaults: [overrides, _self_]\nname: own\ntarget: {mine}:line\n"
        "settings: {high: 2.0}\n",
        "evaluator": f"defaults: [run, _self_]\nname: own\ntarget: {mine}:Slow\n"
        "settings: {offset: 5.0}\n",
    }.items():
        (further / group).mkdir(parents=True)
        (further / group / "mine.yaml").write_text(text, encoding="utf-8")
    mine_all = ("strategy=mine", "space=mine", "evaluator=mine")
    path = searched(
        "task=search", *QUIET, *mine_all, "search.budget.candidates=4", further=[further]
    )
    log = log_of(path)
    assert [r.scores["accuracy"] for r in log.told] == [5, 6, 7, 8]
    assert [c.how for c in log.candidates[1:]] == ["mutation"] * 3
    assert all(0 <= float(c.point["x"]) <= 2 for c in log.candidates)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["strategy.name=own", "strategy.settings={a: 1}"], "is a function and takes none"),
        (["space.name=own"], "it could not be made"),
    ],
)
def test_settings_that_ones_own_does_not_take(tmp_path: Path, given: list[str], said: str) -> None:
    mine = own(tmp_path)
    group = given[0].partition(".")[0]
    name = {"strategy": "greedy", "space": "measure"}[group]
    choices = [] if group == "space" else [CHOICES]
    with pytest.raises(UserError, match=said):
        searched(
            "task=search", *choices, *QUIET, *measured(tmp_path), f"{group}.target={mine}:{name}",
            *given,
        )  # fmt: skip


def write_cells(path: Path) -> Path:
    space, lines = NB201(), ["arch,val,test_accuracy,seconds"]
    for number, point in enumerate(space.points()):
        if number % 40 == 0:
            lines.append(f"{space.to_string(point)},{number % 97},1,{number % 7}")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_table_is_searched_and_test_columns_are_refused(tmp_path: Path) -> None:
    table = write_cells(tmp_path / "cells.csv")
    given = ["task=search", *QUIET, "space=nb201", "evaluator=tabular", f"evaluator.table={table}"]
    path = searched(*given, "evaluator.scores.accuracy=val", "evaluator.seconds=seconds",
                    "search.budget.candidates=60")  # fmt: skip
    log = log_of(path)
    assert len(log.told) == 60
    assert log.best() is not None
    assert log.spent.seconds > 0
    capped = ["search.caps={params: 400000, latency_ms: 30.5}", f"search.latency={table}"]
    path = searched(*given, *capped, "evaluator.scores.accuracy=val", "search.budget.candidates=9",
                    "search.latency_column=val")  # fmt: skip
    for one in log_of(path).told:
        assert one.scores["accuracy"] <= 30.5  # here the column stands for the latency, too
        assert NB201().costs(one.candidate.point)["params"] <= 400_000
    with pytest.raises(UserError, match="test accuracy: a search must not see it"):
        searched(*given, "evaluator.scores.accuracy=test_accuracy")


@pytest.mark.slow
def test_the_report_has_figures_and_the_best(tmp_path: Path) -> None:
    path = begin(tmp_path, "search.objectives={accuracy: max, size: min}", candidates=16)
    said: list[str] = []
    assert inspection.report(load(["task=report", f"search={path}"]), said.append) == DONE
    html = (path / "report" / "report.html").read_text(encoding="utf-8")
    assert html.count("<img ") == 7
    assert 'src="http' not in html
    told = json.loads((path / "report" / "report.json").read_text())
    log = log_of(path)
    best: Any = log.best()
    assert told["best"][0]["candidate"] == best.candidate.number
    assert len(told["front"]) == len(log.front())
    assert max(told["importance"], key=told["importance"].get) == "optimizer.lr"
    assert re.search(r"optimizer\.lr=0\.00", html)


def test_the_latest_search_is_found_and_is_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match="there is no search in"):
        looked_at("LAST", Path("runs"))
    path = begin(tmp_path, candidates=1)
    assert looked_at("LAST", Path("runs")).path == path
    damaged = path.parent / "z"
    damaged.mkdir()
    (damaged / "search.json").write_text("{")
    assert looked_at("LAST", Path("runs")).path == path
    assert f"search={damaged.absolute()}" in caplog.text
    with pytest.raises(UserError, match="this is the directory of a search"):
        named_runs([str(path)], Path("runs"))
    with pytest.raises(UserError, match="not the directory of a search"):
        looked_at(str(tmp_path), Path("runs"))


@pytest.mark.slow
def test_choices_that_say_nothing_of_a_network_are_not_shown(tmp_path: Path) -> None:
    """A genome has the choices of every family."""
    given = ["task=search", "space=families", "strategy=random", *QUIET, *measured(tmp_path)]
    path = searched(*given, "search.budget.candidates=2", "report.at_end=true")
    first = log_of(path).told[0].candidate.point
    silent = next(name for name in first if not name.startswith(("type", first["type"])))
    lines = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    said = next(str(line) for line in lines if "candidate 0 " in str(line))
    assert "type=" in said
    assert silent not in said
    text = (path / "report" / "report.md").read_text(encoding="utf-8")
    assert "type=" in text
    assert silent not in text.partition("## The best")[2].partition("## Course")[0]
    assert silent not in str(
        list(inspection.table(looked_at(str(path), Path("runs"))).columns[3].cells)
    )
