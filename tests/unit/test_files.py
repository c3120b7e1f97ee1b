"""Files are whole: short writes, failed ones, and shorter texts over longer ones."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from sseg_nase.files import (
    StorageError,
    append_line,
    check_room,
    cut_torn_line,
    free_bytes,
    in_bytes,
    last_lines,
    overwrite_json,
    read_json,
    read_lines,
    storage_error,
    write_bytes,
    write_json,
    write_text,
    writing,
)


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
        assert os.umask(0o022) == 0o022  # as it was
    finally:
        os.umask(before)
    assert (tmp_path / "results.json").stat().st_mode & 0o777 == 0o644


def test_room_is_checked_before_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sseg_nase.files.free_bytes", lambda folder: 100)
    check_room(tmp_path, 100)
    write_bytes(tmp_path / "a", b"x" * 100)
    with pytest.raises(StorageError):
        check_room(tmp_path, 101)


def test_a_name_that_is_no_utf_8_is_spelled_out(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_text(tmp_path / "a", name)
    assert (tmp_path / "a").read_bytes() == b"caf\\udce9"
    write_json(tmp_path / "b.json", {"name": name})
    assert read_json(tmp_path / "b.json") == {"name": name}


@pytest.mark.parametrize("content", ["", '{"half": ', "[1]", '"text"', "null", "\udcff"])
def test_what_is_no_json_object_is_not_read(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert read_json(path) is None
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert read_json(path) is None


def test_the_last_word_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    path.write_text("{}")
    seen: list[bytes] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (seen.append(path.read_bytes()), fsync(file)))
    overwrite_json(path, {"status": "FAILED"})
    assert [json.loads(content) for content in seen] == [{"status": "FAILED"}]


def test_room_is_asked_for_where_the_folder_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert free_bytes(tmp_path / "not" / "yet") is not None
    monkeypatch.setattr(shutil, "disk_usage", lambda place: (0, 0, 0))  # it does not say
    assert free_bytes(tmp_path) is None
    check_room(tmp_path, 1)


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (1_300_000, "1.3 MB"),
        (2_500_000_000, "2.5 GB"),
        (7_000_000_000_000, "7.0 TB"),
    ],
)
def test_bytes_for_people(count: int, shown: str) -> None:
    assert in_bytes(count) == shown


def test_what_an_error_says_of_the_storage(tmp_path: Path) -> None:
    """Also the one behind it, and the one that was being dealt with."""

    def chained(*, cause: bool) -> BaseException:
        try:
            try:
                raise OSError(errno.EROFS, "Read-only", "/a/source", None, "/b/target")
            except OSError as error:
                if cause:
                    raise RuntimeError("it failed") from error
                raise RuntimeError("it failed")  # noqa: B904 - what is tested
        except RuntimeError as error:
            return error

    for cause in (True, False):
        found = storage_error(chained(cause=cause), tmp_path)
        assert found is not None
        assert (found.folder, found.number) == (Path("/b"), errno.EROFS)  # where it was to go
    nowhere = storage_error(OSError(errno.ENOSPC, "full"), tmp_path)
    assert nowhere is not None
    assert nowhere.folder == tmp_path
    assert storage_error(nowhere, Path("/x")) is nowhere
    full = storage_error(sqlite3.OperationalError("database or disk is full"), tmp_path)
    assert full is not None
    assert (full.folder, full.number) == (tmp_path, errno.ENOSPC)
    for other in (ValueError("full"), FileNotFoundError(2, "no", "x"), sqlite3.Error("locked")):
        assert storage_error(other, tmp_path) is None
    turning = ValueError("a ring")
    turning.__context__ = RuntimeError("of two")
    turning.__context__.__context__ = turning
    assert storage_error(turning, tmp_path) is None


@pytest.mark.parametrize(
    "name", ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE"]
)
def test_what_the_system_says_of_a_disk_is_one_kind_of_error(name: str, tmp_path: Path) -> None:
    number = getattr(errno, name)
    with pytest.raises(StorageError) as failed, writing(tmp_path, 9):
        raise OSError(number, "no")
    assert (failed.value.folder, failed.value.number, failed.value.needed) == (tmp_path, number, 9)
    assert storage_error(OSError(number, "no"), tmp_path) is not None
    with pytest.raises(InterruptedError), writing(tmp_path):
        raise InterruptedError(errno.EINTR, "no")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "no space is left; 5 bytes are free, 9 bytes are needed. Make room there"),
        (errno.EDQUOT, "the disk quota is used up; 5 bytes are free, 9 bytes are needed. Make"),
        (errno.EROFS, "it is read-only. Make it writable"),
        (errno.EACCES, "writing there is not allowed. Make it writable"),
        (errno.EPERM, "writing there is not allowed. Make it writable"),
    ],
)
def test_the_room_is_named_where_it_is_the_room_that_lacks(
    number: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sseg_nase.files.free_bytes", lambda folder: 5)
    assert f"{tmp_path} cannot be written: {remedy}" in str(StorageError(tmp_path, number, 9))


def test_lines_say_what_is_wrong_with_them(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n[2]\n\nx\n{"b": "\xff"}\n{"c": 3}')
    found = list(read_lines(path))
    assert [line.why for line in found] == [
        "", "is no object", "is empty", "is no JSON", "is no UTF-8", "",
    ]  # fmt: skip
    assert [line.torn for line in found] == [False] * 5 + [True]
    assert [line.number for line in found] == [1, 2, 3, 4, 5, 6]
    assert [line.value for line in read_lines(path, containing='"c"')] == [{"c": 3}]
    assert [line.value for line in last_lines(path, 20)] == [
        {"b": "\N{REPLACEMENT CHARACTER}"},
        {"c": 3},
    ]
    assert last_lines(tmp_path / "nowhere") == []
    cut_torn_line(path)
    assert path.read_bytes().endswith(b'"}\n')
    cut_torn_line(path)
    assert len(list(read_lines(path))) == 5
