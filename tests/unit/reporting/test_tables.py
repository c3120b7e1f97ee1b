from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from sseg_nase.config.ablations import Switches
from sseg_nase.reporting.ablation import Ablation, Line
from sseg_nase.reporting.aggregate import (
    COMPARISON_COLUMNS,
    RUN_COLUMNS,
    SUMMARY_COLUMNS,
    Aggregate,
    Entry,
    Side,
    aggregate,
)
from sseg_nase.reporting.tables import _lost, _p_of, as_json, latex, markdown, write
from tests.support.recorded_runs import KEY, METHOD, accuracies, record, sweep

CLEAR = {"A1": 50.0, "A2": 60.0, "A7": 70.0}
CLOSE = {"A1": 50.0, "A2": 60.0, "A7": 60.1}


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every Markdown table, header first, and without the line of dashes."""
    found: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith("| "):
            inside = False
            continue
        if not inside:
            found.append([])
        inside = True
        found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    for table in found:
        assert len({len(line) for line in table}) == 1
        assert set(table.pop(1)) <= {"---", "---:"}
    return found


def summary(found: Aggregate, **wanted: str) -> dict[str, float]:
    table = found.summary
    for column, value in wanted.items():
        table = table[table[column] == value]
    (row,) = table.to_dict("records")
    return {str(key): value for key, value in row.items()}


def test_a_clear_winner_is_bold(tmp_path: Path) -> None:
    found = aggregate(sweep(tmp_path, CLEAR))
    text = markdown(found, "The sweep")
    assert text.startswith("# The sweep\n\nFinished runs: 9, of 3 configurations.\n")
    assert f"## {KEY} (inductive)" in text
    main, last, best, loss = tables(text)
    assert main[0] == [
        "configuration",
        "last network (%)",
        "best network (%)",
        "params",
        "MACs",
        "training MACs",
    ]
    assert [line[0] for line in main[1:]] == list(CLEAR)
    row = summary(found, configuration="A7", key=KEY, network="last")
    assert main[3][1] == f"**{row['mean']:.2f} ± {row['ci95']:.2f} (n=3)**"
    assert main[3][2].startswith("**")
    assert main[3][3:] == ["1,000", "10,000", "3e+06"]
    assert "**" not in str(main[:3])
    assert "The last network of A7 is significantly better than every other." in text
    assert last[0][0] == best[0][0] == "A7 minus"
    assert [line[0] for line in last[1:]] == ["A1", "A2"]
    (row,) = found.comparisons.query("a == 'A2' and b == 'A7' and network == 'last'").to_dict(
        "records"
    )
    assert last[2][1] == f"+{-row['difference']:.2f} ± {row['ci95_episodes']:.2f}"
    assert last[2][3] == f"± {row['ci95_seeds_episodes']:.2f}"
    p = row["p_seeds_episodes_holm"]
    assert last[2][2] == "< 0.001"
    assert last[2][4] == ("< 0.001" if p < 0.001 else f"{p:.3f}")
    assert last[2][5:] == ["3", "yes, over seeds and episodes"]
    assert loss[0] == ["configuration", "last (nats)", "lowest (nats)"]
    assert loss[1][1] == "4.0000 ± 0.0000 (n=3)"
    assert "one seed" not in text
    assert "## Notes" not in text


def test_the_first_lines_say_who_is_best_whether_that_is_sure_and_what_it_costs(
    tmp_path: Path,
) -> None:
    found = aggregate(sweep(tmp_path / "clear", CLEAR))
    best = summary(found, configuration="A7", key=KEY, network="last")
    (row,) = found.comparisons.query("a == 'A2' and b == 'A7' and network == 'last'").to_dict(
        "records"
    )
    said, costs = markdown(found, "t").split("\n\n")[2].split("; ")
    assert said.startswith(
        f"- {KEY} (inductive): the highest mean has **A7** {best['mean']:.2f} ± {best['ci95']:.2f} "
        f"(n=3) %, +{-row['difference']:.2f} ± {row['ci95_seeds_episodes']:.2f} points over A2"
    )
    assert said.endswith("over seeds and episodes)")
    assert ": significant (p" in said
    assert costs == "1,000 params, 10,000 MACs."
    close = markdown(aggregate(sweep(tmp_path / "close", CLOSE)), "t").split("\n\n")[2]
    assert ": not significant (p = " in close
    one = markdown(aggregate(sweep(tmp_path / "one", CLEAR, seeds=1)), "t").split("\n\n")[2]
    assert one.partition(";")[0].endswith(": significant (p < 0.001, over episodes)")
    alone = markdown(aggregate(sweep(tmp_path / "alone", {"A1": 50.0})), "t").split("\n\n")[2]
    assert alone.startswith(f"- {KEY} (inductive): A1 ")
    apart = sweep(tmp_path / "apart", {"A1": 50.0, "A2": 60.0})
    for entry in apart:
        if entry.configuration == "A1":
            (entry.run / "episodes.npz").unlink()
    said = markdown(aggregate(apart), "t").split("\n\n")[2]
    assert "not compared with A1, the next one" in said


def test_a_report_of_nothing_but_best_networks_says_so_too(tmp_path: Path) -> None:
    found = aggregate(sweep(tmp_path, CLEAR))
    runs, rows, pairs = (
        frame[frame["network"] == "best"]
        for frame in (found.runs, found.summary, found.comparisons)
    )
    only = dataclasses.replace(found, runs=runs, summary=rows, comparisons=pairs)
    assert "the highest mean has **A7**" in markdown(only, "t")


def test_without_a_clear_winner_nothing_is_bold_and_it_is_said(tmp_path: Path) -> None:
    text = markdown(aggregate(sweep(tmp_path, CLOSE)), "t")
    main = tables(text)[0]
    assert "**" not in str(main)
    for network in ("Last", "Best"):
        assert re.search(
            f"{network} network: no configuration is significantly better than every other, so "
            r"none is bold\. A\d has the highest mean\.",
            text,
        )


def test_one_seed_says_nothing_about_others(tmp_path: Path) -> None:
    found = aggregate(sweep(tmp_path, CLEAR, seeds=1))
    text = markdown(found, "t")
    main, last, *_ = tables(text)
    row = summary(found, configuration="A7", key=KEY, network="last")
    assert main[3][1] == f"**{row['mean']:.2f} ± {row['ci95_episodes']:.2f}† (n=1)**"
    assert last[1][3:] == ["–", "–", "1", "yes, over episodes"]
    assert "† one seed: says nothing about other seeds" in text
    assert "over seeds, Student's t" not in text
    assert "nan" not in text


def test_two_seeds_come_with_a_warning(tmp_path: Path) -> None:
    text = markdown(aggregate(sweep(tmp_path, CLEAR, seeds=2)), "t")
    assert "With just 2 seeds" in text


def test_a_winner_must_have_been_compared_with_everyone(tmp_path: Path) -> None:
    entries = sweep(tmp_path, CLEAR)
    for entry in entries:
        if entry.configuration == "A1":
            (entry.run / "episodes.npz").unlink()
    text = markdown(aggregate(entries), "t")
    assert "**" not in str(tables(text)[0])
    assert "A7 has the highest mean, and 1 of them could not be compared with it." in text
    assert "## Notes\n\n- A1, seed 0 has no episodes.npz" in text


def test_what_was_not_trained_has_no_best_network(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    shared = rng.normal(0, 5, 50)
    untrained = record(tmp_path / "a", {KEY: accuracies(rng, shared, 50)})
    x = {KEY: accuracies(rng, shared, 60)}
    trained = record(tmp_path / "b", x, x, losses=[2.0])
    text = markdown(aggregate([Entry("A1", 0, untrained), Entry("A2", 0, trained)]), "t")
    main, last, loss = tables(text)
    assert main[1][2] == "–"
    assert last[0][0] == "A2 minus"
    assert [line[0] for line in loss[1:]] == ["A2"]
    assert "nan" not in text


def test_methods_and_kinds_are_kept_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    shared = rng.normal(0, 5, 50)
    entries = []
    for index, (transductive, method) in enumerate([(False, "m1"), (False, "m2"), (True, "m3")]):
        x = {KEY: accuracies(rng, shared, 60)}
        run = record(tmp_path / str(index), x, transductive=transductive, method=method)
        entries.append(Entry("A", index, run))
    text = markdown(aggregate(entries), "t")
    first, second = tables(text)
    assert {line[0] for line in first[1:]} == {"A (m1)", "A (m2)"}
    assert [line[0] for line in second[1:]] == ["A"]
    assert f"## {KEY} (inductive)" in text
    assert f"## {KEY} (transductive)" in text
    assert "One configuration: there is nothing to compare" in text
    assert "without a common seed" in text


@pytest.mark.parametrize(("seeds", "p", "interval"), [(3, "0.012", 0.3), (1, "0.034", 0.2)])
def test_figures_over_seeds_count_where_there_are_several(
    seeds: int, p: str, interval: float, tmp_path: Path
) -> None:
    found = aggregate(sweep(tmp_path, {"A1": 50.0, "A7": 60.0}, seeds=seeds))
    both = {"p_seeds_episodes_holm": 0.012, "ci95_seeds_episodes": 0.3} if seeds > 1 else {}
    told = found.comparisons.assign(p_episodes_holm=0.034, ci95_episodes=0.2, **both)
    found = dataclasses.replace(found, comparisons=told)
    _, last, *_ = tables(markdown(found, "t"))
    assert last[1][2] == "0.034"
    assert last[1][3:5] == (["± 0.30", "0.012"] if seeds > 1 else ["–", "–"])
    side = Side("A1", METHOD)
    (pair,) = told[told["network"] == "last"].to_dict("records")
    summary = {"seeds": seeds}
    parts = Switches(
        ssl=True, evolution=False, sparsity=False, progression=False, distillation=False
    )
    line = Line(side, parts, summary, -10.0, pair)
    one = Ablation(KEY, "last", False, Side("A7", METHOD), (line,))
    assert _lost(line, one).startswith(f"-10.00 ± {interval:.2f}")
    assert _p_of(line) == p
    nothing = dataclasses.replace(line, difference=None, comparison=None)
    assert (_lost(nothing, one), _p_of(nothing)) == ("not compared", "–")


def test_the_highest_mean_must_also_win_on_the_common_seeds(tmp_path: Path) -> None:
    """Means are over all seeds of each, differences over those that both have."""
    found = aggregate(sweep(tmp_path, {"A1": 50.0, "A7": 60.0}))
    assert "**" in str(tables(markdown(found, "t"))[0])
    turned = found.comparisons.assign(difference=-found.comparisons["difference"])
    text = markdown(dataclasses.replace(found, comparisons=turned), "t")
    assert "**" not in str(tables(text)[0])


def test_every_configuration_has_its_losses_and_its_seeds(tmp_path: Path) -> None:
    entries = sweep(tmp_path, CLEAR)
    found = aggregate([e for e in entries if e.configuration != "A2" or e.seed])
    *_, loss = tables(markdown(found, "t"))
    assert [(line[0], line[1][-5:]) for line in loss[1:]] == [
        ("A1", "(n=3)"), ("A2", "(n=2)"), ("A7", "(n=3)")
    ]  # fmt: skip
    results, *_ = latex(found)["results"]
    seeds = {line[0]: line[results.header.index("n")] for line in results.lines}
    assert seeds == {"A1": "3", "A2": "2", "A7": "3"}


def test_what_is_transductive_is_compared_in_its_own_table(tmp_path: Path) -> None:
    rng, shared = np.random.default_rng(4), np.random.default_rng(5).normal(0, 5, 50)
    entries = []
    for name, kinds in {"A": (60, 80), "B": (50, 40)}.items():
        for seed, mean in enumerate(kinds):
            run = record(
                tmp_path / f"{name}{seed}",
                {KEY: accuracies(rng, shared, mean)},
                transductive=bool(seed),
            )
            entries.append(Entry(name, seed, run))
    _, first, _, second, *_ = tables(markdown(aggregate(entries), "t"))
    differences = [float(table[1][1].split()[0]) for table in (first, second)]
    assert differences == pytest.approx([10, 40], abs=5)


def test_what_is_not_a_number_is_null_in_json(tmp_path: Path) -> None:
    found = aggregate(sweep(tmp_path, {"A1": 50.0, "A7": 60.0}, seeds=1))
    told = as_json(found, "t")
    json.dumps(told, allow_nan=False)
    assert told["summary"][0]["ci95"] is None


def test_odd_names_do_not_break_the_tables(tmp_path: Path) -> None:
    odd = "ssl.a_b=1|2 *x*"
    entries = sweep(tmp_path, {"A": 50.0, "B": 60.0})
    entries = [Entry(odd if e.configuration == "A" else "B", e.seed, e.run) for e in entries]
    main = tables(markdown(aggregate(entries), "t"))[0]
    assert main[1][0] == r"ssl.a\_b=1\|2 \*x\*"


def test_nothing_makes_a_report_all_the_same(tmp_path: Path) -> None:
    found = aggregate([Entry("A", 0, Path("nowhere"))])
    write(found, tmp_path / "out", "empty")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Finished runs: 0, of 0 configurations." in text
    assert "A, seed 0 has no results.json" in text
    header = (tmp_path / "out" / "runs.csv").read_text()
    assert header == ",".join(RUN_COLUMNS) + "\n"


def test_csv_files_hold_every_digit_in_a_fixed_order(tmp_path: Path) -> None:
    found = aggregate(sweep(tmp_path / "runs", CLEAR))
    write(found, tmp_path / "out", "t")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "runs.csv", "summary.csv", "comparisons.csv", "report.md", "report.html", "report.json",
        "results.tex", "preview.tex",
    }  # fmt: skip
    for name, columns in (
        ("runs", RUN_COLUMNS),
        ("summary", SUMMARY_COLUMNS),
        ("comparisons", COMPARISON_COLUMNS),
    ):
        with (tmp_path / "out" / f"{name}.csv").open(newline="") as file:
            read = list(csv.DictReader(file))
        assert tuple(read[0]) == columns
        expected = getattr(found, name).to_dict("records")
        assert len(read) == len(expected)
        for line, row in zip(read, expected, strict=True):
            for column, value in row.items():
                if value is None or (isinstance(value, float) and math.isnan(value)):
                    assert line[column] == ""
                elif isinstance(value, float):
                    assert float(line[column]) == value
                else:
                    assert line[column] == str(value)
    again = aggregate(sweep(tmp_path / "again", CLEAR))
    assert again.comparisons.equals(found.comparisons)


def test_the_report_is_the_markdown(tmp_path: Path) -> None:
    found = aggregate(sweep(tmp_path / "runs", CLEAR, seeds=1))
    write(found, tmp_path, "t")
    assert (tmp_path / "report.md").read_text() == markdown(found, "t")


@pytest.mark.parametrize("means", [CLEAR, CLOSE])
def test_every_table_has_its_unit(tmp_path: Path, means: dict[str, float]) -> None:
    for table in tables(markdown(aggregate(sweep(tmp_path, means)), "t")):
        assert any("%" in cell or "nats" in cell for cell in table[0])
