"""Files of a run that are missing, torn or something else: each reader says so in one way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sseg_nase.rundir.architecture import read_architecture
from sseg_nase.rundir.config import config_of, read_config, read_overrides, write_config
from sseg_nase.rundir.data import read_data
from sseg_nase.rundir.embeddings import read_embeddings
from sseg_nase.rundir.episodes import read_episodes
from sseg_nase.rundir.events import (
    EventLog,
    is_event,
    last_epoch,
    last_written,
    read_events,
    salvaged_events,
    span,
)
from sseg_nase.rundir.mutations import read_mutations
from sseg_nase.rundir.names import checkpoint_of, is_run
from sseg_nase.rundir.status import read_status, status_of
from sseg_nase.rundir.unreadable import UnreadableError

READERS: dict[str, Callable[[Path], Any]] = {
    "config.yaml": read_config,
    "architecture.json": read_architecture,
    "episodes.npz": read_episodes,
    "embeddings.npz": read_embeddings,
    "mutations.jsonl": read_mutations,
    "events.jsonl": lambda run: list(read_events(run)),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_missing_and_one_that_is_damaged(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=f"^has no {name}") as missing:
        READERS[name](tmp_path)
    assert (missing.value.path, missing.value.damaged) == (tmp_path / name, False)
    for content in (b"\xff\xfe\n", b"[1\n", b"[1]\n"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableError, match=f"^has a {name} that cannot be read") as damaged:
            READERS[name](tmp_path)
        assert damaged.value.damaged
        assert damaged.value.reason


def test_data_of_older_runs_are_not_there_and_those_of_others_are_whole(tmp_path: Path) -> None:
    assert read_data(tmp_path) == {}
    for text in ("{", '{"images": {}, "roles": {}, "files": []}'):
        (tmp_path / "data.json").write_text(text)
        with pytest.raises(UnreadableError, match=r"has a data\.json"):
            read_data(tmp_path)


def test_a_status_that_is_damaged_says_nothing(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    assert status_of(tmp_path) == {}
    (tmp_path / "status.json").write_text('{"status": "FAILED", "error": 5, "own": 1}')
    assert read_status(tmp_path) == {"status": "FAILED", "own": 1}


def test_what_a_run_was_asked_for(tmp_path: Path) -> None:
    write_config(tmp_path, {"seed": 3, "hardware": None}, ["seed=3"])
    assert read_config(tmp_path) == {"seed": 3, "hardware": None}
    assert read_overrides(tmp_path) == ["seed=3"]
    (tmp_path / "overrides.yaml").write_text("seed: 3")
    assert read_overrides(tmp_path) is None
    (tmp_path / "config.yaml").write_text("seed: [3]")  # no run's seed is a list
    assert config_of(tmp_path) is None


def test_a_run_is_told_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert not is_run(tmp_path)
    (tmp_path / "results.json").touch()
    assert is_run(tmp_path)
    assert checkpoint_of(tmp_path, "best") == tmp_path / "checkpoints" / "best.pt"


def test_events_are_read_strictly_or_salvaged(tmp_path: Path) -> None:
    assert (span(tmp_path), last_epoch(tmp_path)) == ((None, None), (None, None))
    assert last_written(tmp_path) is None
    log = EventLog(tmp_path)
    log.write("epoch", {"epoch": 0, "loss": 2.5})
    log.write("metrics", {"a": 1.0}, 7)
    path = tmp_path / "events.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"time": 1')
    assert [line["kind"] for line in read_events(tmp_path)] == ["epoch", "metrics"]
    path.write_text(whole + '{"time": 1, "kind": "x"}\n')
    with pytest.raises(UnreadableError) as caught:
        list(read_events(tmp_path))
    assert caught.value.reason == "line 3 has no values"

    lost = list[int]()
    path.write_text(f'{whole}\n{{"time": 1, "kind": "metrics", "values": {{}}}}\nx')
    found = list(salvaged_events(tmp_path, is_event, lost.append))
    assert [line["kind"] for line in found] == ["epoch", "metrics"]
    assert lost == [2]  # an empty line is none
    assert last_epoch(tmp_path) == (1, 2.5)
    began, ended = span(tmp_path)
    assert began == json.loads(whole.splitlines()[0])["time"]
    assert ended == 1.0
    assert last_written(tmp_path) == path.stat().st_mtime
