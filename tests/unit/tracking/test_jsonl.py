from __future__ import annotations

import dataclasses
import errno
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sseg_nase.files import StorageError
from sseg_nase.finite import plain
from sseg_nase.rundir import events, mutations
from sseg_nase.rundir.mutations import MUTATION_KEYS, MutationLog
from sseg_nase.tracking import jsonl as module
from sseg_nase.tracking.jsonl import JsonlSink
from sseg_nase.tracking.sink import Dataset, Resumed, RunInfo

SHAPE = {"blocks": 3, "channels": [16, 32, 64], "params": 23584, "macs": 1000}


def mutation(index: int, **changes: Any) -> dict[str, Any]:
    values = dict.fromkeys(MUTATION_KEYS, 0.0)
    return {**values, "index": index, "kind": "GROW", "before": SHAPE, "after": SHAPE, **changes}


def lines_of(path: Path) -> list[dict[str, Any]]:
    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    lines = path.read_text().splitlines()
    return [json.loads(line, parse_constant=no_constants) for line in lines]


def opened(directory: Path) -> JsonlSink:
    sink = JsonlSink()
    sink.open(RunInfo(directory, "seed=1", "trial", directory / "config.yaml", 2, {"seed": 1}))
    return sink


def test_every_line_is_whole_as_soon_as_it_is_told(tmp_path: Path) -> None:
    sink = opened(tmp_path / "run")
    events = tmp_path / "run" / "events.jsonl"
    assert [line["kind"] for line in lines_of(events)] == ["open"]
    sink.metrics({"pretrain/loss": 5.0, "pretrain/lr": 0.1}, 10)
    assert lines_of(events)[-1].keys() == {"time", "kind", "step", "values"}
    sink.event("level", {"level": "TEXTURE", "epoch": 3})
    sink.artifact(tmp_path / "results.json")
    sink.progress(0, 1, 2, {"loss": 1.0})
    sink.close("FAILED", "out of memory")
    first, *rest = lines_of(events)
    assert first["values"]["name"] == "seed=1"
    assert first["values"]["params"] == {"seed": 1}
    assert abs(first["time"] - time.time()) < 600
    for line in rest:
        line.pop("time")
    assert rest == [
        {"kind": "metrics", "step": 10, "values": {"pretrain/loss": 5.0, "pretrain/lr": 0.1}},
        {"kind": "level", "values": {"level": "TEXTURE", "epoch": 3}},
        {"kind": "artifact", "values": {"path": str(tmp_path / "results.json"), "folder": None}},
        {"kind": "close", "values": {"status": "FAILED", "error": "out of memory"}},
    ]


def test_a_mutation_has_the_keys_of_the_schema_and_no_others(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    sink.event("mutation", mutation(0, loss_after=float("nan"), note="extra"))
    [line] = lines_of(tmp_path / "mutations.jsonl")
    assert tuple(line) == MUTATION_KEYS
    assert line["loss_after"] is None
    assert line["before"] == SHAPE
    assert lines_of(tmp_path / "events.jsonl")[-1]["kind"] == "mutation"


def test_a_mutation_that_lacks_a_key_is_our_mistake(tmp_path: Path) -> None:
    incomplete = mutation(0)
    del incomplete["fitness"]
    with pytest.raises(AssertionError, match="fitness"):
        opened(tmp_path).event("mutation", incomplete)


def test_without_mutations_the_file_is_there_and_empty(tmp_path: Path) -> None:
    opened(tmp_path).close("FINISHED")
    assert (tmp_path / "mutations.jsonl").read_bytes() == b""


def test_a_second_start_goes_on_behind_the_last_whole_line(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.metrics({"pretrain/loss": 5.0}, 1)
    events = tmp_path / "events.jsonl"
    with events.open("a") as torn:
        torn.write('{"time": 1.0, "kind": "met')
    second = opened(tmp_path)
    second.metrics({"pretrain/loss": 4.0}, 2)
    assert [line["kind"] for line in lines_of(events)] == ["open", "metrics", "open", "metrics"]


def test_mutations_repeated_after_a_resume_stand_there_once(tmp_path: Path) -> None:
    first = opened(tmp_path)
    for index in range(3):
        first.event("mutation", mutation(index, seconds=1.0))
    second = opened(tmp_path)
    second.event("mutation", mutation(1, seconds=2.0))
    second.event("mutation", mutation(2, seconds=2.0))
    second.event("mutation", mutation(3, seconds=2.0))
    lines = lines_of(tmp_path / "mutations.jsonl")
    assert [(line["index"], line["seconds"]) for line in lines] == [
        (0, 1.0),
        (1, 2.0),
        (2, 2.0),
        (3, 2.0),
    ]


def test_lines_from_two_threads_do_not_mix(tmp_path: Path) -> None:
    sink = opened(tmp_path)

    def tell(name: str) -> None:
        for step in range(200):
            sink.metrics({name: step}, step)

    threads = [threading.Thread(target=tell, args=(name * 500,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines_of(tmp_path / "events.jsonl")) == 401


def test_one_thread_writes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink, writing, most = opened(tmp_path), list[int](), list[int]()

    def slow(*arguments: Any) -> None:
        writing.append(1)
        most.append(len(writing))
        time.sleep(0.05)
        writing.pop()

    log = MutationLog(tmp_path)
    for writer, tell in (
        (events, lambda index: sink.metrics({"a": 1.0}, index)),
        (mutations, lambda index: log.write(mutation(index))),
    ):
        monkeypatch.setattr(writer, "append_line", slow)
        threads = [threading.Thread(target=tell, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1] * 6


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (float("-inf"), None),
        (True, True),
        ("λ", "λ"),
        (Path("a/b"), "a/b"),
        ({1: (1.0, float("inf"))}, {"1": [1.0, None]}),
        (np.float32(0.5), 0.5),
        (np.array([1, 2]), [1, 2]),
        (np.float64("nan"), None),
    ],
)
def test_plain(value: Any, expected: Any) -> None:
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)


def test_a_resumed_run_forgets_the_mutations_after_its_checkpoint(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    for index in range(3):
        sink.event("mutation", mutation(index))
    run = RunInfo(tmp_path, "seed=1", "trial", tmp_path / "config.yaml", 2)
    JsonlSink().open(dataclasses.replace(run, resumed=Resumed(None, step=7, mutations=1)))
    assert [line["index"] for line in lines_of(tmp_path / "mutations.jsonl")] == [0]


def test_a_file_of_the_run_is_recorded_relative_to_its_folder(tmp_path: Path) -> None:
    sink = opened(tmp_path / "run")
    sink.artifact(tmp_path / "run" / "pictures" / "one.png", "pictures")
    last = lines_of(tmp_path / "run" / "events.jsonl")[-1]
    assert last["values"] == {"path": str(Path("pictures", "one.png")), "folder": "pictures"}


def test_a_rollback_takes_the_place_of_its_mutation(tmp_path: Path) -> None:
    sink = opened(tmp_path)
    sink.event("mutation", mutation(0, accepted=True))
    sink.event("rollback", mutation(0, accepted=False))
    (line,) = lines_of(tmp_path / "mutations.jsonl")
    assert line["accepted"] is False


def test_the_first_line_says_who_runs_what_and_what_it_goes_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "origin", lambda: {"mlflow.user": "bob", "task": "x"})
    run = RunInfo(
        tmp_path,
        "seed=1",
        "trial",
        tmp_path / "config.yaml",
        7,
        tags={"task": "pipeline"},
        resumed=Resumed("abc", step=7, mutations=1),
        parent_run_id="parent",
        datasets=(Dataset("digits/val", "0a", "evaluate", 3),),
    )
    JsonlSink().open(run)
    (line,) = lines_of(tmp_path / "events.jsonl")
    assert line["values"] == {
        "name": "seed=1",
        "experiment": "trial",
        "params": {},
        "tags": {"mlflow.user": "bob", "task": "pipeline"},
        "total_epochs": 7,
        "resumed": {"run_id": "abc", "step": 7, "mutations": 1},
        "parent_run_id": "parent",
        "datasets": [{"name": "digits/val", "digest": "0a", "roles": "evaluate", "images": 3}],
    }


@pytest.mark.parametrize("torn", ['{"index": 1, "ep', "no line end at all"])
def test_torn_lines_are_cut_off_in_both_files(torn: str, tmp_path: Path) -> None:
    opened(tmp_path).event("mutation", mutation(0))
    for name in ("events.jsonl", "mutations.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write(torn)
    opened(tmp_path).event("mutation", mutation(1))
    assert [line["index"] for line in lines_of(tmp_path / "mutations.jsonl")] == [0, 1]
    kinds = [line["kind"] for line in lines_of(tmp_path / "events.jsonl")]
    assert kinds == ["open", "mutation", "open", "mutation"]
    (tmp_path / "mutations.jsonl").write_text(torn)
    opened(tmp_path)
    assert (tmp_path / "mutations.jsonl").read_text() == ""


def test_a_folder_that_cannot_be_made_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any, **more: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("mkdir", "touch"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, name, refused)
            with pytest.raises(StorageError, match="it is read-only"):
                opened(tmp_path / "run")
