"""What one run wrote, whole or not."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from sseg_nase.reporting import export, run_report
from sseg_nase.reporting.document import rows_of
from sseg_nase.rundir.mutations import MUTATION_KEYS
from sseg_nase.rundir.record import RunRecord, Series, read_run
from sseg_nase.rundir.results import SECTIONS, EpisodeResult
from sseg_nase.rundir.status import Status, standing, status_of
from sseg_nase.tracking.jsonl import JsonlSink
from sseg_nase.tracking.sink import Resumed, RunInfo

FILES = ("config.yaml", "status.json", "results.json", "events.jsonl", "mutations.jsonl")


def mutation(index: int, *, epoch: int = 1, accepted: bool = True) -> dict[str, Any]:
    said = dict.fromkeys(MUTATION_KEYS)
    counts = {"blocks": 3, "channels": [16, 16, 32], "params": 5000, "macs": 70000}
    wider = {**counts, "channels": [16, 24, 32], "params": 7000}
    about = {"index": index, "epoch": epoch, "step": 10 * epoch, "kind": "WIDEN"}
    return {**said, **about, "before": counts, "after": wider, "accepted": accepted}


def opened(folder: Path, resumed: Resumed | None = None) -> JsonlSink:
    sink = JsonlSink()
    sink.open(RunInfo(folder, "a run", "tests", folder / "config.yaml", 4, {}, {}, resumed))
    return sink


def told(sink: JsonlSink, epochs: Sequence[int], loss: float) -> None:
    for epoch in epochs:
        sink.metrics({"pretrain/loss": loss, "pretrain/lr": 0.1}, 10 * (epoch + 1))
        sink.event("epoch", {"epoch": epoch, "params": 5000, "loss": loss})


def a_run(folder: Path) -> Path:
    """A run that was recorded by the sink that records runs."""
    sink = opened(folder)
    told(sink, range(4), 4.0)
    sink.event("mutation", mutation(0))
    sink.event("probation", {"index": 0, "kept": True, "epoch": 3})
    sink.close("FINISHED")
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 3, "ssl": {"name": "simclr"}}))
    (folder / "status.json").write_text(json.dumps({"status": "FINISHED", "error": None}))
    (folder / "results.json").write_text(json.dumps({"fewshot": {"d/val/5w1s": {}}}))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return a_run(tmp_path / "tests" / "one")


def test_a_whole_run(run: Path) -> None:
    record = read_run(run)
    assert record.notes == ()
    assert (record.name, record.ended) == ("tests/one", "FINISHED")
    assert record.setting("ssl.name") == "simclr"
    assert record.setting("ssl.no.such", 5) == 5
    assert record.section("fewshot") == {"d/val/5w1s": {}}
    assert record.section("best") == record.section("no such") == {}
    assert [line["epoch"] for line in record.events["epoch"]] == [0, 1, 2, 3]
    assert record.mutations == [mutation(0)]
    assert record.series("pretrain/loss") == Series([10, 20, 30, 40], [4.0] * 4)
    assert record.series("no/such") == Series([], [])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe{", b"{" * 9, b"[1]\n", b"7"])
def test_a_file_that_is_missing_or_damaged_is_a_note(
    run: Path, name: str, content: bytes | None
) -> None:
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(content)
    record = read_run(run)
    assert all(note.endswith(".") and "\n" not in note for note in record.notes)
    # Without a line in it, what a run without events leaves is what it has.
    assert any(name in note for note in record.notes) or (name, content) == ("events.jsonl", b"")
    if name != "events.jsonl":  # which tells of the mutations, too
        assert [line["index"] for line in record.mutations] == [0]


@pytest.mark.parametrize("name", FILES)
def test_no_cut_raises(run: Path, name: str) -> None:
    content = (run / name).read_bytes()
    for length in range(0, len(content), 17):
        (run / name).write_bytes(content[:length])
        record = read_run(run)
        assert len(record.mutations) <= 1


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    record = read_run(tmp_path / "none")
    assert (record.config, record.ended, record.mutations) == (None, "UNKNOWN", [])
    assert len(record.notes) == len(FILES) + 1  # and no mutations


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "epoch", "values": {"epoch": ',
        '{"kind": "epoch", "values": {"epoch": null}}',
        '{"kind": "epoch"}',
        '{"kind": "metrics", "values": {"pretrain/loss": 1.0}}',
        '{"kind": ["epoch"], "values": {}}',
        '{"kind": "mutation", "values": {"index": 1}}',
        "nonsense",
    ],
)
def test_a_damaged_line_is_left_out(run: Path, line: str) -> None:
    whole = read_run(run)
    lines = (run / "events.jsonl").read_text().splitlines()
    (run / "events.jsonl").write_text("\n".join([*lines[:3], line, *lines[3:]]))
    record = read_run(run)
    assert record.notes == ("One line of events.jsonl cannot be read: left out.",)
    assert record.events == whole.events


def changed(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    return {**values, key: value}


@pytest.mark.parametrize(
    "damaged",
    [
        changed(mutation(1), "after", None),
        changed(mutation(1), "after", changed(mutation(1)["after"], "channels", [16, "x"])),
        changed(mutation(1), "before", changed(mutation(1)["after"], "params", "many")),
        changed(mutation(1), "epoch", None),
        changed(mutation(1), "kind", 4),
    ],
)
def test_a_damaged_mutation_is_left_out(run: Path, damaged: dict[str, Any]) -> None:
    with (run / "mutations.jsonl").open("a") as lines:
        lines.write(json.dumps(damaged) + "\n")
    record = read_run(run)
    assert record.mutations == [mutation(0)]
    assert record.notes == ("One line of mutations.jsonl cannot be read: left out.",)


def test_events_stand_in_for_lost_mutations(run: Path) -> None:
    sink = opened(run)
    sink.event("mutation", mutation(1))
    sink.event("rollback", mutation(1, accepted=False))
    (run / "mutations.jsonl").write_text("")
    record = read_run(run)
    assert [(line["index"], line["accepted"]) for line in record.mutations] == [
        (0, True),
        (1, False),
    ]
    assert len(record.notes) == 1


def test_mutations_jsonl_counts_before_events_and_is_told_in_order(run: Path) -> None:
    """It is rewritten at every change; a line of events may be of before a resume."""
    sink = opened(run)
    sink.event("mutation", mutation(2))
    sink.event("mutation", mutation(1))
    lines = [mutation(2, epoch=3), mutation(0, epoch=3)]
    (run / "mutations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = read_run(run)
    assert [(line["index"], line["epoch"]) for line in record.mutations] == [(0, 3), (1, 1), (2, 3)]
    assert record.notes == (
        "mutations.jsonl lacks mutations that events.jsonl tells of: taken from there.",
    )


def test_what_a_resumed_run_tells_twice_counts_once(run: Path) -> None:
    sink = opened(run, Resumed("id", step=20, mutations=0))
    told(sink, [2], 1.0)
    sink.event("mutation", mutation(0, epoch=2, accepted=False))
    record = read_run(run)
    # Step 40 was after the checkpoint and has not come again.
    assert record.series("pretrain/loss") == Series([10, 20, 30], [4.0, 4.0, 1.0])
    assert [line["loss"] for line in record.events["epoch"]] == [4.0, 4.0, 1.0, 4.0]
    assert record.mutations == [mutation(0, epoch=2, accepted=False)]
    assert record.events["probation"] == []


def test_what_every_intervention_decided_in_an_epoch_stays(run: Path) -> None:
    sink = opened(run)
    for _ in range(2):  # after a resume they are told again
        for name in ("evolution", "sparsity"):
            sink.event("decision", {"intervention": name, "epoch": 1, "reason": f"of {name}"})
    assert [line["reason"] for line in read_run(run).events["decision"]] == [
        "of evolution", "of sparsity"
    ]  # fmt: skip


def test_what_the_run_doubts_of_its_images_is_a_note(run: Path) -> None:
    results = {"fewshot": {}, "data": {"doubts": ["one image is in two splits", "another"]}}
    (run / "results.json").write_text(json.dumps(results))
    assert read_run(run).notes == ("Doubt: one image is in two splits.", "Doubt: another.")


def test_accuracies_stand_list_by_list_in_the_order_of_their_making(run: Path) -> None:
    keys = ("d/val/5w5s", "d/val/5w1s")
    results: dict[str, Any] = {
        section: {
            key: {"accuracy": 10.0 * n + m, "ci95": None, "episodes": 4, "method": "m"}
            for m, key in enumerate(keys)
        }
        for n, section in enumerate(SECTIONS.values())
    }
    results["fewshot"][keys[0]]["ci95"] = 0.5
    results["fewshot_best"][keys[1]]["accuracy"] = float("nan")
    results["fewshot_untrained"]["d/val/5w9s"] = "nothing"
    (run / "results.json").write_text(json.dumps(results))
    found = export.results_of(read_run(run))
    assert [(one.key, one.network, one.accuracy, one.ci95) for one in found] == [
        (keys[0], "untrained", 0.0, None),
        (keys[0], "pretrained", 10.0, None),
        (keys[0], "best", 20.0, None),
        (keys[0], "last", 30.0, 0.5),
        (keys[0], "views", 40.0, None),
        (keys[0], "control", 50.0, None),
        (keys[1], "untrained", 1.0, None),
        (keys[1], "pretrained", 11.0, None),
        (keys[1], "last", 31.0, None),
        (keys[1], "views", 41.0, None),
        (keys[1], "control", 51.0, None),
    ]


def test_a_control_that_cannot_be_read_is_left_out(run: Path) -> None:
    control = {"params": 5, "last_minus": {"d/val/5w1s": {"mean": 1.0, "ci95": 0.5}}}
    (run / "results.json").write_text(json.dumps({"control": control}))
    assert read_run(run).section("control") == control
    for damaged in ({"params": "5"}, {"params": 5, "last_minus": {"d/val/5w1s": 1.0}}):
        (run / "results.json").write_text(json.dumps({"control": damaged}))
        record = read_run(run)
        assert record.section("control") == {}
        assert "control in results.json cannot be read: left out." in record.notes


def test_lines_of_results() -> None:
    one = EpisodeResult("d/val/5w1s", "last", 50.0, None, 4, "m", True, {"2": 90.0})
    plain = one._replace(key="odd", top_k={})
    lines = rows_of(export.results_frame([one, plain]))
    assert [line["top_k"] for line in lines] == ['{"2": 90.0}', ""]
    told = [[line[key] for key in ("dataset", "split", "ways", "shots")] for line in lines]
    assert told == [["d", "val", "5", "1"], ["odd", "", "", ""]]


def test_what_is_missing_and_what_is_damaged_are_told_apart(run: Path) -> None:
    (run / "status.json").unlink()
    (run / "results.json").write_text("{")
    assert read_run(run).notes == (
        "status.json is missing: how the run ended is not known.",
        "results.json cannot be read: there are no results.",
    )


def test_lines_of_epochs_and_mutations(run: Path) -> None:
    sink = opened(run)
    sink.event("finetune", {"epoch": 0, "loss": 2.0, "val_accuracy": 50.0})
    record = read_run(run)
    lines = rows_of(export.epochs_frame(record))
    assert [(line["stage"], line["epoch"]) for line in lines] == [
        *(("pretrain", epoch) for epoch in range(4)),
        ("finetune", 0),
    ]
    assert lines[-1]["val_accuracy"] == 50.0
    (line,) = rows_of(export.mutations_frame(record))
    assert (line["before_params"], line["after_params"]) == (5000, 7000)
    assert (line["before_channels"], line["after_channels"]) == ("[16, 16, 32]", "[16, 24, 32]")


def test_a_run_that_began_again(run: Path) -> None:
    told(opened(run, Resumed("id", step=0, mutations=0)), [0], 2.0)
    record = read_run(run)
    assert record.series("pretrain/loss") == Series([10], [2.0])
    assert [line["loss"] for line in record.events["epoch"]] == [2.0]
    assert record.mutations == []


def test_a_figure_that_was_not_finite_is_left_out(run: Path) -> None:
    sink = opened(run)
    sink.metrics({"pretrain/loss": float("nan")}, 20)
    sink.metrics({"pretrain/loss": float("inf")}, 50)
    assert read_run(run).series("pretrain/loss").steps == [10, 30, 40]


ODD: Sequence[Any] = ("x", [["x"]], -1, {"x": "x"}, {"x": [1]})
RESULTS: dict[str, Any] = {
    "architecture": {"params": 5, "channels": [1, 2], "macs": 3, "blocks": 2},
    "fewshot": {"d/val/5w1s": {"accuracy": 50.0, "ci95": None, "episodes": 2, "method": "a/b/c"}},
    "best": {"epoch": 1, "params": 5, "minus_last": {"d/val/5w1s": {"mean": 1.0, "ci95": 2.0}}},
    "efficiency": {"params": 5, "latency_ms_b1": None, "device": "cpu"},
    "images_seen": {"synthetic": 3},
    "seconds": {"pretrain": 1.5},
}


@pytest.mark.parametrize("key", RESULTS)
@pytest.mark.parametrize("odd", ODD)
def test_a_section_of_the_results_that_is_damaged_is_left_out(
    run: Path, key: str, odd: Any
) -> None:
    inner = dict.fromkeys(RESULTS[key], odd)
    (run / "results.json").write_text(json.dumps(RESULTS))
    assert (read_run(run).results, read_run(run).notes) == (RESULTS, ())
    for damaged in (odd, inner):
        if damaged is odd and key in ("architecture", "fewshot") and isinstance(odd, dict):
            continue  # keys of another version, or lists of episodes
        if damaged is inner and (
            key == "fewshot" or (odd == -1 and key in ("efficiency", "images_seen", "seconds"))
        ):
            continue  # lists of episodes, or a number, at least
        (run / "results.json").write_text(json.dumps(RESULTS | {key: damaged}))
        record = read_run(run)
        assert record.results == {name: RESULTS[name] for name in RESULTS if name != key}
        assert record.notes == (f"{key} in results.json cannot be read: left out.",)
        run_report.document(record, [])


@pytest.mark.parametrize("odd", ["x", [1], {"accuracy": "x"}, {"top_k": [1]}, {"doubts": 3}])
def test_a_list_of_episodes_that_is_damaged_is_left_out_alone(run: Path, odd: Any) -> None:
    evaluated = {**RESULTS["fewshot"], "d/val/5w5s": odd}
    (run / "results.json").write_text(json.dumps(RESULTS | {"fewshot": evaluated}))
    record = read_run(run)
    assert record.results == RESULTS
    assert record.notes == ("d/val/5w5s of fewshot in results.json cannot be read: left out.",)


@pytest.mark.parametrize(
    "yaml_",
    ["seed: x", "experiment_name: 3", "ssl: 3", "ssl: {name: [x]}", "pretrain: {epochs: '3'}"],
)
def test_a_config_with_values_of_another_type_is_damaged(run: Path, yaml_: str) -> None:
    (run / "config.yaml").write_text(yaml_)
    record = read_run(run)
    assert record.config is None
    assert record.notes == ("config.yaml cannot be read: the run's settings are not known.",)
    run_report.document(record, [])
    for fine in ("seed: null", "of_another_version: x", "ssl: {temperature: 1}"):
        (run / "config.yaml").write_text(fine)
        assert read_run(run).config == yaml.safe_load(fine)


@pytest.mark.parametrize(
    ("status", "note"),
    [
        ({"status": "INTERRUPTED", "error": "interrupted (SIGINT)"}, "INTERRUPTED (interrupted"),
        ({"status": "FAILED", "error": "first\nsecond"}, "FAILED (first):"),
        ({"status": "RUNNING", "error": None}, "RUNNING by its status.json, but nothing holds it"),
    ],
)
def test_a_run_that_did_not_finish(run: Path, status: dict[str, Any], note: str) -> None:
    (run / "status.json").write_text(json.dumps(status))
    record = read_run(run)
    assert len(record.notes) == 1
    assert f"The run is {note}" in record.notes[0]
    assert record.ended == status["status"]


def test_whether_a_run_is_going_on_is_said_by_its_lock(tmp_path: Path) -> None:
    said: Status = {"status": "RUNNING", "process": {"host": socket.gethostname()}}
    dead = f"its process was killed; sseg-nase resume={tmp_path} resumes it"
    assert dead in standing(tmp_path, said)
    (tmp_path / "status.json").write_text('{"status": "RUNNING", "process": "damaged"}')
    assert dead in standing(tmp_path, status_of(tmp_path))
    elsewhere = standing(tmp_path, {**said, "process": {"host": "another"}})
    assert "its process, on another, is dead or cannot be seen from here" in elsewhere
    assert standing(tmp_path, {"status": "FAILED"}) == "FAILED"
    with FileLock(tmp_path / ".lock"):
        assert standing(tmp_path, said) == "RUNNING"


def test_a_run_without_mutations(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    told(sink, [0], 1.0)
    record = read_run(tmp_path)
    assert record.mutations == []
    assert "The run has made no mutations." in record.notes


def test_records_are_equal_for_equal_folders(run: Path) -> None:
    assert isinstance(read_run(run), RunRecord)
    assert read_run(run) == read_run(run)
