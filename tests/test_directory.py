"""What a run's folder says of its end and its tracker, and who may change that."""

from __future__ import annotations

import pytest

from sseg_nase.config.compose import load
from sseg_nase.directory import RUNNING, RunDirectory, end_dead, status_of
from sseg_nase.tracking.sink import FAILED, FINISHED, INTERRUPTED


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
