"""The report of a sweep: what each part of the method is worth, and the same in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from sseg_nase.config import ablations as defined
from sseg_nase.reporting.ablation import ablations
from sseg_nase.reporting.aggregate import Aggregate, Entry, aggregate
from sseg_nase.reporting.document import Picture
from sseg_nase.reporting.markdown import as_markdown
from sseg_nase.reporting.tables import document, write
from tests.support.recorded_runs import accuracies, record
from tests.unit.reporting.test_report_documents import Page, assert_alone
from tests.unit.reporting.test_report_latex import compiled, needs_pdflatex

ABLATIONS = {name: one.switches for name, one in defined.ablations().items()}

KEYS = ("digits/val/5w1s", "digits/val/5w5s")
MEANS = {"A1": 40, "A2": 50, "A3": 52, "A4": 54, "A5": 53, "A6": 54, "A7": 58}


def config_of(ablation: str) -> dict[str, Any]:
    on = ABLATIONS[ablation]
    return {
        "ssl": {
            "name": "simclr" if on.ssl else "none",
            "distillation_weight": float(on.distillation),
        },
        "evolution": {"enabled": on.evolution},
        "sparsity": {"enabled": on.sparsity},
        "curriculum": {"progression": on.progression},
    }


def swept(folder: Path, names: tuple[str, ...] = tuple(MEANS), seeds: int = 3) -> Aggregate:
    rng = np.random.default_rng(0)
    shared = {key: rng.normal(0, 5, 100) for key in KEYS}
    entries = []
    for name in names:
        for seed in range(seeds):
            last = {key: accuracies(rng, of, MEANS[name]) for key, of in shared.items()}
            best = last if ABLATIONS[name].ssl else None
            run = record(folder / f"{name}-{seed}", last, best, config=config_of(name))
            entries.append(Entry(f"ablation={name}", seed, run))
    return aggregate(entries)


def test_the_parts_and_the_differences(tmp_path: Path) -> None:
    found = swept(tmp_path)
    one, *others = ablations(found)
    assert (one.key, one.network, one.transductive) == (KEYS[0], "last", False)
    assert len(others) == 3  # the other list, and the best networks of both
    assert one.reference.configuration == "ablation=A7"
    assert [line.side.configuration for line in one.lines] == [f"ablation={a}" for a in MEANS]
    assert {line.side.configuration[-2:]: line.switches for line in one.lines} == dict(ABLATIONS)
    means = {line.side: line.summary["mean"] for line in one.lines}
    for line in one.lines:
        if line.side == one.reference:
            assert line.difference is None
        else:
            assert line.difference == pytest.approx(means[line.side] - means[one.reference])
            assert line.comparison is not None
            assert {line.comparison["a"], line.comparison["b"]} == {
                line.side.configuration,
                "ablation=A7",
            }


def test_figures_stand_before_tables_and_all_tables_have_one_order(tmp_path: Path) -> None:
    picture = Picture("A figure", "", {}, "it is missing")
    names = ("A7", "A1", "A3")
    text = as_markdown(document(swept(tmp_path, names), "t", [picture], "sseg-nase -m x=1,2"))
    order = ["Finished runs", "highest mean", "- **Made**: ", "sseg-nase -m x=1,2", "## Figures",
             "A figure", "| configuration |", "## Ablation", "## How to read this"]  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    columns = [
        [line.split("|")[1].strip().removeprefix("ablation=") for line in part.splitlines()[2:]]
        for part in text.split("\n\n")
        if part.startswith("| ")
    ]
    assert len(columns) > 4
    for column in columns:
        assert column == [name for name in names if name in column]


def test_configurations_with_the_same_parts_are_no_ablation(tmp_path: Path) -> None:
    assert ablations(swept(tmp_path, ("A7",))) == []
    write(swept(tmp_path / "same", ("A7",)), tmp_path / "out", "t")
    assert not (tmp_path / "out" / "ablation.tex").exists()
    assert "Ablation" not in (tmp_path / "out" / "report.md").read_text()


def test_every_format_says_the_same(tmp_path: Path) -> None:
    figure = Figure(figsize=(1, 1))
    figure.savefig(tmp_path / "a.png")
    picture = Picture("A figure", "Bars.", {"png": tmp_path / "a.png"})
    found = swept(tmp_path / "runs")
    files = write(found, tmp_path / "out", "A <sweep>", [picture])
    assert {path.name for path in files} == {path.name for path in (tmp_path / "out").iterdir()}
    text = (tmp_path / "out" / "report.md").read_text()
    header = (
        "| configuration | self-supervision | evolution | sparsity | curriculum | distillation "
        "| accuracy (%) | difference from A7 (% points) | p | params |"
    )
    assert header in text
    lines = text.split(header)[1].splitlines()[2:9]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [line[0] for line in cells] == list(MEANS)
    marks = [tuple(cell == "✓" for cell in line[1:6]) for line in cells]
    assert marks == [tuple(ABLATIONS[name]) for name in MEANS]
    assert cells[0][7].endswith(r"\*")
    assert cells[0][7].startswith("-1")
    assert cells[-1][7:9] == ["reference", "–"]
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert_alone(page)
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    tex = (tmp_path / "out" / "ablation.tex").read_text()
    (row,) = (
        r
        for r in told["summary"]
        if (r["configuration"], r["key"], r["network"]) == ("ablation=A7", KEYS[0], "last")
    )
    accuracy = f"{row['mean']:.2f} ± {row['ci95']:.2f}"
    assert f"{accuracy} (n=3)" in text
    assert f"{accuracy} (n=3)" in page.text
    assert accuracy.replace("±", r"$\pm$") in tex
    assert told["title"] == "A <sweep>"
    assert len(told["runs"]) == len(found.runs)
    bold = [
        line for line in (tmp_path / "out" / "results.tex").read_text().splitlines() if "bf" in line
    ]
    assert all(line.startswith("ablation=A7") for line in bold)


@needs_pdflatex
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_preview_compiles(tmp_path: Path, seeds: int) -> None:
    write(swept(tmp_path / "runs", seeds=seeds), tmp_path, "t")
    log = compiled(tmp_path)
    assert "ablation.tex" in log
