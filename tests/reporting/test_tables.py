from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import numpy as np
import pytest
from recorded_runs import KEY, accuracies, record, sweep

from sseg_nase.reporting.aggregate import (
    COMPARISON_COLUMNS,
    RUN_COLUMNS,
    SUMMARY_COLUMNS,
    Aggregate,
    Entry,
    aggregate,
)
from sseg_nase.reporting.tables import markdown, write

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
    assert main[0] == ["configuration", "last network (%)", "best network (%)", "params", "MACs"]
    assert [line[0] for line in main[1:]] == ["A7", "A2", "A1"]
    row = summary(found, configuration="A7", key=KEY, network="last")
    assert main[1][1] == f"**{row['mean']:.2f} ± {row['ci95']:.2f} (n=3)**"
    assert main[1][2].startswith("**")
    assert main[1][3:] == ["1,000", "10,000"]
    assert "**" not in str(main[2:])
    assert "The last network of A7 is significantly better than every other." in text
    assert last[0][0] == best[0][0] == "A7 minus"
    assert [line[0] for line in last[1:]] == ["A2", "A1"]
    (row,) = found.comparisons.query("a == 'A2' and b == 'A7' and network == 'last'").to_dict(
        "records"
    )
    assert last[1][1] == f"+{-row['difference']:.2f} ± {row['ci95_episodes']:.2f}"
    assert last[1][3] == f"± {row['ci95_seeds_episodes']:.2f}"
    p = row["p_seeds_episodes_holm"]
    assert last[1][2] == "< 0.001"
    assert last[1][4] == ("< 0.001" if p < 0.001 else f"{p:.3f}")
    assert last[1][5:] == ["3", "yes, over seeds and episodes"]
    assert loss[0] == ["configuration", "last (nats)", "lowest (nats)"]
    assert loss[1][1] == "4.0000 ± 0.0000 (n=3)"
    assert "one seed" not in text
    assert "## Notes" not in text


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
    assert main[1][1] == f"**{row['mean']:.2f} ± {row['ci95_episodes']:.2f}† (n=1)**"
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
    assert main[2][2] == "–"
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


def test_odd_names_do_not_break_the_tables(tmp_path: Path) -> None:
    odd = "ssl.a_b=1|2 *x*"
    entries = sweep(tmp_path, {"A": 50.0, "B": 60.0})
    entries = [Entry(odd if e.configuration == "A" else "B", e.seed, e.run) for e in entries]
    main = tables(markdown(aggregate(entries), "t"))[0]
    assert main[2][0] == r"ssl.a\_b=1\|2 \*x\*"


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
