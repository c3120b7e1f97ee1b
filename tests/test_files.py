"""Files are whole: short writes, failed ones, and shorter texts over longer ones."""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from sseg_nase.files import StorageError, append_line, check_room, overwrite_json, write_text


class Slow(io.FileIO):
    """A file that takes three bytes at a time, and has room for `room` of them."""

    room = 1000

    def write(self, content: Any) -> int:
        if type(self).room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        type(self).room -= 3
        return super().write(bytes(content)[:3])


@pytest.mark.parametrize("room", [1000, 6])
def test_a_line_is_appended_whole_or_not_at_all(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    append_line(path, {"index": 0})
    monkeypatch.setattr(Slow, "room", room)
    monkeypatch.setattr(Path, "open", lambda self, mode, buffering: Slow(self, "ab"))
    if room == 1000:
        append_line(path, {"index": 1})
    else:
        with pytest.raises(StorageError):
            append_line(path, {"index": 1})
    monkeypatch.undo()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"index": 0}, {"index": 1}][: 2 if room == 1000 else 1]


def test_nothing_of_a_longer_text_stays_behind_a_shorter_one(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_text(path, json.dumps({"status": "RUNNING", "error": "x" * 100}))
    overwrite_json(path, {"status": "FAILED"})
    assert json.loads(path.read_text()) == {"status": "FAILED"}


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "results.json", "{}")
    finally:
        os.umask(before)
    assert (tmp_path / "results.json").stat().st_mode & 0o777 == 0o644


def test_room_is_checked_before_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sseg_nase.files.free_bytes", lambda folder: 100)
    check_room(tmp_path, 100)
    with pytest.raises(StorageError):
        check_room(tmp_path, 101)
