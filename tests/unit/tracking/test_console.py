from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sseg_nase.tracking import console as module
from sseg_nase.tracking.console import (
    ConsoleSink,
    duration,
    figures,
    finetune_line,
    measured_line,
    mutation_line,
    networks_of,
    print_summary,
    summary_table,
)
from sseg_nase.tracking.sink import RunInfo

MUTATION: dict[str, Any] = {
    "kind": "GROW",
    "target": {"block": 3, "out_channels": 96},
    "before": {"blocks": 3, "channels": [16, 32, 64], "params": 23584},
    "after": {"blocks": 4, "channels": [16, 32, 64, 96], "params": 78976},
    "loss_before": 5.012,
    "loss_after": 5.009,
    "accepted": True,
}
RESULTS: dict[str, Any] = {
    "status": "FINISHED",
    "fingerprint": "0123abcd",
    "seconds": {"pretrain": 83.4, "evaluate": 2.25},
    "architecture": {
        "blocks": 4,
        "channels": [16, 32, 64, 96],
        "params": 78976,
        "macs": 1234567,
        "flops": 2469134,
        "resolution": 32,
    },
    "fewshot": {
        "digits/test/5w1s": {
            "accuracy": 61.234,
            "ci95": 0.812,
            "episodes": 600,
            "method": "prototype",
            "transductive": False,
        }
    },
    "efficiency": {"latency_ms_b1": 0.512, "latency_ms_b64": 12.3, "peak_memory_mb": 240.4},
    "images_seen": {"synthetic": 12000, "real_unlabeled": 0, "real_labeled": 0},
}


def run_info(directory: Path) -> RunInfo:
    name = "ablation=A7," + "x" * 100
    return RunInfo(directory, name, "trial", directory / "config.yaml", 2)


def terminal() -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=120, legacy_windows=False, _environ={}
    )


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    sink = ConsoleSink()
    sink.open(run_info(tmp_path))
    sink.event("stage", {"stage": "pretrain"})
    sink.progress(0, 0, 10, {})
    now[0] += 60
    figures = {"level": "BASIC", "loss": 5.01234, "blocks": 3, "params": 23584}
    for step in range(1, 11):
        sink.progress(0, step, 10, {"loss": 5.0})
    sink.event("epoch", {"epoch": 0, **figures, "images_per_second": 1234.5})
    sink.event("mutation", MUTATION)
    sink.event("level", {"level": "TEXTURE", "epoch": 1, "reason": "plateau"})
    sink.event("warning", {"text": "MLflow [at] http://x is away"})
    sink.event("message", {"text": "all is well"})
    sink.event("decision", {"intervention": "evolution", "epoch": 0})
    sink.close("FAILED", "out of memory")
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        f"run ablation=A7,{'x' * 100} in {tmp_path}",
        "stage pretrain",
        "epoch 1/2  BASIC  loss 5.0123  3 blocks  params 23,584  1,234 images/s  1:00 left",
        "GROW block 4: 4 blocks, channels 16-32-64-96, params 23,584 -> 78,976, "
        "loss 5.01 -> 5.01 (accepted)",
        "LEVEL TEXTURE: epoch 1, reason plateau",
        "WARNING: MLflow [at] http://x is away",
        "all is well",
        "FAILED after 1:00",
    ]


def test_a_bar_in_a_terminal(tmp_path: Path) -> None:
    console = terminal()
    sink = ConsoleSink(console)
    sink.open(run_info(tmp_path))
    for epoch in range(2):
        for step in range(1, 4):
            sink.progress(epoch, step, 3, {"level": "BASIC", "loss": 5.0 - epoch, "params": 1000})
        sink.event("epoch", {"epoch": epoch, "loss": 5.0})
        sink.event("mutation", MUTATION)
    sink.close("FINISHED")
    shown = written(console)
    assert "epoch 2/2" in shown
    assert "BASIC  loss 4.0000  params 1,000" in shown
    assert "GROW block 4" in shown
    assert "epoch 1/2  loss 5.0000" not in shown
    assert "FINISHED after" in shown


@pytest.mark.parametrize("width", [80, 60])
def test_in_a_narrow_terminal_the_time_left_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, legacy_windows=False, _environ={}
    )
    sink = ConsoleSink(console)
    sink.open(dataclasses.replace(run_info(tmp_path), total_epochs=300))
    values = {"level": "ADVERSARIAL", "loss": 3.3442, "blocks": 4, "params": 1_579_408}
    for epoch in range(3):
        now[0] += 60
        sink.progress(epoch, 1, 2, {**values, "images_per_second": 12_345.0})
    assert sink._bar is not None
    plain = Console(file=io.StringIO(), width=width)
    plain.print(sink._bar.get_renderable())
    (line,) = written(plain).splitlines()
    assert len(line.rstrip()) <= width
    assert line.rstrip().endswith(" left")
    assert re.search(r"epoch 3/300 .* loss 3\.3442 .*\d:\d\d:\d\d left|-:--:-- left", line)
    assert "images/s" not in line
    assert ("params 1,579,408" in line) == (width == 80)
    sink.close("FINISHED")


def test_the_bar_moves_a_few_times_a_second_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    sink = ConsoleSink(terminal())
    sink.open(run_info(tmp_path))
    sink.progress(0, 1, 10, {"loss": 5.0})
    assert sink._bar is not None
    sink.progress(0, 2, 10, {"loss": 4.0})
    assert sink._bar.tasks[0].completed == pytest.approx(0.1)
    now[0] += 1
    sink.progress(0, 3, 10, {"loss": 3.0})
    assert sink._bar.tasks[0].completed == pytest.approx(0.3)
    assert sink._bar.tasks[0].fields["figures"] == "loss 3.0000"
    sink.close("FINISHED")


def test_a_warning_stands_out_in_a_terminal() -> None:
    console = terminal()
    ConsoleSink(console).event("warning", {"text": "mind this"})
    assert "\x1b[1;33mWARNING: mind this" in written(console)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"accepted": False}, "(rolled back)"),
        ({"kind": "PRUNE", "target": {"removed": {"0": [1]}}}, "PRUNE: 4 blocks"),
        ({"kind": "WIDEN", "target": {"block": 0, "channels": 24}}, "WIDEN block 1: "),
        ({"kind": "WIDEN", "target": {"block": None, "channels": [24]}}, "WIDEN all blocks: "),
        ({"target": {"block": 1, "before_pool": True}}, "GROW block 2 before pooling: "),
        ({"target": {"block": None, "blocks": [1, 3, 5]}}, "GROW blocks 2, 4, 6: "),
        ({"loss_after": None}, "loss 5.01 -> - "),
        ({"loss_after": float("nan")}, "loss 5.01 -> - "),
    ],
)
def test_mutation_line(changes: dict[str, Any], expected: str) -> None:
    assert expected in mutation_line({**MUTATION, **changes})


def test_figures_leaves_out_what_is_missing() -> None:
    assert figures({}) == ""
    assert figures({"loss": float("nan"), "blocks": 3}) == "loss -  3 blocks"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "0:10"), (59.6, "1:00"), (3723, "1:02:03")],
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def rows_of(results: dict[str, Any], mutations: list[dict[str, Any]]) -> dict[str, list[str]]:
    console = Console(file=io.StringIO(), width=160, highlight=False)
    console.print(summary_table(results, mutations, None))
    rows = [
        [cell.strip() for cell in line.strip("│┃").split("│")]
        for line in written(console).splitlines()
        if line.startswith("│")
    ]
    return {name: cells for name, *cells in rows}


def said_below(results: dict[str, Any], mutations: list[dict[str, Any]]) -> list[str]:
    console = Console(file=io.StringIO(), width=160, highlight=False)
    console.print(summary_table(results, mutations, None), soft_wrap=True)
    lines = [line.strip() for line in written(console).splitlines()]
    return [line for line in lines if line.startswith(("best", "mutations", "images", "time"))]


def test_the_table_has_what_the_results_have() -> None:
    mutations = [MUTATION, MUTATION, {**MUTATION, "kind": "PRUNE"}, {**MUTATION, "accepted": False}]
    assert rows_of(RESULTS, mutations) == {
        "digits/test/5w1s": ["61.23 ± 0.81 %"],
        "blocks": ["4"],
        "channels": ["16-32-64-96"],
        "params": ["78,976"],
        "MACs at 32 px": ["1,234,567"],
        "latency, batch 1": ["0.51 ms"],
        "latency, batch 64": ["12.30 ms"],
        "peak memory": ["240.4 MB"],
    }
    assert said_below(RESULTS, mutations) == [
        "mutations accepted: 2 GROW, 1 PRUNE (1 rolled back)",
        "images seen: 12,000 synthetic",
        "time: pretrain 1:23, evaluate 2.2 s",
    ]


def test_the_untrained_network_stands_beside() -> None:
    untrained = {"digits/test/5w1s": {**RESULTS["fewshot"]["digits/test/5w1s"], "accuracy": 50.0}}
    rows = rows_of({**RESULTS, "fewshot_untrained": untrained}, [])
    assert rows["digits/test/5w1s"] == [
        "61.23 ± 0.81 %",
        "50.00 ± 0.81 %",
    ]
    assert rows["params"] == ["78,976", ""]


def with_best(difference: float, **about: Any) -> dict[str, Any]:
    ((key, last),) = RESULTS["fewshot"].items()
    best = {"epoch": 17, "step": 288, "blocks": 3, "channels": [12, 48, 64], "params": 70000}
    best |= {"macs": 1000000, "latency_ms_b1": 0.41, **about}
    best["minus_last"] = {key: {"mean": difference, "ci95": 0.5, "p_value": 0.01}}
    fewshot = {key: {**last, "accuracy": last["accuracy"] + difference}}
    return {**RESULTS, "fewshot_best": fewshot, "best": best}


def test_the_network_of_the_lowest_loss_stands_first_and_the_last_one_beside() -> None:
    rows = rows_of(with_best(1.25), [])
    assert rows["digits/test/5w1s"] == ["62.48 ± 0.81 %", "61.23 ± 0.81 %"]
    assert rows["params"] == ["70,000", "78,976"]
    assert rows["channels"] == ["12-48-64", "16-32-64-96"]
    assert rows["latency, batch 1"] == ["0.41 ms", "0.51 ms"]
    first, second, *_ = said_below(with_best(1.25), [])
    assert first == "best: lowest loss at the latest level, after epoch 18, chosen without labels"
    assert second == "best minus last, digits/test/5w1s: +1.25 ± 0.50 points on the same episodes"
    # Also where it is the worse of the two: the rule does not look at accuracies.
    assert rows_of(with_best(-3), [])["digits/test/5w1s"] == ["58.23 ± 0.81 %", "61.23 ± 0.81 %"]
    assert said_below(with_best(-0.4), [])[1].endswith("no difference that these episodes show")


def test_best_and_last_are_one_column_where_they_are_one_network() -> None:
    same = with_best(0, params=78976)
    assert rows_of(same, [])["digits/test/5w1s"] == ["61.23 ± 0.81 %"]
    assert not any("minus last" in line for line in said_below(same, []))


@pytest.mark.parametrize(("transductive", "word"), [(True, "transductive"), (False, "inductive")])
def test_how_it_was_evaluated_stands_below(transductive: bool, word: str) -> None:
    evaluated = {**RESULTS["fewshot"]["digits/test/5w1s"], "transductive": transductive}
    console = terminal()
    print_summary({**RESULTS, "fewshot": {"x": evaluated}}, [], None, console)
    assert f"600 episodes, prototype, {word}" in written(console)


def test_the_table_of_a_run_that_has_nothing_yet() -> None:
    assert rows_of({"status": "FINISHED"}, []) == {}
    assert said_below({"status": "FINISHED"}, []) == ["mutations accepted: none", "images seen: 0"]


def test_the_command_stays_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    command = f"mlflow ui --backend-store-uri sqlite:////{'long/' * 30}mlflow.db --workers 1"
    print_summary(RESULTS, [], command)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["compare runs:", command]
    assert max(len(line) for line in lines[:-1]) <= 80


def test_no_figure_is_shown_that_is_none() -> None:
    nothing = {"batch": 64, "before_ms": None, "after_ms": 0.0}
    unknown = {"before": None, "after": float("nan"), "change": None, "change_error": float("nan")}
    line = measured_line({"accuracy": unknown, "latency": nothing})
    assert line == "latency at batch 64: - -> - ms; held episodes: - -> - % (- ± -)"
    short = {"batch": 1, "before_ms": 0.00321, "after_ms": 0.5}
    line = measured_line({"accuracy": unknown, "latency": short})
    assert line.startswith("latency at batch 1: 0.0032 -> 0.50 ms; ")
    values = {
        "epoch": 0, "epochs": 2, "loss": float("nan"), "accuracy": None, "val_accuracy": 20.0,
        "val_ci95": float("inf"), "best": False, "images_per_second": 10.0,
    }  # fmt: skip
    line = finetune_line(values)
    assert "nan" not in line
    assert "inf" not in line
    assert "loss -, accuracy - %, val 20.00 ± - %" in line


def test_a_stage_ends_the_bar_and_the_last_step_is_seen_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.time, "monotonic", lambda: 100.0)  # no time passes
    sink = ConsoleSink(terminal())
    sink.open(run_info(tmp_path))
    sink.progress(0, 0, 0, {})  # of an epoch without steps
    sink.progress(1, 5, 10, {"loss": 5.0})
    sink.progress(1, 10, 10, {"loss": 3.0})
    bar = sink._bar
    assert bar is not None
    assert (bar.tasks[0].completed, bar.tasks[0].description) == (2, "epoch 2/2")
    assert bar.tasks[0].fields["figures"] == "loss 3.0000"
    sink.event("epoch", {"epoch": 1, "loss": 3.0})
    assert sink._bar is bar
    sink.event("stage", {"stage": "evaluate"})
    assert (sink._bar, bar.live.is_started) == (None, False)
    sink.progress(1, 1, 1, {})
    bar = sink._bar
    assert bar is not None
    sink.close("FINISHED")
    assert (sink._bar, bar.live.is_started) == (None, False)


def test_the_time_left_is_reckoned_from_where_the_run_went_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    sink = ConsoleSink()
    sink.open(dataclasses.replace(run_info(tmp_path), total_epochs=10))
    sink.event("epoch", {"epoch": 4})  # nothing was seen of it
    sink.progress(5, 10, 10, {})
    sink.event("epoch", {"epoch": 5})  # it was seen in an instant
    now[0] += 120
    sink.event("epoch", {"epoch": 7})
    *_, first, second, third = capsys.readouterr().out.splitlines()
    assert (first, second) == ("epoch 5/10  ", "epoch 6/10  ")
    assert third == "epoch 8/10    2:00 left"  # a minute for each


@pytest.mark.parametrize(
    ("room", "shown"),
    [
        (100, "BASIC  loss 5.0000  3 blocks  params 1,000  10 images/s"),
        (43, "BASIC  loss 5.0000  3 blocks  params 1,000"),
        (42, "BASIC  loss 5.0000  3 blocks  params 1,000"),
        (41, "BASIC  loss 5.0000  params 1,000"),
        (31, "BASIC  loss 5.0000"),
        (17, "loss 5.0000"),
        (10, ""),
    ],
)
def test_what_does_not_fit_is_left_out_the_loss_last(room: int, shown: str) -> None:
    values = {"level": "BASIC", "loss": 5.0, "blocks": 3, "params": 1000, "images_per_second": 10.0}
    assert figures(values, room) == shown


def test_stages_and_levels_say_what_they_know(capsys: pytest.CaptureFixture[str]) -> None:
    sink = ConsoleSink()
    sink.event("stage", {"stage": "report", "seconds": 1.23456, "where": "x", "why": None})
    sink.event("level", {"level": "OBJECT"})
    sink.event("rollback", {**MUTATION, "accepted": False})
    accuracy = {"before": 81.25, "after": 80.0, "change": -1.25, "change_error": 0.5}
    latency = {"batch": 1, "before_ms": 2.0, "after_ms": None}
    measured = {"accuracy": accuracy, "latency": latency}
    sink.event("mutation", {**MUTATION, "measured": measured})
    measured = {"accuracy": accuracy | {"removed": 60.0}, "latency": latency | {"after_ms": 1.0}}
    sink.event("mutation", {**MUTATION, "measured": measured})
    sink.event("rollback", {**MUTATION, "measured": measured})
    grown = (
        "GROW block 4: 4 blocks, channels 16-32-64-96, params 23,584 -> 78,976, "
        "loss 5.01 -> 5.01 (accepted)"
    )
    held = "held episodes: 81.25 -> 80.00 % (-1.25 ± 0.50)"
    assert capsys.readouterr().out.splitlines() == [
        "stage report: seconds 1.235, where x, why None",
        "LEVEL OBJECT",
        "GROW block 4: 4 blocks, channels 16-32-64-96, params 23,584 -> 78,976, "
        "loss 5.01 -> 5.01 (rolled back)",
        grown,
        f"latency at batch 1: 2.00 -> - ms; {held}",
        grown,
        f"latency at batch 1: 2.00 -> 1.00 ms; {held}, removed channels alone 60.00 %",
        grown,
    ]


def test_an_epoch_of_fine_tuning_counts_from_one_and_says_whether_it_is_the_best() -> None:
    values = {
        "epoch": 0, "epochs": 2, "loss": 1.5, "accuracy": 61.25, "val_accuracy": 55.5,
        "val_ci95": 0.5, "best": True, "images_per_second": 1234.0,
    }  # fmt: skip
    line = finetune_line(values)
    assert line == (
        "fine-tuning epoch 1/2: loss 1.5000, accuracy 61.2 %, val 55.50 ± 0.50 %, 1,234 images/s, "
        "the best so far"
    )
    assert finetune_line({**values, "best": False}) == line.removesuffix(", the best so far")


def test_networks_with_equal_accuracies_and_other_sizes_are_two() -> None:
    two = with_best(0)
    rows = rows_of(two, [])
    assert rows["digits/test/5w1s"] == ["61.23 ± 0.81 %"] * 2
    assert rows["MACs at 32 px"] == ["1,000,000", "1,234,567"]
    sure = said_below(with_best(-1.25), [])[1]
    assert sure == "best minus last, digits/test/5w1s: -1.25 ± 0.50 points on the same episodes"


@pytest.mark.parametrize(
    ("results", "names"),
    [
        (RESULTS, ["this run"]),
        (with_best(1), ["best", "last"]),
        (with_best(0, params=78976), ["best and last"]),
        ({**RESULTS, "fewshot_untrained": RESULTS["fewshot"]}, ["this run", "untrained"]),
        ({"fewshot_best": RESULTS["fewshot"], "best": {"params": 1}}, ["best"]),
        ({}, []),
    ],
)
def test_the_networks_of_a_run_by_name(results: dict[str, Any], names: list[str]) -> None:
    assert list(networks_of(results)) == names


def test_a_size_that_was_measured_is_not_the_one_of_the_costs() -> None:
    results = {**RESULTS, "efficiency": {**RESULTS["efficiency"], "params": 1, "channels": None}}
    assert rows_of(results, [])["params"] == ["78,976"]
    none = {**RESULTS, "efficiency": {"latency_ms_b1": 0.0, "peak_memory_mb": None}}
    assert not {"latency, batch 1", "peak memory"} & rows_of(none, []).keys()


def test_a_network_evaluated_on_another_number_of_episodes_is_said_so() -> None:
    untrained = {"digits/test/5w1s": {**RESULTS["fewshot"]["digits/test/5w1s"], "episodes": 100}}
    console = Console(file=io.StringIO(), width=160, highlight=False)
    console.print(summary_table({**RESULTS, "fewshot_untrained": untrained}, [], None))
    caption = "600 episodes, prototype, inductive; 100 episodes, prototype, inductive"
    assert caption in " ".join(written(console).split())


@pytest.mark.parametrize(
    ("status", "style"), [("FINISHED", "1;32"), ("FAILED", "1;31"), ("INTERRUPTED", "1;31")]
)
def test_an_end_that_is_none_is_not_green(status: str, style: str) -> None:
    console = terminal()
    ConsoleSink(console).close(status)
    assert f"\x1b[{style}m{status} after" in written(console)


def test_no_memory_that_was_measured_is_a_figure() -> None:
    results = {**RESULTS, "efficiency": {"peak_memory_mb": 0.0}}
    assert rows_of(results, [])["peak memory"] == ["0.0 MB"]
