"""Whatever reports look like: no number of a table is lost, in any format.

`contents.golden.json` holds the numbers of every row of every table as the reports of commit
9f43d73 had them, of the same records; `contents` reads them from today's files.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sseg_nase.reporting import comparison_tables, tables
from sseg_nase.reporting.aggregate import Entry, aggregate
from sseg_nase.reporting.comparison import compare
from sseg_nase.reporting.run_report import write_report
from tests.support.recorded_runs import accuracies, record
from tests.unit.reporting.test_comparison import small_case
from tests.unit.reporting.test_record import mutation
from tests.unit.reporting.test_report_run import RESULT, _few_figures, a_run  # noqa: F401  # a fixture
from tests.unit.reporting.test_report_sweep import MEANS, config_of

GOLDEN = Path(__file__).with_name("contents.golden.json")
NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
OF_TIME = ("began", "ended")  # differ from one writing to the next
CONFIG = "default"  # heads a table that follows from conf/, which changes: it has its own test

Rows = list[list[str]]


# -- what is reported ----------------------------------------------------------------------------


def of_run(folder: Path) -> Path:
    keys = ("digits/val/5w1s", "cifar_fs/test/5w1s")
    evaluated = {
        network: {
            key: {**RESULT, "accuracy": 50.25 + 7 * n + m, "ci95": 0.5 + n / 10, "top_k": {"2": 80}}
            for m, key in enumerate(keys)
        }
        for n, network in enumerate(("fewshot_untrained", "fewshot_best", "fewshot"))
    }
    difference = {keys[0]: {"mean": 1.25, "ci95": 0.4, "p_value": 0.001}}
    best = {"epoch": 4, "step": 50, "params": 6000, "macs": 70000, "minus_last": difference}
    run = a_run(folder / "run", **evaluated, best=best)
    measured = {
        "accuracy": {"before": 81.5, "after": 80.25, "change": -1.25, "change_error": 0.5},
        "latency": {"batch": 64, "before_ms": 3.5, "after_ms": 3.25},
    }
    line = mutation(2) | {"kind": "PRUNE", "target": {}, "measured": measured}
    with (run / "mutations.jsonl").open("a") as lines:
        lines.write(json.dumps(line | {"trigger": {"undecided": 3}}) + "\n")
    write_report(run, folder / "out")
    return folder / "out"


def of_sweep(folder: Path, *, seeds: int) -> Path:
    rng = np.random.RandomState(0)  # the old generator: its numbers are the same everywhere
    shared = {key: rng.normal(0, 5, 100) for key in ("digits/val/5w1s", "digits/val/5w5s")}
    entries = []
    for name, mean in MEANS.items():
        for seed in range(seeds):
            last = {key: accuracies(rng, of, mean) for key, of in shared.items()}
            best = None if name == "A1" else {key: values - 1 for key, values in last.items()}
            run = folder / f"{name}-{seed}"
            record(run, last, best, config=config_of(name), losses=[5.0, 3.0 - seed, 4.0])
            entries.append(Entry(f"ablation={name}", seed, run))
    tables.write(aggregate(entries), folder / "out", "A sweep")
    return folder / "out"


def of_comparison(folder: Path) -> Path:
    comparison_tables.write(compare(small_case()), folder)
    return folder


REPORTS = {
    "run": of_run,
    "sweep": partial(of_sweep, seeds=3),
    "sweep of one seed": partial(of_sweep, seeds=1),
    "comparison": of_comparison,
}


# -- how it is read ------------------------------------------------------------------------------


def numbers(text: str) -> list[str]:
    """What a row says, in no order; up to six digits of each, with which every machine agrees."""
    found = (text.replace(",", "").replace("−", "-") for text in NUMBER.findall(text))
    return sorted(f"{float(one):.6g}" for one in found)


class Cells(HTMLParser):
    """The rows of the tables of a page, but for their heads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[tuple[str, list[str]]] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append(("", []))
        elif tag in ("thead", "tbody", "tr"):
            self.inside = tag if tag != "tr" else self.inside
            if tag == "tr" and self.inside == "tbody":
                self.tables[-1][1].append("")
        elif tag == "style":
            self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("table", "style"):
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "thead":
            head, rows = self.tables.pop()
            self.tables.append((f"{head} {data}", rows))
        elif self.inside == "tbody" and self.tables[-1][1]:
            self.tables[-1][1][-1] += f" {data} "


def of_html(text: str) -> Iterator[str]:
    for head, rows in Cells(text).tables:
        if CONFIG not in head.split():
            yield from rows


def of_markdown(text: str) -> Iterator[str]:
    for part in re.split(r"\n\s*\n", text):
        lines = [line for line in part.splitlines() if line.startswith("|")]
        if lines and CONFIG not in lines[0].split():
            yield from lines[2:]


def of_latex(text: str) -> Iterator[str]:
    plain = re.sub(r"\\penalty\d+ |\\hspace\{0pt\}|\\allowbreak\{\}", "", text)
    for part in re.findall(r"\\toprule(.*?)\\bottomrule", plain, re.DOTALL):
        _, _, body = part.partition(r"\midrule")
        rows = (line for line in body.splitlines() if line.rstrip().endswith(r"\\"))
        yield from (re.sub(r"\\[a-zA-Z]+|[${}]", "", row) for row in rows)


def of_csv(text: str) -> Iterator[str]:
    yield from (" ".join(row) for row in list(csv.reader(text.splitlines()))[1:])


def of_json(text: str) -> Iterator[str]:
    def leaves(value: Any) -> Iterator[str]:
        if isinstance(value, Mapping):
            for key, one in value.items():
                yield from () if key in OF_TIME else leaves(one)
        elif isinstance(value, list):
            for one in value:
                yield from leaves(one)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield repr(value)

    yield from leaves(json.loads(text))


READERS = {
    ".html": of_html, ".md": of_markdown, ".tex": of_latex, ".csv": of_csv, ".json": of_json,
}  # fmt: skip


def contents(name: str, folder: Path) -> dict[str, Rows]:
    """The numbers of every row of a report, by file."""
    out = REPORTS[name](folder)
    files = sorted(path for path in out.iterdir() if path.suffix in READERS)
    found = {}
    for path in files:
        text = path.read_text(encoding="utf-8").replace(str(folder), "")
        rows = [numbers(row) for row in READERS[path.suffix](text)]
        if rows := [row for row in rows if row]:
            found[path.name] = rows
    return found


@pytest.mark.parametrize("name", REPORTS)
def test_no_number_is_lost(name: str, tmp_path: Path) -> None:
    before: dict[str, Rows] = json.loads(GOLDEN.read_text(encoding="utf-8"))[name]
    now = contents(name, tmp_path)
    assert sum(map(len, before.values())) > 30
    for file, rows in before.items():
        lost = Counter(map(tuple, rows)) - Counter(map(tuple, now.get(file, [])))
        assert not lost, f"{file} has lost {list(lost)[:3]}"
