"""Sweeps over the number of labels on closed sets: tables, figure, published figures."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sseg_nase.reporting import few_labels
from sseg_nase.reporting.aggregate import Aggregate, Entry, aggregate
from sseg_nase.reporting.figures import figures_of_sweep
from sseg_nase.reporting.tables import document, markdown, write
from sseg_nase.rundir.record import read_run
from sseg_nase.statistics import mean_ci95
from tests.support.recorded_runs import accuracies, record

KEY = "cifar10/test/classification"
MEANS = {"autossl_tiny": 60.0, "mobilenet_v2_035": 50.0}
FRACTIONS = (0.01, 0.1)


def closed(folder: Path, values: np.ndarray, backbone: str, **tuning: Any) -> Path:
    """A run that was evaluated on a closed set."""
    accuracy, ci95 = mean_ci95(values)
    evaluated = {
        KEY: {"accuracy": accuracy, "ci95": ci95, "images": len(values), "method": "classifier"}
    }
    return record(
        folder,
        {KEY: values},
        config={
            "finetune": {"name": "classifier", "fraction": 1.0, "samples": 0, **tuning},
            "backbone": {"name": backbone},
        },
        dataset={"name": "cifar10"},
        evaluation={"split": "test"},
        results={"fewshot": {}, "classification": evaluated},
        params=1_000 if backbone == "autossl_tiny" else 2_000,
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Aggregate:
    folder, rng, entries = tmp_path_factory.mktemp("sweep"), np.random.default_rng(0), []
    images = rng.normal(0, 3, 200)
    for backbone, mean in MEANS.items():
        for fraction in FRACTIONS:
            for seed in range(3):
                name = f"backbone={backbone} finetune.fraction={fraction}"
                values = accuracies(rng, images, mean + 20 * fraction)
                path = folder / f"{backbone}{fraction}{seed}"
                run = closed(path, values, backbone, fraction=fraction)
                entries.append(Entry(name, seed, run))
    return aggregate(entries)


def test_closed_sets_have_rows_of_their_own(swept: Aggregate) -> None:
    assert set(swept.summary["key"]) == {KEY}
    assert len(swept.summary) == 4
    assert set(swept.summary["seeds"]) == {3}
    assert set(swept.runs["episodes"]) == {200}
    assert len(swept.comparisons) == 6
    assert set(swept.comparisons["over"]) == {"seeds and episodes"}
    assert not swept.notes
    text = markdown(swept, "a sweep")
    assert f"## {KEY} (inductive)" in text
    assert "Of a closed set every image is an episode" in text


def test_methods_stand_in_rows_and_labels_in_columns(swept: Aggregate) -> None:
    (one,) = few_labels.few_labels(swept)
    assert [method.name for method in one.methods] == list(MEANS)
    assert [str(labels) for labels in one.amounts] == ["1 % of labels", "10 % of labels"]
    first, second = few_labels.table(one).lines
    assert first[:3] == ["autossl_tiny", "1,000", "20,000"]
    assert [float(str(cell).split()[0]) for cell in (first[3], first[4], second[3])] == [
        pytest.approx(expected, abs=1.5) for expected in (60.2, 62, 50.2)
    ]
    assert all(str(cell).endswith("(n=3)") for cell in first[3:5])
    (differences,) = one.differences.values()
    for row in differences.values():
        assert row["difference"] == pytest.approx(10, abs=2)
    text = markdown(swept, "a sweep")
    (line,) = [line for line in text.splitlines() if line.startswith(r"| mobilenet\_v2\_035 | +")]
    assert line.count("*") == 2


def test_what_is_published_stands_in_a_table_of_its_own(swept: Aggregate) -> None:
    (one,) = few_labels.few_labels(swept)
    whole = few_labels.table(one)
    assert whole.header[5:] == ["10 % of labels, published (%)"]
    assert [line[5] for line in whole.lines] == ["~85", "~82"]
    table = few_labels.published_table(one)
    assert ["AutoSSL-Tiny", "autossl_tiny", "800,000", "80,000,000", "10 % of labels", "~85"] in [
        line[:-1] for line in table.lines
    ]
    assert all(each.dataset != "cifar100" for each in few_labels._published_of(one))


def test_every_format_has_it(swept: Aggregate, tmp_path: Path) -> None:
    names = {path.name for path in write(swept, tmp_path, "a sweep")}
    assert {"few_labels.csv", "few_labels.tex"} <= names
    rows = list(csv.DictReader(io.StringIO((tmp_path / "few_labels.csv").read_text())))
    measured = [row for row in rows if row["mean"]]
    assert len(measured) == 4
    assert not any(row["published"] for row in measured)
    assert {row["published"] for row in rows if not row["mean"]} == {"85", "82", "84", "86"}
    assert "Accuracy by the number of labels" in (tmp_path / "report.html").read_text()


def test_the_figure_has_a_line_per_method(swept: Aggregate) -> None:
    records = [read_run(Path(run)) for run in swept.runs["run"]]
    drawings = {each.name: each for each in figures_of_sweep(swept, records)}
    figure = drawings["few_labels"].figure
    assert figure is not None
    lines = {line[0].get_gid() or container.get_label(): line[0] for container in
             figure.axes[0].containers for line in [container]}  # fmt: skip
    assert len(lines) == 2
    for line in lines.values():
        assert line.get_xdata().tolist() == [1, 10]
    for name in ("ablation", "accuracy_params"):  # they know closed sets, too
        assert drawings[name].figure is not None
    assert "Bars begin at 0" in drawings["ablation"].caption
    assert "over its images" in drawings["ablation"].caption


def test_one_amount_of_labels_is_no_curve(tmp_path: Path) -> None:
    rng, images = np.random.default_rng(1), np.zeros(50)
    runs = [
        Entry(f"backbone={name}", 0, closed(tmp_path / name, accuracies(rng, images, 50.0), name))
        for name in MEANS
    ]
    found = aggregate(runs)
    assert few_labels.few_labels(found) == []
    titles = [getattr(block, "text", "") for block in document(found, "a sweep").blocks]
    assert "Accuracy by the number of labels" not in titles
