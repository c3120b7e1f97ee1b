"""What a run's folder says of its end and its tracker, and who may change that."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from sseg_nase.config.compose import load
from sseg_nase.errors import UserError
from sseg_nase.files import read_json, write_json
from sseg_nase.rundir import status
from sseg_nase.rundir.directory import RunDirectory
from sseg_nase.rundir.lock import locked
from sseg_nase.rundir.status import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUNNING,
    end_dead,
    own_run_id,
    status_of,
)


@pytest.fixture
def place() -> RunDirectory:
    place = RunDirectory.create(load(["hardware=cpu", "tracking=jsonl"]), [])
    place.release()
    return place


@pytest.mark.parametrize("status", [FINISHED, FAILED, INTERRUPTED])
def test_how_a_run_ended_is_not_overwritten(status: str, place: RunDirectory) -> None:
    place.write_status(status, "as it was")
    before = dict(status_of(place.path))
    assert end_dead(place.path, INTERRUPTED, "its process is gone") is None
    assert status_of(place.path) == before


def test_where_the_tracker_knows_the_run_is_kept_for_later(place: RunDirectory) -> None:
    place.run_id, place.tracking_uri = "abc", "sqlite:////store.db"
    place.write_status(RUNNING)
    resumed = RunDirectory.reopen(
        load(["tracking=jsonl", "hardware=cpu", f"resume={place.path}"]), []
    )
    resumed.release()
    assert (resumed.run_id, resumed.tracking_uri) == ("abc", "sqlite:////store.db")
    assert status_of(place.path)["tracking_uri"] == "sqlite:////store.db"


def test_a_run_that_was_resumed_in_vain_is_left_as_it_was(place: RunDirectory) -> None:
    place.write_status(FAILED, "out of memory")
    before = {path.name: path.read_bytes() for path in place.path.glob("*.*") if path.is_file()}
    resumed = RunDirectory.reopen(
        load(["tracking=jsonl", "hardware=cpu", f"resume={place.path}"]), []
    )
    assert status_of(place.path)["status"] == RUNNING
    resumed.restore()
    resumed.release()
    after = {path.name: path.read_bytes() for path in place.path.glob("*.*") if path.is_file()}
    assert after == before


def reopened(place: RunDirectory, *overrides: str) -> RunDirectory:
    given = [f"resume={place.path}", *overrides]
    return RunDirectory.reopen(load(["hardware=cpu", "tracking=jsonl", *given]), given)


def change_config(place: RunDirectory, change: Callable[[dict[str, Any]], object]) -> None:
    path = place.path / "config.yaml"
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values))


# -- what a resumed run's config differs in --------------------------------------------------------


def test_a_key_that_an_older_version_did_not_have_counts_where_it_is_given(
    place: RunDirectory,
) -> None:
    change_config(place, lambda values: values["ssl"].pop("temperature"))
    found = reopened(place)
    found.release()
    assert found.changes == {}
    with pytest.raises(UserError, match=r"ssl\.temperature: None -> 0\.3\n"):
        reopened(place, "ssl.temperature=0.3")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("search.caps={params: 9}", r"search\.caps\.params: None -> 9\.0\n"),
        ("search.final_overrides={pretrain.epochs: 9}",
         r"search\.final_overrides\.pretrain\.epochs: None -> 9\n"),
    ],
)  # fmt: skip
def test_what_is_given_inside_of_a_mapping_counts(
    given: str, said: str, place: RunDirectory
) -> None:
    """The run has the mapping, and not this key in it: as if an older version had not had it."""
    change_config(place, lambda values: values.update(task="search"))
    with pytest.raises(UserError, match=said):
        reopened(place, "task=search", "space=nb201", given)


def test_a_path_of_a_section_that_an_older_version_did_not_have_differs(
    place: RunDirectory,
) -> None:
    change_config(place, lambda values: values.pop("finetune"))
    with pytest.raises(UserError, match=r"finetune\.start: None -> .*x\.pt\n"):
        reopened(place, "finetune=linear", "finetune.start=x.pt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values["ssl"].update(gone=3), r"ssl\.gone: 3 -> None\n"),
        (lambda values: values.update(finetune=None), r"finetune\.epochs: None -> \d+\n"),
        (lambda values: values.update(seed=5), r"seed: 5 -> 0\n"),
    ],
)
def test_what_only_the_run_has_differs_too(
    change: Callable[[dict[str, Any]], object], said: str, place: RunDirectory
) -> None:
    change_config(place, change)
    with pytest.raises(UserError, match=said):
        reopened(place)


def test_a_run_that_is_refused_is_free_for_others(
    place: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(place.status())
    with pytest.raises(UserError, match="differs") as refused:  # it holds what was refused
        reopened(place, "seed=7")
    assert not locked(place.path)

    def failing(*arguments: object) -> None:
        raise RuntimeError("it broke")

    monkeypatch.setattr(RunDirectory, "_describe", failing)
    with pytest.raises(RuntimeError) as broken:
        reopened(place)
    assert not locked(place.path)
    assert dict(place.status()) == before
    assert refused.value is not broken.value


def test_what_is_written_of_a_resumed_run_does_not_ask_to_resume(place: RunDirectory) -> None:
    found = reopened(place, "++resume_overrides=true", "seed=7")
    assert set(found.changes) == {"seed"}
    assert not found.finished
    config = yaml.safe_load((place.path / "config.yaml").read_text())
    assert (config["resume"], config["resume_overrides"], config["seed"]) == (None, False, 7)
    kept = yaml.safe_load((place.path / "overrides.yaml").read_text())
    assert [text for text in kept if not text.startswith("paths.")] == ["seed=7"]
    found.write_status(FINISHED)
    assert not found.finished  # with other settings there is something to do
    found.release()
    again = reopened(place, "seed=7")
    again.release()
    assert again.finished


def test_where_data_was_and_who_was_running_is_said(place: RunDirectory) -> None:
    change_config(place, lambda values: values["paths"].update(data_dir="/old/data"))
    write_json(place.path / "status.json", {"status": FAILED, "process": {"host": "another"}})
    here = Path("data").absolute()
    found = reopened(place, f"paths.data_dir={here}")
    found.release()
    assert found.notes == [f"paths.data_dir is {here} now; it was /old/data"]
    write_json(place.path / "status.json", {"status": RUNNING, "process": {"host": "another"}})
    found = reopened(place, "paths.data_dir=/old/data")
    found.release()
    (note,) = found.notes
    assert "said RUNNING, on another, and nothing held the folder: that process is taken" in note


DATA = {"images": {}, "roles": {}, "files": {}}


@pytest.mark.parametrize(
    ("was", "data", "now", "moved"),
    [
        ("imgs", None, "/here/imgs", True),  # of a version that stored no sums and relative paths
        ("my/imgs", None, "/here/my/imgs", True),
        ("my/imgs", None, "/here/imgs", False),
        ("/old/imgs", None, "/here/old/imgs", False),
        ("/old/imgs", DATA, "/here/imgs", True),  # the sums tell
        (None, DATA, "/here/imgs", False),
    ],
)
def test_images_in_another_place_may_be_the_same(
    was: str | None, data: Any, now: str, moved: bool, place: RunDirectory
) -> None:
    if data is not None:
        write_json(place.path / "data.json", data)
    given = [f"dataset.root={now}", "dataset=folder"]
    config = load(["hardware=cpu", "tracking=jsonl", *given])
    (place.path / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
    change_config(place, lambda values: values["dataset"].update(root=was))
    place.write_status(FAILED)
    config = dataclasses.replace(config, resume=str(place.path))
    if moved:
        found = RunDirectory.reopen(config, given)
        found.release()
        said = [f"dataset.root is {now} now; it was {was}"] if data else []
        assert (found.changes, found.notes) == ({}, said)
    else:
        with pytest.raises(UserError, match=rf"dataset\.root: {was} -> {now}\n"):
            RunDirectory.reopen(config, given)


@pytest.mark.parametrize("content", ["", "a: 1", "- 1", "{", "text"])
def test_what_holds_no_config_of_a_run_is_refused(content: str, place: RunDirectory) -> None:
    (place.path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match="not the directory of a run"):
        reopened(place)


# -- the lock and the end --------------------------------------------------------------------------


def test_a_run_stopped_before_it_began_says_so_and_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "_describe", stopped)
    with pytest.raises(KeyboardInterrupt) as ended:
        RunDirectory.create(load(["hardware=cpu", "tracking=jsonl"]), [])
    (path,) = Path("runs").glob("*/*")
    assert status_of(path)["status"] == INTERRUPTED
    assert not locked(path)
    assert ended.traceback


def test_a_folder_that_cannot_be_made_is_named() -> None:
    Path("taken").write_text("")
    with pytest.raises(UserError, match=r"^paths\.output_dir=taken: cannot be written \(Not a dir"):
        RunDirectory.create(load(["paths.output_dir=taken"]), [])


def test_a_run_that_is_held_is_not_ended_by_another(
    place: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "SECONDS_FOR_LOCK", 0.01)
    place.write_status(RUNNING)
    with FileLock(place.path / ".lock"):
        assert locked(place.path)
        assert end_dead(place.path, INTERRUPTED, "its process is gone") is None
        with pytest.raises(UserError, match="still going on in another process"):
            reopened(place)
    assert status_of(place.path)["status"] == RUNNING
    said = end_dead(place.path, INTERRUPTED, "its process is gone")
    assert said is not None
    assert said["status"] == RUNNING
    ended = status_of(place.path)
    assert (ended["status"], ended["error"]) == (INTERRUPTED, "its process is gone")
    assert ended["process"] == said["process"]
    assert not locked(place.path)


def test_without_a_lock_nobody_holds_a_folder(tmp_path: Path) -> None:
    assert not locked(tmp_path)
    assert not (tmp_path / ".lock").exists()


# -- whose run in the tracker it is ----------------------------------------------------------------


def test_a_folder_whose_place_another_run_has_taken_was_moved(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    here = {"host": socket.gethostname(), "pid": 1}
    said = {"tracker_run_id": "abc", "directory": str(old), "process": here}
    assert own_run_id(new, said) == ("abc", f"this run was moved here from {old}")
    old.mkdir()
    write_json(old / "status.json", {**said, "tracker_run_id": "another"})
    assert own_run_id(new, said) == ("abc", f"this run was moved here from {old}")
    write_json(old / "status.json", said)
    assert own_run_id(new, said)[0] is None
    unknown = {key: value for key, value in said.items() if key != "tracker_run_id"}
    write_json(old / "status.json", unknown)
    assert own_run_id(new, unknown) == (None, f"this run is a copy of {old}")
    assert own_run_id(new, {"tracker_run_id": "abc"}) == ("abc", None)  # of an older version


def test_what_stands_in_status_json(place: RunDirectory) -> None:
    place.write_status(RUNNING)
    said = read_json(place.path / "status.json")
    assert said == {
        "status": RUNNING,
        "error": None,
        "process": {"host": socket.gethostname(), "pid": os.getpid()},
        "directory": str(place.path),
    }
    assert json.loads((place.path / "status.json").read_text()) == said
    place.run_id, place.tracking_uri = "abc", "http://host"
    place.write_status(FAILED, "it broke", "Traceback: here", undelivered=True)
    assert read_json(place.path / "status.json") == {
        **said,
        "status": FAILED,
        "error": "it broke",
        "traceback": "Traceback: here",
        "tracker_run_id": "abc",
        "tracking_uri": "http://host",
        "undelivered": True,
    }


def test_a_copy_gets_a_run_of_its_own(place: RunDirectory, tmp_path: Path) -> None:
    place.run_id, place.tracking_uri = "abc", "sqlite:////store.db"
    place.write_status(FAILED)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.yaml", "overrides.yaml", "status.json"):
        (copy / name).write_bytes((place.path / name).read_bytes())
    config = dataclasses.replace(load(["hardware=cpu", "tracking=jsonl"]), resume=str(copy))
    found = RunDirectory.reopen(config, [])
    found.release()
    assert found.run_id is None
    assert any("a run of its own in MLflow" in note for note in found.notes)
