"""The report of one run, whole or with pieces missing."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure

from sseg_nase.config.compose import defaults, load
from sseg_nase.config.fingerprint import flatten
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.grow import grow, grow_stages
from sseg_nase.nets.mutations.widen import widen
from sseg_nase.reporting import figures
from sseg_nase.reporting.figures import Drawing
from sseg_nase.reporting.run_report import (
    _target,
    command,
    differing_from_defaults,
    write_report,
)
from sseg_nase.run import run as run_config
from sseg_nase.rundir.events import span
from sseg_nase.rundir.record import RunRecord, read_run
from sseg_nase.tracking.jsonl import JsonlSink
from sseg_nase.tracking.sink import RunInfo
from tests.unit.reporting.test_record import mutation
from tests.unit.reporting.test_report_documents import Page, assert_alone
from tests.unit.reporting.test_report_latex import compiled, needs_pdflatex

OVERRIDES = ["experiment=quickstart", "dataset.root='a folder; rm <b>'"]
SEED = Architecture.seed([4, 6], resolution=16)
RESULT = {"episodes": 600, "method": "prototype/cosine/cl2n", "transductive": False}
FILES = {
    "report.md", "report.html", "results.tex", "preview.tex", "results.csv", "mutations.csv",
    "epochs.csv", "results.json", "figures",
}  # fmt: skip


@cache
def quickstart() -> str:
    """Its config.yaml."""
    return yaml.safe_dump(dataclasses.asdict(load(["experiment=quickstart", "seed=3"])))


def a_run(folder: Path, **changes: Any) -> Path:
    """What a run of the quickstart leaves behind, as far as reports read it."""
    sink = JsonlSink()
    sink.open(RunInfo(folder, "<b>a|run</b>", "quickstart", folder / "config.yaml", 2))
    for epoch in range(2):
        sink.metrics({"pretrain/loss": 4.0 - epoch, "pretrain/lr": 0.1}, 10 * epoch)
        sink.event("epoch", {"epoch": epoch, "level": "BASIC", "params": 5000, "loss": 4.0})
    sink.event("mutation", mutation(0) | {"target": {"block": 1, "channels": 24}, "seconds": 0.5})
    sink.event("mutation", mutation(1, accepted=False))
    sink.close("FINISHED")
    write(folder / "config.yaml", quickstart())
    write(folder / "overrides.yaml", yaml.safe_dump(OVERRIDES))
    write(folder / "status.json", json.dumps({"status": "FINISHED", "error": None}))
    environment = {
        "python": "3.11.2", "packages": {"torch": "2.15"}, "processor": "A chip", "cores": 4,
        "threads": 2, "gpu": None, "platform": "Linux", "code": {"commit": "abc", "changed": True},
    }  # fmt: skip
    earlier = {**environment, "gpu": "A card", "cuda": "13"}
    write(folder / "environment.json", json.dumps({**environment, "earlier": [earlier]}))
    results = {
        "schema": 1,
        "fingerprint": "0123456789abcdef",
        "status": "FINISHED",
        "seconds": {"pretrain": 12.5},
        "architecture": {"blocks": 3, "channels": [16, 24, 32], "params": 7000},
        "fewshot": {"digits/val/5w1s": {**RESULT, "accuracy": 56.789, "ci95": 0.654}},
        "fewshot_untrained": {"digits/val/5w1s": {**RESULT, "accuracy": 41.5, "ci95": None}},
        "efficiency": {"params": 7000, "macs": 80000, "resolution": 32, "device": "cpu"},
        "mutations": 1,
        "images_seen": {"synthetic": 8192, "real_unlabeled": 0, "real_labeled": 0},
        "training_macs": {"total": 8 * 10**9, "student": 6 * 10**9, "trials": 2 * 10**9},
    }
    write(folder / "results.json", json.dumps(results | changes))
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def two_drawings(record: RunRecord) -> Iterator[Drawing]:
    figure = Figure(figsize=(2, 1))
    figure.text(0.1, 0.5, record.folder.name)
    yield Drawing("first", "First", "What it shows.", figure)
    yield Drawing("second", "Second", "", None, "There was nothing to show.")


@pytest.fixture(autouse=True)
def _few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures themselves have tests of their own."""
    monkeypatch.setattr(figures, "figures_of_run", two_drawings)


@pytest.mark.parametrize(
    ("mutation", "said"),
    [
        (grow(SEED), "a block of 6 channels at place 3 (preserve)"),
        (
            grow(SEED, position=1, before_pool=True),
            "a block of 4 channels at place 2, before pooling (preserve)",
        ),
        (
            grow_stages(SEED),
            "a block of 4 channels at place 2; a block of 6 channels at place 4 (preserve)",
        ),
        (widen(SEED, 1, channels=8), "block 2 has 8 channels (duplicate)"),
    ],
)
def test_what_a_mutation_has_changed_is_said(mutation: Mutation, said: str) -> None:
    assert _target(mutation.kind, json.loads(json.dumps(mutation.target))) == said


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return a_run(tmp_path / "runs" / "quickstart" / "one")


def text_of(run: Path) -> str:
    files = write_report(run)
    assert {path.relative_to(run / "report").parts[0] for path in files} <= FILES
    page = Page((run / "report" / "report.html").read_text())
    assert_alone(page)
    return (run / "report" / "report.md").read_text()


def test_the_network_chosen_by_its_loss_stands_first_and_the_last_beside(tmp_path: Path) -> None:
    difference = {"digits/val/5w1s": {"mean": 1.25, "ci95": 0.4, "p_value": 0.001}}
    best = {"epoch": 4, "step": 50, "params": 6000, "macs": 70000, "minus_last": difference}
    evaluated = {"digits/val/5w1s": {**RESULT, "accuracy": 58.04, "ci95": 0.6}}
    run = a_run(tmp_path / "both", best=best, fewshot_best=evaluated)
    text = text_of(run)
    for said in (
        "|  | untrained | best | last |",
        "| digits val, 5-way 1-shot (%) | 41.50 ± – | 58.04 ± 0.60 | 56.79 ± 0.65 |",
        "| parameters | 5,000 | 6,000 | 7,000 |",
        "best: 6,000 parameters; last: 3 blocks, channels 16-24-32, 7,000 parameters",
        "Best: lowest loss at the latest level, after epoch 5, chosen without labels.",
        "Best minus last, digits/val/5w1s: +1.25 ± 0.40 points on the same episodes.",
        "the same result only on the same kind of machine",
    ):
        assert said in text, said
    assert text.index("58.04") < text.index("**Made**")


def first_screen(run: Path) -> str:
    """What stands above the facts of a run."""
    return text_of(run).split("- **What**")[0]


CONTROL = {
    "blocks": 3,
    "channels": [16, 16, 32],
    "params": 5000,
    "macs": 70000,
    "training_macs": 4 * 10**9,
    "last_minus": {"digits/val/5w1s": {"mean": 2.5, "ci95": 0.75, "p_value": 0.0004}},
}


def test_the_first_screen_says_what_evolution_gave_and_what_it_costs(tmp_path: Path) -> None:
    evaluated = {"digits/val/5w1s": {**RESULT, "accuracy": 54.25, "ci95": 0.5}}
    said = first_screen(a_run(tmp_path / "one", control=CONTROL, fewshot_control=evaluated))
    for part in (
        "- Evolution gave **+2.50 ± 0.75 points** on digits val, 5-way 1-shot over the seed",
        "without mutations: significant (p < 0.001).",
        "- Training gave +15.29 points on digits val, 5-way 1-shot over the untrained network.",
        "1.40 times the parameters and 1.14 times the multiply-accumulates",
        "2.00 times the multiply-accumulates of training the seed network (0.008 T and 0.004 T)",
        "|  | untrained | seed network, trained | last |",
        "| digits val, 5-way 1-shot (%) | 41.50 ± – | 54.25 ± 0.50 | 56.79 ± 0.65 |",
        "| parameters | 5,000 | 5,000 | 7,000 |",
        "| multiply-accumulates (MACs) | 70,000 | 70,000 | 80,000 |",
    ):
        assert part in said, part
    assert "latency" not in said  # nobody has measured it
    assert "is not known" not in said


@pytest.mark.parametrize(
    ("difference", "sure"),
    [
        ({"mean": 0.5, "ci95": 0.4, "p_value": 0.2}, "not significant (p = 0.200)"),
        ({"mean": 0.5, "ci95": 0.4}, "significant."),
        ({"mean": 0.3, "ci95": 0.4}, "not significant."),
    ],
)
def test_what_evolution_gave_is_sure_or_not(
    difference: dict[str, float], sure: str, tmp_path: Path
) -> None:
    control = CONTROL | {"last_minus": {"digits/val/5w1s": difference}}
    assert f"without mutations: {sure}" in first_screen(a_run(tmp_path / "one", control=control))


def test_without_a_control_it_is_said_how_to_get_one(run: Path) -> None:
    said = first_screen(run)
    assert "What evolution gave is not known: report.control=true trains the seed network" in said
    assert "Evolution gave" not in said
    (run / "mutations.jsonl").write_text("")
    lines = (run / "events.jsonl").read_text().splitlines()
    kept = [line for line in lines if '"mutation"' not in line]
    (run / "events.jsonl").write_text("\n".join(kept) + "\n")
    said = first_screen(run)
    assert "evolution" not in said
    assert "| parameters | 7,000 | 7,000 |" in said  # the untrained network is that of the end


def test_the_published_figure_of_the_same_method_stands_beside(tmp_path: Path) -> None:
    fewshot = {"cifar_fs/test/5w1s": {**RESULT, "accuracy": 50.0, "ci95": 0.5}}
    run = a_run(tmp_path / "one", fewshot=fewshot, fewshot_untrained={})
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["finetune"] = {"name": "prototypical", "start": None}
    config["ssl"] = {"name": "none", "distillation_weight": 0}
    config["backbone"] = {"name": "conv4", "weights": None}
    config["evolution"]["enabled"] = config["sparsity"]["enabled"] = False
    config["dataset"]["name"] = "cifar_fs"
    write(run / "config.yaml", yaml.safe_dump(config))
    results = json.loads((run / "results.json").read_text())
    results["architecture"]["channels"] = [64] * 4
    results["images_seen"] = {"synthetic": 0, "real_unlabeled": 0, "real_labeled": 9}
    results["fewshot"]["cifar_fs/test/5w1s"]["method"] = "prototype/euclidean/none"
    write(run / "results.json", json.dumps(results))
    assert "| cifar_fs test, 5-way 1-shot (%) | 50.00 ± 0.50 | 55.50 |".replace("_", r"\_") in (
        first_screen(run)
    )


def test_the_small_picture_stands_on_the_first_screen(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_growth(record: RunRecord) -> Iterator[Drawing]:
        yield dataclasses.replace(next(two_drawings(record)), name="growth", small=True)
        yield from two_drawings(record)

    monkeypatch.setattr(figures, "figures_of_run", with_growth)
    text = text_of(run)
    first, later = text.split("## Figures")
    assert "](<figures/growth.png>)" in first.split("- **What**")[0]
    assert "growth" not in later
    page = (run / "report" / "report.html").read_text()
    assert page.count('<figure class="small">') == 1


def test_a_whole_run(run: Path) -> None:
    files = write_report(run)
    folder = run / "report"
    assert {path.name for path in folder.iterdir()} == FILES
    drawn = {folder / "figures" / f"first.{suffix}" for suffix in ("png", "svg", "pdf")}
    assert set(files) == {p for p in folder.iterdir() if p.is_file()} | drawn
    text = (folder / "report.md").read_text()
    for said in (
        r"# quickstart: \<b>a\|run\</b>",
        "- **Status**: **FINISHED**",
        "(pretrain 0:12), on A chip (2 threads), commit `abc+changes`",
        "- **Network**: 3 blocks, channels 16-24-32, 7,000 parameters",
        "- **Seed**: 3",
        "`0123456789abcdef`",
        "\nsseg-nase experiment=quickstart 'dataset.root='\"'\"'a folder; rm <b>'\"'\"''\n",
        "### Inductive",
        "| digits val, 5-way 1-shot | untrained | 41.50 ± – | 600 | prototype/cosine/cl2n |",
        "| digits val, 5-way 1-shot | last | 56.79 ± 0.65 | 600 | prototype/cosine/cl2n |",
        "| parameters | 5,000 | 7,000 |",
        "- **drawn**: 8,192",
        "- **total**: 8e+09",
        "- **student**: 6e+09 (75.0%)",
        "![First](<figures/first.png>)",
        "> Second: There was nothing to show.",
        "| 0 | 2 | WIDEN | block 2 has 24 channels | 16-16-32 → 16-24-32 | 5.00 k → 7.00 k |",
        "| **rolled back** |",
        "| `pretrain.epochs` | `100` | `20` |",
        "| `seed` | `0` | `3` |",
        "- **Versions**: Python 3.11.2, torch 2.15",
        "- **Processor**: A chip; 4 cores, 2 threads used",
        "- **Code**: commit `abc`, with changes that are not in it",
        "### Before it was resumed (1)",
        "- **GPU**: A card, CUDA 13",
    ):
        assert said in text, said
    assert "`dataset.name`" not in text  # as in the defaults
    assert "nan" not in text
    assert "## Notes" not in text
    page = Page((folder / "report.html").read_text())
    assert_alone(page)
    assert "<b>a|run</b>" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 1


def test_the_exports(run: Path) -> None:
    write_report(run)
    folder = run / "report"

    def lines(name: str) -> list[dict[str, str]]:
        return list(csv.DictReader((folder / name).read_text().splitlines()))

    untrained, last = lines("results.csv")
    assert (untrained["network"], untrained["accuracy"], untrained["ci95"]) == (
        "untrained", "41.5", "",
    )  # fmt: skip
    assert (last["ways"], last["shots"], last["accuracy"], last["episodes"]) == (
        "5", "1", "56.789", "600",
    )  # fmt: skip
    assert [line["loss"] for line in lines("epochs.csv")] == ["4.0", "4.0"]
    first, second = lines("mutations.csv")
    assert (first["kind"], first["after_channels"], first["accepted"]) == (
        "WIDEN", "[16, 24, 32]", "True",
    )  # fmt: skip
    assert second["accepted"] == "False"
    told = json.loads((folder / "results.json").read_text())
    assert [one["accuracy"] for one in told["results"]] == [41.5, 56.789]
    assert told["differs_from_defaults"]["pretrain.epochs"] == {"default": "100", "value": "20"}
    assert told["environment"]["packages"] == {"torch": "2.15"}
    assert told["fingerprint"] == "0123456789abcdef"
    assert told["began"] <= told["ended"]
    assert len(told["mutations"]) == 2


@needs_pdflatex
def test_the_preview_compiles(run: Path) -> None:
    write_report(run)
    log = compiled(run / "report")
    assert "results.tex" in log


def test_kinds_stand_apart(tmp_path: Path) -> None:
    both = {
        "digits/val/5w1s": {**RESULT, "accuracy": 50.0, "ci95": 0.5, "top_k": {"2": 70.0}},
        "digits/val/5w5s": {**RESULT, "accuracy": 60.0, "ci95": 0.5, "transductive": True},
    }
    text = text_of(a_run(tmp_path / "one", fewshot=both, fewshot_untrained={}))
    inductive, transductive = text.split("### Inductive")[1].split("### Transductive")
    assert "50.00 ± 0.50 | 600 | 70.00 |" in inductive
    assert "60.00" not in inductive
    assert "60.00 ± 0.50 | 600 | prototype" in transductive.split("\n\n")[1]
    assert "50.00" not in transductive


def test_published_figures_stand_beside_a_run_on_the_same_data(tmp_path: Path) -> None:
    fewshot = {"cifar_fs/test/5w1s": {**RESULT, "accuracy": 50.0, "ci95": 0.5}}
    run = a_run(tmp_path / "one", fewshot=fewshot, fewshot_untrained={})
    assert "## Beside published figures" in text_of(run)
    write_report(run, published=False)
    assert "Beside published" not in (run / "report" / "report.md").read_text()


MISSING = {
    "config.yaml": "> The config is not known",
    "overrides.yaml": "> The command is not known",
    "results.json": "> There are no few-shot accuracies",
    "environment.json": "> The environment is not known",
    "status.json": "This run is UNKNOWN",
    "events.jsonl": "events.jsonl",
}


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_a_missing_piece_is_said_in_its_place(run: Path, name: str, how: str) -> None:
    if how == "gone":
        (run / name).unlink()
    else:
        (run / name).write_bytes(b"\xff\x00{ : [\n" + (run / name).read_bytes()[:40])
    assert MISSING[name] in text_of(run)


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    text = text_of(tmp_path)
    for said in (
        "This run is UNKNOWN", "no few-shot accuracies", "no figures of size", "There are none",
        "The config is not known", "The environment is not known", "## Notes",
    ):  # fmt: skip
        assert said in text


def test_a_run_that_was_interrupted(run: Path) -> None:
    write(run / "status.json", json.dumps({"status": "INTERRUPTED", "error": "by <SIGTERM>\nx"}))
    (run / "results.json").unlink()
    text = text_of(run)
    assert r"> This run is INTERRUPTED: by \<SIGTERM>. What it has written is shown." in text
    assert "| 0 | 2 | WIDEN |" in text  # what it came to is there
    assert json.loads((run / "report" / "results.json").read_text())["results"] == []


def test_a_run_without_mutations(run: Path) -> None:
    (run / "mutations.jsonl").write_text("")
    lines = (run / "events.jsonl").read_text().splitlines()
    kept = [line for line in lines if '"mutation"' not in line]
    kept.append(json.dumps({"time": 9e9, "kind": "decision", "values": {
        "intervention": "evolution", "epoch": 1, "reason": "no plateau"}}))  # fmt: skip
    (run / "events.jsonl").write_text("\n".join(kept) + "\n")
    text = text_of(run)
    assert "> There are none. The last decision was: no plateau." in text
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["evolution"]["enabled"] = config["sparsity"]["enabled"] = False
    write(run / "config.yaml", yaml.safe_dump(config))
    assert "> There are none: neither evolution nor sparsity is switched on." in text_of(run)


def test_what_prunings_have_cost_and_given(run: Path) -> None:
    title = "What every PRUNE has cost and given"
    assert title not in text_of(run)
    measured = {
        "accuracy": {"before": 81.5, "after": 80.25, "change": -1.25, "change_error": 0.5},
        "latency": {"batch": 64, "before_ms": 3.5, "after_ms": None},
    }
    removed = {"accuracy": {"removed": 61.125}}
    line = mutation(2) | {"kind": "PRUNE", "target": {}, "measured": measured}
    with (run / "mutations.jsonl").open("a") as lines:
        lines.write(json.dumps(line | {"trigger": {"undecided": 3}}) + "\n")
        lines.write(json.dumps(line | {"index": 3, "measured": removed, "trigger": None}) + "\n")
    ended = {"index": 2, "kept": True, "accuracy_change": 0.5, "accuracy_change_error": 0.25}
    with (run / "events.jsonl").open("a") as events:
        events.write(json.dumps({"time": 9e9, "kind": "probation", "values": ended}) + "\n")
    text = text_of(run)
    assert title in text
    rows = [line for line in text.splitlines() if line.startswith(("| 2 | 81", "| 3 | –"))]
    assert rows == [
        "| 2 | 81.50 → 80.25 | -1.25 ± 0.50 | +0.50 ± 0.25 | – | 3 | 3.50 → – | 64 |",
        "| 3 | – → – | – | – | 61.12 | – | – → – | – |",
    ]


def test_an_error_in_drawing_costs_only_figures(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(record: RunRecord) -> Iterator[Drawing]:
        yield from two_drawings(record)
        raise RuntimeError("a bug")

    monkeypatch.setattr(figures, "figures_of_run", broken)
    text = text_of(run)
    assert "![First](<figures/first.png>)" in text
    assert "> Further figures: It could not be drawn, an error of ours: RuntimeError: a bug" in text
    assert "## Mutations" in text


def test_the_config_of_another_version(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["views"]["flip"]
    config["gone"] = {"key": [1]}
    write(run / "config.yaml", yaml.safe_dump(config))
    found = {one.key: one for one in differing_from_defaults(read_run(run)) or ()}
    assert (found["views.flip"].default, found["views.flip"].value) == ("0.5", "–")
    assert (found["gone.key"].default, found["gone.key"].value) == ("–", "[1]")
    assert found["pretrain.epochs"].decides
    assert not found["experiment_name"].decides
    usual, given = flatten(dataclasses.asdict(defaults())), flatten(config)
    assert set(found) == {k for k in usual | given if usual.get(k) != given.get(k)}


def test_when_it_began_and_ended(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    assert span(tmp_path) == (None, None)
    padding = "x" * 100_000
    lines = [{"time": 10.5}, {"time": 11, "pad": padding}, {"time": 99.25}]
    events.write_text("\n".join(map(json.dumps, lines)) + '\n{"time": 120, "torn')
    assert span(tmp_path) == (10.5, 99.25)
    assert command(read_run(tmp_path)) is None


def test_a_run_ends_with_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree("runs", ignore_errors=True)
    tiny = ["debug=tiny", "ablation=A2", "hardware=cpu", "tracking=jsonl", "report.at_end=true"]
    run = run_config(load([*tiny, "pretrain.epochs=1"]), tiny)
    text = (run / "report" / "report.md").read_text()
    assert "- **Status**: **FINISHED**" in text
    assert "Python 3." in text
    assert "The environment is not known" not in text
    told = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    kept = {
        (line["values"]["folder"], Path(line["values"]["path"]).name)
        for line in told
        if line["kind"] == "artifact"
    }
    assert {("report", "report.html"), ("report/figures", "first.svg")} <= kept
    assert any("report: " in str(line["values"].get("text")) for line in told)
    assert json.loads((run / "status.json").read_text())["status"] == "FINISHED"

    def impossible(*_: Any, **__: Any) -> None:
        raise MemoryError("too little")

    monkeypatch.setattr("sseg_nase.reporting.run_report.write_report", impossible)
    run = run_config(load([*tiny, "pretrain.epochs=0"]), tiny)
    assert not (run / "report").exists()
    told = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    (warning,) = (line["values"]["text"] for line in told if line["kind"] == "warning")
    assert warning.startswith(
        "the report is not written: MemoryError: too little; sseg-nase task=report runs="
    )
    assert json.loads((run / "status.json").read_text())["status"] == "FINISHED"
